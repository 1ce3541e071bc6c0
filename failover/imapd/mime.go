package imapd

import (
	"bytes"
	"mime"
	"sort"
	"strconv"
	"strings"
)

// Bounds on a message's structure; what is beyond them is served as plain text.
const (
	maxDepth = 40
	maxParts = 2000
)

// part is one MIME part. Its slices point into the message.
type part struct {
	header []byte // with the empty line
	body   []byte
	typ    string // lower case
	sub    string
	params [][2]string
	parts  []*part // of a multipart
	msg    *part   // of a message/rfc822
}

// parseMessage finds the structure of a message (RFC 2045, RFC 2046). It takes
// anything and never fails.
func parseMessage(b []byte) *part {
	left := maxParts
	return parsePart(b, "text/plain", 0, &left)
}

func parsePart(b []byte, dflt string, depth int, left *int) *part {
	*left--
	p := &part{}
	p.header, p.body = splitHeader(b)
	ct, ok := headerField(p.header, "Content-Type")
	if !ok {
		ct = dflt
	}
	p.contentType(ct)
	if depth >= maxDepth || *left <= 0 {
		return p
	}
	switch {
	case p.typ == "multipart":
		boundary := p.param("boundary")
		inner := "text/plain"
		if p.sub == "digest" {
			inner = "message/rfc822"
		}
		if boundary != "" {
			for _, c := range splitBoundary(p.body, boundary) {
				if *left <= 0 {
					break
				}
				p.parts = append(p.parts, parsePart(c, inner, depth+1, left).closed())
			}
		}
		if len(p.parts) == 0 {
			p.parts = []*part{parsePart(p.body[:0], "text/plain", maxDepth, left)}
		}
	case p.typ == "message" && (p.sub == "rfc822" || p.sub == "global"):
		p.msg = parsePart(p.body, "text/plain", depth+1, left)
	}
	return p
}

// closed gives a multipart that ends in its closing delimiter that line's end,
// which also belongs to the delimiter around it; servers count it here.
func (p *part) closed() *part {
	if p.typ == "multipart" && bytes.HasSuffix(p.body, []byte("--"+p.param("boundary")+"--")) {
		n := len(p.body)
		rest := p.body[n:min(n+2, cap(p.body))]
		if len(rest) == 2 && string(rest) == "\r\n" {
			p.body = p.body[:n+2]
		}
	}
	return p
}

func (p *part) contentType(ct string) {
	typ, params, err := mime.ParseMediaType(ct)
	if err != nil && typ == "" {
		typ, _, _ = strings.Cut(ct, ";")
		typ = strings.ToLower(strings.TrimSpace(typ))
	}
	main, sub, ok := strings.Cut(typ, "/")
	if !ok || main == "" || sub == "" || strings.ContainsAny(typ, " \t\"()") {
		main, sub, params = "text", "plain", nil
	}
	p.typ, p.sub = main, sub
	for k, v := range params {
		p.params = append(p.params, [2]string{k, v})
	}
	sort.Slice(p.params, func(i, j int) bool { return p.params[i][0] < p.params[j][0] })
	if p.typ == "text" && p.param("charset") == "" {
		p.params = append([][2]string{{"charset", "us-ascii"}}, p.params...) // RFC 2045 section 5.2
	}
}

func (p *part) param(name string) string {
	for _, kv := range p.params {
		if kv[0] == name {
			return kv[1]
		}
	}
	return ""
}

// splitHeader cuts a message behind the first empty line.
func splitHeader(b []byte) (header, body []byte) {
	for i := 0; i < len(b); {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			break
		}
		line := b[i : i+n+1]
		i += n + 1
		if len(line) == 1 || len(line) == 2 && line[0] == '\r' {
			return b[:i], b[i:]
		}
	}
	return b, b[len(b):]
}

// splitBoundary cuts a multipart's body; preamble and epilogue are dropped.
func splitBoundary(body []byte, boundary string) [][]byte {
	delim := []byte("--" + boundary)
	var out [][]byte
	start := -1
	for i := 0; i < len(body); {
		n := bytes.IndexByte(body[i:], '\n')
		end := len(body)
		if n >= 0 {
			end = i + n + 1
		}
		line := bytes.TrimRight(body[i:end], " \t\r\n")
		if rest, ok := bytes.CutPrefix(line, delim); ok && (len(rest) == 0 || string(rest) == "--") {
			if start >= 0 {
				out = append(out, trimOneEOL(body[start:max(start, i)]))
			}
			start = end
			if len(rest) > 0 {
				return out
			}
		}
		i = end
	}
	if start >= 0 && start <= len(body) {
		out = append(out, body[start:])
	}
	return out
}

func trimOneEOL(b []byte) []byte {
	b = bytes.TrimSuffix(b, []byte{'\n'})
	return bytes.TrimSuffix(b, []byte{'\r'})
}

// eachField yields the fields of a header: name and whole raw lines. A line
// without a colon has no name.
func eachField(header []byte, f func(name string, raw []byte) bool) {
	for i := 0; i < len(header); {
		end := i
		for {
			n := bytes.IndexByte(header[end:], '\n')
			if n < 0 {
				end = len(header)
				break
			}
			end += n + 1
			if end >= len(header) || header[end] != ' ' && header[end] != '\t' {
				break
			}
		}
		raw := header[i:end]
		i = end
		name := ""
		if c := bytes.IndexByte(raw, ':'); c > 0 {
			name = string(bytes.TrimRight(raw[:c], " \t"))
		}
		if len(bytes.TrimRight(raw, "\r\n")) > 0 && !f(name, raw) {
			return
		}
	}
}

// headerField returns the unfolded value of the first field of a name.
func headerField(header []byte, name string) (v string, ok bool) {
	eachField(header, func(n string, raw []byte) bool {
		if !strings.EqualFold(n, name) {
			return true
		}
		v, ok = unfold(raw[bytes.IndexByte(raw, ':')+1:]), true
		return false
	})
	return v, ok
}

func unfold(b []byte) string {
	s := strings.TrimRight(string(b), "\r\n")
	if strings.ContainsAny(s, "\r\n") {
		s = strings.NewReplacer("\r\n", "", "\n", "", "\r", "").Replace(s)
	}
	return strings.TrimSpace(s)
}

// section finds the part of a section number such as "1.2". Number 1 of a part
// that is no multipart is the part itself (RFC 9051 section 6.4.5).
func (p *part) section(nums []uint32) *part {
	top := true // of a message or multipart: its number 1 may be itself
	for _, n := range nums {
		if p.msg != nil {
			p, top = p.msg, true
		}
		switch {
		case p.typ == "multipart" && n >= 1 && int(n) <= len(p.parts):
			p, top = p.parts[n-1], true
		case p.typ != "multipart" && n == 1 && top:
			top = false
		default:
			return nil
		}
	}
	return p
}

func lineCount(b []byte) int { return bytes.Count(b, []byte{'\n'}) }

// structure appends BODY or, with ext, BODYSTRUCTURE of p.
func (p *part) structure(b []byte, ext bool) []byte {
	b = append(b, '(')
	if p.typ == "multipart" {
		for _, c := range p.parts {
			b = c.structure(b, ext)
		}
		b = append(b, ' ')
		b = str(b, p.sub)
		if ext {
			b = append(b, ' ')
			b = p.appendParams(b)
			b = p.extension(b)
		}
		return append(b, ')')
	}
	b = append(str(b, p.typ), ' ')
	b = append(str(b, p.sub), ' ')
	b = append(p.appendParams(b), ' ')
	b = append(p.field(b, "Content-ID"), ' ')
	b = append(p.field(b, "Content-Description"), ' ')
	enc, ok := headerField(p.header, "Content-Transfer-Encoding")
	if !ok || enc == "" {
		enc = "7bit"
	}
	b = append(str(b, strings.ToLower(enc)), ' ')
	b = strconv.AppendInt(b, int64(len(p.body)), 10)
	switch {
	case p.msg != nil:
		b = append(p.msg.envelope(append(b, ' ')), ' ')
		b = append(p.msg.structure(b, ext), ' ')
		b = strconv.AppendInt(b, int64(lineCount(p.body)), 10)
	case p.typ == "text":
		b = append(b, ' ')
		b = strconv.AppendInt(b, int64(lineCount(p.body)), 10)
	}
	if ext {
		b = p.field(append(b, ' '), "Content-MD5")
		b = p.extension(b)
	}
	return append(b, ')')
}

func (p *part) languages(b []byte) []byte {
	v, ok := headerField(p.header, "Content-Language")
	f := strings.FieldsFunc(v, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' })
	if !ok || len(f) == 0 {
		return append(b, "NIL"...)
	}
	b = append(b, '(')
	for i, l := range f {
		if i > 0 {
			b = append(b, ' ')
		}
		b = str(b, l)
	}
	return append(b, ')')
}

func (p *part) field(b []byte, name string) []byte {
	v, ok := headerField(p.header, name)
	return nstr(b, v, ok)
}

func (p *part) appendParams(b []byte) []byte {
	if len(p.params) == 0 {
		return append(b, "NIL"...)
	}
	return pairs(b, p.params)
}

func pairs(b []byte, kv [][2]string) []byte {
	b = append(b, '(')
	for i, p := range kv {
		if i > 0 {
			b = append(b, ' ')
		}
		b = append(str(b, p[0]), ' ')
		b = str(b, p[1])
	}
	return append(b, ')')
}

// extension appends disposition, language and location.
func (p *part) extension(b []byte) []byte {
	b = append(b, ' ')
	if v, ok := headerField(p.header, "Content-Disposition"); ok {
		d, params, err := mime.ParseMediaType(v)
		if err != nil && d == "" {
			d, _, _ = strings.Cut(v, ";")
		}
		b = append(str(append(b, '('), strings.TrimSpace(d)), ' ')
		if len(params) == 0 {
			b = append(b, "NIL"...)
		} else {
			var kv [][2]string
			for k, v := range params {
				kv = append(kv, [2]string{k, v})
			}
			sort.Slice(kv, func(i, j int) bool { return kv[i][0] < kv[j][0] })
			b = pairs(b, kv)
		}
		b = append(b, ')')
	} else {
		b = append(b, "NIL"...)
	}
	b = p.languages(append(b, ' '))
	return p.field(append(b, ' '), "Content-Location")
}
