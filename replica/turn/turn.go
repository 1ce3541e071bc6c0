// Package turn lets one after the other: like a mutex, but it may be held while a
// disk or a peer is waited for, and who waits for it can give up.
//
// Implementation notes. A turn is a channel, so that virtual time sees who waits.
// Order, from outer to inner: turns of a ledger (several of one Set by Take, which
// sorts them), then an account's, then mutexes.
package turn

import (
	"context"
	"slices"
	"sync"
)

// Turn is one turn. Make it with New.
type Turn chan struct{}

// New returns a turn that nobody has.
func New() Turn { return make(Turn, 1) }

// Take waits for it.
func (t Turn) Take(ctx context.Context) error {
	select {
	case t <- struct{}{}: //lock: of a Set several are taken, sorted
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Do waits for it, does f, and leaves it.
func (t Turn) Do(f func()) {
	t <- struct{}{}
	defer t.Leave()
	f()
}

// Leave ends it.
func (t Turn) Leave() { <-t }

// Lock waits for it, however long that takes; with Unlock it is a sync.Locker.
func (t Turn) Lock() { t <- struct{}{} }

// Unlock ends it.
func (t Turn) Unlock() { <-t }

// Set is a turn for each key. The zero value is one that nobody has.
type Set[K comparable] struct {
	mu sync.Mutex
	m  map[K]*counted
}

type counted struct {
	Turn
	users int
}

// Take waits for the turns of all keys, in the order of compare, so that two who
// want some of the same never wait for each other.
func (s *Set[K]) Take(ctx context.Context, compare func(a, b K) int, keys ...K) (leave func(), err error) {
	keys = slices.Clone(keys)
	slices.SortFunc(keys, compare)
	keys = slices.Compact(keys)
	for i, k := range keys {
		if err := s.use(k).Take(ctx); err != nil {
			s.forget(k)
			s.leave(keys[:i])
			return nil, err
		}
	}
	return func() { s.leave(keys) }, nil
}

func (s *Set[K]) use(k K) Turn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[K]*counted{}
	}
	t := s.m[k]
	if t == nil {
		t = &counted{Turn: New()}
		s.m[k] = t
	}
	t.users++
	return t.Turn
}

// forget takes back use.
func (s *Set[K]) forget(k K) (t Turn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.m[k]
	if c.users--; c.users == 0 {
		delete(s.m, k)
	}
	return c.Turn
}

func (s *Set[K]) leave(keys []K) {
	for _, k := range slices.Backward(keys) {
		s.forget(k).Leave()
	}
}
