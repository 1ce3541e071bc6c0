package snoop

import (
	"context"
	"slices"
	"time"

	"understudy/replica/row"
)

// If only the connection to production broke, production may go on with an APPEND,
// COPY or MOVE that it had received whole, and finish it after it was asked and
// given the command again. Such messages are looked for, and taken out: the same
// bytes, since the command was seen, and nobody was told that they are his; and
// only while the one that the client was told of is there, so that one stays.

// lateCopy is what production was told to store a second time.
type lateCopy struct {
	account, mailbox string
	told             map[uint32]row.Ref // what the client was told of, by UID
	mark             uint32             // UIDNEXT when the command was seen
	since, due       time.Time
	looked           int
}

// maxLate bounds the commands that are looked for at a time; of more, a late copy
// stays.
const maxLate = 256

// lateAfter is when a late copy is looked for, and lateLimit how long that is tried
// if production cannot be asked.
var lateAfter = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second}

const lateLimit = 10 * time.Minute

func (c *Cache) expectLate(l lateCopy) {
	l.since = time.Now()
	l.due = l.since.Add(lateAfter[0])
	select {
	case c.late <- l:
	default:
	}
}

// expectCopies expects late copies of a COPY or MOVE that was asked again.
func (c *Cache) expectCopies(account string, cp row.CopyOf, mark uint32) {
	sn, err := c.opt.Mailboxes.Snapshot(account, cp.To)
	if err != nil {
		return
	}
	told := map[uint32]row.Ref{}
	for _, uid := range cp.Dst {
		if m := sn.Find(uid); m != nil {
			told[uid] = m.Ref
		}
	}
	c.expectLate(lateCopy{account: account, mailbox: cp.To, told: told, mark: mark})
}

// Run takes late copies out until ctx ends.
func (c *Cache) Run(ctx context.Context) error {
	var list []lateCopy
	for {
		var next <-chan time.Time
		if len(list) > 0 {
			first := slices.MinFunc(list, func(x, y lateCopy) int { return x.due.Compare(y.due) })
			next = time.After(time.Until(first.due))
		}
		select {
		case <-ctx.Done():
			return nil
		case l := <-c.late:
			if len(list) < maxLate {
				list = append(list, l)
			}
		case now := <-next:
			for i := range list {
				l := &list[i]
				if now.Before(l.due) {
					continue
				}
				if err := c.dropLate(ctx, *l); err != nil && now.Sub(l.since) < lateLimit {
					c.opt.Log.Debug("look for a late copy", "account", l.account, "mailbox", l.mailbox, "err", err)
					l.due = now.Add(lateAfter[1])
				} else if l.looked++; l.looked < len(lateAfter) {
					l.due = now.Add(lateAfter[l.looked] - lateAfter[l.looked-1])
				}
			}
			list = slices.DeleteFunc(list, func(l lateCopy) bool { return l.looked == len(lateAfter) })
		}
	}
}

// dropLate looks for a late copy in the mailbox, and expunges it.
func (c *Cache) dropLate(ctx context.Context, l lateCopy) error {
	ctx, cancel := context.WithTimeout(ctx, syncLimit)
	defer cancel()
	if err := c.opt.Syncer.SyncMailbox(ctx, l.account, l.mailbox); err != nil {
		return err
	}
	sn, err := c.opt.Mailboxes.Snapshot(l.account, l.mailbox)
	if err != nil {
		return err
	}
	there := map[row.Ref]bool{}
	for uid, ref := range l.told {
		if m := sn.Find(uid); m != nil && m.Ref == ref {
			there[ref] = true
		}
	}
	var uids []uint32
	for _, m := range sn.Rows {
		if _, own := l.told[m.UID]; m.UID >= l.mark && there[m.Ref] && !own &&
			!c.told.has(l.account, l.mailbox, m.UID) {
			uids = append(uids, m.UID)
		}
	}
	if len(uids) == 0 {
		return nil
	}
	if err := c.opt.Syncer.Expunge(ctx, l.account, l.mailbox, uids); err != nil {
		return err
	}
	c.opt.Log.Info("production finished a command after its connection had broken, "+
		"and after it was given it again; the late copies are taken out",
		"account", l.account, "mailbox", l.mailbox, "uids", uids)
	c.opt.Syncer.Hint(l.account, l.mailbox)
	return nil
}
