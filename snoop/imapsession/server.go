package imapsession

import (
	"bytes"
	"errors"
	"slices"
	"strings"

	"understudy/snoop/imapwire"
)

// Wake is what the client's pump is told that waits for the server's word.
type Wake uint8

// The words: it may go on, or what it announced is refused.
const (
	Sleep Wake = iota
	Proceed
	Refuse
)

// Reasons for which a server's line ends its session, or its upstream.
var (
	// ErrBye is a BYE that no LOGOUT asked for. Whether the client must know is not
	// the server's to say.
	ErrBye = errors.New("upstream said BYE")
	// ErrEarly is an OK to a command that was not whole: the server takes the client's
	// words for others than they are here.
	ErrEarly = errors.New("OK to a command that was not whole")
)

// Decision is what becomes of the first line of a server's unit. Tell goes ahead of
// it; then the line, or Line in its place, goes to the client, unless Drop is set.
//
// If it answers a command, and not Done, its answer is held back: Open, Lacks (of
// Ahead), Verify and Settle are to be done, in this order, and then Finish tells
// what goes ahead of it. Reopen takes its place if a change could not be settled.
type Decision struct {
	Response imapwire.Response // its slices are of the line
	Exchange *Exchange         // that it answers, or nil
	Tell     []byte
	Line     []byte // nil: as it is
	Drop     bool   // the whole unit
	Hint     string // a mailbox that changed in a way that was not followed
	Virtual  Number // to be replaced, if the mailbox is shown with another UIDVALIDITY
	Ahead    string // a mailbox of which the client knows messages that the replica may lack
	Opened   bool   // a mailbox was selected: see Open
	Verify   bool   // a refusal of what a lost upstream may have done
	Settle   bool   // a change: it has to be durable before its OK goes on
	Done     bool   // the exchange is over
	Release  Kept   // of an exchange that is over
	Wake     Wake
	End      error
}

// Number says which number of a line is a mailbox's UIDVALIDITY.
type Number struct{ Word, Mailbox string }

// Server takes the first piece of a server unit (later ones hold nothing that
// is followed), of production or the standby.
func (s *Session) Server(line []byte, production bool) (d Decision) {
	oldest, waiting := s.Oldest(), s.waiting()
	if !s.differs.numbers.Same() && !s.Opening() {
		moved, hide := s.differs.toClient(line, oldest)
		if hide {
			s.Unit.begin(&imapwire.Response{}, nil, nil)
			d.Drop = true
			return d
		}
		if moved != nil {
			line, d.Line = moved, moved
		}
	}
	d.Tell = s.differs.tellExists(s.Box)
	d.Response = imapwire.ParseResponse(line)
	r := &d.Response
	switch {
	case r.Tag == "+":
		s.called(&d, waiting, oldest)
	case r.Tag != "*":
		s.tagged(&d, waiting, production)
	case r.Status():
		s.code(r, oldest)
		if r.Name == "BYE" && !s.bye {
			d.End = ErrBye
		}
	case s.untagged(r, oldest) && s.Box != nil && production:
		d.Hint = s.Box.Name
	}
	s.Unit.begin(r, s.Box, oldest)
	if production {
		s.rewrite(&d)
	}
	return d
}

// called takes a continuation.
func (s *Session) called(d *Decision, waiting, oldest *Exchange) {
	switch {
	case waiting != nil:
		waiting.step(Called)
		d.Wake = Proceed
	case oldest != nil && oldest.talks() && oldest.state != Asked:
		d.Drop = oldest.Verb == imapwire.Idle // of another upstream; the client knows
	default:
		s.doubt("continuation that nobody waits for")
	}
}

// tagged takes the answer of a command.
func (s *Session) tagged(d *Decision, waiting *Exchange, production bool) {
	r := &d.Response
	ex := s.take(r.Tag)
	if ex == nil {
		s.doubt("answer to no command")
		return
	}
	d.Exchange = ex
	if ex == waiting {
		d.Wake = Refuse
	}
	ok := r.Name == "OK"
	if r.Name == "BAD" && (ex.Literals != nil || ex.Message) {
		s.doubt("BAD to a command with a literal")
	}
	if ok && !ex.Whole {
		s.doubt(ErrEarly.Error())
		d.End = ErrEarly
	}
	if r.Code == "COPYUID" {
		ex.Heard.CopyUID = bytes.Clone(r.Arg)
	}
	d.Opened = s.answered(ex, r)
	d.Settle = production && ok && ex.Whole && ex.Verb.Changes()
	d.Verify = ex.Tries.Again && r.Name == "NO" && ex.makes()
	if production && !d.Opened {
		d.Ahead = s.Ahead()
	}
	if d.Opened || d.Ahead != "" || d.Settle || d.Verify {
		if ex.step(Accepted); ex.state == Settling {
			s.settling = ex
			return
		}
	}
	ex.step(Answered)
	d.Done = true
	d.Tell = append(d.Tell, s.differs.tell(s.Box, ex)...)
	d.Release = ex.release()
}

// makes reports whether a command makes, renames or deletes a mailbox: done before, it is
// refused.
func (ex *Exchange) makes() bool {
	switch ex.Verb {
	case imapwire.Create, imapwire.Delete, imapwire.Rename:
		return ex.Whole
	}
	return false
}

// release takes what is attached to an exchange that is over. The spool of one whose
// client still sends is that side's to release.
func (ex *Exchange) release() (k Kept) {
	if ex.state == Told {
		k, ex.Kept = ex.Kept, Kept{}
	}
	return k
}

// Finish ends an exchange whose answer was held back. tell goes ahead of the answer.
func (s *Session) Finish(ex *Exchange) (tell []byte, release Kept) {
	if s.settling == ex {
		s.settling = nil
	}
	ex.step(Settled)
	return s.differs.tell(s.Box, ex), ex.release()
}

// MaxReopened is how often a change is asked for again because it could not be made
// durable.
const MaxReopened = 3

// Reopen makes a command that was answered wait for an answer again: the first one
// is not passed on. It reports whether that was not done too often already.
func (s *Session) Reopen(ex *Exchange) bool {
	if ex.Tries.Reopened == MaxReopened || ex.state != Settling {
		return false
	}
	ex.step(Unsettled)
	ex.Tries.Reopened++
	s.settling = nil
	s.pending = slices.Insert(s.pending, 0, ex)
	return true
}

// rewrite cuts a capability list of production's, and finds the UIDVALIDITY that a
// line tells.
func (s *Session) rewrite(d *Decision) {
	r := &d.Response
	caps := func(b []byte) string { return strings.Join(among(strings.Fields(string(b)), s.Caps), " ") }
	switch {
	case r.Name == "CAPABILITY" && r.Tag == "*":
		d.Line = []byte("* CAPABILITY " + caps(r.Rest) + "\r\n")
		return
	case r.Code == "CAPABILITY":
		d.Line = []byte(r.Tag + " " + r.Name + " [CAPABILITY " + caps(r.Arg) + "] " + string(r.Rest) + "\r\n")
		return
	}
	ex := d.Exchange
	if ex == nil {
		ex = s.Oldest()
	}
	d.Virtual.Word, d.Virtual.Mailbox = concerns(r, ex)
}

// Piece follows a piece of a unit with literals, or of a long line; drop tells that
// it is not for the client.
func (s *Session) Piece(p imapwire.Piece, b []byte, drop bool) {
	s.Unit.drop = drop
	s.Unit.piece(p, b)
}
