// Package failover decides which side answers. It is a pure function over a
// table of rules: Step(state, limits, event) gives the next state, the actions
// to take, and why; time is data of the event. Every pair of phase and event
// is a rule or is listed as quiet; a test holds that, and the diagram in the
// documentation is drawn from the table.
package failover

import (
	"fmt"
	"slices"
	"strings"
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
	Failed      Event = "production failed"   // a probe or real traffic
	Healthy     Event = "production healthy"  // a full probe
	HoldOver    Event = "hold is over"        // its time, see State.Until
	Takeover    Event = "takeover ordered"    // by the admin
	Fenced      Event = "fence is up"         //
	Replayed    Event = "replay done"         //
	Broken      Event = "step failed"         // fence, sweep or copy-back
	Handback    Event = "hand-back ordered"   // by the admin
	CopiedBack  Event = "copy-back done"      // no backlog but what still arrives
	HandedBack  Event = "hand-back done"      // of the last account
	HandedSome  Event = "hand-back of some"   // of those that were ordered; others are with the standby
	Acknowledge Event = "acknowledged"        // the last takeover, by the admin
	Resumed     Event = "appliance restarted" //
)

// Events lists all events.
func Events() []Event {
	return []Event{Seeded, Failed, Healthy, HoldOver, Takeover, Fenced, Replayed, Broken, Handback, CopiedBack, HandedBack, HandedSome, Acknowledge, Resumed}
}

// Action is what the keeper has to do after it saved the state.
type Action string

// The actions.
const (
	HoldSessions   Action = "hold sessions"
	ReleaseHold    Action = "release sessions"
	RaiseFence     Action = "raise fence"
	Replay         Action = "replay"
	Serve          Action = "serve"
	CopyBack       Action = "copy back"
	HandBack       Action = "hand back"
	LowerFence     Action = "lower fence"
	Follow         Action = "follow production" // for the accounts that are with it
	AskForTakeover Action = "ask for takeover"
)

// State is what is kept across restarts.
type State struct {
	Phase   Phase
	Epoch   uint64 // grows with every takeover and hand-back; old writes are refused
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

// Rule is one row of the table.
type Rule struct {
	From   Phase
	On     Event
	If     string // names the condition
	Cond   func(State, Limits, Happened) bool
	To     Phase
	Do     []Action
	Why    string
	Change func(*State, Limits, Happened)
}

func mayTakeOver(s State, l Limits, h Happened) bool {
	return l.Mode == Automatic && (s.Acked || l.Cooldown == 0 || s.Last.IsZero() || h.At.Sub(s.Last) > l.Cooldown)
}

func mustAsk(s State, l Limits, h Happened) bool { return !mayTakeOver(s, l, h) && !s.Asked }

func hold(s *State, l Limits, h Happened) {
	d := l.Hold
	if h.Silent {
		d = l.HoldSilent
	}
	s.Until, s.Asked = h.At.Add(d), false
}

func raise(s *State, _ Limits, h Happened) {
	s.Epoch++
	s.Planned, s.Acked, s.Last, s.Good = false, false, h.At, 0
}

func plan(s *State, l Limits, h Happened) { raise(s, l, h); s.Planned = true }

func good(s *State, _ Limits, _ Happened) { s.Good++ }

func notGood(s *State, _ Limits, _ Happened) { s.Good = 0 }

func back(s *State, _ Limits, h Happened) {
	s.Epoch++
	s.Last, s.Only, s.Mixed = h.At, nil, false
}

func order(s *State, _ Limits, h Happened) { s.Only = h.Accounts }

func some(s *State, _ Limits, _ Happened) { s.Only, s.Mixed = nil, true }

// reclaim: the standby answers for all accounts again.
func reclaim(s *State, _ Limits, _ Happened) { s.Good, s.Only, s.Mixed = 0, nil, false }

func whole(s *State, _ Limits, _ Happened) { s.Mixed = false }

func mixed(s State, _ Limits, _ Happened) bool { return s.Mixed }

func enough(s State, l Limits, _ Happened) bool { return s.Good+1 >= l.ReturnProbes }

// autoBack: one that was begun by order is also ended by order.
func autoBack(s State, l Limits, _ Happened) bool { return l.AutoHandback && !s.Mixed }

// Rules is the table. The first rule that matches wins.
func Rules() []Rule {
	return []Rule{
		{From: Seeding, On: Seeded, To: Protecting, Why: "the replica holds every mailbox"},
		{From: Seeding, On: Takeover, To: Fencing, Do: []Action{HoldSessions, RaiseFence}, Change: raise, Why: "takeover ordered with an incomplete replica"},

		{From: Protecting, On: Failed, If: "mode is advise", Cond: func(_ State, l Limits, _ Happened) bool { return l.Mode == Advise }, To: Protecting, Do: []Action{AskForTakeover}, Why: "production failed; the mode is advise"},
		{From: Protecting, On: Failed, To: Holding, Do: []Action{HoldSessions}, Change: hold, Why: "production failed; sessions are held"},
		{From: Protecting, On: Takeover, To: Fencing, Do: []Action{HoldSessions, RaiseFence}, Change: plan, Why: "planned takeover"},
		{From: Protecting, On: Acknowledge, To: Protecting, Change: func(s *State, _ Limits, _ Happened) { s.Acked = true }, Why: "the last takeover is acknowledged"},

		{From: Holding, On: Healthy, To: Protecting, Do: []Action{ReleaseHold}, Why: "production answers again; no incident"},
		{From: Holding, On: HoldOver, If: "takeover may be automatic", Cond: mayTakeOver, To: Fencing, Do: []Action{RaiseFence}, Change: raise, Why: "production stayed away for the whole hold"},
		{From: Holding, On: HoldOver, If: "the admin must confirm", Cond: mustAsk, To: Holding, Do: []Action{AskForTakeover}, Change: func(s *State, _ Limits, _ Happened) { s.Asked = true }, Why: "production stayed away; waiting for the word"},
		{From: Holding, On: Takeover, To: Fencing, Do: []Action{RaiseFence}, Change: raise, Why: "takeover confirmed"},
		{From: Holding, On: Resumed, To: Holding, Do: []Action{HoldSessions}, Why: "restarted while holding"},

		{From: Fencing, On: Fenced, To: Replaying, Do: []Action{Replay}, Why: "production is fenced"},
		{From: Fencing, On: Broken, If: "planned", Cond: func(s State, _ Limits, _ Happened) bool { return s.Planned }, To: Protecting, Do: []Action{LowerFence, ReleaseHold}, Change: back, Why: "the planned takeover could not be completed; production goes on"},
		{From: Fencing, On: Broken, To: Holding, Do: []Action{LowerFence, AskForTakeover}, Change: func(s *State, _ Limits, _ Happened) { s.Asked = true }, Why: "the fence could not be raised"},
		{From: Fencing, On: Resumed, To: Fencing, Do: []Action{HoldSessions, RaiseFence}, Why: "restarted while fencing"},

		{From: Replaying, On: Replayed, To: Serving, Do: []Action{Serve, ReleaseHold}, Why: "the standby answers"},
		{From: Replaying, On: Broken, To: Replaying, Do: []Action{Replay}, Why: "replay failed and is tried again"},
		{From: Replaying, On: Resumed, To: Replaying, Do: []Action{HoldSessions, RaiseFence, Replay}, Why: "restarted while replaying"},

		{From: Serving, On: Healthy, If: "often enough", Cond: enough, To: Returning, Change: good, Why: "production answers and is capable"},
		{From: Serving, On: Healthy, To: Serving, Change: good, Why: "production answers"},
		{From: Serving, On: Failed, To: Serving, Change: notGood, Why: "production is still away"},
		{From: Serving, On: Handback, To: CopyingBack, Do: []Action{CopyBack}, Change: order, Why: "hand-back ordered"},
		{From: Serving, On: Resumed, To: Serving, Do: []Action{RaiseFence, Serve}, Why: "restarted while serving"},

		{From: Returning, On: Handback, To: CopyingBack, Do: []Action{CopyBack}, Change: order, Why: "hand-back ordered"},
		{From: Returning, On: Healthy, If: "hand-back is automatic", Cond: autoBack, To: CopyingBack, Do: []Action{CopyBack}, Why: "production is back for good"},
		{From: Returning, On: Failed, If: "some accounts are with production", Cond: mixed, To: Serving, Do: []Action{Serve}, Change: reclaim, Why: "production went away again; the standby answers for all accounts"},
		{From: Returning, On: Failed, To: Serving, Change: notGood, Why: "production went away again"},
		{From: Returning, On: Resumed, To: Returning, Do: []Action{RaiseFence, Serve}, Change: whole, Why: "restarted while production was returning"},

		{From: CopyingBack, On: CopiedBack, To: HandingBack, Do: []Action{HandBack}, Why: "production holds all but what still arrives"},
		{From: CopyingBack, On: Broken, To: Serving, Do: []Action{Serve}, Change: reclaim, Why: "copy-back was interrupted; the standby goes on"},
		{From: CopyingBack, On: Failed, If: "some accounts are with production", Cond: mixed, To: Serving, Do: []Action{Serve}, Change: reclaim, Why: "production went away again; the standby answers for all accounts"},
		{From: CopyingBack, On: Resumed, To: CopyingBack, Do: []Action{RaiseFence, Serve, CopyBack}, Change: whole, Why: "restarted while copying back"},

		{From: HandingBack, On: HandedBack, To: Protecting, Do: []Action{LowerFence, ReleaseHold}, Change: back, Why: "production answers for every account"},
		{From: HandingBack, On: HandedSome, To: Returning, Do: []Action{Follow}, Change: some, Why: "production answers for the accounts that were ordered"},
		{From: HandingBack, On: Broken, To: CopyingBack, Do: []Action{CopyBack}, Why: "hand-back was interrupted and begins again"},
		{From: HandingBack, On: Resumed, To: CopyingBack, Do: []Action{RaiseFence, Serve, CopyBack}, Change: whole, Why: "restarted while handing back"},
	}
}

// quiet lists, by phase, the events that change nothing there.
func quiet() map[Phase][]Event {
	always := []Event{Seeded, Acknowledge, HandedSome}
	q := map[Phase][]Event{
		Seeding:     {Failed, Healthy, HoldOver, Fenced, Replayed, Broken, Handback, CopiedBack, HandedBack, Acknowledge, Resumed},
		Protecting:  {Healthy, HoldOver, Fenced, Replayed, Broken, Handback, CopiedBack, HandedBack, Resumed},
		Holding:     {Failed, Fenced, Replayed, Broken, Handback, CopiedBack, HandedBack},
		Fencing:     {Failed, Healthy, HoldOver, Takeover, Replayed, Handback, CopiedBack, HandedBack},
		Replaying:   {Failed, Healthy, HoldOver, Takeover, Fenced, Handback, CopiedBack, HandedBack},
		Serving:     {HoldOver, Takeover, Fenced, Replayed, Broken, CopiedBack, HandedBack},
		Returning:   {HoldOver, Takeover, Fenced, Replayed, Broken, CopiedBack, HandedBack},
		CopyingBack: {Healthy, HoldOver, Takeover, Fenced, Replayed, Handback, HandedBack},
		HandingBack: {Failed, Healthy, HoldOver, Takeover, Fenced, Replayed, Handback, CopiedBack},
	}
	for p := range q {
		for _, e := range always {
			if !slices.Contains(q[p], e) && !(p == Protecting && e == Acknowledge) && !(p == Seeding && e == Seeded) && !(p == HandingBack && e == HandedSome) {
				q[p] = append(q[p], e)
			}
		}
	}
	return q
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
		next.Phase, next.Why = r.To, r.Why
		if h.Detail != "" {
			next.Why += ": " + h.Detail
		}
		return next, r.Do, next.Why, true
	}
	return s, nil, "", false
}

// Diagram draws the table as a Mermaid state diagram.
func Diagram() string {
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n")
	id := func(p Phase) string { return strings.ReplaceAll(string(p), " ", "_") }
	fmt.Fprintf(&b, "    [*] --> %s\n", id(Seeding))
	for _, r := range Rules() {
		if r.From == r.To {
			continue
		}
		label := string(r.On)
		if r.If != "" {
			label += " [" + r.If + "]"
		}
		fmt.Fprintf(&b, "    %s --> %s: %s\n", id(r.From), id(r.To), label)
	}
	return b.String()
}
