package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/replica/row"
)

// Acting changes accounts in production's place: it assigns UIDs and MODSEQs itself.
type Acting struct{ s *Store }

// Acting returns what the standby's servers change accounts by.
func (s *Store) Acting() Acting { return Acting{s} }

// Append adds messages to a mailbox and returns the UIDs it gave them.
func (a Acting) Append(
	ctx context.Context, user, mailbox string, msgs []row.New,
) (validity uint32, uids []uint32, err error) {
	err = a.s.Update(ctx, user, ByStandby, func(tx *Tx) error {
		m := tx.Box(mailbox)
		if m == nil || m.NoSelect {
			return fmt.Errorf("%w: %q", ErrNoMailbox, mailbox)
		}
		validity = m.UIDValidity
		m.ModSeq++
		for _, n := range msgs {
			uid := m.TakeUID()
			r := &row.Message{UID: uid, ModSeq: m.ModSeq, Date: n.Date.Truncate(time.Second), Size: n.Ref.Size,
				Ref: n.Ref, Fresh: !a.s.opt.Primary, Tail: n.Tail}
			r.SetFlags(n.Flags)
			tx.PutRow(m.ID, r)
			uids = append(uids, uid)
		}
		tx.Put(m)
		return nil
	})
	return validity, uids, err
}

// SetFlags changes flags. It returns the UIDs whose condition failed.
func (a Acting) SetFlags(ctx context.Context, user string, c row.FlagChange) (modified []uint32, err error) {
	err = a.s.Update(ctx, user, ByStandby, func(tx *Tx) error {
		m := tx.BoxByID(c.Mailbox)
		if m == nil {
			return ErrNoMailbox
		}
		next, changed := m.ModSeq+1, false
		for _, uid := range c.UIDs {
			r := tx.Find(m.ID, uid)
			if r == nil {
				continue
			}
			if c.UnchangedSince > 0 && r.ModSeq > c.UnchangedSince {
				modified = append(modified, uid)
				continue
			}
			flags := c.Op.Apply(r.Flags, c.Flags)
			if slices.Equal(flags, r.Flags) {
				continue
			}
			r.Flags, r.ModSeq, changed = flags, next, true
			tx.PutRow(m.ID, r)
		}
		if changed {
			m.ModSeq = next
			tx.Put(m)
		}
		return nil
	})
	return modified, err
}

// Expunge removes the messages that carry \Deleted, of the given UIDs or, if
// that is nil, of all.
func (a Acting) Expunge(ctx context.Context, user string, id row.MailboxID, only []uint32) error {
	return a.s.Update(ctx, user, ByStandby, func(tx *Tx) error {
		m := tx.BoxByID(id)
		if m == nil {
			return ErrNoMailbox
		}
		n := 0
		for _, r := range tx.Rows(id) {
			if r.HasFlag(`\Deleted`) && (only == nil || slices.Contains(only, r.UID)) {
				tx.DeleteRow(id, r.UID)
				n++
			}
		}
		if n > 0 {
			m.ModSeq++
			tx.Put(m)
		}
		return nil
	})
}

// Copy copies or moves messages by reference.
func (a Acting) Copy(ctx context.Context, user string, cmd row.CopyCmd) (c row.Copied, err error) {
	err = a.s.Update(ctx, user, ByStandby, func(tx *Tx) error {
		src, dst := tx.BoxByID(cmd.From), tx.Box(cmd.To)
		if src == nil || dst == nil || dst.NoSelect {
			return fmt.Errorf("%w: %q", ErrNoMailbox, cmd.To)
		}
		if src.ID == dst.ID {
			src = dst
		}
		c.UIDValidity = dst.UIDValidity
		dst.ModSeq++
		if src != dst {
			src.ModSeq++
		}
		for _, uid := range cmd.UIDs {
			r := tx.Find(src.ID, uid)
			if r == nil {
				continue
			}
			n := *r
			n.UID, n.ModSeq, n.Fresh, n.Unsettled = dst.TakeUID(), dst.ModSeq, !a.s.opt.Primary, false
			tx.PutRow(dst.ID, &n)
			c.Src, c.Dst = append(c.Src, uid), append(c.Dst, n.UID)
			if cmd.Move {
				tx.DeleteRow(src.ID, uid)
			}
		}
		if len(c.Src) > 0 {
			tx.Put(dst)
			if cmd.Move && src != dst {
				tx.Put(src)
			}
		}
		return nil
	})
	return c, err
}

// Create makes a mailbox and, as RFC 9051 section 6.3.4 wants, its parents.
func (a Acting) Create(ctx context.Context, user, name string, attrs []string) error {
	return a.s.Update(ctx, user, ByStandby, func(tx *Tx) error {
		sep := separator(tx)
		name := strings.TrimSuffix(name, string(sep))
		if err := checkName(name, sep); err != nil {
			return err
		}
		if m := tx.Box(name); m != nil && !m.NoSelect {
			return fmt.Errorf("%w: %q", ErrExists, name)
		}
		makeParents(tx, name, sep)
		tx.Make(name, attrs)
		return nil
	})
}

func checkName(name string, sep byte) error {
	control := func(r rune) bool { return r < 0x20 || r == 0x7f }
	if name == "" || len(name) > 1000 || strings.ContainsFunc(name, control) ||
		strings.Contains(name, string([]byte{sep, sep})) || name[0] == sep || strings.ContainsAny(name, "*%") {
		return fmt.Errorf("%w: %q", ErrName, name)
	}
	return nil
}

// separator is the account's, of its hierarchy.
func separator(tx *Tx) byte {
	for _, m := range tx.Boxes() {
		if m.Sep != 0 {
			return m.Sep
		}
	}
	return '/'
}

func makeParents(tx *Tx, name string, sep byte) {
	for i := 1; i < len(name); i++ {
		if name[i] == sep && tx.Box(name[:i]) == nil {
			tx.Make(name[:i], nil)
		}
	}
}

// Make adds a mailbox, or makes a \NoSelect one usable, with a UIDVALIDITY
// that no other of the account has or had.
func (tx *Tx) Make(name string, attrs []string) {
	v := uint32(time.Now().Unix())
	for _, m := range tx.Boxes() {
		v = max(v, m.UIDValidity+1, m.ProdUIDValidity+1)
	}
	if m := tx.Box(name); m != nil {
		m.NoSelect, m.UIDValidity, m.UIDNext, m.Born = false, v, 1, true
		tx.Put(m)
		return
	}
	tx.Add(row.Mailbox{Name: name, Sep: separator(tx), Attrs: attrs, UIDValidity: v, UIDNext: 1, ModSeq: 1,
		Born: !tx.s.opt.Primary, Synced: true,
		Permanent: []string{`\*`}})
}

// Delete removes a mailbox; one with children stays as \NoSelect.
func (a Acting) Delete(ctx context.Context, user, name string) error {
	return a.s.Update(ctx, user, ByStandby, func(tx *Tx) error {
		m := tx.Box(name)
		if m == nil {
			return fmt.Errorf("%w: %q", ErrNoMailbox, name)
		}
		if name == "INBOX" {
			return fmt.Errorf("%w: INBOX cannot be deleted", ErrName)
		}
		children := false
		for _, c := range tx.Boxes() {
			children = children || strings.HasPrefix(c.Name, name+string(separator(tx)))
		}
		if children && m.NoSelect {
			return fmt.Errorf("%w: %q has children", ErrName, name)
		}
		sep := separator(tx)
		tx.Drop(m.ID)
		if children {
			tx.Add(row.Mailbox{Name: name, Sep: sep, NoSelect: true, Born: !a.s.opt.Primary, Synced: true})
		}
		return nil
	})
}

// Rename renames a mailbox with its children. Renaming INBOX moves its
// messages to a new mailbox (RFC 9051 section 6.3.6).
func (a Acting) Rename(ctx context.Context, user, from, to string) error {
	return a.s.Update(ctx, user, ByStandby, func(tx *Tx) error {
		sep := separator(tx)
		m := tx.Box(from)
		if m == nil {
			return fmt.Errorf("%w: %q", ErrNoMailbox, from)
		}
		if err := checkName(to, sep); err != nil {
			return err
		}
		if tx.Box(to) != nil {
			return fmt.Errorf("%w: %q", ErrExists, to)
		}
		if strings.HasPrefix(to, from+string(sep)) && from != "INBOX" {
			return fmt.Errorf("%w: %q is below %q", ErrName, to, from)
		}
		makeParents(tx, to, sep)
		if from == "INBOX" {
			return renameInbox(tx, m, to)
		}
		for _, c := range tx.Boxes() {
			if rest, ok := strings.CutPrefix(c.Name, from); ok && (rest == "" || rest[0] == sep) {
				c.Name = to + rest
				tx.Put(c)
			}
		}
		return nil
	})
}

func renameInbox(tx *Tx, inbox *row.Mailbox, to string) error {
	tx.Make(to, nil)
	dst := tx.Box(to)
	for _, r := range tx.Rows(inbox.ID) {
		n := *r
		n.UID, n.Fresh = dst.TakeUID(), !tx.s.opt.Primary
		tx.PutRow(dst.ID, &n)
		tx.DeleteRow(inbox.ID, r.UID)
	}
	tx.Put(dst)
	inbox.ModSeq++
	tx.Put(inbox)
	return nil
}

// Subscribe sets the subscription of a mailbox.
func (a Acting) Subscribe(ctx context.Context, user, name string, on bool) error {
	return a.s.Update(ctx, user, ByStandby, func(tx *Tx) error {
		m := tx.Box(name)
		if m == nil {
			if on {
				return fmt.Errorf("%w: %q", ErrNoMailbox, name)
			}
			return nil
		}
		if m.Subscribed != on {
			m.Subscribed = on
			tx.Put(m)
		}
		return nil
	})
}
