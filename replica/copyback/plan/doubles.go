package plan

import (
	"maps"
	"slices"

	"understudy/replica/row"
)

// pair finds for messages on production the message of the standby that each is:
// one under the same UID if it was copied back before, else one that production
// delivered by itself, too. Each of the standby's is used once.
func pair(found map[uint32]Found) map[uint32]uint32 {
	same, used := map[uint32]uint32{}, map[uint32]bool{}
	order := slices.Sorted(maps.Keys(found))
	for _, own := range []bool{true, false} {
		for _, uid := range order {
			if _, done := same[uid]; done {
				continue
			}
			for _, l := range found[uid].Like {
				if used[l.UID] || own && (l.UID != uid || !l.Equal) {
					continue
				}
				same[uid], used[l.UID] = l.UID, true
				break
			}
		}
	}
	return same
}

// doubles tells, of what production got by itself, what the account has already.
type doubles struct {
	account Account
	boxes   []*merging
	twins   map[uint64]bool // whose copies were found
}

// find goes from strong to weak evidence: what copy-back itself had put there is
// no delivery of production's; what production moved keeps its flags.
func (d *doubles) find() {
	d.doubts(func(x row.Doubt) bool { return x.Kind == row.DoubtAppend || x.Kind == row.DoubtBehind })
	d.delivered()
	d.moves()
	d.doubts(func(x row.Doubt) bool { return x.Kind == row.DoubtMove || x.Kind == row.DoubtRepeated })
}

// drop makes a late message one that is removed.
func (m *merging) drop(uid uint32, why Why, twin uint64) {
	i := slices.IndexFunc(m.out.Late, func(it Item) bool { return it.UID == uid })
	m.out.Remove = append(m.out.Remove, Item{UID: uid, Why: why, Ref: m.out.Late[i].Ref, Twin: twin})
	m.out.Late = slices.Delete(m.out.Late, i, i+1)
}

// delivered finds production's copies of what the standby has delivered: a client
// may have deleted or moved that since. And it finds what burned UIDs.
func (d *doubles) delivered() {
	for _, m := range d.boxes {
		for i, it := range m.out.Remove {
			if it.Why == Copied && !m.cutOff(it.UID, d.account.Doubts) {
				m.out.Remove[i].Twin = d.twin(m.in.Found[it.UID])
			}
		}
	}
	for _, m := range d.boxes {
		for _, it := range slices.Clone(m.out.Late) {
			f := m.in.Found[it.UID]
			if id := d.twin(f); id != 0 {
				m.drop(it.UID, Delivered, id)
			} else if f.Filler {
				m.drop(it.UID, Filler, 0)
			}
		}
	}
}

// twin takes the first twin whose copy a message may be; 0 if there is none.
func (d *doubles) twin(f Found) uint64 {
	for _, id := range f.Twins {
		if !d.twins[id] {
			d.twins[id] = true
			return id
		}
	}
	return 0
}

// cutOff reports whether a message may be one that copy-back was putting there.
func (m *merging) cutOff(uid uint32, doubts []row.Doubt) bool {
	return slices.ContainsFunc(doubts, func(x row.Doubt) bool {
		return x.Kind == row.DoubtAppend && x.Box == m.out.ID &&
			slices.ContainsFunc(x.Refs, func(r row.Ref) bool { return slices.Contains(m.in.Found[uid].Refs, r) })
	})
}

// moves finds messages that production moved to another mailbox by a command
// whose answer nobody got: gone here, arrived there. Production's outcome is
// taken, so that there is one, with the flags of both sides.
func (d *doubles) moves() {
	for _, m := range d.boxes {
		m.out.Restore = slices.DeleteFunc(m.out.Restore, func(lost Item) bool {
			for _, to := range d.boxes {
				i := slices.IndexFunc(to.out.Late, func(it Item) bool { return it.Ref == lost.Ref && it.Why == Late })
				if to == m || i < 0 {
					continue
				}
				l := &to.out.Late[i]
				l.Why, l.From = Moved, Place{m.out.ID, lost.UID}
				l.Flags = MergeFlags(m.base[lost.UID].Flags, lost.Flags, l.Flags)
				return true
			}
			return false
		})
	}
}

// doubts finds messages that production made for a command whose answer nobody
// got. The standby has the message, or had it to begin with, and whatever clients
// have done with that since counts: it is still there, or elsewhere, or deleted.
// So production's are dropped, and what copy-back was putting there when it was
// cut off, and what it was moving and has there twice.
func (d *doubles) doubts(of func(row.Doubt) bool) {
	for _, x := range d.account.Doubts {
		for _, m := range d.boxes {
			if !of(x) || !x.Into(m.out.ID, m.out.Name) {
				continue
			}
			for _, ref := range x.Refs {
				if like := m.lateLike(ref); len(like) > x.Copies(ref) {
					m.drop(like[0], whyDoubt(x.Kind), 0)
				}
			}
		}
	}
}

func whyDoubt(k row.DoubtKind) Why {
	switch k {
	case row.DoubtBehind:
		return BothMoved
	case row.DoubtAppend:
		return CutOff
	}
	return Unanswered
}

// lateLike returns the late messages with a content, lowest UID first.
func (m *merging) lateLike(ref row.Ref) (uids []uint32) {
	for _, it := range m.out.Late {
		if it.Why == Late && slices.Contains(m.in.Found[it.UID].Refs, ref) {
			uids = append(uids, it.UID)
		}
	}
	return uids
}
