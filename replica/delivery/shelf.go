package delivery

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"understudy/replica/row"
)

// shelf has the held messages as they are on disk, and the numbers given to them.
// Who changes one has the turn of its content; readers wait for nobody.
type shelf struct {
	came chan struct{}

	mu     sync.Mutex
	held   map[uint64]row.Held
	byBody map[string]map[uint64]bool // Key → held
	last   uint64                     // number given
}

func newShelf() shelf {
	return shelf{came: make(chan struct{}, 1), held: map[uint64]row.Held{}, byBody: map[string]map[uint64]bool{}}
}

// replace has these messages in place of all others.
func (s *shelf) replace(held map[uint64]row.Held, last uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held, s.byBody, s.last = map[uint64]row.Held{}, map[string]map[uint64]bool{}, max(s.last, last)
	for _, h := range held {
		s.put(h)
	}
}

// replaceOf makes the messages of one content those that were read again.
func (s *shelf) replaceOf(ref row.Ref, held map[uint64]row.Held) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, was := range s.held {
		if was.Ref != ref {
			continue
		}
		now, there := held[id]
		s.put(was.ReadAgain(now, there))
		delete(held, id)
	}
	for _, h := range held {
		s.put(h) // its Hold failed, and it is there all the same: a sender may have been told
	}
}

// put shows a message as it is; mu is held.
func (s *shelf) put(h row.Held) {
	if h.State.Ended() {
		delete(s.held, h.ID)
		if delete(s.byBody[h.Key], h.ID); len(s.byBody[h.Key]) == 0 {
			delete(s.byBody, h.Key)
		}
		return
	}
	s.held[h.ID] = h
	if s.byBody[h.Key] == nil {
		s.byBody[h.Key] = map[uint64]bool{}
	}
	s.byBody[h.Key][h.ID] = true
}

// show publishes what is durable.
func (s *shelf) show(list ...row.Held) {
	s.mu.Lock()
	for _, h := range list {
		s.put(h)
	}
	s.mu.Unlock()
	s.ring()
}

func (s *shelf) ring() {
	select {
	case s.came <- struct{}{}:
	default:
	}
}

// HeldChanged is rung when held messages came, changed or went. It is for one
// listener.
func (s *shelf) HeldChanged() <-chan struct{} { return s.came }

func byID(a, b row.Held) int { return cmp.Compare(a.ID, b.ID) }

// HeldAll lists the held messages, oldest first.
func (s *shelf) HeldAll() []row.Held {
	s.mu.Lock()
	out := slices.Collect(maps.Values(s.held))
	s.mu.Unlock()
	slices.SortFunc(out, byID)
	return out
}

// HeldCount is len(HeldAll()).
func (s *shelf) HeldCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.held)
}

// alike lists the held messages with a body of a length, oldest first.
func (s *shelf) alike(key string) (out []row.Held) {
	s.mu.Lock()
	for id := range s.byBody[key] {
		out = append(out, s.held[id])
	}
	s.mu.Unlock()
	slices.SortFunc(out, byID)
	return out
}

func (s *shelf) byNumber(id uint64) (row.Held, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, ok := s.held[id]
	return h, ok
}

func (s *shelf) number() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	return s.last
}
