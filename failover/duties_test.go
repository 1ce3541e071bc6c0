package failover

import (
	"slices"
	"strings"
	"testing"
)

// Every phase with its duties, and with what changes them.
func TestDuties(t *testing.T) {
	const mixedWords = "the standby for some accounts, production for the others"
	const noTake, noBack = "a takeover makes no sense while ", "a hand-back makes no sense while "
	for _, c := range []struct {
		s    State
		want Duties
	}{
		{State{Phase: Seeding},
			Duties{Accounts: Production, SMTP: Production, Follow: Believed, Answering: "production",
				NoHandback: noBack}},
		{State{Phase: Protecting},
			Duties{Accounts: Production, SMTP: Production, Complete: true, Follow: Believed, GiveBack: GiveAll,
				Outbound:  true,
				Answering: "production", NoHandback: noBack}},
		{State{Phase: Holding},
			Duties{Accounts: Nobody, SMTP: Nobody, Complete: true, Follow: Mirrored, Deep: true, Moving: true,
				Answering: "nobody: sessions wait", NoHandback: noBack}},
		{State{Phase: Holding, Asked: true},
			Duties{Accounts: Nobody, SMTP: Nobody, Complete: true, Follow: Mirrored, Deep: true,
				Answering: "nobody: sessions wait", NoHandback: noBack}},
		{State{Phase: Fencing},
			Duties{Accounts: Nobody, SMTP: Nobody, Fenced: true, Complete: true, Follow: Mirrored, Deep: true,
				Moving:    true,
				Answering: "nobody: sessions wait", NoTakeover: noTake, NoHandback: noBack}},
		{State{Phase: Fencing, Planned: true, Sweeping: true},
			Duties{Accounts: Production, SMTP: Production, Fenced: true, Complete: true,
				Follow: Mirrored, Deep: true, Moving: true,
				Answering: "production", NoTakeover: noTake, NoHandback: noBack}},
		{State{Phase: Fencing, Planned: true},
			Duties{Accounts: Nobody, SMTP: Nobody, Fenced: true, Complete: true, Follow: Mirrored, Deep: true,
				Moving: true, Answering: "nobody: sessions wait", NoTakeover: noTake, NoHandback: noBack}},
		{State{Phase: Replaying},
			Duties{Accounts: Nobody, SMTP: Nobody, Fenced: true, Complete: true, Deep: true, Moving: true,
				Answering: "nobody: sessions wait", NoTakeover: noTake, NoHandback: noBack}},
		{State{Phase: Serving},
			Duties{Accounts: Standby, SMTP: Standby, Fenced: true, Complete: true, Deliver: true, Deep: true,
				Answering: "standby", NoTakeover: noTake}},
		{State{Phase: Serving, Regaining: true},
			Duties{Accounts: Standby, SMTP: Standby, Fenced: true, Complete: true, Deliver: true, Deep: true,
				Answering: "standby", NoTakeover: noTake}},
		{State{Phase: Returning},
			Duties{Accounts: Standby, SMTP: Standby, Fenced: true, Complete: true, Deliver: true,
				GiveBack: GiveReturned,
				Deep:     true, Answering: "standby", NoTakeover: noTake}},
		{State{Phase: Returning, Mixed: true},
			Duties{Accounts: EachHome, SMTP: Standby, Fenced: true, Complete: true, Follow: Mirrored, Deliver: true,
				GiveBack: GiveReturned, Deep: true, Answering: mixedWords, NoTakeover: noTake}},
		{State{Phase: CopyingBack},
			Duties{Accounts: EachHome, SMTP: Standby, Fenced: true, Complete: true, Deliver: true,
				GiveBack: GiveReturned,
				Deep:     true, Moving: true,
				Answering: "standby", NoTakeover: noTake, NoHandback: noBack}},
		{State{Phase: CopyingBack, Regaining: true},
			Duties{Accounts: Standby, SMTP: Standby, Fenced: true, Complete: true, Deliver: true,
				GiveBack: GiveReturned, Deep: true, Moving: true,
				Answering: "standby", NoTakeover: noTake, NoHandback: noBack}},
		{State{Phase: CopyingBack, Mixed: true},
			Duties{Accounts: EachHome, SMTP: Standby, Fenced: true, Complete: true, Follow: Mirrored, Deliver: true,
				GiveBack: GiveReturned, Deep: true, Moving: true, Answering: mixedWords,
				NoTakeover: noTake, NoHandback: noBack}},
		{State{Phase: HandingBack},
			Duties{Accounts: EachHome, SMTP: Standby, Fenced: true, Complete: true, GiveBack: GiveReturned, Deep: true,
				Moving:    true,
				Answering: "nobody: sessions wait", NoTakeover: noTake, NoHandback: noBack}},
		{State{Phase: HandingBack, Mixed: true},
			Duties{Accounts: EachHome, SMTP: Standby, Fenced: true, Complete: true, Follow: Mirrored,
				GiveBack: GiveReturned, Deep: true, Moving: true, Answering: mixedWords,
				NoTakeover: noTake, NoHandback: noBack}},
	} {
		for _, why := range []*string{&c.want.NoTakeover, &c.want.NoHandback} {
			if *why != "" {
				*why += string(c.s.Phase)
			}
		}
		if got := c.s.Duties(); got != c.want {
			t.Errorf("%+v:\n got %+v\nwant %+v", c.s, got, c.want)
		}
	}
	if d := (State{Phase: "of a later version"}).Duties(); d.Accounts != Nobody || d.SMTP != Nobody || !d.Fenced ||
		d.NoTakeover == "" {
		t.Errorf("an unknown phase: %+v", d)
	}
}

// states are all states that differ in what duties look at.
func states() []State {
	var out []State
	for _, p := range Phases() {
		for n := range 32 {
			out = append(out,
				State{Phase: p, Asked: n&1 > 0, Planned: n&2 > 0, Sweeping: n&4 > 0, Mixed: n&8 > 0,
					Regaining: n&16 > 0})
		}
	}
	return out
}

// What an order may be given for, the table has a rule for, and nothing else.
func TestOrdersAreTaken(t *testing.T) {
	for _, s := range states() {
		for e, no := range map[Event]string{Takeover: s.Duties().NoTakeover, Handback: s.Duties().NoHandback} {
			if _, _, _, ok := Step(s, Limits{}, Happened{Event: e, At: start}); ok != (no == "") {
				t.Errorf("%+v: %s is taken: %v, but %q", s, e, ok, no)
			}
		}
	}
}

// M15: accounts do not come to answer with the standby by a rule that does not
// have the fence raised first, and production does not answer for all while it is
// fenced but to be read.
func TestM15_NobodyBetween(t *testing.T) {
	for _, s := range states() {
		if d := s.Duties(); d.Accounts == Production && d.Fenced && !s.Sweeping {
			t.Errorf("%+v: production answers, fenced", s)
		}
		for _, e := range Events() {
			next, do, _, ok := Step(s, Limits{Mode: Automatic, AutoHandback: true}, Happened{Event: e, At: start})
			was, now := s.Duties(), next.Duties()
			if ok && was.Accounts != Standby && was.Accounts != EachHome && now.Accounts == Standby &&
				(s.Phase != Replaying || e != Replayed) {
				t.Errorf("%+v, %s: the standby answers at once", s, e)
			}
			if ok && !was.Fenced && now.Fenced && !slices.Contains(do, RaiseFence) && !slices.Contains(do, Sweep) {
				t.Errorf("%+v, %s: fenced by nothing: %q", s, e, do)
			}
			if ok && was.Fenced && !now.Fenced && !slices.Contains(do, LowerFence) {
				t.Errorf("%+v, %s: the fence stays: %q", s, e, do)
			}
			// Follow begins it; what precedes Replay, and Regain, end it.
			if ok && was.Follow == Unfollowed && now.Follow > Unfollowed && !slices.Contains(do, Follow) {
				t.Errorf("%+v, %s: followed by nothing: %q", s, e, do)
			}
			if ok && was.Follow > Unfollowed && now.Follow == Unfollowed &&
				!slices.ContainsFunc(do, func(a Action) bool {
					return a == Replay || a == Regain || a == FenceAgain
				}) {
				t.Errorf("%+v, %s: still followed: %q", s, e, do)
			}
		}
	}
}

// Every action has an end that is an event, and every end has a rule wherever
// the action can be under way.
func TestEveryActionEnds(t *testing.T) {
	ends := map[Action][]Event{
		Sweep: {Swept, Broken}, RaiseFence: {Fenced, Broken}, FenceAgain: {Fenced, NotFenced}, Replay: {Replayed,
			Broken}, Regain: {Regained, NotRegained},
		CopyBack: {CopiedBack, Broken}, HandBack: {HandedBack, HandedSome, Broken}, LowerFence: {Lowered, NotLowered},
	}
	for _, r := range Rules() {
		for _, a := range r.Do {
			for _, e := range ends[a] {
				if !slices.ContainsFunc(Rules(), func(end Rule) bool { return end.From == r.To && end.On == e }) {
					t.Errorf("%s / %s begins to %s, and nothing is done when: %s", r.From, r.On, a, e)
				}
			}
		}
		long := slices.DeleteFunc(slices.Clone(r.Do), func(a Action) bool { return ends[a] == nil })
		if len(long) > 1 {
			t.Errorf("%s / %s: %q at once", r.From, r.On, long)
		}
	}
}

// What did not work and is tried again is said, until it works.
func TestStuckIsSaid(t *testing.T) {
	for _, p := range []Phase{Serving, Returning, CopyingBack} {
		s := run(t, State{Phase: p}, Limits{}, Happened{Event: Resumed, At: start})
		s, do, why, _ := Step(s, Limits{}, Happened{Event: NotFenced, At: start, Detail: "no power"})
		if s.Stuck == "" || !strings.Contains(why, "no power") || !slices.Equal(do, []Action{FenceAgain}) ||
			!s.Regaining {
			t.Errorf("%s: %+v, %q, %q", p, s, do, why)
		}
		s = run(t, s, Limits{}, Happened{Event: Fenced, At: start}, Happened{Event: Regained, At: start})
		if s.Stuck != "" || s.Regaining {
			t.Errorf("%s: %+v", p, s)
		}
	}
}

// An order to hand back that comes while accounts still come to the standby is
// kept, and nothing is copied before.
func TestHandbackWhileRegaining(t *testing.T) {
	s := State{Phase: Serving, Regaining: true}
	s, do, _, _ := Step(s, Limits{}, Happened{Event: Handback, At: start, Accounts: []string{"a"}})
	if s.Phase != CopyingBack || len(do) > 0 {
		t.Errorf("%s, %q", s.Phase, do)
	}
	s, do, _, _ = Step(s, Limits{}, Happened{Event: Regained, At: start})
	if !slices.Equal(do, []Action{CopyBack}) || s.Only[0] != "a" || s.Regaining {
		t.Errorf("%+v, %q", s, do)
	}
}
