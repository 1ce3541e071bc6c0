package box

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"understudy/console/config"
	"understudy/failover"
	"understudy/failover/keeper"
	"understudy/failover/smtpd"
	"understudy/proxy/upstream"
	"understudy/replica"
	"understudy/replica/mirror"
	"understudy/replica/row"
)

// sendPause is the least pause between runs of the outgoing mail, but for those
// that a hand-back begins.
const sendPause = 5 * time.Second

// outgoing gives production the mail that the standby took for it, and sends what
// users submitted for other sites, where that may go now.
type outgoing struct {
	cfg        config.Config
	production *Production
	keeper     *keeper.Keeper
	store      *replica.Replica
	mirror     *mirror.Mirror
	smtp       *smtpd.Server
	actor      *actor
	log        *slog.Logger

	went chan struct{} // rung when accounts went to production
	held chan struct{} // rung when held deliveries changed
}

// run sends at once when who answers changes and when an account is handed back,
// and soon when mail came. The rest is time: what is owed long enough, and what
// is tried again.
func (o *outgoing) run(ctx context.Context) error {
	states, stop := o.keeper.Watch()
	defer stop()
	var duties failover.Duties
	var again alarm
	var last time.Time
	for {
		send := false
		select {
		case st := <-states:
			send = st.Duties() != duties
			duties = st.Duties()
		case <-o.went:
			send = true
		case <-o.held:
			again.by(last.Add(sendPause))
		case <-o.store.QueueChanged():
			again.by(last.Add(sendPause))
		case <-again.wait():
			send = true
		case <-ctx.Done():
			return nil
		}
		if send {
			again = o.send(ctx, duties)
			last = time.Now()
		}
	}
}

// send sends what may go now, and says when to look again.
func (o *outgoing) send(ctx context.Context, d failover.Duties) (again alarm) {
	soon := time.Now().Add(sendPause)
	r := smtpd.Relay{Hostname: "understudy", Dial: o.production.target.SMTP.Dial}
	there := o.cfg.Production.SMTP != ""
	if d.GiveBack == failover.GiveReturned && there {
		returned := func(h row.Held) bool { return h.OnlyOurs() && !slices.ContainsFunc(h.Rcpts, o.onStandby) }
		o.inject(ctx, r, returned)
		if slices.ContainsFunc(o.store.HeldAll(), returned) {
			again.by(soon)
		}
	}
	switch {
	case d.Outbound && there:
		if err := o.giveAll(ctx, r); err != nil {
			o.log.Debug("look for messages that are owed", "err", err)
			again.by(soon)
			return again
		}
		o.untilOwed(&again, soon)
	case o.cfg.Standby.Outbound == "smarthost":
		r.Dial = upstream.Endpoint{Addr: o.cfg.Standby.Smarthost, Security: upstream.Plain}.Dial
	default:
		return again
	}
	if _, err := o.smtp.Flush(ctx, r, time.Now()); err != nil && ctx.Err() == nil {
		o.log.Error("outbound queue", "err", err)
		again.by(soon)
	}
	o.untilDue(&again, soon)
	return again
}

// giveAll gives production what the standby holds for it, and what is owed.
func (o *outgoing) giveAll(ctx context.Context, r smtpd.Relay) error {
	if err := o.lookForOwed(ctx); err != nil {
		return err
	}
	before := o.owedBefore()
	o.inject(ctx, r, func(h row.Held) bool {
		return h.MayGive(before) && o.keeper.State().Duties().GiveBack == failover.GiveAll
	})
	return nil
}

// untilOwed looks again when the next message was owed for long enough.
func (o *outgoing) untilOwed(again *alarm, soon time.Time) {
	for _, h := range o.store.HeldAll() {
		if at, ok := h.GiveAt(o.cfg.Failover.OwedAfter.D()); ok && at.Before(soon) {
			again.by(soon)
		} else if ok {
			again.by(at)
		}
	}
}

// untilDue looks again when the next message of the queue is due.
func (o *outgoing) untilDue(again *alarm, soon time.Time) {
	queue, err := o.store.Queued()
	if err != nil {
		again.by(soon)
	}
	for _, q := range queue {
		if q.Next.Before(soon) {
			q.Next = soon
		}
		again.by(q.Next)
	}
}

// lookForOwed syncs the accounts that a message is owed to, so that one that
// production has delivered by itself is seen before it is given to it again.
func (o *outgoing) lookForOwed(ctx context.Context) error {
	var accounts []string
	for _, h := range o.store.HeldAll() {
		if !h.OwedSince(o.owedBefore()) {
			continue
		}
		for _, r := range h.Rcpts {
			if rt, ok := o.store.RouteOf(r); ok && !slices.Contains(accounts, rt.Account) {
				accounts = append(accounts, rt.Account)
			}
		}
	}
	if len(accounts) == 0 {
		return nil
	}
	return o.mirror.SyncAll(ctx, "owed", accounts)
}

func (o *outgoing) owedBefore() time.Time { return time.Now().Add(-o.cfg.Failover.OwedAfter.D()) }

func (o *outgoing) inject(ctx context.Context, r smtpd.Relay, due func(row.Held) bool) {
	if err := o.smtp.Inject(ctx, r, due); err != nil && ctx.Err() == nil {
		o.log.Warn("accepted mail waits for production", "err", err)
	}
}

// onStandby reports whether a recipient's account is not, or not known to be, with
// production.
func (o *outgoing) onStandby(rcpt string) bool {
	rt, ok := o.store.RouteOf(rcpt)
	return !ok || !o.actor.OnProduction(rt.Account)
}
