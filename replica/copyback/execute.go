package copyback

import (
	"fmt"
	"slices"
	"strings"

	"understudy/replica/copyback/plan"
	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// remote is a mailbox on production, which is selected.
type remote struct {
	*account
	mailbox string
	next    uint32 // its UIDNEXT
}

// box carries out the plan of one mailbox.
type box struct {
	remote
	in   plan.Mailbox
	sn   *row.Snapshot // at the merge
	rows map[uint32]*row.Message
	todo plan.Box
	base row.Mailbox // as it is to be stored
	was  row.Mailbox // as it is stored
	// again: production got something since it was read, so that the rest of the
	// plan does not hold any more.
	again bool
	// gone: a client has deleted the mailbox since it was read, before the base had it.
	gone bool
}

func (a *account) box(in plan.Mailbox, todo plan.Box) *box {
	b := &box{remote: remote{a, in.Standby.Name, in.UIDNext}, in: in, sn: in.Standby, rows: in.BaseRows(), todo: todo}
	if in.Base != nil {
		b.base, b.was = *in.Base, *in.Base
	}
	return b
}

// execute does what was planned, in the order of the plan, and nothing else.
func (b *box) execute() error {
	selected := false
	for _, k := range b.todo.Order() {
		if k != plan.Renew && k != plan.LeaveRoom && !selected {
			sel, err := b.c.Select(b.sn.Name, false)
			if err != nil {
				return err
			}
			b.next, selected = sel.UIDNext, true
		}
		if err := b.step(k); err != nil {
			return err
		}
		if b.again || b.gone {
			b.steps++ // another pass has to come
			break
		}
	}
	if b.gone {
		return nil
	}
	return b.note(selected)
}

func (b *box) step(k plan.Kind) error {
	switch k {
	case plan.Renew:
		return b.renew()
	case plan.LeaveRoom:
		return b.leaveRoom()
	case plan.CleanFlags:
		return b.clean()
	case plan.SetFlags:
		return b.flags()
	case plan.RemoveAll:
		return b.remove()
	case plan.AdoptAll:
		return b.adopt()
	case plan.ShiftAll:
		return b.shift()
	case plan.AppendAll:
		return b.appends()
	case plan.ReachNext:
		return b.reach(b.todo.Reach)
	case plan.RestoreAll:
		return b.restore()
	case plan.TakeLate:
		return b.late()
	case plan.RaiseSeq:
		return b.raise()
	}
	return fmt.Errorf("copy-back knows no step %q", k)
}

// rebase changes the account on both of its sides: as it is, and as it is known
// to be on production.
func (b *box) rebase(f func(tx *Tx)) error { return b.opt.Store.Rebase(b.ctx, b.name, f) }

// renew makes the base an empty mailbox with production's UIDVALIDITY, which
// clients are shown as the one that they know.
func (b *box) renew() error {
	if b.todo.Anew == plan.Another {
		b.tell("mailbox %s of %s: %s; it is copied whole", b.sn.Name, b.name, b.todo.Anew)
	}
	err := b.rebase(func(tx *Tx) {
		m := tx.BoxByID(b.todo.ID)
		if b.gone = m == nil; b.gone {
			return
		}
		m.ProdUIDValidity = 0
		if b.in.UIDValidity != m.UIDValidity {
			m.ProdUIDValidity = b.in.UIDValidity
		}
		m.Born = false
		for _, r := range tx.Rows(b.todo.ID) {
			if !r.Fresh {
				c := *r
				c.Fresh = true
				tx.PutRow(b.todo.ID, &c)
			}
		}
		tx.Put(m)
		tx.DropBaseBox(b.todo.ID)
		b.base = *m
		b.base.UIDNext = 1
		tx.SetBaseBox(b.base)
	})
	b.was = b.base
	return err
}

// leaveRoom has the standby's next UID leave some free.
func (b *box) leaveRoom() error {
	return b.rebase(func(tx *Tx) {
		if m := tx.BoxByID(b.todo.ID); m != nil {
			m.Gap = max(m.Gap, b.todo.Room)
			tx.Put(m)
		}
	})
}

// clean takes away flags that an earlier copy-back has left.
func (b *box) clean() error {
	for _, it := range b.todo.Clean {
		_, err := b.c.Do(fmt.Sprintf("UID STORE %d -FLAGS.SILENT (%s)", it.UID, strings.Join(it.Flags, " ")), nil)
		if err != nil {
			return fmt.Errorf("take away %v, which raised HIGHESTMODSEQ: %w", it.Flags, err)
		}
	}
	return nil
}

// flags sets flags on production, and on the standby what production changed.
func (b *box) flags() error {
	groups := map[string][]uint32{}
	for _, f := range b.todo.Flags {
		key := strings.Join(f.Flags, " ")
		groups[key] = append(groups[key], f.UID)
		b.task("flags", b.sn.Name, f.UID, f.Why)
	}
	for flags, uids := range groups {
		if _, err := b.c.Do("UID STORE "+imapwire.FormatSet(uids)+" FLAGS.SILENT ("+flags+")", nil); err != nil {
			return fmt.Errorf("set flags: %w", err)
		}
		b.count(func(r *Report) { r.Flagged += len(uids) })
	}
	if b.opt.Lacked != nil && len(b.todo.Local) > 0 {
		var out []row.Lacked
		for _, f := range b.todo.Local {
			out = append(out, row.Lacked{Account: b.name, Mailbox: b.sn.Name, UID: f.UID,
				What: "flags " + strings.Join(f.Flags, " ")})
		}
		b.opt.Lacked(out)
	}
	return b.rebase(func(tx *Tx) {
		if m := tx.BoxByID(b.todo.ID); m != nil { // else a client has deleted it meanwhile
			for _, f := range b.todo.Local {
				if r := tx.Find(b.todo.ID, f.UID); r != nil {
					r.Flags = plan.MergeFlags(b.sn.Find(f.UID).Flags, r.Flags, f.Flags)
					m.ModSeq++
					r.ModSeq = m.ModSeq
					tx.PutRow(b.todo.ID, r)
				}
			}
			tx.Put(m)
		}
		for _, f := range slices.Concat(b.todo.Flags, b.todo.Local) {
			b.settle(tx, f.UID, f.Flags)
		}
	})
}

// settle makes the base of a message what production now holds.
func (b *box) settle(tx *Tx, uid uint32, flags []string) {
	r := tx.Find(b.todo.ID, uid)
	if r != nil && slices.Equal(r.Flags, flags) {
		tx.DropBaseRow(b.todo.ID, uid)
		return
	}
	if r == nil {
		r = b.sn.Find(uid)
	}
	old := *r
	old.Flags, old.Fresh = flags, false
	tx.SetBaseRow(b.todo.ID, &old)
}

// remove removes from production what a client deleted, and doubles.
func (b *box) remove() error {
	if err := b.expunge(plan.UIDs(b.todo.Remove)); err != nil {
		return fmt.Errorf("delete messages: %w", err)
	}
	twins := map[uint64]bool{}
	for _, it := range b.todo.Remove {
		kind := "drop-double"
		if it.Why == plan.Deleted {
			kind = "delete"
		}
		b.task(kind, b.sn.Name, it.UID, it.Why)
		b.count(func(r *Report) {
			if it.Why == plan.Deleted {
				r.Deleted++
			} else {
				r.Dropped++
			}
		})
		if it.Twin != 0 {
			twins[it.Twin] = true
		}
	}
	if len(twins) > 0 {
		// Production has delivered its copy now.
		if err := b.opt.Ledgers.ForgetTwins(b.ctx, func(w row.Twin) bool { return twins[w.ID] }); err != nil {
			return err
		}
	}
	if len(b.todo.Forget) == 0 {
		return nil
	}
	return b.rebase(func(tx *Tx) {
		for _, u := range b.todo.Forget {
			tx.DropBaseRow(b.todo.ID, u)
		}
	})
}

// expunge removes messages from production by UID.
func (b *remote) expunge(uids []uint32) error {
	for chunk := range slices.Chunk(uids, 500) {
		set := imapwire.FormatSet(chunk)
		mark, gone := b.c.Send("UID STORE "+set+` +FLAGS.SILENT (\Deleted)`), b.c.Send("UID EXPUNGE "+set)
		for _, tag := range []string{mark, gone} {
			if _, err := b.c.Wait(tag, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// adopt takes note of messages that an earlier run had copied already.
func (b *box) adopt() error {
	return b.rebase(func(tx *Tx) {
		for _, it := range b.todo.Adopt {
			b.copied(tx, b.sn.Find(it.UID), it.UID, it.Flags)
		}
	})
}

// copied records that production holds a message of the standby under uid, with
// these flags.
func (b *box) copied(tx *Tx, was *row.Message, uid uint32, flags []string) {
	id := b.todo.ID
	old := *was
	old.UID, old.Flags, old.Fresh = uid, flags, false
	r := tx.Find(id, was.UID)
	if r == nil {
		// A client deleted it meanwhile: production has to, in the next run.
		tx.SetBaseRow(id, &old)
		return
	}
	if uid != was.UID {
		tx.DeleteRow(id, was.UID)
		tx.DropBaseRow(id, was.UID)
		r.UID = uid
	}
	r.Fresh = false
	tx.PutRow(id, r)
	if !slices.Equal(r.Flags, flags) {
		tx.SetBaseRow(id, &old)
	} else {
		tx.DropBaseRow(id, uid)
	}
}

// note moves the base up to production's state, and with clients kept off the
// standby's UIDNEXT, too.
func (b *box) note(changed bool) error {
	sn, err := b.opt.Store.SnapshotByID(b.name, b.todo.ID)
	if err != nil && !gone(err) {
		return err
	}
	raise := err == nil && b.final && changed && !b.again && sn.UIDNext < b.next
	known := b.was.UIDNext >= b.next && b.was.UIDNext >= b.base.UIDNext
	if !raise && known && b.was.Name == b.sn.Name && b.was.ID == b.base.ID {
		return nil
	}
	return b.rebase(func(tx *Tx) {
		b.base.UIDNext = max(b.base.UIDNext, b.next)
		b.base.Name = b.sn.Name
		tx.SetBaseBox(b.base)
		if m := tx.BoxByID(b.todo.ID); raise && m != nil {
			m.UIDNext = max(m.UIDNext, b.next)
			tx.Put(m)
		}
	})
}
