// Package box is the appliance from its parts: New opens the replica and builds
// them, Run runs them until its context ends.
//
// Implementation notes. Nothing here decides: failover does, and the keeper owns
// its state. What this package adds is who is told of what: production (production.go,
// probe.go), the gate and the tap of the proxy (gate.go, tap.go, learner.go), the standby
// as the proxy sees it (standby.go), what the keeper orders (actor.go, ledger.go), the
// wire and the mirror port (wire.go, mirrorport.go), and the answers to commands
// (service.go, orders.go).
package box

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"

	"understudy/console/config"
	"understudy/failover"
	"understudy/failover/health"
	"understudy/failover/imapd"
	"understudy/failover/keeper"
	"understudy/failover/smtpd"
	"understudy/proxy"
	"understudy/proxy/imap"
	"understudy/proxy/inline"
	"understudy/proxy/seam"
	"understudy/proxy/smtp"
	"understudy/replica"
	"understudy/replica/copyback"
	"understudy/replica/mirror"
	"understudy/replica/row"
	"understudy/replica/vault"
	"understudy/snoop"
)

// Options of New.
type Options struct {
	Config config.Config
	Log    *slog.Logger
	// Dial makes connections to production; nil is the network's.
	Dial Dialer
	// Spool wraps what a message is kept in while it passes; nil: the disk as it is.
	Spool func(row.Spool) row.Spool
	// NoListeners: sessions are given to Proxy by hand, and there is no control socket.
	NoListeners bool
	// Ready is called by Run when all listeners are open, with their addresses.
	Ready func(addrs map[string]string)
}

// Dialer makes connections to production.
type Dialer func(ctx context.Context, c seam.Client, addr string) (net.Conn, error)

// Box is one running Understudy.
type Box struct {
	opt        Options
	production *Production
	store      *replica.Replica
	vault      *vault.Vault
	mirror     *mirror.Mirror
	cache      *snoop.Cache
	smtp       *smtpd.Server
	actor      *actor
	losses     *losses
	keeper     *keeper.Keeper
	proxy      *proxy.Proxy
	learn      *learner
	prober     *health.Prober
	verdicts   verdicts
	wire       *inline.Wire // nil: clients are pointed at the box
	port       *mirrorPort  // nil: none
}

// New builds everything, and opens the replica.
func New(o Options) (*Box, error) {
	p, err := NewProduction(o.Config, o.Log, o.Dial)
	if err != nil {
		return nil, err
	}
	certs, err := Certificates(o.Config, o.Log)
	if err != nil {
		return nil, err
	}
	store, err := replica.Open(replica.Options{Dir: o.Config.Data, FoldCase: !o.Config.Accounts.ExactCase, Domains: o.Config.Accounts.Domains})
	if err != nil {
		return nil, err
	}
	b := &Box{opt: o, production: p, store: store}
	if err := b.openWire(context.Background()); err != nil {
		return nil, errors.Join(err, b.store.Close())
	}
	if err := b.assemble(certs); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// State is the failover's state.
func (b *Box) State() failover.State { return b.keeper.State() }

// Tell hands the failover an event.
func (b *Box) Tell(h failover.Happened) { b.keeper.Tell(h) }

// Proxy takes the sessions of clients.
func (b *Box) Proxy() *proxy.Proxy { return b.proxy }

// Store is the replica.
func (b *Box) Store() *replica.Replica { return b.store }

// Sync reads accounts from production now; none are all.
func (b *Box) Sync(ctx context.Context, accounts []string) error {
	return b.mirror.SyncAll(ctx, "sweep", accounts)
}

// CopyBack is what the copy-back under way, or the last one, did.
func (b *Box) CopyBack() copyback.Report { return b.actor.copier.Report() }

func (b *Box) newSpool() row.Spool {
	var sp row.Spool = b.store.Blobs.Spool()
	if b.opt.Spool != nil {
		sp = b.opt.Spool(sp)
	}
	return sp
}

// local reports whether mail for an address is kept on this site.
func (b *Box) local(addr string) bool {
	if _, ok := b.store.RouteOf(addr); ok {
		return true
	}
	_, dom, _ := strings.Cut(strings.ToLower(addr), "@")
	for _, d := range b.opt.Config.Accounts.Domains {
		if strings.EqualFold(d, dom) {
			return true
		}
	}
	return dom == ""
}

func (b *Box) assemble(certs *proxy.Certificates) error {
	cfg := b.opt.Config
	b.vault = vault.New(b.store.Meta, cfg.Standby.VerifierLives.D())
	b.learn = newLearner(b.vault, b.opt.Log)
	b.mirror = mirror.New(mirror.Options{Store: b.store, Dial: b.production.DialMaster, Log: b.opt.Log, Accounts: b.production.Accounts,
		Streams: cfg.Mirror.Streams, PerAccount: cfg.Mirror.PerAccount, Sweep: cfg.Mirror.Sweep.D(), IdleLimit: cfg.Mirror.Idle})
	b.cache = snoop.New(snoop.Options{Replica: b.store, Syncer: b.mirror, Local: b.local, Log: b.opt.Log})
	sb := standby{vault: b.vault, store: b.store, names: b.production.names}
	host := cfg.Hostname
	if host == "" {
		host, _ = os.Hostname()
	}
	b.smtp = smtpd.New(smtpd.Options{Store: b.store, NewSpool: b.newSpool, Hostname: host,
		Local: b.local, Check: sb.check, MaxSize: cfg.Listen.MaxMessage, Log: b.opt.Log})
	sb.smtp = b.smtp
	sb.imap = imapd.New(imapd.Options{Store: b.store, Log: b.opt.Log, MaxMessage: cfg.Listen.MaxMessage})
	var err error
	if b.losses, err = newLosses(b.store, b.mirror, b.opt.Log); err != nil {
		return err
	}
	b.actor = &actor{wire: b.wire, late: make(chan struct{}, 1), store: b.store, mirror: b.mirror, copier: copyback.New(copyback.Options{Store: b.store, Dial: b.production.DialMaster, Log: b.opt.Log, Lacked: b.losses.lacked}),
		smtp: b.smtp, fence: cfg.Failover.FenceCommand, holdFor: cfg.Standby.HoldFor.D(), log: b.opt.Log}
	f := cfg.Failover
	b.keeper, err = keeper.New(keeper.Options{Actor: b.actor, Log: b.opt.Log, Changed: b.losses.changed,
		Limits: failover.Limits{Mode: failover.Mode(f.Mode), Hold: f.Hold.D(), HoldSilent: f.HoldSilent.D(), ReturnProbes: f.ReturnProbes,
			AutoHandback: f.AutoHandback, Cooldown: f.Cooldown.D()},
		Load: func(s *failover.State) (bool, error) { return b.store.LoadJSON("failover", s) },
		Save: func(ctx context.Context, s failover.State) error { return b.store.SaveJSON(ctx, "failover", s) }})
	if err != nil {
		return err
	}
	t := tap{Cache: b.cache, store: b.store, names: b.production.names, log: b.opt.Log, learner: b.learn, found: func(string) { b.mirror.Kick() }}
	if cfg.Standby.LearnLogins {
		t.vault = b.vault
	}
	if err := b.openTap(t); err != nil {
		return err
	}
	po := proxy.Options{Gate: gate{b.keeper, b.store, b.production.names}, Target: b.production.target, NewSpool: b.newSpool, Log: b.opt.Log,
		PlainOK: cfg.Listen.PlainLogin, MaxSessions: cfg.Listen.MaxSessions, MaxMessage: cfg.Listen.MaxMessage,
		IMAP: imap.Options{Standby: sb, Logins: t, Replica: t, Changes: t, Mailboxes: t, Caps: imapd.Caps(), Master: b.production.masterLogin},
		SMTP: smtp.Options{Standby: sb, Logins: t, Arrivals: t, Senders: t}}
	if certs != nil {
		po.TLS = certs.Config()
	}
	if b.proxy, err = proxy.New(po); err != nil {
		return err
	}
	b.prober = &health.Prober{Checks: b.checks(), Beat: f.Probe.D(), Timeout: f.ProbeTimeout.D(), Trouble: b.keeper.Troubles(), Tell: b.verdict, Log: b.opt.Log}
	return b.loadGreeting()
}

// loadGreeting reads what production said of itself, for the time without it.
func (b *Box) loadGreeting() error {
	var g seam.Greeting
	ok, err := b.store.LoadJSON("greeting", &g)
	if ok {
		b.proxy.Greet(g)
	}
	return err
}

// Close closes the replica, and leaves the wire as it is.
func (b *Box) Close() error {
	err := b.store.Close()
	if b.wire != nil {
		err = errors.Join(err, b.wire.Close())
	}
	return err
}
