package box

import (
	"context"
	"time"
)

// ring tells whoever waits that something happened; it never waits itself, and
// what happens before it is heard is heard once.
func ring(bell chan<- struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// hear is the task of a relay.
func hear(name string, from <-chan struct{}, to ...chan<- struct{}) task {
	return task{name, func(ctx context.Context) error { return relay(ctx, from, to...) }, nil}
}

// relay hands what one bell tells on to several who wait.
func relay(ctx context.Context, from <-chan struct{}, to ...chan<- struct{}) error {
	for {
		select {
		case <-from:
			for _, c := range to {
				ring(c)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// alarm is a time that is waited for; the zero value is none.
type alarm struct{ at time.Time }

// by sets the alarm, unless it is set to an earlier time.
func (a *alarm) by(at time.Time) {
	if a.at.IsZero() || at.Before(a.at) {
		a.at = at
	}
}

// wait is heard when the time has come; nil if there is none.
func (a *alarm) wait() <-chan time.Time {
	if a.at.IsZero() {
		return nil
	}
	return time.After(time.Until(a.at))
}

func (a *alarm) off() { a.at = time.Time{} }
