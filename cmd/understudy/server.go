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
	"understudy/replica"
	"understudy/replica/row"
	"understudy/replica/store"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
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
			return p.Authenticate(e.ctx, proxy.Login{User: user, AuthUser: user, Password: pw})
		}})
	p.smtp.Replay(e.ctx)
	front, err := proxy.New(proxy.Options{Gate: p, Tap: p, IMAP: p, SMTP: p, Caps: imapd.Caps(), PlainOK: true, Log: log})
	if err != nil {
		return err
	}
	front.Greet(proxy.Greeting{Text: "Demonstration server ready.", Auth: []string{"AUTH=PLAIN", "AUTH=LOGIN"}})
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

func (p *primary) Enter(context.Context, string) (proxy.Lease, error) {
	return proxy.Lease{Side: proxy.Standby, Revoked: make(chan struct{}), Release: func() {}}, nil
}
func (p *primary) Trouble(error) {}

func (p *primary) Authenticate(_ context.Context, l proxy.Login) (string, error) {
	want := p.d.Users[l.User]
	if l.AuthUser == p.d.Master && l.User != l.AuthUser {
		want = p.d.MasterPassword
	} else if l.User != l.AuthUser {
		return "", proxy.ErrDenied
	}
	if _, ok := p.d.Users[l.User]; !ok || l.Token() || subtle.ConstantTimeCompare([]byte(want), []byte(l.Password)) != 1 {
		return "", proxy.ErrDenied
	}
	return l.User, nil
}

func (p *primary) ServeIMAP(ctx context.Context, conn net.Conn, account string, caps []string) error {
	return p.imap.ServeConn(ctx, conn, imapd.Session{User: account, Caps: caps})
}

func (p *primary) NewSMTP(ctx context.Context, c proxy.Client) proxy.SMTPUpstream {
	return box.SMTPUpstream{Session: p.smtp.Session(ctx, c.Addr.String(), c.Submission)}
}

func (p *primary) NewSpool() row.Spool { return p.store.Blobs.Spool() }

// The rest of proxy.Tap tells nothing: no session has another upstream.

func (p *primary) LoggedIn(context.Context, proxy.Login) (string, error)           { return "", nil }
func (p *primary) Denied(proxy.Login)                                              {}
func (p *primary) Mark(string, string) uint32                                      { return 0 }
func (p *primary) Changes(string, string, uint64, []uint32) []row.FlagsOf          { return nil }
func (p *primary) Known(string, string) *row.Snapshot                              { return nil }
func (p *primary) Unanswered(string, *imapsession.Cmd)                             {}
func (p *primary) Asking(string, *imapsession.Cmd) func()                          { return nil }
func (p *primary) Hint(string, string)                                             {}
func (p *primary) Follow(context.Context, string, string)                          {}
func (p *primary) Virtual(string, string) uint32                                   { return 0 }
func (p *primary) Arriving(context.Context, row.Envelope, row.Spool) proxy.Arrival { return nil }
func (p *primary) Taking(row.Envelope, row.Spool) func(bool)                       { return func(bool) {} }
func (p *primary) Repeated(context.Context, row.Envelope, row.Spool) (bool, error) {
	return false, nil
}
func (p *primary) Settle(context.Context, string, *imapsession.Cmd, imapwire.Response, row.Spool) error {
	return nil
}
func (p *primary) Outcome(context.Context, string, *imapsession.Cmd, row.Spool, proxy.Side) (string, bool, error) {
	return "", false, nil
}
