package box

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy/console/api"
	"understudy/failover"
	"understudy/failover/keeper"
	"understudy/proxy/inline"
	"understudy/proxy/seam"
	"understudy/replica/mirror"
	"understudy/replica/row"
	"understudy/snoop/capture"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// mirrorPort feeds what passes a switch's mirror port to the transaction cache.
type mirrorPort struct {
	keeper *keeper.Keeper
	mirror *mirror.Mirror
	log    *slog.Logger
	tap    *capture.Tap
	src    *inline.Mirror

	mu      sync.Mutex
	ordered chan struct{}   // rung when an account is to be read
	sweep   map[string]bool // accounts to be read; "" is all
}

// openTap opens the mirror port, if there is one.
func (b *Box) openTap(t tap) error {
	if b.opt.Config.Network.Tap == "" {
		return nil
	}
	s, err := WireSite(b.opt.Config)
	if err != nil && b.opt.Config.Network.Mode != "proxy" {
		return err
	}
	m := &mirrorPort{keeper: b.keeper, mirror: b.mirror, log: b.opt.Log, ordered: make(chan struct{}, 1),
		sweep: map[string]bool{}}
	o := capture.Options{Addrs: s.Addrs, Ports: map[uint16]capture.Kind{}, Log: b.opt.Log,
		NewSpool: b.newSpool, Hint: b.mirror.Hint, Sweep: m.order,
		LoggedIn: func(ctx context.Context, l capture.Login) (string, error) {
			return t.LoggedIn(ctx, seam.Login{User: l.User, AuthUser: l.AuthUser, Password: l.Password})
		},
		Settle: func(ctx context.Context, account string, ex *imapsession.Exchange, ok imapwire.Response) error {
			if !m.following() {
				return nil
			}
			return b.cache.Settle(ctx, account, ex, ok)
		},
		Accepted: func(ctx context.Context, e row.Envelope, sp row.Spool) error {
			if !m.following() {
				return nil
			}
			return b.cache.Overheard(ctx, e, sp)
		}}
	kinds := map[string]capture.Kind{"imap": capture.IMAP, "smtp": capture.SMTP, "submission": capture.SMTP,
		"imaps": capture.TLS, "submissions": capture.TLS}
	for _, p := range s.Ports {
		o.Ports[p.Port] = kinds[p.Name]
	}
	p := b.opt.Config.Production
	for _, e := range []struct {
		addr string
		tls  bool
		kind capture.Kind
	}{
		{p.IMAP, p.IMAPSecurity == "tls", capture.IMAP},
		{p.SMTP, p.SMTPSecurity == "tls", capture.SMTP},
		{p.Submission, p.SubmissionSecurity == "tls", capture.SMTP},
	} {
		ap, err := netip.ParseAddrPort(e.addr)
		if err != nil {
			continue
		}
		if e.tls {
			e.kind = capture.TLS
		}
		if o.Ports[ap.Port()] = e.kind; !slices.Contains(o.Addrs, ap.Addr().Unmap()) {
			o.Addrs = append(o.Addrs, ap.Addr().Unmap())
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, x := range addrs {
		if p, err := netip.ParsePrefix(x.String()); err == nil {
			o.Own = append(o.Own, p.Addr().Unmap())
		}
	}
	if m.src, err = inline.OpenMirror(b.opt.Config.Network.Tap); err != nil {
		return err
	}
	o.Source = m.src
	if m.tap, err = capture.New(o); err != nil {
		return errors.Join(err, m.src.Close())
	}
	b.port = m
	return nil
}

// following reports whether what production accepts is followed.
func (m *mirrorPort) following() bool {
	return m.keeper.State().Duties().Follow == failover.Believed
}

// order has an account read soon.
func (m *mirrorPort) order(account string) {
	m.mu.Lock()
	m.sweep[account] = true
	m.mu.Unlock()
	ring(m.ordered)
}

// orders takes the orders that were given; none are all accounts.
func (m *mirrorPort) orders() (accounts []string, any bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer clear(m.sweep)
	if m.sweep[""] {
		return nil, true
	}
	return slices.Collect(maps.Keys(m.sweep)), len(m.sweep) > 0
}

// gatherOrders is how long orders are gathered.
const gatherOrders = time.Second

// run follows the port, and reads what it could not tell.
func (m *mirrorPort) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return errors.Join(m.tap.Run(ctx), m.src.Close()) })
	g.Go(func() error { return m.read(ctx) })
	return g.Wait()
}

func (m *mirrorPort) read(ctx context.Context) error {
	for {
		select {
		case <-m.ordered:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-time.After(gatherOrders):
		case <-ctx.Done():
			return nil
		}
		accounts, any := m.orders()
		if !any || !m.following() {
			continue
		}
		if err := m.mirror.SyncAll(ctx, "mirror-port", accounts); err != nil && ctx.Err() == nil {
			m.log.Warn("read what the mirror port did not tell", "err", err)
		}
	}
}

func (m *mirrorPort) counts() *api.Tap {
	if m == nil {
		return nil
	}
	c := api.Tap(m.tap.Counts())
	return &c
}
