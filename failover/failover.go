// Package failover decides which side answers. It is a pure function over a
// table of rules: Step(state, limits, event) gives the next state, the actions
// to take, and why; time is data of the event. Every pair of phase and event
// is a rule or is listed as quiet; a test holds that, and the diagram in the
// documentation is drawn from the table. What a state means for everybody else,
// who answers whom and what is done meanwhile, is said once, by State.Duties.
//
// Implementation notes. Every action ends in an event, with success or without,
// and for each of these there is a rule. The fence is raised before an account is
// given to the standby: in Fencing at a takeover, and after a restart while
// Regaining, where the accounts that the standby had are answered at once, and
// those that production had wait.
package failover

import (
	"time"
)

// Phase is where the failover stands.
type Phase string

// The phases, in the order of a full circle.
const (
	Seeding     Phase = "seeding"
	Protecting  Phase = "protecting"
	Holding     Phase = "holding"
	Fencing     Phase = "fencing"
	Replaying   Phase = "replaying"
	Serving     Phase = "serving"
	Returning   Phase = "returning"
	CopyingBack Phase = "copying back"
	HandingBack Phase = "handing back"
)

// Phases lists all phases.
func Phases() []Phase {
	return []Phase{Seeding, Protecting, Holding, Fencing, Replaying, Serving, Returning, CopyingBack, HandingBack}
}

// Mode says who decides a takeover.
type Mode string

// The modes.
const (
	Advise    Mode = "advise"    // say so, do nothing
	Confirm   Mode = "confirm"   // hold sessions and ask
	Automatic Mode = "automatic" // take over
)

// Event is what happened.
type Event string

// The events.
const (
	Seeded      Event = "replica complete"
	Failed      Event = "production failed"  // a probe or real traffic
	Healthy     Event = "production healthy" // a full probe
	HoldOver    Event = "hold is over"       // its time, see State.Until
	Takeover    Event = "takeover ordered"   // by the admin
	Swept       Event = "production read"    // before a planned takeover
	Fenced      Event = "fence is up"        //
	NotFenced   Event = "fence not up again" // after a restart
	Replayed    Event = "replay done"        //
	Regained    Event = "accounts regained"  // the standby answers for every account
	NotRegained Event = "accounts not regained"
	Lowered     Event = "fence is down"       //
	NotLowered  Event = "fence not down"      //
	Broken      Event = "step failed"         // sweep, fence of a takeover, replay, copy-back or hand-back
	Handback    Event = "hand-back ordered"   // by the admin
	CopiedBack  Event = "copy-back done"      // no backlog but what still arrives
	HandedBack  Event = "hand-back done"      // of the last account
	HandedSome  Event = "hand-back of some"   // of those that were ordered; others are with the standby
	Acknowledge Event = "acknowledged"        // the last takeover, by the admin
	Resumed     Event = "appliance restarted" //
)

// Events lists all events.
func Events() []Event {
	return []Event{Seeded, Failed, Healthy, HoldOver, Takeover, Swept, Fenced, NotFenced, Replayed, Regained,
		NotRegained,
		Lowered, NotLowered, Broken, Handback, CopiedBack, HandedBack, HandedSome, Acknowledge, Resumed}
}

// Action is what the keeper has to do after it saved the state. Its end is an
// event.
type Action string

// The actions.
const (
	Sweep          Action = "read production"       // which goes on; Swept or Broken
	RaiseFence     Action = "raise the fence"       // ends production's sessions before; Fenced or Broken
	FenceAgain     Action = "raise the fence again" // after a restart; Fenced or NotFenced
	Replay         Action = "replay"                // Replayed or Broken
	Regain         Action = "regain accounts"       // all to the standby; Regained or NotRegained
	CopyBack       Action = "copy back"             // CopiedBack or Broken
	HandBack       Action = "hand back"             // HandedBack, HandedSome or Broken
	LowerFence     Action = "lower the fence"       // Lowered or NotLowered
	Follow         Action = "follow production"     // for the accounts that are with it; at once
	AskForTakeover Action = "ask for takeover"      // at once
)

// State is what is kept across restarts.
type State struct {
	Phase Phase
	// grows with every takeover and hand-back; it is saved with it, and writers of an older one are refused
	Epoch   uint64
	Since   time.Time
	Until   time.Time // Holding: end of the hold
	Why     string
	Planned bool // the takeover was ordered while production lived
	Asked   bool // Holding: a takeover is due and waits for the admin
	Good    int  // healthy probes in a row, after a takeover
	Last    time.Time
	Acked   bool // the last takeover was acknowledged
	// Only are the accounts that a hand-back is ordered for; nil: all. Mixed: some
	// accounts are with production already, the others with the standby.
	Only  []string
	Mixed bool
	// Sweeping: a planned takeover has begun, and production still answers.
	Sweeping bool
	// Regaining: the fence is raised again or accounts come to the standby; a
	// copy-back begins when that is done.
	Regaining bool
	// Stuck is what could not be done and is tried again, for people.
	Stuck string
}

// New is the state before anything is known.
func New(now time.Time) State { return State{Phase: Seeding, Since: now} }

// Due is when HoldOver happens, if it is to.
func (s State) Due() (at time.Time, ok bool) { return s.Until, s.Phase == Holding && !s.Asked }

// Lasting reports whether s differs from old in what has to be saved before
// anything is done. The rest a restart finds out again.
func (s State) Lasting(old State) bool {
	return s.Phase != old.Phase || s.Epoch != old.Epoch || s.Asked != old.Asked || s.Acked != old.Acked ||
		s.Sweeping != old.Sweeping
}

// Limits are the settings that rules look at.
type Limits struct {
	Mode         Mode
	Hold         time.Duration // when production's ports refuse
	HoldSilent   time.Duration // when it is silent
	ReturnProbes int           // healthy probes before production counts as returned
	AutoHandback bool
	Cooldown     time.Duration // after a hand-back automatic only asks, until acknowledged
}

// Happened is an event with its data.
type Happened struct {
	Event  Event
	At     time.Time
	Detail string // named cause
	Silent bool   // Failed: no answer, in place of a refusal
	// Accounts of a hand-back; nil: all.
	Accounts []string
}

// Step takes one event. ok is false if it changes nothing.
func Step(s State, l Limits, h Happened) (next State, do []Action, why string, ok bool) {
	for _, r := range Rules() {
		if r.From != s.Phase || r.On != h.Event || r.Cond != nil && !r.Cond(s, l, h) {
			continue
		}
		next = s
		if r.Change != nil {
			r.Change(&next, l, h)
		}
		if r.To != s.Phase {
			next.Since = h.At
		}
		next.Phase = r.To
		if r.Why == "" {
			return next, r.Do, next.Why, true
		}
		next.Why = r.Why
		if h.Detail != "" {
			next.Why += ": " + h.Detail
		}
		return next, r.Do, next.Why, true
	}
	return s, nil, "", false
}
