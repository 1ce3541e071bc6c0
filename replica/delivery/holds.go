package delivery

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// holds are those that are under way: production may have a message that is not held yet.
type holds struct {
	mu      sync.Mutex
	holding map[chan struct{}]bool
}

func newHolds() holds { return holds{holding: map[chan struct{}]bool{}} }

// BeginHold says that a message is about to be given to production, which may
// have it in a mailbox before Hold has stored it here. ended has to be called when
// Hold has returned, or is not called at all.
func (o *holds) BeginHold() (ended func()) {
	c := make(chan struct{})
	o.mu.Lock()
	o.holding[c] = true
	o.mu.Unlock()
	return func() {
		o.mu.Lock()
		delete(o.holding, c)
		o.mu.Unlock()
		close(c)
	}
}

// AwaitHolds waits for the holds that have begun. Whatever production had in its
// mailboxes before the call is then held, if it was to be: who looks for held
// messages earlier would find one in a mailbox and not know it.
func (o *holds) AwaitHolds(ctx context.Context) error {
	o.mu.Lock()
	open := slices.Collect(maps.Keys(o.holding))
	o.mu.Unlock()
	for _, c := range open {
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
