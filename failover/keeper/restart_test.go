package keeper

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/failover"
)

// steps are what the actor did, of those that are named.
func (s *site) steps(names ...string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.did), func(n string) bool { return !slices.Contains(names, n) })
}

func enters(ctx context.Context, k *Keeper, limit time.Duration) (side Side, waited time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	side, err = k.Enter(ctx, "a")
	return side, time.Since(began), err
}

// M16: a fence that cannot be raised again after a restart is tried until it can,
// and said. The accounts that the standby had are answered meanwhile; one that
// production may have waits, and nothing is given to anybody before.
func TestM16_FenceFailsAfterRestart(t *testing.T) {
	for _, p := range []failover.Phase{failover.Replaying, failover.Serving, failover.Returning, failover.CopyingBack,
		failover.HandingBack} {
		for _, handed := range []bool{false, true} {
			s := &site{saved: failover.State{Phase: p, Epoch: 5, Mixed: handed}, fail: map[string]int{"fence": 3},
				handed: handed}
			run(t, s, failover.Automatic, func(ctx context.Context, k *Keeper) {
				<-k.Ready()
				side, _, err := enters(ctx, k, 10*time.Second)
				if waits := handed || p == failover.Replaying; waits != (err != nil) || err == nil && !side.Standby {
					t.Errorf("%s, handed back %v: %+v, %v with the fence down", p, handed, side, err)
				}
				if err == nil {
					side.Release()
					time.Sleep(6 * time.Second)
				}
				if st := k.State(); !strings.Contains(st.Stuck, "does not work") ||
					!strings.Contains(st.Why, "tried again") {
					t.Errorf("%s: not said: %q, %q", p, st.Stuck, st.Why)
				}
				if did := s.steps("replay", "copy back", "hand back"); len(did) > 0 {
					t.Errorf("%s: %q before the fence was up", p, did)
				}
				if handed { // hand-backs would follow at once
					if side, _, err := enters(ctx, k, 20*time.Second); err != nil || !side.Standby &&
						p != failover.CopyingBack && p != failover.HandingBack {
						t.Errorf("%s: %+v, %v with the fence up", p, side, err)
					}
				}
				time.Sleep(20 * time.Second)
				if st := k.State(); st.Stuck != "" || st.Regaining {
					t.Errorf("%s: still %+v", p, st)
				}
				if n := len(s.steps("fence")); n != 4 {
					t.Errorf("%s: tried %d times", p, n)
				}
			})
		}
	}
}

// M16: restarted while fencing, production is followed no more once the fence is up.
func TestM16_RestartedWhileFencing(t *testing.T) {
	for _, planned := range []bool{false, true} {
		s := &site{saved: failover.State{Phase: failover.Fencing, Epoch: 5, Planned: planned}, fail: map[string]int{},
			at: map[string]func(){}}
		followed := func(name string, want bool) {
			s.when(name, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.following != want {
					t.Errorf("planned %v, %s: production is followed: %v", planned, name, s.following)
				}
			})
		}
		followed("sweep", true)
		followed("fence", false)
		followed("replay", false)
		run(t, s, failover.Confirm, func(_ context.Context, k *Keeper) {
			time.Sleep(10 * time.Second)
			if p := k.State().Phase; p != failover.Serving {
				t.Errorf("planned %v: %s", planned, p)
			}
		})
	}
}

// M16: a hold that ran out while the appliance was off is no reason for a takeover:
// production is asked first.
func TestM16_RestartedWhileHolding(t *testing.T) {
	for _, healthy := range []bool{false, true} {
		s := &site{saved: failover.State{Phase: failover.Holding, Epoch: 5}, fail: map[string]int{}}
		run(t, s, failover.Automatic, func(_ context.Context, k *Keeper) {
			time.Sleep(500 * time.Millisecond) // of a probe
			if healthy {
				k.Tell(failover.Happened{Event: failover.Healthy})
			} else {
				k.Tell(failover.Happened{Event: failover.Failed})
			}
			time.Sleep(10 * time.Second)
			want := failover.Serving
			if healthy {
				want = failover.Protecting
			}
			if p := k.State().Phase; p != want {
				t.Errorf("healthy %v: %s", healthy, p)
			}
		})
	}
}

// M16: a fence that could not be lowered before a restart is lowered then, and said
// no longer.
func TestM16_LoweredAfterRestart(t *testing.T) {
	for _, p := range []failover.Phase{failover.Protecting, failover.Holding} {
		s := &site{saved: failover.State{Phase: p, Epoch: 5, Asked: true, Stuck: "lower the fence: does not work"},
			fail: map[string]int{"unfence": 1}}
		run(t, s, failover.Confirm, func(_ context.Context, k *Keeper) {
			time.Sleep(10 * time.Second)
			if st := k.State(); st.Phase != p || st.Stuck != "" || len(s.steps("unfence")) != 2 {
				t.Errorf("%+v, %q", st, s.steps("unfence"))
			}
		})
	}
}

// M16: what cannot be given to the standby is tried again, and a hand-back that is
// ordered meanwhile waits for it.
func TestM16_RegainingFails(t *testing.T) {
	s := &site{saved: failover.State{Phase: failover.Returning, Epoch: 5, Mixed: true},
		fail: map[string]int{"replay": 2}, handed: true}
	run(t, s, failover.Automatic, func(ctx context.Context, k *Keeper) {
		<-k.Ready()
		time.Sleep(200 * time.Millisecond)
		k.Tell(failover.Happened{Event: failover.Handback})
		time.Sleep(500 * time.Millisecond)
		if st := k.State(); st.Phase != failover.CopyingBack || !strings.Contains(st.Stuck, "does not work") {
			t.Errorf("%+v", st)
		}
		time.Sleep(10 * time.Second)
		if got := s.steps("replay", "copy back", "hand back"); !slices.Equal(got,
			[]string{"replay", "replay", "replay", "copy back", "hand back"}) {
			t.Errorf("did %q", got)
		}
		if st := k.State(); st.Phase != failover.Protecting || st.Stuck != "" {
			t.Errorf("%+v", st)
		}
	})
}

// A fence that cannot be lowered is tried again, while production answers; but
// not once a takeover began.
func TestM16_LoweringFails(t *testing.T) {
	s := &site{saved: failover.State{Phase: failover.HandingBack, Epoch: 5}, fail: map[string]int{"unfence": 2}}
	run(t, s, failover.Confirm, func(ctx context.Context, k *Keeper) {
		time.Sleep(3 * time.Second)
		if st := k.State(); st.Phase != failover.Protecting || len(s.steps("unfence")) != 1 {
			t.Errorf("%+v, %q", st, s.steps("unfence"))
		}
		if side, _, err := enters(ctx, k, time.Second); err != nil || side.Standby {
			t.Errorf("%+v, %v", side, err)
		} else {
			side.Release()
		}
		time.Sleep(5 * time.Second)
		if st := k.State(); !strings.Contains(st.Stuck, "does not work") {
			t.Errorf("not said: %+v", st)
		}
		k.Tell(failover.Happened{Event: failover.Takeover})
		time.Sleep(20 * time.Second)
		did := s.steps("fence", "unfence")
		if st := k.State(); st.Phase != failover.Serving || st.Stuck != "" || did[len(did)-1] != "fence" {
			t.Errorf("%+v, %q", st, did)
		}
	})
}

// While the state cannot be saved nothing is done, and who tells does not wait;
// what was told counts afterwards.
func TestM16_NothingBeforeItIsSaved(t *testing.T) {
	s := &site{saved: failover.State{Phase: failover.Holding, Epoch: 5, Asked: true}, fail: map[string]int{}}
	run(t, s, failover.Confirm, func(ctx context.Context, k *Keeper) {
		<-k.Ready()
		s.mu.Lock()
		s.fail["save"] = 10
		s.mu.Unlock()
		k.Tell(failover.Happened{Event: failover.Takeover})
		for range 100 {
			for range 10 {
				k.Tell(failover.Happened{Event: failover.Failed})
			}
			k.Tell(failover.Happened{Event: failover.Acknowledge})
			time.Sleep(50 * time.Millisecond)
		}
		if did := s.steps("fence"); len(did) > 0 || k.State().Epoch != 5 {
			t.Errorf("did %q with nothing saved: %+v", did, k.State())
		}
		time.Sleep(10 * time.Second)
		if st := k.State(); st.Phase != failover.Serving || st.Epoch != 6 {
			t.Errorf("afterwards: %+v", st)
		}
	})
}

// M15: an account's home that was asked for before the state changed lets nobody in.
func TestM15_HomeOfBefore(t *testing.T) {
	s := &site{saved: failover.State{Phase: failover.Protecting}, fail: map[string]int{}, at: map[string]func(){}}
	run(t, s, failover.Confirm, func(ctx context.Context, k *Keeper) {
		for _, e := range []failover.Event{failover.Takeover, failover.Healthy} {
			k.Tell(failover.Happened{Event: e})
			time.Sleep(3 * time.Second)
		}
		k.Tell(failover.Happened{Event: failover.Handback, Accounts: []string{"a"}})
		time.Sleep(time.Second)
		if side, _, err := enters(ctx, k, time.Second); err != nil || side.Standby || !k.State().Mixed {
			t.Errorf("handed back: %+v, %v, %+v", side, err, k.State())
		}
		s.when("home", func() {
			k.Tell(failover.Happened{Event: failover.Failed})
			time.Sleep(3 * time.Second) // all is the standby's by then
		})
		if side, _, err := enters(ctx, k, 10*time.Second); err != nil || !side.Standby {
			t.Errorf("by an old answer: %+v, %v", side, err)
		}
	})
}

// An action begins when the one that it replaces has ended, and that one's end
// does not count any more.
func TestActionsDoNotOverlap(t *testing.T) {
	s := &site{saved: failover.State{Phase: failover.Protecting}, fail: map[string]int{}, at: map[string]func(){}}
	run(t, s, failover.Confirm, func(ctx context.Context, k *Keeper) {
		for _, e := range []failover.Event{failover.Takeover, failover.Healthy} {
			k.Tell(failover.Happened{Event: e})
			time.Sleep(3 * time.Second)
		}
		k.Tell(failover.Happened{Event: failover.Handback, Accounts: []string{"a"}})
		time.Sleep(time.Second)
		s.when("copy back", func() {
			time.Sleep(2 * time.Second) // deaf
			s.mu.Lock()
			defer s.mu.Unlock()
			s.did = append(s.did, "copy back ended")
		})
		k.Tell(failover.Happened{Event: failover.Handback})
		time.Sleep(time.Second)
		k.Tell(failover.Happened{Event: failover.Failed})
		time.Sleep(5 * time.Second)
		if did := s.steps("copy back ended", "replay"); !slices.Equal(did[len(did)-2:],
			[]string{"copy back ended", "replay"}) {
			t.Errorf("did %q", did)
		}
		if st := k.State(); st.Phase != failover.Serving || st.Regaining {
			t.Errorf("%+v", st)
		}
	})
}

// Who watches sees the state of now first, and the last one if it was slow.
func TestWatch(t *testing.T) {
	s := &site{saved: failover.State{Phase: failover.Protecting}, fail: map[string]int{}}
	run(t, s, failover.Confirm, func(ctx context.Context, k *Keeper) {
		states, stop := k.Watch()
		if st := <-states; st.Phase != failover.Protecting {
			t.Errorf("first %s", st.Phase)
		}
		k.Tell(failover.Happened{Event: failover.Takeover})
		if st := <-states; st.Phase != failover.Fencing || !st.Sweeping {
			t.Errorf("then %+v", st)
		}
		time.Sleep(10 * time.Second)
		if st := <-states; st.Phase != failover.Serving || st.Regaining {
			t.Errorf("the last: %+v", st)
		}
		stop()
		k.Tell(failover.Happened{Event: failover.Failed})
		time.Sleep(time.Second)
		select {
		case st := <-states:
			t.Errorf("after the end: %+v", st)
		default:
		}
	})
}

// The end of an action that was given up is nobody's.
func TestEndOfAGivenUpAction(t *testing.T) {
	s := &site{saved: failover.State{Phase: failover.CopyingBack, Epoch: 5}, fail: map[string]int{}}
	k := s.keeper(t, failover.Confirm)
	k.long.run = 7
	k.take(t.Context(), told{failover.Happened{Event: failover.Broken, At: time.Now()}, 6, nil})
	if p := k.State().Phase; p != failover.CopyingBack || len(s.did) > 0 {
		t.Errorf("%s, did %q", p, s.did)
	}
}
