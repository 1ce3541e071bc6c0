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
	"understudy/replica/meta"
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
	// Rows is the metadata store; nil is a file in the data directory.
	Rows meta.Store
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
	mirror     *mirror.Mirror
	cache      *snoop.Cache
	smtp       *smtpd.Server
	actor      *actor
	keeper     *keeper.Keeper
	judge      *judge
	proxy      *proxy.Proxy
	wire       *inline.Wire // nil: clients are pointed at the box
	port       *mirrorPort  // nil: none
	service    *service
	tasks      []task
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
	store, err := replica.Open(replica.Options{Dir: o.Config.Data, Meta: o.Rows, FoldCase: !o.Config.Accounts.ExactCase,
		Domains: o.Config.Accounts.Domains})
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

// assemble makes the parts, and lists those that run. Those that the others need
// first come first.
func (b *Box) assemble(certs *proxy.Certificates) error {
	cfg, log := b.opt.Config, b.opt.Log
	b.mirror = mirror.New(mirror.Options{Store: b.store.Store, Blobs: b.store.Blobs,
		Deliveries: b.store, Moves: b.store, Tasks: b.store, Dial: b.production.DialMaster, Log: log,
		Accounts: b.production.Accounts, Streams: cfg.Mirror.Streams, PerAccount: cfg.Mirror.PerAccount,
		Sweep: cfg.Mirror.Sweep.D(), IdleLimit: cfg.Mirror.Idle})
	b.cache = snoop.New(snoop.Options{Mailboxes: b.store, Moves: b.store, Deliveries: b.store,
		Syncer: b.mirror, Local: b.local, Log: log})
	losses, err := openLosses(b.store, b.mirror, log)
	if err != nil {
		return err
	}
	verifiers := vault.New(b.store.Meta, cfg.Standby.VerifierLives.D())
	sb := b.standby(verifiers)
	if err := b.makeKeeper(losses); err != nil {
		return err
	}
	losses.keeper = b.keeper
	b.judge = newJudge(b.production, b.store, b.keeper)
	learner := newLearner(verifiers, log)
	t := tap{Cache: b.cache, store: b.store, names: b.production.names, log: log, learner: learner,
		found: func(string) { b.mirror.Kick() }}
	if cfg.Standby.LearnLogins {
		t.vault = verifiers
	}
	if err := b.openTap(t); err != nil {
		return err
	}
	if err := b.makeProxy(t, sb, certs); err != nil {
		return err
	}
	g := &greeter{keeper: b.keeper, store: b.store, proxy: b.proxy, judge: b.judge,
		limit: cfg.Failover.ProbeTimeout.D(), log: log}
	b.tasks = append(b.tasks,
		task{"failover", b.keeper.Run, b.keeper.Ready()},
		task{"mirror", b.mirror.Run, nil},
		task{"first copy", b.seed, nil},
		task{"probes", b.judge.prober.Run, nil},
		task{"verifiers", learner.run, nil},
		task{"transactions", b.cache.Run, nil},
		task{"losses", losses.run, nil},
		task{"introduction", g.introduce, nil},
		task{"greeting", g.save, nil})
	b.makeMail()
	if b.port != nil {
		b.tasks = append(b.tasks, task{"mirror port", b.port.run, nil})
	}
	b.service = &service{cfg: cfg, keeper: b.keeper, store: b.store, vault: verifiers, mirror: b.mirror, cache: b.cache,
		actor: b.actor, losses: losses, judge: b.judge, wire: b.wire, port: b.port}
	return g.load()
}

// standby makes what answers in production's place.
func (b *Box) standby(v *vault.Vault) standby {
	cfg := b.opt.Config
	sb := standby{vault: v, store: b.store, names: b.production.names}
	host := cfg.Hostname
	if host == "" {
		host, _ = os.Hostname()
	}
	b.smtp = smtpd.New(smtpd.Options{Store: b.store, NewSpool: b.newSpool, Hostname: host,
		Local: b.local, Check: sb.check, MaxSize: cfg.Listen.MaxMessage, Log: b.opt.Log})
	sb.smtp = b.smtp
	sb.imap = imapd.New(imapd.Options{Store: b.store, Log: b.opt.Log, MaxMessage: cfg.Listen.MaxMessage})
	return sb
}

// makeKeeper makes the owner of the failover state, and what acts for it.
func (b *Box) makeKeeper(l *losses) (err error) {
	f := b.opt.Config.Failover
	copier := copyback.New(copyback.Options{Store: b.store, Ledgers: b.store, Messages: b.store.Blobs,
		Dial: b.production.DialMaster, Log: b.opt.Log, Lacked: l.lacked})
	b.actor = newActor(actor{wire: b.wire, store: b.store, mirror: b.mirror, copier: copier, fence: f.FenceCommand,
		log: b.opt.Log})
	b.keeper, err = keeper.New(keeper.Options{Actor: b.actor, Log: b.opt.Log,
		Limits: failover.Limits{Mode: failover.Mode(f.Mode), Hold: f.Hold.D(), HoldSilent: f.HoldSilent.D(),
			ReturnProbes: f.ReturnProbes,
			AutoHandback: f.AutoHandback, Cooldown: f.Cooldown.D()},
		Load: func(s *failover.State) (bool, error) { return b.store.LoadJSON("failover", s) },
		Save: func(ctx context.Context, s failover.State) error {
			return b.store.SaveState(ctx, "failover", s, s.Epoch)
		}})
	return err
}

func (b *Box) makeProxy(t tap, sb standby, certs *proxy.Certificates) (err error) {
	cfg := b.opt.Config
	po := proxy.Options{Gate: gate{b.keeper, b.store, b.production.names}, Target: b.production.target,
		NewSpool: b.newSpool, Log: b.opt.Log,
		PlainOK: cfg.Listen.PlainLogin, MaxSessions: cfg.Listen.MaxSessions, MaxMessage: cfg.Listen.MaxMessage,
		IMAP: imap.Options{Standby: sb, Logins: t, Replica: t, Changes: t, Mailboxes: t, Caps: imapd.Caps(),
			Master: b.production.masterLogin},
		SMTP: smtp.Options{Standby: sb, Logins: t, Arrivals: t, Senders: t}}
	if certs != nil {
		po.TLS = certs.Config()
	}
	b.proxy, err = proxy.New(po)
	return err
}

// makeMail makes what handles mail that is held or queued.
func (b *Box) makeMail() {
	cfg, log := b.opt.Config, b.opt.Log
	in := newDeliverer(b.keeper, b.store, b.smtp, log)
	out := &outgoing{cfg: cfg, production: b.production, keeper: b.keeper, store: b.store, mirror: b.mirror,
		smtp: b.smtp, actor: b.actor, log: log,
		went: make(chan struct{}, 1), held: make(chan struct{}, 1)}
	old := &expiry{store: b.store, holdFor: cfg.Standby.HoldFor.D(), log: log}
	b.tasks = append(b.tasks,
		task{"deliveries", in.run, nil},
		task{"outgoing mail", out.run, nil},
		task{"expiry", old.run, nil},
		hear("held mail", b.store.HeldChanged(), in.held, out.held),
		hear("accounts that came", b.actor.came, in.came),
		hear("accounts that went", b.actor.went, out.went))
}

// seed tells the failover when the replica holds everything.
func (b *Box) seed(ctx context.Context) error {
	select {
	case <-b.mirror.Seeded():
		b.keeper.Tell(failover.Happened{Event: failover.Seeded})
	case <-ctx.Done():
	}
	return nil
}

// Close closes the replica, and leaves the wire as it is.
func (b *Box) Close() error {
	err := b.store.Close()
	if b.wire != nil {
		err = errors.Join(err, b.wire.Close())
	}
	return err
}
