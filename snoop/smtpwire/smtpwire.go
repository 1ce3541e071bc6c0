// Package smtpwire is the only SMTP grammar in the tree (RFC 5321): command
// lines, paths, replies, and message bodies with their dots.
//
// Implementation notes. Everything is read strictly and written canonically,
// so that no two servers in a row can disagree about where a message ends:
// only CRLF "." CRLF ends a body; a bare LF becomes CRLF; a bare CR stays an
// ordinary byte in the middle of a line and is dropped before a line end.
package smtpwire

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Limits, in bytes.
const (
	MaxCommand = 4096  // a command line with its parameters
	MaxAuth    = 12288 // a line of a SASL exchange, RFC 4954 section 4
	MaxReply   = 64 << 10
)

// Errors of a peer's framing.
var (
	ErrLineTooLong = errors.New("line too long")
	ErrSyntax      = errors.New("syntax error")
	ErrTooBig      = errors.New("message too big")
)

// Command is one command line.
type Command struct {
	Verb string // upper case
	Arg  string
}

// ParseCommand splits a line; control characters are refused.
func ParseCommand(line string) (Command, error) {
	for i := 0; i < len(line); i++ {
		if line[i] < 0x20 && line[i] != '\t' || line[i] == 0x7f {
			return Command{}, fmt.Errorf("%w: control character", ErrSyntax)
		}
	}
	verb, arg, _ := strings.Cut(line, " ")
	return Command{strings.ToUpper(verb), strings.TrimSpace(arg)}, nil
}

// Path is the argument of MAIL FROM or RCPT TO.
type Path struct {
	Addr   string // without brackets; "" is the null reverse-path
	Params []string
}

// ParsePath reads "FROM:<a@b> SIZE=3" after the keyword ("FROM" or "TO").
// Source routes are dropped. Quoted local parts with a space, quote, bracket
// or backslash inside are refused: what a next server makes of them is not certain.
func ParsePath(keyword, arg string) (Path, error) {
	if len(arg) <= len(keyword) || !strings.EqualFold(arg[:len(keyword)], keyword) || arg[len(keyword)] != ':' {
		return Path{}, fmt.Errorf("%w: expected %s:<address>", ErrSyntax, keyword)
	}
	rest := strings.TrimLeft(arg[len(keyword)+1:], " ")
	if !strings.HasPrefix(rest, "<") {
		return Path{}, fmt.Errorf("%w: address without brackets", ErrSyntax)
	}
	addr, params, ok := strings.Cut(rest[1:], ">")
	if !ok {
		return Path{}, fmt.Errorf("%w: address without brackets", ErrSyntax)
	}
	if strings.HasPrefix(addr, "@") {
		if _, a, ok := strings.Cut(addr, ":"); ok {
			addr = a
		}
	}
	if strings.ContainsAny(addr, " \t<>\"\\(),;:[]") && !domainLiteral(addr) || strings.Count(addr, "@") > 1 ||
		len(addr) > 320 {
		return Path{}, fmt.Errorf("%w: bad address", ErrSyntax)
	}
	p := Path{Addr: addr, Params: strings.Fields(params)}
	if params != "" && params[0] != ' ' {
		return Path{}, fmt.Errorf("%w: text after the address", ErrSyntax)
	}
	return p, nil
}

// MailLine is the MAIL command for the path, canonically.
func (p Path) MailLine() string { return p.line("MAIL FROM:") }

// RcptLine is the RCPT command for the path, canonically.
func (p Path) RcptLine() string { return p.line("RCPT TO:") }

func (p Path) line(cmd string) string {
	return strings.Join(append([]string{cmd + "<" + p.Addr + ">"}, p.Params...), " ")
}

// domainLiteral allows user@[192.0.2.1].
func domainLiteral(addr string) bool {
	local, dom, _ := strings.Cut(addr, "@")
	return len(dom) > 2 && dom[0] == '[' && dom[len(dom)-1] == ']' &&
		!strings.ContainsAny(dom[1:len(dom)-1], " \t<>\"\\(),;[]") && !strings.ContainsAny(local, " \t<>\"\\(),;:[]")
}

// Reply is an SMTP reply: its code and the text of its lines.
type Reply struct {
	Code  int
	Lines []string
}

// NewReply makes a one-line reply.
func NewReply(code int, format string, a ...any) Reply {
	return Reply{code, []string{fmt.Sprintf(format, a...)}}
}

// OK reports a 2xx reply.
func (r Reply) OK() bool { return r.Code/100 == 2 }

// String is the reply's text in one line, for logs and reports.
func (r Reply) String() string { return fmt.Sprintf("%d %s", r.Code, strings.Join(r.Lines, " / ")) }

// Append writes the reply as it goes over the wire.
func (r Reply) Append(b []byte) []byte {
	lines := r.Lines
	if len(lines) == 0 {
		lines = []string{""}
	}
	for i, l := range lines {
		sep := byte('-')
		if i == len(lines)-1 {
			sep = ' '
		}
		b = append(fmt.Appendf(b, "%03d", r.Code), sep)
		b = append(append(b, l...), '\r', '\n')
	}
	return b
}

// ReadReply reads one reply of up to MaxReply bytes.
func ReadReply(br *bufio.Reader) (Reply, error) {
	var r Reply
	for total := 0; ; {
		line, err := ReadLine(br, MaxReply)
		if err != nil {
			return r, err
		}
		if total += len(line); total > MaxReply {
			return r, ErrLineTooLong
		}
		if len(line) < 3 || line[0] < '2' || line[0] > '5' || !digit(line[1]) || !digit(line[2]) {
			return r, fmt.Errorf("%w: reply %.40q", ErrSyntax, line)
		}
		code := int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
		if r.Code != 0 && code != r.Code {
			return r, fmt.Errorf("%w: reply changes its code", ErrSyntax)
		}
		r.Code = code
		text := ""
		if len(line) > 4 {
			text = line[4:]
		}
		r.Lines = append(r.Lines, text)
		if len(line) == 3 || line[3] != '-' {
			return r, nil
		}
	}
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// ReadLine reads a line that ends in LF (CR before it is optional), without its
// end. A line over limit is ErrLineTooLong; the stream's position is then unknown.
func ReadLine(br *bufio.Reader, limit int) (string, error) {
	var buf []byte
	for {
		frag, err := br.ReadSlice('\n')
		if len(buf)+len(frag) > limit {
			return "", ErrLineTooLong
		}
		if err == nil && buf == nil {
			return string(trimEOL(frag)), nil
		}
		buf = append(buf, frag...)
		if err == nil {
			return string(trimEOL(buf)), nil
		}
		if err != bufio.ErrBufferFull {
			if err == io.EOF && len(buf) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
	}
}

func trimEOL(b []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(b, []byte{'\n'}), []byte{'\r'})
}

// CopyBody reads a message body up to its end-of-data, undoes dot-stuffing,
// and writes it with CRLF line ends to w. Above limit bytes (0 is no limit), or
// once w fails, the rest is read and dropped, and the error told at the end, so
// that the stream stays in step. Errors of br come at once.
func CopyBody(w io.Writer, br *bufio.Reader, limit int64) (int64, error) {
	var n int64
	var fail error
	put := func(b []byte) {
		n += int64(len(b))
		if fail == nil && limit > 0 && n > limit {
			fail = ErrTooBig
		}
		if fail == nil {
			_, fail = w.Write(b)
		}
	}
	afterCRLF, atStart := true, true // of the wire's lines, of ours
	for {
		frag, err := br.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
		if afterCRLF && len(frag) == 3 && string(frag) == ".\r\n" {
			return n, fail
		}
		out := frag
		if atStart && out[0] == '.' && (len(out) > 1 || err != nil) {
			out = out[1:]
		}
		if err == bufio.ErrBufferFull {
			// A CR at the very end may belong to a CRLF: give it back by hand.
			if out[len(out)-1] == '\r' {
				out = out[:len(out)-1]
				_ = br.UnreadByte()
			}
			put(out)
			atStart, afterCRLF = false, false
			continue
		}
		afterCRLF = len(frag) >= 2 && frag[len(frag)-2] == '\r'
		body := bytes.TrimRight(out[:len(out)-1], "\r")
		put(body)
		put([]byte("\r\n"))
		atStart = true
	}
}

// DotWriter writes a body with dot-stuffing; Close writes the end-of-data.
// The body must have CRLF line ends, as CopyBody makes them.
type DotWriter struct {
	W       *bufio.Writer
	midLine bool
}

// Write stuffs and writes p.
func (d *DotWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if !d.midLine && p[0] == '.' {
			if err := d.W.WriteByte('.'); err != nil {
				return 0, err
			}
		}
		i := bytes.IndexByte(p, '\n')
		line := p
		if i >= 0 {
			line = p[:i+1]
		}
		if _, err := d.W.Write(line); err != nil {
			return 0, err
		}
		d.midLine = i < 0
		p = p[len(line):]
	}
	return total, nil
}

// Close ends the body and flushes.
func (d *DotWriter) Close() error {
	end := ".\r\n"
	if d.midLine {
		end = "\r\n.\r\n"
	}
	if _, err := d.W.WriteString(end); err != nil {
		return err
	}
	return d.W.Flush()
}
