// Package match says whether a message that was found is what became of one that
// was sent: by which evidence, and how strong that is. It decides nothing: each
// caller names the evidence that is enough for what it is about to do.
//
// Implementation notes. What survives on the way into a mailbox: servers prepend
// header fields, add some between others, and some of them change carriage returns
// on saving. Bodies are compared whole (but for carriage returns, where that is
// asked for), and header lines at line starts only: "X-Subject: hello" is not
// "Subject: hello". A header ends with its first empty line; a message without one
// is all header, so that its body is empty.
package match

import (
	"bytes"
	"strconv"
)

// Evidence is why a found message may be the sent one. Values are sets.
type Evidence uint8

// The evidence, from strong to weak.
const (
	// SameBytes: equal.
	SameBytes Evidence = 1 << iota
	// SameButCarriageReturns: equal but for carriage returns.
	SameButCarriageReturns
	// HeaderPrepended: the end of the found one is the sent one, whole.
	HeaderPrepended
	// HeaderLinesKept: bodies are equal, and all header lines that were sent are
	// there, in their order.
	HeaderLinesKept
	// PrependedButCarriageReturns is HeaderPrepended but for carriage returns.
	PrependedButCarriageReturns
	// KeptButCarriageReturns is HeaderLinesKept but for carriage returns.
	KeptButCarriageReturns
	// HeaderAndLength: of the found one only the header was read; it ends with the
	// one that was sent, and the bodies have one length.
	HeaderAndLength
)

// Whole is each evidence that takes nothing but prepended or added header lines.
const Whole = SameBytes | HeaderPrepended | HeaderLinesKept

// WholeButCarriageReturns is Whole for a server that changes carriage returns.
const WholeButCarriageReturns = Whole | SameButCarriageReturns | PrependedButCarriageReturns | KeptButCarriageReturns

// Text is a message to be compared. It may be used by one goroutine at a time.
type Text struct {
	raw    []byte
	header int // length of its header, with the empty line

	plain       []byte // without carriage returns; nil: not made yet
	plainHeader int
}

// Read returns a message to be compared; raw must not be changed.
func Read(raw []byte) *Text { return &Text{raw: raw, header: HeaderLen(raw)} }

// HeaderLen is the length of a message's header with its empty line.
func HeaderLen(msg []byte) int {
	if i := bytes.Index(msg, []byte("\r\n\r\n")); i >= 0 {
		return i + 4
	}
	return len(msg)
}

// BodyLen is the length of a message behind its header.
func (t *Text) BodyLen() int64 { return int64(len(t.raw) - t.header) }

// PlainBodyLen is BodyLen without carriage returns.
func (t *Text) PlainBodyLen() int64 {
	p, n := t.withoutReturns()
	return int64(len(p) - n)
}

func (t *Text) withoutReturns() (plain []byte, header int) {
	if t.plain == nil {
		t.plain = bytes.ReplaceAll(t.raw, []byte{'\r'}, nil)
		t.plainHeader = len(t.plain)
		if i := bytes.Index(t.plain, []byte("\n\n")); i >= 0 {
			t.plainHeader = i + 2
		}
	}
	return t.plain, t.plainHeader
}

// Compare returns the strongest evidence of a set that found is what became of
// sent; 0 if there is none.
func Compare(sent, found *Text, of Evidence) Evidence {
	exact := func() (s, f parts) {
		return parts{sent.raw, sent.header}, parts{found.raw, found.header}
	}
	plain := func() (s, f parts) {
		s.all, s.header = sent.withoutReturns()
		f.all, f.header = found.withoutReturns()
		return s, f
	}
	for _, c := range []struct {
		e     Evidence
		as    func() (s, f parts)
		holds func(s, f parts) bool
	}{
		{SameBytes, exact, same}, {SameButCarriageReturns, plain, same},
		{HeaderPrepended, exact, prepended}, {HeaderLinesKept, exact, kept},
		{PrependedButCarriageReturns, plain, prepended}, {KeptButCarriageReturns, plain, kept},
	} {
		if of&c.e == 0 {
			continue
		}
		if s, f := c.as(); c.holds(s, f) {
			return c.e
		}
	}
	return 0
}

// parts is a message with the length of its header.
type parts struct {
	all    []byte
	header int
}

func same(s, f parts) bool { return bytes.Equal(s.all, f.all) }

// prepended: what stands before is lines of the header, and not a message of its
// own that ends with the one that was sent.
func prepended(s, f parts) bool {
	n := len(f.all) - len(s.all)
	return len(s.all) > 0 && bytes.HasSuffix(f.all, s.all) && atLineStart(f.all, n) && (n == 0 || n < f.header)
}

func kept(s, f parts) bool {
	if len(s.all) == 0 || !bytes.Equal(s.all[s.header:], f.all[f.header:]) {
		return false
	}
	header := f.all[:f.header]
	for line := range bytes.Lines(s.all[:s.header]) {
		i := lineIndex(header, line)
		if i < 0 {
			return false
		}
		header = header[i+len(line):]
	}
	return true
}

// lineIndex finds a line in a header as one of its lines, whole.
func lineIndex(header, line []byte) int {
	for from := 0; ; {
		i := bytes.Index(header[from:], line)
		if i < 0 {
			return -1
		}
		if i += from; atLineStart(header, i) && atLineEnd(header, i+len(line)) {
			return i
		}
		from = i + 1
	}
}

// atLineEnd: a last line that was sent without an end may have got one.
func atLineEnd(b []byte, i int) bool {
	return i == len(b) || i > 0 && b[i-1] == '\n' || b[i] == '\r' || b[i] == '\n'
}

func atLineStart(b []byte, i int) bool { return i == 0 || i > 0 && b[i-1] == '\n' }

// Header compares a message of which only the header was read, and size is that of
// the whole: HeaderAndLength, or 0. whole is then the message as it was found.
func Header(sent *Text, header []byte, size int64) (e Evidence, whole []byte) {
	h := sent.raw[:sent.header]
	if len(h) == 0 || size-int64(len(header)) != sent.BodyLen() || !bytes.HasSuffix(header, h) ||
		!atLineStart(header, len(header)-len(h)) {
		return 0, nil
	}
	return HeaderAndLength, append(bytes.Clone(header), sent.raw[sent.header:]...)
}

// Key is what candidates are looked up by: the length of a body.
func Key(bodyLen int64) string { return strconv.FormatInt(bodyLen, 10) }

// Index finds candidates among messages that were sent by the length of their
// bodies, so that few have to be read.
type Index[T any] struct{ of map[int64][]T }

// Add adds one.
func (x *Index[T]) Add(bodyLen int64, v T) {
	if x.of == nil {
		x.of = map[int64][]T{}
	}
	x.of[bodyLen] = append(x.of[bodyLen], v)
}

// Candidates are those with a body of a length, in the order of Add.
func (x *Index[T]) Candidates(bodyLen int64) []T { return x.of[bodyLen] }
