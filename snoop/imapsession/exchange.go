package imapsession

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// Exchange is all of one command: from its first byte to the end of what follows
// from its answer.
type Exchange struct {
	imapwire.Command

	// Mailbox is what the command is about: the selected one when it was seen, the
	// one that it opens or makes, or the target of an APPEND.
	Mailbox string
	UIDs    []uint32 // that it names, resolved when it was seen
	Unknown bool     // not all that it names could be resolved

	Heard Heard
	Kept  Kept
	Tries Tries

	state    State
	code     string // Found: the response code of its OK, with a space behind it
	setsSeen bool   // FETCH: it may set \Seen
}

// Heard is what the server told while it was at a command.
type Heard struct {
	Fetched   []imapwire.FetchItems // STORE: flags
	Expunged  []uint32              // UIDs
	Delivered []uint32              // FETCH: UIDs whose data the client has
	Searched  bool                  // SEARCH: the client has the result
	CopyUID   []byte                // argument of COPYUID
}

// Kept is what is attached to a command before it is sent: all of it tells of the
// moment before.
type Kept struct {
	Before *row.Snapshot // SELECT, EXAMINE: what the replica held of the mailbox
	Mark   uint32        // APPEND, COPY, MOVE: UIDNEXT of the target in the replica
	Spool  row.Spool     // APPEND: its message. The client's pump's own while the command is not whole
	Intent Intent        // MOVE to production: that it was noted
}

// Intent is a MOVE that was noted before it was sent. Arrived has to be called
// when the replica has what it put into its target, Over when it is known, or kept
// elsewhere, what became of it. Both are nil where nothing was noted; they do I/O.
type Intent struct{ Arrived, Over func() }

// Release gives back what is held. It does I/O.
func (k Kept) Release() {
	if k.Spool != nil {
		k.Spool.Discard()
	}
	if k.Intent.Over != nil {
		k.Intent.Over()
	}
}

// With returns k with what else of o is held.
func (k Kept) With(o Kept) Kept {
	if k.Spool == nil {
		k.Spool = o.Spool
	}
	if k.Intent.Over == nil {
		k.Intent = o.Intent
	}
	return k
}

// Tries counts what was tried for a command.
type Tries struct {
	Again    bool // asked again of another upstream; the first may have done it
	Reopened int  // how often its answer was not passed on
	Lost     int  // upstreams that were lost while they were at it
}

// State tells where the exchange stands.
func (ex *Exchange) State() State { return ex.state }

// Owed reports whether the client waits for an answer of a server.
func (ex *Exchange) Owed() bool {
	switch ex.state {
	case Receiving, Waiting, Asked, Talking, Ending, Found:
		return true
	}
	return false
}

// Target is the mailbox that a COPY or MOVE leads to; "" if it cannot be read.
func (ex *Exchange) Target() string {
	a, _ := ex.Args.(imapwire.CopyArgs)
	return a.Target
}

// Doubt is what an unanswered MOVE leaves; ok is false for other commands.
func (ex *Exchange) Doubt() (d row.Doubt, ok bool) {
	if ex.Verb != imapwire.Move || len(ex.UIDs) == 0 || ex.Target() == "" {
		return d, false
	}
	d = row.MoveDoubt(ex.Mailbox, ex.Target(), ex.UIDs, ex.Kept.Mark)
	if _, src, dst, err := ParseCopyUID(ex.Heard.CopyUID); err == nil {
		d.UIDs, d.Dst = src, dst
	}
	return d, true
}

// unread reports whether a command copies messages, and nobody knows where.
func (ex *Exchange) unread() bool {
	_, bad := ex.Args.(imapwire.Unreadable)
	return bad && ex.Verb.MovesOrCopies()
}

// ParseCopyUID reads the argument of a COPYUID code (RFC 4315).
func ParseCopyUID(arg []byte) (validity uint32, src, dst []uint32, err error) {
	r := imapwire.NewReader(arg)
	validity = r.Number32()
	r.SP()
	from := r.Set()
	r.SP()
	to := r.Set()
	if r.Err() != nil {
		return 0, nil, nil, r.Err()
	}
	if src, err = from.Numbers(maxNumbers); err == nil {
		dst, err = to.Numbers(maxNumbers)
	}
	return validity, src, dst, err
}

// undelivered takes back that the client has the data of a message, whose last
// part it did not get.
func (ex *Exchange) undelivered(uid uint32) {
	if n := len(ex.Heard.Delivered); n > 0 && ex.Heard.Delivered[n-1] == uid {
		ex.Heard.Delivered = ex.Heard.Delivered[:n-1]
	}
}

// continued reports whether the server was heard on the i-th literal, or none has
// to be: it is not the one that the client waits with.
func (ex *Exchange) continued(i int) bool {
	return i+1 < len(ex.Literals) || ex.Whole || ex.state != Waiting
}

// NonSync reports whether the command can only be sent again with non-synchronising
// literals (RFC 7888): the client was asked for one that it announced.
func (ex *Exchange) NonSync() bool {
	for i, l := range ex.Literals {
		if !l.NonSync && ex.continued(i) {
			return true
		}
	}
	return false
}

// text is the command as it is sent again, in two parts with the message of an
// APPEND in between if message is set.
func (ex *Exchange) text() (before, after []byte, message bool) {
	dst, last := &before, 0
	for i, l := range ex.Literals {
		*dst = append(*dst, ex.Text[last:l.At]...)
		last = l.At
		if !l.NonSync && ex.continued(i) {
			j := bytes.LastIndexByte(*dst, '}')
			*dst = append((*dst)[:j:j], "+}\r\n"...)
		}
		if l.Message {
			message, dst = true, &after
		}
	}
	*dst = append(*dst, ex.Text[last:]...)
	return before, after, message
}

// byUID is the command with its messages named by UID, as they were resolved.
func (ex *Exchange) byUID() []byte {
	_, _, behind, _ := imapwire.SplitSet(ex.Text) // it was resolved, so there is one
	return fmt.Appendf(nil, "%s UID %s %s%s", ex.Tag, ex.Verb, imapwire.FormatSet(ex.UIDs), behind)
}

// restOfFetch asks for the messages that the client has not got yet; done tells
// that there are none.
func (ex *Exchange) restOfFetch(box *Box) (text []byte, done bool) {
	_, set, behind, ok := imapwire.SplitSet(ex.Text)
	if !ok || box == nil {
		return ex.Text, false
	}
	have := make(map[uint32]bool, len(ex.Heard.Delivered))
	for _, u := range ex.Heard.Delivered {
		have[u] = true
	}
	last := uint32(len(box.View))
	if ex.ByUID && last > 0 {
		last = box.View[last-1]
	}
	set = set.Resolve(last)
	var rest []uint32
	for i, u := range box.View {
		n := uint32(i + 1)
		if ex.ByUID {
			n = u
		}
		if !have[u] && set.Contains(n) {
			rest = append(rest, n)
		}
	}
	return fmt.Appendf(nil, "%s %s %s%s", ex.Tag, ex.Name(), imapwire.FormatSet(rest), behind), len(rest) == 0
}

// holdsAll reports whether a FETCH response that ends after its literal holds
// all that was asked for.
func (ex *Exchange) holdsAll(head []byte) bool {
	a, _ := ex.Args.(imapwire.FetchArgs)
	asked := strings.ToUpper(strings.Trim(string(a.Items), " ()"))
	got := strings.ToUpper(string(head))
	if i := strings.IndexByte(asked, '['); i >= 0 {
		j := strings.LastIndexByte(asked, ']')
		if j < i || strings.Contains(asked[i+1:j], "[") {
			return false // several sections
		}
		asked = asked[:strings.LastIndexByte(asked[:i], ' ')+1] + strings.TrimLeft(asked[j+1:], "<.0123456789>")
	}
	return !slices.ContainsFunc(strings.Fields(asked), func(w string) bool { return !strings.Contains(got, w+" ") })
}
