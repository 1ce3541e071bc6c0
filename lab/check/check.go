// Package check decides whether what an IMAP client was told is legal: every
// tag answered once, message numbers and UIDs that add up, nobody else's mail.
// It stands on the client's side of the wire, follows any client, and keeps the
// history, so that one that fails can be judged again.
//
// Implementation notes. A Session is fed the bytes of both directions as they
// pass. What sessions of one account must agree about, which message a UID is,
// is in a Book that they share. Judging a kept history feeds the same bytes to
// new Sessions; nothing depends on the clock.
package check

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"understudy/snoop/imapwire"
)

// Book is what all sessions have seen.
type Book struct {
	mu      sync.Mutex
	n       int
	uids    map[string]string // account, mailbox, UIDVALIDITY, UID → what it is
	valid   map[string]uint32 // account, mailbox → UIDVALIDITY
	faults  []string
	history bytes.Buffer
}

// NewBook returns an empty book.
func NewBook() *Book { return &Book{uids: map[string]string{}, valid: map[string]uint32{}} }

// Faults returns what was not legal.
func (b *Book) Faults() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.faults...)
}

// History returns what passed, for Judge.
func (b *Book) History() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.history.Bytes())
}

// Judge reads a history and returns what is not legal in it.
func Judge(history io.Reader) ([]string, error) {
	b := NewBook()
	sessions := map[string]*Session{}
	sc := bufio.NewScanner(history)
	sc.Buffer(nil, 64<<20)
	for sc.Scan() {
		f := strings.SplitN(sc.Text(), " ", 3)
		if len(f) != 3 {
			return nil, fmt.Errorf("history: %.80q", sc.Text())
		}
		if f[1] == "session" {
			sessions[f[0]] = b.Session(f[2])
			continue
		}
		s := sessions[f[0]]
		if f[1] == "end" && s != nil {
			s.End(f[2] == "clean")
			continue
		}
		text, err := strconv.Unquote(f[2])
		if s == nil || err != nil {
			return nil, fmt.Errorf("history: %.80q: %w", sc.Text(), err)
		}
		if f[1] == ">" {
			s.Client([]byte(text))
		} else {
			s.Server([]byte(text))
		}
	}
	return b.Faults(), sc.Err()
}

// Session follows one connection. Its methods may be called from two goroutines.
type Session struct {
	b       *Book
	id      string
	account string

	cs, ss   imapwire.Scanner
	cbuf     []byte
	sbuf     []byte
	open     []command // without an answer
	seen     map[string]bool
	box      string
	validity uint32
	view     []uint32 // 0: not known
	opening  bool
	number   int  // of the FETCH that a literal belongs to
	lost     bool // framing
}

type command struct{ tag, verb, box string }

// Session begins a session of an account.
func (b *Book) Session(account string) *Session {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n++
	s := &Session{b: b, id: strconv.Itoa(b.n), account: account, cs: imapwire.Scanner{Side: imapwire.Client},
		ss: imapwire.Scanner{Side: imapwire.Server}, seen: map[string]bool{}}
	fmt.Fprintf(&b.history, "%s session %s\n", s.id, account)
	return s
}

func (s *Session) fault(format string, a ...any) {
	s.b.faults = append(s.b.faults, fmt.Sprintf("session %s of %s: %s", s.id, s.account, fmt.Sprintf(format, a...)))
}

// End tells that the session is over; clean is the client's own wish, when all
// must be answered.
func (s *Session) End(clean bool) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	how := "broken"
	if clean {
		how = "clean"
		for _, c := range s.open {
			s.fault("%s %s was never answered", c.tag, c.verb)
		}
	}
	fmt.Fprintf(&s.b.history, "%s end %s\n", s.id, how)
}

// Client takes bytes of the client's.
func (s *Session) Client(p []byte) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	fmt.Fprintf(&s.b.history, "%s > %q\n", s.id, p)
	s.cbuf = append(s.cbuf, p...)
	for len(s.cbuf) > 0 && !s.lost {
		if n := len(s.open); n > 0 && s.open[n-1].verb == "IDLE" && len(s.cbuf) >= 6 &&
			strings.EqualFold(string(s.cbuf[:6]), "DONE\r\n") {
			s.cbuf = s.cbuf[6:]
			continue
		}
		piece, err := s.cs.Next(s.cbuf)
		if err != nil {
			s.lost = true
			return
		}
		if piece.Kind == imapwire.More {
			return
		}
		if piece.Kind == imapwire.Line && piece.First {
			s.command(s.cbuf[:piece.N])
		}
		s.cbuf = s.cbuf[piece.N:]
	}
}

func (s *Session) command(line []byte) {
	head := imapwire.ParseHead(line)
	c := command{tag: head.Tag, verb: head.Name()}
	if c.verb == "SELECT" || c.verb == "EXAMINE" {
		r := imapwire.NewReader(line[len(c.tag)+1+len(c.verb)+1:])
		c.box = r.Mailbox()
	}
	s.open = append(s.open, c)
}

// Server takes bytes of the server's.
func (s *Session) Server(p []byte) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	fmt.Fprintf(&s.b.history, "%s < %q\n", s.id, p)
	s.sbuf = append(s.sbuf, p...)
	for len(s.sbuf) > 0 {
		i := bytes.IndexByte(s.sbuf, '\n')
		if i < 0 {
			return
		}
		line := s.sbuf[:i+1]
		lit := imapwire.Literal{}
		if r := imapwire.ParseResponse(line); r.Tag == "*" && !r.Status() {
			lit = imapwire.ParseMarker(line)
		}
		if lit.Present {
			if int64(len(s.sbuf)) < int64(i+1)+lit.Size {
				return
			}
			s.unit(line)
			s.body(s.sbuf[i+1 : int64(i+1)+lit.Size])
			rest := s.sbuf[int64(i+1)+lit.Size:]
			j := bytes.IndexByte(rest, '\n')
			if j < 0 {
				// The rest of the line is still to come: begin again.
				s.sbuf = append([]byte("* OK again"), rest...)
				return
			}
			s.sbuf = rest[j+1:]
			continue
		}
		s.unit(line)
		s.sbuf = s.sbuf[i+1:]
	}
}

func (s *Session) unit(line []byte) {
	r := imapwire.ParseResponse(line)
	switch {
	case r.Tag == "+":
	case r.Tag != "*":
		s.tagged(r)
	case r.Code == "UIDVALIDITY" && len(s.open) > 0 && s.opens():
		n, _ := strconv.ParseUint(string(r.Arg), 10, 32)
		s.validity = uint32(n)
	case r.Status():
	default:
		s.untagged(r)
	}
}

// opens reports whether the oldest command opens a mailbox; its view begins.
func (s *Session) opens() bool {
	if len(s.open) == 0 || s.open[0].verb != "SELECT" && s.open[0].verb != "EXAMINE" {
		return false
	}
	if !s.opening {
		s.opening, s.view, s.box = true, nil, s.open[0].box
	}
	return true
}

func (s *Session) tagged(r imapwire.Response) {
	for i, c := range s.open {
		if c.tag != r.Tag {
			continue
		}
		s.open = append(s.open[:i:i], s.open[i+1:]...)
		s.seen[c.tag] = true
		if r.Name != "OK" && r.Name != "NO" && r.Name != "BAD" {
			s.fault("%s %s was answered %q", c.tag, c.verb, r.Name)
		}
		switch c.verb {
		case "SELECT", "EXAMINE":
			s.opening = false
			if r.Name != "OK" {
				s.box, s.view = "", nil
				return
			}
			key := s.account + " " + c.box
			if was := s.b.valid[key]; was != 0 && was != s.validity {
				s.fault("UIDVALIDITY of %s was %d and is %d", c.box, was, s.validity)
			}
			s.b.valid[key] = s.validity
		case "CLOSE", "UNSELECT":
			s.box, s.view = "", nil
		}
		return
	}
	if s.seen[r.Tag] {
		s.fault("%s was answered twice", r.Tag)
	} else {
		s.fault("answer to %q, which was not asked", r.Tag)
	}
}

func (s *Session) untagged(r imapwire.Response) {
	n := int(r.Num)
	opens := s.opens()
	switch r.Name {
	case "EXISTS":
		if n < len(s.view) {
			s.fault("EXISTS %d after %d without EXPUNGE", n, len(s.view))
			s.view = s.view[:n]
		}
		for len(s.view) < n {
			s.view = append(s.view, 0)
		}
	case "EXPUNGE":
		if len(s.open) == 0 {
			s.fault("EXPUNGE while no command was under way")
		} else if v := s.open[0].verb; len(s.open) == 1 && (v == "FETCH" || v == "STORE" || v == "SEARCH") {
			s.fault("EXPUNGE during %s", v)
		}
		if n < 1 || n > len(s.view) || opens {
			s.fault("EXPUNGE %d of %d", n, len(s.view))
			return
		}
		s.view = append(s.view[:n-1], s.view[n:]...)
	case "FETCH":
		s.fetch(n, r.Rest)
	}
}

func (s *Session) fetch(n int, rest []byte) {
	s.number = 0
	if n < 1 || n > len(s.view) {
		s.fault("FETCH %d of %d", n, len(s.view))
		return
	}
	s.number = n
	uid := imapwire.ParseFetchHead(rest).UID
	if uid == 0 {
		return
	}
	if was := s.view[n-1]; was != 0 && was != uid {
		s.fault("message %d of %s had UID %d and has %d", n, s.box, was, uid)
	}
	s.view[n-1] = uid
	for i := n - 2; i >= 0; i-- {
		if s.view[i] != 0 {
			if s.view[i] >= uid {
				s.fault("UID %d of message %d comes before UID %d of message %d in %s", s.view[i], i+1, uid, n, s.box)
			}
			break
		}
	}
	for _, u := range s.view[n:] {
		if u != 0 {
			if u <= uid {
				s.fault("UID %d of message %d comes before %d in %s", uid, n, u, s.box)
			}
			break
		}
	}
}

var (
	messageID = regexp.MustCompile(`(?i)Message-ID: *<([^>]*)>`)
	owner     = regexp.MustCompile(`(?i)X-Owner: *(\S+)`)
)

// body looks at a literal of a FETCH.
func (s *Session) body(b []byte) {
	if s.number == 0 || s.number > len(s.view) {
		return
	}
	if m := owner.FindSubmatch(b); m != nil && string(m[1]) != s.account {
		s.fault("mail of %s was shown", m[1])
	}
	uid := s.view[s.number-1]
	if uid == 0 {
		return
	}
	what := ""
	if m := messageID.FindSubmatch(b); m != nil {
		what = string(m[1])
	} else {
		sum := sha256.Sum256(b)
		what = fmt.Sprintf("%x", sum[:8])
	}
	key := fmt.Sprintf("%s %s %d %d", s.account, s.box, s.validity, uid)
	if was := s.b.uids[key]; was != "" && was != what {
		s.fault("UID %d of %s was %s and is %s", uid, s.box, was, what)
	}
	s.b.uids[key] = what
}
