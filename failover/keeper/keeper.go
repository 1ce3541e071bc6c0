// Package keeper owns the failover state: it takes events, asks failover.Step,
// saves the new state with its epoch, and only then performs the actions. It
// is also the gate that tells each session which side answers.
//
// Implementation notes. One goroutine (Run) owns the state, and waits for nothing
// but the next event: every action that may take time runs beside it (long.go),
// one at a time, and ends in an event. A newer action cancels the older and
// begins when that has ended; the event of one that was given up is dropped. If a
// state cannot be saved, nothing else is done until it is: events wait in the
// inbox. After a restart the saved state is read before Enter answers anybody,
// so that a fenced production is never forwarded to.
//
// What Enter may answer is read under mu, and no other package is called there:
// where an account is at home is asked before, and the answer holds if nothing
// has changed since (turn). Locks: mu before that of the watchers; the gate has one
// of its own, and so has the inbox. Leases are revoked by closing their channel, and
// counted, so that an account can be waited for.
package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"understudy/failover"
)

// Actor performs the actions. Each call must be safe to repeat.
type Actor interface {
	// Fence stops production from reaching clients, and the reverse.
	Fence(ctx context.Context, epoch uint64) error
	// FenceAgain makes sure after a restart that what Fence did still stands. What it
	// cannot find out or repeat of it is no error.
	FenceAgain(ctx context.Context, epoch uint64) error
	Unfence(ctx context.Context, epoch uint64) error
	// Sweep reads from production what is not yet in the replica, before a
	// planned takeover, and CatchUp the rest of it, while sessions wait.
	Sweep(ctx context.Context) error
	CatchUp(ctx context.Context) error
	// Replay gives all accounts to the standby and delivers what is held.
	Replay(ctx context.Context) error
	// CopyBack brings production up to the standby, which goes on serving; only
	// those accounts, if any are named.
	CopyBack(ctx context.Context, only []string) error
	// HandBack does the last of it, account by account. block stops an
	// account's sessions; unblock lets them go to the side that now answers. left
	// tells that the standby still answers for some.
	HandBack(ctx context.Context, only []string, block func(account string) error,
		unblock func(account string)) (left bool, err error)
	// Protect and Rest start and stop what follows production. Neither waits.
	Protect()
	Rest()
	// OnProduction reports whether an account is at home with production. It does
	// not wait.
	OnProduction(account string) bool
}

// Options of New.
type Options struct {
	Limits failover.Limits
	Actor  Actor
	Load   func(*failover.State) (bool, error)
	Save   func(context.Context, failover.State) error
	Log    *slog.Logger
	// SweepLimit bounds the sweep before a planned takeover; 0 is ten minutes.
	// CatchUpLimit bounds the last part, for which sessions wait; 0 is ten
	// seconds. After either the takeover is called off.
	SweepLimit, CatchUpLimit time.Duration
}

// Keeper is the owner.
type Keeper struct {
	opt     Options
	inbox   inbox
	ready   chan struct{} // closed when the owner is at work
	trouble chan error
	watch   watchers
	gate    gate
	long    long // the owner's
	// unsaved is a step that waits until its state is saved; the owner's.
	unsaved *step

	mu      sync.Mutex
	state   failover.State
	history []Entry
}

// Entry is one line of the history.
type Entry struct {
	At    time.Time
	Phase failover.Phase
	Epoch uint64
	Why   string
}

// maxHistory is how many entries are kept.
const maxHistory = 200

// saveAgain is the pause between tries to save the state.
const saveAgain = time.Second

// New reads the saved state.
func New(o Options) (*Keeper, error) {
	if o.SweepLimit == 0 {
		o.SweepLimit = 10 * time.Minute
	}
	if o.CatchUpLimit == 0 {
		o.CatchUpLimit = 10 * time.Second
	}
	k := &Keeper{opt: o, ready: make(chan struct{}), trouble: make(chan error, 1), state: failover.New(time.Now())}
	if _, err := o.Load(&k.state); err != nil {
		return nil, fmt.Errorf("failover state: %w", err)
	}
	k.inbox.init()
	k.gate.init(k.state.Duties())
	k.long.tell = k.inbox.put
	return k, nil
}

// State returns the state as it is saved.
func (k *Keeper) State() failover.State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.state
}

// History returns the last changes, oldest first.
func (k *Keeper) History() []Entry {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.history)
}

// Watch tells of the state, the one of now and each that follows; who is slow
// hears of the last one only. stop ends it.
func (k *Keeper) Watch() (states <-chan failover.State, stop func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.watch.add(k.state)
}

// Ready is closed when the owner is at work.
func (k *Keeper) Ready() <-chan struct{} { return k.ready }

// Tell hands an event to the owner, and does not wait for it.
func (k *Keeper) Tell(h failover.Happened) {
	if h.At.IsZero() {
		h.At = time.Now()
	}
	k.inbox.put(told{Happened: h})
}

// Order is Tell for who waits: taken is closed when State says what became of it.
func (k *Keeper) Order(h failover.Happened) (taken <-chan struct{}) {
	if h.At.IsZero() {
		h.At = time.Now()
	}
	c := make(chan struct{})
	k.inbox.put(told{Happened: h, taken: c})
	return c
}

// Trouble tells that real traffic met a failure.
func (k *Keeper) Trouble(err error) {
	select {
	case k.trouble <- err:
	default:
	}
}

// Troubles is where the prober hears of them.
func (k *Keeper) Troubles() <-chan error { return k.trouble }

// Run owns the state until ctx ends. It is called once.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.long.stop()
	k.follow()
	k.take(ctx, told{Happened: failover.Happened{Event: failover.Resumed, At: time.Now()}})
	close(k.ready)
	for {
		if k.unsaved == nil {
			if h, ok := k.inbox.take(); ok {
				k.take(ctx, h)
				continue
			}
		}
		if !k.wait(ctx) {
			return nil
		}
	}
}

// follow begins as the saved state says, before the first action: an action may end
// it. Accounts that were with production alone come to the standby after a restart.
func (k *Keeper) follow() {
	s := k.State()
	s.Mixed = false
	if s.Duties().Follow > failover.Unfollowed {
		k.opt.Actor.Protect()
	} else {
		k.opt.Actor.Rest()
	}
}

// wait waits for an event, or for a time that is one. It returns false when ctx
// ended.
func (k *Keeper) wait(ctx context.Context) bool {
	if k.unsaved != nil {
		select {
		case <-time.After(saveAgain):
			k.settle(ctx)
			return true
		case <-ctx.Done():
			return false
		}
	}
	var hold <-chan time.Time
	if at, ok := k.State().Due(); ok {
		hold = time.After(time.Until(at))
	}
	select {
	case <-k.inbox.more:
	case <-hold:
		k.take(ctx, told{Happened: failover.Happened{Event: failover.HoldOver, At: time.Now()}})
	case <-ctx.Done():
		return false
	}
	return true
}

// step is one step of the table on its way.
type step struct {
	happened failover.Happened
	old      failover.State
	next     failover.State
	do       []failover.Action
	why      string
	taken    chan struct{} // see told
}

// take takes one event.
func (k *Keeper) take(ctx context.Context, h told) {
	if h.run != 0 && h.run != k.long.run {
		return // of an action that was given up
	}
	old := k.State()
	if next, do, why, ok := failover.Step(old, k.opt.Limits, h.Happened); ok {
		k.unsaved = &step{h.Happened, old, next, do, why, h.taken}
		k.settle(ctx)
	} else if h.taken != nil {
		close(h.taken)
	}
}

// settle saves what has to be saved, shows the new state, and acts.
func (k *Keeper) settle(ctx context.Context) {
	s := k.unsaved
	if s.next.Lasting(s.old) {
		if err := k.opt.Save(ctx, s.next); err != nil {
			k.opt.Log.Error("failover state cannot be saved; nothing is done until it is", "to", s.next.Phase, "err",
				err)
			return
		}
		k.opt.Log.Info("failover", "mode", k.opt.Limits.Mode, "from", s.old.Phase, "to", s.next.Phase, "epoch",
			s.next.Epoch, "why", s.why)
	}
	k.unsaved = nil
	k.mu.Lock()
	k.state = s.next
	if s.next.Phase != s.old.Phase || len(s.do) > 0 {
		k.note(Entry{s.happened.At, s.next.Phase, s.next.Epoch, s.why})
	}
	k.watch.show(s.next)
	k.mu.Unlock()
	k.gate.turn(s.next.Duties())
	for _, a := range s.do {
		k.act(ctx, a, s.next)
	}
	if s.taken != nil {
		close(s.taken)
	}
}

// note adds to the history; what is tried again and again is one entry. mu is held.
func (k *Keeper) note(e Entry) {
	if n := len(k.history); n > 0 && k.history[n-1].Phase == e.Phase && k.history[n-1].Epoch == e.Epoch &&
		k.history[n-1].Why == e.Why {
		k.history[n-1] = e
		return
	}
	k.history = append(k.history, e)
	if len(k.history) > maxHistory {
		k.history = k.history[1:]
	}
}
