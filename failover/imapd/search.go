package imapd

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// candidate is a message that a search looks at; its bytes are read when a key
// first asks for them.
type candidate struct {
	s    *session
	num  uint32
	m    *row.Message
	raw  []byte
	root *part
	err  error
}

func (c *candidate) part() *part {
	if c.root == nil {
		c.raw, c.err = c.s.opt.Store.Message(c.m.Ref)
		c.root = parseMessage(c.raw)
	}
	return c.root
}

type key func(*candidate) bool

// searcher parses the keys of one SEARCH.
type searcher struct {
	s      *session
	r      *imapwire.Reader
	modseq bool
	depth  int
}

func (s *session) search(c *command) {
	var ret []string
	if c.args.AcceptWord("RETURN") {
		ret = []string{}
		c.args.SP()
		c.args.List(func() {
			o := strings.ToUpper(c.args.Atom())
			if !slices.Contains([]string{"MIN", "MAX", "ALL", "COUNT"}, o) {
				c.args.Failf("unknown option %.20s", o)
			}
			ret = append(ret, o)
		})
		c.args.SP()
	}
	if c.args.AcceptWord("CHARSET") {
		c.args.SP()
		if cs := strings.ToUpper(c.args.AString()); cs != "UTF-8" && cs != "US-ASCII" && c.args.Err() == nil {
			s.no(c, "[BADCHARSET (US-ASCII UTF-8)] Unknown charset")
			return
		}
		c.args.SP()
	}
	sr := &searcher{s: s, r: c.args}
	match := sr.all()
	if s.bad(c) {
		return
	}
	var hits []uint32
	var modseq uint64
	for i, m := range s.sel.view {
		cand := &candidate{s: s, num: uint32(i + 1), m: m}
		if !match(cand) {
			continue
		}
		n := cand.num
		if c.ByUID {
			n = m.UID
		}
		hits = append(hits, n)
		modseq = max(modseq, m.ModSeq)
	}
	s.condstore = s.condstore || sr.modseq
	s.searchAnswer(c, hits, ret, sr.modseq && len(hits) > 0, modseq)
	s.tell(c.ByUID)
	s.ok(c, "Search completed")
}

func (s *session) searchAnswer(c *command, hits []uint32, ret []string, tellMod bool, modseq uint64) {
	if ret == nil {
		var b []byte
		for _, h := range hits {
			b = fmt.Appendf(b, " %d", h)
		}
		if tellMod {
			b = fmt.Appendf(b, " (MODSEQ %d)", modseq)
		}
		s.line("* SEARCH%s", b)
		return
	}
	out := fmt.Sprintf("* ESEARCH (TAG %s)", imapwire.AppendString(nil, c.Tag))
	if c.ByUID {
		out += " UID"
	}
	has := func(o string) bool { return slices.Contains(ret, o) }
	if len(hits) > 0 {
		if has("MIN") {
			out += fmt.Sprintf(" MIN %d", hits[0])
		}
		if has("MAX") {
			out += fmt.Sprintf(" MAX %d", hits[len(hits)-1])
		}
		if has("ALL") || len(ret) == 0 {
			out += " ALL " + imapwire.FormatSet(hits)
		}
	}
	if has("COUNT") {
		out += fmt.Sprintf(" COUNT %d", len(hits))
	}
	if tellMod {
		out += fmt.Sprintf(" MODSEQ %d", modseq)
	}
	s.line("%s", out)
}

// all reads keys up to the end or a closing parenthesis; all must match.
func (sr *searcher) all() key {
	keys := []key{sr.one()}
	for sr.r.Accept(' ') {
		keys = append(keys, sr.one())
	}
	return func(c *candidate) bool {
		for _, k := range keys {
			if !k(c) {
				return false
			}
		}
		return true
	}
}

func (sr *searcher) one() key {
	r := sr.r
	if sr.depth++; sr.depth > 500 {
		r.Failf("too many keys")
		return nil
	}
	if p := r.Peek(); p >= '0' && p <= '9' || p == '*' {
		set := r.Set().Resolve(uint32(len(sr.s.sel.view)))
		return func(c *candidate) bool { return set.Contains(c.num) }
	}
	if r.Accept('(') {
		k := sr.all()
		r.Expect(')')
		return k
	}
	name := strings.ToUpper(r.Atom())
	if k := flagKey(name); k != nil {
		return k
	}
	r.SP()
	if k := sr.textKey(name); k != nil {
		return k
	}
	switch name {
	case "NOT":
		k := sr.one()
		return func(c *candidate) bool { return !k(c) }
	case "OR":
		a := sr.one()
		r.SP()
		b := sr.one()
		return func(c *candidate) bool { return a(c) || b(c) }
	case "UID":
		last := uint32(0)
		if n := len(sr.s.sel.view); n > 0 {
			last = sr.s.sel.view[n-1].UID
		}
		set := r.Set().Resolve(last)
		return func(c *candidate) bool { return set.Contains(c.m.UID) }
	case "KEYWORD", "UNKEYWORD":
		f, want := r.Atom(), name == "KEYWORD"
		return func(c *candidate) bool { return c.m.HasFlag(f) == want }
	case "LARGER", "SMALLER":
		n, larger := int64(r.Number()), name == "LARGER"
		return func(c *candidate) bool { return larger && c.m.Size > n || !larger && c.m.Size < n }
	case "MODSEQ":
		return sr.modseqKey()
	case "BEFORE", "ON", "SINCE", "SENTBEFORE", "SENTON", "SENTSINCE":
		return sr.dateKey(name)
	}
	r.Failf("unknown key %.30s", name)
	return nil
}

func flagKey(name string) key {
	is := func(flag string, want bool) key {
		return func(c *candidate) bool { return c.m.HasFlag(flag) == want }
	}
	switch name {
	case "ALL":
		return func(*candidate) bool { return true }
	case "ANSWERED", "DELETED", "DRAFT", "FLAGGED", "SEEN":
		return is(`\`+name, true)
	case "UNANSWERED", "UNDELETED", "UNDRAFT", "UNFLAGGED", "UNSEEN":
		return is(`\`+name[2:], false)
	case "NEW", "RECENT":
		return func(*candidate) bool { return false } // nothing is \Recent here
	case "OLD":
		return func(*candidate) bool { return true }
	}
	return nil
}

func (sr *searcher) modseqKey() key {
	sr.modseq = true
	if sr.r.Peek() == '"' {
		_ = sr.r.String()
		sr.r.SP()
		_ = sr.r.Atom()
		sr.r.SP()
	}
	n := sr.r.Number()
	return func(c *candidate) bool { return c.m.ModSeq >= n }
}

func (sr *searcher) dateKey(name string) key {
	day, err := time.Parse("2-Jan-2006", sr.r.AString())
	if err != nil {
		sr.r.Failf("bad date")
	}
	sent := strings.HasPrefix(name, "SENT")
	op := strings.TrimPrefix(name, "SENT")
	return func(c *candidate) bool {
		d := c.m.Date
		if sent {
			v, _ := headerField(c.part().header, "Date")
			var err error
			if d, err = parseDate(v); err != nil {
				return false
			}
		}
		d = time.Date(d.Year(), d.Month(), d.Day(), 0, 0, 0, 0, time.UTC)
		switch op {
		case "BEFORE":
			return d.Before(day)
		case "ON":
			return d.Equal(day)
		}
		return !d.Before(day)
	}
}

func (sr *searcher) textKey(name string) key {
	field, value := "", ""
	switch name {
	case "FROM", "TO", "CC", "BCC", "SUBJECT":
		field, value = name, sr.r.AString()
	case "HEADER":
		field = sr.r.AString()
		sr.r.SP()
		value = sr.r.AString()
	case "BODY", "TEXT":
		value = fold(sr.r.AString())
		return func(c *candidate) bool {
			p := c.part()
			return name == "TEXT" && strings.Contains(fold(decodeHeader(string(p.header))), value) || p.contains(value)
		}
	default:
		return nil
	}
	value = fold(value)
	return func(c *candidate) bool {
		found := false
		eachField(c.part().header, func(n string, raw []byte) bool {
			if strings.EqualFold(n, field) {
				v := unfold(raw[bytes.IndexByte(raw, ':')+1:])
				found = found || strings.Contains(fold(decodeHeader(v)), value)
			}
			return !found
		})
		return found
	}
}
