// Package imapsession follows one IMAP session from the outside, after login:
// the selected mailbox, the client's number → UID view, and the commands that
// wait for their answer.
//
// Implementation notes. A Tracker is fed the pieces of both directions by one
// goroutine each; its caller holds a lock around every call. It never guesses:
// a number that it cannot map to a UID is reported as unknown, and anything
// that a correct server would not send sets Doubt, after which the session
// must not be continued on another upstream. The user is frozen at New.
package imapsession

import (
	"bytes"
	"errors"
	"slices"
	"strings"

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
)

// Cmd is a command of the client, from its first line to its tagged answer.
type Cmd struct {
	Tag, Verb string
	Text      []byte // without the message of an APPEND
	Message   bool   // APPEND: the last literal announced is the message
	Extra     bool   // APPEND: more follows the first message (MULTIAPPEND)
	Mailbox   string // selected when the command was seen, or APPEND's target

	UIDs    []uint32 // that the command names, resolved when it was seen
	Unknown bool     // not all numbers could be resolved

	Fetched   []imapwire.FetchItems // flags told while the command was the oldest
	Expunged  []uint32              // UIDs expunged while it was the oldest
	Delivered []uint32              // FETCH: UIDs whose data the client has
	Found     bool                  // SEARCH: the client has the result
	CopyUID   []byte                // argument of COPYUID

	Mark      uint32 // APPEND, COPY, MOVE: UIDNEXT of the target in the replica when it was seen
	Continued bool   // the client was told "+" for its latest literal, or for IDLE
	Ended     bool   // IDLE: DONE was sent
	Rerun     bool   // sent again to another upstream; the first may have done it
	Reopened  int    // how often its answer was not passed on
	Lost      int    // upstreams that were lost while they were at it

	said     imapwire.Command
	marks    []imapwire.Announced
	complete bool // all of it was received
	answered bool // before it was complete
}

// Args returns a Reader behind tag and verb.
func (c *Cmd) Args() *imapwire.Reader {
	skip := 2 + strings.Count(c.Verb, " ")
	b := c.Text
	for range skip {
		_, rest, ok := bytes.Cut(b, []byte{' '})
		if !ok {
			rest = nil
		}
		b = rest
	}
	return imapwire.NewReader(b)
}

// Changes reports whether a command may change what is stored.
func Changes(verb string) bool {
	switch verb {
	case "APPEND", "STORE", "UID STORE", "COPY", "UID COPY", "MOVE", "UID MOVE", "EXPUNGE", "UID EXPUNGE", "CLOSE",
		"CREATE", "DELETE", "RENAME", "SUBSCRIBE", "UNSUBSCRIBE":
		return true
	}
	return false
}

// Box is a selected mailbox as the client sees it.
type Box struct {
	Name        string
	ReadOnly    bool
	UIDValidity uint32 // as the server told it
	Shown       uint32 // as the client was told it
	UIDNext     uint32
	ModSeq      uint64   // of the replica, up to which the client was told flags; 0 if not known
	View        []uint32 // UID of each number, 0 where it is not known
	Held        uint32   // up to this UID the replica was seen to have what the client knows
	blind       bool     // data was told of a message whose UID is not known
	shared      bool     // View belongs to somebody else: copy before a change
}

// Tracker holds the state of one session.
type Tracker struct {
	User      string
	Box       *Box // nil: none selected
	Doubt     string
	CondStore bool // the client may have enabled it (RFC 7162 section 3.1)

	cur     *Cmd // the client is still sending it
	pending []*Cmd
	opening *Box
}

// New returns a tracker of a session that has just logged in as user.
func New(user string) *Tracker { return &Tracker{User: user} }

// Outstanding returns the commands that wait for their answer, oldest first.
func (t *Tracker) Outstanding() []*Cmd { return t.pending }

func (t *Tracker) doubt(why string) {
	if t.Doubt == "" {
		t.Doubt = why
	}
}

// Client takes a piece of the client's side. It returns the command that the
// piece belongs to, and whether the command is complete with it.
func (t *Tracker) Client(p imapwire.Piece, b []byte) (c *Cmd, done bool, err error) {
	if p.Kind == imapwire.Line && p.First {
		if len(t.pending) >= MaxOutstanding {
			return nil, false, ErrTooMany
		}
		if bytes.ContainsRune(bytes.TrimSuffix(b, []byte("\r\n")), '\r') || bytes.IndexByte(b, 0) >= 0 {
			t.doubt("control character in a command")
		}
		head := imapwire.ParseHead(b)
		t.cur = &Cmd{Tag: head.Tag, Verb: head.Name()}
		if !head.Valid() {
			t.doubt("line that is no command") // its answer has no tag
		}
		t.pending = append(t.pending, t.cur)
	}
	c = t.cur
	if c == nil {
		return nil, false, imapwire.ErrSyntax
	}
	if err := c.said.Receive(p, b); err != nil {
		return nil, false, err
	}
	c.Text, c.Message, c.Extra, c.marks = c.said.Text, c.said.Message, c.said.Extra, c.said.Literals
	if p.Kind == imapwire.Line && p.Lit.Present {
		c.Continued = false
	}
	if p.Kind == imapwire.Line && p.Last {
		t.cur, c.complete = nil, true
		t.resolve(c)
		return c, true, nil
	}
	return c, false, nil
}

// resolve finds the UIDs that a complete command is about.
func (t *Tracker) resolve(c *Cmd) {
	t.CondStore = t.CondStore || c.enablesCondStore()
	r := c.Args()
	switch c.Verb {
	case "STORE", "UID STORE", "COPY", "UID COPY", "MOVE", "UID MOVE", "UID EXPUNGE":
		set := r.Set()
		if r.Err() != nil || t.Box == nil || t.selecting() {
			c.Unknown = true
			return
		}
		c.Mailbox = t.Box.Name
		c.UIDs, c.Unknown = t.Box.uids(set, strings.HasPrefix(c.Verb, "UID "))
	case "EXPUNGE", "CLOSE":
		if t.Box != nil {
			c.Mailbox = t.Box.Name
		}
		c.Unknown = t.Box == nil || t.selecting()
	case "APPEND", "CREATE", "DELETE", "SUBSCRIBE", "UNSUBSCRIBE", "SELECT", "EXAMINE", "RENAME":
		c.Mailbox = r.Mailbox()
	}
}

// selecting reports whether a change of mailbox is under way, so that Box is
// not what the newest command will meet.
func (t *Tracker) selecting() bool {
	return slices.ContainsFunc(t.pending, func(c *Cmd) bool {
		switch c.Verb {
		case "SELECT", "EXAMINE", "CLOSE", "UNSELECT":
			return c != t.pending[len(t.pending)-1]
		}
		return false
	})
}

func (b *Box) uids(set imapwire.Set, byUID bool) (uids []uint32, unknown bool) {
	last := uint32(len(b.View))
	if byUID {
		last = 0
		if n := len(b.View); n > 0 {
			last = b.View[n-1]
		}
		for _, r := range set {
			unknown = unknown || last == 0 && (r.From == imapwire.Star || r.To == imapwire.Star) && len(b.View) > 0
		}
	}
	set = set.Resolve(last)
	if byUID {
		if set.Size() <= 1000 {
			uids, _ = set.Numbers(1000)
			return uids, unknown
		}
		for _, u := range b.View {
			if u == 0 {
				unknown = true
			} else if set.Contains(u) {
				uids = append(uids, u)
			}
		}
		return uids, unknown
	}
	nums, err := set.Numbers(maxNumbers)
	if err != nil {
		return nil, true
	}
	for _, n := range nums {
		if n == 0 || int(n) > len(b.View) || b.View[n-1] == 0 {
			unknown = true
			continue
		}
		uids = append(uids, b.View[n-1])
	}
	return uids, unknown
}

// Seed gives the view of the mailbox that has just been selected. The slice
// stays the caller's and is not changed.
func (t *Tracker) Seed(uids []uint32) {
	if t.Box != nil && len(uids) == len(t.Box.View) {
		t.Box.View, t.Box.shared = uids, true
	}
}

func (b *Box) own() {
	if b.shared {
		b.View, b.shared = slices.Clone(b.View), false
	}
}
