package store

import (
	"context"
	"encoding/json"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// BaseBoxes returns an account's mailboxes as they stood at the takeover.
func (s *Store) BaseBoxes(user string) ([]row.Mailbox, error) {
	name, ok := s.Resolve(user)
	if !ok {
		return nil, ErrNoAccount
	}
	var out []row.Mailbox
	err := s.opt.Meta.View(func(sn meta.Snap) error {
		for _, v := range sn.Scan(meta.Range(meta.BaseMailboxesOf(name))) {
			var m row.Mailbox
			if err := json.Unmarshal(v, &m); err != nil {
				return err
			}
			out = append(out, m)
		}
		return sn.Err()
	})
	return out, err
}

// BaseRows returns the messages of a mailbox that the standby changed or
// deleted since the takeover, as they were. Read after a snapshot it may be
// newer than that, which a merge takes for no change; read before, a change in
// between would look like production's.
func (s *Store) BaseRows(user string, id row.MailboxID) (map[uint32]*row.Message, error) {
	name, ok := s.Resolve(user)
	if !ok {
		return nil, ErrNoAccount
	}
	var rows []*row.Message
	err := s.opt.Meta.View(func(sn meta.Snap) (err error) {
		rows, err = scanRows(sn, meta.BaseRowsOf(name, id))
		return err
	})
	out := make(map[uint32]*row.Message, len(rows))
	for _, m := range rows {
		out[m.UID] = m
	}
	return out, err
}

// Rebase makes a mailbox or message of the base equal to what production now
// holds after one step of copy-back, so that a copy-back that is killed goes on
// where it was.
func (s *Store) Rebase(ctx context.Context, user string, f func(tx *Tx)) error {
	return s.Update(ctx, user, ByKeeper, func(tx *Tx) error {
		f(tx)
		return nil
	})
}

// Base is the part of a Tx that changes the base.
type Base struct {
	account string
	batch   meta.Batch // of the Tx
}

// SetBaseBox stores a mailbox of the base.
func (b *Base) SetBaseBox(m row.Mailbox) { putJSON(&b.batch, meta.BaseMailboxKey(b.account, m.ID), m) }

// DropBaseBox forgets a mailbox of the base and its messages.
func (b *Base) DropBaseBox(id row.MailboxID) {
	b.batch.Delete(meta.BaseMailboxKey(b.account, id))
	b.batch.DeleteRange(meta.Range(meta.BaseRowsOf(b.account, id)))
}

// SetBaseRow stores a message of the base.
func (b *Base) SetBaseRow(id row.MailboxID, m *row.Message) {
	b.batch.Put(meta.BaseRowKey(b.account, id, m.UID), m.Encode())
}

// DropBaseRow forgets what a message was: from now on it is what it is.
func (b *Base) DropBaseRow(id row.MailboxID, uid uint32) {
	b.batch.Delete(meta.BaseRowKey(b.account, id, uid))
}

// DropBase forgets the base.
func (b *Base) DropBase() {
	b.batch.DeleteRange(meta.Range(meta.BaseMessagesOf(b.account)))
	b.batch.DeleteRange(meta.Range(meta.BaseMailboxesOf(b.account)))
}
