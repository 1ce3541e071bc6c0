package main

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"understudy/cmd/box"
	"understudy/failover/imapd"
	"understudy/failover/smtpd"
	"understudy/proxy"
	"understudy/proxy/imap"
	"understudy/proxy/seam"
	"understudy/proxy/smtp"
	"understudy/replica"
	"understudy/replica/row"
	"understudy/replica/store"
)

// demoSite is the settings of the demonstration's mail server.
type demoSite struct {
	Dir, IMAP, SMTP string
	Domain          string
	Users           map[string]string // with their passwords
	Master          string
	MasterPassword  string
}

// demoServer runs a mail server of the demonstration: the standby's engine on a
// store of its own, with fixed users. It is a process of its own, on disk, so
// that it can be killed.
func demoServer(e env) error {
	fs := e.flags("server", "")
	path := fs.String("site", "", "file with the site's settings, as the demonstration writes it")
	if err := e.parse(fs, 0); err != nil {
		return err
	}
	b, err := os.ReadFile(*path)
	if err != nil {
		return fmt.Errorf("site file: %w", err)
	}
	var d demoSite
	if err := json.Unmarshal(b, &d); err != nil {
		return fmt.Errorf("site file %s: %w", *path, err)
	}
	store, err := replica.Open(replica.Options{Dir: filepath.Join(d.Dir, "store"), Primary: true, FoldCase: true})
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	for u := range d.Users {
		if err := d.ensure(e.ctx, store, u); err != nil {
			return err
		}
	}
	log := newLog("warn", e.errOut)
	p := &primary{d: d, store: store}
	p.imap = imapd.New(imapd.Options{Store: store, Log: log})
	p.smtp = smtpd.New(smtpd.Options{Store: store, NewSpool: p.NewSpool, Hostname: "mail." + d.Domain, MaxSize: 50 << 20, Log: log,
		Local: func(addr string) bool { return strings.HasSuffix(strings.ToLower(addr), "@"+d.Domain) },
		Check: func(user, pw string) (string, error) {
			return p.Authenticate(e.ctx, seam.Login{User: user, AuthUser: user, Password: pw})
		}})
	p.smtp.Replay(e.ctx)
	front, err := proxy.New(proxy.Options{Gate: p, NewSpool: p.NewSpool, PlainOK: true, Log: log,
		IMAP: imap.Options{Standby: p, Caps: imapd.Caps()}, SMTP: smtp.Options{Standby: p}})
	if err != nil {
		return err
	}
	front.Greet(seam.Greeting{Text: "Demonstration server ready.", Auth: []string{"AUTH=PLAIN", "AUTH=LOGIN"}})
	g, ctx := errgroup.WithContext(e.ctx)
	for addr, kind := range map[string]proxy.Kind{d.IMAP: proxy.IMAP, d.SMTP: proxy.SMTP} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		g.Go(func() error { return front.Serve(ctx, l, kind) })
	}
	return g.Wait()
}

// ensure makes a user's account with an INBOX.
func (d demoSite) ensure(ctx context.Context, r *replica.Replica, user string) error {
	if _, err := r.EnsureAccount(ctx, user, row.Standby); err != nil {
		return err
	}
	err := r.Create(ctx, user, "INBOX", nil)
	if errors.Is(err, store.ErrExists) {
		return nil
	}
	return err
}

// primary serves everything itself: there is nothing behind it.
type primary struct {
	d     demoSite
	store *replica.Replica
	imap  *imapd.Server
	smtp  *smtpd.Server
}

func (p *primary) Enter(context.Context, string) (seam.Lease, error) {
	return seam.Lease{Side: seam.Standby, Revoked: make(chan struct{}), Release: func() {}}, nil
}
func (p *primary) Trouble(error) {}

func (p *primary) Authenticate(_ context.Context, l seam.Login) (string, error) {
	want := p.d.Users[l.User]
	if l.AuthUser == p.d.Master && l.User != l.AuthUser {
		want = p.d.MasterPassword
	} else if l.User != l.AuthUser {
		return "", seam.ErrDenied
	}
	if _, ok := p.d.Users[l.User]; !ok || l.Token() || subtle.ConstantTimeCompare([]byte(want), []byte(l.Password)) != 1 {
		return "", seam.ErrDenied
	}
	return l.User, nil
}

func (p *primary) ServeIMAP(ctx context.Context, conn net.Conn, account string, caps []string) error {
	return p.imap.ServeConn(ctx, conn, imapd.Session{User: account, Caps: caps})
}

func (p *primary) NewSMTP(ctx context.Context, c seam.Client) smtp.Upstream {
	return box.SMTPUpstream{Session: p.smtp.Session(ctx, c.Addr.String(), c.Submission)}
}

func (p *primary) NewSpool() row.Spool { return p.store.Blobs.Spool() }
