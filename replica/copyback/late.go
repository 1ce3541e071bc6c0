package copyback

import (
	"bytes"
	"fmt"
	"net/mail"
	"strings"

	"understudy/replica/copyback/plan"
	"understudy/replica/row"
)

// late takes what production got by itself into the standby, behind all that
// clients have seen.
func (b *box) late() error {
	uids := plan.UIDs(b.todo.Late)
	var moving []byte
	if b.todo.Behind {
		var err error
		if uids, moving, err = b.behind(uids); err != nil {
			return fmt.Errorf("move late arrivals: %w", err)
		}
	}
	for i, it := range b.todo.Late {
		if it.Why != plan.Moved {
			continue
		}
		_, err := b.c.Do(fmt.Sprintf("UID STORE %d FLAGS.SILENT (%s)", uids[i], strings.Join(it.Flags, " ")), nil)
		if err != nil {
			return fmt.Errorf("set flags: %w", err)
		}
	}
	return b.keep(uids, moving)
}

// behind moves them there on production. moving is the doubt that ends when the
// replica has them: one that stayed would have production's own mail taken for
// ours later.
func (b *box) behind(late []uint32) (now []uint32, moving []byte, err error) {
	d := row.BehindDoubt(b.todo.ID)
	for _, it := range b.todo.Late {
		d.Refs = append(d.Refs, it.Ref)
	}
	if moving, err = b.opt.Ledgers.BeginCopy(b.ctx, b.name, d); err != nil {
		return nil, nil, err
	}
	if now, err = b.double(late); err != nil {
		return nil, nil, err
	}
	if err := b.expunge(late); err != nil {
		return nil, nil, err
	}
	b.next = now[len(now)-1] + 1
	b.count(func(r *Report) { r.Moved += len(now) })
	return now, moving, nil
}

// keep adds late arrivals to the replica, and takes away in the same batch what
// production moved there from another mailbox. One that is held has arrived with
// that.
func (b *box) keep(uids []uint32, moving []byte) error {
	b.lacked(uids)
	if err := b.opt.Ledgers.AwaitHolds(b.ctx); err != nil {
		return err
	}
	var held []row.Held
	for i, it := range b.todo.Late {
		b.task("late", b.sn.Name, uids[i], it.Why)
		msg, err := b.opt.Messages.Get(it.Ref)
		if err != nil {
			return err
		}
		if h, ok := b.opt.Ledgers.MatchHeldBody(msg); ok {
			held = append(held, h)
		}
	}
	return b.land(b.sn.Name, held, func(tx *Tx) error {
		m := tx.BoxByID(b.todo.ID)
		m.ModSeq++
		for i, it := range b.todo.Late {
			r := &row.Message{UID: uids[i], ModSeq: m.ModSeq, Date: it.Date, Size: it.Ref.Size, Ref: it.Ref,
				Unsettled: true}
			r.SetFlags(it.Flags)
			tx.PutRow(m.ID, r)
			m.UIDNext = max(m.UIDNext, uids[i]+1)
		}
		tx.Put(m)
		for _, it := range b.todo.Late {
			if it.Why == plan.Moved {
				depart(tx, it.From)
			}
		}
		if moving != nil {
			endCopy(tx, moving)
		}
		return nil
	})
}

// depart removes from the replica what production has moved away.
func depart(tx *Tx, from plan.Place) {
	m := tx.BoxByID(from.Box)
	if m == nil {
		return
	}
	m.ModSeq++
	tx.DeleteRow(m.ID, from.UID)
	tx.DropBaseRow(m.ID, from.UID)
	tx.Put(m)
}

// lacked tells of late arrivals, for the ledger of the takeover.
func (b *box) lacked(uids []uint32) {
	if b.opt.Lacked == nil {
		return
	}
	var out []row.Lacked
	for i, it := range b.todo.Late {
		if it.Why == plan.Moved {
			continue
		}
		x := row.Lacked{Account: b.name, Mailbox: b.sn.Name, UID: uids[i], Size: it.Ref.Size, Date: it.Date,
			What: "message"}
		if raw, err := b.opt.Messages.Get(it.Ref); err == nil {
			if m, err := mail.ReadMessage(bytes.NewReader(raw)); err == nil {
				h := m.Header
				x.MessageID, x.From, x.Subject = h.Get("Message-ID"), h.Get("From"), h.Get("Subject")
			}
		}
		out = append(out, x)
	}
	b.opt.Lacked(out)
}

// refs are the contents of messages.
func refs(rows []*row.Message) []row.Ref {
	out := make([]row.Ref, len(rows))
	for i, r := range rows {
		out[i] = r.Ref
	}
	return out
}
