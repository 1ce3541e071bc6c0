package box

import (
	"context"
	"log/slog"
	"time"

	"understudy/replica"
	"understudy/replica/row"
)

const (
	// twinsLive is how long production's copy of a message that the standby has
	// delivered may still come: mail servers give up after five days.
	twinsLive = 6 * 24 * time.Hour
	// Pauses between looks for what is too old.
	expiryLeast = 5 * time.Second
	expiryMost  = time.Hour
)

// expiry forgets what nobody waits for any more. Nothing but time makes it work:
// what is held from now on is due later than what is held already.
type expiry struct {
	store   *replica.Replica
	holdFor time.Duration
	log     *slog.Logger
}

func (e *expiry) run(ctx context.Context) error {
	for {
		if err := e.expire(ctx, time.Now()); err != nil && ctx.Err() == nil {
			e.log.Error("expire held deliveries", "err", err)
		}
		select {
		case <-time.After(time.Until(e.next(time.Now()))):
		case <-ctx.Done():
			return nil
		}
	}
}

func (e *expiry) next(now time.Time) time.Time {
	next := alarm{now.Add(min(e.holdFor, expiryMost))}
	for _, h := range e.store.HeldAll() {
		if at, ok := h.ExpiresAt(e.holdFor); ok {
			next.by(at)
		}
	}
	if soonest := now.Add(expiryLeast); next.at.Before(soonest) {
		return soonest
	}
	return next.at
}

func (e *expiry) expire(ctx context.Context, now time.Time) error {
	if err := e.store.ForgetTwins(ctx, func(w row.Twin) bool { return now.Sub(w.Delivered) > twinsLive }); err != nil {
		return err
	}
	for _, h := range e.store.HeldAll() {
		if at, ok := h.ExpiresAt(e.holdFor); !ok || now.Before(at) {
			continue
		}
		if err := e.store.Expire(ctx, h.ID); err != nil {
			return err
		}
	}
	return nil
}
