package store

import (
	"context"
	"encoding/json"
	"fmt"

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
	Base
	s    *Store
	a    *account
	was  *state // before
	base bool   // keep the base of what changes
	wire bool   // rows put are touched, see TouchedSince
	err  error  // the first thing that could not be read; nothing is committed then

	info        row.Account
	infoChanged bool
	boxes       map[row.MailboxID]*row.Mailbox
	dropped     map[row.MailboxID]bool
	rows        map[row.MailboxID]map[uint32]*row.Message
	read        map[row.MailboxID]*messages // as they were before
	saved       map[string]bool             // keys of the base
	then        []func()                    // once it is durable
}

// Update waits for the account's turn, runs f, and commits what it did, durably, as
// one batch. If f fails, or something that it asked for cannot be read, nothing
// changes.
func (s *Store) Update(ctx context.Context, user string, w Writer, f func(*Tx) error) error {
	a, _, err := s.account(user)
	if err != nil {
		return err
	}
	if err := a.turn.Take(ctx); err != nil {
		return fmt.Errorf("change %s: %w", user, err)
	}
	defer a.turn.Leave()
	if a.unsure {
		if err := s.reload(a, a.now.Load().info.Name); err != nil {
			return fmt.Errorf("read %s again: %w", user, err)
		}
	}
	st := a.now.Load()
	if st == nil {
		return fmt.Errorf("%w: %q", ErrNoAccount, user)
	}
	if !s.opt.Primary && w != ByKeeper && (w == ByStandby) != (st.info.Home == row.Standby) {
		return fmt.Errorf("%w: %s", ErrNotHome, st.info.Name)
	}
	if w == ByStandby && a.seal {
		return fmt.Errorf("%w: %s is being handed back", ErrNotHome, st.info.Name)
	}
	tx := &Tx{Base: Base{account: st.info.Name}, s: s, a: a, was: st, base: w == ByStandby && !s.opt.Primary,
		info: st.info, boxes: map[row.MailboxID]*row.Mailbox{}, dropped: map[row.MailboxID]bool{},
		rows: map[row.MailboxID]map[uint32]*row.Message{}, read: map[row.MailboxID]*messages{}}
	if err := f(tx); err != nil {
		return err
	}
	return tx.commit(ctx)
}

// Seal keeps the standby from changing an account while the last of it is
// copied back; what it accepts then stays held. It does not outlive the process:
// then copy-back begins again. What the standby was changing is done on return.
func (s *Store) Seal(user string, on bool) error {
	a, _, err := s.account(user)
	if err != nil {
		return err
	}
	if err := a.turn.Take(context.Background()); err != nil {
		return err
	}
	defer a.turn.Leave()
	a.seal = on
	return nil
}

// Name is the account's.
func (tx *Tx) Name() string { return tx.info.Name }

// Home says which side answers for the account.
func (tx *Tx) Home() row.Home { return tx.info.Home }

// SetHome gives the account to a side.
func (tx *Tx) SetHome(h row.Home) { tx.info.Home, tx.infoChanged = h, true }

// Stage adds rows that are no part of the account to its batch.
func (tx *Tx) Stage(f func(*meta.Batch)) { f(&tx.batch) }

// OnCommit has f called when the batch is durable and the account shows it, before
// Update returns. Those given first are called first. The account's turn is held.
func (tx *Tx) OnCommit(f func()) { tx.then = append(tx.then, f) }

// Box returns the mailbox of a name, or nil.
func (tx *Tx) Box(name string) *row.Mailbox {
	for _, m := range tx.boxes {
		if m.Name == name {
			return m
		}
	}
	if b := tx.was.byName(name); b != nil && tx.boxes[b.ID] == nil {
		return tx.BoxByID(b.ID)
	}
	return nil
}

// BoxByID returns a mailbox, or nil.
func (tx *Tx) BoxByID(id row.MailboxID) *row.Mailbox {
	if m := tx.boxes[id]; m != nil {
		return m
	}
	if b := tx.was.byID(id); b != nil && !tx.dropped[id] {
		c := b.Mailbox
		return &c
	}
	return nil
}

// Boxes lists all mailboxes.
func (tx *Tx) Boxes() []*row.Mailbox {
	out := make([]*row.Mailbox, 0, len(tx.was.boxes)+len(tx.boxes))
	for _, b := range tx.was.boxes {
		if m := tx.BoxByID(b.ID); m != nil {
			out = append(out, m)
		}
	}
	for id, m := range tx.boxes {
		if tx.was.byID(id) == nil {
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

func putJSON(b *meta.Batch, key []byte, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain structs of ours
	}
	b.Put(key, text)
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

// before returns a mailbox's messages as they were before this Update. That there
// is no such mailbox, or that it cannot be read, is an empty one.
func (tx *Tx) before(id row.MailboxID) *messages {
	if m := tx.read[id]; m != nil {
		return m
	}
	b := tx.was.byID(id)
	if b == nil || tx.dropped[id] {
		return &messages{}
	}
	m := b.get()
	if m == nil {
		var err error
		if m, _, err = tx.s.readBox(tx.Name(), id); err != nil || m == nil {
			tx.fail(fmt.Errorf("read mailbox %s of %s: %w", b.Name, tx.Name(), err))
			return &messages{}
		}
		m = newMessages(b.Mailbox, m.room, m.roomUIDs)
		tx.s.cache.keep(b, m)
	}
	tx.read[id] = m
	return m
}

func (tx *Tx) fail(err error) {
	if tx.err == nil {
		tx.err = err
	}
}

// Rows lists the messages of a mailbox by UID, with this Update's changes.
func (tx *Tx) Rows(id row.MailboxID) []*row.Message {
	rows, _ := overlay(tx.before(id), tx.rows[id], false)
	return rows
}

// Find returns a copy of one message, or nil.
func (tx *Tx) Find(id row.MailboxID, uid uint32) *row.Message {
	r, ok := tx.rows[id][uid]
	if !ok {
		r = tx.before(id).Find(uid)
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
	if tx.saved[string(key)] {
		return
	}
	if tx.saved == nil {
		tx.saved = map[string]bool{}
	}
	tx.saved[string(key)] = true
	err := tx.s.opt.Meta.View(func(sn meta.Snap) error {
		b, _, err := sn.Get(key)
		if err == nil && b == nil {
			tx.batch.Put(key, old.Encode())
		}
		return err
	})
	if err != nil {
		tx.fail(fmt.Errorf("read the base of message %d: %w", old.UID, err))
	}
}
