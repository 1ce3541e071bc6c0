package copyback

import (
	"bytes"
	"errors"
	"fmt"
	"net/mail"
	"slices"
	"strings"
	"time"

	"understudy/replica/delivery"
	"understudy/replica/doubt"
	"understudy/replica/imapc"
	"understudy/replica/row"
	"understudy/replica/store"
	"understudy/snoop/imapwire"
)

// Bounds of what is sent before answers are read.
const (
	pipeMessages = 64
	pipeBytes    = 4 << 20
)

// flags sets flags on production, and on the standby what production changed.
func (b *box) flags(p Plan) error {
	groups := map[string][]uint32{}
	for _, f := range p.Flags {
		key := strings.Join(f.Flags, " ")
		groups[key] = append(groups[key], f.UID)
	}
	for flags, uids := range groups {
		if _, err := b.c.Do("UID STORE "+imapwire.FormatSet(uids)+" FLAGS.SILENT ("+flags+")", nil); err != nil {
			return fmt.Errorf("set flags: %w", err)
		}
		b.count(func(r *Report) { r.Flagged += len(uids) })
		for _, u := range uids {
			b.task("flags", b.sn.Name, u)
		}
	}
	if len(p.Flags)+len(p.Local) == 0 {
		return nil
	}
	if b.opt.Lacked != nil && len(p.Local) > 0 {
		var out []row.Lacked
		for _, f := range p.Local {
			out = append(out, row.Lacked{Account: b.name, Mailbox: b.sn.Name, UID: f.UID, What: "flags " + strings.Join(f.Flags, " ")})
		}
		b.opt.Lacked(out)
	}
	return b.opt.Store.Rebase(b.ctx, b.name, func(tx *store.Tx) {
		m := tx.BoxByID(b.id)
		for _, f := range p.Local {
			if r := tx.Find(b.id, f.UID); r != nil {
				old := b.sn.Find(f.UID)
				r.Flags = MergeFlags(old.Flags, r.Flags, f.Flags)
				m.ModSeq++
				r.ModSeq = m.ModSeq
				tx.PutRow(b.id, r)
			}
		}
		tx.Put(m)
		for _, f := range append(slices.Clone(p.Flags), p.Local...) {
			b.settle(tx, f.UID, f.Flags)
		}
	})
}

// settle makes the base of a message what production now holds.
func (b *box) settle(tx *store.Tx, uid uint32, flags []string) {
	r := tx.Find(b.id, uid)
	switch {
	case r != nil && slices.Equal(r.Flags, flags):
		tx.DropBaseRow(b.id, uid)
	case r != nil:
		old := *r
		old.Flags, old.Fresh = flags, false
		tx.SetBaseRow(b.id, &old)
	case b.sn.Find(uid) != nil:
		old := *b.sn.Find(uid)
		old.Flags, old.Fresh = flags, false
		tx.SetBaseRow(b.id, &old)
	}
}

// expunge removes messages from production by UID.
func (b *box) expunge(uids []uint32) error {
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

// deletes removes what a client deleted, and late doubles.
func (b *box) deletes(p Plan) error {
	if err := b.expunge(append(slices.Clone(p.Delete), p.Drop...)); err != nil {
		return fmt.Errorf("delete messages: %w", err)
	}
	b.count(func(r *Report) { r.Deleted += len(p.Delete); r.Dropped += len(p.Drop) })
	for _, u := range p.Delete {
		b.task("delete", b.sn.Name, u)
	}
	for _, u := range p.Drop {
		b.task("drop-double", b.sn.Name, u)
	}
	if err := b.arrived(p.Drop); err != nil {
		return err
	}
	// The base of what is on neither side any more is forgotten.
	var gone []uint32
	for uid := range b.rows {
		if b.sn.Find(uid) == nil {
			gone = append(gone, uid)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return b.opt.Store.Rebase(b.ctx, b.name, func(tx *store.Tx) {
		for _, u := range gone {
			tx.DropBaseRow(b.id, u)
		}
	})
}

// arrived forgets the twins whose copy production has delivered now.
func (b *box) arrived(dropped []uint32) error {
	for _, uid := range dropped {
		msg, err := b.opt.Store.Message(b.late[uid].ref)
		if err != nil {
			return err
		}
		if w, ok := b.opt.Store.MatchTwin(b.name, msg); ok {
			if err := b.opt.Store.ForgetTwins(b.ctx, func(x row.Twin) bool { return x.ID == w.ID }); err != nil {
				return err
			}
		}
	}
	return nil
}

// adopt takes note of messages that an earlier run had copied already.
func (b *box) adopt(p Plan) error {
	if len(p.Adopt) == 0 {
		return nil
	}
	return b.opt.Store.Rebase(b.ctx, b.name, func(tx *store.Tx) {
		for _, uid := range p.Adopt {
			b.copied(tx, b.sn.Find(uid), uid)
		}
	})
}

// copied records that production holds a message of the standby under uid.
func (b *box) copied(tx *store.Tx, was *row.Message, uid uint32) {
	r := tx.Find(b.id, was.UID)
	if r == nil {
		// A client deleted it meanwhile: production has to, in the next run.
		old := *was
		old.UID, old.Fresh = uid, false
		tx.SetBaseRow(b.id, &old)
		return
	}
	if uid != was.UID {
		tx.DeleteRow(b.id, was.UID)
		tx.DropBaseRow(b.id, was.UID)
		r.UID = uid
	}
	r.Fresh = false
	tx.PutRow(b.id, r)
	if !slices.Equal(r.Flags, was.Flags) {
		old := *r
		old.Flags = was.Flags
		tx.SetBaseRow(b.id, &old)
	}
}

// appends copies the standby's messages, each under its own UID. Where that is
// not possible bulk stops; final gives the mailbox new UIDs, and says so.
func (b *box) appends(p Plan) error {
	todo := p.Append
	for len(todo) > 0 {
		if b.ctx.Err() != nil {
			return b.ctx.Err()
		}
		want := todo[0].UID
		if want < b.next {
			if !b.final {
				return nil
			}
			var err error
			if todo, err = b.shift(todo); err != nil {
				return err
			}
			continue
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

// shift gives the messages that are still to be copied UIDs above all that are
// in use on either side, and the mailbox a new UIDVALIDITY, since clients know
// the old ones. The account is blocked.
func (b *box) shift(todo []*row.Message) ([]*row.Message, error) {
	b.note("mailbox %s of %s: UID %d was taken on production (next is %d); clients will see a new UIDVALIDITY and fetch this mailbox again",
		b.sn.Name, b.name, todo[0].UID, b.next)
	var out []*row.Message
	err := b.opt.Store.Rebase(b.ctx, b.name, func(tx *store.Tx) {
		m := tx.BoxByID(b.id)
		m.UIDNext, m.Gap = max(m.UIDNext, b.next), 0
		for _, old := range todo {
			r := tx.Find(b.id, old.UID)
			if r == nil {
				continue
			}
			tx.DeleteRow(b.id, r.UID)
			r.UID = m.TakeUID()
			tx.PutRow(b.id, r)
			out = append(out, r)
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
	if err != nil {
		return nil, err
	}
	b.sn, err = b.opt.Store.SnapshotByID(b.name, b.id)
	return out, err
}

// appendBatch sends messages, burns the UIDs between them, and checks each
// answer. It returns how many got their own UIDs; the others are taken back.
func (b *box) appendBatch(rows []*row.Message) (done int, err error) {
	var refs []row.Ref
	for _, r := range rows {
		refs = append(refs, r.Ref)
	}
	key, err := b.opt.Store.BeginCopy(b.ctx, b.name, row.AppendDoubt(b.id, refs...))
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
	return done, b.opt.Store.Rebase(b.ctx, b.name, func(tx *store.Tx) {
		doubt.EndCopy(tx, key)
		tx.SetBaseBox(b.base)
		for i, r := range rows[:done] {
			b.copied(tx, r, uids[i])
			b.task("copy", b.sn.Name, uids[i])
		}
	})
}

var errNoUID = errors.New("production gave no APPENDUID")

// filler is the message that burns a UID. One that a killed copy-back left
// behind is known by its content.
var filler = []byte("Subject: placeholder\r\nX-Understudy: burned UID, safe to delete\r\n\r\n")

func (b *box) filling() imapc.Appending {
	return imapc.Appending{Mailbox: b.sn.Name, Flags: []string{`\Deleted`, `\Seen`}, Body: filler, Date: time.Unix(0, 0)}
}

// burn uses up n UIDs: tiny messages are appended, and copied where there are
// many, and expunged.
func (b *box) burn(n uint32) error {
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
	b.task("burn", b.sn.Name, b.next)
	return b.expunge(uids)
}

// double copies messages of the mailbox to itself and returns the new UIDs.
func (b *box) double(uids []uint32) ([]uint32, error) {
	var code []byte
	r, err := b.c.Do("UID COPY "+imapwire.FormatSet(uids)+" "+b.c.Name(b.sn.Name), func(r imapwire.Response, _ []byte) error {
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
func (b *box) restore(p Plan) error {
	if len(p.Restore) == 0 {
		return nil
	}
	b.note("mailbox %s of %s: %d messages were missing on production and are put back with new UIDs", b.sn.Name, b.name, len(p.Restore))
	if err := b.reach(); err != nil {
		return err
	}
	var uids []uint32
	for len(uids) < len(p.Restore) {
		some, _, err := b.send(p.Restore[len(uids):], 0)
		if err != nil {
			return err
		}
		uids = append(uids, some...)
	}
	b.next = uids[len(uids)-1] + 1
	b.count(func(r *Report) { r.Restored += len(uids) })
	return b.opt.Store.Rebase(b.ctx, b.name, func(tx *store.Tx) {
		for i, r := range p.Restore {
			b.copied(tx, r, uids[i])
		}
	})
}

// reach burns up to the UIDNEXT that clients were shown.
func (b *box) reach() error {
	if b.next < b.sn.UIDNext {
		return b.burn(b.sn.UIDNext - b.next)
	}
	return nil
}

// behind moves what production got by itself behind all that clients have seen.
func (b *box) behind(p Plan) error {
	if len(p.Late) == 0 {
		return nil
	}
	if p.Late[0] >= b.sn.UIDNext {
		// Nobody was shown a higher number.
		if err := b.reflag(p.Late, p.Late); err != nil {
			return err
		}
		return b.keep(p.Late, p.Late)
	}
	if err := b.reach(); err != nil {
		return err
	}
	moving := row.BehindDoubt(b.id)
	for _, uid := range p.Late {
		moving.Refs = append(moving.Refs, b.late[uid].ref)
	}
	// It goes with all others when the account is handed back.
	if _, err := b.opt.Store.BeginCopy(b.ctx, b.name, moving); err != nil {
		return err
	}
	now, err := b.double(p.Late)
	if err != nil {
		return fmt.Errorf("move late arrivals: %w", err)
	}
	if err := b.expunge(p.Late); err != nil {
		return fmt.Errorf("move late arrivals: %w", err)
	}
	b.next = now[len(now)-1] + 1
	b.count(func(r *Report) { r.Moved += len(now) })
	if err := b.reflag(p.Late, now); err != nil {
		return err
	}
	return b.keep(p.Late, now)
}

// reflag gives late arrivals that are moves of messages that clients changed
// meanwhile the flags of those.
func (b *box) reflag(late, uids []uint32) error {
	for i, old := range late {
		l := b.late[old]
		if !l.reflag {
			continue
		}
		if _, err := b.c.Do(fmt.Sprintf("UID STORE %d FLAGS.SILENT (%s)", uids[i], strings.Join(l.Flags, " ")), nil); err != nil {
			return fmt.Errorf("set flags: %w", err)
		}
	}
	return nil
}

// keep adds late arrivals to the replica. One that is held has arrived with that.
func (b *box) keep(late, uids []uint32) error {
	b.lacked(late, uids)
	if err := b.opt.Store.AwaitHolds(b.ctx); err != nil {
		return err
	}
	var held []row.Held
	for _, uid := range late {
		msg, err := b.opt.Store.Message(b.late[uid].ref)
		if err != nil {
			return err
		}
		if h, ok := b.opt.Store.MatchHeldBody(msg); ok {
			held = append(held, h)
		}
	}
	return b.opt.Store.Land(b.ctx, store.ByKeeper, delivery.Landed{Account: b.name, Mailbox: b.sn.Name, Held: held}, func(tx *store.Tx) error {
		m := tx.BoxByID(b.id)
		m.ModSeq++
		for i, old := range late {
			l := b.late[old]
			r := &row.Message{UID: uids[i], ModSeq: m.ModSeq, Date: l.Date, Size: l.ref.Size, Ref: l.ref, Unsettled: true}
			r.SetFlags(l.Flags)
			tx.PutRow(b.id, r)
			m.UIDNext = max(m.UIDNext, uids[i]+1)
			b.task("late", b.sn.Name, uids[i])
		}
		tx.Put(m)
		return nil
	})
}

// lacked tells of late arrivals, for the ledger of the takeover.
func (b *box) lacked(late, uids []uint32) {
	if b.opt.Lacked == nil {
		return
	}
	var out []row.Lacked
	for i, old := range late {
		l := b.late[old]
		if l.reflag {
			continue // a message that was moved
		}
		x := row.Lacked{Account: b.name, Mailbox: b.sn.Name, UID: uids[i], Size: l.ref.Size, Date: l.Date, What: "message"}
		if raw, err := b.opt.Store.Message(l.ref); err == nil {
			if m, err := mail.ReadMessage(bytes.NewReader(raw)); err == nil {
				x.MessageID, x.From, x.Subject = m.Header.Get("Message-ID"), m.Header.Get("From"), m.Header.Get("Subject")
			}
		}
		out = append(out, x)
	}
	b.opt.Lacked(out)
}

// finish brings UIDNEXT and HIGHESTMODSEQ up to what clients were shown.
func (b *box) finish(p Plan) error {
	if err := b.reach(); err != nil {
		return err
	}
	if err := b.raise(p); err != nil {
		return err
	}
	sn, err := b.opt.Store.SnapshotByID(b.name, b.id)
	if err != nil || sn.UIDNext >= b.next {
		return err
	}
	return b.opt.Store.Rebase(b.ctx, b.name, func(tx *store.Tx) {
		m := tx.BoxByID(b.id)
		m.UIDNext = max(m.UIDNext, b.next)
		tx.Put(m)
	})
}
