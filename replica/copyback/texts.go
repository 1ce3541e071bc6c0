package copyback

import (
	"bytes"
	"slices"
	"strings"

	"understudy/replica/copyback/plan"
	"understudy/replica/row"
)

// Is that message this one? What is compared here enters the plan as data.

// text is a message with its forms that are compared.
type text struct {
	raw    []byte
	plain  string // without carriage returns: some servers change CR CR LF on saving
	header int    // of raw, with its empty line
}

func (a *account) text(ref row.Ref) (*text, error) {
	raw, err := a.opt.Messages.Get(ref)
	if err != nil {
		return nil, err
	}
	return newText(raw), nil
}

func newText(raw []byte) *text {
	t := &text{raw: raw, plain: canonical(raw), header: len(raw)}
	if i := bytes.Index(raw, []byte("\r\n\r\n")); i >= 0 {
		t.header = i + 4
	}
	return t
}

func canonical(msg []byte) string { return strings.ReplaceAll(string(msg), "\r", "") }

func bodyLen(canon string) int {
	if i := strings.Index(canon, "\n\n"); i >= 0 {
		return len(canon) - i - 2
	}
	return 0
}

// endsAlike reports whether production's copy is what a sender gave, with
// headers prepended or added.
func endsAlike(late, orig string) bool {
	if strings.HasSuffix(late, orig) {
		return true
	}
	n, o := len(late)-bodyLen(late), len(orig)-bodyLen(orig)
	return late[n:] == orig[o:] && containsLines(late[:n], orig[:max(o-1, 0)])
}

func containsLines(header, lines string) bool {
	for line := range strings.Lines(lines) {
		i := strings.Index(header, line)
		if i < 0 {
			return false
		}
		header = header[i+len(line):]
	}
	return true
}

// delivers reports whether a message is what became of one that was sent.
func (t *text) delivers(sent *text) bool {
	return bytes.Equal(sent.raw[sent.header:], t.raw[t.header:]) &&
		containsLines(string(t.raw[:t.header]), string(sent.raw[:sent.header]))
}

// alike are the messages that those which production got by itself may be.
type alike struct {
	rows   map[int][]candidate // by length of the plain body
	twins  map[int][]twin      // by length of the body
	doubts []doubted
}

type candidate struct {
	uid         uint32
	plain, sent string // sent: as its sender gave it, if the standby delivered it
}

type twin struct {
	id   uint64
	sent *text
}

type doubted struct {
	ref   row.Ref
	plain string
}

// alike reads them, for one mailbox.
func (a *account) alike(m *plan.Mailbox, doubts []row.Doubt) (*alike, error) {
	x := &alike{rows: map[int][]candidate{}, twins: map[int][]twin{}}
	for _, s := range m.MayBe() {
		t, err := a.text(s.Ref)
		if err != nil {
			return nil, err
		}
		c := candidate{uid: s.UID, plain: t.plain}
		if s.Tail > 0 && s.Tail <= int64(len(t.raw)) {
			c.sent = canonical(t.raw[int64(len(t.raw))-s.Tail:])
		}
		x.rows[bodyLen(c.plain)] = append(x.rows[bodyLen(c.plain)], c)
	}
	for _, w := range a.opt.Ledgers.Twins(a.name) {
		if t, err := a.text(w.Ref); err == nil {
			n := len(t.raw) - t.header
			x.twins[n] = append(x.twins[n], twin{w.ID, t})
		}
	}
	for _, d := range doubts {
		if !into(d, m.Standby.ID, m.Standby.Name) {
			continue
		}
		for _, ref := range d.Refs {
			if slices.ContainsFunc(x.doubts, func(y doubted) bool { return y.ref == ref }) {
				continue
			}
			t, err := a.text(ref)
			if err != nil {
				return nil, err
			}
			x.doubts = append(x.doubts, doubted{ref, t.plain})
		}
	}
	return x, nil
}

// tell says what a message that was found may be.
func (x *alike) tell(f *plan.Found, t *text) {
	for _, c := range x.rows[bodyLen(t.plain)] {
		if equal := c.plain == t.plain; equal || c.sent != "" && endsAlike(t.plain, c.sent) {
			f.Like = append(f.Like, plan.Like{UID: c.uid, Equal: equal})
		}
	}
	for _, w := range x.twins[len(t.raw)-t.header] {
		if t.delivers(w.sent) {
			f.Twins = append(f.Twins, w.id)
		}
	}
	for _, d := range x.doubts {
		if d.ref == f.Ref || d.plain == t.plain {
			f.Refs = append(f.Refs, d.ref)
		}
	}
	f.Filler = f.Ref == row.RefOf(filler())
}

// into reports whether production may have put messages into a mailbox by a doubt.
func into(d row.Doubt, id row.MailboxID, name string) bool {
	return d.Box == id || d.Box == 0 && d.To == name
}
