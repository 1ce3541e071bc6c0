package keeper

import (
	"sync"

	"understudy/failover"
)

// watchers are those who want to know of each state.
type watchers struct {
	mu   sync.Mutex
	list map[chan failover.State]struct{}
}

// add begins with the state of now.
func (w *watchers) add(now failover.State) (states <-chan failover.State, stop func()) {
	c := make(chan failover.State, 1)
	c <- now //lock: it has room, and nobody else has it yet
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.list == nil {
		w.list = map[chan failover.State]struct{}{}
	}
	w.list[c] = struct{}{}
	return c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.list, c)
	}
}

// show has each watcher find the last state. One goroutine at a time calls it.
func (w *watchers) show(s failover.State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.list {
		select {
		case <-c:
		default:
		}
		c <- s //lock: it has room: nobody else sends
	}
}
