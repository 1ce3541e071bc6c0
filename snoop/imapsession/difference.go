package imapsession

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// difference is how the open mailbox differs for the client from what the server
// has, since the session was moved: numbers that count other messages, and what
// the client has still to be told. The zero value is none.
type difference struct {
	numbers Numbers
	exists  bool // there are more messages than the client was told of
	flags   []row.FlagsOf
}

func (d *difference) none() bool { return d.numbers.Same() && !d.exists && d.flags == nil }

// toClient translates the number of an untagged response; nil if it stays. hide
// tells that the response is about a message that the client does not count.
func (d *difference) toClient(line []byte, oldest *Exchange) (out []byte, hide bool) {
	r := imapwire.ParseResponse(line)
	var n uint32
	ok := true
	switch r.Name {
	case "EXISTS":
		n = d.numbers.Exists(r.Num)
	case "EXPUNGE":
		n, ok = d.numbers.Expunge(r.Num)
	case "FETCH":
		n, ok = d.numbers.Client(r.Num)
	case "SEARCH":
		return d.found(r, oldest), false
	default:
		return nil, false
	}
	if !ok {
		return nil, true
	}
	rest := line[len("* "):]
	for len(rest) > 0 && rest[0] >= '0' && rest[0] <= '9' {
		rest = rest[1:]
	}
	return append(fmt.Appendf(nil, "* %d", n), rest...), false
}

// found translates the numbers that a SEARCH found.
func (d *difference) found(r imapwire.Response, oldest *Exchange) []byte {
	if oldest == nil || oldest.Verb != imapwire.Search || oldest.ByUID {
		return nil
	}
	out := []byte("* SEARCH")
	for _, f := range strings.Fields(string(r.Rest)) {
		n, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			out = append(append(out, ' '), f...)
		} else if m, ok := d.numbers.Client(uint32(n)); ok {
			out = fmt.Appendf(out, " %d", m)
		}
	}
	return append(out, "\r\n"...)
}

// tellExists tells of messages that the mailbox has got: before anything else is
// said of them.
func (d *difference) tellExists(box *Box) []byte {
	if !d.exists || box == nil {
		return nil
	}
	d.exists = false
	return fmt.Appendf(nil, "* %d EXISTS\r\n", len(box.View))
}

// tell returns what the client may be told of its mailbox with the answer of ex:
// of messages that are gone not where it counts them (RFC 9051 section 7.5.1).
func (d *difference) tell(box *Box, ex *Exchange) []byte {
	if d.none() || box == nil {
		return nil
	}
	out := d.tellExists(box) // it counts the ones that are gone, too
	if ex.ByUID || ex.Verb != imapwire.Fetch && ex.Verb != imapwire.Store && ex.Verb != imapwire.Search {
		for _, n := range d.numbers.Ghosts() {
			box.forget(int(n))
			out = fmt.Appendf(out, "* %d EXPUNGE\r\n", n)
		}
	}
	for _, f := range d.flags {
		if i := slices.Index(box.View, f.UID); i >= 0 {
			out = fmt.Appendf(out, "* %d FETCH (UID %d FLAGS %s)\r\n", i+1, f.UID, imapwire.FormatFlags(f.Flags))
		}
	}
	d.exists, d.flags = false, nil
	return out
}

// ErrChanged ends a session whose client names messages by numbers that the
// server counts otherwise, in a way that cannot be translated.
const ErrChanged = Cut("The mailbox has changed; please open it again")

// toServer translates the numbers of a command's first line; nil if it stays.
func (d *difference) toServer(ex *Exchange, line []byte) ([]byte, error) {
	if d.numbers.Same() {
		return nil, nil
	}
	head := imapwire.ParseHead(line)
	if !head.ByNumber() {
		return nil, nil // by UID by now, too
	}
	switch head.Verb {
	case imapwire.Search:
		words := strings.Fields(strings.ToUpper(string(line)))
		if slices.ContainsFunc(words[1:], func(w string) bool { return strings.Contains(w, "RETURN") || isSet(w) }) {
			return nil, ErrChanged
		}
		return nil, nil
	case imapwire.Fetch, imapwire.Store, imapwire.Copy, imapwire.Move:
	default:
		return nil, nil
	}
	before, set, behind, ok := imapwire.SplitSet(line)
	if !ok {
		return nil, nil // production says what is wrong
	}
	nums, ok := d.numbers.Set(set)
	if !ok {
		return []byte(ex.Tag + " NOOP\r\n"), nil
	}
	return append(append(before, nums...), behind...), nil
}

func isSet(word string) bool { return strings.Trim(word, "0123456789:,*()") == "" }
