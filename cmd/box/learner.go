package box

import (
	"context"
	"log/slog"

	"understudy/replica/vault"
)

// learner stores verifiers beside the sessions: they are slow by design.
type learner struct {
	v   *vault.Vault
	log *slog.Logger
	c   chan learned
}

type learned struct{ login, password, account string }

func newLearner(v *vault.Vault, log *slog.Logger) *learner {
	return &learner{v: v, log: log, c: make(chan learned, 1000)}
}

func (l *learner) learn(x learned) {
	select {
	case l.c <- x:
	default: // the next login will do
	}
}

func (l *learner) run(ctx context.Context) error {
	for {
		select {
		case x := <-l.c:
			if err := l.v.Learn(ctx, x.login, x.password, x.account); err != nil && ctx.Err() == nil {
				l.log.Error("learn verifier", "user", x.login, "err", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}
