package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy/console/api"
	"understudy/console/config"
	"understudy/failover"
	"understudy/failover/health"
	"understudy/failover/imapd"
	"understudy/failover/keeper"
	"understudy/failover/smtpd"
	"understudy/proxy"
	"understudy/proxy/inline"
	"understudy/replica"
	"understudy/replica/copyback"
	"understudy/replica/imapc"
	"understudy/replica/mirror"
	"understudy/replica/row"
	"understudy/replica/vault"
	"understudy/snoop"
)

// app is one running Understudy.
type app struct {
	cfg    config.Config
	log    *slog.Logger
	store  *replica.Store
	vault  *vault.Vault
	target proxy.Target
	master string // password
	names  names

	certs  *proxy.Certificates
	mirror *mirror.Mirror
	cache  *snoop.Cache
	smtp   *smtpd.Server
	actor  *actor
	losses *losses
	keeper *keeper.Keeper
	proxy  *proxy.Proxy
	learn  *learner
	prober *health.Prober
	wire   *inline.Wire // nil: clients are pointed at the box

	mirrorPort *mirrorPort // nil: none

	slow func(row.Spool) row.Spool // tests; nil: the disk as it is

	hmu    sync.Mutex
	health api.Health
}

func (a *app) newSpool() row.Spool {
	var sp row.Spool = a.store.Blobs.Spool()
	if a.slow != nil {
		sp = a.slow(sp)
	}
	return sp
}

// dialer makes connections to production; nil is the network's.
type dialer func(ctx context.Context, c proxy.Client, addr string) (net.Conn, error)

// newApp builds everything, and opens the replica.
func newApp(cfg config.Config, log *slog.Logger, via dialer) (*app, error) {
	a := &app{cfg: cfg, log: log, names: names{cfg.Master.Separator, !cfg.Accounts.ExactCase}}
	var err error
	if a.master, err = masterPassword(cfg.Master); err != nil {
		return nil, err
	}
	if a.target, err = target(cfg.Production); err != nil {
		return nil, err
	}
	a.target.IMAP.Via, a.target.SMTP.Via, a.target.Submission.Via = via, via, via
	if len(cfg.Certificates) > 0 {
		var pairs []proxy.Pair
		for _, c := range cfg.Certificates {
			pairs = append(pairs, proxy.Pair(c))
		}
		if a.certs, err = proxy.LoadCertificates(pairs, log); err != nil {
			return nil, err
		}
	}
	a.store, err = replica.Open(replica.Options{Dir: cfg.Data, FoldCase: !cfg.Accounts.ExactCase, Domains: cfg.Accounts.Domains})
	if err != nil {
		return nil, err
	}
	if err := a.openWire(context.Background()); err != nil {
		return nil, errors.Join(err, a.store.Close())
	}
	if err := a.assemble(); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func masterPassword(m config.Master) (string, error) {
	if m.PasswordFile == "" {
		return m.Password, nil
	}
	b, err := os.ReadFile(m.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("master.password_file: %w", err)
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

func target(p config.Production) (proxy.Target, error) {
	var pool *x509.CertPool
	if p.CA != "" {
		pem, err := os.ReadFile(p.CA)
		if err != nil {
			return proxy.Target{}, fmt.Errorf("production.ca: %w", err)
		}
		pool = x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return proxy.Target{}, fmt.Errorf("production.ca: %s holds no certificate", p.CA)
		}
	}
	ep := func(addr, sec string) proxy.Endpoint {
		host, _, _ := net.SplitHostPort(addr)
		if p.ServerName != "" {
			host = p.ServerName
		}
		return proxy.Endpoint{Addr: addr, Security: proxy.Security(sec), ProxyProtocol: p.ProxyProtocol,
			TLS: &tls.Config{ServerName: host, RootCAs: pool, InsecureSkipVerify: p.Insecure, ClientSessionCache: tls.NewLRUClientSessionCache(64)}}
	}
	t := proxy.Target{IMAP: ep(p.IMAP, p.IMAPSecurity), SMTP: ep(p.SMTP, p.SMTPSecurity), Submission: ep(p.Submission, p.SubmissionSecurity),
		XClient: p.XClient, ClientID: p.ClientID, Timeout: p.Timeout.D()}
	if p.Submission == "" {
		t.Submission = t.SMTP
	}
	return t, nil
}

// dialMaster opens a connection that is logged in as an account.
func (a *app) dialMaster(ctx context.Context, account string) (*imapc.Conn, error) {
	c, err := a.dialIMAP(ctx)
	if err != nil {
		return nil, err
	}
	l := a.masterLogin(account)
	stop := context.AfterFunc(ctx, c.Close)
	defer stop()
	if err := c.Login(l.User, l.AuthUser, l.Password); err != nil {
		c.Close()
		return nil, fmt.Errorf("log in to production as master for %s: %w", account, err)
	}
	return c, nil
}

// masterLogin is the login as somebody else.
func (a *app) masterLogin(account string) proxy.Login {
	user, auth := account, a.cfg.Master.User
	if a.cfg.Master.Separator != "" {
		user = account + a.cfg.Master.Separator + a.cfg.Master.User
		auth = user
	}
	return proxy.Login{User: user, AuthUser: auth, Password: a.master}
}

func (a *app) dialIMAP(ctx context.Context) (*imapc.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.Production.Timeout.D())
	defer cancel()
	conn, err := a.target.IMAP.Dial(ctx)
	if err != nil {
		return nil, err
	}
	o := imapc.Options{}
	if a.target.IMAP.Security == proxy.StartTLS {
		o.StartTLS = a.target.IMAP.TLS
	}
	return imapc.New(ctx, conn, o)
}

// local reports whether mail for an address is kept on this site.
func (a *app) local(addr string) bool {
	if _, ok := a.store.RouteOf(addr); ok {
		return true
	}
	_, dom, _ := strings.Cut(strings.ToLower(addr), "@")
	for _, d := range a.cfg.Accounts.Domains {
		if strings.EqualFold(d, dom) {
			return true
		}
	}
	return dom == ""
}

func (a *app) assemble() error {
	cfg := a.cfg
	a.vault = vault.New(a.store.Meta, cfg.Standby.VerifierLives.D())
	a.learn = newLearner(a.vault, a.log)
	a.mirror = mirror.New(mirror.Options{Store: a.store, Dial: a.dialMaster, Log: a.log, Accounts: a.listAccounts,
		Streams: cfg.Mirror.Streams, PerAccount: cfg.Mirror.PerAccount, Sweep: cfg.Mirror.Sweep.D(), IdleLimit: cfg.Mirror.Idle})
	a.cache = snoop.New(snoop.Options{Replica: a.store, Syncer: a.mirror, Local: a.local, Log: a.log})
	sb := standby{vault: a.vault, store: a.store, names: a.names}
	host := cfg.Hostname
	if host == "" {
		host, _ = os.Hostname()
	}
	a.smtp = smtpd.New(smtpd.Options{Store: a.store, NewSpool: a.newSpool, Hostname: host,
		Local: a.local, Check: sb.check, MaxSize: cfg.Listen.MaxMessage, Log: a.log})
	sb.smtp = a.smtp
	sb.imap = imapd.New(imapd.Options{Store: a.store, Log: a.log, MaxMessage: cfg.Listen.MaxMessage})
	var err error
	if a.losses, err = newLosses(a.store, a.mirror, a.log); err != nil {
		return err
	}
	a.actor = &actor{wire: a.wire, late: make(chan struct{}, 1), store: a.store, mirror: a.mirror, copier: copyback.New(copyback.Options{Store: a.store, Dial: a.dialMaster, Log: a.log, Lacked: a.losses.lacked}),
		smtp: a.smtp, fence: cfg.Failover.FenceCommand, holdFor: cfg.Standby.HoldFor.D(), log: a.log}
	f := cfg.Failover
	a.keeper, err = keeper.New(keeper.Options{Actor: a.actor, Log: a.log, Changed: a.losses.changed,
		Limits: failover.Limits{Mode: failover.Mode(f.Mode), Hold: f.Hold.D(), HoldSilent: f.HoldSilent.D(), ReturnProbes: f.ReturnProbes,
			AutoHandback: f.AutoHandback, Cooldown: f.Cooldown.D()},
		Load: func(s *failover.State) (bool, error) { return a.store.LoadJSON("failover", s) },
		Save: func(ctx context.Context, s failover.State) error { return a.store.SaveJSON(ctx, "failover", s) }})
	if err != nil {
		return err
	}
	t := tap{Cache: a.cache, store: a.store, spool: a.newSpool, names: a.names, log: a.log, learner: a.learn, found: func(string) { a.mirror.Kick() }}
	if cfg.Standby.LearnLogins {
		t.vault = a.vault
	}
	if err := a.openTap(t); err != nil {
		return err
	}
	po := proxy.Options{Gate: gate{a.keeper, a.store, a.names}, Tap: t, Target: a.target, IMAP: sb, SMTP: sb, Caps: imapd.Caps(), Log: a.log, Master: a.masterLogin,
		PlainOK: cfg.Listen.PlainLogin, MaxSessions: cfg.Listen.MaxSessions, MaxMessage: cfg.Listen.MaxMessage}
	if a.certs != nil {
		po.TLS = a.certs.Config()
	}
	if a.proxy, err = proxy.New(po); err != nil {
		return err
	}
	a.prober = &health.Prober{Checks: a.checks(), Beat: f.Probe.D(), Timeout: f.ProbeTimeout.D(), Trouble: a.keeper.Troubles(), Tell: a.verdict, Log: a.log}
	return a.loadGreeting()
}

// loadGreeting reads what production said of itself, for the time without it.
func (a *app) loadGreeting() error {
	var g proxy.Greeting
	ok, err := a.store.LoadJSON("greeting", &g)
	if ok {
		a.proxy.Greet(g)
	}
	return err
}

// listAccounts returns the configured accounts and those that the command prints.
func (a *app) listAccounts(ctx context.Context) ([]string, error) {
	list := a.cfg.Accounts.List
	if c := a.cfg.Accounts.Command; len(c) > 0 {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, c[0], c[1:]...).Output()
		if err != nil {
			a.log.Error("accounts.command failed; the accounts known so far are kept", "command", c[0], "err", err)
			return list, nil
		}
		for l := range strings.Lines(string(out)) {
			if l = strings.TrimSpace(l); l != "" {
				list = append(list[:len(list):len(list)], l)
			}
		}
	}
	return list, nil
}

// run serves until ctx ends. ready is called when all listeners are open.
func (a *app) run(ctx context.Context, ready func(map[string]string)) error {
	ctx, stop := a.standAside(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	if err := a.enterWire(); err != nil {
		return err
	}
	listeners, err := a.listen(ctx)
	if err != nil {
		return err
	}
	addrs := map[string]string{}
	for _, l := range listeners {
		addrs[l.name] = l.l.Addr().String()
		g.Go(func() error { return a.proxy.Serve(ctx, l.l, l.kind) })
	}
	socket, err := a.controlSocket()
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: api.Handler(a), ReadHeaderTimeout: 10 * time.Second}
	g.Go(func() error {
		if err := srv.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return srv.Close()
	})
	a.work(ctx, g)
	if a.mirrorPort != nil {
		g.Go(func() error { return a.mirrorPort.run(ctx) })
	}
	if a.wire != nil {
		g.Go(func() error { return a.wire.Run(ctx) })
		// Beside production nothing comes here but in an outage, or by order.
		if err := a.wire.Arm(a.cfg.Network.Mode == "inline"); err != nil && a.cfg.Network.Mode == "inline" {
			return err
		}
	}
	ready(addrs)
	return g.Wait()
}

// work runs what needs no listener.
func (a *app) work(ctx context.Context, g *errgroup.Group) {
	for _, f := range []func(context.Context) error{a.keeper.Run, a.mirror.Run, a.prober.Run, a.learn.run, a.cache.Run, a.actor.deliver, a.chores} {
		g.Go(func() error { return f(ctx) })
	}
}

type listener struct {
	name string
	kind proxy.Kind
	l    net.Listener
}

func (a *app) listen(ctx context.Context) ([]listener, error) {
	var out []listener
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	for _, w := range []struct {
		name, addr string
		kind       proxy.Kind
	}{
		{"imap", a.cfg.Listen.IMAP, proxy.IMAP}, {"imaps", a.cfg.Listen.IMAPS, proxy.IMAPS}, {"smtp", a.cfg.Listen.SMTP, proxy.SMTP},
		{"submission", a.cfg.Listen.Submission, proxy.Submission}, {"submissions", a.cfg.Listen.Submissions, proxy.Submissions},
	} {
		if w.addr == "" {
			continue
		}
		if a.wire != nil {
			for _, l := range a.wire.Listeners(w.name) {
				out = append(out, listener{w.name, w.kind, l})
			}
			continue
		}
		l, err := lc.Listen(ctx, "tcp", w.addr)
		if err != nil {
			for _, o := range out {
				_ = o.l.Close()
			}
			return nil, fmt.Errorf("listen.%s: %w", w.name, err)
		}
		out = append(out, listener{w.name, w.kind, l})
	}
	return out, nil
}

func controlPath(cfg config.Config) string {
	if cfg.Control != "" {
		return cfg.Control
	}
	return filepath.Join(cfg.Data, "control.sock")
}

func (a *app) controlSocket() (net.Listener, error) {
	path := controlPath(a.cfg)
	// The data directory is locked by the metadata store, so a socket that is
	// there is a dead process's.
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, os.Chmod(path, 0o600)
}

// pastSweep is the least pause between sweeps because of connections past the box.
const pastSweep = 20 * time.Second

// chores do what has to be done now and then.
func (a *app) chores(ctx context.Context) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	slow := time.Now()
	var told proxy.Greeting
	introduced, kicked := false, time.Time{}
	var phase failover.Phase
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		last := phase
		phase = a.keeper.State().Phase
		if phase == failover.Seeding && a.mirror.Seeded() {
			a.keeper.Tell(failover.Happened{Event: failover.Seeded})
		}
		if !introduced && (phase == failover.Seeding || phase == failover.Protecting) {
			intro, cancel := context.WithTimeout(ctx, a.cfg.Failover.ProbeTimeout.D())
			introduced = a.proxy.Introduce(intro) == nil
			cancel()
		}
		back := last == failover.HandingBack && phase == failover.Protecting
		if time.Since(slow) < 5*time.Second && !back {
			continue
		}
		slow = time.Now()
		if g := a.proxy.Greeting(); !reflect.DeepEqual(g, told) {
			told = g
			if err := a.store.SaveJSON(ctx, "greeting", told); err != nil {
				a.log.Error("save greeting", "err", err)
			}
		}
		if a.wire != nil && phase == failover.Protecting && a.wire.State().Past > 0 && slow.Sub(kicked) > pastSweep {
			kicked = slow
			a.mirror.Kick() // what they change is not seen
		}
		if err := a.actor.expireHeld(ctx, slow); err != nil {
			a.log.Error("expire held deliveries", "err", err)
		}
		if phase == failover.Serving || phase == failover.Returning || phase == failover.CopyingBack {
			a.deliverLate(ctx, slow)
		}
		a.flush(ctx, phase)
	}
}

// deliverLate delivers what was accepted just when the standby began to answer,
// what production was lost over however long ago it arrived, and what could not
// be delivered while an account was being handed back.
func (a *app) deliverLate(ctx context.Context, now time.Time) {
	for _, h := range a.store.HeldAll() {
		if h.Open || !h.Owed && !h.Standby && now.Sub(h.Arrived) > time.Minute {
			continue
		}
		if slices.ContainsFunc(h.Rcpts, func(r string) bool { _, ok := a.store.RouteOf(r); return ok }) {
			a.smtp.Replay(ctx)
			return
		}
	}
}

// lookForOwed syncs the accounts that a message is owed to, so that one that
// production has delivered by itself is seen before it is given to it again.
func (a *app) lookForOwed(ctx context.Context) error {
	var accounts []string
	for _, h := range a.store.HeldAll() {
		if !h.Owed || h.Arrived.After(a.owedBefore()) {
			continue
		}
		for _, r := range h.Rcpts {
			if rt, ok := a.store.RouteOf(r); ok && !slices.Contains(accounts, rt.Account) {
				accounts = append(accounts, rt.Account)
			}
		}
	}
	if len(accounts) == 0 {
		return nil
	}
	return a.mirror.SyncAll(ctx, "owed", accounts)
}

func (a *app) owedBefore() time.Time { return time.Now().Add(-a.cfg.Failover.OwedAfter.D()) }

func (a *app) inject(ctx context.Context, r smtpd.Relay, due func(row.Held) bool) {
	if err := a.smtp.Inject(ctx, r, due); err != nil && ctx.Err() == nil {
		a.log.Warn("accepted mail waits for production", "err", err)
	}
}

// onStandby reports whether a recipient's account is not, or not known to be, with
// production.
func (a *app) onStandby(rcpt string) bool {
	rt, ok := a.store.RouteOf(rcpt)
	return !ok || !a.actor.OnProduction(rt.Account)
}

// flush sends outbound mail where it may go now.
func (a *app) flush(ctx context.Context, phase failover.Phase) {
	r := smtpd.Relay{Hostname: "understudy"}
	if (phase == failover.Returning || phase == failover.CopyingBack || phase == failover.HandingBack) && a.cfg.Production.SMTP != "" {
		r.Dial = a.target.SMTP.Dial
		a.inject(ctx, r, func(h row.Held) bool { return h.Standby && !slices.ContainsFunc(h.Rcpts, a.onStandby) })
	}
	switch {
	case phase == failover.Protecting && a.cfg.Production.SMTP != "":
		r.Dial = a.target.SMTP.Dial
		if err := a.lookForOwed(ctx); err != nil {
			a.log.Debug("look for messages that are owed", "err", err)
			return
		}
		before := a.owedBefore()
		a.inject(ctx, r, func(h row.Held) bool {
			return (h.Standby || h.Owed && !h.Arrived.After(before)) && a.keeper.State().Phase == failover.Protecting
		})
	case a.cfg.Standby.Outbound == "smarthost":
		r.Dial = proxy.Endpoint{Addr: a.cfg.Standby.Smarthost, Security: proxy.Plain}.Dial
	default:
		return
	}
	if _, err := a.smtp.Flush(ctx, r, time.Now()); err != nil && ctx.Err() == nil {
		a.log.Error("outbound queue", "err", err)
	}
}

// Close closes the replica, and leaves the wire as it is.
func (a *app) Close() error {
	err := a.store.Close()
	if a.wire != nil {
		err = errors.Join(err, a.wire.Close())
	}
	return err
}
