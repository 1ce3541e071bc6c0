package failover

import "slices"

// Rule is one row of the table.
type Rule struct {
	From   Phase
	On     Event
	If     string // names the condition
	Cond   func(State, Limits, Happened) bool
	To     Phase
	Do     []Action
	Why    string // "": what is going on goes on
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

// holdAgain: production is asked again after a restart, before the hold that ran on
// meanwhile is over.
func holdAgain(s *State, l Limits, h Happened) {
	if again := h.At.Add(l.Hold); s.Until.Before(again) {
		s.Until = again
	}
}

func raise(s *State, _ Limits, h Happened) {
	s.Epoch++
	s.Planned, s.Acked, s.Last, s.Good, s.Stuck = false, false, h.At, 0, ""
}

func plan(s *State, l Limits, h Happened) { raise(s, l, h); s.Planned, s.Sweeping = true, true }

func planned(s State, _ Limits, _ Happened) bool { return s.Planned }

func sweep(s *State, _ Limits, _ Happened) { s.Sweeping = true }

func swept(s *State, _ Limits, _ Happened) { s.Sweeping = false }

func ask(s *State, _ Limits, _ Happened) { s.Asked = true }

func acknowledge(s *State, _ Limits, _ Happened) { s.Acked = true }

func good(s *State, _ Limits, _ Happened) { s.Good++ }

func notGood(s *State, _ Limits, _ Happened) { s.Good = 0 }

// back: production answers for everybody, in a new epoch.
func back(s *State, _ Limits, h Happened) {
	s.Epoch++
	s.Last, s.Only, s.Mixed, s.Sweeping, s.Stuck = h.At, nil, false, false, ""
}

func order(s *State, _ Limits, h Happened) { s.Only = h.Accounts }

func some(s *State, _ Limits, _ Happened) { s.Only, s.Mixed = nil, true }

// regain: the standby is to answer for all accounts.
func regain(s *State, _ Limits, _ Happened) { s.Regaining, s.Mixed = true, false }

// standbyAgain is regain after an end of the hand-back.
func standbyAgain(s *State, l Limits, h Happened) { regain(s, l, h); s.Good, s.Only = 0, nil }

func regained(s *State, _ Limits, _ Happened) { s.Regaining, s.Stuck = false, "" }

func regaining(s State, _ Limits, _ Happened) bool { return s.Regaining }

// stuck: it is tried again, and people are told.
func stuck(s *State, _ Limits, h Happened) { s.Stuck = h.Detail }

func wasStuck(s State, _ Limits, _ Happened) bool { return s.Stuck != "" }

func free(s *State, _ Limits, _ Happened) { s.Stuck = "" }

func mixed(s State, _ Limits, _ Happened) bool { return s.Mixed }

func enough(s State, l Limits, _ Happened) bool { return s.Good+1 >= l.ReturnProbes }

// autoBack: one that was begun by order is also ended by order.
func autoBack(s State, l Limits, _ Happened) bool { return l.AutoHandback && !s.Mixed && !s.Regaining }

// Rules is the table. The first rule that matches wins.
func Rules() []Rule {
	return slices.Concat(before(), takeover(), outage(), regains(), handback(), lowering())
}

// before: production answers, or is given time.
func before() []Rule {
	advised := func(_ State, l Limits, _ Happened) bool { return l.Mode == Advise }
	return []Rule{
		{From: Seeding, On: Seeded, To: Protecting, Why: "the replica holds every mailbox"},
		{From: Seeding, On: Takeover, To: Fencing, Do: []Action{RaiseFence}, Change: raise,
			Why: "takeover ordered with an incomplete replica"},

		{From: Protecting, On: Failed, If: "mode is advise", Cond: advised, To: Protecting,
			Do:  []Action{AskForTakeover},
			Why: "production failed; the mode is advise"},
		{From: Protecting, On: Failed, To: Holding, Change: hold, Why: "production failed; sessions are held"},
		{From: Protecting, On: Takeover, To: Fencing, Do: []Action{Sweep}, Change: plan, Why: "planned takeover"},
		{From: Protecting, On: Acknowledge, To: Protecting, Change: acknowledge,
			Why: "the last takeover is acknowledged"},

		{From: Holding, On: Healthy, To: Protecting, Why: "production answers again; no incident"},
		{From: Holding, On: HoldOver, If: "takeover may be automatic", Cond: mayTakeOver, To: Fencing,
			Do: []Action{RaiseFence}, Change: raise,
			Why: "production stayed away for the whole hold"},
		{From: Holding, On: HoldOver, If: "the admin must confirm", Cond: mustAsk, To: Holding,
			Do: []Action{AskForTakeover}, Change: ask,
			Why: "production stayed away; waiting for the word"},
		{From: Holding, On: Takeover, To: Fencing, Do: []Action{RaiseFence}, Change: raise, Why: "takeover confirmed"},
		{From: Holding, On: Resumed, If: "the fence may be up", Cond: wasStuck, To: Holding, Do: []Action{LowerFence},
			Change: holdAgain, Why: "restarted while holding"},
		{From: Holding, On: Resumed, To: Holding, Change: holdAgain, Why: "restarted while holding"},
		{From: Protecting, On: Resumed, If: "the fence may be up", Cond: wasStuck, To: Protecting,
			Do: []Action{LowerFence}, Why: "restarted with the fence up"},
	}
}

// takeover: from production to the standby.
func takeover() []Rule {
	return []Rule{
		{From: Fencing, On: Swept, To: Fencing, Do: []Action{RaiseFence}, Change: swept,
			Why: "planned takeover; sessions wait for the last of it"},
		{From: Fencing, On: Fenced, To: Replaying, Do: []Action{Replay}, Why: "production is fenced"},
		{From: Fencing, On: Broken, If: "planned", Cond: planned, To: Protecting, Do: []Action{Follow, LowerFence},
			Change: back,
			Why:    "the planned takeover could not be completed; production goes on"},
		{From: Fencing, On: Broken, To: Holding, Do: []Action{Follow, LowerFence, AskForTakeover}, Change: ask,
			Why: "the fence could not be raised"},
		{From: Fencing, On: Resumed, If: "planned", Cond: planned, To: Fencing, Do: []Action{Sweep}, Change: sweep,
			Why: "restarted while fencing"},
		{From: Fencing, On: Resumed, To: Fencing, Do: []Action{RaiseFence}, Why: "restarted while fencing"},

		{From: Replaying, On: Replayed, To: Serving, Do: []Action{Regain}, Change: regain, Why: "the standby answers"},
		{From: Replaying, On: Broken, To: Replaying, Do: []Action{Replay}, Change: stuck,
			Why: "replay failed and is tried again"},
		{From: Replaying, On: Resumed, To: Replaying, Do: []Action{FenceAgain}, Why: "restarted while replaying"},
		{From: Replaying, On: Fenced, To: Replaying, Do: []Action{Replay}, Change: free,
			Why: "production is fenced again"},
		{From: Replaying, On: NotFenced, To: Replaying, Do: []Action{FenceAgain}, Change: stuck, Why: notFenced},
	}
}

// outage: the standby answers.
func outage() []Rule {
	return []Rule{
		{From: Serving, On: Healthy, If: "often enough", Cond: enough, To: Returning, Change: good,
			Why: "production answers and is capable"},
		{From: Serving, On: Healthy, To: Serving, Change: good, Why: "production answers"},
		{From: Serving, On: Failed, To: Serving, Change: notGood, Why: "production is still away"},
		{From: Serving, On: Resumed, To: Serving, Do: []Action{FenceAgain}, Change: regain,
			Why: "restarted while serving"},

		{From: Returning, On: Healthy, If: "hand-back is automatic", Cond: autoBack, To: CopyingBack,
			Do:  []Action{CopyBack},
			Why: "production is back for good"},
		{From: Returning, On: Failed, If: "some accounts are with production", Cond: mixed, To: Serving,
			Do: []Action{Regain}, Change: standbyAgain,
			Why: "production went away again; the standby answers for all accounts"},
		{From: Returning, On: Failed, To: Serving, Change: notGood, Why: "production went away again"},
		{From: Returning, On: Resumed, To: Returning, Do: []Action{FenceAgain}, Change: regain,
			Why: "restarted while production was returning"},
	}
}

const (
	notFenced   = "the fence could not be raised again, and is tried again"
	notRegained = "accounts could not be given to the standby, and it is tried again"
	notLowered  = "the fence could not be lowered, and it is tried again"
)

// regains: the standby gets the accounts that production may have, with the
// fence up. An order to hand back waits for the end of it.
func regains() []Rule {
	var out []Rule
	for _, p := range []Phase{Serving, Returning, CopyingBack} {
		then := []Action(nil)
		if p == CopyingBack {
			then = []Action{CopyBack}
		} else {
			out = append(out,
				Rule{From: p, On: Handback, If: "accounts still come to the standby", Cond: regaining, To: CopyingBack,
					Change: order,
					Why:    "hand-back ordered; it begins when the standby has every account"},
				Rule{From: p, On: Handback, To: CopyingBack, Do: []Action{CopyBack}, Change: order,
					Why: "hand-back ordered"})
		}
		out = append(out,
			Rule{From: p, On: Fenced, To: p, Do: []Action{Regain}, Change: free, Why: "production is fenced again"},
			Rule{From: p, On: NotFenced, To: p, Do: []Action{FenceAgain}, Change: stuck, Why: notFenced},
			Rule{From: p, On: Regained, If: "at last", Cond: wasStuck, To: p, Do: then, Change: regained,
				Why: "the standby has every account"},
			Rule{From: p, On: Regained, To: p, Do: then, Change: regained},
			Rule{From: p, On: NotRegained, To: p, Do: []Action{Regain}, Change: stuck, Why: notRegained})
	}
	return out
}

// handback: from the standby to production.
func handback() []Rule {
	return []Rule{
		{From: CopyingBack, On: CopiedBack, To: HandingBack, Do: []Action{HandBack},
			Why: "production holds all but what still arrives"},
		{From: CopyingBack, On: Broken, To: Serving, Do: []Action{Regain}, Change: standbyAgain,
			Why: "copy-back was interrupted; the standby goes on"},
		{From: CopyingBack, On: Failed, If: "some accounts are with production", Cond: mixed, To: Serving,
			Do: []Action{Regain}, Change: standbyAgain,
			Why: "production went away again; the standby answers for all accounts"},
		{From: CopyingBack, On: Resumed, To: CopyingBack, Do: []Action{FenceAgain}, Change: regain,
			Why: "restarted while copying back"},

		{From: HandingBack, On: HandedBack, To: Protecting, Do: []Action{Follow, LowerFence}, Change: back,
			Why: "production answers for every account"},
		{From: HandingBack, On: HandedSome, To: Returning, Do: []Action{Follow}, Change: some,
			Why: "production answers for the accounts that were ordered"},
		{From: HandingBack, On: Broken, To: CopyingBack, Do: []Action{CopyBack},
			Why: "hand-back was interrupted and begins again"},
		{From: HandingBack, On: Resumed, To: CopyingBack, Do: []Action{FenceAgain}, Change: regain,
			Why: "restarted while handing back"},
	}
}

// lowering: the fence goes down while production answers already, or may again.
func lowering() []Rule {
	var out []Rule
	for _, p := range []Phase{Protecting, Holding} {
		out = append(out,
			Rule{From: p, On: Lowered, If: "at last", Cond: wasStuck, To: p, Change: free, Why: "the fence is down"},
			Rule{From: p, On: NotLowered, To: p, Do: []Action{LowerFence}, Change: stuck, Why: notLowered})
	}
	return out
}

// quiet lists, by phase, the events that change nothing there.
func quiet() map[Phase][]Event {
	// Ends of actions that a phase does not begin: the keeper drops those of
	// actions that were given up.
	takingOver := []Event{Swept, Replayed}
	givingBack := []Event{CopiedBack, HandedBack, HandedSome}
	fencing := []Event{Fenced, NotFenced}
	regains := []Event{Regained, NotRegained}
	lowers := []Event{Lowered, NotLowered}
	return map[Phase][]Event{
		Seeding: slices.Concat(takingOver, givingBack, fencing, regains, lowers,
			[]Event{Failed, Healthy, HoldOver, Broken, Handback, Acknowledge, Resumed}),
		Protecting: slices.Concat(takingOver, givingBack, fencing, regains,
			[]Event{Seeded, Healthy, HoldOver, Broken, Handback}),
		Holding: slices.Concat(takingOver, givingBack, fencing, regains,
			[]Event{Seeded, Failed, Broken, Handback, Acknowledge}),
		Fencing: slices.Concat(givingBack, regains, lowers,
			[]Event{Seeded, Failed, Healthy, HoldOver, Takeover, NotFenced, Replayed, Handback, Acknowledge}),
		Replaying: slices.Concat(givingBack, regains, lowers,
			[]Event{Seeded, Failed, Healthy, HoldOver, Takeover, Swept, Handback, Acknowledge}),
		Serving: slices.Concat(takingOver, givingBack, lowers,
			[]Event{Seeded, HoldOver, Takeover, Broken, Acknowledge}),
		Returning: slices.Concat(takingOver, givingBack, lowers,
			[]Event{Seeded, HoldOver, Takeover, Broken, Acknowledge}),
		CopyingBack: slices.Concat(takingOver, lowers,
			[]Event{Seeded, Healthy, HoldOver, Takeover, Handback, HandedBack, HandedSome, Acknowledge}),
		HandingBack: slices.Concat(takingOver, fencing, regains, lowers,
			[]Event{Seeded, Failed, Healthy, HoldOver, Takeover, Handback, CopiedBack, Acknowledge}),
	}
}
