package box

import (
	"bytes"
	"context"
	"log/slog"
	"net/mail"
	"slices"
	"sync/atomic"

	"understudy/failover"
	"understudy/failover/keeper"
	"understudy/replica"
	"understudy/replica/mirror"
	"understudy/replica/row"
)

// maxLacked bounds the things that a ledger lists.
const maxLacked = 10_000

// losses keeps the ledger of the last takeover.
type losses struct {
	keeper *keeper.Keeper
	store  *replica.Replica
	mirror *mirror.Mirror
	log    *slog.Logger

	turn chan struct{} // of whoever changes it: it is held while the disk writes
	last atomic.Pointer[row.Loss]
}

// openLosses reads the ledger; the keeper is set later.
func openLosses(store *replica.Replica, m *mirror.Mirror, log *slog.Logger) (*losses, error) {
	l := &losses{store: store, mirror: m, log: log, turn: make(chan struct{}, 1)}
	var last row.Loss
	_, err := store.LoadJSON("loss", &last)
	l.last.Store(&last)
	return l, err
}

// Last returns the ledger of the last takeover; its epoch is 0 if there was none.
func (l *losses) Last() row.Loss {
	l.follow(l.keeper.State())
	return *l.last.Load()
}

// run begins a ledger when the standby begins to serve in a new epoch.
func (l *losses) run(ctx context.Context) error {
	states, stop := l.keeper.Watch()
	defer stop()
	for {
		select {
		case s := <-states:
			l.follow(s)
		case <-ctx.Done():
			return nil
		}
	}
}

// follow begins the ledger of a takeover that has none.
func (l *losses) follow(s failover.State) {
	if s.Duties().SMTP != failover.Standby {
		return
	}
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	if l.last.Load().Epoch != s.Epoch {
		l.keep(l.begin(s))
	}
}

// begin makes the ledger of a takeover of just now.
func (l *losses) begin(s failover.State) row.Loss {
	loss := row.Loss{Epoch: s.Epoch, At: s.Last, Planned: s.Planned}
	if !s.Planned {
		loss.May = l.mayLack()
		for _, a := range l.store.Accounts() {
			loss.Seen = append(loss.Seen, row.SeenTo{Account: a.Name, Until: a.LastSync})
		}
	}
	return loss
}

// keep saves the ledger and shows it. The turn is held.
func (l *losses) keep(loss row.Loss) {
	if err := l.store.SaveJSON(context.Background(), "loss", loss); err != nil {
		l.log.Error("save the ledger of losses", "err", err)
	}
	l.last.Store(&loss)
}

// mayLack lists what was seen of production and is not in the replica.
func (l *losses) mayLack() []row.MayLack {
	var out []row.MayLack
	for _, a := range l.store.Accounts() {
		for _, m := range l.mirror.Unread(a.Name) {
			out = append(out, row.MayLack{Account: a.Name, Mailbox: m,
				Why: "it was seen to change, and was not read since"})
		}
		boxes, err := l.store.Mailboxes(a.Name)
		if err != nil {
			out = append(out, row.MayLack{Account: a.Name, Why: err.Error()})
		}
		for _, m := range boxes {
			if !m.Synced && !m.NoSelect && !m.Born {
				out = append(out, row.MayLack{Account: a.Name, Mailbox: m.Name, Why: "its first copy was not complete"})
			}
		}
	}
	for _, h := range l.store.HeldAll() {
		id := ""
		if raw, err := l.store.Message(h.Ref); err == nil {
			if m, err := mail.ReadMessage(bytes.NewReader(raw)); err == nil {
				id = m.Header.Get("Message-ID")
			}
		}
		for _, r := range h.Rcpts {
			if _, ok := l.store.RouteOf(r); !ok {
				out = append(out, row.MayLack{Account: r, MessageID: id,
					Why: "it was accepted, and the mailbox of this recipient is not known; it stays held"})
			}
		}
	}
	return out
}

// lacked takes what copy-back found.
func (l *losses) lacked(found []row.Lacked) {
	if len(found) == 0 {
		return
	}
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	loss := *l.last.Load()
	n := min(max(0, maxLacked-len(loss.Lacked)), len(found))
	loss.Lacked = append(slices.Clip(loss.Lacked), found[:n]...)
	loss.More += len(found) - n
	l.keep(loss)
}
