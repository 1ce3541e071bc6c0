package copyback

import (
	"slices"

	"understudy/replica/copyback/plan"
	"understudy/replica/match"
	"understudy/replica/row"
)

// What is enough to take a message of production for one of the standby: some
// servers change CR CR LF on saving, and add lines to headers of what they deliver.
// A copy of what the standby has delivered before is dropped, so it has to be that.
const (
	sameMessage = match.SameBytes | match.SameButCarriageReturns
	sameSent    = match.WholeButCarriageReturns
	sameTwin    = match.Whole
)

// alike are the messages that those which production got by itself may be.
type alike struct {
	rows   match.Index[candidate] // by length of the plain body
	twins  match.Index[twin]      // by length of the body
	doubts []doubted
}

type candidate struct {
	uid       uint32
	all, sent *match.Text // sent: as its sender gave it, if the standby delivered it
}

type twin struct {
	id   uint64
	sent *match.Text
}

type doubted struct {
	ref row.Ref
	all *match.Text // nil: not read yet
}

func (a *account) text(ref row.Ref) (*match.Text, error) {
	raw, err := a.opt.Messages.Get(ref)
	if err != nil {
		return nil, err
	}
	return match.Read(raw), nil
}

// alike reads them, for one mailbox. keys are those of what was found, plain its
// lengths: no other message is kept in memory, for a mailbox may be large.
func (a *account) alike(m *plan.Mailbox, doubts []row.Doubt, keys map[string]bool,
	plain map[int64]bool) (*alike, error) {
	x := &alike{}
	for _, s := range m.MayBe() {
		raw, err := a.opt.Messages.Get(s.Ref)
		if err != nil {
			return nil, err
		}
		c := candidate{uid: s.UID, all: match.Read(raw)}
		if !plain[c.all.PlainBodyLen()] {
			continue
		}
		if s.Tail > 0 && s.Tail <= int64(len(raw)) {
			c.sent = match.Read(raw[int64(len(raw))-s.Tail:])
		}
		x.rows.Add(c.all.PlainBodyLen(), c)
	}
	for _, w := range a.opt.Ledgers.Twins(a.name) {
		if !keys[w.Key] {
			continue
		}
		if t, err := a.text(w.Ref); err == nil {
			x.twins.Add(t.BodyLen(), twin{w.ID, t})
		}
	}
	for _, d := range doubts {
		if !d.Into(m.Standby.ID, m.Standby.Name) {
			continue
		}
		for _, ref := range d.Refs {
			if !slices.ContainsFunc(x.doubts, func(y doubted) bool { return y.ref == ref }) {
				x.doubts = append(x.doubts, doubted{ref: ref})
			}
		}
	}
	return x, nil
}

// compare says what a message that was found may be.
func (a *account) compare(f *plan.Found, x *alike) error {
	t, err := a.text(f.Ref)
	if err != nil {
		return err
	}
	for _, c := range x.rows.Candidates(t.PlainBodyLen()) {
		equal := match.Compare(c.all, t, sameMessage) != 0
		if equal || c.sent != nil && match.Compare(c.sent, t, sameSent) != 0 {
			f.Like = append(f.Like, plan.Like{UID: c.uid, Equal: equal})
		}
	}
	for _, w := range x.twins.Candidates(t.BodyLen()) {
		if match.Compare(w.sent, t, sameTwin) != 0 {
			f.Twins = append(f.Twins, w.id)
		}
	}
	for i := range x.doubts {
		d := &x.doubts[i]
		if d.all == nil && d.ref != f.Ref && sizesAlike(d.ref.Size, f.Ref.Size) {
			if d.all, err = a.text(d.ref); err != nil {
				return err
			}
		}
		if d.ref == f.Ref || d.all != nil && match.Compare(d.all, t, sameMessage) != 0 {
			f.Refs = append(f.Refs, d.ref)
		}
	}
	f.Filler = f.Ref == row.RefOf(filler())
	return nil
}

// sizesAlike reports whether messages may be the same but for carriage returns.
func sizesAlike(x, y int64) bool { return max(x, y)-min(x, y) <= max(x, y)/8+16 }
