package imapwire

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

// MaxText bounds what is kept of one command, literals included, in bytes.
const MaxText = MaxLine + MaxLiteral

// ErrTooLong tells of a command that is longer than can be kept.
var ErrTooLong = errors.New("command too long")

// maxTag bounds a tag, in bytes.
const maxTag = 256

// ValidTag is the one rule for tags (RFC 9051 section 9, tag). An answer to a
// line without one has no tag of its own.
func ValidTag(t string) bool {
	if t == "" || len(t) > maxTag {
		return false
	}
	for i := range len(t) {
		if !isAtomByte(t[i]) || t[i] == '+' {
			return false
		}
	}
	return true
}

// Head is how a command begins.
type Head struct {
	Tag   string
	Verb  Verb
	ByUID bool // "UID STORE" and the like

	args int // where its arguments begin in the line
}

// ParseHead reads tag and verb of a command's first line.
func ParseHead(line []byte) Head {
	b := TrimEOL(line)
	word := func(from int) (w []byte, next int) {
		if from > len(b) {
			return nil, from
		}
		if i := bytes.IndexByte(b[from:], ' '); i >= 0 {
			return b[from : from+i], from + i + 1
		}
		return b[from:], len(b) + 1
	}
	tag, at := word(0)
	verb, at := word(at)
	h := Head{Tag: string(tag), Verb: verbOf(verb), args: min(at, len(b))}
	if h.Verb != "UID" {
		return h
	}
	verb, at = word(at)
	h.args = min(at, len(b))
	if v := verbOf(verb); v.takesUID() {
		h.Verb, h.ByUID = v, true
	} else {
		h.Verb = "UID " + v
	}
	return h
}

// Valid reports whether a line that begins so is a command.
func (h Head) Valid() bool { return h.Verb != "" && ValidTag(h.Tag) }

// Name is the verb with its UID.
func (h Head) Name() string {
	if h.ByUID {
		return "UID " + string(h.Verb)
	}
	return string(h.Verb)
}

// ByNumber reports whether the command names messages by their numbers.
func (h Head) ByNumber() bool {
	switch h.Verb {
	case Fetch, Store, Copy, Move, Search, Sort, Thread:
		return !h.ByUID
	}
	return false
}

// Command is one command of a client, received piece by piece. The zero value
// is ready for the first piece.
//
// What the client sent is kept as it is; Args is what it means, read once.
// Where it means nothing to this package Args is Unreadable: the server says
// what is wrong with it, and nothing is guessed.
type Command struct {
	Head
	Text     []byte      // all lines and literals, without the messages of an APPEND
	Literals []Announced // in Text
	Args     Args        // nil: none, or not known yet. Of an APPEND known with its message's announcement
	Whole    bool        // all of it was received
	Message  bool        // APPEND: its message is announced
	// Extra: there is more in an APPEND than one message as RFC 9051 has it
	// (MULTIAPPEND, CATENATE), or nobody knows what. Of that nothing is kept.
	Extra bool

	read int // bytes of the arguments that Args tells of
}

// Tail reads what Args does not tell of, and tells the places of errors in all of
// the arguments. Where Args is Unreadable it fails with that error.
func (c *Command) Tail() *Reader {
	r := NewReader(c.Text[c.args:])
	r.i = c.read
	if a, ok := c.Args.(Unreadable); ok {
		r.err = a.Err
	}
	return r
}

// Announced is a literal of a command.
type Announced struct {
	Literal
	At      int  // offset in Text behind the line that announces it
	Message bool // APPEND: its bytes are not in Text
}

// ParseCommand reads a whole command that is held in memory, literals in line.
// It fails where that is not exactly one command. The result shares nothing
// with text.
func ParseCommand(text []byte) (Command, error) {
	var c Command
	sc := Scanner{Side: Client}
	for len(text) > 0 && !c.Whole {
		p, err := sc.Next(text)
		if err != nil {
			return c, err
		}
		if p.Kind == More {
			break
		}
		if err := c.Receive(p, text[:p.N]); err != nil {
			return c, err
		}
		text = text[p.N:]
	}
	if !c.Whole || len(text) > 0 || !c.Valid() {
		return c, fmt.Errorf("%w: no command", ErrSyntax)
	}
	return c, nil
}

// Receive takes the next piece of the command. After an error the session must
// end.
func (c *Command) Receive(p Piece, b []byte) error {
	switch p.Kind {
	case Line:
		if p.First {
			c.Head = ParseHead(b)
		}
		if err := c.line(p.Lit, b); err != nil {
			return err
		}
	case Body:
		if !c.Message {
			c.Text = append(c.Text, b...)
		}
	}
	if len(c.Text) > MaxText {
		return ErrTooLong
	}
	if p.Kind == Line && p.Last {
		c.Whole = true
		if c.Verb != Append || c.Args == nil {
			c.Args = c.readArgs()
		}
	}
	return nil
}

// line takes a line, at whose end lit is announced.
func (c *Command) line(lit Literal, b []byte) error {
	if c.Message && !c.closes(b) {
		c.Extra = true
	}
	if !c.Extra {
		c.Text = append(c.Text, b...)
	}
	if !lit.Present {
		return nil
	}
	message := c.Verb == Append && (c.Message || !c.namesMailbox())
	switch {
	case message && !c.Message:
		c.Message = true
		c.Args = c.readAppend(NewReader(c.Text[c.args:]), lit)
		a, ok := c.Args.(AppendArgs)
		c.Extra = !ok || a.Form == Catenate
	case message:
		c.Extra = true
	case lit.Size > MaxLiteral:
		return ErrTooLong
	}
	if !c.Extra {
		c.Literals = append(c.Literals, Announced{Literal: lit, At: len(c.Text), Message: message})
	}
	return nil
}

// closes reports whether a line behind an APPEND's message is its end.
func (c *Command) closes(line []byte) bool {
	a, _ := c.Args.(AppendArgs)
	want := ""
	if a.Form == UTF8 {
		want = ")"
	}
	return string(TrimEOL(line)) == want
}

// namesMailbox reports whether the literal at the end of an APPEND's text is the
// name of its mailbox: nothing stands before it.
func (c *Command) namesMailbox() bool {
	args := TrimEOL(c.Text[c.args:])
	return len(args) > 0 && args[0] == '{' && onlyMarker(args)
}

// SplitSet splits the first line of a command that begins with a set of messages
// into what stands before the set, and behind it, to the end of the line.
func SplitSet(line []byte) (before []byte, set Set, behind []byte, ok bool) {
	at := ParseHead(line).args
	r := NewReader(line[at:])
	if set = r.Set(); r.Err() != nil {
		return nil, nil, nil, false
	}
	return slices.Clip(line[:at]), set, line[at+r.i:], true
}
