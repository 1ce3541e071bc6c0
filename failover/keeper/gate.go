package keeper

import (
	"context"
	"errors"
	"sync"
	"time"

	"understudy/failover"
)

// Side is what a session was given.
type Side struct {
	Standby  bool
	Revoked  <-chan struct{}
	Patience func() time.Duration // once revoked: for commands under way
	Release  func()
}

// gate knows who answers now, and who was let in.
type gate struct {
	mu      sync.Mutex
	duties  failover.Duties
	turns   uint64        // counts changes of who answers
	changed chan struct{} // closed and replaced at every change, and when a lease ends
	leases  map[*lease]struct{}
	blocked map[string]bool
}

type lease struct {
	account  string
	standby  bool
	revoked  chan struct{}
	patience time.Duration // set before revoked is closed
	released bool
}

func onProduction(l *lease) bool { return !l.standby }

func onStandby(l *lease) bool { return l.standby }

func (g *gate) init(d failover.Duties) {
	g.duties, g.changed, g.leases, g.blocked = d, make(chan struct{}), map[*lease]struct{}{}, map[string]bool{}
}

// turn sets who answers from now on.
func (g *gate) turn(d failover.Duties) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.duties = d
	g.turned()
}

// turned has Enter look again. mu is held.
func (g *gate) turned() {
	g.turns++
	g.wake()
}

// wake has those look again who wait. mu is held.
func (g *gate) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// Enter waits until a side answers for an account ("" is SMTP, which is
// nobody's) and gives a lease on it.
func (k *Keeper) Enter(ctx context.Context, account string) (Side, error) {
	g := &k.gate
	for {
		turns, who, wait := g.who(account)
		standby, known := who == failover.Standby, who != failover.Nobody
		if account != "" && (who == failover.Standby || who == failover.EachHome) {
			// An account changes its home only while nobody is let in for it, and
			// a turn precedes and follows that.
			there := k.opt.Actor.OnProduction(account)
			standby, known = !there, !there || who == failover.EachHome
		}
		if known {
			if s, ok := g.lease(account, standby, turns); ok {
				return s, nil
			}
			continue
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return Side{}, ctx.Err()
		}
	}
}

// who tells who answers, and as of which turn.
func (g *gate) who(account string) (turns uint64, who failover.Answerer, wait <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	who = g.duties.Accounts
	switch {
	case account == "":
		who = g.duties.SMTP
	case g.blocked[account]:
		who = failover.Nobody
	}
	return g.turns, who, g.changed
}

// lease lets a session in, if nothing has changed since the turn.
func (g *gate) lease(account string, standby bool, turns uint64) (s Side, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.turns != turns {
		return s, false
	}
	l := &lease{account: account, standby: standby, revoked: make(chan struct{})}
	g.leases[l] = struct{}{}
	return Side{Standby: standby, Revoked: l.revoked, Patience: func() time.Duration { return l.patience },
		Release: func() { g.release(l) }}, true
}

func (g *gate) release(l *lease) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !l.released {
		l.released = true
		delete(g.leases, l)
		g.wake()
	}
}

// revoke ends leases; what is under way may be finished within patience.
func (g *gate) revoke(which func(*lease) bool, patience time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for l := range g.leases {
		if !which(l) {
			continue
		}
		select {
		case <-l.revoked:
		default:
			l.patience = patience
			close(l.revoked)
		}
	}
}

// boundary is how long the commands under way may take when sessions are
// moved on purpose.
const boundary = 4 * time.Second

var errDrain = errors.New("sessions did not end in time")

// drained waits until no lease of a kind is out.
func (g *gate) drained(ctx context.Context, which func(*lease) bool, limit time.Duration) error {
	end := time.After(limit)
	for {
		g.mu.Lock()
		open := false
		for l := range g.leases {
			open = open || which(l)
		}
		wait := g.changed
		g.mu.Unlock()
		if !open {
			return nil
		}
		select {
		case <-wait:
		case <-end:
			return errDrain
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// block takes an account's sessions off the standby and lets none in.
func (g *gate) block(account string) error {
	g.mu.Lock()
	g.blocked[account] = true
	g.turned()
	g.mu.Unlock()
	mine := func(l *lease) bool { return l.standby && l.account == account }
	g.revoke(mine, boundary)
	return g.drained(context.Background(), mine, boundary+time.Second)
}

func (g *gate) unblock(account string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.blocked, account)
	g.turned()
}
