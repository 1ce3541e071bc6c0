// Package delivery keeps inbound messages from the moment that production has them
// before it until they are seen in a mailbox, or delivered by the standby (row.Held and
// its table); what production may still deliver of what the standby has (twins); and
// the senders that were not answered and will come again.
//
// Implementation notes. Each transition of a message is made by step or in the batch of
// the mailbox that it belongs to, under the message's turn; what the table demands is
// on disk before anybody sees it. A turn is of a message's content, so that two
// deliveries of equal messages are one after the other; it is held while the disk works,
// and delays no other message. Order: turns, an account's turn, a mutex. There is one for
// what is held (shelf), for twins, for the holds under way, and for what is unsure, and
// nobody has two; they guard maps alone, so readers never wait for a disk.
//
// If a commit fails and nobody knows whether it is durable, the rows are read again
// before the next transition: else what was delivered could be delivered twice.
package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"understudy/replica/match"
	"understudy/replica/meta"
	"understudy/replica/row"
	"understudy/replica/store"
	"understudy/replica/turn"
)

// Messages keeps bytes.
type Messages interface {
	Get(ref row.Ref) ([]byte, error)
	Put(b []byte) (row.Ref, error)
}

// Routes say where mail lands.
type Routes interface {
	RouteOf(rcpt string) (row.Route, bool)
	// Show takes note of routes that are durable.
	Show([]row.Route)
}

// Options of New.
type Options struct {
	Rows     meta.Store
	Accounts *store.Store
	Messages Messages
	Routes   Routes
	// Primary: there is no other side that could deliver, too.
	Primary bool
}

// Deliveries is the ledger: it has a method for each event of the table, so that nobody
// else makes events or says on whose behalf.
type Deliveries struct {
	opt   Options
	turns turn.Set[row.Ref]
	shelf
	twins
	holds

	mu     sync.Mutex
	unsure map[row.Ref]bool // nobody knows what is on disk
}

// New returns a ledger without messages; Load reads them.
func New(o Options) *Deliveries {
	return &Deliveries{opt: o, shelf: newShelf(), twins: newTwins(o.Rows, o.Messages), holds: newHolds(),
		unsure: map[row.Ref]bool{}}
}

// Load reads all held messages and twins, in place of those in memory. Messages that a
// process before this one left in the middle of something are then as the table says.
func (d *Deliveries) Load(sn meta.Snap) error {
	held, twins, last := map[uint64]row.Held{}, map[uint64]row.Twin{}, uint64(0)
	for _, v := range sn.Scan(meta.Range(meta.Held())) {
		h, err := readHeld(v)
		if err != nil {
			return err
		}
		if next, _, ok := h.Step(row.HeldHappened{Event: row.HeldRestarted, By: row.ByLoad}); ok {
			h = next
		}
		held[h.ID], last = h, max(last, h.ID)
	}
	for _, v := range sn.Scan(meta.Range(meta.Twins())) {
		var w row.Twin
		if err := json.Unmarshal(v, &w); err != nil {
			return fmt.Errorf("twin row: %w", err)
		}
		twins[w.ID], last = w, max(last, w.ID)
	}
	if err := sn.Err(); err != nil {
		return err
	}
	d.twins.replace(twins)
	d.shelf.replace(held, last)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unsure = map[row.Ref]bool{}
	return nil
}

func readHeld(v []byte) (h row.Held, err error) {
	if err := json.Unmarshal(v, &h); err != nil {
		return h, fmt.Errorf("held message: %w", err)
	}
	return h, nil
}

// Hold stores a message that production has before it, before its 250 is passed on.
func (d *Deliveries) Hold(ctx context.Context, h row.Held) (row.Held, error) {
	return d.begin(ctx, h, row.HeldHappened{Event: row.HeldArrives, By: row.ByCache})
}

// Take stores a message that the standby accepts, before its 250 is given.
func (d *Deliveries) Take(ctx context.Context, h row.Held) (row.Held, error) {
	return d.begin(ctx, h, row.HeldHappened{Event: row.HeldTaken, By: row.ByStandby})
}

func (d *Deliveries) begin(ctx context.Context, h row.Held, e row.HeldHappened) (row.Held, error) {
	msg, err := d.opt.Messages.Get(h.Ref)
	if err != nil {
		return h, err
	}
	h.Key, h.ID = match.Key(match.Read(msg).BodyLen()), d.number()
	next, _, err := d.step(ctx, h, e)
	return next, err
}

// turn waits for the turns of some contents, and reads the rows of those again of which
// nobody knows what is on disk.
func (d *Deliveries) turn(ctx context.Context, refs ...row.Ref) (leave func(), err error) {
	leave, err = d.turns.Take(ctx, row.Ref.Compare, refs...)
	if err != nil {
		return nil, err
	}
	for _, ref := range refs {
		d.mu.Lock()
		unsure := d.unsure[ref]
		d.mu.Unlock()
		if !unsure {
			continue
		}
		if err := d.readAgain(ref); err != nil {
			leave()
			return nil, fmt.Errorf("read held messages again: %w", err)
		}
	}
	return leave, nil
}

// failed takes note of a commit that failed: unless it was refused, nobody knows
// whether it is durable. The turns of the contents are held.
func (d *Deliveries) failed(err error, refs ...row.Ref) {
	if errors.Is(err, meta.ErrConflict) || errors.Is(err, meta.ErrEpoch) || errors.Is(err, meta.ErrClosed) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, ref := range refs {
		d.unsure[ref] = true
	}
}

// readAgain makes the held messages and twins of one content those on disk.
func (d *Deliveries) readAgain(ref row.Ref) error {
	held, twins := map[uint64]row.Held{}, map[uint64]row.Twin{}
	err := d.opt.Rows.View(func(sn meta.Snap) error {
		for _, v := range sn.Scan(meta.Range(meta.Held())) {
			h, err := readHeld(v)
			if err != nil {
				return err
			}
			if h.Ref == ref {
				held[h.ID] = h
			}
		}
		for _, v := range sn.Scan(meta.Range(meta.Twins())) {
			var w row.Twin
			if err := json.Unmarshal(v, &w); err != nil {
				return fmt.Errorf("twin row: %w", err)
			}
			if w.Ref == ref {
				twins[w.ID] = w
			}
		}
		return sn.Err()
	})
	if err != nil {
		return err
	}
	// As in Deliver: nobody sees a message that was delivered without its twin.
	d.twins.replaceOf(ref, twins)
	d.shelf.replaceOf(ref, held)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.unsure, ref)
	return nil
}
