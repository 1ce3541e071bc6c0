package store

import (
	"context"
	"fmt"
	"time"

	"understudy/replica/row"
)

// Wire repeats changes that production made and that were seen on the wire. They
// carry production's UIDs and UIDVALIDITY. ErrNoMailbox tells that the replica does
// not know the mailbox in that state; the caller then has it synced.
type Wire struct{ s *Store }

// Wire returns what the transaction cache changes accounts by.
func (s *Store) Wire() Wire { return Wire{s} }

// Clock returns a mark for TouchedSince. Take it before reading from
// production.
func (s *Store) Clock(user string) uint64 {
	a, _, err := s.account(user)
	if err != nil || a.turn.Take(context.Background()) != nil {
		return 0
	}
	defer a.turn.Leave()
	a.clock++
	return a.clock
}

const maxTouched = 50_000

func (a *account) touch(id row.MailboxID, uid uint32) {
	a.clock++
	t := a.touched[id]
	if t == nil || len(t) > maxTouched {
		t = map[uint32]uint64{}
		a.touched[id] = t
	}
	t[uid] = a.clock
}

// TouchedSince reports whether the wire changed a message after the mark, so
// that what was read from production in between may be older.
func (tx *Tx) TouchedSince(id row.MailboxID, uid uint32, mark uint64) bool {
	return tx.a.touched[id][uid] > mark
}

func learned(tx *Tx, mailbox string, validity uint32) (*row.Mailbox, error) {
	tx.wire = true
	m := tx.Box(mailbox)
	if m == nil || validity != 0 && m.OnProduction() != validity {
		return nil, fmt.Errorf("%w: %q", ErrNoMailbox, mailbox)
	}
	return m, nil
}

// missing is called for a message that the replica has not, of which the wire
// told a change that concerns uid of box. While the mailbox is still being
// copied the message is left to the copy, which must read it anew.
func missing(tx *Tx, m *row.Mailbox, seen uint32, box row.MailboxID, uid uint32) error {
	if m.Synced {
		return fmt.Errorf("%w: message %d of %q", ErrNoMailbox, seen, m.Name)
	}
	tx.a.touch(box, uid)
	return nil
}

// LearnAppend records a message that a client appended and production
// accepted.
func (w Wire) LearnAppend(ctx context.Context, user string, n row.AppendOf) error {
	return w.s.Update(ctx, user, ByMirror, func(tx *Tx) error {
		m, err := learned(tx, n.Mailbox, n.UIDValidity)
		if err != nil {
			return err
		}
		if tx.Find(m.ID, n.UID) != nil {
			return nil
		}
		r := &row.Message{UID: n.UID, Date: n.Date.Truncate(time.Second), Size: n.Ref.Size, Ref: n.Ref, Unsettled: true}
		r.SetFlags(n.Flags)
		tx.PutRow(m.ID, r)
		m.UIDNext = max(m.UIDNext, n.UID+1)
		tx.Put(m)
		return nil
	})
}

// LearnFlags records a STORE that production accepted: told holds what it
// answered; the UIDs it was silent about get op applied.
func (w Wire) LearnFlags(ctx context.Context, user, mailbox string, c row.FlagChange, told []row.FlagsOf) error {
	return w.s.Update(ctx, user, ByMirror, func(tx *Tx) error {
		m, err := learned(tx, mailbox, 0)
		if err != nil {
			return err
		}
		known := map[uint32]bool{}
		set := func(uid uint32, flags func(old []string) []string) error {
			r := tx.Find(m.ID, uid)
			if r == nil {
				return missing(tx, m, uid, m.ID, uid)
			}
			r.Flags, r.Unsettled = flags(r.Flags), true
			tx.PutRow(m.ID, r)
			return nil
		}
		for _, f := range told {
			known[f.UID] = true
			if err := set(f.UID, func([]string) []string { return row.NormalFlags(f.Flags) }); err != nil {
				return err
			}
		}
		for _, uid := range c.UIDs {
			if known[uid] || m.Synced && tx.Find(m.ID, uid) == nil {
				continue // UIDs of a set need not exist
			}
			if err := set(uid, func(old []string) []string { return c.Op.Apply(old, c.Flags) }); err != nil {
				return err
			}
		}
		return nil
	})
}

// LearnExpunge records that production expunged messages.
func (w Wire) LearnExpunge(ctx context.Context, user, mailbox string, uids []uint32) error {
	return w.s.Update(ctx, user, ByMirror, func(tx *Tx) error {
		m, err := learned(tx, mailbox, 0)
		if err != nil {
			return err
		}
		for _, uid := range uids {
			tx.DeleteRow(m.ID, uid)
		}
		return nil
	})
}

// LearnCopy records a COPY or MOVE by reference.
func (w Wire) LearnCopy(ctx context.Context, user string, c row.CopyOf) error {
	if len(c.Src) != len(c.Dst) {
		return fmt.Errorf("%w: COPYUID of unequal sets", ErrNoMailbox)
	}
	return w.s.Update(ctx, user, ByMirror, func(tx *Tx) error {
		src, err := learned(tx, c.From, 0)
		if err != nil {
			return err
		}
		dst, err := learned(tx, c.To, c.UIDValidity)
		if err != nil {
			return err
		}
		for i, uid := range c.Src {
			r := tx.Find(src.ID, uid)
			if r == nil {
				if err := missing(tx, src, uid, dst.ID, c.Dst[i]); err != nil {
					return err
				}
				continue
			}
			r.UID, r.ModSeq, r.Unsettled = c.Dst[i], 0, true
			tx.PutRow(dst.ID, r)
			dst.UIDNext = max(dst.UIDNext, r.UID+1)
			if c.Move {
				tx.DeleteRow(src.ID, uid)
			}
		}
		tx.Put(dst)
		return nil
	})
}
