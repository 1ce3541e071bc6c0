// Package keeper owns the failover state: it takes events, asks failover.Step,
// saves the new state with its epoch, and only then performs the actions. It
// is also the gate that tells each session which side answers.
//
// Implementation notes. One goroutine (Run) owns the state. Long actions run
// beside it, one at a time, and end in an event; a newer action cancels the
// older. After a restart the saved state is read before Enter answers anybody,
// so that a fenced production is never forwarded to. Gate and state are read
// under mu; leases are revoked by closing their channel, and counted, so that
// an account can be waited for.
package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"understudy/failover"
)

// Actor performs the actions. Each call must be safe to repeat.
type Actor interface {
	// Fence stops production from reaching clients, and the reverse.
	Fence(ctx context.Context, epoch uint64) error
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
	HandBack(ctx context.Context, only []string, block func(account string) error, unblock func(account string)) (left bool, err error)
	// Protect and Rest start and stop what follows production.
	Protect()
	Rest()
	// OnProduction reports whether production answers for an account.
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
	// Changed is called after each change, by the owner.
	Changed func(failover.State)
}

// Keeper is the owner.
type Keeper struct {
	opt    Options
	events chan failover.Happened

	mu       sync.Mutex
	state    failover.State
	changed  chan struct{} // closed and replaced when Enter may answer otherwise
	leases   map[*lease]struct{}
	blocked  map[string]bool
	sweeping bool // Fencing: production still answers
	trouble  chan error
	history  []Entry

	cancel context.CancelFunc // of the running long action
	work   sync.WaitGroup
}

// Entry is one line of the history.
type Entry struct {
	At    time.Time
	Phase failover.Phase
	Epoch uint64
	Why   string
}

type lease struct {
	account  string
	standby  bool
	revoked  chan struct{}
	patience time.Duration // set before revoked is closed
	released bool
}

// New reads the saved state.
func New(o Options) (*Keeper, error) {
	if o.SweepLimit == 0 {
		o.SweepLimit = 10 * time.Minute
	}
	if o.CatchUpLimit == 0 {
		o.CatchUpLimit = 10 * time.Second
	}
	k := &Keeper{opt: o, events: make(chan failover.Happened, 64), changed: make(chan struct{}), leases: map[*lease]struct{}{},
		blocked: map[string]bool{}, trouble: make(chan error, 1), state: failover.State{Phase: failover.Seeding, Since: time.Now()}}
	if _, err := o.Load(&k.state); err != nil {
		return nil, fmt.Errorf("failover state: %w", err)
	}
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
	return append([]Entry(nil), k.history...)
}

// Tell hands an event to the owner.
func (k *Keeper) Tell(h failover.Happened) {
	if h.At.IsZero() {
		h.At = time.Now()
	}
	k.events <- h
}

// Trouble implements proxy.Gate: real traffic met a failure.
func (k *Keeper) Trouble(err error) {
	select {
	case k.trouble <- err:
	default:
	}
}

// Troubles is where the prober hears of them.
func (k *Keeper) Troubles() <-chan error { return k.trouble }

// Run owns the state until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.work.Wait()
	defer k.stopWork()
	k.step(ctx, failover.Happened{Event: failover.Resumed, At: time.Now()})
	if p := k.State().Phase; p == failover.Protecting || p == failover.Seeding {
		k.opt.Actor.Protect()
	} else {
		k.opt.Actor.Rest()
	}
	for {
		var hold <-chan time.Time
		if s := k.State(); s.Phase == failover.Holding && !s.Asked {
			hold = time.After(time.Until(s.Until))
		}
		select {
		case h := <-k.events:
			k.step(ctx, h)
		case <-hold:
			k.step(ctx, failover.Happened{Event: failover.HoldOver, At: time.Now()})
		case <-ctx.Done():
			return nil
		}
	}
}

func (k *Keeper) stopWork() {
	if k.cancel != nil {
		k.cancel()
	}
}

func (k *Keeper) step(ctx context.Context, h failover.Happened) {
	old := k.State()
	next, do, why, ok := failover.Step(old, k.opt.Limits, h)
	if !ok {
		return
	}
	if next.Phase != old.Phase || next.Epoch != old.Epoch || next.Asked != old.Asked {
		for err := k.opt.Save(ctx, next); err != nil; err = k.opt.Save(ctx, next) {
			k.opt.Log.Error("failover state cannot be saved; nothing is done until it is", "err", err)
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
				return
			}
		}
		k.opt.Log.Info("failover", "mode", k.opt.Limits.Mode, "from", old.Phase, "to", next.Phase, "epoch", next.Epoch, "why", why)
	}
	k.mu.Lock()
	k.state = next
	if next.Phase != old.Phase || len(do) > 0 {
		k.history = append(k.history, Entry{h.At, next.Phase, next.Epoch, why})
		if len(k.history) > 200 {
			k.history = k.history[1:]
		}
	}
	k.wake()
	k.mu.Unlock()
	if k.opt.Changed != nil {
		k.opt.Changed(next)
	}
	for _, a := range do {
		k.act(ctx, a)
	}
}

// wake has Enter look again. mu is held.
func (k *Keeper) wake() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// long runs an action beside the owner; its end is an event.
func (k *Keeper) long(ctx context.Context, name failover.Action, done failover.Event, f func(context.Context) error) {
	k.longer(ctx, name, func(ctx context.Context) (failover.Event, error) { return done, f(ctx) })
}

// longer is long for an action with several ends.
func (k *Keeper) longer(ctx context.Context, name failover.Action, f func(context.Context) (failover.Event, error)) {
	k.stopWork()
	ctx, cancel := context.WithCancel(ctx)
	k.cancel = cancel
	k.work.Go(func() {
		defer cancel()
		done, err := f(ctx)
		if ctx.Err() != nil {
			return
		}
		h := failover.Happened{Event: done, At: time.Now()}
		if err != nil {
			h.Event, h.Detail = failover.Broken, fmt.Sprintf("%s: %v", name, err)
			k.opt.Log.Error("failover step", "step", name, "err", err)
			select { // no storm of tries
			case <-time.After(500 * time.Millisecond):
			case <-ctx.Done():
				return
			}
		}
		select {
		case k.events <- h:
		case <-ctx.Done():
		}
	})
}

func (k *Keeper) act(ctx context.Context, a failover.Action) {
	actor := k.opt.Actor
	switch a {
	case failover.RaiseFence:
		s := k.State()
		if s.Phase != failover.Fencing {
			// Read back after a restart: the fence is raised again at once.
			if err := actor.Fence(ctx, s.Epoch); err != nil {
				k.opt.Log.Error("raise fence", "err", err)
			}
			return
		}
		k.long(ctx, a, failover.Fenced, func(ctx context.Context) error { return k.fence(ctx, s) })
	case failover.Replay:
		k.long(ctx, a, failover.Replayed, actor.Replay)
	case failover.Serve:
		// Accounts that were handed back come back, too.
		k.stopWork()
		actor.Rest()
		k.reclaim(ctx)
	case failover.CopyBack:
		only := k.State().Only
		k.long(ctx, a, failover.CopiedBack, func(ctx context.Context) error { return actor.CopyBack(ctx, only) })
	case failover.HandBack:
		only := k.State().Only
		k.longer(ctx, a, func(ctx context.Context) (failover.Event, error) {
			left, err := actor.HandBack(ctx, only, k.block, k.unblock)
			if left {
				return failover.HandedSome, err
			}
			return failover.HandedBack, err
		})
	case failover.Follow:
		actor.Protect()
	case failover.LowerFence:
		k.revoke(func(l *lease) bool { return l.standby }, boundary)
		if err := actor.Unfence(ctx, k.State().Epoch); err != nil {
			k.opt.Log.Error("lower fence", "err", err)
		}
		actor.Protect()
	case failover.AskForTakeover:
		k.opt.Log.Warn("production failed; takeover waits for `understudy takeover`")
	case failover.HoldSessions, failover.ReleaseHold:
		// Enter answers by the phase.
	}
}

// reclaim gives the standby what production still answers for.
func (k *Keeper) reclaim(ctx context.Context) {
	theirs := func(l *lease) bool { return !l.standby }
	k.revoke(theirs, 0)
	_ = k.drained(ctx, theirs, time.Second) // see fence
	for range 20 {
		err := k.opt.Actor.Replay(ctx)
		if err == nil || ctx.Err() != nil {
			break
		}
		k.opt.Log.Error("serve", "err", err)
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wake()
}

// fence makes production's sessions end. If production lives, it goes on while
// the replica is brought up, and only the last of it is read with sessions
// blocked.
func (k *Keeper) fence(ctx context.Context, s failover.State) error {
	patience, limit := time.Duration(0), time.Second
	if s.Planned {
		patience, limit = boundary, boundary+time.Second
		k.let(true)
		sweep, cancel := context.WithTimeout(ctx, k.opt.SweepLimit)
		defer cancel()
		err := k.opt.Actor.Sweep(sweep)
		k.let(false)
		if err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
	}
	k.revoke(func(l *lease) bool { return !l.standby }, patience)
	// Each session notes what production left unanswered, before the base of
	// the merge is taken.
	err := k.drained(ctx, func(l *lease) bool { return !l.standby }, limit)
	if s.Planned {
		if err != nil {
			return err
		}
		last, cancel := context.WithTimeout(ctx, k.opt.CatchUpLimit)
		defer cancel()
		if err := k.opt.Actor.CatchUp(last); err != nil {
			return fmt.Errorf("last sweep: %w", err)
		}
	}
	k.opt.Actor.Rest()
	return k.opt.Actor.Fence(ctx, s.Epoch)
}

// let lets sessions go to production though it is about to be fenced.
func (k *Keeper) let(in bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sweeping = in
	k.wake()
}
