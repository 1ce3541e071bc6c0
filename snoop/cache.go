// Package snoop is the transaction cache: it makes what crosses the wire
// durable in the replica before a client is told OK, holds inbound mail until
// it is seen in a mailbox, and asks for a targeted sync where the wire alone
// did not tell enough.
//
// Implementation notes. A change is settled in one of two ways: from what the
// wire told (UIDs by APPENDUID, COPYUID, or the session's view), or, where that
// is not certain, by a sync of the mailbox that begins after production's OK
// was seen. If neither works the caller must not pass the OK on. What was
// settled from the wire is refined soon after by a sync that was only hinted
// at: INTERNALDATE, RFC822.SIZE and MODSEQ as production states them.
package snoop

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"understudy/replica/row"
)

// Deliveries keeps inbound mail.
type Deliveries interface {
	BeginHold() (ended func())
	Hold(ctx context.Context, h row.Held) (row.Held, error)
	Confirm(id uint64) error
	Owe(ctx context.Context, id uint64) error
	Refuse(ctx context.Context, id uint64) error
	Found(ctx context.Context, id uint64) error
	RouteOf(rcpt string) (row.Route, bool)
	Again(e row.Envelope, ref row.Ref) (since time.Time, before, ok bool)
	Holding(e row.Envelope, ref row.Ref) (row.Held, bool)
	Delivered(e row.Envelope, ref row.Ref, since time.Time) bool
}

// Syncer reads from production.
type Syncer interface {
	// SyncMailbox returns when the replica holds all that production held of
	// a mailbox at the time of the call.
	SyncMailbox(ctx context.Context, account, mailbox string) error
	// SyncFolders does so for the list of mailboxes.
	SyncFolders(ctx context.Context, account string) error
	// Hint asks for a sync of a mailbox soon.
	Hint(account, mailbox string)
	// Later asks for a sync that is not urgent: the wire told what matters.
	Later(account, mailbox string)
	// Expect asks for syncs of a mailbox until a delivery has arrived.
	Expect(account, mailbox string)
	// Expunge removes messages from production.
	Expunge(ctx context.Context, account, mailbox string, uids []uint32) error
}

// Options of New.
type Options struct {
	Mailboxes  Mailboxes
	Moves      Moves
	Deliveries Deliveries
	Syncer     Syncer
	// Local reports whether mail for an address stays on production.
	Local func(addr string) bool
	Log   *slog.Logger
}

// Cache is the transaction cache.
type Cache struct {
	opt  Options
	told told
	late chan lateCopy

	wire, synced, held atomic.Int64
}

// New returns a cache.
func New(o Options) *Cache { return &Cache{opt: o, late: make(chan lateCopy, maxLate)} }

// Counts tells how many changes were settled from the wire, how many by a
// sync, and how many messages were held.
func (c *Cache) Counts() (wire, synced, held int64) {
	return c.wire.Load(), c.synced.Load(), c.held.Load()
}

// Hint tells that a mailbox changed in a way that was not followed.
func (c *Cache) Hint(account, mailbox string) { c.opt.Syncer.Hint(account, mailbox) }

// Virtual returns what a mailbox's UIDVALIDITY is shown as, 0 if as it is.
func (c *Cache) Virtual(account, mailbox string) uint32 {
	boxes, err := c.opt.Mailboxes.Mailboxes(account)
	if err != nil {
		return 0
	}
	for _, m := range boxes {
		if m.Name == mailbox && m.ProdUIDValidity != 0 {
			return m.UIDValidity
		}
	}
	return 0
}

// Arrival is a message between its end-of-data and production's answer. It is
// held in parallel with production's work on it: if this process ends just then,
// the message counts as accepted, since a double is better than a loss.
type Arrival struct {
	c      *Cache
	ctx    context.Context
	h      row.Held
	others []string
	done   chan error
}

// Arriving begins to hold a message for those of its recipients whose mailboxes
// are on production.
func (c *Cache) Arriving(ctx context.Context, m row.Envelope, sp row.Spool) *Arrival {
	a := &Arrival{c: c, ctx: context.WithoutCancel(ctx), done: make(chan error, 1),
		h: row.Held{From: m.From, Params: m.Params, Arrived: time.Now()}}
	for _, r := range m.Rcpts {
		if c.opt.Local(r) {
			a.h.Rcpts = append(a.h.Rcpts, r)
		} else {
			a.others = append(a.others, r)
		}
	}
	if len(a.h.Rcpts) == 0 {
		a.done <- nil
		return a
	}
	sp.Start()
	ended := c.opt.Deliveries.BeginHold()
	go func() {
		err := a.hold(sp)
		ended()
		a.done <- err
	}()
	return a
}

func (a *Arrival) hold(sp row.Spool) error {
	var err error
	if a.h.Ref, err = sp.Commit(); err != nil {
		return err
	}
	a.h, err = a.c.opt.Deliveries.Hold(a.ctx, a.h)
	return err
}

// Accepted returns when the message is durable: its 250 may be passed on.
func (a *Arrival) Accepted() error {
	if err := <-a.done; err != nil || len(a.h.Rcpts) == 0 {
		return err
	}
	if err := a.c.opt.Deliveries.Confirm(a.h.ID); err != nil {
		return err
	}
	a.expect()
	return nil
}

func (a *Arrival) expect() {
	a.c.held.Add(1)
	for _, r := range a.h.Rcpts {
		if rt, ok := a.c.opt.Deliveries.RouteOf(r); ok {
			a.c.opt.Syncer.Expect(rt.Account, rt.Mailbox)
		}
	}
}

// Overheard holds a message that production was seen to take. Other than after
// Arriving the mirror may have read it before it was held; it is looked for.
func (c *Cache) Overheard(ctx context.Context, m row.Envelope, sp row.Spool) error {
	a := c.Arriving(ctx, m, sp)
	if err := a.Accepted(); err != nil || len(a.h.Rcpts) == 0 {
		return err
	}
	for _, r := range a.h.Rcpts {
		if rt, ok := c.opt.Deliveries.RouteOf(r); ok {
			// After this, syncs that began before the message was held are over.
			if err := c.opt.Syncer.SyncMailbox(ctx, rt.Account, rt.Mailbox); err != nil {
				return err
			}
		}
	}
	if !c.opt.Deliveries.Delivered(row.Envelope{Rcpts: a.h.Rcpts}, a.h.Ref, a.h.Arrived) {
		return nil
	}
	return c.opt.Deliveries.Found(ctx, a.h.ID)
}

// Owe keeps a message of which nobody knows whether production has it, for the
// recipients whose mailboxes are there: it is given to production again unless
// it is seen in a mailbox before long, or delivered by the standby. It returns
// the other recipients.
func (a *Arrival) Owe() (others []string, err error) {
	if err := <-a.done; err != nil || len(a.h.Rcpts) == 0 {
		return a.others, err
	}
	defer a.expect()
	a.c.opt.Log.Info("production was lost before it answered for a message; it is owed", "held", a.h.ID, "recipients",
		len(a.h.Rcpts))
	return a.others, a.c.opt.Deliveries.Owe(a.ctx, a.h.ID)
}

// Refused forgets the message: production refused it, or gave no answer, and
// the sender will come again.
func (a *Arrival) Refused() {
	if err := <-a.done; err != nil || len(a.h.Rcpts) == 0 {
		return
	}
	if err := a.c.opt.Deliveries.Refuse(a.ctx, a.h.ID); err != nil {
		a.c.opt.Log.Error("forget a refused message", "held", a.h.ID, "err", err)
	}
}

// repeatWait is how long a sender that comes again waits for what production may
// have in its queue.
const repeatWait = 5 * time.Second

// Repeated reports whether a message was taken before and its sender not
// answered. If it is held, and production may not have it, it is owed from now on;
// else it is looked for in the mailboxes. For recipients at other sites nobody can
// tell, so a message to one of them goes to production again.
func (c *Cache) Repeated(ctx context.Context, e row.Envelope, ref row.Ref) (bool, error) {
	if slices.ContainsFunc(e.Rcpts, func(r string) bool { return !c.opt.Local(r) }) {
		return false, nil
	}
	since, before, ok := c.opt.Deliveries.Again(e, ref)
	if !ok {
		return false, nil
	}
	for end := time.Now().Add(repeatWait); ; {
		if h, ok := c.opt.Deliveries.Holding(e, ref); ok {
			c.opt.Log.Info("a sender that was not answered came again; the message is held", "held", h.ID)
			if !before || !h.ProductionMayHaveIt() {
				return true, nil
			}
			return true, c.opt.Deliveries.Owe(ctx, h.ID)
		}
		for _, r := range e.Rcpts {
			if rt, ok := c.opt.Deliveries.RouteOf(r); ok {
				// Without production what the replica has decides.
				sync, cancel := context.WithTimeout(ctx, repeatWait/2)
				_ = c.opt.Syncer.SyncMailbox(sync, rt.Account, rt.Mailbox)
				cancel()
			}
		}
		if c.opt.Deliveries.Delivered(e, ref, since) {
			c.opt.Log.Info("a sender that was not answered came again; the message was delivered")
			return true, nil
		}
		if time.Now().After(end) {
			return false, nil
		}
		select {
		case <-time.After(repeatWait / 10):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}
