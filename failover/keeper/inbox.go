package keeper

import (
	"sync"

	"understudy/failover"
)

// told is an event on its way to the owner. run is the action that it is the end
// of, 0 if of none; taken is closed when the owner is done with it, nil if nobody asks.
type told struct {
	failover.Happened
	run   uint64
	taken chan struct{}
}

// inbox keeps events until the owner takes them. Who tells never waits, and a
// prober that goes on while the owner cannot take anything does not fill it: of
// verdicts that follow each other the last one counts.
type inbox struct {
	more chan struct{}

	mu   sync.Mutex
	list []told
}

func (b *inbox) init() { b.more = make(chan struct{}, 1) }

func verdict(e failover.Event) bool { return e == failover.Healthy || e == failover.Failed }

func (b *inbox) put(h told) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.list); n > 0 && verdict(h.Event) && h.taken == nil && h.Event == b.list[n-1].Event {
		b.list[n-1] = h
	} else {
		b.list = append(b.list, h)
	}
	select {
	case b.more <- struct{}{}:
	default:
	}
}

func (b *inbox) take() (h told, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.list) == 0 {
		return h, false
	}
	h = b.list[0]
	b.list = b.list[1:]
	return h, true
}
