// Package imapwire is the only IMAP grammar in the tree: it splits byte
// streams into units without changing or copying them (Scanner), reads each
// command of a client once into a value (Command) and the tokens of anything
// else (Reader), and writes tokens back (AString, FormatFlags …).
//
// Implementation notes. Framing follows what Dovecot does (RFC 9051 section
// 2.2 where they agree). A line ends with LF, the CR before it is optional; a
// CR alone ends nothing. Every split of the input yields the same units; a
// test and a fuzz target hold that. Nothing here knows a socket or a clock.
package imapwire

import (
	"bytes"
	"errors"
)

// Limits of the grammar, in bytes.
const (
	// MaxLine bounds one client line; Dovecot's default is the same 64 KiB.
	MaxLine = 64 << 10
	// MaxLiteral bounds a literal that is not a message (names, search keys).
	MaxLiteral = 64 << 10
	// markerTail is what must stay unread of a long line so that a literal
	// marker at its end is seen whole.
	markerTail = 32
)

// Errors of a client's framing. After any of them the position in the stream
// is not certain, and the session must end.
var (
	ErrLineTooLong = errors.New("line too long")
	ErrMarker      = errors.New("literal where none is understood")
)

// Side says which peer wrote the bytes.
type Side uint8

// The two sides of a connection.
const (
	Client Side = iota
	Server
)

// Kind is the kind of a Piece.
type Kind uint8

// The kinds: More asks for more input; Line is a whole line, or the end of
// one of which Parts came before; Part is the beginning or middle of a server
// line too long to be kept; Body is bytes of a literal.
const (
	More Kind = iota
	Line
	Part
	Body
)

// Piece is one step of a Scanner: the next N bytes of the input.
type Piece struct {
	Kind  Kind
	N     int
	First bool    // begins a unit (a command or a response)
	Last  bool    // ends the unit
	Lit   Literal // Line: the literal that it announces
	Left  int64   // Body: bytes of the literal that are still to come
}

// Literal is the announcement of a literal at the end of a line.
type Literal struct {
	Present bool
	Size    int64
	NonSync bool // LITERAL+, RFC 7888
	Binary  bool // literal8, RFC 3516
}

// Scanner splits one direction of a connection into pieces. The zero value
// with Side set is ready. It keeps no input.
type Scanner struct {
	Side Side

	left   int64 // of the current literal
	inUnit bool  // a unit has begun
	inLine bool  // Parts of the current line were handed out
	noLit  bool  // the unit can hold no literal
}

// Next looks at the beginning of b, which starts where the last piece ended.
// A caller whose buffer is full and that gets More on the server side calls
// Long instead. On the client side a line over MaxLine is ErrLineTooLong, a
// marker on a command that takes none is ErrMarker.
func (s *Scanner) Next(b []byte) (Piece, error) {
	if s.left > 0 {
		if len(b) == 0 {
			return Piece{}, nil
		}
		n := min(int64(len(b)), s.left)
		s.left -= n
		return Piece{Kind: Body, N: int(n), Left: s.left}, nil
	}
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		if s.Side == Client && len(b) > MaxLine {
			return Piece{}, ErrLineTooLong
		}
		return Piece{}, nil
	}
	if s.Side == Client && i > MaxLine {
		return Piece{}, ErrLineTooLong
	}
	line := b[:i+1]
	p := Piece{Kind: Line, N: i + 1, First: !s.inUnit && !s.inLine}
	if p.First {
		s.noLit = s.Side == Server && isStatus(line)
	}
	s.inLine = false
	if !s.noLit {
		lit := ParseMarker(line)
		if lit.Present && s.Side == Client && p.First && !ParseHead(line).Verb.TakesLiteral() {
			if lit.NonSync {
				return Piece{}, ErrMarker
			}
			lit = Literal{}
		}
		p.Lit = lit
	}
	s.inUnit = p.Lit.Present
	p.Last = !p.Lit.Present
	s.left = p.Lit.Size
	return p, nil
}

// Long hands out most of a server line that does not fit into the caller's
// buffer; its last bytes are kept back for the marker.
func (s *Scanner) Long(b []byte) Piece {
	if len(b) <= markerTail || s.left > 0 {
		return Piece{}
	}
	first := !s.inUnit && !s.inLine
	if first {
		s.noLit = isStatus(b)
	}
	s.inLine = true
	return Piece{Kind: Part, N: len(b) - markerTail, First: first}
}

// Cancel tells that the peer refused the announced literal: none follows, and
// the unit is over. It may be called right after the announcing Line only.
func (s *Scanner) Cancel() { s.left, s.inUnit = 0, false }

// Took tells that n bytes of the current literal were read past the scanner.
func (s *Scanner) Took(n int64) { s.left -= min(n, s.left) }

// ParseMarker reads the literal marker at the end of a line:
// [~]{digits[+]} [CR] LF, at a token boundary.
func ParseMarker(line []byte) Literal {
	b := TrimEOL(line)
	if len(b) < 3 || b[len(b)-1] != '}' {
		return Literal{}
	}
	open := bytes.LastIndexByte(b, '{')
	if open < 0 || open < len(b)-24 {
		return Literal{}
	}
	l := Literal{Present: true}
	digits := b[open+1 : len(b)-1]
	if n := len(digits); n > 0 && digits[n-1] == '+' {
		l.NonSync, digits = true, digits[:n-1]
	}
	if len(digits) == 0 || len(digits) > 18 {
		return Literal{}
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return Literal{}
		}
		l.Size = l.Size*10 + int64(c-'0')
	}
	if open > 0 && b[open-1] == '~' {
		l.Binary = true
		open--
	}
	if open > 0 && b[open-1] != ' ' && b[open-1] != '(' && b[open-1] != '<' && b[open-1] != '>' && b[open-1] != ']' {
		return Literal{}
	}
	if open == 0 || InQuotes(b[:open]) {
		return Literal{}
	}
	return l
}

// InQuotes reports whether a quoted string is open at the end of b.
func InQuotes(b []byte) bool {
	if bytes.IndexByte(b, '"') < 0 {
		return false
	}
	in := false
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '"':
			in = !in
		case b[i] == '\\' && in:
			i++
		}
	}
	return in
}

// isStatus reports whether a server line is a continuation, a tagged reply or
// an untagged status: human text, which holds no literal whatever it ends in.
func isStatus(line []byte) bool {
	if len(line) == 0 || line[0] != '*' {
		return true
	}
	rest, ok := bytes.CutPrefix(line, []byte("* "))
	if !ok {
		return true
	}
	if i := bytes.IndexAny(rest, " \r\n"); i >= 0 {
		rest = rest[:i]
	}
	switch verbOf(rest) {
	case "OK", "NO", "BAD", "BYE", "PREAUTH", Capability, "FLAGS", Search, "ENABLED":
		return true
	}
	return false
}

// TrimEOL cuts LF or CRLF off the end of a line.
func TrimEOL(b []byte) []byte {
	b = bytes.TrimSuffix(b, []byte{'\n'})
	return bytes.TrimSuffix(b, []byte{'\r'})
}
