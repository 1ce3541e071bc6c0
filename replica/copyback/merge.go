// Package copyback brings production, the same or a new one, up to what the
// standby did meanwhile: a three-way merge of base (the state at the takeover),
// standby now and production now, mailbox by mailbox.
//
// Implementation notes. Merge is pure. Its plan is executed in an order that
// loses nothing if it is cut anywhere, and the base in the replica is moved
// along with each step, so that a second run finds less to do and, in the end,
// nothing. UIDs are reproduced by order: gaps are burned, messages appended with
// APPENDUID checked, production's own late arrivals are put behind. Nothing is
// deleted on production but what a client deleted on the standby, and late
// copies of what the standby has delivered already. While the standby serves,
// only what cannot collide with it is done (bulk); the rest is for the short
// time in which the account is blocked (final).
package copyback

import (
	"slices"
	"sort"

	"understudy/replica/row"
)

// Remote is a message on production.
type Remote struct {
	UID   uint32
	Flags []string
}

// Input is one mailbox, three times.
type Input struct {
	// Base holds production's messages at the takeover (or last merged).
	Base       map[uint32]*row.Message
	Standby    []*row.Message
	Production []Remote
	// Same maps messages that production has and the base has not to the message
	// of the standby that they are: the same UID if it was copied back before,
	// another if production delivered it by itself, too.
	Same map[uint32]uint32
}

// FlagSet is what flags of a message are to be.
type FlagSet struct {
	UID   uint32
	Flags []string
}

// Plan is what makes both sides equal. Lists are in UID order.
type Plan struct {
	Delete  []uint32       // on production: a client deleted it
	Flags   []FlagSet      // on production
	Local   []FlagSet      // on the standby
	Adopt   []uint32       // on production already, under its own UID
	Append  []*row.Message // to production, each under its own UID
	Restore []*row.Message // to production, which lost it: under a new UID
	Drop    []uint32       // on production: late doubles
	Late    []uint32       // on production only: to be put behind
}

// Empty reports whether there is nothing to do.
func (p Plan) Empty() bool {
	return len(p.Delete)+len(p.Flags)+len(p.Local)+len(p.Adopt)+len(p.Append)+len(p.Restore)+len(p.Drop)+len(p.Late) == 0
}

// Merge compares the three states of a mailbox.
func Merge(in Input) Plan {
	var p Plan
	remote := make(map[uint32]Remote, len(in.Production))
	for _, r := range in.Production {
		remote[r.UID] = r
	}
	local := make(map[uint32]*row.Message, len(in.Standby))
	for _, s := range in.Standby {
		local[s.UID] = s
	}
	for uid := range in.Base {
		if _, there := remote[uid]; there && local[uid] == nil {
			p.Delete = append(p.Delete, uid)
		}
	}
	for _, s := range in.Standby {
		r, there := remote[s.UID]
		base := in.Base[s.UID]
		switch {
		case base != nil && there:
			p.mergeFlags(base.Flags, s, r)
		case base != nil:
			p.Restore = append(p.Restore, s)
		case there && in.Same[s.UID] == s.UID:
			p.Adopt = append(p.Adopt, s.UID)
			p.mergeFlags(r.Flags, s, r)
		default:
			p.Append = append(p.Append, s)
		}
	}
	for _, r := range in.Production {
		if in.Base[r.UID] != nil || in.Same[r.UID] == r.UID && local[r.UID] != nil {
			continue
		}
		if twin, ok := in.Same[r.UID]; ok && local[twin] != nil {
			p.Drop = append(p.Drop, r.UID)
		} else {
			p.Late = append(p.Late, r.UID)
		}
	}
	p.sort()
	return p
}

func (p *Plan) mergeFlags(base []string, s *row.Message, r Remote) {
	want := MergeFlags(base, s.Flags, r.Flags)
	if !slices.Equal(want, row.NormalFlags(r.Flags)) {
		p.Flags = append(p.Flags, FlagSet{s.UID, want})
	}
	if !slices.Equal(want, row.NormalFlags(s.Flags)) {
		p.Local = append(p.Local, FlagSet{s.UID, want})
	}
}

// MergeFlags merges flag by flag (N09): production's flags, with what the
// standby added and without what it removed.
func MergeFlags(base, standby, production []string) []string {
	b, s := row.Message{Flags: base}, row.Message{Flags: standby}
	var out []string
	for _, f := range production {
		if !b.HasFlag(f) || s.HasFlag(f) {
			out = append(out, f)
		}
	}
	for _, f := range standby {
		if !b.HasFlag(f) {
			out = append(out, f)
		}
	}
	return row.NormalFlags(out)
}

func (p *Plan) sort() {
	slices.Sort(p.Delete)
	slices.Sort(p.Adopt)
	slices.Sort(p.Drop)
	slices.Sort(p.Late)
	for _, l := range [][]*row.Message{p.Append, p.Restore} {
		sort.Slice(l, func(i, j int) bool { return l[i].UID < l[j].UID })
	}
}
