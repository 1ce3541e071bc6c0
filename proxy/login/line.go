package login

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"understudy/proxy/seam"
	"understudy/snoop/imapwire"
	"understudy/snoop/smtpwire"
)

// Limits of an IMAP command before login, in bytes.
const (
	MaxLine    = 12 << 10
	maxLiteral = 4096
)

// ErrTooLong tells of a literal that no login needs; the position in the stream is
// not certain any more.
var ErrTooLong = errors.New("literal is too long")

// Line reads the arguments of IMAP's LOGIN, which may be literals (RFC 9051 section
// 6.2.3): text is what follows the command's name, br the rest of the stream.
// proceed asks the client for a literal that it sends only then.
func Line(text string, br *bufio.Reader, proceed func()) (seam.Login, error) {
	b := []byte(text)
	for {
		lit := imapwire.ParseMarker(append(bytes.Clone(b), '\n'))
		if !lit.Present {
			break
		}
		if lit.Size > maxLiteral || lit.Binary || len(b) > 2*MaxLine {
			return seam.Login{}, ErrTooLong
		}
		if !lit.NonSync {
			proceed()
		}
		body := make([]byte, lit.Size)
		if _, err := io.ReadFull(br, body); err != nil {
			return seam.Login{}, err
		}
		rest, err := smtpwire.ReadLine(br, MaxLine)
		if err != nil {
			return seam.Login{}, err
		}
		b = append(b, "\r\n"...)
		b = append(append(b, body...), rest...)
	}
	r := imapwire.NewReader(b)
	r.SP()
	user := r.AString()
	r.SP()
	pass := r.AString()
	r.End()
	if r.Err() != nil {
		return seam.Login{}, r.Err()
	}
	return New("", user, pass)
}
