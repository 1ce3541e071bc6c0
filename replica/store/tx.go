package store

import (
	"context"
	"encoding/json"
	"fmt"
	"sort"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// Writer says on whose behalf an Update runs.
type Writer uint8

// The writers: the mirror and transaction cache repeat what production did;
// the standby acts in its place; the keeper and copy-back may always write.
const (
	ByMirror Writer = iota
	ByStandby
	ByKeeper
)

// Tx collects the changes of one Update. Values that it returns are copies.
type Tx struct {
	s    *Store
	a    *account
	base bool // keep the base of what changes
	wire bool // rows put are touched, see TouchedSince

	info        row.Account
	infoChanged bool
	boxes       map[row.MailboxID]*row.Mailbox
	dropped     map[row.MailboxID]bool
	rows        map[row.MailboxID]map[uint32]*row.Message
	batch       meta.Batch
	then        []func() // once it is durable
}

// Update runs f and commits what it did, durably, as one batch. If f fails
// nothing changes.
func (s *Store) Update(ctx context.Context, user string, w Writer, f func(*Tx) error) error {
	a, err := s.account(user)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !s.opt.Primary && w != ByKeeper && (w == ByStandby) != (a.info.Home == row.Standby) {
		return fmt.Errorf("%w: %s", ErrNotHome, a.name)
	}
	if w == ByStandby && a.seal {
		return fmt.Errorf("%w: %s is being handed back", ErrNotHome, a.name)
	}
	tx := &Tx{s: s, a: a, base: w == ByStandby && !s.opt.Primary, info: a.info,
		boxes: map[row.MailboxID]*row.Mailbox{}, dropped: map[row.MailboxID]bool{}, rows: map[row.MailboxID]map[uint32]*row.Message{}}
	if err := f(tx); err != nil {
		return err
	}
	return tx.commit(ctx)
}

// Seal keeps the standby from changing an account while the last of it is
// copied back; what it accepts then stays held. It does not outlive the process:
// then copy-back begins again.
func (s *Store) Seal(user string, on bool) error {
	a, err := s.account(user)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seal = on
	return nil
}

// Name is the account's.
func (tx *Tx) Name() string { return tx.a.name }

// Home says which side answers for the account.
func (tx *Tx) Home() row.Home { return tx.info.Home }

// SetHome gives the account to a side.
func (tx *Tx) SetHome(h row.Home) { tx.info.Home, tx.infoChanged = h, true }

// Stage adds rows that are no part of the account to its batch.
func (tx *Tx) Stage(f func(*meta.Batch)) { f(&tx.batch) }

// OnCommit has f called when the batch is durable and the account shows it, before
// Update returns. Those given first are called first.
func (tx *Tx) OnCommit(f func()) { tx.then = append(tx.then, f) }

// Box returns the mailbox of a name, or nil.
func (tx *Tx) Box(name string) *row.Mailbox {
	for _, m := range tx.Boxes() {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// BoxByID returns a mailbox, or nil.
func (tx *Tx) BoxByID(id row.MailboxID) *row.Mailbox {
	if m := tx.boxes[id]; m != nil {
		return m
	}
	if m := tx.a.boxes[id]; m != nil && !tx.dropped[id] {
		c := *m
		return &c
	}
	return nil
}

// Boxes lists all mailboxes.
func (tx *Tx) Boxes() []*row.Mailbox {
	var out []*row.Mailbox
	for id := range tx.a.boxes {
		if m := tx.BoxByID(id); m != nil {
			out = append(out, m)
		}
	}
	for id, m := range tx.boxes {
		if tx.a.boxes[id] == nil {
			out = append(out, m)
		}
	}
	return out
}

// Add makes a mailbox; its ID is given here.
func (tx *Tx) Add(m row.Mailbox) *row.Mailbox {
	m.ID = tx.info.NextID
	tx.info.NextID++
	tx.infoChanged = true
	c := &m
	tx.boxes[m.ID] = c
	return c
}

// Put stores a changed mailbox.
func (tx *Tx) Put(m *row.Mailbox) {
	tx.boxes[m.ID] = m
}

func (tx *Tx) putJSON(key []byte, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of ours
	}
	tx.batch.Put(key, b)
}

// Drop deletes a mailbox with its messages.
func (tx *Tx) Drop(id row.MailboxID) {
	if tx.base {
		for _, m := range tx.Rows(id) {
			tx.saveRow(id, m)
		}
	}
	tx.dropped[id] = true
	delete(tx.boxes, id)
	delete(tx.rows, id)
}

// Rows lists the messages of a mailbox by UID, with this Update's changes.
func (tx *Tx) Rows(id row.MailboxID) []*row.Message {
	var out []*row.Message
	if m := tx.a.boxes[id]; m != nil && !tx.dropped[id] {
		sn, err := tx.s.snapshot(tx.a, m)
		if err != nil {
			return nil
		}
		out = sn.Rows
	}
	return overlay(out, tx.rows[id])
}

// Find returns a copy of one message, or nil.
func (tx *Tx) Find(id row.MailboxID, uid uint32) *row.Message {
	r, ok := tx.rows[id][uid]
	if !ok {
		if m := tx.a.boxes[id]; m != nil {
			if sn, err := tx.s.snapshot(tx.a, m); err == nil {
				r = sn.Find(uid)
			}
		}
	}
	if r == nil {
		return nil
	}
	c := *r
	return &c
}

// PutRow stores a message.
func (tx *Tx) PutRow(id row.MailboxID, m *row.Message) {
	tx.saveRow(id, tx.Find(id, m.UID))
	tx.row(id, m.UID, m)
}

// DeleteRow removes a message.
func (tx *Tx) DeleteRow(id row.MailboxID, uid uint32) {
	tx.saveRow(id, tx.Find(id, uid))
	tx.row(id, uid, nil)
}

func (tx *Tx) row(id row.MailboxID, uid uint32, m *row.Message) {
	if tx.wire {
		tx.a.touch(id, uid)
	}
	if tx.rows[id] == nil {
		tx.rows[id] = map[uint32]*row.Message{}
	}
	tx.rows[id][uid] = m
}

// saveRow keeps a message of production as it stood at the takeover.
func (tx *Tx) saveRow(id row.MailboxID, old *row.Message) {
	if !tx.base || old == nil || old.Fresh {
		return
	}
	key := meta.BaseRowKey(tx.Name(), id, old.UID)
	saved := false
	_ = tx.s.opt.Meta.View(func(sn meta.Snap) error {
		b, _, _ := sn.Get(key)
		saved = b != nil
		return nil
	})
	if !saved {
		tx.batch.Put(key, old.Encode())
	}
}

func overlay(rows []*row.Message, ch map[uint32]*row.Message) []*row.Message {
	if len(ch) == 0 {
		return rows
	}
	out := make([]*row.Message, 0, len(rows)+len(ch))
	seen := 0
	for _, r := range rows {
		n, ok := ch[r.UID]
		if ok {
			seen++
			if n == nil {
				continue
			}
			r = n
		}
		out = append(out, r)
	}
	if seen < len(ch) {
		known := make(map[uint32]bool, len(rows))
		for _, r := range rows {
			known[r.UID] = true
		}
		for uid, n := range ch {
			if n != nil && !known[uid] {
				out = append(out, n)
			}
		}
		sort.Slice(out, func(i, j int) bool { return out[i].UID < out[j].UID })
	}
	return out
}

func (tx *Tx) commit(ctx context.Context) error {
	name := tx.Name()
	for id := range tx.dropped {
		tx.batch.DeleteRange(meta.Range(meta.RowsOf(name, id)))
		tx.batch.Delete(meta.MailboxKey(name, id))
	}
	next := map[row.MailboxID]*row.Snapshot{}
	for id, ch := range tx.rows {
		m := tx.BoxByID(id)
		if m == nil {
			continue
		}
		for uid, r := range ch {
			if r == nil {
				tx.batch.Delete(meta.RowKey(name, id, uid))
			} else {
				tx.batch.Put(meta.RowKey(name, id, uid), r.Encode())
			}
		}
		rows := tx.Rows(id)
		m.Messages = len(rows)
		tx.boxes[id] = m
		sn := &row.Snapshot{Rows: rows, UIDs: make([]uint32, len(rows))}
		for i, r := range rows {
			sn.UIDs[i] = r.UID
		}
		next[id] = sn
	}
	for id, m := range tx.boxes {
		tx.putJSON(meta.MailboxKey(name, id), m)
	}
	if tx.infoChanged {
		tx.putJSON(meta.AccountKey(name), tx.info)
	}
	if len(tx.batch.Do) == 0 {
		tx.tell()
		return nil
	}
	if _, err := tx.s.opt.Meta.Commit(ctx, tx.batch); err != nil {
		return fmt.Errorf("store changes of %s: %w", name, err)
	}
	tx.publish(next)
	return nil
}

// publish shows the committed state to readers and watchers.
func (tx *Tx) publish(next map[row.MailboxID]*row.Snapshot) {
	a := tx.a
	a.info = tx.info
	for id := range tx.dropped {
		delete(a.boxes, id)
		delete(a.snaps, id)
	}
	for id, m := range tx.boxes {
		a.boxes[id] = m
		sn := next[id]
		if sn == nil {
			if old := a.snaps[id]; old != nil {
				sn = &row.Snapshot{Rows: old.Rows, UIDs: old.UIDs}
			}
		}
		if sn != nil {
			sn.Mailbox = *m
			a.snaps[id] = sn
		}
	}
	tx.tell()
	for ch := range a.watch {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (tx *Tx) tell() {
	for _, f := range tx.then {
		f()
	}
}
