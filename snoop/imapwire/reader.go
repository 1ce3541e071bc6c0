package imapwire

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
)

// ErrSyntax is what every error of a Reader wraps.
var ErrSyntax = errors.New("syntax error")

// Reader reads the tokens of a unit held in memory, literals in line. The
// first error sticks: later calls return zero values, and Err tells it.
type Reader struct {
	b   []byte
	i   int
	err error
}

// NewReader reads b, one unit without its final line end.
func NewReader(b []byte) *Reader { return &Reader{b: TrimEOL(b)} }

// Err returns the first error.
func (r *Reader) Err() error { return r.err }

// Failf records an error unless there is one.
func (r *Reader) Failf(format string, a ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrSyntax, fmt.Sprintf(format, a...))
	}
}

// Peek returns the next byte, 0 at the end.
func (r *Reader) Peek() byte {
	if r.err != nil || r.i >= len(r.b) {
		return 0
	}
	return r.b[r.i]
}

// Accept consumes the byte c if it is next.
func (r *Reader) Accept(c byte) bool {
	if r.Peek() == c && c != 0 {
		r.i++
		return true
	}
	return false
}

// Expect consumes the byte c or fails.
func (r *Reader) Expect(c byte) {
	if !r.Accept(c) {
		r.Failf("expected %q at byte %d", c, r.i)
	}
}

// SP consumes one space or fails.
func (r *Reader) SP() { r.Expect(' ') }

// AcceptWord consumes the atom w, in any case, if it is next.
func (r *Reader) AcceptWord(w string) bool {
	if r.err != nil || len(r.b)-r.i < len(w) || !strings.EqualFold(string(r.b[r.i:r.i+len(w)]), w) {
		return false
	}
	if e := r.i + len(w); e < len(r.b) && isAtomByte(r.b[e]) {
		return false
	}
	r.i += len(w)
	return true
}

// End fails unless all was read.
func (r *Reader) End() {
	if r.err == nil && r.i < len(r.b) {
		r.Failf("unexpected text at byte %d", r.i)
	}
}

// AtEnd reports whether all was read.
func (r *Reader) AtEnd() bool { return r.err != nil || r.i >= len(r.b) }

// Rest returns what was not read.
func (r *Reader) Rest() []byte {
	if r.err != nil {
		return nil
	}
	return r.b[r.i:]
}

// isAtomByte: ATOM-CHAR of RFC 9051 section 9, and "]" which servers allow.
func isAtomByte(c byte) bool {
	return c > 0x20 && c < 0x7f && !strings.ContainsRune(`(){%*"\`, rune(c))
}

func (r *Reader) take(ok func(byte) bool) string {
	if r.err != nil {
		return ""
	}
	s := r.i
	for r.i < len(r.b) && ok(r.b[r.i]) {
		r.i++
	}
	return string(r.b[s:r.i])
}

// Atom reads an atom.
func (r *Reader) Atom() string {
	s := r.take(isAtomByte)
	if s == "" {
		r.Failf("expected an atom at byte %d", r.i)
	}
	return s
}

// Flag reads a flag or keyword, with its backslash.
func (r *Reader) Flag() string {
	if r.Accept('\\') {
		if r.Accept('*') {
			return `\*`
		}
		return `\` + r.Atom()
	}
	return r.Atom()
}

// Flags reads a parenthesised flag list.
func (r *Reader) Flags() []string {
	var fl []string
	r.List(func() { fl = append(fl, r.Flag()) })
	return fl
}

// List reads "(" items separated by spaces ")".
func (r *Reader) List(item func()) {
	r.Expect('(')
	for n := 0; r.err == nil && !r.Accept(')'); n++ {
		if n > 0 {
			r.SP()
		}
		item()
		if r.AtEnd() {
			r.Failf("list without end")
		}
	}
}

// Number reads a decimal number.
func (r *Reader) Number() uint64 {
	s := r.take(func(c byte) bool { return c >= '0' && c <= '9' })
	if s == "" || len(s) > 19 {
		r.Failf("expected a number at byte %d", r.i)
		return 0
	}
	var n uint64
	for _, c := range []byte(s) {
		n = n*10 + uint64(c-'0')
	}
	return n
}

// Number32 reads a number below 2^32.
func (r *Reader) Number32() uint32 {
	n := r.Number()
	if n > 0xffffffff {
		r.Failf("number %d too large", n)
		return 0
	}
	return uint32(n)
}

// String reads a quoted string or a literal.
func (r *Reader) String() string {
	switch r.Peek() {
	case '"':
		return r.quoted()
	case '{', '~':
		return r.literal()
	}
	r.Failf("expected a string at byte %d", r.i)
	return ""
}

func (r *Reader) quoted() string {
	r.i++
	var sb strings.Builder
	for r.i < len(r.b) {
		c := r.b[r.i]
		r.i++
		switch c {
		case '"':
			return sb.String()
		case '\\':
			if r.i >= len(r.b) || r.b[r.i] != '"' && r.b[r.i] != '\\' {
				r.Failf("bad escape at byte %d", r.i)
				return ""
			}
			c = r.b[r.i]
			r.i++
		case '\r', '\n', 0:
			r.Failf("control character in a quoted string")
			return ""
		}
		sb.WriteByte(c)
	}
	r.Failf("quoted string without end")
	return ""
}

func (r *Reader) literal() string {
	e := bytes.IndexByte(r.b[r.i:], '\n')
	if e < 0 {
		r.Failf("literal without bytes")
		return ""
	}
	m := append([]byte{' '}, r.b[r.i:r.i+e+1]...)
	lit := ParseMarker(m)
	start := r.i + e + 1
	if !lit.Present || lit.Size > int64(len(r.b)-start) || !onlyMarker(TrimEOL(m)) {
		r.Failf("bad literal at byte %d", r.i)
		return ""
	}
	r.i = start + int(lit.Size)
	return string(r.b[start:r.i])
}

// AString reads an atom, quoted string or literal (RFC 9051 astring).
func (r *Reader) AString() string {
	switch r.Peek() {
	case '"', '{':
		return r.String()
	}
	return r.Atom()
}

// NString reads NIL or a string; ok is false for NIL.
func (r *Reader) NString() (s string, ok bool) {
	if r.AcceptWord("NIL") {
		return "", false
	}
	return r.String(), true
}

// ListMailbox reads the pattern of LIST: an astring that may hold wildcards.
func (r *Reader) ListMailbox() string {
	switch r.Peek() {
	case '"', '{':
		return r.String()
	}
	s := r.take(func(c byte) bool { return isAtomByte(c) || c == '%' || c == '*' })
	if s == "" {
		r.Failf("expected a mailbox pattern at byte %d", r.i)
	}
	return s
}

// Mailbox reads a mailbox name; INBOX in any case becomes "INBOX".
func (r *Reader) Mailbox() string { return CanonicalMailbox(r.AString()) }

// CanonicalMailbox spells INBOX in upper case (RFC 9051 section 5.1).
func CanonicalMailbox(s string) string {
	if strings.EqualFold(s, "INBOX") {
		return "INBOX"
	}
	return s
}

// Set reads a sequence set.
func (r *Reader) Set() Set {
	s := r.take(func(c byte) bool { return c >= '0' && c <= '9' || c == ':' || c == ',' || c == '*' || c == '$' })
	set, err := ParseSet(s)
	if err != nil {
		r.Failf("bad set %.40q", s)
	}
	return set
}

// Skip reads one value of any shape: atom, string, or parenthesised list,
// 64 deep at most.
func (r *Reader) Skip() { r.skip(64) }

func (r *Reader) skip(depth int) {
	switch c := r.Peek(); {
	case depth == 0:
		r.Failf("nested too deep")
	case c == '(':
		r.i++
		for r.err == nil && !r.Accept(')') {
			if r.AtEnd() {
				r.Failf("list without end")
				return
			}
			if !r.Accept(' ') {
				r.skip(depth - 1)
			}
		}
	case c == '"' || c == '{' || c == '~':
		_ = r.String()
	case c == 0 || c == ')' || c == ' ':
		r.Failf("expected a value at byte %d", r.i)
	case r.take(func(c byte) bool { return c > 0x20 && c != '(' && c != ')' && c != '"' }) == "":
		r.Failf("unexpected %q at byte %d", c, r.i)
	}
}

// Word reads atom characters up to one of stop.
func (r *Reader) Word(stop string) string {
	s := r.take(func(c byte) bool { return isAtomByte(c) && !strings.ContainsRune(stop, rune(c)) })
	if s == "" {
		r.Failf("expected a word at byte %d", r.i)
	}
	return s
}

// Advance skips n bytes.
func (r *Reader) Advance(n int) {
	if r.err == nil {
		r.i = min(r.i+n, len(r.b))
	}
}
