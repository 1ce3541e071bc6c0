package imapd

import (
	"fmt"
	"strings"

	"understudy/snoop/imapwire"
)

// str writes a string of a message: quoted only where nothing must be escaped.
func str(b []byte, s string) []byte {
	if strings.ContainsAny(s, `"\`) {
		return fmt.Appendf(b, "{%d}\r\n%s", len(s), s)
	}
	return imapwire.AppendString(b, s)
}

func nstr(b []byte, s string, ok bool) []byte {
	if !ok {
		return append(b, "NIL"...)
	}
	return str(b, s)
}

// envelope appends ENVELOPE (RFC 9051 section 7.5.2); encoded words stay as
// they are.
func (p *part) envelope(b []byte) []byte {
	b = p.field(append(b, '('), "Date")
	b = p.field(append(b, ' '), "Subject")
	from, _ := headerField(p.header, "From")
	for _, f := range []string{"From", "Sender", "Reply-To", "To", "Cc", "Bcc"} {
		v, ok := headerField(p.header, f)
		if (!ok || v == "") && (f == "Sender" || f == "Reply-To") {
			v = from
		}
		b = appendAddresses(append(b, ' '), v)
	}
	b = p.field(append(b, ' '), "In-Reply-To")
	b = p.field(append(b, ' '), "Message-ID")
	return append(b, ')')
}

type address struct {
	name, route, box, host string
	start, end             bool // of a group
}

func appendAddresses(b []byte, v string) []byte {
	list := parseAddresses(v)
	if len(list) == 0 {
		return append(b, "NIL"...)
	}
	b = append(b, '(')
	for _, a := range list {
		b = append(b, '(')
		switch {
		case a.start:
			b = append(b, "NIL NIL "...)
			b = append(str(b, a.box), " NIL"...)
		case a.end:
			b = append(b, "NIL NIL NIL NIL"...)
		default:
			b = append(nstr(b, a.name, a.name != ""), ' ')
			b = append(nstr(b, a.route, a.route != ""), ' ')
			b = append(str(b, a.box), ' ')
			b = str(b, a.host)
		}
		b = append(b, ')')
	}
	return append(b, ')')
}

// addrParser reads an address list of RFC 5322 section 3.4, forgivingly: what
// is no address becomes a mailbox name with an empty host.
type addrParser struct {
	s   string
	i   int
	out []address

	commentLast bool // of the last phrase
}

const maxAddresses = 5000

func parseAddresses(s string) []address {
	p := &addrParser{s: s}
	for p.i < len(p.s) && len(p.out) < maxAddresses {
		p.one(false)
	}
	return p.out
}

// one reads an address or group up to its comma.
func (p *addrParser) one(inGroup bool) {
	phrase, comment := p.words()
	switch p.peek() {
	case ':':
		p.i++
		if inGroup {
			return
		}
		p.out = append(p.out, address{box: phrase, start: true})
		for p.i < len(p.s) && p.peek() != ';' && len(p.out) < maxAddresses {
			p.one(true)
		}
		p.i++
		p.out = append(p.out, address{end: true})
	case '<':
		p.i++
		spec := p.until('>')
		route := ""
		if strings.HasPrefix(spec, "@") {
			if r, rest, ok := strings.Cut(spec, ":"); ok {
				route, spec = r, rest
			}
		}
		if phrase == "" {
			phrase = comment
		}
		p.add(phrase, route, spec)
	default:
		if phrase != "" {
			if !p.commentLast {
				comment = "" // a name only behind the address
			}
			p.add(comment, "", phrase)
		}
	}
	for p.i < len(p.s) && p.peek() != ',' && !(inGroup && p.peek() == ';') && p.peek() != '<' {
		p.words()
		if c := p.peek(); c != ',' && c != ';' && c != '<' {
			p.i++
		} else if c == ';' && !inGroup {
			p.i++
		}
	}
	if p.peek() == ',' {
		p.i++
	}
}

func (p *addrParser) add(name, route, spec string) {
	box, host := spec, ""
	if i := strings.LastIndexByte(spec, '@'); i >= 0 {
		box, host = spec[:i], spec[i+1:]
	}
	box = strings.TrimSpace(box)
	if len(box) > 1 && box[0] == '"' && box[len(box)-1] == '"' {
		box = strings.ReplaceAll(box[1:len(box)-1], `\`, "")
	}
	p.out = append(p.out, address{name: name, route: route, box: box, host: strings.TrimSpace(host)})
}

func (p *addrParser) peek() byte {
	if p.i < len(p.s) {
		return p.s[p.i]
	}
	return 0
}

func (p *addrParser) until(end byte) string {
	start := p.i
	for p.i < len(p.s) && p.s[p.i] != end {
		p.i++
	}
	out := p.s[start:min(p.i, len(p.s))]
	p.i++
	return strings.TrimSpace(out)
}

// words reads a phrase: atoms and quoted strings, with the last comment apart.
func (p *addrParser) words() (phrase, comment string) {
	var sb strings.Builder
	space := false
	p.commentLast = false
	for p.i < len(p.s) {
		switch c := p.s[p.i]; c {
		case ' ', '\t', '\r', '\n':
			space = sb.Len() > 0
			p.i++
		case '(':
			comment = p.comment()
			p.commentLast = sb.Len() > 0
		case '"':
			q := p.quoted()
			if space {
				sb.WriteByte(' ')
			}
			if p.peek() == '@' {
				q = `"` + q + `"`
			}
			sb.WriteString(q)
			space = false
		case ',', ';', ':', '<':
			return sb.String(), comment
		default:
			if space {
				sb.WriteByte(' ')
			}
			sb.WriteByte(c)
			space = false
			p.i++
		}
	}
	return sb.String(), comment
}

func (p *addrParser) quoted() string {
	var sb strings.Builder
	for p.i++; p.i < len(p.s); p.i++ {
		switch p.s[p.i] {
		case '"':
			p.i++
			return sb.String()
		case '\\':
			if p.i+1 < len(p.s) {
				p.i++
			}
		}
		sb.WriteByte(p.s[p.i])
	}
	return sb.String()
}

func (p *addrParser) comment() string {
	start, depth := p.i+1, 0
	for ; p.i < len(p.s); p.i++ {
		switch p.s[p.i] {
		case '\\':
			p.i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				p.i++
				return strings.TrimSpace(p.s[start : p.i-1])
			}
		}
	}
	p.i = min(p.i, len(p.s))
	return strings.TrimSpace(p.s[min(start, len(p.s)):])
}
