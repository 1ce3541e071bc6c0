// Package imapsession is one IMAP session after login as a value: the selected
// mailbox, the client's number → UID view, what differs for the client from what
// the server has, the unit that is half sent, and the exchanges: commands from
// their first byte to the end of what follows from their answers.
//
// Implementation notes. A Session is fed the pieces of both directions by one
// goroutine each; its caller holds a mutex around every call, and nothing else is
// done under it: the package is pure, and what is to be done is returned as a value
// (Taken of a client's piece, Decision of a server's line), which the caller
// carries out without the mutex. What that needs of the moment before a command
// is sent (Needs) is attached before the command is sent.
//
// An exchange has one State; its table is in state.go, docs/imapsession.mmd draws it.
// The Spool of an exchange belongs to the client's pump while the command is not
// whole, and to the server's side from then on; whatever else is attached does not
// change once the command is sent.
//
// The session never guesses: a number that it cannot map to a UID is reported as
// unknown, and anything that a correct server would not send sets Doubt, after
// which the session must not be continued on another upstream. The user is frozen
// at New.
package imapsession

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"time"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// Limits of one session.
const (
	MaxOutstanding = 1000
	maxNumbers     = 1 << 20 // numbers of one set
)

// Errors of the client's side, after which the session must end.
var (
	ErrTooMany = errors.New("too many commands without an answer")
	errAfter   = errors.New("a literal is announced in a command that was answered")
)

// Cut is why a session ends, as the client is told.
type Cut string

func (c Cut) Error() string { return string(c) }

// Session is the state of one session.
type Session struct {
	User      string
	Caps      []string // that may be enabled
	CondStore bool     // the client may have enabled it (RFC 7162 section 3.1)
	Unit      Unit     // that is half sent

	queue
	selection
	bye   bool      // LOGOUT was seen
	gone  bool      // the client sends no more
	heard time.Time // of the client
}

// New returns a session that has just logged in as user.
func New(user string) *Session { return &Session{User: user} }

// Needs is what has to be attached to a command before it is sent.
type Needs struct {
	Before string     // a snapshot of this mailbox
	Mark   string     // the UIDNEXT of this one
	Spool  bool       // a spool
	Intent *row.Doubt // that this was noted, with the Mark
}

// Taken is what becomes of a piece of the client's.
type Taken struct {
	Exchange *Exchange
	Needs    Needs
	Write    bool // its bytes go to the spool of the exchange
	Start    bool // with them the message is whole
	Drop     bool // nobody gets the piece
	Wait     bool // the server's word has to be waited for before the next one
	Release  Kept // is needed no more
}

// Client takes a piece of the client's side, for production or the standby. After
// an error the session must end.
func (s *Session) Client(p imapwire.Piece, b []byte, at time.Time, production bool) (t Taken, err error) {
	s.heard = at
	if p.Kind == imapwire.Line && p.First {
		if len(s.pending) >= MaxOutstanding {
			return t, ErrTooMany
		}
		if bytes.IndexByte(imapwire.TrimEOL(b), '\r') >= 0 || bytes.IndexByte(b, 0) >= 0 {
			s.doubt("control character in a command")
		}
		s.begin()
	}
	ex := s.cur
	if ex == nil {
		return t, imapwire.ErrSyntax
	}
	if ex.state == Waiting {
		s.doubt("client that does not wait")
		ex.step(Spoke)
	}
	if err := ex.Receive(p, b); err != nil {
		return t, err
	}
	t.Exchange = ex
	if a, ok := ex.Args.(imapwire.AppendArgs); ok {
		ex.Mailbox = a.Mailbox
	}
	if !ex.Owed() {
		t.Drop = ex.state == Orphaned
		t.Release.Spool, ex.Kept.Spool = ex.Kept.Spool, nil
	}
	if p.Kind == imapwire.Line && p.First && !ex.Valid() {
		s.doubt("line that is no command") // its answer has no tag
	}
	switch {
	case p.Kind == imapwire.Line && p.Last:
		s.cur = nil
		s.resolve(ex)
		ex.step(Received)
	case p.Kind == imapwire.Line && !p.Lit.NonSync && ex.Owed():
		ex.step(Announced)
	case p.Kind == imapwire.Line && !p.Lit.NonSync:
		return t, errAfter // whether it comes is for the server to say, and nobody waits for that
	}
	t.Wait = ex.state == Waiting
	if ex.Owed() {
		t.Needs = ex.needs(production)
		t.Write = p.Kind == imapwire.Body && ex.Message && !ex.Extra
		t.Start = t.Write && p.Left == 0 && production
	}
	return t, nil
}

// needs tells what has to be attached before the next bytes of the command are sent.
func (ex *Exchange) needs(production bool) (n Needs) {
	if ex.Message && !ex.Extra && ex.Kept.Spool == nil {
		n.Spool, n.Mark = true, ex.Mailbox
	}
	if !ex.Whole {
		return n
	}
	if ex.Verb.Opens() {
		n.Before = ex.Mailbox
	}
	if ex.Verb.MovesOrCopies() {
		n.Mark = ex.Target()
	}
	if d, ok := ex.Doubt(); ok && production && ex.Kept.Intent.Over == nil {
		n.Intent = &d
	}
	return n
}

// Attach attaches what a command needs. What has no use any more, since it was
// answered meanwhile, is given back.
func (ex *Exchange) Attach(k Kept) (back Kept) {
	if !ex.Owed() {
		return k
	}
	if k.Before != nil {
		ex.Kept.Before = k.Before
	}
	if k.Mark != 0 {
		ex.Kept.Mark = k.Mark
	}
	if k.Spool != nil {
		ex.Kept.Spool = k.Spool
	}
	if k.Intent.Over != nil {
		ex.Kept.Intent = k.Intent
	}
	return Kept{}
}

// resolve finds what a whole command is about.
func (s *Session) resolve(ex *Exchange) {
	s.CondStore = s.CondStore || ex.EnablesCondStore()
	ex.setsSeen = ex.Verb == imapwire.Fetch && ex.SetsSeen()
	switch a := ex.Args.(type) {
	case imapwire.CopyArgs:
		s.resolveSet(ex, a.Set)
	case imapwire.StoreArgs:
		s.resolveSet(ex, a.Set)
	case imapwire.SetArgs:
		s.resolveSet(ex, a.Set)
	case imapwire.MailboxArgs:
		ex.Mailbox = a.Mailbox
	case imapwire.SelectArgs:
		ex.Mailbox = a.Mailbox
	case imapwire.RenameArgs:
		ex.Mailbox = a.From
	case imapwire.Unreadable:
		ex.Unknown = true
	}
	switch ex.Verb {
	case imapwire.Store, imapwire.Copy, imapwire.Move, imapwire.Expunge, imapwire.Close:
		mailbox, certain := s.meets()
		ex.Mailbox, ex.Unknown = mailbox, ex.Unknown || !certain
	}
}

// resolveSet finds the UIDs of a set.
func (s *Session) resolveSet(ex *Exchange, set imapwire.Set) {
	if _, certain := s.meets(); certain {
		ex.UIDs, ex.Unknown = s.Box.uids(set, ex.ByUID)
	}
}

// meets returns the mailbox that the newest command will meet. It is not certain
// while a change of mailbox is under way: then Box is not the one, and its view is
// not known.
func (s *Session) meets() (mailbox string, certain bool) {
	if ex := s.changing(); ex != nil {
		if ex.Verb.Opens() {
			return ex.Mailbox, false
		}
		return "", false
	}
	if s.Box == nil {
		return "", false
	}
	return s.Box.Name, true
}

// Rewrite returns what is sent in place of a command's first piece, nil if that is
// sent as it is: numbers that the server counts otherwise, and commands that would
// leave what the standby can do. A command that production does not know keeps the
// answers in order. After an error the session must end.
func (s *Session) Rewrite(ex *Exchange, p imapwire.Piece, b []byte) ([]byte, error) {
	if p.Kind != imapwire.Line || !p.First {
		return nil, nil
	}
	if out, err := s.differs.toServer(ex, b); out != nil || err != nil {
		return out, err
	}
	if !p.Last {
		return nil, nil
	}
	return s.replace(ex), nil
}

// replace returns what is sent in place of a one-line command, or nil.
func (s *Session) replace(ex *Exchange) []byte {
	switch ex.Verb {
	case imapwire.Logout:
		s.bye = true
	case imapwire.Compress, imapwire.Notify, imapwire.Unauthenticate, imapwire.StartTLS, imapwire.Login,
		imapwire.Authenticate, imapwire.XClient:
		return []byte(ex.Tag + " XHIDDEN\r\n")
	case imapwire.Enable:
		a, _ := ex.Args.(imapwire.EnableArgs)
		keep := among(a.Words, s.Caps)
		if keep == nil {
			return []byte(ex.Tag + " NOOP\r\n")
		}
		return []byte(ex.Tag + " ENABLE " + strings.Join(keep, " ") + "\r\n")
	}
	return nil
}

// among returns the words that are among caps.
func among(words, caps []string) (keep []string) {
	for _, w := range words {
		if slices.ContainsFunc(caps, func(c string) bool { return strings.EqualFold(c, w) }) {
			keep = append(keep, w)
		}
	}
	return keep
}

// EndIdle takes the line that ends an IDLE, and reports whether it is sent.
func (s *Session) EndIdle(ex *Exchange, line []byte, at time.Time) (send bool) {
	s.heard = at
	if !strings.EqualFold(string(imapwire.TrimEOL(line)), "DONE") {
		s.doubt("IDLE was ended by another line than DONE")
	}
	send = ex.Owed()
	ex.step(Ended)
	return send
}

// Begin tells when the session begins.
func (s *Session) Begin(at time.Time) { s.heard = at }

// Gone tells that the client sends no more.
func (s *Session) Gone() { s.gone = true }

// Silent tells for how long nothing was heard of the client.
func (s *Session) Silent(at time.Time) time.Duration { return at.Sub(s.heard) }
