package box

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"understudy/failover"
	"understudy/failover/keeper"
	"understudy/failover/smtpd"
	"understudy/replica"
	"understudy/replica/row"
)

// Pauses of the deliverer.
const (
	deliverDelay = time.Second     // a session delivers at once what it has accepted; this is for what it could not
	deliverAgain = 5 * time.Second // between tries of what could not be delivered
	lateLimit    = time.Minute     // how old what was accepted may be to have been accepted just when the standby began
)

// deliverer puts held mail into mailboxes while the standby answers.
type deliverer struct {
	keeper *keeper.Keeper
	store  *replica.Replica
	smtp   *smtpd.Server
	log    *slog.Logger

	came chan struct{} // rung when accounts came to the standby
	held chan struct{} // rung when held deliveries changed
}

func newDeliverer(k *keeper.Keeper, store *replica.Replica, smtp *smtpd.Server, log *slog.Logger) *deliverer {
	return &deliverer{keeper: k, store: store, smtp: smtp, log: log, came: make(chan struct{}, 1),
		held: make(chan struct{}, 1)}
}

func (d *deliverer) run(ctx context.Context) error {
	states, stop := d.keeper.Watch()
	defer stop()
	var duties failover.Duties
	var again alarm
	for {
		look := false
		select {
		case st := <-states:
			look = st.Duties() != duties
			duties = st.Duties()
		case <-d.came: // sessions did not wait for it
			if left := d.smtp.Replay(ctx); left > 0 {
				d.log.Warn("accepted messages have no known mailbox; they stay held", "recipients", left)
			}
		case <-d.held:
			again.by(time.Now().Add(deliverDelay))
		case <-again.wait():
			again.off()
			look = true
		case <-ctx.Done():
			return nil
		}
		if look && duties.Deliver && d.waits() {
			d.smtp.Replay(ctx)
			again.by(time.Now().Add(deliverAgain))
		}
	}
}

// waits reports whether something can be delivered: what was accepted just when
// the standby began to answer, what production was lost over however long ago it
// arrived, and what could not be delivered while an account was being handed back.
func (d *deliverer) waits() bool {
	return slices.ContainsFunc(d.store.HeldAll(), func(h row.Held) bool {
		if !h.DeliverNow(time.Now(), lateLimit) {
			return false
		}
		return slices.ContainsFunc(h.Rcpts, func(r string) bool { _, ok := d.store.RouteOf(r); return ok })
	})
}
