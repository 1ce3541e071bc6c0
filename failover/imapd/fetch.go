package imapd

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// fetchItem is one data item of a FETCH.
type fetchItem struct {
	name    string // as answered, without the partial origin
	kind    string // UID FLAGS … or BODY[
	nums    []uint32
	what    string   // "", HEADER, HEADER.FIELDS, HEADER.FIELDS.NOT, TEXT, MIME
	fields  []string // of HEADER.FIELDS
	peek    bool
	partial bool
	from    uint64
	count   uint64
}

func (it fetchItem) needsBody() bool {
	switch it.kind {
	case "ENVELOPE", "BODY", "BODYSTRUCTURE", "BODY[":
		return true
	}
	return false
}

func (s *session) fetch(c *command) {
	a, _ := c.Args.(imapwire.FetchArgs)
	c.args.SP()
	items := parseFetchItems(c.args)
	var since uint64
	if c.args.Accept(' ') {
		c.args.List(func() {
			if !c.args.AcceptWord("CHANGEDSINCE") {
				c.args.Failf("unknown modifier")
			}
			c.args.SP()
			since = c.args.Number()
			s.condstore = true
			items = append(items, fetchItem{name: "MODSEQ", kind: "MODSEQ"})
		})
	}
	idx, ok := s.sel.indexes(a.Set, c.ByUID)
	if !ok {
		c.args.Failf("no such message")
	}
	if s.bad(c) {
		return
	}
	s.runFetch(c, idx, items, since)
}

func (s *session) runFetch(c *command, idx []int, items []fetchItem, since uint64) {
	items = dedupe(items, c.ByUID)
	marks, modseq := false, false
	for _, it := range items {
		marks = marks || it.kind == "BODY[" && !it.peek
		modseq = modseq || it.kind == "MODSEQ"
	}
	s.condstore = s.condstore || modseq
	seen := map[uint32]bool{}
	if marks && !s.sel.readOnly {
		seen = s.markSeen(c, idx)
		if seen == nil {
			return
		}
	}
	lost := 0
	for _, i := range idx {
		if since > 0 && s.sel.view[i].ModSeq <= since {
			continue
		}
		if !s.fetchOne(i, items, seen[s.sel.view[i].UID]) {
			lost++
		}
		if s.w.Buffered() > 16<<10 && s.w.Flush() != nil {
			s.bye = true
			return
		}
	}
	s.tell(c.ByUID)
	if lost > 0 {
		s.no(c, "[SERVERBUG] %d messages could not be read", lost)
		return
	}
	s.ok(c, "Fetch completed")
}

// markSeen sets \Seen where a body is fetched; nil if that failed and was answered.
func (s *session) markSeen(c *command, idx []int) map[uint32]bool {
	var uids []uint32
	changed := map[uint32]bool{}
	for _, i := range idx {
		if m := s.sel.view[i]; !m.HasFlag(`\Seen`) {
			uids = append(uids, m.UID)
			changed[m.UID] = true
		}
	}
	if len(uids) == 0 {
		return changed
	}
	if _, err := s.opt.Store.SetFlags(s.work, s.User, row.FlagChange{Mailbox: s.sel.id, UIDs: uids, Op: row.Add,
		Flags: []string{`\Seen`}}); err != nil {
		s.fail(c, err)
		return nil
	}
	if sn, err := s.opt.Store.SnapshotByID(s.User, s.sel.id); err == nil {
		for _, i := range idx {
			if now := sn.Find(s.sel.view[i].UID); now != nil && changed[now.UID] {
				s.sel.view[i] = now
			}
		}
	}
	return changed
}

func dedupe(items []fetchItem, uid bool) []fetchItem {
	if uid {
		items = append([]fetchItem{{name: "UID", kind: "UID"}}, items...)
	}
	have := map[string]bool{}
	var out []fetchItem
	for _, it := range items {
		key := fmt.Sprint(it.name, it.partial, it.from, it.count, it.peek)
		if !have[key] {
			have[key] = true
			out = append(out, it)
		}
	}
	return out
}

// fetchOne answers one message; false if its bytes cannot be read.
func (s *session) fetchOne(i int, items []fetchItem, tellFlags bool) bool {
	m := s.sel.view[i]
	var raw []byte
	var root *part
	b := fmt.Appendf(nil, "* %d FETCH (", i+1)
	flags := false
	for n, it := range items {
		if it.needsBody() && raw == nil {
			var err error
			if raw, err = s.opt.Store.Message(m.Ref); err != nil {
				s.opt.Log.Error("read message", "account", s.User, "mailbox", s.sel.name, "uid", m.UID, "err", err)
				return false
			}
			if raw == nil {
				raw = []byte{}
			}
		}
		if it.needsBody() && root == nil && !it.whole() {
			root = parseMessage(raw)
		}
		if n > 0 {
			b = append(b, ' ')
		}
		flags = flags || it.kind == "FLAGS"
		b = it.value(b, m, raw, root)
	}
	if tellFlags && !flags {
		b = fmt.Appendf(b, " FLAGS %s", imapwire.FormatFlags(m.Flags))
		if s.condstore {
			b = fmt.Appendf(b, " MODSEQ (%d)", max(m.ModSeq, 1))
		}
	}
	_, _ = s.w.Write(append(b, ")\r\n"...))
	return true
}

// whole reports whether the item is the message as it is, or its header.
func (it fetchItem) whole() bool { return it.kind == "BODY[" && len(it.nums) == 0 && it.what == "" }

func (it fetchItem) value(b []byte, m *row.Message, raw []byte, root *part) []byte {
	switch it.kind {
	case "UID":
		return fmt.Appendf(b, "UID %d", m.UID)
	case "FLAGS":
		return append(append(b, "FLAGS "...), imapwire.FormatFlags(m.Flags)...)
	case "INTERNALDATE":
		return fmt.Appendf(b, `INTERNALDATE "%s"`, m.Date.Format(imapwire.DateTime))
	case "RFC822.SIZE":
		return fmt.Appendf(b, "RFC822.SIZE %d", m.Size)
	case "MODSEQ":
		return fmt.Appendf(b, "MODSEQ (%d)", max(m.ModSeq, 1))
	case "ENVELOPE":
		return root.envelope(append(b, "ENVELOPE "...))
	case "BODY":
		return root.structure(append(b, "BODY "...), false)
	case "BODYSTRUCTURE":
		return root.structure(append(b, "BODYSTRUCTURE "...), true)
	}
	b = append(b, it.name...)
	data, ok := it.body(raw, root)
	if it.partial {
		b = fmt.Appendf(b, "<%d>", it.from)
		from := min(it.from, uint64(len(data)))
		data = data[from:min(from+it.count, uint64(len(data)))]
	}
	if !ok {
		data = nil // a part that is not there is empty, as Dovecot has it
	}
	b = append(b, " {"...)
	b = strconv.AppendInt(b, int64(len(data)), 10)
	b = append(b, "}\r\n"...)
	return append(b, data...)
}

// body finds the bytes of a section.
func (it fetchItem) body(raw []byte, root *part) ([]byte, bool) {
	if it.whole() {
		return raw, true
	}
	p := root.section(it.nums)
	if p == nil {
		return nil, false
	}
	if it.what == "" {
		return p.body, true
	}
	if it.what == "MIME" {
		return p.header, true
	}
	if len(it.nums) > 0 {
		if p.msg == nil {
			return nil, false
		}
		p = p.msg
	}
	switch it.what {
	case "HEADER":
		return p.header, true
	case "TEXT":
		return p.body, true
	}
	return pickFields(p.header, it.fields, it.what == "HEADER.FIELDS.NOT"), true
}

func pickFields(header []byte, names []string, not bool) []byte {
	var out []byte
	eachField(header, func(name string, raw []byte) bool {
		match := false
		for _, n := range names {
			match = match || strings.EqualFold(n, name)
		}
		if match != not {
			out = append(out, raw...)
		}
		return true
	})
	if bytes.HasSuffix(header, []byte("\n\r\n")) || bytes.HasSuffix(header, []byte("\n\n")) || len(header) <= 2 {
		out = append(out, "\r\n"...)
	}
	return out
}

func parseFetchItems(r *imapwire.Reader) []fetchItem {
	switch {
	case r.AcceptWord("ALL"):
		return macro("FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE")
	case r.AcceptWord("FAST"):
		return macro("FLAGS", "INTERNALDATE", "RFC822.SIZE")
	case r.AcceptWord("FULL"):
		return macro("FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE", "BODY")
	}
	if r.Peek() != '(' {
		return []fetchItem{parseFetchItem(r)}
	}
	var items []fetchItem
	r.List(func() { items = append(items, parseFetchItem(r)) })
	return items
}

func macro(names ...string) []fetchItem {
	var out []fetchItem
	for _, n := range names {
		out = append(out, fetchItem{name: n, kind: n})
	}
	return out
}

func parseFetchItem(r *imapwire.Reader) fetchItem {
	name := strings.ToUpper(r.Word("[<"))
	switch name {
	case "UID", "FLAGS", "INTERNALDATE", "RFC822.SIZE", "ENVELOPE", "BODYSTRUCTURE", "MODSEQ":
		return fetchItem{name: name, kind: name}
	case "RFC822":
		return fetchItem{name: name, kind: "BODY["}
	case "RFC822.HEADER":
		return fetchItem{name: name, kind: "BODY[", what: "HEADER", peek: true}
	case "RFC822.TEXT":
		return fetchItem{name: name, kind: "BODY[", what: "TEXT"}
	case "BODY", "BODY.PEEK":
		if !r.Accept('[') {
			if name == "BODY" {
				return fetchItem{name: name, kind: name}
			}
			break
		}
		it := fetchItem{kind: "BODY[", peek: name == "BODY.PEEK"}
		parseSection(r, &it)
		return it
	}
	r.Failf("unknown item %.30s", name)
	return fetchItem{}
}

// parseSection reads what follows "BODY[".
func parseSection(r *imapwire.Reader, it *fetchItem) {
	var spec []string
	for p := r.Peek(); p >= '0' && p <= '9'; p = r.Peek() {
		n := r.Number32()
		it.nums = append(it.nums, n)
		spec = append(spec, strconv.Itoa(int(n)))
		if n == 0 || len(it.nums) > maxDepth {
			r.Failf("bad section")
		}
		if !r.Accept('.') {
			break
		}
	}
	if r.Peek() != ']' {
		it.what = strings.ToUpper(r.Word("] "))
		spec = append(spec, it.what)
		switch it.what {
		case "HEADER", "TEXT":
		case "MIME":
			if len(it.nums) == 0 {
				r.Failf("MIME needs a part")
			}
		case "HEADER.FIELDS", "HEADER.FIELDS.NOT":
			r.SP()
			r.List(func() { it.fields = append(it.fields, r.AString()) })
		default:
			r.Failf("unknown section %.30s", it.what)
		}
	}
	r.Expect(']')
	it.name = "BODY[" + strings.Join(spec, ".")
	if it.fields != nil {
		quoted := make([]string, len(it.fields))
		for i, f := range it.fields {
			quoted[i] = imapwire.AString(strings.ToUpper(f))
		}
		it.name += " (" + strings.Join(quoted, " ") + ")"
	}
	it.name += "]"
	if r.Accept('<') {
		it.partial = true
		it.from = r.Number()
		r.Expect('.')
		if it.count = r.Number(); it.count == 0 {
			r.Failf("empty partial")
		}
		r.Expect('>')
	}
}
