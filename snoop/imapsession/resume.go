package imapsession

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"understudy/snoop/imapwire"
)

// ErrNotAdoptable wraps the reasons for which a session cannot go on with
// another upstream.
var ErrNotAdoptable = errors.New("session cannot be adopted")

func notAdoptable(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrNotAdoptable, fmt.Sprintf(format, a...))
}

// Adoptable tells whether the session's state is certain.
func (t *Tracker) Adoptable() error {
	if t.Doubt != "" {
		return notAdoptable("%s", t.Doubt)
	}
	for _, c := range t.pending {
		if c.Lost >= maxLost {
			return notAdoptable("%d upstreams were lost over one %s", c.Lost, c.Verb)
		}
		if c.Extra {
			return notAdoptable("several messages in one APPEND")
		}
		if byNumber(c.Verb) && c.Unknown && len(c.Expunged) > 0 {
			return notAdoptable("numbers of %s", c.Verb)
		}
	}
	return nil
}

// Answered reports whether a command was answered before all of it was received.
func (c *Cmd) Answered() bool { return c.answered }

// Complete reports whether all of a command was received.
func (c *Cmd) Complete() bool { return c.complete }

// Current returns the command that the client is still sending, or nil.
func (t *Tracker) Current() *Cmd { return t.cur }

// maxLost is how many upstreams may be lost over one command: it may be what
// they die of.
const maxLost = 4

// Lost forgets what the upstream that was lost had told of a mailbox that was
// being opened.
func (t *Tracker) Lost() {
	t.opening = nil
	if c := t.oldest(); c != nil && c.Verb != "IDLE" {
		c.Lost++
	}
}

// Opening reports whether the server is believed to open a mailbox, so that
// numbers are those of no view yet.
func (t *Tracker) Opening() bool {
	c := t.oldest()
	return c != nil && (c.Verb == "SELECT" || c.Verb == "EXAMINE")
}

// Reopen makes a command that was answered wait for an answer again: the first
// one was not passed on.
func (t *Tracker) Reopen(c *Cmd) {
	c.answered = false
	c.Reopened++
	t.pending = slices.Insert(t.pending, 0, c)
}

// Answer takes a command off that needs no answer of a server any more.
func (t *Tracker) Answer(c *Cmd) {
	t.pending = slices.DeleteFunc(t.pending, func(x *Cmd) bool { return x == c })
	c.answered = true
}

// Forget takes a message out of the view that the client is being told is gone.
func (t *Tracker) Forget(n int) {
	t.Box.own()
	t.Box.View = slices.Delete(t.Box.View, n-1, n)
}

// Grow adds messages to the view.
func (t *Tracker) Grow(uids []uint32) {
	t.Box.own()
	t.Box.View = append(t.Box.View, uids...)
}

// Fill finds the UIDs that the view lacks among those of another server's view
// of the same mailbox. Where the client was told no more than that there is a
// message at that place, with some flags, any that can be there will do; one
// that is left over keeps the UID 0 and is gone. It returns the UIDs that it
// found, and fails where more was told and the choice would be a guess.
func (b *Box) Fill(server []uint32) (filled []uint32, err error) {
	if !slices.Contains(b.View, 0) {
		return nil, nil
	}
	b.own()
	for i := 0; i < len(b.View); i++ {
		if b.View[i] != 0 {
			continue
		}
		j, low, high := i, uint32(0), ^uint32(0)
		for j < len(b.View) && b.View[j] == 0 {
			j++
		}
		if i > 0 {
			low = b.View[i-1]
		}
		if j < len(b.View) {
			high = b.View[j]
		}
		from, _ := slices.BinarySearch(server, low+1)
		to, _ := slices.BinarySearch(server, high)
		if n := to - from; n != j-i && b.blind {
			return nil, notAdoptable("%d messages without a known UID, and %d to choose from", j-i, n)
		}
		n := copy(b.View[i:j], server[from:to])
		filled = append(filled, b.View[i:i+n]...)
		i = j
	}
	return filled, nil
}

func byNumber(verb string) bool {
	switch verb {
	case "STORE", "COPY", "MOVE":
		return true
	}
	return false
}

// Again is how a command is run on another upstream: Answer is the status that
// ends it at once, else Before and After are to be sent, with the message of an
// APPEND in between if Message is set.
type Again struct {
	Answer        string
	Before, After []byte
	Message       bool
}

// Again tells how to run a pending command once more. Literals that the client
// has already been asked for are announced as non-synchronising ones (RFC 7888).
func (t *Tracker) Again(c *Cmd) Again {
	switch c.Verb {
	case "IDLE":
		if c.Ended {
			return Again{Answer: "OK Idle completed"}
		}
	case "SEARCH", "UID SEARCH":
		if c.Found {
			return Again{Answer: "OK Search completed"}
		}
	case "FETCH", "UID FETCH":
		if len(c.Delivered) > 0 && len(c.marks) == 0 {
			return t.restOfFetch(c)
		}
	case "STORE", "COPY", "MOVE":
		if !c.Unknown && len(c.UIDs) > 0 && len(c.marks) == 0 {
			r := c.Args()
			r.Set()
			return Again{Before: fmt.Appendf(nil, "%s UID %s %s%s\r\n", c.Tag, c.Verb, imapwire.FormatSet(c.UIDs), r.Rest())}
		}
	}
	a := Again{}
	dst, last := &a.Before, 0
	for i, m := range c.marks {
		*dst = append(*dst, c.Text[last:m.At]...)
		last = m.At
		if !m.NonSync && (i+1 < len(c.marks) || c.Continued || c.complete) {
			*dst = nonSync(*dst)
		}
		if m.Message {
			a.Message, dst = true, &a.After
		}
	}
	*dst = append(*dst, c.Text[last:]...)
	return a
}

// nonSync changes the marker at the end of b.
func nonSync(b []byte) []byte {
	i := bytes.LastIndexByte(b, '}')
	return append(b[:i:i], "+}\r\n"...)
}

// restOfFetch asks for the messages that the client has not got yet.
func (t *Tracker) restOfFetch(c *Cmd) Again {
	r := c.Args()
	set := r.Set()
	if r.Err() != nil || t.Box == nil {
		return Again{Before: c.Text}
	}
	have := make(map[uint32]bool, len(c.Delivered))
	for _, u := range c.Delivered {
		have[u] = true
	}
	view := t.Box.View
	byUID := strings.HasPrefix(c.Verb, "UID ")
	last := uint32(len(view))
	if byUID && last > 0 {
		last = view[last-1]
	}
	set = set.Resolve(last)
	var rest []uint32
	for i, u := range view {
		n := uint32(i + 1)
		if byUID {
			n = u
		}
		if !have[u] && set.Contains(n) {
			rest = append(rest, n)
		}
	}
	if len(rest) == 0 {
		return Again{Answer: "OK Fetch completed"}
	}
	return Again{Before: fmt.Appendf(nil, "%s %s %s%s\r\n", c.Tag, c.Verb, imapwire.FormatSet(rest), r.Rest())}
}

// Undelivered takes back that the client has the data of a message, whose last
// part it did not get.
func (c *Cmd) Undelivered(uid uint32) {
	if n := len(c.Delivered); n > 0 && c.Delivered[n-1] == uid {
		c.Delivered = c.Delivered[:n-1]
	}
}

// Oldest returns the command that the server is believed to work on, or nil.
func (t *Tracker) Oldest() *Cmd { return t.oldest() }

func (c *Cmd) enablesCondStore() bool {
	switch c.Verb {
	case "ENABLE", "SELECT", "EXAMINE", "FETCH", "UID FETCH", "STORE", "UID STORE", "SEARCH", "UID SEARCH", "STATUS":
		up := bytes.ToUpper(c.Text)
		return bytes.Contains(up, []byte("CONDSTORE")) || bytes.Contains(up, []byte("MODSEQ")) || bytes.Contains(up, []byte("CHANGEDSINCE"))
	}
	return false
}
