package keeper

import (
	"context"
	"fmt"
	"sync"
	"time"

	"understudy/failover"
)

// long runs the actions that take time, beside the owner and one at a time. All
// but the running action itself is the owner's.
type long struct {
	tell   func(told)
	run    uint64             // number of the last one
	cancel context.CancelFunc // of it; nil: there was none
	ended  chan struct{}      // closed when it has ended
	work   sync.WaitGroup
}

// begin gives up the action that runs, and begins another one when that has
// ended. f returns the event that tells the end; it is told unless the action was
// given up.
func (l *long) begin(ctx context.Context, f func(context.Context) failover.Happened) {
	l.giveUp()
	ctx, cancel := context.WithCancel(ctx)
	last, ended := l.ended, make(chan struct{})
	l.run++
	l.cancel, l.ended = cancel, ended
	run := l.run
	l.work.Go(func() {
		defer close(ended)
		defer cancel()
		if last != nil {
			<-last
		}
		if ctx.Err() != nil {
			return
		}
		h := f(ctx)
		if ctx.Err() != nil {
			return
		}
		h.At = time.Now()
		l.tell(told{Happened: h, run: run})
	})
}

func (l *long) giveUp() {
	if l.cancel != nil {
		l.cancel()
	}
}

// stop gives up and waits.
func (l *long) stop() {
	l.giveUp()
	l.work.Wait()
}

// Pauses after an action that failed, before its end is told: no storm of tries.
// Who is asked for a fence may be a power supply.
const (
	pause      = 500 * time.Millisecond
	fencePause = 5 * time.Second
)

// ending are the events that end an action.
type ending struct {
	done, failed failover.Event
	pause        time.Duration
}

func endings() map[failover.Action]ending {
	return map[failover.Action]ending{
		failover.Sweep:      {failover.Swept, failover.Broken, pause},
		failover.RaiseFence: {failover.Fenced, failover.Broken, pause},
		failover.FenceAgain: {failover.Fenced, failover.NotFenced, fencePause},
		failover.Replay:     {failover.Replayed, failover.Broken, pause},
		failover.Regain:     {failover.Regained, failover.NotRegained, pause},
		failover.CopyBack:   {failover.CopiedBack, failover.Broken, pause},
		failover.HandBack:   {failover.HandedBack, failover.Broken, pause},
		failover.LowerFence: {failover.Lowered, failover.NotLowered, fencePause},
	}
}

// begin runs one action beside the owner.
func (k *Keeper) begin(ctx context.Context, a failover.Action, f func(context.Context) error) {
	k.beginFor(ctx, a, func(ctx context.Context) (failover.Event, error) { return endings()[a].done, f(ctx) })
}

// beginFor is begin for an action with several good ends.
func (k *Keeper) beginFor(ctx context.Context, a failover.Action, f func(context.Context) (failover.Event, error)) {
	k.long.begin(ctx, func(ctx context.Context) failover.Happened {
		done, err := f(ctx)
		if err == nil || ctx.Err() != nil {
			return failover.Happened{Event: done}
		}
		k.opt.Log.Error("failover step", "step", a, "err", err)
		select {
		case <-time.After(endings()[a].pause):
		case <-ctx.Done():
		}
		return failover.Happened{Event: endings()[a].failed, Detail: fmt.Sprintf("%s: %v", a, err)}
	})
}

// act performs one action in the state that asked for it.
func (k *Keeper) act(ctx context.Context, a failover.Action, s failover.State) {
	actor := k.opt.Actor
	switch a {
	case failover.Sweep:
		k.begin(ctx, a, k.sweep)
	case failover.RaiseFence:
		k.begin(ctx, a, func(ctx context.Context) error { return k.fence(ctx, s) })
	case failover.FenceAgain:
		k.begin(ctx, a, func(ctx context.Context) error { return actor.FenceAgain(ctx, s.Epoch) })
	case failover.Replay:
		k.begin(ctx, a, actor.Replay)
	case failover.Regain:
		actor.Rest()
		k.begin(ctx, a, k.regain)
	case failover.CopyBack:
		k.begin(ctx, a, func(ctx context.Context) error { return actor.CopyBack(ctx, s.Only) })
	case failover.HandBack:
		k.beginFor(ctx, a, func(ctx context.Context) (failover.Event, error) {
			left, err := actor.HandBack(ctx, s.Only, k.gate.block, k.gate.unblock)
			if left {
				return failover.HandedSome, err
			}
			return failover.HandedBack, err
		})
	case failover.LowerFence:
		k.gate.revoke(onStandby, boundary)
		k.begin(ctx, a, func(ctx context.Context) error { return actor.Unfence(ctx, s.Epoch) })
	case failover.Follow:
		actor.Protect()
	case failover.AskForTakeover:
		k.opt.Log.Warn("production failed; takeover waits for `understudy takeover`")
	}
}

// sweep brings the replica up while production goes on.
func (k *Keeper) sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, k.opt.SweepLimit)
	defer cancel()
	return k.opt.Actor.Sweep(ctx)
}

// fence makes production's sessions end. If production lives, the last of it is
// read with sessions blocked.
func (k *Keeper) fence(ctx context.Context, s failover.State) error {
	patience, limit := time.Duration(0), time.Second
	if s.Planned {
		patience, limit = boundary, boundary+time.Second
	}
	k.gate.revoke(onProduction, patience)
	// Each session notes what production left unanswered, before the base of
	// the merge is taken.
	err := k.gate.drained(ctx, onProduction, limit)
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

// regain gives the standby what production still answers for.
func (k *Keeper) regain(ctx context.Context) error {
	k.gate.revoke(onProduction, 0)
	_ = k.gate.drained(ctx, onProduction, time.Second) // see fence
	return k.opt.Actor.Replay(ctx)
}
