package smtpsession

import (
	"fmt"
	"slices"
	"strings"

	"understudy/snoop/smtpwire"
)

// Stage is where a session stands.
type Stage string

// The stages, in the order of a message.
const (
	Idle       Stage = "no message"
	Sender     Stage = "sender taken"
	Recipients Stage = "recipients taken"
	Body       Stage = "message being sent"
	Over       Stage = "over"
)

// Stages lists all stages.
func Stages() []Stage { return []Stage{Idle, Sender, Recipients, Body, Over} }

// Event is a command of the client, or the end of its message.
type Event string

// The events.
const (
	Hello    Event = "EHLO"
	StartTLS Event = "STARTTLS"
	Auth     Event = "AUTH"
	Mail     Event = "MAIL"
	Rcpt     Event = "RCPT"
	Data     Event = "DATA"
	End      Event = "outcome told"
	Reset    Event = "RSET"
	Quit     Event = "QUIT"
)

// Events lists all events.
func Events() []Event { return []Event{Hello, StartTLS, Auth, Mail, Rcpt, Data, End, Reset, Quit} }

// Rule is one row of the table: what a command leads to where a session stands, or
// with what it is refused.
type Rule struct {
	From Stage
	On   Event
	If   string // names the condition
	Cond func(*Session) bool
	To   Stage
	No   smtpwire.Reply // of a refusal; To is then From
}

func secure(s *Session) bool { return s.client.TLS }

func mayAuth(s *Session) bool { return s.login == nil && s.greeted }

func no(code int, text string) smtpwire.Reply {
	return smtpwire.Reply{Code: code, Lines: []string{text}}
}

// Rules is the table. The first row whose condition holds counts.
func Rules() []Rule {
	var t []Rule
	for _, from := range []Stage{Idle, Sender, Recipients} {
		t = append(t,
			Rule{From: from, On: Hello, To: Idle},
			Rule{From: from, On: StartTLS, If: "TLS is active", Cond: secure, To: from,
				No: no(503, "5.5.1 TLS is active")},
			Rule{From: from, On: StartTLS, To: Idle},
			Rule{From: from, On: Reset, To: Idle},
			Rule{From: from, On: Quit, To: Over},
		)
	}
	noRcpt := no(554, "5.5.1 No valid recipients")
	return append(t,
		Rule{From: Idle, On: Auth, If: "greeted, not logged in", Cond: mayAuth, To: Idle},
		Rule{From: Idle, On: Auth, To: Idle, No: no(503, "5.5.1 Not now")},
		Rule{From: Idle, On: Mail, To: Sender},
		Rule{From: Idle, On: Rcpt, To: Idle, No: no(503, "5.5.1 MAIL first")},
		Rule{From: Idle, On: Data, To: Idle, No: noRcpt},

		Rule{From: Sender, On: Auth, To: Sender, No: no(503, "5.5.1 Not now")},
		Rule{From: Sender, On: Mail, To: Sender, No: no(503, "5.5.1 Nested MAIL")},
		Rule{From: Sender, On: Rcpt, To: Recipients},
		Rule{From: Sender, On: Data, To: Sender, No: noRcpt},

		Rule{From: Recipients, On: Auth, To: Recipients, No: no(503, "5.5.1 Not now")},
		Rule{From: Recipients, On: Mail, To: Recipients, No: no(503, "5.5.1 Nested MAIL")},
		Rule{From: Recipients, On: Rcpt, To: Recipients},
		Rule{From: Recipients, On: Data, To: Body},

		Rule{From: Body, On: End, To: Idle},
	)
}

// quiet lists, by stage, the events that cannot come there: outside a message there
// is no end of it, and within it all that the client sends is the message.
func quiet() map[Stage][]Event {
	return map[Stage][]Event{
		Idle:       {End},
		Sender:     {End},
		Recipients: {End},
		Body:       {Hello, StartTLS, Auth, Mail, Rcpt, Data, Reset, Quit},
		Over:       Events(),
	}
}

// rule finds the row for an event.
func (s *Session) rule(on Event) (Rule, bool) {
	for _, r := range Rules() {
		if r.From == s.stage && r.On == on && (r.Cond == nil || r.Cond(s)) {
			return r, true
		}
	}
	return Rule{}, false
}

// May reports whether a command may be said now, or the reply that refuses it.
func (s *Session) May(on Event) (refusal smtpwire.Reply, ok bool) {
	r, found := s.rule(on)
	if !found {
		return no(503, "5.5.1 Not now"), false
	}
	return r.No, r.No.Code == 0
}

// move goes where an event leads; what may not be said changes nothing.
func (s *Session) move(on Event) bool {
	r, found := s.rule(on)
	if !found || r.No.Code != 0 {
		return false
	}
	if s.stage = r.To; s.stage == Idle || s.stage == Over {
		s.from, s.to = smtpwire.Path{}, nil
	}
	return true
}

// Diagram draws the table as a Mermaid state diagram.
func Diagram() string {
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n")
	id := func(s Stage) string { return strings.ReplaceAll(string(s), " ", "_") }
	fmt.Fprintf(&b, "    [*] --> %s\n", id(Idle))
	var drawn []string
	for _, r := range Rules() {
		line := fmt.Sprintf("    %s --> %s: %s\n", id(r.From), id(r.To), r.On)
		if r.From == r.To || slices.Contains(drawn, line) {
			continue
		}
		drawn = append(drawn, line)
		b.WriteString(line)
	}
	return b.String()
}
