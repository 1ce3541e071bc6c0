package box

import (
	"context"
	"strings"

	"understudy/failover/keeper"
	"understudy/proxy/seam"
	"understudy/replica"
)

// gate lets the keeper answer the proxy.
type gate struct {
	k     *keeper.Keeper
	store *replica.Replica
	names names
}

func (g gate) Enter(ctx context.Context, login string) (seam.Lease, error) {
	account := g.names.account(login)
	if n, ok := g.store.Resolve(account); ok {
		account = n
	}
	s, err := g.k.Enter(ctx, account)
	if err != nil {
		return seam.Lease{}, err
	}
	l := seam.Lease{Side: seam.Production, Revoked: s.Revoked, Patience: s.Patience, Release: s.Release}
	if s.Standby {
		l.Side = seam.Standby
	}
	return l, nil
}

func (g gate) Trouble(err error) { g.k.Trouble(err) }

// names tells accounts from logins.
type names struct {
	separator string // of master logins
	fold      bool
}

// account cuts a master login.
func (n names) account(login string) string {
	if n.separator != "" {
		if a, _, ok := strings.Cut(login, n.separator); ok && a != "" {
			return a
		}
	}
	return login
}

// own reports whether a login proves the user's own password.
func (n names) own(l seam.Login) bool {
	return !l.Token() && l.User == l.AuthUser && n.account(l.User) == l.User
}

func (n names) key(login string) string {
	if n.fold {
		return strings.ToLower(login)
	}
	return login
}
