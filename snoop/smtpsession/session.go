// Package smtpsession is an SMTP session as a value: who the client is, what it
// was granted, and its envelope so far; enough to say what it may say next, and to
// bring another server to the same state.
//
// Implementation notes. Where the session stands is its Stage. A table (table.go)
// says for every stage and command whether the command may be said and where it
// leads; TLS, greeting and login are conditions of its rows. The methods that move
// the session are called after the server granted the command, Hello and Reset
// before it was asked. A Session has one owner and no lock. Body and outcome of a
// message are not part of it: from the 354 on (Body) it only keeps whom the
// message is from and for.
package smtpsession

import (
	"slices"

	"understudy/proxy/seam"
	"understudy/replica/row"
	"understudy/snoop/smtpwire"
)

// Limits of what a client may do wrong before its session is ended.
const (
	maxMistakes = 20
	maxDenials  = 3 // from the fourth mistake on a refused login ends the session
)

// Session is one client's session. It begins with New.
type Session struct {
	client   seam.Client
	stage    Stage
	greeted  bool        // the server took the client's EHLO or HELO
	login    *seam.Login // taken
	from     smtpwire.Path
	to       []smtpwire.Path
	mistakes int
}

// New is a session whose client has said nothing yet.
func New(c seam.Client) *Session { return &Session{client: c, stage: Idle} }

// Client is what the client told of itself last.
func (s *Session) Client() seam.Client { return s.client }

// Stage is where the session stands.
func (s *Session) Stage() Stage { return s.stage }

// Envelope is that of the message under way.
func (s *Session) Envelope() row.Envelope {
	e := row.Envelope{From: s.from.Addr, Params: s.from.Params}
	for _, p := range s.to {
		e.Rcpts = append(e.Rcpts, p.Addr)
	}
	if s.login != nil {
		e.User = s.login.User
	}
	return e
}

// Hello is what the client calls itself. Until Greeted the server has not taken it.
func (s *Session) Hello(name string, esmtp bool) {
	if s.move(Hello) {
		s.client.Helo, s.client.ESMTP, s.greeted = name, esmtp, false
	}
}

// Greeted tells that the server took the client's name.
func (s *Session) Greeted() { s.greeted = true }

// Secured tells that TLS has begun: the client has to greet again (RFC 3207 section
// 4.2).
func (s *Session) Secured() {
	if s.move(StartTLS) {
		s.client.TLS, s.greeted = true, false
	}
}

// LoggedIn tells that the server took a login.
func (s *Session) LoggedIn(l seam.Login) {
	if s.move(Auth) {
		s.login = &l
	}
}

// From tells that the server took the sender.
func (s *Session) From(p smtpwire.Path) {
	if s.move(Mail) {
		s.from = p
	}
}

// To tells that the server took a recipient.
func (s *Session) To(p smtpwire.Path) {
	if s.move(Rcpt) {
		s.to = append(s.to, p)
	}
}

// Only leaves of the recipients those that are still to be asked for.
func (s *Session) Only(rcpts []string) {
	s.to = slices.DeleteFunc(s.to, func(p smtpwire.Path) bool { return !slices.Contains(rcpts, p.Addr) })
}

// Begin tells that the server waits for the message.
func (s *Session) Begin() { s.move(Data) }

// End tells that the client was told the message's outcome.
func (s *Session) End() { s.move(End) }

// Reset forgets the envelope.
func (s *Session) Reset() { s.move(Reset) }

// Quit ends the session.
func (s *Session) Quit() { s.move(Quit) }

// Mistake counts something that the client does wrong, and reports whether it was
// too much.
func (s *Session) Mistake() (tooMany bool) {
	s.mistakes++
	return s.mistakes > maxMistakes
}

// Denied counts a login that was refused, and reports whether it was too much.
func (s *Session) Denied() (tooMany bool) {
	s.mistakes++
	return s.mistakes > maxDenials
}

// Step is one thing that is said to a server to bring it to the session's state.
type Step struct {
	On     Event       // Hello, Auth, Mail or Rcpt
	Client seam.Client // of Hello
	Login  seam.Login  // of Auth
	Line   string      // of Mail and Rcpt
}

// Again lists what brings another server to the session's state, in order: each
// must be granted before the next is said. The message is not among it.
func (s *Session) Again() []Step {
	var steps []Step
	if s.greeted {
		steps = append(steps, Step{On: Hello, Client: s.client})
	}
	if s.login != nil {
		steps = append(steps, Step{On: Auth, Login: *s.login})
	}
	if s.stage == Idle || s.stage == Over {
		return steps
	}
	steps = append(steps, Step{On: Mail, Line: s.from.MailLine()})
	for _, p := range s.to {
		steps = append(steps, Step{On: Rcpt, Line: p.RcptLine()})
	}
	return steps
}
