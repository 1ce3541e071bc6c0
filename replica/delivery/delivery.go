// Package delivery keeps inbound messages from the moment that production has them
// before it until they are seen in a mailbox, or delivered by the standby (row.Held and
// its table); what production may still deliver of what the standby has (twins); and
// the senders that were not answered and will come again.
//
// Implementation notes. Each transition of a message is made by step or in the batch of
// the mailbox that it belongs to, under the message's turn; what the table demands is
// on disk before anybody sees it. A turn is of a message's content, so that two
// deliveries of equal messages are one after the other; it is held while the disk works,
// and delays no other message. Order: turns, an account's turn, mu. mu guards the maps
// alone, so readers never wait for a disk; messages are read outside of it.
//
// If a commit fails and nobody knows whether it is durable, the rows are read again
// before the next transition: else what was delivered could be delivered twice.
package delivery

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
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

// Deliveries is the ledger.
//
// Large: it has a method for each event of the table, so that nobody else makes events
// or says on whose behalf.
type Deliveries struct {
	opt   Options
	turns turn.Set[row.Ref]
	came  chan struct{}

	mu      sync.Mutex
	held    map[uint64]row.Held
	byBody  map[string]map[uint64]bool // Key → held
	unsure  map[row.Ref]bool           // nobody knows what is on disk
	holding map[chan struct{}]bool     // holds under way
	twins   map[uint64]row.Twin
	last    uint64 // number given
}

// New returns a ledger without messages; Load reads them.
func New(o Options) *Deliveries {
	return &Deliveries{opt: o, came: make(chan struct{}, 1), held: map[uint64]row.Held{},
		byBody: map[string]map[uint64]bool{},
		unsure: map[row.Ref]bool{}, holding: map[chan struct{}]bool{}, twins: map[uint64]row.Twin{}}
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
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held, d.twins, d.last = map[uint64]row.Held{}, twins, max(d.last, last)
	d.byBody, d.unsure = map[string]map[uint64]bool{}, map[row.Ref]bool{}
	for _, h := range held {
		d.put(h)
	}
	return nil
}

func readHeld(v []byte) (h row.Held, err error) {
	if err := json.Unmarshal(v, &h); err != nil {
		return h, fmt.Errorf("held message: %w", err)
	}
	return h, nil
}

// put shows a message as it is; mu is held.
func (d *Deliveries) put(h row.Held) {
	if h.State.Ended() {
		delete(d.held, h.ID)
		if delete(d.byBody[h.Key], h.ID); len(d.byBody[h.Key]) == 0 {
			delete(d.byBody, h.Key)
		}
		return
	}
	d.held[h.ID] = h
	if d.byBody[h.Key] == nil {
		d.byBody[h.Key] = map[uint64]bool{}
	}
	d.byBody[h.Key][h.ID] = true
}

// show publishes what is durable.
func (d *Deliveries) show(list ...row.Held) {
	d.mu.Lock()
	for _, h := range list {
		d.put(h)
	}
	d.mu.Unlock()
	d.ring()
}

func (d *Deliveries) ring() {
	select {
	case d.came <- struct{}{}:
	default:
	}
}

// HeldChanged is rung when held messages came, changed or went. It is for one
// listener.
func (d *Deliveries) HeldChanged() <-chan struct{} { return d.came }

func byID(a, b row.Held) int { return cmp.Compare(a.ID, b.ID) }

// HeldAll lists the held messages, oldest first.
func (d *Deliveries) HeldAll() []row.Held {
	d.mu.Lock()
	out := slices.Collect(maps.Values(d.held))
	d.mu.Unlock()
	slices.SortFunc(out, byID)
	return out
}

// HeldCount is len(HeldAll()).
func (d *Deliveries) HeldCount() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.held)
}

// alike lists the held messages with a body of a length, oldest first.
func (d *Deliveries) alike(key string) (out []row.Held) {
	d.mu.Lock()
	for id := range d.byBody[key] {
		out = append(out, d.held[id])
	}
	d.mu.Unlock()
	slices.SortFunc(out, byID)
	return out
}

func (d *Deliveries) byNumber(id uint64) (row.Held, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	h, ok := d.held[id]
	return h, ok
}

func (d *Deliveries) number() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last++
	return d.last
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

// BeginHold says that a message is about to be given to production, which may
// have it in a mailbox before Hold has stored it here. ended has to be called when
// Hold has returned, or is not called at all.
func (d *Deliveries) BeginHold() (ended func()) {
	c := make(chan struct{})
	d.mu.Lock()
	d.holding[c] = true
	d.mu.Unlock()
	return func() {
		d.mu.Lock()
		delete(d.holding, c)
		d.mu.Unlock()
		close(c)
	}
}

// AwaitHolds waits for the holds that have begun. Whatever production had in its
// mailboxes before the call is then held, if it was to be: who looks for held
// messages earlier would find one in a mailbox and not know it.
func (d *Deliveries) AwaitHolds(ctx context.Context) error {
	d.mu.Lock()
	open := slices.Collect(maps.Keys(d.holding))
	d.mu.Unlock()
	for _, c := range open {
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
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
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, was := range d.held {
		if was.Ref != ref {
			continue
		}
		now, there := held[id]
		d.put(was.ReadAgain(now, there))
		delete(held, id)
	}
	for _, h := range held {
		d.put(h) // its Hold failed, and it is there all the same: a sender may have been told
	}
	maps.DeleteFunc(d.twins, func(_ uint64, w row.Twin) bool { return w.Ref == ref })
	maps.Copy(d.twins, twins)
	delete(d.unsure, ref)
	return nil
}
