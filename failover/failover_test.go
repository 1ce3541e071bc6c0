package failover

import (
	"slices"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Every pair of phase and event is a rule or is quiet, and not both.
func TestEveryPairIsDecided(t *testing.T) {
	q := quiet()
	for _, p := range Phases() {
		for _, e := range Events() {
			ruled := slices.ContainsFunc(Rules(), func(r Rule) bool { return r.From == p && r.On == e })
			if ruled == slices.Contains(q[p], e) {
				t.Errorf("%s / %s: ruled %v, quiet %v", p, e, ruled, !ruled)
			}
		}
	}
}

func run(t *testing.T, s State, l Limits, events ...Happened) State {
	t.Helper()
	for _, h := range events {
		s, _, _, _ = Step(s, l, h)
	}
	return s
}

// M9, M16: the full circle, by itself.
func TestM9_AutomaticCircle(t *testing.T) {
	l := Limits{Mode: Automatic, Hold: time.Second, ReturnProbes: 2, AutoHandback: true}
	s := State{Phase: Seeding}
	for _, c := range []struct {
		e    Event
		want Phase
	}{
		{Failed, Seeding}, {Seeded, Protecting}, {Failed, Holding}, {Healthy, Protecting}, {Failed, Holding},
		{HoldOver, Fencing}, {Fenced, Replaying}, {Replayed, Serving}, {Regained, Serving}, {Healthy,
			Serving}, {Failed, Serving},
		{Healthy, Serving}, {Healthy, Returning}, {Healthy, CopyingBack}, {Broken, Serving}, {Regained,
			Serving}, {Handback, CopyingBack},
		{CopiedBack, HandingBack}, {HandedBack, Protecting},
	} {
		s = run(t, s, l, Happened{Event: c.e, At: start})
		if s.Phase != c.want {
			t.Fatalf("after %q: %s, want %s", c.e, s.Phase, c.want)
		}
	}
	if s.Epoch != 2 {
		t.Errorf("epoch %d after a takeover and a hand-back, want 2", s.Epoch)
	}
}

// T16: after a takeover automatic only asks, until acknowledged or cooled down.
func TestT16_NoFlapping(t *testing.T) {
	l := Limits{Mode: Automatic, Hold: time.Second, Cooldown: time.Hour}
	s := State{Phase: Protecting, Last: start}
	down := []Happened{{Event: Failed, At: start.Add(time.Minute)}, {Event: HoldOver, At: start.Add(2 * time.Minute)}}
	if got := run(t, s, l, down...); got.Phase != Holding || !got.Asked {
		t.Errorf("within the cooldown: %s", got.Phase)
	}
	acked := run(t, s, l, append([]Happened{{Event: Acknowledge, At: start}}, down...)...)
	if acked.Phase != Fencing {
		t.Errorf("acknowledged: %s", acked.Phase)
	}
}

// A hold lasts longer while production is silent than when it refuses.
func TestHoldBySort(t *testing.T) {
	l := Limits{Mode: Automatic, Hold: time.Second, HoldSilent: time.Minute}
	s := run(t, State{Phase: Protecting}, l, Happened{Event: Failed, At: start, Silent: true})
	if got := s.Until.Sub(start); got != time.Minute {
		t.Errorf("hold of a silent server: %s", got)
	}
}

// Modes: advise does nothing, confirm waits for the word.
func TestModes(t *testing.T) {
	down := []Happened{{Event: Failed, At: start}, {Event: HoldOver, At: start}}
	if s := run(t, State{Phase: Protecting}, Limits{Mode: Advise}, down...); s.Phase != Protecting {
		t.Errorf("advise: %s", s.Phase)
	}
	s := run(t, State{Phase: Protecting}, Limits{Mode: Confirm}, down...)
	if s.Phase != Holding || !s.Asked {
		t.Errorf("confirm: %s", s.Phase)
	}
	if s = run(t, s, Limits{Mode: Confirm}, Happened{Event: Takeover, At: start}); s.Phase != Fencing {
		t.Errorf("confirmed: %s", s.Phase)
	}
}
