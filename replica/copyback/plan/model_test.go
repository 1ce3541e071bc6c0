package plan

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"understudy/replica/row"
)

// side is a mailbox on production in the model: it gives the next UID, and forgets
// what is expunged.
type side struct {
	next uint32
	msgs map[uint32]*row.Message
}

func (s *side) add(ref row.Ref, flags []string) uint32 {
	s.next++
	s.msgs[s.next-1] = &row.Message{UID: s.next - 1, Ref: ref, Flags: flags}
	return s.next - 1
}

// model is an account on both sides, with the base between them.
type model struct {
	prod    map[row.MailboxID]*side
	box     map[row.MailboxID]*row.Mailbox
	rows    map[row.MailboxID]map[uint32]*row.Message
	base    map[row.MailboxID]row.Mailbox
	changed map[row.MailboxID]map[uint32]*row.Message
	doubts  map[int]row.Doubt
	key     int
	twins   map[uint64]row.Ref // by what production makes of them
	steps   int                // until it is cut off
	final   bool
}

type cut struct{}

// did ends one change of either side; after the last one comes nothing more.
func (m *model) did() {
	if m.steps--; m.steps == 0 {
		panic(cut{})
	}
}

func boxes() []row.MailboxID { return []row.MailboxID{1, 2} }

func (m *model) gather() Account {
	a := Account{Final: m.final, Doubts: slices.Collect(maps.Values(m.doubts))}
	for _, id := range boxes() {
		base := m.base[id]
		var rows []*row.Message
		for _, u := range slices.Sorted(maps.Keys(m.rows[id])) {
			c := *m.rows[id][u]
			rows = append(rows, &c)
		}
		in := Mailbox{Standby: snapshot(id, m.box[id].Name, rows), Base: &base, Changed: maps.Clone(m.changed[id]),
			Counters: Counters{UIDValidity: 7, UIDNext: m.prod[id].next}, Found: map[uint32]Found{}}
		in.Standby.Mailbox = *m.box[id]
		known := in.BaseRows()
		for _, u := range slices.Sorted(maps.Keys(m.prod[id].msgs)) {
			p := m.prod[id].msgs[u]
			in.Production = append(in.Production, Remote{u, p.Flags})
			if known[u] == nil {
				in.Found[u] = m.tell(in, p)
			}
		}
		a.Boxes = append(a.Boxes, in)
	}
	return a
}

func (m *model) tell(in Mailbox, p *row.Message) Found {
	f := Found{Ref: p.Ref, Filler: p.Ref == row.Ref{}}
	for _, s := range in.MayBe() {
		if s.Ref == p.Ref {
			f.Like = append(f.Like, Like{s.UID, true})
		} else if s.Tail > 0 && ref(byte(s.Tail)) == p.Ref {
			f.Like = append(f.Like, Like{s.UID, false})
		}
	}
	for _, id := range slices.Sorted(maps.Keys(m.twins)) {
		if m.twins[id] == p.Ref {
			f.Twins = append(f.Twins, id)
		}
	}
	for _, d := range m.doubts {
		if d.Into(in.Standby.ID, in.Standby.Name) && slices.Contains(d.Refs, p.Ref) {
			f.Refs = append(f.Refs, p.Ref)
		}
	}
	return f
}

func (m *model) begin(d row.Doubt) int {
	m.key++
	m.doubts[m.key] = d
	m.did()
	return m.key
}

func (m *model) expunge(id row.MailboxID, uids ...uint32) {
	for _, u := range uids {
		delete(m.prod[id].msgs, u)
		m.did()
	}
}

func (m *model) burnTo(id row.MailboxID, next uint32) {
	var uids []uint32
	for m.prod[id].next < next {
		uids = append(uids, m.prod[id].add(row.Ref{}, nil))
		m.did()
	}
	m.expunge(id, uids...)
}

// put appends messages and notes them, as copy-back does.
func (m *model) put(id row.MailboxID, items []Item, own bool) {
	for _, it := range items {
		key := m.begin(row.AppendDoubt(id, it.Ref))
		if own {
			m.burnTo(id, it.UID)
		}
		u := m.prod[id].add(it.Ref, it.Flags)
		m.did()
		r := m.rows[id][it.UID]
		delete(m.rows[id], it.UID)
		delete(m.changed[id], it.UID)
		c := *r
		c.UID, c.Fresh = u, false
		m.rows[id][u] = &c
		delete(m.doubts, key)
		m.did()
	}
}

func (m *model) execute(b Box) {
	id, p := b.ID, m.prod[b.ID]
	for _, k := range b.Order() {
		switch k {
		case LeaveRoom:
			m.box[id].Gap = b.Room
		case SetFlags:
			for _, it := range b.Flags {
				p.msgs[it.UID].Flags = it.Flags
				m.did()
			}
			for _, it := range slices.Concat(b.Flags, b.Local) {
				m.rows[id][it.UID].Flags = it.Flags
				delete(m.changed[id], it.UID)
			}
			m.did()
		case RemoveAll:
			for _, it := range b.Remove {
				m.expunge(id, it.UID)
			}
			for _, it := range b.Remove {
				delete(m.twins, it.Twin)
			}
			m.did()
			for _, u := range b.Forget {
				delete(m.changed[id], u)
			}
		case AdoptAll:
			for _, it := range b.Adopt {
				m.rows[id][it.UID].Fresh = false
			}
			m.did()
		case AppendAll:
			m.put(id, b.Append, true)
		case ReachNext:
			m.burnTo(id, b.Reach)
		case RestoreAll:
			m.put(id, b.Restore, false)
		case TakeLate:
			m.late(b)
		default:
			panic(fmt.Sprintf("step %q", k))
		}
	}
	base := m.base[id]
	base.UIDNext = max(base.UIDNext, p.next)
	m.base[id] = base
	if m.final {
		m.box[id].UIDNext = max(m.box[id].UIDNext, p.next)
	}
}

func (m *model) late(b Box) {
	p, uids := m.prod[b.ID], UIDs(b.Late)
	if b.Behind {
		d := row.BehindDoubt(b.ID)
		for _, it := range b.Late {
			d.Refs = append(d.Refs, it.Ref)
		}
		m.begin(d)
		for i, it := range b.Late {
			uids[i] = p.add(it.Ref, p.msgs[it.UID].Flags)
		}
		m.did() // COPY is done whole, or not (RFC 9051 section 6.4.7)
		m.expunge(b.ID, UIDs(b.Late)...)
	}
	for i, it := range b.Late {
		if it.Why == Moved {
			p.msgs[uids[i]].Flags = it.Flags
			m.did()
		}
	}
	for i, it := range b.Late {
		m.rows[b.ID][uids[i]] = &row.Message{UID: uids[i], Ref: it.Ref, Flags: it.Flags}
		m.box[b.ID].UIDNext = max(m.box[b.ID].UIDNext, uids[i]+1)
		if it.Why == Moved {
			delete(m.rows[it.From.Box], it.From.UID)
			delete(m.changed[it.From.Box], it.From.UID)
		}
	}
	m.did()
}

// pass gathers, merges and executes until it is cut off, or to the end.
func (m *model) pass(steps int) (p Plan, whole bool) {
	defer func() {
		if r := recover(); r != nil && r != (cut{}) {
			panic(r)
		}
	}()
	m.steps = steps
	p = Merge(m.gather())
	for _, b := range p.Boxes {
		m.execute(b)
	}
	return p, true
}

// newModel is an account after an outage. Contents: 1… are of the base, 50… new on
// the standby, 80… new on production; 120… is what the standby made of 100….
func newModel(rng *rand.Rand) *model {
	m := &model{prod: map[row.MailboxID]*side{}, box: map[row.MailboxID]*row.Mailbox{},
		base: map[row.MailboxID]row.Mailbox{},
		rows: map[row.MailboxID]map[uint32]*row.Message{}, changed: map[row.MailboxID]map[uint32]*row.Message{},
		doubts: map[int]row.Doubt{}, twins: map[uint64]row.Ref{}}
	n := byte(0)
	for _, id := range boxes() {
		p := &side{next: 10, msgs: map[uint32]*row.Message{}}
		m.prod[id], m.rows[id], m.changed[id] = p, map[uint32]*row.Message{}, map[uint32]*row.Message{}
		m.box[id] = &row.Mailbox{ID: id, Name: fmt.Sprint("box", id), UIDValidity: 7, UIDNext: 20}
		m.base[id] = row.Mailbox{ID: id, Name: fmt.Sprint("box", id), UIDValidity: 7, UIDNext: 10}
		for u := uint32(1); u < 6; u++ {
			n++
			x := msg(u, n, pickFlags(rng)...)
			c := *x
			p.msgs[u], m.rows[id][u] = &c, x
		}
	}
	for _, id := range boxes() {
		other := m.prod[3-id]
		for u := uint32(1); u < 6; u++ {
			x := m.rows[id][u]
			switch rng.IntN(8) {
			case 0: // a client deleted it
				m.changed[id][u] = x
				delete(m.rows[id], u)
			case 1: // a client changed its flags
				c := *x
				c.Flags = pickFlags(rng)
				m.changed[id][u], m.rows[id][u] = x, &c
			case 2: // production moved it unseen; a client may have deleted it since
				delete(m.prod[id].msgs, u)
				other.add(x.Ref, x.Flags)
				if rng.IntN(2) == 0 {
					m.key++
					m.doubts[m.key] = row.MoveDoubt(m.box[id].Name, m.box[3-id].Name, []uint32{u}, 10)
					d := m.doubts[m.key]
					d.Refs = []row.Ref{x.Ref}
					m.doubts[m.key] = d
					m.changed[id][u] = x
					delete(m.rows[id], u)
				}
			case 3: // production has lost it
				delete(m.prod[id].msgs, u)
			}
		}
		for i := range byte(rng.IntN(5)) {
			u, k := 20+uint32(i)*2, byte(id)*8+i
			s := fresh(u, 50+k)
			switch rng.IntN(3) {
			case 0: // production did it, too
				m.prod[id].add(s.Ref, nil)
				m.key++
				m.doubts[m.key] = row.RepeatedDoubt(m.box[id].Name, s.Ref)
			case 1: // delivered; production delivers it, too, perhaps elsewhere
				s.Ref, s.Tail = ref(120+k), int64(100+k)
				m.twins[uint64(k)] = ref(100 + k)
				m.prod[boxes()[rng.IntN(2)]].add(ref(100+k), nil)
			}
			m.rows[id][u] = s
			m.box[id].UIDNext = u + 1
		}
		for i := range byte(rng.IntN(3)) {
			m.prod[id].add(ref(80+byte(id)*4+i), nil)
		}
	}
	return m
}

// expect counts the contents that both sides have to hold in the end: all that the
// standby has, and what production alone got.
func (m *model) expect() map[row.Ref]int {
	out := map[row.Ref]int{}
	for _, id := range boxes() {
		for _, r := range m.rows[id] {
			out[r.Ref]++
		}
		for _, p := range m.prod[id].msgs {
			for k := byte(80); k < 100; k++ {
				if p.Ref == ref(k) {
					out[p.Ref] = 1
				}
			}
		}
	}
	return out
}

func (m *model) holds() (standby, production map[row.Ref]int) {
	standby, production = map[row.Ref]int{}, map[row.Ref]int{}
	for _, id := range boxes() {
		for _, r := range m.rows[id] {
			standby[r.Ref]++
		}
		for _, p := range m.prod[id].msgs {
			production[p.Ref]++
		}
	}
	return standby, production
}

// N08, N13, R5: wherever a copy-back is cut off, the next ones bring both sides
// together: nothing is lost, nothing doubled, nothing comes back that a client
// deleted, UIDs are as clients were shown them, and then there is nothing to do.
func TestN08_CutAnywhere(t *testing.T) {
	for seed := range uint64(300) {
		for steps := 1; ; steps++ {
			m := newModel(rand.New(rand.NewPCG(seed, 4)))
			rng := rand.New(rand.NewPCG(seed, uint64(steps)))
			want := m.expect()
			m.final = seed%2 == 0
			_, whole := m.pass(steps)
			if !whole && rng.IntN(2) == 0 {
				// A client deletes one before the next run.
				for _, u := range slices.Sorted(maps.Keys(m.rows[1])) {
					r := m.rows[1][u]
					if rng.IntN(3) == 0 && u >= 20 && u < m.box[1].UIDNext {
						if !r.Fresh {
							m.changed[1][u] = r
						}
						delete(m.rows[1], u)
						if want[r.Ref]--; want[r.Ref] == 0 {
							delete(want, r.Ref)
						}
						break
					}
				}
			}
			m.judge(t, fmt.Sprintf("seed %d, cut after %d", seed, steps), want)
			if whole || t.Failed() {
				break
			}
		}
	}
}

func (m *model) judge(t *testing.T, name string, want map[row.Ref]int) {
	shown := map[row.MailboxID]map[uint32]row.Ref{}
	for _, id := range boxes() {
		shown[id] = map[uint32]row.Ref{}
		for u, r := range m.rows[id] {
			if r.Fresh {
				shown[id][u] = r.Ref
			}
		}
	}
	m.final = false
	m.pass(-1)
	m.final = true
	for range 3 {
		m.pass(-1)
	}
	p, _ := m.pass(-1)
	for _, b := range p.Boxes {
		if !b.Empty() {
			t.Errorf("%s: it does not end: %+v", name, b)
		}
		for u, r := range shown[b.ID] {
			if now := m.rows[b.ID][u]; now == nil || now.Ref != r {
				t.Errorf("%s: message %d of %s has another UID", name, u, b.Name)
			}
		}
	}
	standby, production := m.holds()
	if !maps.Equal(standby, want) || !maps.Equal(production, want) {
		t.Errorf("%s: the standby has %v, production %v, want %v", name, contents(standby), contents(production),
			contents(want))
	}
}

// contents are what messages hold, by number.
func contents(of map[row.Ref]int) (out []int) {
	for k := range 256 {
		for range of[ref(byte(k))] {
			out = append(out, k)
		}
	}
	return out
}
