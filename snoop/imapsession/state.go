package imapsession

import (
	"fmt"
	"slices"
	"strings"

	"understudy/snoop/imapwire"
)

// State is where an exchange stands.
type State uint8

// The states. Receiving to Asked, Talking, Ending and Found are owed an answer.
const (
	Receiving State = iota // the client is still sending the command
	Waiting                // the client has to be asked for more: a literal, or an IDLE
	Asked                  // all of it was received; the server has it, or will get it
	Talking                // the client was told "+" to an IDLE (or AUTHENTICATE)
	Ending                 // the client has ended its IDLE
	Settling               // answered; the answer waits until what it says is so here
	Found                  // a lost upstream had done it; it is not answered yet
	Refused                // answered before it was whole: the rest is the server's to skip
	Orphaned               // its server was lost then: the rest is for nobody
	Told                   // over
)

// States lists all states.
func States() []State {
	return []State{Receiving, Waiting, Asked, Talking, Ending, Settling, Found, Refused, Orphaned, Told}
}

func (s State) String() string {
	return [...]string{"receiving", "waiting", "asked", "talking", "ending", "settling", "found", "refused", "orphaned",
		"told"}[s]
}

// Event is what happens to an exchange.
type Event uint8

// The events.
const (
	Announced  Event = iota // the client announces a literal and waits
	Spoke                   // the client goes on without having been asked
	Received                // all of the command is there
	Called                  // the server said "+"
	Ended                   // the client ended an IDLE
	Accepted                // answered, and something is to be done before the answer goes on
	Answered                // answered, by a server or in the name of a lost one
	Settled                 // that was done
	Unsettled               // that could not be done
	Discovered              // a lost upstream is found to have done it
	Lost                    // the upstream was lost
)

// Events lists all events.
func Events() []Event {
	return []Event{Announced, Spoke, Received, Called, Ended, Accepted, Answered, Settled, Unsettled, Discovered, Lost}
}

func (e Event) String() string {
	return [...]string{"literal announced", "spoke unasked", "whole", "plus", "done", "accepted", "answered", "settled",
		"not settled", "found done", "upstream lost"}[e]
}

// Rule is one row of the table.
type Rule struct {
	From State
	On   Event
	If   string // names the condition
	Cond func(*Exchange) bool
	To   State
	Why  string
}

// rules is the table; the first that matches wins. It is never written to.
var rules = [...]Rule{
	// RFC 9051, 4.3
	{From: Receiving, On: Announced, To: Waiting, Why: "the client waits before a synchronising literal"},
	{From: Receiving, On: Received, If: "it goes on by the server's word", Cond: (*Exchange).talks, To: Waiting,
		Why: "IDLE and AUTHENTICATE wait for a continuation"},
	{From: Receiving, On: Received, To: Asked, Why: "the server has all it needs"},
	{From: Receiving, On: Answered, To: Refused, Why: "the rest of a non-synchronising literal is still to come"},

	{From: Waiting, On: Called, If: "all of it is there", Cond: (*Exchange).whole, To: Talking, Why: "the IDLE runs"},
	{From: Waiting, On: Called, To: Receiving, Why: "the literal may come"},
	{From: Waiting, On: Spoke, To: Receiving, Why: "a client that does not wait; the session is in doubt"},
	{From: Waiting, On: Accepted, To: Settling, Why: "an IDLE that is not taken, with news of the mailbox"},
	{From: Waiting, On: Answered, To: Told, Why: "the literal is refused, and does not come"},

	{From: Asked, On: Accepted, To: Settling, Why: "the client may be told when it is so here"},
	{From: Asked, On: Answered, To: Told, Why: "nothing is to be done about it"},
	{From: Asked, On: Discovered, To: Found, Why: "it is not to be done twice"},

	{From: Talking, On: Ended, To: Ending, Why: "DONE"},
	{From: Talking, On: Accepted, To: Settling, Why: "the server ended it, with news of the mailbox"},
	{From: Talking, On: Answered, To: Told, Why: "the server ended it"},

	{From: Ending, On: Accepted, To: Settling, Why: "it is over, with news of the mailbox"},
	{From: Ending, On: Answered, To: Told, Why: "it is over"},

	{From: Settling, On: Settled, To: Told, Why: "the answer goes on"},
	{From: Settling, On: Unsettled, To: Asked, Why: "the answer does not go on: whoever answers next is asked again"},

	{From: Found, On: Answered, To: Told, Why: "it is answered in the name of the lost upstream"},

	{From: Refused, On: Received, To: Told, Why: "the rest is skipped"},
	{From: Refused, On: Lost, To: Orphaned, Why: "another server would take the rest for commands"},
	{From: Orphaned, On: Received, To: Told, Why: "the rest is dropped"},
}

// Rules returns the table.
func Rules() []Rule { return slices.Clone(rules[:]) }

// quiet lists, by state, the events that change nothing there.
func quiet() map[State][]Event {
	return map[State][]Event{
		Receiving: {Spoke, Called, Ended, Accepted, Settled, Unsettled, Discovered, Lost},
		Waiting:   {Announced, Received, Ended, Settled, Unsettled, Discovered, Lost},
		Asked:     {Announced, Spoke, Received, Called, Ended, Settled, Unsettled, Lost},
		Talking:   {Announced, Spoke, Received, Called, Settled, Unsettled, Discovered, Lost},
		Ending:    {Announced, Spoke, Received, Called, Ended, Settled, Unsettled, Discovered, Lost},
		Settling:  {Announced, Spoke, Received, Called, Ended, Accepted, Answered, Discovered, Lost},
		Found:     {Announced, Spoke, Received, Called, Ended, Accepted, Settled, Unsettled, Discovered, Lost},
		Refused:   {Announced, Spoke, Called, Ended, Accepted, Answered, Settled, Unsettled, Discovered},
		Orphaned:  {Announced, Spoke, Called, Ended, Accepted, Answered, Settled, Unsettled, Discovered, Lost},
		Told:      Events(),
	}
}

// step takes an event; a quiet one changes nothing.
func (ex *Exchange) step(e Event) {
	for i := range rules {
		if r := &rules[i]; r.From == ex.state && r.On == e && (r.Cond == nil || r.Cond(ex)) {
			ex.state = r.To
			return
		}
	}
}

// talks reports whether a command goes on by the server's word after its line.
func (ex *Exchange) talks() bool { return ex.Verb == imapwire.Idle || ex.Verb == imapwire.Authenticate }

func (ex *Exchange) whole() bool { return ex.Whole }

// Diagram draws the table as a Mermaid state diagram.
func Diagram() string {
	var b strings.Builder
	fmt.Fprintf(&b, "stateDiagram-v2\n    [*] --> %s\n", Receiving)
	for _, r := range rules {
		label := r.On.String()
		if r.If != "" {
			label += " [" + r.If + "]"
		}
		fmt.Fprintf(&b, "    %s --> %s: %s\n", r.From, r.To, label)
	}
	fmt.Fprintf(&b, "    %s --> [*]\n", Told)
	return b.String()
}
