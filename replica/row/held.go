package row

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// HeldState is where a held message stands. What it means is said once, by the
// questions that it answers (Held.MayDeliver, Held.ProductionMayHaveIt and so on);
// nobody else compares states.
type HeldState string

// The states. Of the last three there is no row.
const (
	HeldNew       HeldState = "new"       // not held yet
	HeldArriving  HeldState = "arriving"  // production has it before it and has not answered
	HeldAccepted  HeldState = "accepted"  // production answered 250
	HeldOwed      HeldState = "owed"      // its sender was told 250, and nobody knows whether production has it
	HeldOurs      HeldState = "ours"      // the standby accepted it: production has no copy
	HeldGiving    HeldState = "giving"    // it is being given to production, which may have it whatever the answer
	HeldLanded    HeldState = "landed"    // seen in the mailboxes of all recipients
	HeldDelivered HeldState = "delivered" // the last recipient got it from the standby
	HeldDropped   HeldState = "dropped"   // refused, or held for long enough
)

// HeldStates lists all states.
func HeldStates() []HeldState {
	return []HeldState{HeldNew, HeldArriving, HeldAccepted, HeldOwed, HeldOurs, HeldGiving, HeldLanded, HeldDelivered,
		HeldDropped}
}

// Ended reports whether there is nothing left to hold, and no row.
func (s HeldState) Ended() bool { return s == HeldLanded || s == HeldDelivered || s == HeldDropped }

// HeldEvent is what happens to a held message.
type HeldEvent string

// The events.
const (
	HeldArrives    HeldEvent = "arrives at production"
	HeldTaken      HeldEvent = "taken by the standby"
	HeldConfirmed  HeldEvent = "production answered 250"
	HeldRefused    HeldEvent = "production refused"          // or its sender was not answered and comes again
	HeldUnanswered HeldEvent = "production's answer unknown" // and its sender is told 250 all the same
	HeldSeen       HeldEvent = "seen in a mailbox"
	HeldFound      HeldEvent = "in the mailboxes before" // of all recipients, before it was held
	HeldDelivers   HeldEvent = "delivered by the standby"
	HeldGives      HeldEvent = "about to be given"
	HeldGiven      HeldEvent = "given" // production answered 250 to the appliance
	HeldNotGiven   HeldEvent = "not given"
	HeldGivingLost HeldEvent = "giving not answered"
	HeldExpires    HeldEvent = "held long enough"
	HeldRestarted  HeldEvent = "restarted"
)

// HeldEvents lists all events.
func HeldEvents() []HeldEvent {
	return []HeldEvent{HeldArrives, HeldTaken, HeldConfirmed, HeldRefused, HeldUnanswered, HeldSeen, HeldFound,
		HeldDelivers, HeldGives, HeldGiven, HeldNotGiven,
		HeldGivingLost, HeldExpires, HeldRestarted}
}

// Who makes a transition.
type Who string

// Those who may.
const (
	ByCache    Who = "cache"     // the transaction cache, which sees production's answers
	ByMirror   Who = "mirror"    // which reads production's mailboxes
	ByStandby  Who = "standby"   // its SMTP server
	ByCopyBack Who = "copy-back" // which finds what production got by itself
	ByKeeper   Who = "keeper"    // takeover, hand-back, and what is due now and then
	ByLoad     Who = "load"      // of the rows, at a start
)

// OnDisk says what is durable before a transition counts.
type OnDisk string

// What may have to be there.
const (
	// RowFirst: the row as it then is (or no row, at an end).
	RowFirst OnDisk = "row first"
	// RowWithMailbox: the same, in one batch with the mailbox.
	RowWithMailbox OnDisk = "in the mailbox's batch"
	// InJournal: a line of the journal, written and not synced.
	InJournal OnDisk = "journal"
	// NoWrite: nothing; a restart makes the same of the row that is there.
	NoWrite OnDisk = "nothing"
)

// HeldHappened is an event with its data.
type HeldHappened struct {
	Event HeldEvent
	By    Who
	At    time.Time // HeldGives
	// Done are the recipients that have it now (HeldSeen, HeldDelivers).
	Done []string
	// In is an account that it was seen in, of which nobody knows for which
	// recipient (HeldSeen).
	In string
}

// HeldRule is one row of the table.
type HeldRule struct {
	From   HeldState
	On     HeldEvent
	If     string // names the condition
	Cond   func(was, now Held) bool
	To     HeldState
	WhoMay []Who
	OnDisk OnDisk
	// Twin: production's own copy may still come, and has to be known by then.
	Twin bool
	Why  string
}

func recipientsLeft(_, now Held) bool { return len(now.Rcpts) > 0 }

func wasOurs(was, _ Held) bool { return was.Before == HeldOurs }

const moreRecipients = "recipients are left"

// HeldRules is the table. The first rule that matches wins.
func HeldRules() []HeldRule {
	cache, sight := []Who{ByCache}, []Who{ByMirror, ByCopyBack}
	standby, keeper := []Who{ByStandby}, []Who{ByKeeper}
	rules := []HeldRule{
		{From: HeldNew, On: HeldArrives, To: HeldArriving, WhoMay: cache, OnDisk: RowFirst,
			Why: "held beside production's work on it; its 250 waits for that"},
		{From: HeldNew, On: HeldTaken, To: HeldOurs, WhoMay: standby, OnDisk: RowFirst,
			Why: "accepted by the standby; its 250 waits for the row"},

		{From: HeldArriving, On: HeldConfirmed, To: HeldAccepted, WhoMay: cache, OnDisk: NoWrite,
			Why: "production has it"},
		{From: HeldArriving, On: HeldRefused, To: HeldDropped, WhoMay: cache, OnDisk: RowFirst,
			Why: "nobody was told 250"},
		{From: HeldArriving, On: HeldUnanswered, To: HeldOwed, WhoMay: cache, OnDisk: RowFirst,
			Why: "production was lost before it answered"},
		{From: HeldArriving, On: HeldExpires, To: HeldDropped, WhoMay: keeper, OnDisk: RowFirst,
			Why: "production never answered"},
		{From: HeldArriving, On: HeldRestarted, To: HeldAccepted, WhoMay: []Who{ByLoad}, OnDisk: NoWrite,
			Why: "its sender may have been told 250; a double is better than a loss"},

		{From: HeldAccepted, On: HeldUnanswered, To: HeldOwed, WhoMay: cache, OnDisk: RowFirst,
			Why: "its sender came again, and nobody knows what production answered before a restart"},
		{From: HeldAccepted, On: HeldExpires, To: HeldDropped, WhoMay: keeper, OnDisk: RowFirst,
			Why: "production filtered it, or sent it on"},

		{From: HeldOwed, On: HeldGives, To: HeldGiving, WhoMay: standby, OnDisk: RowFirst,
			Why: "production has not delivered it by itself for long enough"},
		{From: HeldOurs, On: HeldGives, To: HeldGiving, WhoMay: standby, OnDisk: RowFirst,
			Why: "its accounts are with production"},
		{From: HeldGiving, On: HeldGives, To: HeldGiving, WhoMay: standby, OnDisk: RowFirst,
			Why: "production did not answer, and has not delivered it since"},
		{From: HeldGiving, On: HeldGiven, To: HeldAccepted, WhoMay: standby, OnDisk: RowFirst,
			Why: "production has it"},
		{From: HeldGiving, On: HeldNotGiven, If: "it was ours", Cond: wasOurs, To: HeldOurs, WhoMay: standby,
			OnDisk: RowFirst, Why: "production surely has not got it"},
		{From: HeldGiving, On: HeldNotGiven, To: HeldOwed, WhoMay: standby, OnDisk: RowFirst,
			Why: "production surely has not got it this time"},
		{From: HeldGiving, On: HeldGivingLost, To: HeldOwed, WhoMay: standby, OnDisk: RowFirst,
			Why: "production may have it"},
		{From: HeldGiving, On: HeldRestarted, To: HeldOwed, WhoMay: []Who{ByLoad}, OnDisk: NoWrite,
			Why: "production may have it"},
	}
	for _, s := range []HeldState{HeldArriving, HeldAccepted, HeldOwed, HeldOurs, HeldGiving} {
		rules = append(rules,
			HeldRule{From: s, On: HeldSeen, If: moreRecipients, Cond: recipientsLeft, To: s, WhoMay: sight,
				OnDisk: RowWithMailbox, Why: "one recipient has it"},
			HeldRule{From: s, On: HeldSeen, To: HeldLanded, WhoMay: sight, OnDisk: RowWithMailbox,
				Why: "all recipients have it"})
		if s == HeldArriving {
			continue
		}
		if s != HeldOurs {
			rules = append(rules,
				HeldRule{From: s, On: HeldFound, To: HeldLanded, WhoMay: cache, OnDisk: RowFirst,
					Why: "the mirror read it before it was held"})
		}
		twin := s != HeldOurs
		rules = append(rules,
			HeldRule{From: s, On: HeldDelivers, If: moreRecipients, Cond: recipientsLeft, To: s, WhoMay: standby,
				OnDisk: RowWithMailbox, Twin: twin, Why: "one recipient has it from the standby"},
			HeldRule{From: s, On: HeldDelivers, To: HeldDelivered, WhoMay: standby, OnDisk: RowWithMailbox, Twin: twin,
				Why: "the last recipient has it from the standby"})
	}
	return rules
}

// heldQuiet lists, by state, the events that change nothing there.
func heldQuiet() map[HeldState][]HeldEvent {
	// What ends a session or a giving may come after the message was seen.
	return map[HeldState][]HeldEvent{
		HeldNew: {HeldConfirmed, HeldRefused, HeldUnanswered, HeldSeen, HeldFound, HeldDelivers, HeldGives, HeldGiven,
			HeldNotGiven, HeldGivingLost, HeldExpires, HeldRestarted},
		// Nobody was told 250: its sender will come again, so the standby leaves it.
		HeldArriving: {HeldArrives, HeldTaken, HeldFound, HeldDelivers, HeldGives, HeldGiven, HeldNotGiven,
			HeldGivingLost},
		HeldAccepted: {HeldArrives, HeldTaken, HeldConfirmed, HeldRefused, HeldGives, HeldGiven, HeldNotGiven,
			HeldGivingLost, HeldRestarted},
		HeldOwed: {HeldArrives, HeldTaken, HeldConfirmed, HeldRefused, HeldUnanswered, HeldGiven, HeldNotGiven,
			HeldGivingLost, HeldExpires, HeldRestarted},
		HeldOurs: {HeldArrives, HeldTaken, HeldConfirmed, HeldRefused, HeldUnanswered, HeldFound, HeldGiven,
			HeldNotGiven, HeldGivingLost, HeldExpires, HeldRestarted},
		HeldGiving:    {HeldArrives, HeldTaken, HeldConfirmed, HeldRefused, HeldUnanswered, HeldExpires},
		HeldLanded:    HeldEvents(),
		HeldDelivered: HeldEvents(),
		HeldDropped:   HeldEvents(),
	}
}

// Step takes one event. The rule tells what has to be on disk before next counts;
// ok is false if nothing changes, or whoever told it may not.
func (h Held) Step(e HeldHappened) (next Held, r HeldRule, ok bool) {
	now := h.with(e)
	for _, r := range HeldRules() {
		if r.From != h.state() || r.On != e.Event || r.Cond != nil && !r.Cond(h, now) {
			continue
		}
		if !slices.Contains(r.WhoMay, e.By) {
			return h, r, false
		}
		now.State = r.To
		return now, r, true
	}
	return h, HeldRule{}, false
}

// ReadAgain is what a message is of which it is not known whether its last step is on
// disk, by its row there, if it has one.
func (h Held) ReadAgain(onDisk Held, there bool) Held {
	switch {
	case !there:
		h.State = HeldDropped
		return h
	case onDisk.State == HeldArriving && h.State != HeldArriving:
		// That production answered is not written: see NoWrite.
		onDisk, _, _ = onDisk.Step(HeldHappened{Event: HeldRestarted, By: ByLoad})
	}
	return onDisk
}

func (h Held) state() HeldState {
	if h.State == "" {
		return HeldNew
	}
	return h.State
}

// with is what an event makes of all but the state.
func (h Held) with(e HeldHappened) Held {
	switch e.Event {
	case HeldSeen, HeldDelivers:
		h.Rcpts = slices.DeleteFunc(slices.Clone(h.Rcpts), func(r string) bool { return slices.Contains(e.Done, r) })
		if e.In != "" {
			// Seen as often as it has recipients, it is done whole.
			if h.Seen = append(slices.Clone(h.Seen), e.In); len(h.Seen) >= len(h.Rcpts) {
				h.Rcpts = nil
			}
		}
	case HeldFound:
		h.Rcpts = nil
	case HeldGives:
		if h.Before, h.BeforeArrived = h.State, h.Arrived; h.State == HeldGiving {
			h.Before = HeldOwed // production may have it from the last time
		}
		h.Arrived = e.At
	case HeldNotGiven:
		h.Arrived = h.BeforeArrived
		h.Before, h.BeforeArrived = "", time.Time{}
	case HeldGiven, HeldGivingLost, HeldRestarted:
		h.Before, h.BeforeArrived = "", time.Time{}
	}
	return h
}

// MayDeliver reports whether the standby may deliver it, and who sends it again is
// told that it is held: it counts as accepted.
func (h Held) MayDeliver() bool {
	return h.state() != HeldNew && h.State != HeldArriving && !h.State.Ended()
}

// ProductionMayHaveIt reports whether production has a copy, or may have.
func (h Held) ProductionMayHaveIt() bool { return h.State != HeldOurs }

// owed: it waits until it is seen, delivered, or production has taken it.
func (h Held) owed() bool { return h.State == HeldOwed || h.State == HeldGiving }

// DeliverNow reports whether the standby, which serves, has to look after it again:
// always if nobody else will, else for the time in which it may just have missed it.
func (h Held) DeliverNow(now time.Time, missed time.Duration) bool {
	return h.MayDeliver() && (h.State != HeldAccepted || now.Sub(h.Arrived) <= missed)
}

// OwedSince reports whether production has had since a time to deliver it by itself.
func (h Held) OwedSince(before time.Time) bool { return h.owed() && !h.Arrived.After(before) }

// OnlyOurs reports whether it is on this appliance and surely nowhere else.
func (h Held) OnlyOurs() bool { return h.State == HeldOurs }

// MayGive reports whether it may be given to production now, which has had since a
// time to deliver what it may have.
func (h Held) MayGive(before time.Time) bool { return h.OnlyOurs() || h.OwedSince(before) }

// GiveAt is when it may be given to production, which has some time to deliver by
// itself what it may have: the zero time is at once. ok is false if it never is.
func (h Held) GiveAt(owedFor time.Duration) (at time.Time, ok bool) {
	if h.owed() {
		return h.Arrived.Add(owedFor), true
	}
	return time.Time{}, h.OnlyOurs()
}

// ExpiresAt is when it was held for so long that production must have filtered it, or
// sent it on. ok is false if it is kept: what is owed, or ours.
func (h Held) ExpiresAt(holdFor time.Duration) (at time.Time, ok bool) {
	return h.Arrived.Add(holdFor), h.State == HeldAccepted || h.State == HeldArriving
}

// UnmarshalJSON reads rows of all versions: before there were states two booleans
// told them, and a message that production had not answered was stored as accepted.
func (h *Held) UnmarshalJSON(b []byte) error {
	type plain Held
	v := struct {
		*plain
		Standby, Owed bool
	}{plain: (*plain)(h)}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	switch {
	case h.State == "" && v.Owed:
		h.State = HeldOwed
	case h.State == "" && v.Standby:
		h.State = HeldOurs
	case h.State == "":
		h.State = HeldAccepted
	case h.State.Ended() || h.State == HeldNew || !slices.Contains(HeldStates(), h.State):
		return fmt.Errorf("%w: held message in state %q", ErrCorrupt, h.State)
	}
	return nil
}

// HeldDiagram draws the table as a Mermaid state diagram.
func HeldDiagram() string {
	d := diagram{}
	for _, r := range HeldRules() {
		d.edge(string(r.From), string(r.To), string(r.On), r.If)
	}
	return d.String()
}

// diagram collects the edges of a state diagram.
type diagram struct{ b strings.Builder }

func (d *diagram) edge(from, to, label, cond string) {
	if from == to {
		return
	}
	if cond != "" {
		label += " [" + cond + "]"
	}
	id := func(s string) string {
		if s == string(HeldNew) {
			return "[*]"
		}
		return strings.ReplaceAll(s, " ", "_")
	}
	fmt.Fprintf(&d.b, "    %s --> %s: %s\n", id(from), id(to), label)
}

func (d *diagram) String() string { return "stateDiagram-v2\n" + d.b.String() }
