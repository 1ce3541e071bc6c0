// Package plan decides what copy-back does: a three-way merge of base (the state
// at the takeover), standby now and production now, over all mailboxes of an
// account at once.
//
// Implementation notes. Merge is pure, and all that decides enters it as data:
// also which contents are alike, which were read before. Its plan is executed as
// it is, mailbox by mailbox in the order of Box.Order, and loses nothing if it is
// cut anywhere: each step moves the base along, so that the next run finds less to
// do and, in the end, nothing. Nothing is deleted on production but what a client
// deleted on the standby, and what is proven to be a double of ours. Without Final
// the standby goes on serving meanwhile: only what cannot collide with it is done.
// Folders come before messages, in steps of their own (Renames, Removals,
// Additions), since only the server can tell what the mailboxes are afterwards.
package plan

import (
	"slices"
	"time"

	"understudy/replica/row"
)

// Why is the reason of a step, for tests, the list of tasks and the report.
type Why string

// The reasons.
const (
	// Of a message that is deleted on production.
	Deleted    Why = "a client deleted it"
	Copied     Why = "the standby has it under the UID that clients know"
	Delivered  Why = "the standby has delivered it before"
	Filler     Why = "it burned a UID"
	CutOff     Why = "a copy-back that was cut off had put it there"
	BothMoved  Why = "it was copied behind before, and is there twice"
	Unanswered Why = "production did a command that the standby has done, too"

	// Of flags.
	Changed Why = "a client changed its flags"
	Theirs  Why = "production changed its flags"
	Raised  Why = "a copy-back that was cut off had raised HIGHESTMODSEQ with it"

	// Of a message that is put, or is already, on production.
	New   Why = "production has not got it"
	There Why = "production has got it before"
	Lost  Why = "production has lost it"
	Taken Why = "its UID is taken on production"
	Late  Why = "production got it by itself"
	Moved Why = "production moved it from another mailbox"
	Waits Why = "its UID is taken on production: that waits until clients are kept off"

	// Of a mailbox whose base begins anew.
	NotThere Why = "it is new on production"
	Another  Why = "it is another one on production than before"
)

// Remote is a message on production.
type Remote struct {
	UID   uint32
	Flags []string
}

// Counters are what production says of a mailbox.
type Counters struct {
	UIDValidity, UIDNext uint32
	ModSeq               uint64
}

// Like names a message of the standby, in the same mailbox, that one on production
// may be.
type Like struct {
	UID uint32
	// Equal: but for carriage returns. Else it is what production made of the
	// message that the standby delivered by SMTP.
	Equal bool
}

// Found is a message that production has and the base has not, with what its
// content tells.
type Found struct {
	Ref    row.Ref
	Date   time.Time
	Like   []Like    // by UID
	Twins  []uint64  // messages that the standby delivered to the account, oldest first
	Refs   []row.Ref // of the doubts: messages that it is, but for carriage returns
	Filler bool      // one of those that burn UIDs
}

// Mailbox is one mailbox, three times.
type Mailbox struct {
	Standby *row.Snapshot
	// Base is the mailbox at the takeover, or as it was last merged; nil if
	// production was not known to have it. Changed are those messages of it that the
	// standby has changed or deleted, as they were.
	Base    *row.Mailbox
	Changed map[uint32]*row.Message

	Counters
	Production []Remote // by UID
	Found      map[uint32]Found
}

// Account is all that is known of one.
type Account struct {
	Final     bool // clients are kept off
	Level     bool // HIGHESTMODSEQ is raised beside clients, too
	CondStore bool // production has such numbers
	Boxes     []Mailbox
	Doubts    []row.Doubt
	Left      []row.Doubt // those that were there before this copy-back
}

// Item is what is to be done with one message.
type Item struct {
	UID   uint32
	Flags []string
	Why   Why
	// Of a message that is found on production.
	Ref  row.Ref
	Date time.Time
	Twin uint64 // the message that the standby delivered, which is done with; 0: none
	From Place  // Moved: where it is on the standby
}

// Place is one message of the account.
type Place struct {
	Box row.MailboxID
	UID uint32
}

// Box is what is done with one mailbox. Lists are by UID.
//
// Large: it is data, with a list for each step of a plan; Order is where their order stands.
type Box struct {
	ID   row.MailboxID
	Name string

	Anew   Why    // the base begins anew, empty; "" if it stays
	Clean  []Item // flags to be taken away on production
	Flags  []Item // flags to be set on production
	Local  []Item // flags to be set on the standby
	Remove []Item // from production
	Forget []uint32
	Adopt  []Item // on production already, under their own UIDs
	Shift  []Item // get new UIDs on the standby; what comes after is of the next plan
	Append []Item // to production, under their own UIDs
	Wait   []Item // to be appended when clients are kept off
	// The following are done when clients are kept off.
	Restore []Item // to production, under new UIDs
	Late    []Item // into the standby, under UIDs that nobody was shown
	Numbers
}

// Numbers is what is done with those of a mailbox.
type Numbers struct {
	Room   uint32 // what the standby's next UID is to leave free for production
	Reach  uint32 // UIDNEXT that production must get to; 0: it is there
	Behind bool   // late arrivals have to be moved, to get UIDs that nobody was shown
	Raise  bool   // HIGHESTMODSEQ, if it is still lower after all other steps
	final  bool
}

// Plan makes both sides equal, mailbox by mailbox.
type Plan struct{ Boxes []Box }

// Kind is one kind of step.
type Kind string

// The kinds, in the order in which they are done.
const (
	Renew      Kind = "renew"
	LeaveRoom  Kind = "leave room"
	CleanFlags Kind = "clean"
	SetFlags   Kind = "flags"
	RemoveAll  Kind = "remove"
	AdoptAll   Kind = "adopt"
	ShiftAll   Kind = "shift"
	AppendAll  Kind = "append"
	ReachNext  Kind = "reach"
	RestoreAll Kind = "restore"
	TakeLate   Kind = "late"
	RaiseSeq   Kind = "raise"
)

// Empty reports whether both sides hold the same; numbers may still differ.
func (b Box) Empty() bool {
	return b.Anew == "" && len(b.Clean)+len(b.Flags)+len(b.Local)+len(b.Remove)+len(b.Forget)+len(b.Adopt)+
		len(b.Shift)+len(b.Append)+len(b.Wait)+len(b.Restore)+len(b.Late) == 0
}

// Order is what is to be done, in its order.
func (b Box) Order() []Kind {
	late := b.final && len(b.Shift) == 0
	var out []Kind
	for _, k := range []struct {
		Kind
		do bool
	}{
		{Renew, b.Anew != ""}, {LeaveRoom, b.Room > 0}, {CleanFlags, len(b.Clean) > 0},
		{SetFlags, len(b.Flags)+len(b.Local) > 0},
		{RemoveAll, len(b.Remove)+len(b.Forget) > 0}, {AdoptAll, len(b.Adopt) > 0}, {ShiftAll, len(b.Shift) > 0},
		{AppendAll, len(b.Append) > 0}, {ReachNext, late && b.Reach > 0}, {RestoreAll, late && len(b.Restore) > 0},
		{TakeLate, late && len(b.Late) > 0}, {RaiseSeq, b.Raise && len(b.Shift) == 0},
	} {
		if k.do {
			out = append(out, k.Kind)
		}
	}
	return out
}

// UIDs of items.
func UIDs(items []Item) []uint32 {
	out := make([]uint32, len(items))
	for i, it := range items {
		out[i] = it.UID
	}
	return out
}

// BeginsAnew says why the base of a mailbox begins anew, or "". UIDs never go
// back: a lower UIDNEXT is another mailbox, or an older state.
func (m Mailbox) BeginsAnew() Why {
	switch {
	case m.Base == nil:
		return NotThere
	case m.Base.OnProduction() != m.UIDValidity || m.UIDNext < m.Base.UIDNext || m.Base.NoSelect:
		return Another
	}
	return ""
}

// BaseRows are the messages that production had at the takeover, or as last merged.
func (m Mailbox) BaseRows() map[uint32]*row.Message {
	if m.BeginsAnew() != "" {
		return map[uint32]*row.Message{}
	}
	out := make(map[uint32]*row.Message, len(m.Standby.Rows))
	for _, s := range m.Standby.Rows {
		if !s.Fresh {
			out[s.UID] = s
		}
	}
	for uid, was := range m.Changed {
		out[uid] = was
	}
	return out
}

// MayBe are the messages of the standby that one which production got by itself
// may be: those that it was to get from us, and those that the standby delivered.
func (m Mailbox) MayBe() []*row.Message {
	anew := m.BeginsAnew() != ""
	return slices.DeleteFunc(slices.Clone(m.Standby.Rows), func(s *row.Message) bool {
		return !anew && !s.Fresh && s.Tail == 0
	})
}
