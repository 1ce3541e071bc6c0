package copyback

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy/replica/copyback/plan"
	"understudy/replica/imapc"
	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// Bounds of what is sent before answers are read.
const (
	pipeMessages = 64
	pipeBytes    = 4 << 20
)

// messages are those of the standby that items name.
func (b *box) messages(items []plan.Item) []*row.Message {
	out := make([]*row.Message, len(items))
	for i, it := range items {
		out[i] = b.sn.Find(it.UID)
	}
	return out
}

// appends copies the standby's messages, each under its own UID. Where production
// has given that meanwhile, the next plan says what becomes of the rest.
func (b *box) appends() error {
	todo := b.messages(b.todo.Append)
	for len(todo) > 0 {
		if b.ctx.Err() != nil {
			return b.ctx.Err()
		}
		want := todo[0].UID
		if want < b.next {
			b.again = true
			return nil
		}
		if want-b.next > pipeMessages {
			if err := b.burn(want - b.next); err != nil {
				return err
			}
			continue // production may have got something meanwhile
		}
		n, bytes := 1, todo[0].Ref.Size
		for n < len(todo) && bytes < pipeBytes && todo[n].UID-b.next < 2*pipeMessages {
			bytes += todo[n].Ref.Size
			n++
		}
		done, err := b.appendBatch(todo[:n])
		if err != nil {
			return err
		}
		todo = todo[done:]
	}
	return nil
}

// appendBatch sends messages, burns the UIDs between them, and checks each
// answer. It returns how many got their own UIDs; the others are taken back.
func (b *box) appendBatch(rows []*row.Message) (done int, err error) {
	key, err := b.opt.Ledgers.BeginCopy(b.ctx, b.name, row.AppendDoubt(b.todo.ID, refs(rows)...))
	if err != nil {
		return 0, err
	}
	uids, burned, err := b.send(rows, b.next)
	if err != nil {
		return 0, err
	}
	b.next = uids[len(uids)-1] + 1
	for done < len(uids) && uids[done] == rows[done].UID {
		done++
	}
	// The rest is there if something slipped in between.
	if err := b.expunge(append(burned, uids[done:]...)); err != nil {
		return 0, err
	}
	b.count(func(r *Report) { r.Appended += done; r.Burned += len(burned) })
	b.base.UIDNext, b.base.Name = max(b.base.UIDNext, b.next), b.sn.Name
	b.was = b.base
	for _, uid := range uids[:done] {
		b.task("copy", b.sn.Name, uid, plan.New)
	}
	return done, b.rebase(func(tx *Tx) {
		endCopy(tx, key)
		tx.SetBaseBox(b.base)
		for i, r := range rows[:done] {
			b.copied(tx, r, uids[i], r.Flags)
		}
	})
}

// shift gives the messages that are still to be copied UIDs above all that are
// in use on either side, and the mailbox a new UIDVALIDITY, since clients know
// the old ones. The account is blocked.
func (b *box) shift() error {
	first := b.todo.Shift[0]
	b.tell("mailbox %s of %s: UID %d: %s (next is %d); clients will see a new UIDVALIDITY and fetch this mailbox again",
		b.sn.Name, b.name, first.UID, first.Why, b.next)
	for _, it := range b.todo.Shift {
		b.task("shift", b.sn.Name, it.UID, it.Why)
	}
	return b.rebase(func(tx *Tx) {
		m := tx.BoxByID(b.todo.ID)
		m.UIDNext, m.Gap = max(m.UIDNext, b.next), 0
		for _, it := range b.todo.Shift {
			r := tx.Find(m.ID, it.UID)
			if r == nil {
				continue
			}
			tx.DeleteRow(m.ID, r.UID)
			r.UID = m.TakeUID()
			tx.PutRow(m.ID, r)
		}
		if m.ProdUIDValidity == 0 {
			m.ProdUIDValidity = m.UIDValidity
		}
		m.UIDValidity = max(uint32(time.Now().Unix()), m.UIDValidity+1)
		for _, o := range tx.Boxes() {
			m.UIDValidity = max(m.UIDValidity, o.UIDValidity+1)
		}
		tx.Put(m)
	})
}

var errNoUID = errors.New("production gave no APPENDUID")

// filler is the message that burns a UID. One that a killed copy-back left
// behind is known by its content.
func filler() []byte {
	return []byte("Subject: placeholder\r\nX-Understudy: burned UID, safe to delete\r\n\r\n")
}

func (b *remote) filling() imapc.Appending {
	return imapc.Appending{Mailbox: b.mailbox, Flags: []string{`\Deleted`, `\Seen`}, Body: filler(),
		Date: time.Unix(0, 0)}
}

// reach burns up to a UIDNEXT that clients were shown.
func (b *remote) reach(next uint32) error {
	if b.next < next {
		return b.burn(next - b.next)
	}
	return nil
}

// burn uses up n UIDs: tiny messages are appended, and copied where there are
// many, and expunged.
func (b *remote) burn(n uint32) error {
	uids, err := b.append(slices.Repeat([]imapc.Appending{b.filling()}, int(min(n, pipeMessages))))
	if err != nil {
		return fmt.Errorf("burn UIDs: %w", err)
	}
	for uint32(len(uids)) < n {
		more, err := b.double(uids[:min(uint32(len(uids)), n-uint32(len(uids)))])
		if err != nil {
			return fmt.Errorf("burn UIDs: %w", err)
		}
		uids = append(uids, more...)
	}
	b.next = uids[len(uids)-1] + 1
	b.count(func(r *Report) { r.Burned += int(n) })
	b.task("burn", b.mailbox, b.next, plan.Filler)
	return b.expunge(uids)
}

// double copies messages of the mailbox to itself and returns the new UIDs.
func (b *remote) double(uids []uint32) ([]uint32, error) {
	var code []byte
	cmd := "UID COPY " + imapwire.FormatSet(uids) + " " + b.c.Name(b.mailbox)
	r, err := b.c.Do(cmd, func(r imapwire.Response, _ []byte) error {
		if r.Code == "COPYUID" {
			code = slices.Clone(r.Arg)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if r.Code == "COPYUID" {
		code = r.Arg
	}
	rd := imapwire.NewReader(code)
	rd.Number32()
	rd.SP()
	src := rd.Set()
	rd.SP()
	dst := rd.Set()
	if rd.Err() != nil || src.Size() != dst.Size() || dst.Size() != uint64(len(uids)) {
		return nil, errNoUID
	}
	return dst.Numbers(1 << 20)
}

// restore puts messages back that production has lost: under new UIDs, since
// their own are past.
func (b *box) restore() error {
	b.tell("mailbox %s of %s: %d messages: %s; they are put back with new UIDs",
		b.sn.Name, b.name, len(b.todo.Restore), plan.Lost)
	for rows := b.messages(b.todo.Restore); len(rows) > 0; {
		done, err := b.restoreBatch(rows[:min(len(rows), pipeMessages)])
		if err != nil {
			return err
		}
		rows = rows[done:]
	}
	return nil
}

func (b *box) restoreBatch(rows []*row.Message) (done int, err error) {
	key, err := b.opt.Ledgers.BeginCopy(b.ctx, b.name, row.AppendDoubt(b.todo.ID, refs(rows)...))
	if err != nil {
		return 0, err
	}
	uids, _, err := b.send(rows, 0)
	if err != nil {
		return 0, err
	}
	b.next = uids[len(uids)-1] + 1
	b.count(func(r *Report) { r.Restored += len(uids) })
	for _, uid := range uids {
		b.task("restore", b.sn.Name, uid, plan.Lost)
	}
	return len(uids), b.rebase(func(tx *Tx) {
		endCopy(tx, key)
		// In the same batch: should this be cut off, the standby must not give these
		// UIDs once more.
		m := tx.BoxByID(b.todo.ID)
		m.UIDNext = max(m.UIDNext, b.next)
		tx.Put(m)
		for i, uid := range uids {
			b.copied(tx, rows[i], uid, rows[i].Flags)
		}
	})
}
