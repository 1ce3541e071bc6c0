package plan

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"understudy/replica/row"
)

// world is the three states of one mailbox with what really happened.
type world struct {
	in       Mailbox
	deleted  map[uint32]bool // by a client, on the standby
	lateTwin map[uint32]uint32
}

func someFlags() []string { return []string{`\Seen`, `\Flagged`, `\Answered`, "work"} }

func pickFlags(rng *rand.Rand) []string {
	var out []string
	for _, f := range someFlags() {
		if rng.IntN(2) == 0 {
			out = append(out, f)
		}
	}
	return row.NormalFlags(out)
}

// snapshot is a mailbox of the standby.
func snapshot(id row.MailboxID, name string, rows []*row.Message) *row.Snapshot {
	s := &row.Snapshot{Mailbox: row.Mailbox{ID: id, Name: name, UIDValidity: 7, UIDNext: 1}, Rows: rows}
	for _, m := range rows {
		s.UIDs = append(s.UIDs, m.UID)
		s.UIDNext = max(s.UIDNext, m.UID+1)
	}
	return s
}

// mailbox is one whose base is known.
func mailbox(id row.MailboxID, name string, rows ...*row.Message) Mailbox {
	base := row.Mailbox{ID: id, Name: name, UIDValidity: 7, UIDNext: 100}
	return Mailbox{Standby: snapshot(id, name, rows), Base: &base, Changed: map[uint32]*row.Message{},
		Counters: Counters{UIDValidity: 7, UIDNext: 100}, Found: map[uint32]Found{}}
}

func newWorld(rng *rand.Rand) world {
	w := world{in: mailbox(1, "INBOX"), deleted: map[uint32]bool{}, lateTwin: map[uint32]uint32{}}
	var standby []*row.Message
	for uid := uint32(1); uid < 30; uid++ {
		if rng.IntN(3) == 0 {
			continue
		}
		m := &row.Message{UID: uid, Flags: pickFlags(rng)}
		w.in.Changed[uid] = m
		if rng.IntN(5) > 0 {
			w.in.Production = append(w.in.Production, Remote{uid, slices.Clone(m.Flags)})
			if rng.IntN(4) == 0 {
				w.in.Production[len(w.in.Production)-1].Flags = pickFlags(rng)
			}
		}
		if rng.IntN(5) == 0 {
			w.deleted[uid] = true
			continue
		}
		s := *m
		if rng.IntN(3) == 0 {
			s.Flags = pickFlags(rng)
		}
		standby = append(standby, &s)
	}
	late := uint32(100)
	for uid := uint32(110); uid < 110+uint32(rng.IntN(8)); uid++ {
		standby = append(standby, &row.Message{UID: uid, Fresh: true, Flags: pickFlags(rng)})
		switch rng.IntN(4) {
		case 0: // copied before
			w.in.Production = append(w.in.Production, Remote{uid, pickFlags(rng)})
			w.in.Found[uid] = Found{Like: []Like{{uid, true}}}
		case 1: // production delivered it, too
			w.in.Production = append(w.in.Production, Remote{late, nil})
			w.in.Found[late] = Found{Like: []Like{{uid, rng.IntN(2) == 0}}}
			w.lateTwin[late] = uid
			late++
		}
	}
	for range rng.IntN(3) {
		w.in.Production = append(w.in.Production, Remote{late, nil})
		w.in.Found[late] = Found{}
		late++
	}
	slices.SortFunc(w.in.Production, func(a, b Remote) int { return int(a.UID) - int(b.UID) })
	w.in.Standby = snapshot(1, "INBOX", standby)
	return w
}

// apply does what a plan says to both sides, and returns the next input.
func apply(in Mailbox, p Box) Mailbox {
	prod := map[uint32][]string{}
	for _, r := range in.Production {
		prod[r.UID] = r.Flags
	}
	st := map[uint32]*row.Message{}
	for _, s := range in.Standby.Rows {
		c := *s
		st[s.UID] = &c
	}
	for _, f := range p.Flags {
		prod[f.UID] = f.Flags
	}
	for _, f := range p.Local {
		st[f.UID].Flags = f.Flags
	}
	for _, u := range p.Remove {
		delete(prod, u.UID)
	}
	next := uint32(200)
	for _, m := range p.Append {
		prod[m.UID] = m.Flags
	}
	for _, m := range p.Restore {
		delete(st, m.UID)
		st[next] = &row.Message{UID: next, Flags: m.Flags}
		prod[next] = m.Flags
		next++
	}
	for _, l := range p.Late {
		st[next] = &row.Message{UID: next, Flags: prod[l.UID]}
		prod[next] = prod[l.UID]
		delete(prod, l.UID)
		next++
	}
	out := mailbox(1, "INBOX")
	var standby []*row.Message
	for u, s := range st {
		s.Fresh = false
		standby = append(standby, s)
		c := *s
		c.Flags = prod[u]
		out.Changed[u] = &c
	}
	for u, f := range prod {
		out.Production = append(out.Production, Remote{u, f})
	}
	slices.SortFunc(standby, func(a, b *row.Message) int { return int(a.UID) - int(b.UID) })
	slices.SortFunc(out.Production, func(a, b Remote) int { return int(a.UID) - int(b.UID) })
	out.Standby = snapshot(1, "INBOX", standby)
	return out
}

func mergeOne(in Mailbox) Box { return Merge(Account{Final: true, Boxes: []Mailbox{in}}).Boxes[0] }

// R5, N06-N09, E11: whatever happened on both sides, after one merge they are
// equal, a second merge does nothing, nothing is deleted that no client deleted,
// and flags are merged one by one.
func TestN06_MergeProperties(t *testing.T) {
	for seed := range uint64(20_000) {
		rng := rand.New(rand.NewPCG(seed, 2))
		w := newWorld(rng)
		p := mergeOne(w.in)
		fail := func(format string, a ...any) {
			t.Fatalf("seed %d: %s\nplan %+v", seed, fmt.Sprintf(format, a...), p)
		}
		for _, u := range p.Remove {
			if u.Why == Deleted && !w.deleted[u.UID] {
				fail("message %d is deleted, which no client deleted", u.UID)
			}
			if u.Why != Deleted && w.lateTwin[u.UID] == 0 {
				fail("message %d is dropped, which has no twin", u.UID)
			}
		}
		out := apply(w.in, p)
		if len(out.Standby.Rows) != len(out.Production) {
			fail("%d messages on the standby, %d on production", len(out.Standby.Rows), len(out.Production))
		}
		if again := mergeOne(out); !again.Empty() {
			fail("a second merge does %+v", again)
		}
		for _, m := range w.in.Standby.Rows {
			if m.Fresh && out.Standby.Find(m.UID) == nil {
				fail("message %d, which clients saw, has gone", m.UID)
			}
		}
	}
}

// N09: flags are merged flag by flag.
func TestN09_FlagsOneByOne(t *testing.T) {
	for _, c := range []struct{ base, standby, prod, want []string }{
		{[]string{"a"}, []string{"a", "b"}, []string{"a", "c"}, []string{"a", "b", "c"}},
		{[]string{"a", "b"}, []string{"a"}, []string{"a", "b", "c"}, []string{"a", "c"}},
		{[]string{"a"}, []string{"a"}, nil, nil},
		{nil, []string{`\Seen`}, []string{`\Seen`}, []string{`\Seen`}},
	} {
		if got := MergeFlags(c.base, c.standby, c.prod); !slices.Equal(got, c.want) && len(got)+len(c.want) > 0 {
			t.Errorf("%v %v %v: %v, want %v", c.base, c.standby, c.prod, got, c.want)
		}
	}
}
