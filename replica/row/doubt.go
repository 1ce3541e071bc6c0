package row

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// DoubtKind says what is doubted.
type DoubtKind string

// The kinds. The first two are commands of clients, the others copy-back's own.
const (
	// DoubtMove: a MOVE that production did not answer. It may be done not at all,
	// by half, or whole. Fields: From, To, UIDs, Dst, Mark, Refs.
	DoubtMove DoubtKind = "move"
	// DoubtRepeated: an APPEND or COPY that production did not answer and that the
	// standby has done; production may have, too. Fields: To, Refs.
	DoubtRepeated DoubtKind = "repeated"
	// DoubtAppend: messages that copy-back puts into a mailbox. Fields: Box, Refs.
	DoubtAppend DoubtKind = "append"
	// DoubtBehind: late arrivals that copy-back copies behind all others of their
	// mailbox, and then takes out. Fields: Box, Refs.
	DoubtBehind DoubtKind = "behind"
	// DoubtFlag: a flag that copy-back gives one message, and takes away, to raise
	// HIGHESTMODSEQ. The message had not got it. Fields: Box, UIDs, Flag.
	DoubtFlag DoubtKind = "flag"
)

// DoubtKinds lists all kinds.
func DoubtKinds() []DoubtKind {
	return []DoubtKind{DoubtMove, DoubtRepeated, DoubtAppend, DoubtBehind, DoubtFlag}
}

// DoubtState is where a doubt stands.
type DoubtState string

// The states. Of the last two nothing is kept.
const (
	DoubtNew      DoubtState = "new"      // not sent yet
	DoubtIntended DoubtState = "intended" // noted, and then sent
	DoubtArrived  DoubtState = "arrived"  // the replica has what the MOVE put into its other mailbox
	DoubtNoted    DoubtState = "noted"    // its answer is lost
	DoubtBased    DoubtState = "in base"  // the standby begins with what was not moved
	DoubtSettled  DoubtState = "settled"  // its outcome is known
	DoubtDropped  DoubtState = "dropped"  // nothing is left that could be mistaken
)

// DoubtStates lists the states that a kind can be in.
func DoubtStates(k DoubtKind) []DoubtState {
	switch k {
	case DoubtMove:
		return []DoubtState{DoubtNew, DoubtIntended, DoubtArrived, DoubtNoted, DoubtBased, DoubtSettled, DoubtDropped}
	case DoubtRepeated:
		return []DoubtState{DoubtNew, DoubtNoted, DoubtSettled, DoubtDropped}
	}
	return []DoubtState{DoubtNew, DoubtIntended, DoubtNoted, DoubtSettled, DoubtDropped}
}

// Ended reports whether nothing is kept of it any more.
func (s DoubtState) Ended() bool { return s == DoubtSettled || s == DoubtDropped }

// DoubtEvent is what happens to a doubt.
type DoubtEvent string

// The events.
const (
	DoubtIntend     DoubtEvent = "about to be sent"
	DoubtArrive     DoubtEvent = "arrived in the replica"
	DoubtAnswer     DoubtEvent = "answered"
	DoubtUnanswered DoubtEvent = "not answered"
	DoubtNowhere    DoubtEvent = "mailbox is gone"
	DoubtTakeover   DoubtEvent = "account to the standby"
	DoubtHandback   DoubtEvent = "account to production"
	DoubtRestarted  DoubtEvent = "restarted"
)

// DoubtEvents lists all events.
func DoubtEvents() []DoubtEvent {
	return []DoubtEvent{DoubtIntend, DoubtArrive, DoubtAnswer, DoubtUnanswered, DoubtNowhere, DoubtTakeover,
		DoubtHandback, DoubtRestarted}
}

// DoubtHappened is an event with its data.
type DoubtHappened struct {
	Event DoubtEvent
	By    Who
	Refs  []Ref // DoubtTakeover: of the messages that are where they were
}

// DoubtRule is one row of the table.
type DoubtRule struct {
	Kinds  []DoubtKind
	From   DoubtState
	On     DoubtEvent
	If     string // names the condition
	Cond   func(now Doubt) bool
	To     DoubtState
	WhoMay []Who
	OnDisk OnDisk
	Why    string
}

func someLeft(now Doubt) bool { return len(now.Refs) > 0 }

// DoubtRules is the table. The first rule that matches wins.
func DoubtRules() []DoubtRule {
	move, repeated := []DoubtKind{DoubtMove}, []DoubtKind{DoubtRepeated}
	asked, own := []DoubtKind{DoubtMove, DoubtRepeated}, []DoubtKind{DoubtAppend, DoubtBehind, DoubtFlag}
	notMove := append(slices.Clone(own), DoubtRepeated)
	cache, copier, keeper, load := []Who{ByCache}, []Who{ByCopyBack}, []Who{ByKeeper}, []Who{ByLoad}
	return []DoubtRule{
		{Kinds: move, From: DoubtNew, On: DoubtIntend, To: DoubtIntended, WhoMay: cache, OnDisk: InJournal,
			Why: "should the process end, production may have done it"},
		{Kinds: own, From: DoubtNew, On: DoubtIntend, To: DoubtIntended, WhoMay: copier, OnDisk: RowFirst,
			Why: "should its answer be lost, what it left is known"},
		{Kinds: asked, From: DoubtNew, On: DoubtUnanswered, To: DoubtNoted, WhoMay: cache, OnDisk: RowFirst,
			Why: "production may have done it"},
		{Kinds: asked, From: DoubtNew, On: DoubtNowhere, To: DoubtDropped, WhoMay: cache, OnDisk: NoWrite,
			Why: "there is nothing to be mistaken"},

		{Kinds: move, From: DoubtIntended, On: DoubtArrive, To: DoubtArrived, WhoMay: cache, OnDisk: NoWrite,
			Why: "that it departed may be known, too"},
		{Kinds: move, From: DoubtIntended, On: DoubtAnswer, To: DoubtSettled, WhoMay: cache, OnDisk: InJournal,
			Why: "the outcome is known, or kept as noted"},
		{Kinds: move, From: DoubtArrived, On: DoubtAnswer, To: DoubtSettled, WhoMay: cache, OnDisk: InJournal,
			Why: "the outcome is known, or kept as noted"},
		{Kinds: own, From: DoubtIntended, On: DoubtAnswer, To: DoubtSettled, WhoMay: copier, OnDisk: RowWithMailbox,
			Why: "the base has what production has"},
		{Kinds: move, From: DoubtIntended, On: DoubtRestarted, To: DoubtNoted, WhoMay: load, OnDisk: RowFirst,
			Why: "nobody was told its outcome"},
		{Kinds: move, From: DoubtArrived, On: DoubtRestarted, To: DoubtNoted, WhoMay: load, OnDisk: RowFirst,
			Why: "nobody was told its outcome"},
		{Kinds: own, From: DoubtIntended, On: DoubtRestarted, To: DoubtNoted, WhoMay: []Who{ByLoad, ByCopyBack},
			OnDisk: NoWrite, Why: "the copy-back was cut off"},
		{Kinds: move, From: DoubtIntended, On: DoubtNowhere, To: DoubtDropped, WhoMay: load, OnDisk: InJournal,
			Why: "there is nothing to be mistaken"},
		{Kinds: move, From: DoubtArrived, On: DoubtNowhere, To: DoubtDropped, WhoMay: load, OnDisk: InJournal,
			Why: "there is nothing to be mistaken"},

		{Kinds: move, From: DoubtNoted, On: DoubtTakeover, If: "some are where they were", Cond: someLeft,
			To: DoubtBased, WhoMay: keeper, OnDisk: RowWithMailbox,
			Why: "one that is gone later was removed by a client"},
		{Kinds: move, From: DoubtNoted, On: DoubtTakeover, To: DoubtDropped, WhoMay: keeper, OnDisk: RowWithMailbox,
			Why: "the standby begins with all of it moved"},
		{Kinds: notMove, From: DoubtNoted, On: DoubtTakeover, To: DoubtDropped, WhoMay: keeper, OnDisk: RowWithMailbox,
			Why: "it is of an outage before"},
		{Kinds: own, From: DoubtIntended, On: DoubtTakeover, To: DoubtDropped, WhoMay: keeper, OnDisk: RowWithMailbox,
			Why: "it is of an outage before"},

		{Kinds: move, From: DoubtNoted, On: DoubtHandback, To: DoubtSettled, WhoMay: keeper, OnDisk: RowWithMailbox,
			Why: "both sides are equal"},
		{Kinds: move, From: DoubtBased, On: DoubtHandback, To: DoubtSettled, WhoMay: keeper, OnDisk: RowWithMailbox,
			Why: "both sides are equal"},
		{Kinds: repeated, From: DoubtNoted, On: DoubtHandback, To: DoubtSettled, WhoMay: keeper, OnDisk: RowWithMailbox,
			Why: "production's copy, if there was one, is dropped"},
		{Kinds: own, From: DoubtNoted, On: DoubtHandback, To: DoubtSettled, WhoMay: keeper, OnDisk: RowWithMailbox,
			Why: "what it left is taken away"},
		{Kinds: own, From: DoubtIntended, On: DoubtHandback, To: DoubtSettled, WhoMay: keeper, OnDisk: RowWithMailbox,
			Why: "what it left is taken away"},
	}
}

// doubtQuiet lists, by kind and state, the events that change nothing there.
func doubtQuiet() map[DoubtKind]map[DoubtState][]DoubtEvent {
	all := DoubtEvents()
	own := map[DoubtState][]DoubtEvent{
		DoubtNew: {DoubtArrive, DoubtAnswer, DoubtUnanswered, DoubtNowhere, DoubtTakeover, DoubtHandback,
			DoubtRestarted},
		DoubtIntended: {DoubtIntend, DoubtArrive, DoubtUnanswered, DoubtNowhere},
		DoubtNoted:    {DoubtIntend, DoubtArrive, DoubtAnswer, DoubtUnanswered, DoubtNowhere, DoubtRestarted},
		DoubtSettled:  all, DoubtDropped: all,
	}
	// A MOVE under way is of a session and goes with that: neither takeover nor
	// hand-back ends it.
	underWay := []DoubtEvent{DoubtIntend, DoubtUnanswered, DoubtTakeover, DoubtHandback}
	return map[DoubtKind]map[DoubtState][]DoubtEvent{
		DoubtMove: {
			DoubtNew:      {DoubtArrive, DoubtAnswer, DoubtTakeover, DoubtHandback, DoubtRestarted},
			DoubtIntended: underWay,
			DoubtArrived:  append(slices.Clone(underWay), DoubtArrive),
			DoubtNoted:    {DoubtIntend, DoubtArrive, DoubtAnswer, DoubtUnanswered, DoubtNowhere, DoubtRestarted},
			DoubtBased: {DoubtIntend, DoubtArrive, DoubtAnswer, DoubtUnanswered, DoubtNowhere, DoubtTakeover,
				DoubtRestarted},
			DoubtSettled: all, DoubtDropped: all,
		},
		DoubtRepeated: {
			DoubtNew:     {DoubtIntend, DoubtArrive, DoubtAnswer, DoubtTakeover, DoubtHandback, DoubtRestarted},
			DoubtNoted:   {DoubtIntend, DoubtArrive, DoubtAnswer, DoubtUnanswered, DoubtNowhere, DoubtRestarted},
			DoubtSettled: all, DoubtDropped: all,
		},
		DoubtAppend: own, DoubtBehind: own, DoubtFlag: own,
	}
}

// Doubt is something of which nobody knows whether production did it: see
// DoubtKind for what each kind tells. Make it with the functions named for that.
type Doubt struct {
	Kind     DoubtKind
	State    DoubtState
	From, To string    `json:",omitempty"`
	UIDs     []uint32  `json:",omitempty"` // in From, or in Box
	Dst      []uint32  `json:",omitempty"` // in To, if production told them
	Mark     uint32    `json:",omitempty"` // UIDNEXT of To when the MOVE was seen
	Refs     []Ref     `json:",omitempty"` // of the messages
	Box      MailboxID `json:",omitempty"`
	Flag     string    `json:",omitempty"`
}

// MoveDoubt is a MOVE; mark is UIDNEXT of its target when it was seen.
func MoveDoubt(from, to string, uids []uint32, mark uint32) Doubt {
	return Doubt{Kind: DoubtMove, State: DoubtNew, From: from, To: to, UIDs: uids, Mark: mark}
}

// RepeatedDoubt is an APPEND or COPY that the standby is about to do.
func RepeatedDoubt(to string, refs ...Ref) Doubt {
	return Doubt{Kind: DoubtRepeated, State: DoubtNew, To: to, Refs: refs}
}

// AppendDoubt is what copy-back is about to append.
func AppendDoubt(box MailboxID, refs ...Ref) Doubt {
	return Doubt{Kind: DoubtAppend, State: DoubtNew, Box: box, Refs: refs}
}

// BehindDoubt is what copy-back is about to copy behind all others.
func BehindDoubt(box MailboxID, refs ...Ref) Doubt {
	return Doubt{Kind: DoubtBehind, State: DoubtNew, Box: box, Refs: refs}
}

// FlagDoubt is a flag that copy-back is about to give a message and take away.
func FlagDoubt(box MailboxID, uid uint32, flag string) Doubt {
	return Doubt{Kind: DoubtFlag, State: DoubtNew, Box: box, UIDs: []uint32{uid}, Flag: flag}
}

// Step takes one event. The rule tells what has to be on disk before next counts;
// ok is false if nothing changes, or whoever told it may not.
func (d Doubt) Step(e DoubtHappened) (next Doubt, r DoubtRule, ok bool) {
	now := d
	if e.Event == DoubtTakeover {
		now.Refs = e.Refs
	}
	for _, r := range DoubtRules() {
		if r.From != d.State || r.On != e.Event || !slices.Contains(r.Kinds, d.Kind) || r.Cond != nil && !r.Cond(now) {
			continue
		}
		if !slices.Contains(r.WhoMay, e.By) {
			return d, r, false
		}
		now.State = r.To
		return now, r, true
	}
	return d, DoubtRule{}, false
}

// UnderWay is a MOVE as the journal has it: lines of older versions tell no state.
func (d Doubt) UnderWay() Doubt {
	if d.State != DoubtArrived {
		d.State = DoubtIntended
	}
	return d
}

// Departing reports whether it may take away messages of a mailbox of which nobody
// knows yet where they arrived.
func (d Doubt) Departing(mailbox string) bool {
	return d.Kind == DoubtMove && d.State == DoubtIntended && d.From == mailbox
}

// Into reports whether production may have put messages into a mailbox by it, which
// has a name and a number.
func (d Doubt) Into(id MailboxID, name string) bool {
	switch d.Kind {
	case DoubtAppend, DoubtBehind:
		return d.Box == id
	case DoubtMove, DoubtRepeated:
		return d.To == name
	}
	return false
}

// Copies is how many messages of one content production has by right, of those
// that it may have got by this doubt: a second one is to be dropped.
func (d Doubt) Copies(ref Ref) (n int) {
	if d.Kind != DoubtBehind {
		return 0
	}
	for _, r := range d.Refs {
		if r == ref {
			n++
		}
	}
	return n
}

// valid: it tells what its kind has to tell, and nothing else.
func (d Doubt) valid() bool {
	asked := d.From == "" && d.To == "" && len(d.Dst) == 0 && d.Mark == 0
	switch d.Kind {
	case DoubtMove:
		return d.From != "" && d.Box == 0 && d.Flag == ""
	case DoubtRepeated:
		return d.From == "" && len(d.UIDs) == 0 && len(d.Dst) == 0 && d.Mark == 0 && d.Box == 0 && d.Flag == ""
	case DoubtAppend, DoubtBehind:
		return asked && len(d.UIDs) == 0 && d.Box != 0 && d.Flag == ""
	case DoubtFlag:
		return asked && len(d.UIDs) == 1 && d.Box != 0 && d.Flag != "" && len(d.Refs) == 0
	}
	return false
}

// UnmarshalJSON reads rows and lines of all versions: before there were kinds and
// states its fields told them.
func (d *Doubt) UnmarshalJSON(b []byte) error {
	type plain Doubt
	v := struct {
		*plain
		Moving bool
	}{plain: (*plain)(d)}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	if d.Kind == "" {
		switch {
		case d.Flag != "":
			d.Kind, d.State = DoubtFlag, DoubtIntended
		case d.Box != 0 && v.Moving:
			d.Kind, d.State = DoubtBehind, DoubtIntended
		case d.Box != 0:
			d.Kind, d.State = DoubtAppend, DoubtIntended
		case d.From != "":
			d.Kind, d.State = DoubtMove, DoubtNoted
		default:
			d.Kind, d.State = DoubtRepeated, DoubtNoted
		}
	}
	if !d.valid() || !slices.Contains(DoubtStates(d.Kind), d.State) || d.State.Ended() || d.State == DoubtNew {
		return fmt.Errorf("%w: doubt of kind %q in state %q", ErrCorrupt, d.Kind, d.State)
	}
	return nil
}

// DoubtDiagram draws the table as a Mermaid state diagram.
func DoubtDiagram() string {
	d := diagram{}
	for _, r := range DoubtRules() {
		var kinds []string
		for _, k := range r.Kinds {
			kinds = append(kinds, string(k))
		}
		d.edge(string(r.From), string(r.To), string(r.On)+" ("+strings.Join(kinds, ", ")+")", r.If)
	}
	return d.String()
}
