package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"

	"understudy/failover/imapd"
	"understudy/failover/keeper"
	"understudy/failover/smtpd"
	"understudy/proxy"
	"understudy/replica"
	"understudy/replica/row"
	"understudy/replica/vault"
	"understudy/snoop"
	"understudy/snoop/imapsession"
	"understudy/snoop/smtpwire"
)

// gate lets the keeper answer the proxy.
type gate struct {
	k     *keeper.Keeper
	store *replica.Store
	names names
}

func (g gate) Enter(ctx context.Context, login string) (proxy.Lease, error) {
	account := g.names.account(login)
	if n, ok := g.store.Resolve(account); ok {
		account = n
	}
	s, err := g.k.Enter(ctx, account)
	if err != nil {
		return proxy.Lease{}, err
	}
	l := proxy.Lease{Side: proxy.Production, Revoked: s.Revoked, Patience: s.Patience, Release: s.Release}
	if s.Standby {
		l.Side = proxy.Standby
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
func (n names) own(l proxy.Login) bool {
	return !l.Token() && l.User == l.AuthUser && n.account(l.User) == l.User
}

func (n names) key(login string) string {
	if n.fold {
		return strings.ToLower(login)
	}
	return login
}

// tap lets the transaction cache see what the proxy sees.
type tap struct {
	*snoop.Cache
	store   *replica.Store
	vault   *vault.Vault // nil: logins are not learned
	names   names
	log     *slog.Logger
	learner *learner
	found   func(account string)
	spool   func() row.Spool
}

func (t tap) LoggedIn(ctx context.Context, l proxy.Login) (string, error) {
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

func (t tap) Denied(l proxy.Login) {
	key := t.names.key(l.User)
	if t.vault != nil && t.names.own(l) && t.vault.Known(key, l.Password) {
		if err := t.vault.Forget(context.Background(), key); err != nil {
			t.log.Error("forget verifier", "user", l.User, "err", err)
		}
	}
}

func (t tap) Arriving(ctx context.Context, m row.Envelope, sp row.Spool) proxy.Arrival {
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

func (t tap) Outcome(ctx context.Context, account string, c *imapsession.Cmd, sp row.Spool, side proxy.Side) (string, bool, error) {
	return t.Cache.Outcome(ctx, account, c, sp, side == proxy.Production)
}

func (t tap) NewSpool() row.Spool { return t.spool() }

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

// standby serves IMAP and SMTP from the replica.
type standby struct {
	imap  *imapd.Server
	smtp  *smtpd.Server
	vault *vault.Vault
	store *replica.Store
	names names
}

// check verifies a password against the learned verifiers.
func (s standby) check(login, password string) (string, error) {
	account, err := s.vault.Check(s.names.key(login), password)
	switch {
	case errors.Is(err, vault.ErrWrong):
		return "", proxy.ErrDenied
	case err != nil:
		return "", errors.Join(proxy.ErrUnavailable, err)
	}
	name, ok := s.store.Resolve(account)
	if !ok {
		return "", proxy.ErrUnavailable
	}
	return name, nil
}

func (s standby) Authenticate(_ context.Context, l proxy.Login) (string, error) {
	if !s.names.own(l) {
		return "", proxy.ErrUnavailable
	}
	return s.check(l.User, l.Password)
}

func (s standby) ServeIMAP(ctx context.Context, conn net.Conn, account string, caps []string) error {
	return s.imap.ServeConn(ctx, conn, imapd.Session{User: account, Caps: caps})
}

func (s standby) NewSMTP(ctx context.Context, c proxy.Client) proxy.SMTPUpstream {
	addr := ""
	if c.Addr != nil {
		addr = c.Addr.String()
	}
	return smtpUpstream{s.smtp.Session(ctx, addr, c.Submission)}
}

// smtpUpstream lets the standby's SMTP session stand where production's would.
type smtpUpstream struct{ s *smtpd.Session }

func (u smtpUpstream) Greeting() (smtpwire.Reply, error) { return u.s.Greeting(), nil }
func (u smtpUpstream) Hello(c proxy.Client) (smtpwire.Reply, error) {
	return u.s.Hello(c.Helo, c.ESMTP), nil
}
func (u smtpUpstream) Auth(l proxy.Login) (smtpwire.Reply, error) {
	if l.Token() || l.User != l.AuthUser {
		return smtpwire.NewReply(454, "4.7.0 Temporary authentication failure"), nil
	}
	return u.s.Auth(l.User, l.Password, proxy.ErrDenied), nil
}
func (u smtpUpstream) Command(verb, line string) (smtpwire.Reply, error) {
	return u.s.Command(verb, line), nil
}
func (u smtpUpstream) Data() (io.Writer, error) {
	w, no := u.s.Data()
	if no != nil {
		return nil, proxy.Refused(*no)
	}
	return w, nil
}
func (u smtpUpstream) Finish() (smtpwire.Reply, error) { return u.s.Finish(), nil }
func (u smtpUpstream) Close()                          {}
