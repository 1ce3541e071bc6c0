package plan

import (
	"slices"
	"testing"

	"understudy/replica/row"
)

// B4: a mailbox that is another one on production begins with an empty base.
func TestB4_BeginsAnew(t *testing.T) {
	for _, c := range []struct {
		name string
		of   func(*Mailbox)
		want Why
	}{
		{"the same", func(*Mailbox) {}, ""},
		{"with a UIDVALIDITY of its own on production",
			func(m *Mailbox) { m.Base.ProdUIDValidity, m.UIDValidity = 9, 9 }, ""},
		{"another UIDVALIDITY", func(m *Mailbox) { m.UIDValidity = 8 }, Another},
		{"an older state", func(m *Mailbox) { m.UIDNext = 99 }, Another},
		{"it held no messages", func(m *Mailbox) { m.Base.NoSelect = true }, Another},
		{"it was not there", func(m *Mailbox) { m.Base = nil }, NotThere},
	} {
		in := mailbox(1, "A", msg(3, 3), fresh(110, 4)).was(msg(5, 5))
		c.of(&in)
		in = in.on(3, 5)
		if c.want != "" {
			in.Found[3], in.Found[5] = Found{Like: []Like{{3, true}}}, found(5)
		}
		p := mergeOne(in)
		if p.Anew != c.want {
			t.Errorf("%s: %q, want %q", c.name, p.Anew, c.want)
			continue
		}
		if c.want == "" {
			if !slices.Equal(UIDs(p.Remove), []uint32{5}) || !slices.Equal(UIDs(p.Append), []uint32{110}) ||
				len(p.Adopt) > 0 {
				t.Errorf("%s: %+v", c.name, p)
			}
			continue
		}
		// Nothing is deleted: of what it holds nobody knows what clients deleted.
		if len(p.Remove) > 0 || !slices.Equal(UIDs(p.Adopt), []uint32{3}) ||
			!slices.Equal(UIDs(p.Late), []uint32{5}) || p.Order()[0] != Renew {
			t.Errorf("%s: %+v", c.name, p)
		}
	}
}

// Where a UID is taken on production what is to be appended waits for clients to be
// kept off, and then gets other UIDs; all else comes with the next plan.
func TestR5_TakenUIDs(t *testing.T) {
	in := mailbox(1, "A", fresh(110, 4), fresh(111, 5)).late(110, found(9))
	in.Standby.UIDNext = 120
	p := Merge(Account{Boxes: []Mailbox{in}}).Boxes[0]
	if len(p.Append) > 0 || whys(p.Wait)[110] != Waits || slices.Contains(p.Order(), AppendAll) {
		t.Errorf("beside clients: %+v", p)
	}
	p = mergeOne(in)
	if !slices.Equal(UIDs(p.Shift), []uint32{110, 111}) || whys(p.Shift)[110] != Taken ||
		!slices.Equal(p.Order(), []Kind{ShiftAll}) {
		t.Errorf("%+v, %v", p, p.Order())
	}
}

// Late arrivals and lost messages wait until clients are kept off; then they get
// UIDs above all that clients were shown.
func TestR5_LateAndLost(t *testing.T) {
	in := mailbox(1, "A", msg(3, 3), fresh(110, 4)).late(100, found(9))
	in.Standby.UIDNext = 120
	p := Merge(Account{Boxes: []Mailbox{in}}).Boxes[0]
	if !slices.Equal(p.Order(), []Kind{LeaveRoom, AppendAll}) || p.Room != 16 {
		t.Errorf("beside clients: %v", p.Order())
	}
	p = mergeOne(in)
	if !slices.Equal(p.Order(), []Kind{AppendAll, ReachNext, RestoreAll, TakeLate}) || !p.Behind || p.Reach != 120 {
		t.Errorf("%v %+v", p.Order(), p)
	}
	in = mailbox(1, "A").late(130, found(9))
	in.Standby.UIDNext = 120
	if p = mergeOne(in); p.Behind || p.Reach != 0 || !slices.Equal(p.Order(), []Kind{TakeLate}) {
		t.Errorf("above all that was shown: %v %+v", p.Order(), p)
	}
}

// N12: numbers that clients were shown are reached, and never without need.
func TestN12_Numbers(t *testing.T) {
	for _, c := range []struct {
		name         string
		final, level bool
		cond         bool
		seq, next    uint64 // of the standby; production: 50, 100
		want         []Kind
	}{
		{"equal", true, false, true, 50, 100, nil},
		{"production is ahead", true, false, true, 40, 90, nil},
		{"a higher HIGHESTMODSEQ was shown", true, false, true, 60, 100, []Kind{RaiseSeq}},
		{"which production has not", true, false, false, 60, 100, nil},
		{"beside clients", false, false, true, 60, 100, nil},
		{"beside clients, shortly before they are kept off", false, true, true, 60, 100, []Kind{RaiseSeq}},
		{"a higher UIDNEXT was shown", true, false, true, 50, 110, []Kind{ReachNext, RaiseSeq}},
		{"a higher UIDNEXT was shown, beside clients", false, false, true, 50, 110, nil},
	} {
		in := mailbox(1, "A")
		in.ModSeq, in.Standby.ModSeq, in.Standby.UIDNext, in.Standby.Gap = 50, c.seq, uint32(c.next), 16
		p := Merge(Account{Final: c.final, Level: c.level, CondStore: c.cond, Boxes: []Mailbox{in}}).Boxes[0]
		if !slices.Equal(p.Order(), c.want) {
			t.Errorf("%s: %v, want %v", c.name, p.Order(), c.want)
		}
	}
}

// T28: a flag that an earlier copy-back left is taken away, and merged as if it had
// never been there; one that clients have set stays.
func TestT28_FlagLeft(t *testing.T) {
	left := []row.Doubt{row.FlagDoubt(1, 3, `\Flagged`)}
	in := mailbox(1, "A", msg(3, 3))
	in.Production = []Remote{{3, []string{`\Flagged`}}}
	p := Merge(Account{Left: left, Boxes: []Mailbox{in}}).Boxes[0]
	if len(p.Clean) != 1 || len(p.Local)+len(p.Flags) > 0 ||
		!slices.Equal(in.Production[0].Flags, []string{`\Flagged`}) {
		t.Errorf("%+v", p)
	}
	in.Production = []Remote{{3, nil}}
	if p = Merge(Account{Left: left, Boxes: []Mailbox{in}}).Boxes[0]; !p.Empty() {
		t.Errorf("it is not there: %+v", p)
	}
	in = mailbox(1, "A", msg(3, 3, `\Flagged`)).on(3)
	if p = Merge(Account{Left: left, Boxes: []Mailbox{in}}).Boxes[0]; !p.Empty() {
		t.Errorf("production had it at the takeover: %+v", p)
	}
	in = mailbox(1, "A", msg(3, 3, `\Flagged`)).was(msg(3, 3))
	in.Production = []Remote{{3, []string{`\Flagged`}}}
	p = Merge(Account{Left: left, Boxes: []Mailbox{in}}).Boxes[0]
	if len(p.Clean) != 1 || len(p.Flags) != 1 || len(p.Local) > 0 ||
		!slices.Equal(p.Flags[0].Flags, []string{`\Flagged`}) || len(p.Local) > 0 {
		t.Errorf("a client set it on the standby: %+v", p)
	}
}
