package keeper

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/failover"
)

// site is an actor that counts, and a store of the state.
type site struct {
	mu     sync.Mutex
	saved  failover.State
	did    []string
	fail   map[string]int // how often a step fails
	handed bool
	// following tells whether production is followed.
	following bool
	// at is called in the midst of a step, or of a question.
	at map[string]func()
}

func (s *site) step(ctx context.Context, name string) error {
	s.mu.Lock()
	s.did = append(s.did, name)
	bad := s.fail[name] > 0
	s.fail[name]--
	f := s.at[name]
	s.mu.Unlock()
	if f != nil {
		f()
	}
	select {
	case <-time.After(50 * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	if bad {
		return errors.New("does not work")
	}
	return nil
}

// when has f called in the midst of a step.
func (s *site) when(name string, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at[name] = f
}

func (s *site) Fence(ctx context.Context, _ uint64) error      { return s.step(ctx, "fence") }
func (s *site) FenceAgain(ctx context.Context, e uint64) error { return s.Fence(ctx, e) }
func (s *site) Unfence(ctx context.Context, _ uint64) error    { return s.step(ctx, "unfence") }
func (s *site) Sweep(ctx context.Context) error                { return s.step(ctx, "sweep") }
func (s *site) CatchUp(ctx context.Context) error              { return s.step(ctx, "catch up") }
func (s *site) CopyBack(ctx context.Context, _ []string) error { return s.step(ctx, "copy back") }
func (s *site) Protect()                                       { s.follow(true) }
func (s *site) Rest()                                          { s.follow(false) }
func (s *site) follow(on bool) {
	time.Sleep(time.Millisecond) // whoever can go on does
	s.mu.Lock()
	defer s.mu.Unlock()
	s.following = on
}
func (s *site) OnProduction(string) bool {
	s.mu.Lock()
	there, f := s.handed, s.at["home"]
	delete(s.at, "home") // once
	s.mu.Unlock()
	if f != nil {
		f()
	}
	return there
}
func (s *site) Replay(ctx context.Context) error {
	err := s.step(ctx, "replay")
	if err == nil {
		s.mu.Lock()
		s.handed = false
		s.mu.Unlock()
	}
	return err
}
func (s *site) HandBack(ctx context.Context, only []string, block func(string) error, unblock func(string)) (left bool,
	err error) {
	defer unblock("a")
	if err := block("a"); err != nil {
		return true, err
	}
	err = s.step(ctx, "hand back")
	s.mu.Lock()
	s.handed = err == nil
	s.mu.Unlock()
	return only != nil, err
}

func (s *site) keeper(t *testing.T, mode failover.Mode) *Keeper {
	t.Helper()
	k, err := New(Options{Actor: s, Log: slog.New(slog.DiscardHandler),
		Limits: failover.Limits{Mode: mode, Hold: time.Second, ReturnProbes: 1},
		Load: func(st *failover.State) (bool, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.saved.Phase != "" {
				*st = s.saved
			}
			return true, nil
		},
		Save: func(_ context.Context, st failover.State) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.fail["save"]--; s.fail["save"] >= 0 {
				return errors.New("the disk is full")
			}
			s.saved = st
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// run runs f beside a keeper, in a bubble with its own clock.
func run(t *testing.T, s *site, mode failover.Mode, f func(ctx context.Context, k *Keeper)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		k := s.keeper(t, mode)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = k.Run(ctx) }()
		f(ctx, k)
		cancel()
		<-done
	})
}

// M16: restarted in any phase the keeper goes on to an end, and production is
// never entered before the fence is down again.
func TestM16_RestartedInEveryPhase(t *testing.T) {
	for _, p := range failover.Phases() {
		s := &site{saved: failover.State{Phase: p, Epoch: 5, Asked: p == failover.Holding}, fail: map[string]int{}}
		run(t, s, failover.Automatic, func(ctx context.Context, k *Keeper) {
			short, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			side, err := k.Enter(short, "a")
			switch p {
			case failover.Seeding, failover.Protecting:
				if err != nil || side.Standby {
					t.Errorf("%s: %+v, %v", p, side, err)
				}
			case failover.Holding:
				if err == nil {
					t.Errorf("%s: entered %+v while waiting for the word", p, side)
				}
			case failover.CopyingBack, failover.HandingBack:
				side.Release()
				time.Sleep(time.Second)
				if got := k.State(); got.Phase != failover.Protecting || got.Epoch != 6 {
					t.Errorf("%s: ended in %s, epoch %d", p, got.Phase, got.Epoch)
				}
			default:
				if err != nil || !side.Standby {
					t.Errorf("%s: %+v, %v", p, side, err)
				}
			}
		})
	}
}

// M15: sessions of production end before the standby answers; while nobody
// answers, sessions wait and do not fail.
func TestM15_RevokedBeforeServing(t *testing.T) {
	s := &site{saved: failover.State{Phase: failover.Protecting}, fail: map[string]int{}}
	run(t, s, failover.Automatic, func(ctx context.Context, k *Keeper) {
		old, err := k.Enter(ctx, "a")
		if err != nil || old.Standby {
			t.Fatal(old, err)
		}
		k.Tell(failover.Happened{Event: failover.Failed})
		time.Sleep(100 * time.Millisecond)
		start := time.Now()
		side, err := k.Enter(ctx, "b")
		if err != nil || !side.Standby {
			t.Fatal(side, err)
		}
		if waited := time.Since(start); waited < 800*time.Millisecond || waited > 3*time.Second {
			t.Errorf("waited %s", waited)
		}
		select {
		case <-old.Revoked:
		default:
			t.Error("production's session was left alone")
		}
		old.Release()
	})
}

// M17: a planned takeover whose last sweep fails is called off, and production
// goes on; an unplanned one tries again.
func TestM17_CalledOff(t *testing.T) {
	s := &site{saved: failover.State{Phase: failover.Protecting},
		fail: map[string]int{"sweep": 1, "catch up": 1, "replay": 2}}
	run(t, s, failover.Confirm, func(ctx context.Context, k *Keeper) {
		for range 2 {
			k.Tell(failover.Happened{Event: failover.Takeover})
			time.Sleep(5 * time.Second)
			if p := k.State().Phase; p != failover.Protecting {
				t.Errorf("called off, and then %s", p)
			}
			if side, err := k.Enter(ctx, "a"); err != nil || side.Standby {
				t.Errorf("called off, and then %+v, %v", side, err)
			} else {
				side.Release()
			}
		}
		k.Tell(failover.Happened{Event: failover.Failed})
		k.Tell(failover.Happened{Event: failover.Takeover})
		time.Sleep(5 * time.Second)
		if p := k.State().Phase; p != failover.Serving {
			t.Errorf("after two failed replays: %s", p)
		}
	})
}
