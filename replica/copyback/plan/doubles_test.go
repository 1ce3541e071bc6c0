package plan

import (
	"slices"
	"testing"

	"understudy/replica/row"
)

func ref(n byte) row.Ref { return row.RefOf([]byte{n}) }

// msg is a message with content n that production had at the takeover.
func msg(uid uint32, n byte, flags ...string) *row.Message {
	return &row.Message{UID: uid, Ref: ref(n), Flags: row.NormalFlags(flags)}
}

func fresh(uid uint32, n byte) *row.Message {
	return &row.Message{UID: uid, Ref: ref(n), Fresh: true, Flags: []string{}}
}

// on puts messages on production as they are in the base.
func (m Mailbox) on(uids ...uint32) Mailbox {
	for _, u := range uids {
		var flags []string
		if was := m.Changed[u]; was != nil {
			flags = was.Flags
		} else if s := m.Standby.Find(u); s != nil {
			flags = s.Flags
		}
		m.Production = append(m.Production, Remote{u, flags})
	}
	return m
}

// late puts one on production that the base has not.
func (m Mailbox) late(uid uint32, f Found, flags ...string) Mailbox {
	m.Production = append(m.Production, Remote{uid, flags})
	m.Found[uid] = f
	m.UIDNext = max(m.UIDNext, uid+1)
	return m
}

// was gives messages that the standby has deleted or changed.
func (m Mailbox) was(rows ...*row.Message) Mailbox {
	for _, r := range rows {
		m.Changed[r.UID] = r
	}
	return m
}

// found is a message with content n, and with those of doubts.
func found(n byte, doubts ...byte) Found {
	f := Found{Ref: ref(n)}
	for _, d := range append(doubts, n) {
		f.Refs = append(f.Refs, ref(d))
	}
	return f
}

func whys(items []Item) map[uint32]Why {
	out := map[uint32]Why{}
	for _, it := range items {
		out[it.UID] = it.Why
	}
	return out
}

// N08: for each kind of doubt, what production made for it is dropped, and what it
// has by right stays.
func TestN08_EachKindOfDoubt(t *testing.T) {
	kinds := map[row.DoubtKind]bool{}
	for _, c := range []struct {
		name  string
		doubt row.Doubt
		late  []Found // in mailbox 2, UIDs 90, 91 …
		want  map[uint32]Why
	}{
		{"a MOVE that a client undid", row.MoveDoubt("A", "B", []uint32{3}, 90), []Found{found(3)}, nil},
		{"another content", row.RepeatedDoubt("B", ref(3)), []Found{found(4)}, map[uint32]Why{90: Late}},
		{"an APPEND that both did", row.RepeatedDoubt("B", ref(3)), []Found{found(3)}, nil},
		{"carriage returns changed", row.RepeatedDoubt("B", ref(3)), []Found{found(4, 3)}, nil},
		{"an APPEND that both did, and another one", row.RepeatedDoubt("B", ref(3)),
			[]Found{found(3), found(3)}, map[uint32]Why{91: Late}},
		{"one into another mailbox", row.RepeatedDoubt("A", ref(3)), []Found{found(3)}, map[uint32]Why{90: Late}},
		{"what copy-back had put there", row.AppendDoubt(2, ref(3), ref(4)), []Found{found(4), found(3)}, nil},
		{"what it had put into another mailbox", row.AppendDoubt(1, ref(3)),
			[]Found{found(3)}, map[uint32]Why{90: Late}},
		{"copied behind, and not taken out", row.BehindDoubt(2, ref(3)),
			[]Found{found(3), found(3)}, map[uint32]Why{91: Late}},
		{"not copied behind", row.BehindDoubt(2, ref(3)), []Found{found(3)}, map[uint32]Why{90: Late}},
		{"two of one content copied behind", row.BehindDoubt(2, ref(3), ref(3)),
			[]Found{found(3), found(3), found(3), found(3)}, map[uint32]Why{92: Late, 93: Late}},
		{"a flag", row.FlagDoubt(2, 90, `\Flagged`), []Found{found(3)}, map[uint32]Why{90: Late}},
	} {
		kinds[c.doubt.Kind] = true
		if c.doubt.Kind == row.DoubtMove {
			c.doubt.Refs = []row.Ref{ref(3)}
		}
		b := mailbox(2, "B")
		for i, f := range c.late {
			b = b.late(90+uint32(i), f)
		}
		// A client has deleted message 3, which is gone on production, too.
		a := mailbox(1, "A").was(msg(3, 3))
		p := Merge(Account{Final: true, Boxes: []Mailbox{a, b}, Doubts: []row.Doubt{c.doubt}}).Boxes[1]
		if got := whys(p.Late); len(got) != len(c.want) {
			t.Errorf("%s: %v stay, want %v", c.name, got, c.want)
		} else {
			for u, w := range c.want {
				if got[u] != w {
					t.Errorf("%s: %v stay, want %v", c.name, got, c.want)
				}
			}
		}
		if len(p.Late)+len(p.Remove) != len(c.late) {
			t.Errorf("%s: %d of %d have a step", c.name, len(p.Late)+len(p.Remove), len(c.late))
		}
	}
	for _, k := range row.DoubtKinds() {
		if !kinds[k] {
			t.Errorf("no case for doubts of kind %q", k)
		}
	}
}

// B5: a message that production moved unseen is gone here and arrived there, with
// the flags of both sides.
func TestB5_MovedUnseen(t *testing.T) {
	a := mailbox(1, "A", msg(3, 3, "work"), msg(4, 4)).was(msg(3, 3, `\Seen`)).on(4)
	b := mailbox(2, "B").late(90, found(3), `\Seen`, `\Flagged`)
	for _, boxes := range [][]Mailbox{{a, b}, {b, a}} {
		p := Merge(Account{Final: true, Boxes: boxes})
		if boxes[0].Standby.ID == 2 {
			slices.Reverse(p.Boxes)
		}
		if len(p.Boxes[0].Restore) > 0 || len(p.Boxes[1].Late) != 1 {
			t.Fatalf("%+v", p)
		}
		l := p.Boxes[1].Late[0]
		if l.Why != Moved || l.From != (Place{1, 3}) || !slices.Equal(l.Flags, []string{`\Flagged`, "work"}) {
			t.Errorf("%+v", l)
		}
	}
	// One that arrived is one that is gone, and not two.
	a = mailbox(1, "A", msg(3, 3), msg(4, 3))
	p := Merge(Account{Final: true, Boxes: []Mailbox{a, b}})
	if len(p.Boxes[0].Restore) != 1 || p.Boxes[1].Late[0].Why != Moved {
		t.Errorf("%+v", p)
	}
	// What is gone here and arrived here has not moved.
	a = mailbox(1, "A", msg(3, 3)).late(90, found(3))
	p = Merge(Account{Final: true, Boxes: []Mailbox{a}})
	if len(p.Boxes[0].Restore) != 1 || p.Boxes[0].Late[0].Why != Late {
		t.Errorf("%+v", p)
	}
}

// N18: production's copy of what the standby has delivered is dropped in whatever
// mailbox it lands, once for each delivery.
func TestN18_TwinsOnce(t *testing.T) {
	twins := func(ids ...uint64) Found { f := found(9); f.Twins = ids; return f }
	for _, c := range []struct {
		name string
		a, b []Found // UIDs 90 …
		want []uint64
		late int
	}{
		{"one", []Found{twins(5)}, nil, []uint64{5}, 0},
		{"in the other mailbox", nil, []Found{twins(5)}, []uint64{5}, 0},
		{"two of one delivery", []Found{twins(5), twins(5)}, nil, []uint64{5}, 1},
		{"two of one delivery, in two mailboxes", []Found{twins(5)}, []Found{twins(5)}, []uint64{5}, 1},
		{"two of two deliveries", []Found{twins(5, 6)}, []Found{twins(5, 6)}, []uint64{5, 6}, 0},
		{"none", []Found{found(9)}, nil, nil, 1},
	} {
		a, b := mailbox(1, "A"), mailbox(2, "B")
		for i, f := range c.a {
			a = a.late(90+uint32(i), f)
		}
		for i, f := range c.b {
			b = b.late(90+uint32(i), f)
		}
		p := Merge(Account{Boxes: []Mailbox{a, b}})
		var got []uint64
		late := 0
		for _, x := range p.Boxes {
			late += len(x.Late)
			for _, it := range x.Remove {
				if it.Why != Delivered {
					t.Errorf("%s: %+v", c.name, it)
				}
				got = append(got, it.Twin)
			}
		}
		if slices.Sort(got); !slices.Equal(got, c.want) || late != c.late {
			t.Errorf("%s: twins %v are done with, and %d stay", c.name, got, late)
		}
	}
	// Its copy takes the place of the delivery, also where the standby still has it.
	f := twins(5)
	f.Like = []Like{{UID: 110}}
	in := mailbox(1, "A", &row.Message{UID: 110, Ref: ref(8), Fresh: true, Tail: 1}).late(90, f).late(91, twins(5))
	p := Merge(Account{Boxes: []Mailbox{in}}).Boxes[0]
	if len(p.Remove) != 1 || p.Remove[0].Why != Copied || p.Remove[0].Twin != 5 || len(p.Late) != 1 {
		t.Errorf("%+v", p)
	}
	// What copy-back had put there is no delivery of production's: that may still come.
	f = found(8)
	f.Twins = []uint64{5}
	in = mailbox(1, "A").late(90, f)
	p = Merge(Account{Boxes: []Mailbox{in}, Doubts: []row.Doubt{row.AppendDoubt(1, ref(8))}}).Boxes[0]
	if len(p.Remove) != 1 || p.Remove[0].Why != CutOff || p.Remove[0].Twin != 0 {
		t.Errorf("%+v", p)
	}
}

// B10: what burned a UID is taken out by the next run.
func TestB10_FillersAreRemoved(t *testing.T) {
	p := mergeOne(mailbox(1, "A").late(90, Found{Filler: true}).late(91, found(3)))
	if len(p.Remove) != 1 || p.Remove[0].Why != Filler || len(p.Late) != 1 || p.Late[0].UID != 91 {
		t.Errorf("%+v", p)
	}
}

// Each message of the standby is one of production's; one under its own UID first.
func TestPair(t *testing.T) {
	for _, c := range []struct {
		name  string
		found map[uint32][]Like
		want  map[uint32]uint32
	}{
		{"own UID first", map[uint32][]Like{5: {{7, true}}, 7: {{7, true}}}, map[uint32]uint32{7: 7}},
		{"delivered under the same UID", map[uint32][]Like{7: {{7, false}}}, map[uint32]uint32{7: 7}},
		{"twice",
			map[uint32][]Like{5: {{7, true}, {8, true}}, 6: {{7, true}, {8, true}}}, map[uint32]uint32{5: 7, 6: 8}},
		{"three of two",
			map[uint32][]Like{4: {{7, false}}, 5: {{7, true}, {8, true}}, 6: {{7, true}, {8, true}}},
			map[uint32]uint32{4: 7, 5: 8}},
	} {
		in := map[uint32]Found{}
		for u, l := range c.found {
			in[u] = Found{Like: l}
		}
		got := pair(in)
		if len(got) != len(c.want) {
			t.Errorf("%s: %v", c.name, got)
		}
		for u, w := range c.want {
			if got[u] != w {
				t.Errorf("%s: %v", c.name, got)
			}
		}
	}
}
