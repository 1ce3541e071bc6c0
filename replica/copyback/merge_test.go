package copyback

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"understudy/replica/row"
)

// world is the three states of one mailbox with what really happened.
type world struct {
	in       Input
	deleted  map[uint32]bool // by a client, on the standby
	lateTwin map[uint32]uint32
}

var someFlags = []string{`\Seen`, `\Flagged`, `\Answered`, "work"}

func pickFlags(rng *rand.Rand) []string {
	var out []string
	for _, f := range someFlags {
		if rng.IntN(2) == 0 {
			out = append(out, f)
		}
	}
	return row.NormalFlags(out)
}

func newWorld(rng *rand.Rand) world {
	w := world{deleted: map[uint32]bool{}, lateTwin: map[uint32]uint32{}}
	w.in = Input{Base: map[uint32]*row.Message{}, Same: map[uint32]uint32{}}
	for uid := uint32(1); uid < 30; uid++ {
		if rng.IntN(3) == 0 {
			continue
		}
		m := &row.Message{UID: uid, Flags: pickFlags(rng)}
		w.in.Base[uid] = m
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
		w.in.Standby = append(w.in.Standby, &s)
	}
	late := uint32(100)
	for uid := uint32(110); uid < 110+uint32(rng.IntN(8)); uid++ {
		w.in.Standby = append(w.in.Standby, &row.Message{UID: uid, Fresh: true, Flags: pickFlags(rng)})
		switch rng.IntN(4) {
		case 0: // copied before
			w.in.Production = append(w.in.Production, Remote{uid, pickFlags(rng)})
			w.in.Same[uid] = uid
		case 1: // production delivered it, too
			w.in.Production = append(w.in.Production, Remote{late, nil})
			w.in.Same[late], w.lateTwin[late] = uid, uid
			late++
		}
	}
	for range rng.IntN(3) {
		w.in.Production = append(w.in.Production, Remote{late, nil})
		late++
	}
	slices.SortFunc(w.in.Production, func(a, b Remote) int { return int(a.UID) - int(b.UID) })
	return w
}

// apply does what a plan says to both sides, and returns the next input.
func apply(in Input, p Plan) Input {
	prod := map[uint32][]string{}
	for _, r := range in.Production {
		prod[r.UID] = r.Flags
	}
	st := map[uint32]*row.Message{}
	for _, s := range in.Standby {
		c := *s
		st[s.UID] = &c
	}
	for _, f := range p.Flags {
		prod[f.UID] = f.Flags
	}
	for _, f := range p.Local {
		st[f.UID].Flags = f.Flags
	}
	for _, u := range append(slices.Clone(p.Delete), p.Drop...) {
		delete(prod, u)
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
	for _, u := range p.Late {
		st[next] = &row.Message{UID: next, Flags: prod[u]}
		prod[next] = prod[u]
		delete(prod, u)
		next++
	}
	out := Input{Base: map[uint32]*row.Message{}, Same: map[uint32]uint32{}}
	for u, s := range st {
		out.Standby = append(out.Standby, s)
		c := *s
		c.Flags = prod[u]
		out.Base[u] = &c
	}
	for u, f := range prod {
		out.Production = append(out.Production, Remote{u, f})
	}
	return out
}

// R5, N06-N09, E11: whatever happened on both sides, after one merge they are
// equal, a second merge does nothing, nothing is deleted that no client deleted,
// and flags are merged one by one.
func TestN06_MergeProperties(t *testing.T) {
	for seed := range uint64(20_000) {
		rng := rand.New(rand.NewPCG(seed, 2))
		w := newWorld(rng)
		p := Merge(w.in)
		fail := func(format string, a ...any) {
			t.Fatalf("seed %d: %s\nplan %+v", seed, fmt.Sprintf(format, a...), p)
		}
		for _, u := range p.Delete {
			if !w.deleted[u] {
				fail("message %d is deleted, which no client deleted", u)
			}
		}
		for _, u := range p.Drop {
			if w.lateTwin[u] == 0 {
				fail("message %d is dropped, which has no twin", u)
			}
		}
		out := apply(w.in, p)
		if len(out.Standby) != len(out.Production) {
			fail("%d messages on the standby, %d on production", len(out.Standby), len(out.Production))
		}
		if again := Merge(out); !again.Empty() {
			fail("a second merge does %+v", again)
		}
		for _, m := range w.in.Standby {
			if m.Fresh && !slices.ContainsFunc(out.Standby, func(o *row.Message) bool { return o.UID == m.UID }) {
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
