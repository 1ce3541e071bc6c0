// Package maild is a mail server from the standby's engines on a store of its own,
// with fixed users: the production of the demonstration, where it is a process of
// its own, and of the simulation, where its connections are pipes.
//
// Implementation notes. A proxy that never has another upstream is its front, so it
// refuses, limits and greets like one. Nothing is behind it, and nothing is kept
// but the store: who opens its directory again after a kill goes on.
package maild

import (
	"context"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net"
	"strings"

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

// maxMessage is the size of the largest message that is taken, in bytes.
const maxMessage = 50 << 20

// Options of New.
type Options struct {
	Dir            string
	Domain         string            // all addresses of it are local
	Users          map[string]string // with their passwords
	Master         string            // may log in as any of them
	MasterPassword string
	Greeting       string
	Log            *slog.Logger
}

// Server is one such server.
type Server struct {
	opt   Options
	mail  *replica.Replica
	imap  *imapd.Server
	smtp  *smtpd.Server
	front *proxy.Proxy
}

// New opens the store, adds accounts that are not there, and delivers what was
// accepted and not delivered when it ended.
func New(ctx context.Context, o Options) (*Server, error) {
	mail, err := replica.Open(replica.Options{Dir: o.Dir, Primary: true, FoldCase: true})
	if err != nil {
		return nil, err
	}
	s := &Server{opt: o, mail: mail}
	if err := s.assemble(ctx); err != nil {
		return nil, errors.Join(err, mail.Close())
	}
	return s, nil
}

func (s *Server) assemble(ctx context.Context) (err error) {
	for user := range s.opt.Users {
		if err := s.ensure(ctx, user); err != nil {
			return err
		}
	}
	s.imap = imapd.New(imapd.Options{Store: s.mail, Log: s.opt.Log})
	s.smtp = smtpd.New(smtpd.Options{Store: s.mail, NewSpool: s.spool, Hostname: "mail." + s.opt.Domain,
		MaxSize: maxMessage, Log: s.opt.Log,
		Local: func(addr string) bool { return strings.HasSuffix(strings.ToLower(addr), "@"+s.opt.Domain) },
		Check: func(user, password string) (string, error) {
			return s.Authenticate(ctx, seam.Login{User: user, AuthUser: user, Password: password})
		}})
	s.smtp.Replay(ctx)
	s.front, err = proxy.New(proxy.Options{Gate: s, NewSpool: s.spool, PlainOK: true, Log: s.opt.Log,
		IMAP: imap.Options{Standby: s, Caps: imapd.Caps()}, SMTP: smtp.Options{Standby: s}})
	if err != nil {
		return err
	}
	s.front.Greet(seam.Greeting{Text: s.opt.Greeting, Auth: []string{"AUTH=PLAIN", "AUTH=LOGIN"}})
	return nil
}

// ensure makes a user's account with an INBOX.
func (s *Server) ensure(ctx context.Context, user string) error {
	if _, err := s.mail.EnsureAccount(ctx, user, row.Standby); err != nil {
		return err
	}
	err := s.mail.Create(ctx, user, "INBOX", nil)
	if errors.Is(err, store.ErrExists) {
		return nil
	}
	return err
}

func (s *Server) spool() row.Spool { return s.mail.Blobs.Spool() }

// Mail is the store.
func (s *Server) Mail() *replica.Replica { return s.mail }

// Serve takes connections until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener, kind proxy.Kind) error {
	return s.front.Serve(ctx, l, kind)
}

// ServeConn serves one connection.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn, kind proxy.Kind) {
	s.front.ServeConn(ctx, conn, kind)
}

// Close closes the store; no connection may be served any more.
func (s *Server) Close() error { return s.mail.Close() }

// Enter implements seam.Gate: there is nothing behind it.
func (s *Server) Enter(context.Context, string) (seam.Lease, error) {
	return seam.Lease{Side: seam.Standby, Revoked: make(chan struct{}), Release: func() {}}, nil
}

// Trouble implements seam.Gate.
func (s *Server) Trouble(error) {}

// Authenticate knows the users and the master.
func (s *Server) Authenticate(_ context.Context, l seam.Login) (string, error) {
	want := s.opt.Users[l.User]
	if l.AuthUser == s.opt.Master && l.User != l.AuthUser {
		want = s.opt.MasterPassword
	} else if l.User != l.AuthUser {
		return "", seam.ErrDenied
	}
	_, ok := s.opt.Users[l.User]
	if !ok || l.Token() || subtle.ConstantTimeCompare([]byte(want), []byte(l.Password)) != 1 {
		return "", seam.ErrDenied
	}
	return l.User, nil
}

// ServeIMAP implements the proxy's standby.
func (s *Server) ServeIMAP(ctx context.Context, conn net.Conn, account string, caps []string) error {
	return s.imap.ServeConn(ctx, conn, imapd.Session{User: account, Caps: caps})
}

// NewSMTP implements the proxy's standby.
func (s *Server) NewSMTP(ctx context.Context, c seam.Client) smtp.Upstream {
	return box.SMTPUpstream{Session: s.smtp.Session(ctx, c.Addr.String(), c.Submission)}
}
