package box

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy/console/api"
	"understudy/failover"
)

// Takeover implements api.Service.
func (v *service) Takeover(ctx context.Context, o api.Order) (api.Answer, error) {
	if no := v.keeper.State().Duties().NoTakeover; no != "" {
		return api.Answer{}, errors.New(no)
	}
	if o.DryRun {
		s, err := v.Status()
		return api.Answer{Text: fmt.Sprintf("would take over %d accounts with %d messages; production is healthy: %v; "+
			"replica complete: %v; learned logins: %d; held deliveries: %d",
			s.Accounts, s.Messages, s.Health.OK, s.Seeded, s.Verifiers, s.Held)}, err
	}
	return v.order(ctx, failover.Happened{Event: failover.Takeover, Detail: "by command"}, o.Wait,
		"the standby answers",
		func(d failover.Duties) bool { return d.SMTP == failover.Standby })
}

// Handback implements api.Service.
func (v *service) Handback(ctx context.Context, o api.Order) (api.Answer, error) {
	if no := v.keeper.State().Duties().NoHandback; no != "" {
		return api.Answer{}, errors.New(no)
	}
	if h := v.judge.verdict(); !h.OK {
		return api.Answer{}, fmt.Errorf("production is not capable yet: %s", h.Cause)
	}
	only, err := v.handable(o.Accounts)
	if err != nil {
		return api.Answer{}, err
	}
	if o.DryRun {
		return api.Answer{Text: fmt.Sprintf("would copy back %d accounts and hand them over",
			len(v.actor.ours(only)))}, nil
	}
	h := failover.Happened{Event: failover.Handback, Detail: "by command", Accounts: only}
	if only == nil {
		return v.order(ctx, h, o.Wait, "production answers",
			func(d failover.Duties) bool { return d.Accounts == failover.Production })
	}
	ans, err := v.order(ctx, h, o.Wait, "production answers for these accounts",
		func(d failover.Duties) bool {
			return d.Accounts == failover.Production || d.Accounts == failover.EachHome
		})
	if err == nil && o.Wait && slices.ContainsFunc(only, func(n string) bool { return !v.actor.OnProduction(n) }) {
		return ans, fmt.Errorf("the accounts could not be handed back: %s", v.keeper.State().Why)
	}
	return ans, err
}

// handable checks the accounts that are to be handed back; none are all.
func (v *service) handable(names []string) (only []string, err error) {
	for _, n := range names {
		name, ok := v.store.Resolve(n)
		if !ok {
			return nil, fmt.Errorf("no account %s; see `understudy accounts`", n)
		}
		if v.actor.OnProduction(name) {
			return nil, fmt.Errorf("production answers for %s already", name)
		}
		only = append(only, name)
	}
	return only, nil
}

// order gives the failover an order, and waits, if wanted, for the end of it:
// whether that is the one that was wanted is what reached says.
func (v *service) order(ctx context.Context, h failover.Happened, wait bool, text string,
	reached func(failover.Duties) bool) (api.Answer, error) {
	states, stop := v.keeper.Watch()
	defer stop()
	taken := v.keeper.Order(h)
	if !wait {
		return api.Answer{Text: "ordered; see `understudy status`"}, nil
	}
	select {
	case <-taken: // what was told before it has its effects first
	case <-ctx.Done():
		return api.Answer{}, ctx.Err()
	}
	st := v.keeper.State()
	for {
		switch d := st.Duties(); {
		case d.Moving:
		case reached(d):
			return api.Answer{Text: text + " (" + st.Why + ")"}, nil
		default:
			return api.Answer{}, errors.New(st.Why)
		}
		select {
		case st = <-states:
		case <-ctx.Done():
			return api.Answer{}, ctx.Err()
		}
	}
}

// Sync implements api.Service.
func (v *service) Sync(ctx context.Context, o api.Order) (api.Answer, error) {
	if st := v.keeper.State(); st.Duties().Follow < failover.Believed {
		return api.Answer{}, fmt.Errorf("no sync while %s", st.Phase)
	}
	start := time.Now()
	if err := v.mirror.SyncAll(ctx, "ordered", o.Accounts); err != nil {
		return api.Answer{}, err
	}
	return api.Answer{Text: fmt.Sprintf("synced in %s", time.Since(start).Round(time.Millisecond))}, nil
}

// Acknowledge implements api.Service.
func (v *service) Acknowledge(context.Context, api.Order) (api.Answer, error) {
	v.keeper.Tell(failover.Happened{Event: failover.Acknowledge})
	return api.Answer{Text: "the last takeover is acknowledged"}, nil
}

// Scrub implements api.Service.
func (v *service) Scrub(context.Context, api.Order) (api.Answer, error) {
	var bad []string
	n := v.store.Blobs.Scrub(func(sum string, err error) { bad = append(bad, fmt.Sprintf("%s: %v", sum, err)) })
	if len(bad) > 0 {
		return api.Answer{}, fmt.Errorf("%d of %d messages are damaged: %s", len(bad), n, strings.Join(bad, "; "))
	}
	return api.Answer{Text: fmt.Sprintf("%d messages read, none damaged", n)}, nil
}

// Bypass implements api.Service.
func (v *service) Bypass(_ context.Context, o api.Order) (api.Answer, error) {
	if v.wire == nil {
		return api.Answer{}, errors.New("the box is not in the wire (network.mode): connections cannot go past it")
	}
	if err := v.wire.Arm(o.Off); err != nil {
		return api.Answer{}, err
	}
	if o.Off {
		return api.Answer{Text: "new connections come to the box again"}, nil
	}
	return api.Answer{Text: "new connections go straight to production; those that are open stay where they are"}, nil
}

// Gather implements api.Service.
func (v *service) Gather(context.Context, api.Order) (api.Answer, error) {
	if v.wire == nil {
		return api.Answer{}, errors.New("the box is not in the wire (network.mode)")
	}
	if err := v.wire.Gather(); err != nil {
		return api.Answer{}, err
	}
	return api.Answer{Text: "connections that run past the box are reset as they speak, for half a minute; " +
		"their clients come back through it"}, nil
}
