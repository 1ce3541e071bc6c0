package box

import (
	"context"
	"sync/atomic"
	"time"

	"understudy/console/api"
	"understudy/failover"
	"understudy/failover/health"
	"understudy/failover/keeper"
	"understudy/replica"
)

// judge has production probed, and hands the verdicts to the keeper.
type judge struct {
	production *Production
	store      *replica.Replica
	keeper     *keeper.Keeper
	prober     *health.Prober
	healthy    chan struct{} // rung when production proved itself
	beat       atomic.Int64
	last       atomic.Pointer[api.Health]
}

func newJudge(p *Production, store *replica.Replica, k *keeper.Keeper) *judge {
	j := &judge{production: p, store: store, keeper: k, healthy: make(chan struct{}, 1)}
	f := p.cfg.Failover
	j.prober = &health.Prober{Checks: j.checks(), Beat: f.Probe.D(), Timeout: f.ProbeTimeout.D(),
		Trouble: k.Troubles(), Tell: j.take, Log: p.log}
	return j
}

// checks are the conversations by which production is judged.
func (j *judge) checks() []health.Check {
	cs := []health.Check{{Name: "IMAP", Run: j.askIMAP}}
	if j.production.cfg.Production.SMTP != "" {
		cs = append(cs, health.Check{Name: "SMTP", Run: j.production.ProbeSMTP})
	}
	return cs
}

// deepEvery is which beat is a login, SELECT and FETCH in any case.
const deepEvery = 10

// askIMAP looks for a greeting on every beat; it logs in now and then, and always
// while production is to prove itself.
func (j *judge) askIMAP(ctx context.Context) error {
	n := j.beat.Add(1)
	if n%deepEvery == 1 || j.keeper.State().Duties().Deep {
		if acc := j.store.Accounts(); len(acc) > 0 {
			return j.production.probeDeep(ctx, acc[int(n)%len(acc)].Name)
		}
	}
	return j.production.probeIMAP(ctx)
}

// take hands a probe's outcome to the keeper.
func (j *judge) take(v health.Verdict) {
	j.last.Store(&api.Health{OK: v.OK, Cause: v.Cause, At: time.Now()})
	if v.Own {
		return // nothing is known of production
	}
	h := failover.Happened{Event: failover.Healthy}
	if !v.OK {
		h = failover.Happened{Event: failover.Failed, Detail: v.Cause, Silent: v.Silent}
	}
	j.keeper.Tell(h)
	if v.OK {
		ring(j.healthy)
	}
}

// verdict is the last one.
func (j *judge) verdict() api.Health {
	if h := j.last.Load(); h != nil {
		return *h
	}
	return api.Health{}
}
