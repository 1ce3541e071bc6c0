package keeper

import (
	"context"
	"errors"
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

// Enter waits until a side answers for an account ("" is SMTP, which is
// nobody's) and gives a lease on it.
func (k *Keeper) Enter(ctx context.Context, account string) (Side, error) {
	for {
		k.mu.Lock()
		side, known := k.side(account)
		if known {
			l := &lease{account: account, standby: side, revoked: make(chan struct{})}
			k.leases[l] = struct{}{}
			k.mu.Unlock()
			return Side{Standby: side, Revoked: l.revoked, Patience: func() time.Duration { return l.patience }, Release: func() { k.release(l) }}, nil
		}
		wait := k.changed
		k.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return Side{}, ctx.Err()
		}
	}
}

// side tells who answers now; known is false while nobody does. mu is held.
func (k *Keeper) side(account string) (standby, known bool) {
	switch k.state.Phase {
	case failover.Seeding, failover.Protecting:
		return false, true
	case failover.Fencing:
		return false, k.sweeping
	case failover.Serving, failover.Returning:
		if account == "" || !k.opt.Actor.OnProduction(account) {
			return true, true
		}
		return false, k.state.Mixed // else it is about to be the standby's
	case failover.CopyingBack:
		return account == "" || !k.opt.Actor.OnProduction(account), true
	case failover.HandingBack:
		if account == "" {
			return true, true // what an account cannot take any more stays held
		}
		if k.blocked[account] {
			return false, false
		}
		return !k.opt.Actor.OnProduction(account), true
	}
	return false, false
}

func (k *Keeper) release(l *lease) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !l.released {
		l.released = true
		delete(k.leases, l)
		k.wake()
	}
}

// revoke ends leases; what is under way may be finished within patience.
func (k *Keeper) revoke(which func(*lease) bool, patience time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for l := range k.leases {
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
func (k *Keeper) drained(ctx context.Context, which func(*lease) bool, limit time.Duration) error {
	end := time.After(limit)
	for {
		k.mu.Lock()
		open := false
		for l := range k.leases {
			open = open || which(l)
		}
		wait := k.changed
		k.mu.Unlock()
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
func (k *Keeper) block(account string) error {
	k.mu.Lock()
	k.blocked[account] = true
	k.mu.Unlock()
	mine := func(l *lease) bool { return l.standby && l.account == account }
	k.revoke(mine, boundary)
	return k.drained(context.Background(), mine, boundary+time.Second)
}

func (k *Keeper) unblock(account string) {
	k.mu.Lock()
	delete(k.blocked, account)
	k.wake()
	k.mu.Unlock()
}
