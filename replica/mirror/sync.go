package mirror

import (
	"context"
	"fmt"
	"slices"

	"understudy/replica/delivery"
	"understudy/replica/imapc"
	"understudy/replica/row"
	"understudy/replica/store"
	"understudy/snoop/imapwire"
)

// Bounds of one FETCH of bodies.
const (
	batchBytes    = 4 << 20
	batchMessages = 400
	headerFirst   = 200 // new messages up to which held deliveries are looked for by header
	attributes    = "UID FLAGS INTERNALDATE RFC822.SIZE"
)

// boxSync is one sync of one mailbox.
type boxSync struct {
	m                *Mirror
	ctx              context.Context
	c                *imapc.Conn
	account, mailbox string
	progress         func(done, total int, bytes int64)

	sel   imapc.Selected
	local *row.Snapshot
	mark  uint64
	again bool            // the wire changed something meanwhile
	stale map[uint32]bool // known with other bytes than production has
	twins map[uint32]row.Twin
}

// run makes the replica's mailbox equal to production's. again tells that the
// wire changed it meanwhile, so that another run may find more.
func (s *boxSync) run() (again bool, err error) {
	mark := s.m.unread.now()
	defer func() {
		if err == nil && !again {
			s.m.unread.done(s.account, s.mailbox, mark)
		}
	}()
	s.m.stats.Syncs.Add(1)
	s.mark = s.m.opt.Store.Clock(s.account)
	if s.local, err = s.known(); err != nil {
		return false, err
	}
	if s.sel, err = s.c.Select(s.mailbox, true); err != nil {
		return false, fmt.Errorf("open mailbox %s of %s: %w", s.mailbox, s.account, err)
	}
	if s.local.OnProduction() != s.sel.UIDValidity {
		if err := s.reset(); err != nil {
			return false, err
		}
	}
	if s.unchanged() {
		return false, nil
	}
	remote, full, err := s.list()
	if err != nil {
		return false, fmt.Errorf("list messages of %s of %s: %w", s.mailbox, s.account, err)
	}
	uids, err := s.uidList(remote, full)
	if err != nil {
		return false, err
	}
	if err := s.applyAttributes(remote, uids); err != nil {
		return false, err
	}
	if err := s.bodies(remote); err != nil {
		return false, err
	}
	if err := s.finish(); err != nil || len(s.twins) == 0 {
		return s.again, err
	}
	return true, s.dropTwins()
}

// known returns the replica's mailbox, after a look at the folders if it has
// none of that name.
func (s *boxSync) known() (*row.Snapshot, error) {
	sn, err := s.m.opt.Store.Snapshot(s.account, s.mailbox)
	if err == nil {
		return sn, nil
	}
	if _, err := s.m.folders(s.ctx, s.c, s.account); err != nil {
		return nil, err
	}
	return s.m.opt.Store.Snapshot(s.account, s.mailbox)
}

// reset empties the replica's mailbox, which is another one than production's.
func (s *boxSync) reset() error {
	if s.local.UIDValidity != 0 {
		s.m.opt.Log.Warn("mailbox has a new UIDVALIDITY and is copied anew", "account", s.account, "mailbox", s.mailbox,
			"old", s.local.OnProduction(), "new", s.sel.UIDValidity)
	}
	err := s.m.opt.Store.Update(s.ctx, s.account, store.ByMirror, func(tx *store.Tx) error {
		old := tx.Box(s.mailbox)
		if old == nil {
			return store.ErrNoMailbox
		}
		n := *old
		tx.Drop(old.ID)
		n.UIDValidity, n.ProdUIDValidity, n.UIDNext, n.ModSeq = s.sel.UIDValidity, 0, 1, 0
		n.SyncedModSeq, n.SyncedNext, n.Synced, n.Messages = 0, 0, false, 0
		tx.Add(n)
		return nil
	})
	if err != nil {
		return err
	}
	s.local, err = s.m.opt.Store.Snapshot(s.account, s.mailbox)
	return err
}

// unchanged reports whether there is nothing to do.
func (s *boxSync) unchanged() bool {
	l := s.local
	return l.Synced && s.sel.ModSeq != 0 && l.SyncedModSeq == s.sel.ModSeq && l.SyncedNext == s.sel.UIDNext &&
		len(l.Rows) == s.sel.Exists && !slices.ContainsFunc(l.Rows, func(m *row.Message) bool { return m.Unsettled })
}

// list reads attributes: of all messages, or by CONDSTORE of the changed ones.
func (s *boxSync) list() (remote map[uint32]imapc.Message, full bool, err error) {
	remote = make(map[uint32]imapc.Message)
	on := func(m imapc.Message) error {
		if old, ok := remote[m.UID]; ok && m.Size == 0 {
			// A flag change told in between.
			m.Size, m.Date = old.Size, old.Date
		}
		remote[m.UID] = m
		return nil
	}
	items := "(" + attributes + ")"
	if s.sel.ModSeq != 0 {
		items = "(" + attributes + " MODSEQ)"
	}
	if s.sel.Exists == 0 {
		return remote, true, nil
	}
	if !s.local.Synced || s.local.SyncedModSeq == 0 || s.sel.ModSeq == 0 {
		return remote, true, s.c.Fetch("1:*", items, on)
	}
	changed := s.c.Send(fmt.Sprintf("UID FETCH 1:* %s (CHANGEDSINCE %d)", items, s.local.SyncedModSeq))
	var open []uint32
	for _, r := range s.local.Rows {
		if r.Unsettled {
			open = append(open, r.UID)
		}
	}
	more := ""
	if len(open) > 0 {
		more = s.c.Send("UID FETCH " + imapwire.FormatSet(open) + " " + items)
	}
	if err := s.c.FetchWait(changed, on); err != nil {
		return nil, false, err
	}
	if more != "" {
		if err := s.c.FetchWait(more, on); err != nil {
			return nil, false, err
		}
	}
	return remote, false, nil
}

// uidList returns the UIDs that production has; it asks only if counts show
// that some vanished.
func (s *boxSync) uidList(remote map[uint32]imapc.Message, full bool) ([]uint32, error) {
	if full {
		out := make([]uint32, 0, len(remote))
		for u := range remote {
			out = append(out, u)
		}
		slices.Sort(out)
		return out, nil
	}
	union := slices.Clone(s.local.UIDs)
	for u := range remote {
		if s.local.Find(u) == nil {
			union = append(union, u)
		}
	}
	slices.Sort(union)
	if len(union) == s.sel.Exists {
		return union, nil
	}
	return s.c.SearchAll()
}

// applyAttributes stores flags, dates and sizes of known messages, and removes
// those that are gone.
func (s *boxSync) applyAttributes(remote map[uint32]imapc.Message, uids []uint32) error {
	return s.m.opt.Store.Update(s.ctx, s.account, store.ByMirror, func(tx *store.Tx) error {
		m := tx.BoxByID(s.local.ID)
		if m == nil {
			return store.ErrNoMailbox
		}
		moving := s.m.opt.Moves.Moving(s.account, s.mailbox)
		for _, r := range tx.Rows(m.ID) {
			if tx.TouchedSince(m.ID, r.UID, s.mark) {
				s.again = true
				continue
			}
			if _, ok := slices.BinarySearch(uids, r.UID); !ok {
				if !slices.Contains(moving, r.UID) {
					tx.DeleteRow(m.ID, r.UID)
				}
				continue
			}
			rm, ok := remote[r.UID]
			if !ok {
				continue
			}
			if rm.Size != 0 && rm.Size != r.Size {
				// Production keeps other bytes than were sent: fetch them. Until
				// then what was sent is better than nothing.
				s.stale[r.UID] = true
				continue
			}
			n := *r
			n.SetFlags(rm.Flags)
			n.ModSeq, n.Unsettled = rm.ModSeq, false
			if !rm.Date.IsZero() {
				n.Date = rm.Date
			}
			delete(remote, r.UID)
			if n.ModSeq == r.ModSeq && slices.Equal(n.Flags, r.Flags) && n.Date.Equal(r.Date) && !r.Unsettled {
				continue
			}
			tx.PutRow(m.ID, &n)
		}
		return nil
	})
}

// bodies fetches the messages that are left in remote.
func (s *boxSync) bodies(remote map[uint32]imapc.Message) error {
	var need []uint32
	for u := range remote {
		need = append(need, u)
	}
	slices.Sort(need)
	if now, err := s.m.opt.Store.SnapshotByID(s.account, s.local.ID); err == nil {
		// The wire may have brought some while the list was read.
		need = slices.DeleteFunc(need, func(u uint32) bool { return now.Find(u) != nil && !s.stale[u] })
	}
	if len(need) > 0 {
		if err := s.m.opt.Deliveries.AwaitHolds(s.ctx); err != nil {
			return err
		}
	}
	if s.local.Synced && len(need) > 0 && len(need) <= headerFirst && len(s.m.opt.Deliveries.Twins(s.account)) > 0 {
		var err error
		if need, err = s.findTwins(need); err != nil {
			return err
		}
	}
	if s.local.Synced && len(need) <= headerFirst && s.m.opt.Deliveries.HeldCount() > 0 {
		var err error
		if need, err = s.byHeader(remote, need); err != nil {
			return err
		}
	}
	batches := split(need, remote)
	var tags []string
	total, done, bytes := len(need), 0, int64(0)
	for i := range batches {
		// The next batch is asked for before this one is read.
		for len(tags) < min(i+2, len(batches)) {
			tags = append(tags, s.c.Send("UID FETCH "+imapwire.FormatSet(batches[len(tags)])+" (UID BODY.PEEK[])"))
		}
		n, err := s.batch(tags[i], remote)
		if err != nil {
			return fmt.Errorf("fetch messages of %s of %s: %w", s.mailbox, s.account, err)
		}
		done, bytes = done+len(batches[i]), bytes+n
		if s.progress != nil {
			s.progress(done, total, bytes)
		}
	}
	return nil
}

func split(need []uint32, remote map[uint32]imapc.Message) [][]uint32 {
	var out [][]uint32
	size, start := int64(0), 0
	for i, u := range need {
		n := remote[u].Size
		if i > start && (size+n > batchBytes || i-start >= batchMessages) {
			out = append(out, need[start:i])
			size, start = 0, i
		}
		size += n
	}
	if start < len(need) {
		out = append(out, need[start:])
	}
	return out
}

// batch reads one FETCH and stores its messages, bytes first.
func (s *boxSync) batch(tag string, remote map[uint32]imapc.Message) (int64, error) {
	var rows []*row.Message
	var held []row.Held
	var bytes int64
	err := s.c.FetchWait(tag, func(f imapc.Message) error {
		rm, ok := remote[f.UID]
		if !ok || !f.HasBody {
			return nil
		}
		ref, err := s.m.opt.Blobs.Add(f.Body)
		if err != nil {
			return err
		}
		bytes += ref.Size
		s.m.stats.Fetched.Add(1)
		s.m.stats.Bytes.Add(ref.Size)
		if h, ok := s.heldBody(f.Body); ok {
			held = append(held, h)
		}
		rows = append(rows, newRow(rm, ref))
		return nil
	})
	if err != nil {
		return bytes, err
	}
	if err := s.m.opt.Blobs.Sync(); err != nil {
		return bytes, err
	}
	return bytes, s.putRows(rows, held)
}

func newRow(rm imapc.Message, ref row.Ref) *row.Message {
	r := &row.Message{UID: rm.UID, ModSeq: rm.ModSeq, Date: rm.Date, Size: rm.Size, Ref: ref}
	if r.Size == 0 {
		r.Size = ref.Size
	}
	r.SetFlags(rm.Flags)
	return r
}

func (s *boxSync) heldBody(msg []byte) (row.Held, bool) {
	if s.m.opt.Deliveries.HeldCount() == 0 {
		return row.Held{}, false
	}
	return s.m.opt.Deliveries.MatchHeldBody(msg)
}

// byHeader finds held deliveries among new messages by their headers, and
// returns the messages that must be fetched whole.
func (s *boxSync) byHeader(remote map[uint32]imapc.Message, need []uint32) ([]uint32, error) {
	if len(need) == 0 {
		return need, nil
	}
	var rows []*row.Message
	var held []row.Held
	err := s.c.Fetch(imapwire.FormatSet(need), "(UID BODY.PEEK[HEADER])", func(f imapc.Message) error {
		rm, ok := remote[f.UID]
		if !ok || !f.HasBody {
			return nil
		}
		h, msg, ok := s.m.opt.Deliveries.MatchHeld(delivery.Arrival{Header: f.Body, Size: rm.Size})
		if !ok {
			return nil
		}
		ref, err := s.m.opt.Blobs.Add(msg)
		if err != nil {
			return err
		}
		s.m.stats.FromWire.Add(1)
		r := newRow(rm, ref)
		rows, held = append(rows, r), append(held, h)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := s.m.opt.Blobs.Sync(); err != nil {
		return nil, err
	}
	if err := s.putRows(rows, held); err != nil {
		return nil, err
	}
	for _, r := range rows {
		delete(remote, r.UID)
	}
	return slices.DeleteFunc(need, func(u uint32) bool { _, ok := remote[u]; return !ok }), nil
}

// putRows adds messages; held are the deliveries that were found among them.
func (s *boxSync) putRows(rows []*row.Message, held []row.Held) error {
	landed := delivery.Landed{Account: s.account, Mailbox: s.mailbox, Held: held}
	return s.m.opt.Deliveries.Land(s.ctx, store.ByMirror, landed, func(tx *store.Tx) error {
		m := tx.BoxByID(s.local.ID)
		if m == nil {
			return store.ErrNoMailbox
		}
		for _, r := range rows {
			if tx.TouchedSince(m.ID, r.UID, s.mark) {
				s.again = true
				continue
			}
			tx.PutRow(m.ID, r)
			m.UIDNext = max(m.UIDNext, r.UID+1)
		}
		tx.Put(m)
		return nil
	})
}

// finish records up to where production was read.
func (s *boxSync) finish() error {
	return s.m.opt.Store.Update(s.ctx, s.account, store.ByMirror, func(tx *store.Tx) error {
		m := tx.BoxByID(s.local.ID)
		if m == nil {
			return store.ErrNoMailbox
		}
		m.UIDNext = max(m.UIDNext, s.sel.UIDNext)
		m.ModSeq = max(m.ModSeq, s.sel.ModSeq)
		m.Synced = true
		if !s.again {
			m.SyncedModSeq, m.SyncedNext = s.sel.ModSeq, s.sel.UIDNext
		}
		if s.sel.Permanent != nil {
			m.Permanent = s.sel.Permanent
		}
		tx.Put(m)
		return nil
	})
}
