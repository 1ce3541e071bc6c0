package imapd

import (
	"bytes"
	"encoding/base64"
	"io"
	"mime"
	"mime/quotedprintable"
	"net/mail"
	"strings"
	"time"

	"github.com/emersion/go-message/charset"
)

// fold is the comparison of SEARCH: case does not count.
func fold(s string) string { return strings.ToLower(s) }

func decodeHeader(s string) string {
	if !strings.Contains(s, "=?") {
		return s
	}
	dec := mime.WordDecoder{CharsetReader: charset.Reader}
	if out, err := dec.DecodeHeader(s); err == nil {
		return out
	}
	return s
}

func parseDate(v string) (time.Time, error) {
	if i := strings.IndexByte(v, '('); i > 0 {
		v = strings.TrimSpace(v[:i])
	}
	return mail.ParseDate(v)
}

// maxSearched bounds the decoded text of one part, in bytes.
const maxSearched = 10 << 20

// contains looks for folded text in the decoded text parts below p.
func (p *part) contains(text string) bool {
	for _, c := range p.parts {
		if strings.Contains(fold(decodeHeader(string(c.header))), text) || c.contains(text) {
			return true
		}
	}
	if p.msg != nil {
		return strings.Contains(fold(decodeHeader(string(p.msg.header))), text) || p.msg.contains(text)
	}
	if p.typ != "text" && p.typ != "message" {
		return false
	}
	return strings.Contains(fold(p.text()), text)
}

// text is a part's body as UTF-8, as far as it can be decoded.
func (p *part) text() string {
	var r io.Reader = bytes.NewReader(p.body)
	enc, _ := headerField(p.header, "Content-Transfer-Encoding")
	switch strings.ToLower(enc) {
	case "base64":
		r = base64.NewDecoder(base64.StdEncoding, &noSpace{r})
	case "quoted-printable":
		r = quotedprintable.NewReader(r)
	}
	if cs := p.param("charset"); cs != "" {
		if cr, err := charset.Reader(cs, r); err == nil {
			r = cr
		}
	}
	b, _ := io.ReadAll(io.LimitReader(r, maxSearched))
	return string(b)
}

// noSpace drops what is no base64 letter.
type noSpace struct{ r io.Reader }

func (n *noSpace) Read(p []byte) (int, error) {
	c, err := n.r.Read(p)
	k := 0
	for _, b := range p[:c] {
		if b > ' ' && b < 0x7f {
			p[k] = b
			k++
		}
	}
	return k, err
}

// Describe returns ENVELOPE, BODY and BODYSTRUCTURE of a message as FETCH does.
func Describe(msg []byte) string {
	p := parseMessage(msg)
	b := append(p.envelope(nil), ' ')
	b = append(p.structure(b, false), ' ')
	return string(p.structure(b, true))
}
