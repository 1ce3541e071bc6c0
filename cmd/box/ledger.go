package box

import (
	"bytes"
	"context"
	"log/slog"
	"net/mail"
	"sync"

	"understudy/failover"
	"understudy/replica"
	"understudy/replica/mirror"
	"understudy/replica/row"
)

// maxLacked bounds the things that a ledger lists.
const maxLacked = 10_000

// losses keeps the ledger of the last takeover.
type losses struct {
	store  *replica.Replica
	mirror *mirror.Mirror
	log    *slog.Logger

	mu   sync.Mutex
	last row.Loss
}

func newLosses(store *replica.Replica, m *mirror.Mirror, log *slog.Logger) (*losses, error) {
	l := &losses{store: store, mirror: m, log: log}
	_, err := store.LoadJSON("loss", &l.last)
	return l, err
}

// Last returns the ledger of the last takeover; its epoch is 0 if there was none.
func (l *losses) Last() row.Loss {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// changed begins a ledger when the standby begins to serve in a new epoch.
func (l *losses) changed(s failover.State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.Phase != failover.Serving || l.last.Epoch == s.Epoch {
		return
	}
	l.last = row.Loss{Epoch: s.Epoch, At: s.Last, Planned: s.Planned}
	if !s.Planned {
		l.last.May = l.mayLack()
		for _, a := range l.store.Accounts() {
			l.last.Seen = append(l.last.Seen, row.SeenTo{Account: a.Name, Until: a.LastSync})
		}
	}
	l.save()
}

func (l *losses) save() {
	if err := l.store.SaveJSON(context.Background(), "loss", l.last); err != nil {
		l.log.Error("save the ledger of losses", "err", err)
	}
}

// mayLack lists what was seen of production and is not in the replica.
func (l *losses) mayLack() []row.MayLack {
	var out []row.MayLack
	for _, a := range l.store.Accounts() {
		for _, m := range l.mirror.Unread(a.Name) {
			out = append(out, row.MayLack{Account: a.Name, Mailbox: m, Why: "it was seen to change, and was not read since"})
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
				out = append(out, row.MayLack{Account: r, MessageID: id, Why: "it was accepted, and the mailbox of this recipient is not known; it stays held"})
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
	l.mu.Lock()
	defer l.mu.Unlock()
	room := max(0, maxLacked-len(l.last.Lacked))
	n := min(room, len(found))
	l.last.Lacked = append(l.last.Lacked, found[:n]...)
	l.last.More += len(found) - n
	l.save()
}
