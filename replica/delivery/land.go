package delivery

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/replica/meta"
	"understudy/replica/row"
	"understudy/replica/store"
)

// Landed are held messages that were seen in a mailbox.
type Landed struct {
	Account, Mailbox string
	Held             []row.Held
}

// Land changes an account by f, and records in the same batch that held messages
// were seen in a mailbox of it: their recipients that lead there are done, and if one
// alone could have, its route is learned. Once a message was seen as often as it has
// recipients, it is done whole. Of two batches the second could be lost, and the
// message be delivered again.
func (d *Deliveries) Land(ctx context.Context, by store.Writer, in Landed, f func(*store.Tx) error) error {
	if len(in.Held) == 0 {
		return d.opt.Accounts.Update(ctx, in.Account, by, f)
	}
	var refs []row.Ref
	for _, h := range in.Held {
		refs = append(refs, h.Ref)
	}
	leave, err := d.turn(ctx, refs...)
	if err != nil {
		return err
	}
	defer leave()
	e := row.HeldHappened{Event: row.HeldSeen, By: row.ByMirror}
	if by == store.ByKeeper {
		e.By = row.ByCopyBack
	}
	l := &landing{d: d, seen: e, account: in.Account, mailbox: in.Mailbox, now: map[uint64]row.Held{}}
	for _, h := range in.Held {
		l.see(h)
	}
	staged := false
	err = d.opt.Accounts.Update(ctx, in.Account, by, func(tx *store.Tx) error {
		if err := f(tx); err != nil {
			return err
		}
		staged = true
		tx.Stage(l.stage)
		tx.OnCommit(l.show)
		return nil
	})
	if err != nil && staged {
		d.failed(err, refs...)
	}
	return err
}

// landing is what becomes of held messages that were seen in a mailbox.
type landing struct {
	d                *Deliveries
	seen             row.HeldHappened
	account, mailbox string
	now              map[uint64]row.Held
	routes           []row.Route
}

func (l *landing) stage(b *meta.Batch) {
	for _, h := range l.now {
		stage(b, h)
	}
	for _, r := range l.routes {
		b.PutJSON(meta.RouteKey(r.Recipient), r)
	}
}

func (l *landing) show() {
	for _, h := range l.now {
		l.d.show(h)
	}
	l.d.opt.Routes.Show(l.routes)
}

// current is a message as it stands, or another one of the same content.
func (l *landing) current(h row.Held) (row.Held, bool) {
	for _, x := range append([]row.Held{h}, l.d.alike(h.Key)...) {
		if x.Ref != h.Ref {
			continue
		}
		if cur, ok := l.now[x.ID]; ok {
			if !cur.State.Ended() {
				return cur, true
			}
		} else if cur, ok := l.d.byNumber(x.ID); ok {
			return cur, true
		}
	}
	return row.Held{}, false
}

func (l *landing) see(h row.Held) {
	cur, ok := l.current(h)
	if !ok {
		return
	}
	var unknown []string
	e := l.seen
	for _, rcpt := range cur.Rcpts {
		r, ok := l.d.opt.Routes.RouteOf(rcpt)
		if !ok {
			unknown = append(unknown, rcpt)
		} else if r.Account == l.account {
			e.Done = append(e.Done, rcpt)
		}
	}
	switch {
	case len(e.Done) > 0:
	case len(unknown) == 1:
		l.routes = append(l.routes, row.Route{Recipient: strings.ToLower(unknown[0]), Account: l.account,
			Mailbox: l.mailbox, Learned: time.Now()})
		e.Done = unknown
	default:
		e.In = l.account
	}
	if next, _, ok := cur.Step(e); ok {
		l.now[cur.ID] = next
	}
}

// Deliver puts a held message into the mailbox of one of its recipients, and strikes
// the recipient off, in one batch: it can be tried again at any time. msg is the
// message as it is to be stored; its end is what the sender gave.
func (d *Deliveries) Deliver(ctx context.Context, h row.Held, rcpt string, msg []byte) error {
	to, ok := d.opt.Routes.RouteOf(rcpt)
	if !ok {
		return fmt.Errorf("%w: no route for %s", store.ErrNoMailbox, rcpt)
	}
	ref, err := d.opt.Messages.Put(msg)
	if err != nil {
		return err
	}
	now, leave, err := d.its(ctx, h.ID)
	if err != nil || leave == nil {
		return err
	}
	defer leave()
	if !slices.Contains(now.Rcpts, rcpt) {
		return nil
	}
	now, rule, ok := now.Step(row.HeldHappened{Event: row.HeldDelivers, By: row.ByStandby, Done: []string{rcpt}})
	if !ok {
		return nil
	}
	twin := row.Twin{Account: to.Account, Ref: h.Ref, Key: h.Key, Delivered: time.Now()}
	if rule.Twin && !d.opt.Primary {
		twin.ID = d.number()
	}
	staged := false
	err = d.opt.Accounts.Update(ctx, to.Account, store.ByStandby, func(tx *store.Tx) error {
		m, err := target(tx, to)
		if err != nil {
			return err
		}
		m.ModSeq++
		tx.PutRow(m.ID, &row.Message{UID: m.TakeUID(), ModSeq: m.ModSeq, Date: time.Now().Truncate(time.Second),
			Size: ref.Size, Ref: ref,
			Fresh: !d.opt.Primary, Tail: h.Ref.Size, Flags: []string{}})
		tx.Put(m)
		staged = true
		tx.Stage(func(b *meta.Batch) {
			if stage(b, now); twin.ID != 0 {
				b.PutJSON(meta.TwinKey(twin.ID), twin)
			}
		})
		tx.OnCommit(func() {
			d.expect(twin)
			d.show(now)
		})
		return nil
	})
	if err != nil && staged {
		d.failed(err, h.Ref)
	}
	return err
}

// target is where a route leads: INBOX if its mailbox is gone.
func target(tx *store.Tx, to row.Route) (*row.Mailbox, error) {
	if m := tx.Box(to.Mailbox); m != nil && !m.NoSelect {
		return m, nil
	}
	if m := tx.Box("INBOX"); m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("%w: INBOX of %s", store.ErrNoMailbox, to.Account)
}
