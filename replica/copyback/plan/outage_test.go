package plan

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"understudy/replica/row"
)

// outage is a model of an account with two mailboxes: production and standby as sets
// of messages, the base, and what is doubted. Contents are numbers; each is one
// message of the world.
type outage struct {
	rng       *rand.Rand
	base      [2]map[uint32]*row.Message
	standby   [2]map[uint32]*row.Message
	prod      [2]map[uint32]*row.Message
	prodNext  [2]uint32
	next      [2]uint32 // of the standby
	doubts    []row.Doubt
	twins     map[uint64]row.Ref
	contents  int
	deleted   map[row.Ref]bool // by a client
	own       map[row.Ref]bool // production got it by itself
	survivors map[row.Ref]bool // clients were told of it
	cut       int              // steps until the next end
}

var boxNames = [2]string{"INBOX", "Work"}

func newOutage(seed uint64) *outage {
	s := &outage{rng: rand.New(rand.NewPCG(seed, 7)), twins: map[uint64]row.Ref{}, deleted: map[row.Ref]bool{},
		own: map[row.Ref]bool{}, survivors: map[row.Ref]bool{}}
	for i := range 2 {
		for _, m := range []*map[uint32]*row.Message{&s.base[i], &s.standby[i], &s.prod[i]} {
			*m = map[uint32]*row.Message{}
		}
		s.prodNext[i], s.next[i] = 20, 100
		for uid := uint32(1); uid < 8; uid++ {
			m := s.message(uid)
			s.base[i][uid], s.standby[i][uid], s.prod[i][uid] = m, m, m
			s.survivors[m.Ref] = true
		}
	}
	return s
}

func (s *outage) message(uid uint32) *row.Message {
	s.contents++
	return &row.Message{UID: uid, Ref: row.RefOf(fmt.Append(nil, s.contents)), Flags: []string{}}
}

func with(m *row.Message, f func(*row.Message)) *row.Message {
	c := *m
	f(&c)
	return &c
}

func (s *outage) some(set map[uint32]*row.Message) *row.Message {
	uids := slices.Sorted(maps.Keys(set))
	if len(uids) == 0 {
		return nil
	}
	return set[uids[s.rng.IntN(len(uids))]]
}

// arrives has production get a message by itself.
func (s *outage) arrives(i int, m *row.Message) {
	c := with(m, func(c *row.Message) { c.UID, c.Fresh = s.prodNext[i], false })
	s.prod[i][c.UID] = c
	s.prodNext[i]++
}

// appends has the standby get a message.
func (s *outage) appends(i int, m *row.Message) {
	c := with(m, func(c *row.Message) { c.UID, c.Fresh = s.next[i], true })
	s.standby[i][c.UID] = c
	s.next[i]++
	s.survivors[c.Ref] = true
}

// happen is one thing in the outage.
func (s *outage) happen() {
	i := s.rng.IntN(2)
	switch s.rng.IntN(9) {
	case 0:
		s.appends(i, s.message(0))
	case 1:
		s.remove()
	case 2: // a client moves
		if m := s.some(s.standby[i]); m != nil {
			delete(s.standby[i], m.UID)
			s.appends(1-i, m)
		}
	case 3: // a client sets a flag
		if m := s.some(s.standby[i]); m != nil {
			s.standby[i][m.UID] = with(m,
				func(c *row.Message) { c.Flags = row.Add.Apply(c.Flags, []string{`\Flagged`}) })
		}
	case 4: // production's own
		m := s.message(0)
		s.arrives(i, m)
		s.own[m.Ref] = true
	case 5: // accepted by production, delivered by both
		m := s.message(0)
		s.appends(i, m)
		s.twins[uint64(len(s.twins)+1)] = m.Ref
		s.arrives(i, m)
	case 6: // an APPEND that production did not answer and had done
		m := s.message(0)
		s.doubts = append(s.doubts, row.RepeatedDoubt(boxNames[i], m.Ref))
		s.appends(i, m)
		s.arrives(i, m)
	case 8: // production loses one, by itself
		if m := s.some(s.base[i]); m != nil {
			delete(s.prod[i], m.UID)
		}
	case 7: // a MOVE that production did not answer and had done
		m := s.some(s.prod[i])
		if m == nil || s.base[i][m.UID] == nil || s.standby[i][m.UID] == nil {
			return
		}
		s.doubts = append(s.doubts, row.Doubt{Kind: row.DoubtMove, State: row.DoubtBased, From: boxNames[i],
			To: boxNames[1-i], UIDs: []uint32{m.UID}, Refs: []row.Ref{m.Ref}})
		delete(s.prod[i], m.UID)
		s.arrives(1-i, m)
	}
}

// remove has a client delete a message.
func (s *outage) remove() {
	i := s.rng.IntN(2)
	if m := s.some(s.standby[i]); m != nil {
		delete(s.standby[i], m.UID)
		s.deleted[m.Ref] = true
	}
}

// gather is what copy-back knows.
func (s *outage) gather() Account {
	a := Account{Final: true, Doubts: slices.Clone(s.doubts)}
	for i := range 2 {
		var list []*row.Message
		for _, uid := range slices.Sorted(maps.Keys(s.standby[i])) {
			list = append(list, s.standby[i][uid])
		}
		box := mailbox(row.MailboxID(i+1), boxNames[i], list...)
		box.Standby.UIDNext, box.UIDNext, box.Base.UIDNext = s.next[i], s.prodNext[i], 1
		for uid, m := range s.base[i] {
			if x := s.standby[i][uid]; x == nil || x != m {
				box.Changed[uid] = m
			}
		}
		known := box.BaseRows()
		for _, uid := range slices.Sorted(maps.Keys(s.prod[i])) {
			m := s.prod[i][uid]
			box.Production = append(box.Production, Remote{uid, m.Flags})
			if known[uid] == nil {
				box.Found[uid] = s.found(box, m)
			}
		}
		a.Boxes = append(a.Boxes, box)
	}
	return a
}

func (s *outage) found(box Mailbox, m *row.Message) Found {
	f := Found{Ref: m.Ref, Refs: []row.Ref{m.Ref}}
	for _, x := range box.MayBe() {
		if x.Ref == m.Ref {
			f.Like = append(f.Like, Like{UID: x.UID, Equal: true})
		}
	}
	for id, ref := range s.twins {
		if ref == m.Ref {
			f.Twins = append(f.Twins, id)
		}
	}
	slices.Sort(f.Twins)
	return f
}

// ends reports whether copy-back is cut off here.
func (s *outage) ends() bool {
	s.cut--
	return s.cut == 0
}

// execute does a plan as package copyback does; false if it was cut off.
func (s *outage) execute(p Plan) bool {
	for i, b := range p.Boxes {
		do := map[Kind]func(int, Box) bool{SetFlags: s.flag, RemoveAll: s.expunge, AdoptAll: s.adopt, ShiftAll: s.shift,
			AppendAll: s.copy, RestoreAll: s.restore, TakeLate: s.late}
		for _, k := range b.Order() {
			if f := do[k]; f != nil && !f(i, b) {
				return false
			}
		}
	}
	return true
}

func (s *outage) flag(i int, b Box) bool {
	for _, f := range b.Flags {
		s.prod[i][f.UID] = with(s.prod[i][f.UID], func(m *row.Message) { m.Flags = f.Flags })
	}
	if s.ends() {
		return false
	}
	for _, f := range b.Local {
		s.standby[i][f.UID] = with(s.standby[i][f.UID], func(m *row.Message) { m.Flags = f.Flags })
	}
	for _, f := range slices.Concat(b.Flags, b.Local) {
		if s.base[i][f.UID] != nil {
			s.base[i][f.UID] = s.standby[i][f.UID]
		}
	}
	return true
}

func (s *outage) expunge(i int, b Box) bool {
	for _, it := range b.Remove {
		delete(s.prod[i], it.UID)
		if s.ends() {
			return false
		}
		delete(s.twins, it.Twin)
	}
	for _, u := range b.Forget {
		delete(s.base[i], u)
	}
	return true
}

// settled: production has a message of the standby under uid.
func (s *outage) settled(i int, was, uid uint32) {
	m := s.standby[i][was]
	delete(s.standby[i], was)
	s.standby[i][uid] = with(m, func(c *row.Message) { c.UID, c.Fresh = uid, false })
	s.base[i][uid] = s.standby[i][uid]
}

func (s *outage) adopt(i int, b Box) bool {
	for _, it := range b.Adopt {
		s.settled(i, it.UID, it.UID)
	}
	return true
}

func (s *outage) shift(i int, b Box) bool {
	for _, it := range b.Shift {
		m := s.standby[i][it.UID]
		delete(s.standby[i], it.UID)
		uid := s.behind(i)
		s.standby[i][uid] = with(m, func(c *row.Message) { c.UID = uid })
	}
	s.prodNext[i]--
	return true
}

func (s *outage) copy(i int, b Box) bool {
	for _, it := range b.Append {
		n := len(s.doubts)
		s.doubts = append(s.doubts, row.AppendDoubt(row.MailboxID(i+1), it.Ref))
		s.prod[i][it.UID] = with(s.standby[i][it.UID], func(c *row.Message) { c.Fresh = false })
		s.prodNext[i] = max(s.prodNext[i], it.UID+1)
		if s.ends() {
			return false
		}
		s.doubts = s.doubts[:n]
		s.settled(i, it.UID, it.UID)
	}
	return true
}

// behind is the UID of what is put behind all that clients have seen.
func (s *outage) behind(i int) uint32 {
	s.prodNext[i] = max(s.prodNext[i], s.next[i])
	u := s.prodNext[i]
	s.prodNext[i]++
	s.next[i] = s.prodNext[i]
	return u
}

func (s *outage) restore(i int, b Box) bool {
	for _, it := range b.Restore {
		uid, n := s.behind(i), len(s.doubts)
		s.doubts = append(s.doubts, row.AppendDoubt(row.MailboxID(i+1), it.Ref))
		s.prod[i][uid] = with(s.standby[i][it.UID], func(c *row.Message) { c.UID = uid })
		if s.ends() {
			return false
		}
		s.doubts = s.doubts[:n]
		delete(s.base[i], it.UID)
		s.settled(i, it.UID, uid)
	}
	return true
}

func (s *outage) late(i int, b Box) bool {
	d, n := row.BehindDoubt(row.MailboxID(i+1)), len(s.doubts)
	for _, it := range b.Late {
		d.Refs = append(d.Refs, it.Ref)
	}
	s.doubts = append(s.doubts, d)
	var now []*row.Message
	for _, it := range b.Late {
		uid := s.behind(i)
		m := with(s.prod[i][it.UID], func(c *row.Message) { c.UID, c.Flags = uid, it.Flags })
		s.prod[i][uid], now = m, append(now, m)
	}
	if s.ends() {
		return false
	}
	for _, it := range b.Late {
		delete(s.prod[i], it.UID)
	}
	if s.ends() {
		return false
	}
	s.doubts = s.doubts[:n]
	for j, m := range now {
		s.standby[i][m.UID], s.base[i][m.UID] = m, m
		if from := b.Late[j].From; from.UID != 0 {
			delete(s.standby[from.Box-1], from.UID)
			delete(s.base[from.Box-1], from.UID)
		}
	}
	return true
}

// count returns how often each content is in a set of mailboxes.
func count(boxes [2]map[uint32]*row.Message) map[row.Ref]int {
	out := map[row.Ref]int{}
	for _, b := range boxes {
		for _, m := range b {
			out[m.Ref]++
		}
	}
	return out
}

// N06-N08, B5, T28: an outage of anything, and a copy-back that is cut off anywhere,
// with clients who delete meanwhile: in the end production has each message that
// clients have, and each that it got by itself, once; none that a client deleted;
// and nothing is left to be done.
func TestN08_AnyOutageCutAnywhere(t *testing.T) {
	for seed := range uint64(4_000) {
		s := newOutage(seed)
		for range 2 + s.rng.IntN(12) {
			s.happen()
		}
		var p Plan
		for runs := 0; ; runs++ {
			if runs < 4 {
				s.cut = 1 + s.rng.IntN(20)
			}
			if runs > 12 {
				t.Fatalf("seed %d: never done: %+v", seed, p)
			}
			if p = Merge(s.gather()); p.Boxes[0].Empty() && p.Boxes[1].Empty() {
				break
			}
			if !s.execute(p) && s.rng.IntN(3) == 0 {
				s.remove()
			}
		}
		prod, st := count(s.prod), count(s.standby)
		for ref := range s.survivors {
			if want := 1; !s.deleted[ref] && (prod[ref] != want || st[ref] != want) {
				t.Fatalf("seed %d: a client's message is %d times on production, %d on the standby",
					seed, prod[ref], st[ref])
			}
		}
		for ref := range s.own {
			if !s.deleted[ref] && prod[ref] != 1 {
				t.Fatalf("seed %d: production's own message is there %d times", seed, prod[ref])
			}
		}
		for ref := range s.deleted {
			if prod[ref]+st[ref] != 0 {
				t.Fatalf("seed %d: one that a client deleted is %d times on production, %d on the standby",
					seed, prod[ref], st[ref])
			}
		}
		for i := range 2 {
			for uid, m := range s.standby[i] {
				if r := s.prod[i][uid]; r == nil || r.Ref != m.Ref || !slices.Equal(r.Flags, m.Flags) {
					t.Fatalf("seed %d: message %d of %s differs: %+v, %+v", seed, uid, boxNames[i], m, r)
				}
			}
		}
	}
}
