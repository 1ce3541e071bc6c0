package box

import (
	"context"
	"log/slog"

	"understudy/proxy/seam"
	"understudy/proxy/smtp"
	"understudy/replica"
	"understudy/replica/row"
	"understudy/replica/vault"
	"understudy/snoop"
)

// tap lets the transaction cache see what the proxy sees.
type tap struct {
	*snoop.Cache
	store   *replica.Replica
	vault   *vault.Vault // nil: logins are not learned
	names   names
	log     *slog.Logger
	learner *learner
	found   func(account string)
}

func (t tap) LoggedIn(ctx context.Context, l seam.Login) (string, error) {
	name := t.names.account(l.User)
	_, known := t.store.Resolve(name)
	account, err := t.store.EnsureAccount(ctx, name, row.Production)
	if err != nil {
		return "", err
	}
	if !known {
		t.log.Info("account seen for the first time", "account", account)
		t.found(account)
	}
	if t.vault != nil && t.names.own(l) && !t.vault.Known(t.names.key(l.User), l.Password) {
		t.learner.learn(learned{t.names.key(l.User), l.Password, account})
	}
	return account, nil
}

func (t tap) Denied(l seam.Login) {
	key := t.names.key(l.User)
	if t.vault != nil && t.names.own(l) && t.vault.Known(key, l.Password) {
		if err := t.vault.Forget(context.Background(), key); err != nil {
			t.log.Error("forget verifier", "user", l.User, "err", err)
		}
	}
}

func (t tap) Arriving(ctx context.Context, m row.Envelope, sp row.Spool) smtp.Arrival {
	return t.Cache.Arriving(ctx, m, sp)
}

func (t tap) Repeated(ctx context.Context, m row.Envelope, sp row.Spool) (bool, error) {
	if !t.store.Unanswered() {
		return false, nil
	}
	b, err := sp.Bytes()
	if err != nil {
		return false, err
	}
	return t.Cache.Repeated(ctx, m, row.RefOf(b))
}

func (t tap) Taking(m row.Envelope, sp row.Spool) (answered func(bool)) {
	b, err := sp.Bytes()
	if err != nil {
		return func(bool) {}
	}
	id := t.store.Await(m, row.RefOf(b))
	return func(told bool) {
		if told {
			t.store.Replied(id)
		} else {
			t.store.Unreplied(id)
		}
	}
}
