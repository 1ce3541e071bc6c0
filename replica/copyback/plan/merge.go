package plan

import (
	"cmp"
	"maps"
	"slices"

	"understudy/replica/row"
)

// How many UIDs are left free for what production delivers by itself between two
// runs, and how many between the last two, where clients wait until they are
// burned.
const (
	roomBetween = 16
	roomAtLast  = 4
)

// merging is one mailbox on the way to its plan.
type merging struct {
	in   Mailbox
	base map[uint32]*row.Message
	same map[uint32]uint32 // found on production: the message of the standby that it is
	out  Box
}

// Merge compares the three states of an account.
func Merge(a Account) Plan {
	work := make([]*merging, len(a.Boxes))
	for i, in := range a.Boxes {
		work[i] = begin(in, a)
		work[i].compare()
	}
	d := doubles{account: a, boxes: work, twins: map[uint64]bool{}}
	d.find()
	var p Plan
	for _, m := range work {
		m.end(a)
		p.Boxes = append(p.Boxes, m.out)
	}
	return p
}

func begin(in Mailbox, a Account) *merging {
	m := &merging{in: in, base: in.BaseRows(), same: pair(in.Found),
		out: Box{ID: in.Standby.ID, Name: in.Standby.Name, Anew: in.BeginsAnew(), Numbers: Numbers{final: a.Final}}}
	m.clean(a.Left)
	room := uint32(roomBetween)
	if a.Level {
		room = roomAtLast
	}
	// While production is up by itself, what it gets must find room: the standby's
	// next UID leaves some.
	if !a.Final && in.Standby.Gap < room {
		m.out.Room = room
	}
	return m
}

// clean takes away flags that an earlier copy-back, which was cut off, has left,
// unless they are such as clients have set.
func (m *merging) clean(left []row.Doubt) {
	for _, d := range left {
		if d.Kind != row.DoubtFlag || d.Box != m.out.ID {
			continue
		}
		was := m.base[d.UIDs[0]]
		i, there := slices.BinarySearchFunc(m.in.Production, d.UIDs[0], byUID)
		if was == nil || was.HasFlag(d.Flag) || !there || !has(m.in.Production[i].Flags, d.Flag) {
			continue
		}
		m.out.Clean = append(m.out.Clean, Item{UID: was.UID, Flags: []string{d.Flag}, Why: Raised})
		m.in.Production = slices.Clone(m.in.Production)
		r := &m.in.Production[i]
		r.Flags = row.Remove.Apply(r.Flags, []string{d.Flag})
	}
}

func byUID(r Remote, uid uint32) int { return cmp.Compare(r.UID, uid) }

func has(flags []string, f string) bool { return (&row.Message{Flags: flags}).HasFlag(f) }

// compare finds what differs.
func (m *merging) compare() {
	remote := make(map[uint32]Remote, len(m.in.Production))
	for _, r := range m.in.Production {
		remote[r.UID] = r
	}
	local := make(map[uint32]bool, len(m.in.Standby.Rows))
	for _, s := range m.in.Standby.Rows {
		local[s.UID] = true
		m.compareOne(s, remote)
	}
	for _, uid := range slices.Sorted(maps.Keys(m.base)) {
		if local[uid] {
			continue
		}
		if _, there := remote[uid]; there {
			m.out.Remove = append(m.out.Remove, Item{UID: uid, Why: Deleted})
		}
		m.out.Forget = append(m.out.Forget, uid)
	}
	for _, r := range m.in.Production {
		if twin, known := m.same[r.UID]; m.base[r.UID] != nil || known && twin == r.UID {
			continue
		} else if f := m.in.Found[r.UID]; known {
			m.out.Remove = append(m.out.Remove, Item{UID: r.UID, Why: Copied, Ref: f.Ref})
		} else {
			m.out.Late = append(m.out.Late, Item{UID: r.UID, Flags: row.NormalFlags(r.Flags), Why: Late,
				Ref: f.Ref, Date: f.Date})
		}
	}
}

func (m *merging) compareOne(s *row.Message, remote map[uint32]Remote) {
	r, there := remote[s.UID]
	base := m.base[s.UID]
	twin, known := m.same[s.UID]
	it := Item{UID: s.UID, Flags: s.Flags, Ref: s.Ref}
	switch {
	case base != nil && there:
		m.flags(base.Flags, s, r)
	case base != nil:
		it.Why = Lost
		m.out.Restore = append(m.out.Restore, it)
	case there && known && twin == s.UID:
		it.Why, it.Flags = There, m.flags(r.Flags, s, r)
		m.out.Adopt = append(m.out.Adopt, it)
	default:
		it.Why = New
		m.out.Append = append(m.out.Append, it)
	}
}

// flags merges those of a message, and returns what both sides are to have.
func (m *merging) flags(base []string, s *row.Message, r Remote) []string {
	want := MergeFlags(base, s.Flags, r.Flags)
	if !slices.Equal(want, row.NormalFlags(r.Flags)) {
		m.out.Flags = append(m.out.Flags, Item{UID: s.UID, Flags: want, Why: Changed})
	}
	if !slices.Equal(want, row.NormalFlags(s.Flags)) {
		m.out.Local = append(m.out.Local, Item{UID: s.UID, Flags: want, Why: Theirs})
	}
	return want
}

// MergeFlags merges flag by flag (N09): production's flags, with what the
// standby added and without what it removed.
func MergeFlags(base, standby, production []string) []string {
	var out []string
	for _, f := range production {
		if !has(base, f) || has(standby, f) {
			out = append(out, f)
		}
	}
	for _, f := range standby {
		if !has(base, f) {
			out = append(out, f)
		}
	}
	return row.NormalFlags(out)
}

// end settles what UIDs are to be had, and what is left for later.
func (m *merging) end(a Account) {
	b := &m.out
	slices.SortFunc(b.Remove, func(x, y Item) int { return cmp.Compare(x.UID, y.UID) })
	if len(b.Append) > 0 && b.Append[0].UID < m.in.UIDNext {
		to, why := &b.Wait, Waits
		if a.Final {
			to, why = &b.Shift, Taken
		}
		*to, b.Append = b.Append, nil
		for i := range *to {
			(*to)[i].Why = why
		}
	}
	shown := m.in.Standby.UIDNext
	b.Behind = len(b.Late) > 0 && b.Late[0].UID < shown
	behind := m.in.UIDNext < shown
	if a.Final && behind {
		b.Reach = shown
	}
	b.Raise = a.CondStore && (a.Final || a.Level) && (!b.Empty() || behind || m.in.ModSeq < m.in.Standby.ModSeq)
}
