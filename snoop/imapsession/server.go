package imapsession

import (
	"bytes"
	"strconv"
	"strings"

	"understudy/snoop/imapwire"
)

// Event is what one server line meant.
type Event struct {
	Resp imapwire.Response
	Cmd  *Cmd // the command that a tagged line answers
	// Hint: another client's change was told, or one that no command asked for.
	Hint bool
	// Selected: Cmd opened Box; its view may be seeded.
	Selected bool
}

// maxMessages bounds the numbers believed of an EXISTS line.
const maxMessages = 1 << 26

// Server takes the first piece of a server unit (later ones hold nothing that
// is followed).
func (t *Tracker) Server(line []byte) Event {
	ev := Event{Resp: imapwire.ParseResponse(line)}
	switch r := &ev.Resp; {
	case r.Tag == "+":
	case r.Tag != "*":
		t.tagged(&ev)
	case r.Status():
		t.code(r)
	default:
		t.untagged(&ev)
	}
	return ev
}

// oldest is the command that the server is believed to work on.
func (t *Tracker) oldest() *Cmd {
	if len(t.pending) == 0 {
		return nil
	}
	return t.pending[0]
}

func (t *Tracker) tagged(ev *Event) {
	for i, c := range t.pending {
		if c.Tag != ev.Resp.Tag {
			continue
		}
		t.pending = append(t.pending[:i:i], t.pending[i+1:]...)
		ev.Cmd = c
		// The rest of its literal is still to come.
		c.answered = true
		if ev.Resp.Name == "BAD" && c.marks != nil {
			t.doubt("BAD to a command with a literal")
		}
		if ev.Resp.Code == "COPYUID" {
			c.CopyUID = bytes.Clone(ev.Resp.Arg)
		}
		t.finish(ev)
		return
	}
	t.doubt("answer to no command")
}

func (t *Tracker) finish(ev *Event) {
	ok := ev.Resp.Name == "OK"
	switch ev.Cmd.Verb {
	case "SELECT", "EXAMINE":
		box := t.opening
		t.opening, t.Box = nil, nil
		if ok {
			if box == nil {
				box = &Box{}
			}
			box.Name = ev.Cmd.Mailbox
			box.ReadOnly = ev.Resp.Code == "READ-ONLY" || ev.Cmd.Verb == "EXAMINE"
			t.Box, ev.Selected = box, true
		}
	case "CLOSE", "UNSELECT":
		if ok {
			t.Box = nil
		}
	case "APPEND":
		if ok && ev.Resp.Code == "APPENDUID" && t.Box != nil && t.Box.Name == ev.Cmd.Mailbox {
			t.Box.appended(ev.Resp.Arg)
		}
	}
}

// appended gives the message that was told last its UID, if it can be no other.
func (b *Box) appended(arg []byte) {
	r := imapwire.NewReader(arg)
	validity := r.Number32()
	r.SP()
	uid := r.Number32()
	n := len(b.View)
	if r.Err() == nil && validity == b.UIDValidity && n > 0 && b.View[n-1] == 0 && (n == 1 || b.View[n-2] != 0 && b.View[n-2] < uid) {
		b.own()
		b.View[n-1] = uid
	}
}

// target is the mailbox that untagged data is about.
func (t *Tracker) target() *Box {
	if c := t.oldest(); c != nil && (c.Verb == "SELECT" || c.Verb == "EXAMINE") {
		if t.opening == nil {
			t.opening = &Box{}
		}
		return t.opening
	}
	return t.Box
}

func (t *Tracker) code(r *imapwire.Response) {
	n := func() uint32 {
		v, _ := strconv.ParseUint(string(r.Arg), 10, 32)
		return uint32(v)
	}
	switch r.Code {
	case "UIDVALIDITY":
		if b := t.target(); b != nil {
			b.UIDValidity = n()
		}
	case "UIDNEXT":
		if b := t.target(); b != nil {
			b.UIDNext = n()
		}
	case "COPYUID":
		if c := t.oldest(); c != nil {
			c.CopyUID = bytes.Clone(r.Arg)
		}
	}
}

func (t *Tracker) untagged(ev *Event) {
	r := &ev.Resp
	box := t.target()
	switch r.Name {
	case "EXISTS":
		if box == nil || r.Num > maxMessages {
			t.doubt("EXISTS without a mailbox")
			return
		}
		if int(r.Num) < len(box.View) {
			t.doubt("EXISTS shrinks")
			box.own()
			box.View = box.View[:r.Num]
		}
		if add := int(r.Num) - len(box.View); add > 0 {
			box.own()
			box.View = append(box.View, make([]uint32, add)...)
			ev.Hint = box == t.Box
		}
	case "EXPUNGE":
		t.expunge(ev, box)
	case "FETCH":
		t.fetch(ev, box)
	case "SEARCH", "ESEARCH":
		if c := t.oldest(); c != nil {
			c.Found = true
		}
	case "VANISHED":
		t.doubt("VANISHED without QRESYNC")
		ev.Hint = true
	}
}

func (t *Tracker) expunge(ev *Event, box *Box) {
	n := ev.Resp.Num
	if box == nil || n == 0 || int(n) > len(box.View) {
		t.doubt("EXPUNGE of no message")
		return
	}
	box.own()
	uid := box.View[n-1]
	box.View = append(box.View[:n-1], box.View[n:]...)
	c := t.oldest()
	switch {
	case c == nil || c.Verb != "EXPUNGE" && c.Verb != "UID EXPUNGE" && c.Verb != "MOVE" && c.Verb != "UID MOVE":
		ev.Hint = true
	case uid == 0:
		c.Unknown = true
	default:
		c.Expunged = append(c.Expunged, uid)
	}
}

func (t *Tracker) fetch(ev *Event, box *Box) {
	n := ev.Resp.Num
	if box == nil || n == 0 || int(n) > len(box.View) {
		t.doubt("FETCH of no message")
		return
	}
	it := imapwire.ParseFetchHead(ev.Resp.Rest)
	box.blind = box.blind || it.UID == 0 && box.View[n-1] == 0 && !onlyFlags(ev.Resp.Rest)
	if it.UID != 0 && box.View[n-1] != it.UID {
		if box.View[n-1] != 0 {
			t.doubt("UID of a message changed")
		}
		box.own()
		box.View[n-1] = it.UID
	}
	c := t.oldest()
	if c != nil && strings.HasSuffix(c.Verb, "FETCH") && box.View[n-1] != 0 {
		c.Delivered = append(c.Delivered, box.View[n-1])
	}
	if !it.HasFlags {
		return
	}
	it.UID = box.View[n-1]
	switch {
	case c != nil && (c.Verb == "STORE" || c.Verb == "UID STORE"):
		if it.UID == 0 {
			c.Unknown = true
			return
		}
		c.Fetched = append(c.Fetched, it)
	case c != nil && (c.Verb == "FETCH" || c.Verb == "UID FETCH"):
		// A FETCH of BODY[] sets \Seen; the flags told are of that kind, too.
		ev.Hint = !c.plainFetch()
	default:
		ev.Hint = true
	}
}

// onlyFlags reports whether a FETCH response holds flags and nothing that would
// make the message known.
func onlyFlags(rest []byte) bool {
	up := bytes.ToUpper(rest)
	for _, w := range []string{"BODY", "ENVELOPE", "RFC822", "INTERNALDATE", "BINARY", "{"} {
		if bytes.Contains(up, []byte(w)) {
			return false
		}
	}
	return true
}

// plainFetch reports whether a FETCH asked for flags and for no body, so that
// flags in its answer tell of no change.
func (c *Cmd) plainFetch() bool {
	up := bytes.ToUpper(c.Text)
	setsSeen := bytes.Contains(up, []byte("BODY[")) || bytes.Contains(up, []byte(" RFC822.TEXT")) ||
		bytes.Contains(up, []byte("RFC822 ")) || bytes.Contains(up, []byte("RFC822)")) ||
		bytes.HasSuffix(imapwire.TrimEOL(up), []byte("RFC822")) || bytes.Contains(up, []byte("BINARY["))
	return !setsSeen
}
