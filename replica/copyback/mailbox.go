package copyback

import (
	"fmt"
	"slices"

	"understudy/replica/imapc"
	"understudy/replica/match"
	"understudy/replica/row"
	"understudy/replica/store"
	"understudy/snoop/imapwire"
)

// box is the copy-back of one mailbox.
type box struct {
	*account
	id   row.MailboxID
	sn   *row.Snapshot
	base row.Mailbox
	was  row.Mailbox // base as it is stored
	sel  imapc.Selected
	rows map[uint32]*row.Message // base
	next uint32                  // production's UIDNEXT
	late map[uint32]lateMessage
	todo Plan
	gone []uint32 // moved to another mailbox by production
}

// roomForLate is how many UIDs are left free for what production delivers by
// itself between two runs, and roomAtLast how many between the last two, where
// clients wait until they are burned.
const (
	roomForLate = 16
	roomAtLast  = 4
)

// lateMessage is one that production got by itself.
type lateMessage struct {
	imapc.Message
	ref    row.Ref
	reflag bool // Flags are not those on production
}

// prepare plans one mailbox.
func (a *account) prepare(id row.MailboxID, base []row.Mailbox) (*box, error) {
	b := &box{account: a, id: id}
	if err := b.open(base); err != nil {
		return nil, err
	}
	if err := b.clean(); err != nil {
		return nil, err
	}
	var err error
	b.todo, err = b.plan()
	return b, err
}

// execute does what was planned.
func (b *box) execute() error {
	if b.todo.Empty() && len(b.gone) == 0 && b.sel.UIDNext >= b.sn.UIDNext && (b.sel.ModSeq >= b.sn.ModSeq || !b.c.Has("CONDSTORE")) {
		return b.rebase() // both are equal, and so are the numbers that clients were shown
	}
	if !b.todo.Empty() || b.final {
		sel, err := b.c.Select(b.sn.Name, false)
		if err != nil {
			return err
		}
		b.next = sel.UIDNext
	}
	steps := []func(Plan) error{b.flags, b.deletes, b.adopt, b.appends}
	if b.final {
		steps = append(steps, b.forget, b.restore, b.behind, b.finish)
	} else if b.level {
		steps = append(steps, b.raise)
	}
	for _, step := range steps {
		if err := step(b.todo); err != nil {
			return err
		}
	}
	return b.rebase()
}

// crossMoves finds messages that production moved to another mailbox by a
// command whose answer nobody got: gone here, arrived there. Production's
// outcome is taken, so that there is one.
func crossMoves(boxes []*box) {
	type arrival struct {
		b    *box
		uid  uint32
		used bool
	}
	arrived := map[row.Ref][]*arrival{}
	for _, b := range boxes {
		for _, uid := range b.todo.Late {
			ref := b.late[uid].ref
			arrived[ref] = append(arrived[ref], &arrival{b: b, uid: uid})
		}
	}
	for _, b := range boxes {
		var still []*row.Message
		for _, m := range b.todo.Restore {
			i := slices.IndexFunc(arrived[m.Ref], func(x *arrival) bool { return !x.used && x.b != b })
			if i < 0 {
				still = append(still, m)
				continue
			}
			x := arrived[m.Ref][i]
			x.used = true
			l := x.b.late[x.uid]
			l.Flags, l.reflag = MergeFlags(b.rows[m.UID].Flags, m.Flags, l.Flags), true
			x.b.late[x.uid] = l
			b.gone = append(b.gone, m.UID)
		}
		b.todo.Restore = still
	}
}

// halfDone finds messages that production made for a command whose answer nobody
// got. The standby has the message, or had it to begin with, and whatever clients
// have done with that since counts: it is still there, or elsewhere, or deleted.
// Production's are dropped. So are those that an earlier run of copy-back was
// putting there when it was cut off, and what it was moving and has there twice.
func halfDone(boxes []*box, doubts []row.Doubt) error {
	for _, d := range doubts {
		for _, b := range boxes {
			if !d.Into(b.id, b.sn.Name) {
				continue
			}
			for _, ref := range d.Refs {
				like, err := b.lateLike(ref)
				if err != nil {
					return err
				}
				if len(like) > d.Copies(ref) {
					b.todo.Drop = append(b.todo.Drop, like[0])
					b.todo.Late = slices.DeleteFunc(b.todo.Late, func(uid uint32) bool { return uid == like[0] })
				}
			}
		}
	}
	return nil
}

// lateLike returns the late messages with a content, lowest UID first. Some
// servers change carriage returns on saving.
func (b *box) lateLike(ref row.Ref) (uids []uint32, err error) {
	var sent *match.Text
	for _, uid := range b.todo.Late {
		l := b.late[uid]
		if l.reflag {
			continue
		}
		if l.ref != ref {
			if diff := l.ref.Size - ref.Size; diff > 0 || -diff > ref.Size/8+16 {
				continue
			}
			late, err := b.opt.Store.Message(l.ref)
			if err != nil {
				return nil, err
			}
			if sent == nil {
				raw, err := b.opt.Store.Message(ref)
				if err != nil {
					return nil, err
				}
				sent = match.Read(raw)
			}
			if match.Compare(sent, match.Read(late), sameMessage) == 0 {
				continue
			}
		}
		uids = append(uids, uid)
	}
	return uids, nil
}

// forget removes from the replica what production has moved away.
func (b *box) forget(Plan) error {
	if len(b.gone) == 0 {
		return nil
	}
	return b.opt.Store.Rebase(b.ctx, b.name, func(tx *store.Tx) {
		m := tx.BoxByID(b.id)
		m.ModSeq++
		for _, uid := range b.gone {
			tx.DeleteRow(b.id, uid)
			tx.DropBaseRow(b.id, uid)
		}
		tx.Put(m)
	})
}

// open selects the mailbox on production. If that is not the one of the base,
// the base is an empty one: everything has to be copied.
func (b *box) open(base []row.Mailbox) error {
	st := b.opt.Store
	var err error
	if b.sn, err = st.SnapshotByID(b.name, b.id); err != nil {
		return err
	}
	room := uint32(roomForLate)
	if b.level {
		room = roomAtLast
	}
	if !b.final && b.sn.Gap < room {
		// While production is up by itself, what it gets must find room: the
		// standby's next UID leaves some.
		err := st.Rebase(b.ctx, b.name, func(tx *store.Tx) {
			if m := tx.BoxByID(b.id); m != nil {
				m.Gap = max(m.Gap, room)
				tx.Put(m)
			}
		})
		if err != nil {
			return err
		}
		if b.sn, err = st.SnapshotByID(b.name, b.id); err != nil {
			return err
		}
	}
	// After the snapshot, see BaseRows.
	if b.rows, err = st.BaseRows(b.name, b.id); err != nil {
		return err
	}
	i := slices.IndexFunc(base, func(m row.Mailbox) bool { return m.ID == b.id })
	if i >= 0 {
		b.base = base[i]
		b.was = base[i]
	}
	sel, err := b.c.Select(b.sn.Name, false)
	if err != nil {
		return err
	}
	b.next, b.sel = sel.UIDNext, sel
	// UIDs never go back: a lower UIDNEXT is another mailbox, or an older state.
	if i < 0 || b.base.OnProduction() != sel.UIDValidity || sel.UIDNext < b.base.UIDNext || b.base.NoSelect {
		if err := b.renew(sel, i >= 0); err != nil {
			return err
		}
		b.rows = map[uint32]*row.Message{}
	}
	for _, m := range b.sn.Rows {
		if !m.Fresh && b.rows[m.UID] == nil {
			b.rows[m.UID] = m
		}
	}
	return nil
}

// renew makes the base an empty mailbox with production's UIDVALIDITY, which
// clients are shown as the one that they know.
func (b *box) renew(sel imapc.Selected, lost bool) error {
	if lost {
		b.note("mailbox %s of %s is another one on production than before: it is copied whole", b.sn.Name, b.name)
	}
	err := b.opt.Store.Rebase(b.ctx, b.name, func(tx *store.Tx) {
		m := tx.BoxByID(b.id)
		m.ProdUIDValidity = 0
		if sel.UIDValidity != m.UIDValidity {
			m.ProdUIDValidity = sel.UIDValidity
		}
		m.Born = false
		for _, r := range tx.Rows(b.id) {
			if !r.Fresh {
				c := *r
				c.Fresh = true
				tx.PutRow(b.id, &c)
			}
		}
		tx.Put(m)
		tx.DropBaseBox(b.id)
		b.base = *m
		b.base.UIDNext = 1
		tx.SetBaseBox(b.base)
	})
	if err != nil {
		return err
	}
	b.sn, err = b.opt.Store.SnapshotByID(b.name, b.id)
	return err
}

// plan reads production's side and merges.
func (b *box) plan() (Plan, error) {
	in := Input{Base: b.rows, Standby: b.sn.Rows, Same: map[uint32]uint32{}}
	var fresh []uint32
	err := b.c.Fetch("1:*", "(UID FLAGS)", func(m imapc.Message) error {
		if !m.HasFlags || slices.ContainsFunc(in.Production[max(0, len(in.Production)-1):], func(r Remote) bool { return r.UID == m.UID }) {
			return nil
		}
		in.Production = append(in.Production, Remote{m.UID, m.Flags})
		if b.rows[m.UID] == nil {
			fresh = append(fresh, m.UID)
		}
		return nil
	})
	if err != nil {
		return Plan{}, fmt.Errorf("list: %w", err)
	}
	if err := b.identify(fresh, in.Same); err != nil {
		return Plan{}, fmt.Errorf("identify what production got by itself: %w", err)
	}
	p := Merge(in)
	p.Late = slices.DeleteFunc(p.Late, func(uid uint32) bool {
		if !b.delivered(uid) {
			return false
		}
		p.Drop = append(p.Drop, uid)
		return true
	})
	p.Late = slices.DeleteFunc(p.Late, func(uid uint32) bool {
		left := b.late[uid].ref == row.RefOf(filler)
		if left {
			p.Drop = append(p.Drop, uid)
		}
		return left
	})
	return p, nil
}

// delivered reports whether a late message is production's copy of one that the
// standby has delivered: a client may have deleted or moved that since.
func (b *box) delivered(uid uint32) bool {
	msg, err := b.opt.Store.Message(b.late[uid].ref)
	if err != nil {
		return false
	}
	w, ok := b.opt.Store.MatchTwin(b.name, msg)
	return ok && !b.twins.take(w.ID)
}

// taken are the twins whose copies were found in this run.
type taken map[uint64]bool

// take reports whether a twin was found before, and notes it.
func (t taken) take(id uint64) bool {
	was := t[id]
	t[id] = true
	return was
}

// What is enough to take a message of production for one of the standby: some
// servers change CR CR LF on saving, and add lines to headers of what they deliver.
const (
	sameMessage = match.SameBytes | match.SameButCarriageReturns
	sameSent    = match.WholeButCarriageReturns
)

// identify reads the messages that production has and the base has not, and
// pairs them with messages of the standby.
func (b *box) identify(uids []uint32, same map[uint32]uint32) error {
	b.late = map[uint32]lateMessage{}
	for chunk := range slices.Chunk(uids, 50) {
		err := b.c.Fetch(imapwire.FormatSet(chunk), "(UID FLAGS INTERNALDATE BODY.PEEK[])", func(m imapc.Message) error {
			if !m.HasBody {
				return nil
			}
			ref, err := b.opt.Store.Blobs.Add(m.Body)
			if err != nil {
				return err
			}
			m.Body = nil
			b.late[m.UID] = lateMessage{Message: m, ref: ref}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if len(b.late) == 0 {
		return nil
	}
	if err := b.opt.Store.Blobs.Sync(); err != nil {
		return err
	}
	return b.pair(same)
}

// pair finds for each late message the standby's message that it is. Each of
// the standby's is used once.
func (b *box) pair(same map[uint32]uint32) error {
	var index match.Index[*row.Message]
	text, sent := map[uint32]*match.Text{}, map[uint32]*match.Text{}
	for _, m := range b.sn.Rows {
		if !m.Fresh && m.Tail == 0 {
			continue
		}
		raw, err := b.opt.Store.Message(m.Ref)
		if err != nil {
			return err
		}
		text[m.UID] = match.Read(raw)
		if m.Tail > 0 && m.Tail <= int64(len(raw)) {
			sent[m.UID] = match.Read(raw[int64(len(raw))-m.Tail:])
		}
		index.Add(text[m.UID].PlainBodyLen(), m)
	}
	used := map[uint32]bool{}
	take := func(late uint32, twin uint32) {
		same[late], used[twin] = twin, true
	}
	var order []uint32
	for uid := range b.late {
		order = append(order, uid)
	}
	slices.Sort(order)
	for _, exact := range []bool{true, false} {
		for _, uid := range order {
			if _, done := same[uid]; done {
				continue
			}
			raw, err := b.opt.Store.Message(b.late[uid].ref)
			if err != nil {
				return err
			}
			l := match.Read(raw)
			for _, m := range index.Candidates(l.PlainBodyLen()) {
				if used[m.UID] || exact && m.UID != uid {
					continue
				}
				if match.Compare(text[m.UID], l, sameMessage) != 0 || !exact && sent[m.UID] != nil && match.Compare(sent[m.UID], l, sameSent) != 0 {
					take(uid, m.UID)
					break
				}
			}
		}
	}
	return nil
}

// rebase moves the base up to production's state.
func (b *box) rebase() error {
	if b.was.UIDNext >= b.next && b.was.UIDNext >= b.base.UIDNext && b.was.Name == b.sn.Name && b.was.ID == b.base.ID {
		return nil
	}
	return b.opt.Store.Rebase(b.ctx, b.name, func(tx *store.Tx) {
		b.base.UIDNext = max(b.base.UIDNext, b.next)
		b.base.Name = b.sn.Name
		tx.SetBaseBox(b.base)
	})
}
