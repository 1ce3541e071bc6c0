package imapsession

import (
	"errors"
	"fmt"
	"slices"

	"understudy/snoop/imapwire"
)

// ErrNotAdoptable wraps the reasons for which a session cannot go on with
// another upstream.
var ErrNotAdoptable = errors.New("session cannot be adopted")

func notAdoptable(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrNotAdoptable, fmt.Sprintf(format, a...))
}

// maxLost is how many upstreams may be lost over one command: it may be what
// they die of.
const maxLost = 4

// Adoptable tells whether the session's state is certain.
func (s *Session) Adoptable() error {
	if s.Unit.Open() && !s.Unit.Known() {
		return notAdoptable("in the middle of %.40q", s.Unit.line)
	}
	if s.Doubt != "" {
		return notAdoptable("%s", s.Doubt)
	}
	for _, ex := range s.pending {
		switch {
		case ex.Tries.Lost >= maxLost:
			return notAdoptable("%d upstreams were lost over one %s", ex.Tries.Lost, ex.Name())
		case ex.Extra:
			return notAdoptable("several messages in one APPEND")
		case ex.unread():
			return notAdoptable("%s that is not understood", ex.Name())
		case !ex.ByUID && (ex.Verb == imapwire.Store || ex.Verb.MovesOrCopies()) && ex.Unknown &&
			len(ex.Heard.Expunged) > 0:
			return notAdoptable("numbers of %s", ex.Name())
		}
	}
	return nil
}

// Lost tells that the upstream was lost: what it had told of a mailbox that was
// being opened is forgotten.
func (s *Session) Lost() {
	s.opening = nil
	if s.Unit.drop {
		s.Unit = Unit{}
	}
	for _, ex := range s.pending {
		ex.step(Lost)
	}
	if s.cur != nil {
		s.cur.step(Lost)
	}
	if ex := s.Oldest(); ex != nil && ex.Verb != imapwire.Idle {
		ex.Tries.Lost++
	}
}

// Goodbye returns what ends a session that has logged out; over is false if it goes
// on.
func (s *Session) Goodbye() (line []byte, over bool) {
	if !s.bye {
		return nil, s.gone
	}
	for _, ex := range s.pending {
		if ex.Verb == imapwire.Logout {
			line = fmt.Appendf(line, "* BYE Logging out\r\n%s OK Logout completed\r\n", ex.Tag)
		}
	}
	return line, true
}

// Busy reports whether the session waits for an answer to a command that was
// received whole; all but idle ones count if all is set, else only changes do.
func (s *Session) Busy(all bool) bool {
	return s.busy(all) || s.Unit.Open() && !s.Unit.Known()
}

// Leaving reports whether the end of the upstream is the client's own doing.
func (s *Session) Leaving() bool { return s.bye || s.gone }

// Discovered tells that a lost upstream had done a command; code is the response code
// of its OK, with a space behind it.
func (s *Session) Discovered(ex *Exchange, code string) {
	ex.step(Discovered)
	ex.code = code
}

// AnswerFound answers the oldest command that a lost upstream had done; ok is false
// if there is none.
func (s *Session) AnswerFound() (line []byte, wake Wake, release Kept, ok bool) {
	for _, ex := range s.pending {
		if ex.state == Found {
			line, wake, release = s.Answer(ex, "OK "+ex.code+"Completed")
			return line, wake, release, true
		}
	}
	return nil, Sleep, Kept{}, false
}

// Answer gives a command the answer that a lost upstream owes.
func (s *Session) Answer(ex *Exchange, status string) (line []byte, wake Wake, release Kept) {
	if ex == s.waiting() {
		wake = Refuse
	}
	s.pending = slices.DeleteFunc(s.pending, func(x *Exchange) bool { return x == ex })
	ex.step(Answered)
	line = append(s.differs.tell(s.Box, ex), ex.Tag+" "+status+"\r\n"...)
	return line, wake, ex.release()
}

// Again is how a command is run on another upstream: Answer is the status that
// ends it at once, else Before and After are to be sent, with the message of an
// APPEND in between if Message is set. Tell is for the client, Release what has no
// use there.
type Again struct {
	Answer        string
	Before, After []byte
	Message       bool
	Tell          []byte
	Release       Kept
}

// Prepare returns what has to be attached to a pending command before it is sent to
// another upstream.
func (s *Session) Prepare(ex *Exchange, production bool) Needs {
	if !ex.Owed() || !ex.Whole {
		return Needs{}
	}
	ex.Kept.Before = nil
	n := ex.needs(production)
	n.Mark, n.Spool = "", false // they are of the moment before it was sent first
	return n
}

// Again tells how to run a pending command once more. Literals that the client
// has already been asked for are announced as non-synchronising ones (RFC 7888).
// After an error the upstream is of no use.
func (s *Session) Again(ex *Exchange, production bool) (a Again, err error) {
	if !ex.Owed() {
		return a, nil
	}
	ex.Tries.Again = true
	if !production {
		a.Release.Intent, ex.Kept.Intent = ex.Kept.Intent, Intent{}
	}
	plain := len(ex.Literals) == 0
	switch {
	case ex.state == Ending:
		a.Answer = "OK Idle completed"
	case ex.Whole && ex.Verb == imapwire.Search && ex.Heard.Searched:
		a.Answer = "OK Search completed"
	case ex.Verb == imapwire.Fetch && plain && len(ex.Heard.Delivered) > 0:
		var done bool
		if a.Before, done = ex.restOfFetch(s.Box); done {
			a.Answer, a.Before = "OK Fetch completed", nil
		}
	case !ex.ByUID && plain && !ex.Unknown && len(ex.UIDs) > 0:
		a.Before = ex.byUID()
	default:
		a.Before, a.After, a.Message = ex.text()
	}
	if a.Answer != "" {
		return a, nil
	}
	if ex.state == Talking && ex.Verb == imapwire.Idle {
		a.Tell = s.differs.tell(s.Box, ex)
	}
	if !ex.Whole || a.Message {
		return a, nil
	}
	if out := s.replace(ex); out != nil {
		a.Before = out
	} else if out, err := s.differs.toServer(ex, a.Before); err != nil {
		return a, err
	} else if out != nil {
		a.Before = out
	}
	return a, nil
}

// Resume is what a session has to find on its next upstream.
type Resume struct {
	CondStore bool
	NonSync   bool // literals can only be sent again as non-synchronising ones
	Open      bool // a mailbox is selected
	Mailbox   string
	ReadOnly  bool
	Shown     uint32 // its UIDVALIDITY, as the client was told
}

// Resume begins to bring another upstream to the session's state.
func (s *Session) Resume() Resume {
	// What the client was not told yet of an earlier move it has still to be told: the
	// view holds it already, and shows it as no difference any more.
	untold := s.differs
	s.differs = difference{}
	r := Resume{CondStore: s.CondStore, NonSync: slices.ContainsFunc(s.pending, (*Exchange).NonSync)}
	if box := s.Box; box != nil && !s.Opening() {
		s.differs.exists, s.differs.flags = untold.exists, untold.flags
		r.Open, r.Mailbox, r.ReadOnly, r.Shown = true, box.Name, box.ReadOnly, box.Shown
	}
	return r
}

// Half is the rest of a unit that is half sent: the number of its message on the
// server. By number no EXPUNGE can come in between (RFC 9051 section 7.5.1).
func (s *Session) Half() (u Unit, number uint32, there bool) {
	u = s.Unit
	if i := slices.Index(s.Box.viewOf(), u.UID); i >= 0 {
		number, there = s.differs.numbers.Server(uint32(i + 1))
	}
	return u, number, there
}

func (b *Box) viewOf() []uint32 {
	if b == nil {
		return nil
	}
	return b.View
}

// Completed tells that the client has n bytes more of the literal. Should this
// upstream be lost as well, nothing is sent twice.
func (u *Unit) Completed(n int64) {
	u.Got += n
	u.part = u.Got < u.Size
}

// EndUnit ends a unit whose rest was got from elsewhere.
func (s *Session) EndUnit() {
	if ex := s.Unit.ex; ex != nil && !ex.holdsAll(s.Unit.head) {
		ex.undelivered(s.Unit.UID)
	}
	s.Unit = Unit{}
}
