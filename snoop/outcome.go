package snoop

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// Known is what the replica holds of a mailbox now; nil if it does not know it.
func (c *Cache) Known(account, mailbox string) *row.Snapshot {
	sn, err := c.opt.Mailboxes.Snapshot(account, mailbox)
	if err != nil {
		return nil
	}
	return sn
}

// Changes returns the flags of the messages that changed after a MODSEQ of the
// replica (0: none), and of some others.
func (c *Cache) Changes(account, mailbox string, since uint64, also []uint32) []row.FlagsOf {
	sn, err := c.opt.Mailboxes.Snapshot(account, mailbox)
	if err != nil {
		return nil
	}
	var out []row.FlagsOf
	for _, m := range sn.Rows {
		if since > 0 && m.ModSeq > since || slices.Contains(also, m.UID) {
			out = append(out, row.FlagsOf{UID: m.UID, Flags: m.Flags})
		}
	}
	return out
}

// Mark returns the UID that the next message of a mailbox gets, as far as the
// replica knows.
func (c *Cache) Mark(account, mailbox string) uint32 {
	sn, err := c.opt.Mailboxes.Snapshot(account, mailbox)
	if err != nil {
		return 0
	}
	return sn.UIDNext
}

// Outcome finds out whether an APPEND, COPY or MOVE that production did not
// answer was done, and returns the response code of its OK, with a space behind
// it. production tells that production is there to be asked; a MOVE that it did
// by half is then finished. Else the standby does what the replica does not show
// as done, and a copy that production may have made all the same is noted, to be
// dropped by copy-back whatever the client does with the standby's.
func (c *Cache) Outcome(ctx context.Context, account string, ex *imapsession.Exchange,
	production bool) (code string, done bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, syncLimit)
	defer cancel()
	if ex.Verb == imapwire.Append {
		if ex.Extra || ex.Kept.Spool == nil {
			return "", false, nil
		}
		return c.outcomeOfAppend(ctx, account, ex, production)
	}
	to := ex.Target()
	if ex.Unknown || len(ex.UIDs) == 0 {
		return "", false, nil
	}
	before, err := c.opt.Mailboxes.Snapshot(account, ex.Mailbox)
	if err != nil {
		return "", false, nil
	}
	if production {
		err := errors.Join(c.opt.Syncer.SyncMailbox(ctx, account, ex.Mailbox),
			c.opt.Syncer.SyncMailbox(ctx, account, to))
		if err != nil {
			return "", false, err
		}
	}
	dst, err := c.opt.Mailboxes.Snapshot(account, to)
	if err != nil {
		return "", false, nil // no such mailbox: nothing was copied
	}
	var src, copies []uint32
	for _, uid := range ex.UIDs {
		m := before.Find(uid)
		if m == nil {
			continue
		}
		if u := c.arrived(account, dst, ex.Kept.Mark, m.Ref, copies); u != 0 {
			src, copies = append(src, uid), append(copies, u)
		}
	}
	if len(copies) == 0 {
		if !production && ex.Verb == imapwire.Copy {
			var refs []row.Ref
			for _, uid := range ex.UIDs {
				if m := before.Find(uid); m != nil {
					refs = append(refs, m.Ref)
				}
			}
			return "", false, c.opt.Moves.NoteDoubt(ctx, account, row.RepeatedDoubt(to, refs...))
		}
		return "", false, nil
	}
	done = len(copies) == len(ex.UIDs)
	move := ex.Verb == imapwire.Move
	if done || move { // else all are copied again
		c.told.add(account, to, copies...)
	}
	if move && production {
		now, err := c.opt.Mailboxes.Snapshot(account, ex.Mailbox)
		if err != nil {
			return "", false, err
		}
		half := slices.DeleteFunc(slices.Clone(src), func(u uint32) bool { return now.Find(u) == nil })
		if len(half) > 0 {
			err = errors.Join(c.opt.Syncer.Expunge(ctx, account, ex.Mailbox, half),
				c.opt.Syncer.SyncMailbox(ctx, account, ex.Mailbox))
		}
		if err != nil {
			return "", false, err
		}
		// What is left is moved by the command itself.
	}
	from, into := imapwire.FormatOrdered(src), imapwire.FormatOrdered(copies)
	return fmt.Sprintf("[COPYUID %d %s %s] ", dst.UIDValidity, from, into), done, nil
}

func (c *Cache) outcomeOfAppend(ctx context.Context, account string, ex *imapsession.Exchange,
	production bool) (string, bool, error) {
	ref, err := ex.Kept.Spool.Commit()
	if err != nil {
		return "", false, err
	}
	if production {
		if err := c.opt.Syncer.SyncMailbox(ctx, account, ex.Mailbox); err != nil {
			if _, none := c.opt.Mailboxes.Snapshot(account, ex.Mailbox); none != nil {
				return "", false, nil
			}
			return "", false, err
		}
	}
	sn, err := c.opt.Mailboxes.Snapshot(account, ex.Mailbox)
	if err != nil {
		return "", false, nil
	}
	uid := c.arrived(account, sn, ex.Kept.Mark, ref, nil)
	switch {
	case uid == 0 && !production:
		return "", false, c.opt.Moves.NoteDoubt(ctx, account, row.RepeatedDoubt(ex.Mailbox, ref))
	case uid == 0:
		return "", false, nil
	}
	c.told.add(account, ex.Mailbox, uid)
	return fmt.Sprintf("[APPENDUID %d %d] ", sn.UIDValidity, uid), true, nil
}

// arrived finds a message that production stored since a command was seen, and
// that nobody was told to be his.
func (c *Cache) arrived(account string, sn *row.Snapshot, mark uint32, ref row.Ref, but []uint32) uint32 {
	for _, m := range sn.Rows {
		if m.UID >= mark && m.Ref == ref && !m.Fresh && !slices.Contains(but, m.UID) &&
			!c.told.has(account, sn.Name, m.UID) {
			return m.UID
		}
	}
	return 0
}

// told remembers the last messages that clients were told to be theirs, so that
// of two equal ones none counts for both.
type told struct {
	mu   sync.Mutex
	list [8192]toldUIDs
	n    int
}

type toldUIDs struct {
	account, mailbox string
	first, last      uint32
}

func (t *told) add(account, mailbox string, uids ...uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, u := range uids {
		if last := &t.list[(t.n+len(t.list)-1)%len(t.list)]; i > 0 && last.last+1 == u {
			last.last = u
			continue
		}
		t.list[t.n%len(t.list)] = toldUIDs{account, mailbox, u, u}
		t.n++
	}
}

func (t *told) has(account, mailbox string, uid uint32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.list[:], func(e toldUIDs) bool {
		return e.first <= uid && uid <= e.last && e.account == account && e.mailbox == mailbox
	})
}
