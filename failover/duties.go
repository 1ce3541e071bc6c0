package failover

// Answerer is who answers clients.
type Answerer string

// The answerers.
const (
	Nobody     Answerer = "nobody" // sessions wait
	Production Answerer = "production"
	Standby    Answerer = "standby" // accounts that are with production wait: they come to it
	// EachHome: production answers for the accounts that are with it, the standby
	// for the others.
	EachHome Answerer = "each account's home"
)

// Following is how far production is followed.
type Following uint8

// The degrees, each with those before it.
const (
	Unfollowed Following = iota
	Mirrored             // what production's mailboxes hold is read
	Believed             // what it was seen or overheard to accept is settled, too
)

// GiveBack is which held mail production is given.
type GiveBack uint8

// The sorts.
const (
	GiveNothing  GiveBack = iota
	GiveReturned          // what is for accounts that are with production
	GiveAll
)

// Duties is what everybody has to do in a state. All that depends on the state
// asks this, and nothing asks for the phase.
type Duties struct {
	Accounts Answerer
	SMTP     Answerer
	Fenced   bool // production is kept from clients, and they from it
	Complete bool // the replica holds every mailbox
	Follow   Following
	Deliver  bool // the standby puts held mail into mailboxes
	GiveBack GiveBack
	Outbound bool // what users submitted for other sites goes to production
	Deep     bool // each probe logs in, selects and fetches: production has to prove itself
	Moving   bool // this ends by itself, and soon
	// NoTakeover and NoHandback are why neither may be ordered; "" if it may.
	NoTakeover, NoHandback string
	// Answering is who answers, in words.
	Answering string
}

// duty is one row of the table: the first of a phase whose condition holds.
type duty struct {
	in Phase
	If string // names the condition
	on func(State) bool
	Duties
}

func dutyTable() []duty {
	asked := func(s State) bool { return s.Asked }
	sweeping := func(s State) bool { return s.Sweeping }
	regaining := func(s State) bool { return s.Regaining }
	isMixed := func(s State) bool { return s.Mixed }
	return []duty{
		{in: Seeding, Duties: Duties{Accounts: Production, SMTP: Production, Follow: Believed}},
		{in: Protecting, Duties: Duties{Accounts: Production, SMTP: Production, Complete: true, Follow: Believed,
			GiveBack: GiveAll, Outbound: true}},
		{in: Holding, If: "it waits for the word", on: asked,
			Duties: Duties{Accounts: Nobody, SMTP: Nobody, Complete: true,
				Follow: Mirrored, Deep: true}},
		{in: Holding, Duties: Duties{Accounts: Nobody, SMTP: Nobody, Complete: true,
			Follow: Mirrored, Deep: true, Moving: true}},
		{in: Fencing, If: "production is still read", on: sweeping,
			Duties: Duties{Accounts: Production, SMTP: Production,
				Fenced: true, Complete: true, Follow: Mirrored, Deep: true, Moving: true}},
		{in: Fencing, Duties: Duties{Accounts: Nobody, SMTP: Nobody, Fenced: true, Complete: true,
			Follow: Mirrored, Deep: true, Moving: true}},
		{in: Replaying,
			Duties: Duties{Accounts: Nobody, SMTP: Nobody, Fenced: true, Complete: true, Deep: true, Moving: true}},
		{in: Serving,
			Duties: Duties{Accounts: Standby, SMTP: Standby, Fenced: true, Complete: true, Deliver: true, Deep: true}},
		{in: Returning, If: "some accounts are with production", on: isMixed,
			Duties: Duties{Accounts: EachHome, SMTP: Standby,
				Fenced: true, Complete: true, Follow: Mirrored, Deliver: true, GiveBack: GiveReturned, Deep: true}},
		{in: Returning, Duties: Duties{Accounts: Standby, SMTP: Standby, Fenced: true, Complete: true,
			Deliver: true, GiveBack: GiveReturned, Deep: true}},
		{in: CopyingBack, If: "accounts still come to the standby", on: regaining,
			Duties: Duties{Accounts: Standby, SMTP: Standby,
				Fenced: true, Complete: true, Deliver: true, GiveBack: GiveReturned, Deep: true, Moving: true}},
		// Those that an interrupted hand-back gave to production stay with it.
		{in: CopyingBack, Duties: Duties{Accounts: EachHome, SMTP: Standby, Fenced: true, Complete: true,
			Deliver: true, GiveBack: GiveReturned, Deep: true, Moving: true}},
		// What an account cannot take any more stays held.
		{in: HandingBack, Duties: Duties{Accounts: EachHome, SMTP: Standby, Fenced: true, Complete: true,
			GiveBack: GiveReturned, Deep: true, Moving: true}},
	}
}

// Duties says what is to be done in a state.
func (s State) Duties() Duties {
	for _, r := range dutyTable() {
		if r.in != s.Phase || r.on != nil && !r.on(s) {
			continue
		}
		d := r.Duties
		if s.Mixed && d.Follow < Mirrored {
			d.Follow = Mirrored
		}
		d.Answering = s.answering(d)
		if s.Phase != Seeding && s.Phase != Protecting && s.Phase != Holding {
			d.NoTakeover = "a takeover makes no sense while " + string(s.Phase)
		}
		if s.Phase != Serving && s.Phase != Returning {
			d.NoHandback = "a hand-back makes no sense while " + string(s.Phase)
		}
		return d
	}
	no := "nothing is known of the state " + string(s.Phase)
	return Duties{Accounts: Nobody, SMTP: Nobody, Fenced: true, NoTakeover: no, NoHandback: no,
		Answering: "nobody: sessions wait"}
}

func (s State) answering(d Duties) string {
	switch {
	case s.Mixed:
		return "the standby for some accounts, production for the others"
	case d.Accounts == Production:
		return "production"
	case s.Phase == HandingBack, d.Accounts == Nobody:
		return "nobody: sessions wait"
	}
	return "standby"
}
