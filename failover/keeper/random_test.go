package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/failover"
)

// town is two accounts, and an actor that fails at random.
type town struct {
	t    *testing.T
	seed uint64

	mu     sync.Mutex
	rnd    *rand.Rand
	well   bool // nothing fails any more
	saved  failover.State
	home   map[string]bool // with the standby
	fenced bool
	in     map[string][2]int // sessions by account: with production, with the standby
}

func (w *town) die(format string, a ...any) {
	w.t.Errorf("seed %d: %s (%s)", w.seed, fmt.Sprintf(format, a...), w.saved.Phase)
}

// work takes a while and fails now and then.
func (w *town) work(ctx context.Context, most time.Duration) error {
	w.mu.Lock()
	d, bad := time.Duration(w.rnd.Int64N(int64(most))), !w.well && w.rnd.IntN(4) == 0
	w.mu.Unlock()
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return ctx.Err()
	}
	if bad {
		return errors.New("does not work")
	}
	return nil
}

func (w *town) Fence(ctx context.Context, _ uint64) error {
	if err := w.work(ctx, 2*time.Second); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fenced = true
	return nil
}
func (w *town) FenceAgain(ctx context.Context, e uint64) error { return w.Fence(ctx, e) }
func (w *town) Unfence(ctx context.Context, _ uint64) error {
	if err := w.work(ctx, time.Second); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fenced = false
	for a, standby := range w.home {
		if standby {
			w.die("the fence is lowered with %s at the standby", a)
		}
	}
	return nil
}
func (w *town) Sweep(ctx context.Context) error   { return w.work(ctx, 3*time.Second) }
func (w *town) CatchUp(ctx context.Context) error { return w.work(ctx, time.Second) }
func (w *town) Replay(ctx context.Context) error {
	for _, a := range []string{"a", "b"} {
		if err := w.work(ctx, time.Second); err != nil {
			return err
		}
		w.mu.Lock()
		if !w.home[a] && !w.fenced {
			w.die("%s comes to the standby without a fence", a)
		}
		if n := w.in[a][0]; !w.home[a] && n > 0 {
			w.die("%s comes to the standby with %d sessions of production", a, n)
		}
		w.home[a] = true
		w.mu.Unlock()
	}
	return nil
}
func (w *town) CopyBack(ctx context.Context, _ []string) error { return w.work(ctx, 3*time.Second) }
func (w *town) HandBack(ctx context.Context, only []string, block func(string) error,
	unblock func(string)) (left bool, err error) {
	for _, a := range []string{"a", "b"} {
		if w.OnProduction(a) || only != nil && only[0] != a {
			continue
		}
		if err := w.handBack(ctx, a, block, unblock); err != nil {
			return true, err
		}
	}
	return w.ours(), nil
}
func (w *town) handBack(ctx context.Context, a string, block func(string) error, unblock func(string)) error {
	defer unblock(a)
	if err := block(a); err != nil {
		return err
	}
	if err := w.work(ctx, time.Second); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.in[a][1]; n > 0 {
		w.die("%s goes to production with %d sessions of the standby", a, n)
	}
	w.home[a] = false
	return nil
}
func (w *town) ours() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.home["a"] || w.home["b"]
}
func (w *town) Protect() {}
func (w *town) Rest()    {}
func (w *town) OnProduction(a string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.home[a]
}

func (w *town) keeper() *Keeper {
	k, err := New(Options{Actor: w, Log: slog.New(slog.DiscardHandler),
		Limits: failover.Limits{Mode: failover.Automatic, Hold: time.Second, ReturnProbes: 2},
		Load: func(s *failover.State) (bool, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			*s = w.saved
			return true, nil
		},
		Save: func(ctx context.Context, s failover.State) error {
			if err := w.work(ctx, 20*time.Millisecond); err != nil {
				return err
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.saved = s
			return nil
		}})
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

// client comes again and again.
func (w *town) client(ctx context.Context, k *Keeper, a string) {
	for ctx.Err() == nil {
		s, err := k.Enter(ctx, a)
		if err != nil {
			return
		}
		side := 0
		if s.Standby {
			side = 1
		}
		w.count(a, side, 1)
		w.mu.Lock()
		if w.home[a] != s.Standby {
			w.die("%s is let in to the standby: %v, and is at home there: %v", a, s.Standby, w.home[a])
		}
		d := time.Duration(w.rnd.IntN(3000)) * time.Millisecond
		w.mu.Unlock()
		select {
		case <-s.Revoked:
			time.Sleep(min(d/10, s.Patience()))
		case <-time.After(d):
		case <-ctx.Done():
		}
		w.count(a, side, -1)
		s.Release()
	}
}

func (w *town) count(a string, side, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.in[a]
	x[side] += n
	w.in[a] = x
}

// Whatever fails, in whatever order things are told, and wherever the appliance is
// restarted: an account is let in where it is at home and nowhere else, nothing
// comes to the standby without a fence, and in the end production has all of it.
func TestM15_M16_Random(t *testing.T) {
	for seed := range uint64(50) {
		synctest.Test(t, func(t *testing.T) {
			w := &town{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 1)), home: map[string]bool{},
				in: map[string][2]int{}, saved: failover.State{Phase: failover.Protecting}}
			for life := range 5 {
				w.live(t.Context(), life == 4)
			}
		})
	}
}

// live is one life of the appliance.
func (w *town) live(ctx context.Context, last bool) {
	k := w.keeper()
	ctx, cancel := context.WithCancel(ctx)
	var g sync.WaitGroup
	g.Go(func() { _ = k.Run(ctx) })
	<-k.Ready()
	for _, a := range []string{"a", "b", "a"} {
		g.Go(func() { w.client(ctx, k, a) })
	}
	for range 30 {
		w.mu.Lock()
		n, d := w.rnd.IntN(8), time.Duration(w.rnd.IntN(4000))*time.Millisecond
		w.mu.Unlock()
		switch h := (failover.Happened{Event: failover.Healthy}); {
		case n < 2:
			h.Event = failover.Failed
			k.Tell(h)
		case n == 2:
			h.Event = failover.Takeover
			k.Tell(h)
		case n == 3:
			h.Event = failover.Handback
			k.Tell(h)
		case n == 4:
			h.Event, h.Accounts = failover.Handback, []string{"b"}
			k.Tell(h)
		default:
			k.Tell(h)
		}
		time.Sleep(d)
	}
	if last {
		w.mu.Lock()
		w.well = true
		w.mu.Unlock()
		for range 30 {
			k.Tell(failover.Happened{Event: failover.Healthy})
			k.Tell(failover.Happened{Event: failover.Handback})
			time.Sleep(5 * time.Second)
		}
		if s := k.State(); s.Phase != failover.Protecting || w.ours() || w.fenced || s.Stuck != "" {
			w.die("in the end: %+v, at home %v, fenced %v", s, w.home, w.fenced)
		}
	}
	cancel()
	g.Wait()
}
