package box

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"understudy/console/api"
	"understudy/failover"
	"understudy/failover/health"
)

// checks are the conversations by which production is judged: its greeting on
// every beat; a login, SELECT and FETCH now and then, and always while it is to
// prove that it is back.
func (b *Box) checks() []health.Check {
	var beat atomic.Int64
	cs := []health.Check{{Name: "IMAP", Run: func(ctx context.Context) error {
		n := beat.Add(1)
		if p := b.keeper.State().Phase; n%10 == 1 || p != failover.Protecting && p != failover.Seeding {
			if acc := b.store.Accounts(); len(acc) > 0 {
				return b.production.probeDeep(ctx, acc[int(n)%len(acc)].Name)
			}
		}
		return b.production.probeIMAP(ctx)
	}}}
	if b.opt.Config.Production.SMTP != "" {
		cs = append(cs, health.Check{Name: "SMTP", Run: b.production.ProbeSMTP})
	}
	return cs
}

// verdict hands a probe's outcome to the keeper.
func (b *Box) verdict(v health.Verdict) {
	b.verdicts.set(api.Health{OK: v.OK, Cause: v.Cause, At: time.Now()})
	if v.Own {
		return // nothing is known of production
	}
	h := failover.Happened{Event: failover.Healthy}
	if !v.OK {
		h = failover.Happened{Event: failover.Failed, Detail: v.Cause, Silent: v.Silent}
	}
	b.keeper.Tell(h)
}

// verdicts keeps the last one.
type verdicts struct {
	mu   sync.Mutex
	last api.Health
}

func (v *verdicts) set(h api.Health) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.last = h
}

func (v *verdicts) get() api.Health {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.last
}
