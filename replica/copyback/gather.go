package copyback

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"

	"understudy/replica/copyback/plan"
	"understudy/replica/imapc"
	"understudy/replica/match"
	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// maxGather bounds how often an account is read because something was doubted
// meanwhile.
const maxGather = 10

// gather reads base, standby and production, and what the plan needs to know of
// their contents, into plain values. It decides nothing. What production has must
// not be newer than what is doubted: a command that sessions note as unanswered in
// between would pass for production's own mail.
func (a *account) gather() (in plan.Account, err error) {
	for range maxGather {
		if in, err = a.gatherOnce(); err != nil {
			return in, err
		}
		now, err := a.opt.Ledgers.DoubtsOf(a.name)
		if err != nil || reflect.DeepEqual(now, in.Doubts) {
			return in, err
		}
	}
	return in, errRestless
}

func (a *account) gatherOnce() (plan.Account, error) {
	in := plan.Account{Final: a.final, Level: a.level, CondStore: a.c.Has("CONDSTORE"), Left: a.left}
	boxes, err := a.opt.Store.Mailboxes(a.name)
	if err != nil {
		return in, err
	}
	base, err := a.opt.Store.BaseBoxes(a.name)
	if err != nil {
		return in, fmt.Errorf("read base of %s: %w", a.name, err)
	}
	if in.Doubts, err = a.opt.Ledgers.DoubtsOf(a.name); err != nil {
		return in, err
	}
	for _, m := range boxes {
		if m.NoSelect {
			continue
		}
		var was *row.Mailbox
		if i := slices.IndexFunc(base, func(b row.Mailbox) bool { return b.ID == m.ID }); i >= 0 {
			was = &base[i]
		}
		b, err := a.gatherBox(m.ID, was, in.Doubts)
		if gone(err) {
			continue // the next pass sees that it is deleted
		}
		if err != nil {
			return in, fmt.Errorf("mailbox %s of %s: %w", m.Name, a.name, err)
		}
		in.Boxes = append(in.Boxes, b)
	}
	return in, nil
}

func (a *account) gatherBox(id row.MailboxID, base *row.Mailbox, doubts []row.Doubt) (m plan.Mailbox, err error) {
	m.Base = base
	if m.Standby, err = a.opt.Store.SnapshotByID(a.name, id); err != nil {
		return m, err
	}
	// After the snapshot, see BaseRows.
	if m.Changed, err = a.opt.Store.BaseRows(a.name, id); err != nil {
		return m, err
	}
	sel, err := a.c.Select(m.Standby.Name, false)
	if err != nil {
		return m, err
	}
	m.Counters = plan.Counters{UIDValidity: sel.UIDValidity, UIDNext: sel.UIDNext, ModSeq: sel.ModSeq}
	known := m.BaseRows()
	var unknown []uint32
	err = a.c.Fetch("1:*", "(UID FLAGS)", func(r imapc.Message) error {
		if n := len(m.Production); !r.HasFlags || n > 0 && m.Production[n-1].UID == r.UID {
			return nil
		}
		m.Production = append(m.Production, plan.Remote{UID: r.UID, Flags: r.Flags})
		if known[r.UID] == nil {
			unknown = append(unknown, r.UID)
		}
		return nil
	})
	if err != nil {
		return m, fmt.Errorf("list: %w", err)
	}
	slices.SortStableFunc(m.Production, func(x, y plan.Remote) int { return cmp.Compare(x.UID, y.UID) })
	if err := a.identify(&m, unknown, doubts); err != nil {
		return m, fmt.Errorf("identify what production got by itself: %w", err)
	}
	return m, nil
}

// identify reads the messages that production has and the base has not, and says
// what they may be. Those that are not there any more are not on production.
func (a *account) identify(m *plan.Mailbox, uids []uint32, doubts []row.Doubt) error {
	if len(uids) == 0 {
		return nil
	}
	m.Found = map[uint32]plan.Found{}
	keys, plain := map[string]bool{}, map[int64]bool{}
	for chunk := range slices.Chunk(uids, 50) {
		const items = "(UID FLAGS INTERNALDATE BODY.PEEK[])"
		err := a.c.Fetch(imapwire.FormatSet(chunk), items, func(r imapc.Message) error {
			if !r.HasBody {
				return nil
			}
			ref, err := a.opt.Messages.Add(r.Body)
			if err != nil {
				return err
			}
			m.Found[r.UID] = plan.Found{Ref: ref, Date: r.Date}
			t := match.Read(r.Body)
			keys[match.Key(t.BodyLen())], plain[t.PlainBodyLen()] = true, true
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, uid := range uids {
		if _, found := m.Found[uid]; !found {
			m.Production = slices.DeleteFunc(m.Production, func(r plan.Remote) bool { return r.UID == uid })
		}
	}
	if len(m.Found) == 0 {
		return nil
	}
	if err := a.opt.Messages.Sync(); err != nil {
		return err
	}
	x, err := a.alike(m, doubts, keys, plain)
	if err != nil {
		return err
	}
	for uid, f := range m.Found {
		if err := a.compare(&f, x); err != nil {
			return err
		}
		m.Found[uid] = f
	}
	return nil
}
