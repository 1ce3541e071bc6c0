package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"understudy/console/api"
	"understudy/failover"
	"understudy/proxy"
	"understudy/proxy/inline"
	"understudy/replica/row"
	"understudy/snoop/capture"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// mirrorPort feeds what passes a switch's mirror port to the transaction cache.
type mirrorPort struct {
	a   *app
	tap *capture.Tap
	src *inline.Mirror

	mu    sync.Mutex
	sweep map[string]bool // accounts to be read; "" is all
}

// openTap opens the mirror port, if there is one.
func (a *app) openTap(t tap) error {
	if a.cfg.Network.Tap == "" {
		return nil
	}
	s, err := wireSite(a.cfg)
	if err != nil && a.cfg.Network.Mode != "proxy" {
		return err
	}
	m := &mirrorPort{a: a, sweep: map[string]bool{}}
	o := capture.Options{Addrs: s.Addrs, Ports: map[uint16]capture.Kind{}, Log: a.log,
		NewSpool: a.newSpool, Hint: a.mirror.Hint, Sweep: m.order,
		LoggedIn: func(ctx context.Context, l capture.Login) (string, error) {
			return t.LoggedIn(ctx, proxy.Login{User: l.User, AuthUser: l.AuthUser, Password: l.Password})
		},
		Settle: func(ctx context.Context, account string, c *imapsession.Cmd, ok imapwire.Response, sp row.Spool) error {
			if !a.following() {
				return nil
			}
			return a.cache.Settle(ctx, account, c, ok, sp)
		},
		Accepted: func(ctx context.Context, e row.Envelope, sp row.Spool) error {
			if !a.following() {
				return nil
			}
			return a.cache.Overheard(ctx, e, sp)
		}}
	kinds := map[string]capture.Kind{"imap": capture.IMAP, "smtp": capture.SMTP, "submission": capture.SMTP, "imaps": capture.TLS, "submissions": capture.TLS}
	for _, p := range s.Ports {
		o.Ports[p.Port] = kinds[p.Name]
	}
	for _, e := range []struct {
		addr string
		tls  bool
		kind capture.Kind
	}{{a.cfg.Production.IMAP, a.cfg.Production.IMAPSecurity == "tls", capture.IMAP}, {a.cfg.Production.SMTP, a.cfg.Production.SMTPSecurity == "tls", capture.SMTP},
		{a.cfg.Production.Submission, a.cfg.Production.SubmissionSecurity == "tls", capture.SMTP}} {
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
	if m.src, err = inline.OpenMirror(a.cfg.Network.Tap); err != nil {
		return err
	}
	o.Source = m.src
	if m.tap, err = capture.New(o); err != nil {
		return errors.Join(err, m.src.Close())
	}
	a.mirrorPort = m
	return nil
}

// following reports whether what production accepts is followed.
func (a *app) following() bool {
	p := a.keeper.State().Phase
	return p == failover.Protecting || p == failover.Seeding
}

// order has an account read soon.
func (m *mirrorPort) order(account string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweep[account] = true
}

// run follows the port, and reads what it could not tell.
func (m *mirrorPort) run(ctx context.Context) error {
	done := make(chan error, 1)
	go func() { done <- m.tap.Run(ctx) }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return errors.Join(err, m.src.Close())
		case <-tick.C:
		}
		m.mu.Lock()
		var accounts []string
		all := m.sweep[""]
		for a := range m.sweep {
			accounts = append(accounts, a)
		}
		clear(m.sweep)
		m.mu.Unlock()
		if len(accounts) == 0 || !m.a.following() {
			continue
		}
		if all {
			accounts = nil
		}
		if err := m.a.mirror.SyncAll(ctx, "mirror-port", accounts); err != nil && ctx.Err() == nil {
			m.a.log.Warn("read what the mirror port did not tell", "err", err)
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
