package box

import (
	"context"
	"reflect"
	"slices"
	"time"

	"understudy/failover"
	"understudy/failover/smtpd"
	"understudy/proxy/seam"
	"understudy/proxy/upstream"
	"understudy/replica/row"
)

// pastSweep is the least pause between sweeps because of connections past the box.
const pastSweep = 20 * time.Second

// chores do what has to be done now and then.
func (b *Box) chores(ctx context.Context) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	slow := time.Now()
	var told seam.Greeting
	introduced, kicked := false, time.Time{}
	var phase failover.Phase
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		last := phase
		phase = b.keeper.State().Phase
		if phase == failover.Seeding && b.mirror.Seeded() {
			b.keeper.Tell(failover.Happened{Event: failover.Seeded})
		}
		if !introduced && (phase == failover.Seeding || phase == failover.Protecting) {
			intro, cancel := context.WithTimeout(ctx, b.opt.Config.Failover.ProbeTimeout.D())
			introduced = b.proxy.Introduce(intro) == nil
			cancel()
		}
		back := last == failover.HandingBack && phase == failover.Protecting
		if time.Since(slow) < 5*time.Second && !back {
			continue
		}
		slow = time.Now()
		if g := b.proxy.Greeting(); !reflect.DeepEqual(g, told) {
			told = g
			if err := b.store.SaveJSON(ctx, "greeting", told); err != nil {
				b.opt.Log.Error("save greeting", "err", err)
			}
		}
		if b.wire != nil && phase == failover.Protecting && b.wire.State().Past > 0 && slow.Sub(kicked) > pastSweep {
			kicked = slow
			b.mirror.Kick() // what they change is not seen
		}
		if err := b.actor.expireHeld(ctx, slow); err != nil {
			b.opt.Log.Error("expire held deliveries", "err", err)
		}
		if phase == failover.Serving || phase == failover.Returning || phase == failover.CopyingBack {
			b.deliverLate(ctx, slow)
		}
		b.flush(ctx, phase)
	}
}

// deliverLate delivers what was accepted just when the standby began to answer,
// what production was lost over however long ago it arrived, and what could not
// be delivered while an account was being handed back.
func (b *Box) deliverLate(ctx context.Context, now time.Time) {
	for _, h := range b.store.HeldAll() {
		if h.Open || !h.Owed && !h.Standby && now.Sub(h.Arrived) > time.Minute {
			continue
		}
		if slices.ContainsFunc(h.Rcpts, func(r string) bool { _, ok := b.store.RouteOf(r); return ok }) {
			b.smtp.Replay(ctx)
			return
		}
	}
}

// twinsLive is how long production's copy of a message that the standby has
// delivered may still come: mail servers give up after five days.
const twinsLive = 6 * 24 * time.Hour

// expireHeld forgets accepted messages that never showed up in a mailbox:
// production filtered them, or sent them on.
func (a *actor) expireHeld(ctx context.Context, now time.Time) error {
	if err := a.store.ForgetTwins(ctx, func(w row.Twin) bool { return now.Sub(w.Delivered) > twinsLive }); err != nil {
		return err
	}
	for _, h := range a.store.HeldAll() {
		if h.Owed || h.Standby || now.Sub(h.Arrived) < a.holdFor {
			continue
		}
		if err := a.store.Forget(ctx, h.ID); err != nil {
			return err
		}
	}
	return nil
}

// lookForOwed syncs the accounts that a message is owed to, so that one that
// production has delivered by itself is seen before it is given to it again.
func (b *Box) lookForOwed(ctx context.Context) error {
	var accounts []string
	for _, h := range b.store.HeldAll() {
		if !h.Owed || h.Arrived.After(b.owedBefore()) {
			continue
		}
		for _, r := range h.Rcpts {
			if rt, ok := b.store.RouteOf(r); ok && !slices.Contains(accounts, rt.Account) {
				accounts = append(accounts, rt.Account)
			}
		}
	}
	if len(accounts) == 0 {
		return nil
	}
	return b.mirror.SyncAll(ctx, "owed", accounts)
}

func (b *Box) owedBefore() time.Time { return time.Now().Add(-b.opt.Config.Failover.OwedAfter.D()) }

func (b *Box) inject(ctx context.Context, r smtpd.Relay, due func(row.Held) bool) {
	if err := b.smtp.Inject(ctx, r, due); err != nil && ctx.Err() == nil {
		b.opt.Log.Warn("accepted mail waits for production", "err", err)
	}
}

// onStandby reports whether a recipient's account is not, or not known to be, with
// production.
func (b *Box) onStandby(rcpt string) bool {
	rt, ok := b.store.RouteOf(rcpt)
	return !ok || !b.actor.OnProduction(rt.Account)
}

// flush sends outbound mail where it may go now.
func (b *Box) flush(ctx context.Context, phase failover.Phase) {
	r := smtpd.Relay{Hostname: "understudy"}
	if (phase == failover.Returning || phase == failover.CopyingBack || phase == failover.HandingBack) && b.opt.Config.Production.SMTP != "" {
		r.Dial = b.production.target.SMTP.Dial
		b.inject(ctx, r, func(h row.Held) bool { return h.Standby && !slices.ContainsFunc(h.Rcpts, b.onStandby) })
	}
	switch {
	case phase == failover.Protecting && b.opt.Config.Production.SMTP != "":
		r.Dial = b.production.target.SMTP.Dial
		if err := b.lookForOwed(ctx); err != nil {
			b.opt.Log.Debug("look for messages that are owed", "err", err)
			return
		}
		before := b.owedBefore()
		b.inject(ctx, r, func(h row.Held) bool {
			return (h.Standby || h.Owed && !h.Arrived.After(before)) && b.keeper.State().Phase == failover.Protecting
		})
	case b.opt.Config.Standby.Outbound == "smarthost":
		r.Dial = upstream.Endpoint{Addr: b.opt.Config.Standby.Smarthost, Security: upstream.Plain}.Dial
	default:
		return
	}
	if _, err := b.smtp.Flush(ctx, r, time.Now()); err != nil && ctx.Err() == nil {
		b.opt.Log.Error("outbound queue", "err", err)
	}
}
