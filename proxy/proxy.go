// Package proxy stands between clients and the mail server: it accepts, ends TLS,
// bounds how many sessions there are, and gives each connection to the server of
// its protocol.
//
// Implementation notes. A session is served by package imap or smtp below this
// one, which log in on behalf of the client and move what is said both ways while
// the transaction cache looks on. Import order: proxy → imap, smtp → login,
// upstream → seam. Serve returns when all its sessions are gone.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy/proxy/imap"
	"understudy/proxy/seam"
	"understudy/proxy/smtp"
	"understudy/proxy/upstream"
	"understudy/replica/row"
)

// Options of New. What is named here goes to both protocols; IMAP and SMTP hold
// the rest.
type Options struct {
	Gate     seam.Gate
	Target   upstream.Target
	NewSpool func() row.Spool // begins to keep a message that a client sends
	TLS      *tls.Config      // nil: no TLS towards clients
	PlainOK  bool             // logins without TLS are allowed
	Log      *slog.Logger
	// Timeout of an idle session before login; 0 is 3 minutes.
	Timeout time.Duration
	// MaxSessions is the number of open sessions; 0 is 10,000.
	MaxSessions int
	// MaxMessage in bytes; 0 is 50 MiB.
	MaxMessage int64
	IMAP       imap.Options
	SMTP       smtp.Options
}

// Proxy serves listeners.
type Proxy struct {
	opt   Options
	slots chan struct{}
	imap  *imap.Server
	smtp  *smtp.Server
}

// New checks the options.
func New(o Options) (*Proxy, error) {
	if o.MaxSessions == 0 {
		o.MaxSessions = 10_000
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{opt: o, slots: make(chan struct{}, o.MaxSessions)}
	var startTLS func(context.Context, net.Conn) (net.Conn, error)
	if o.TLS != nil {
		startTLS = p.handshake
	}
	i, s := o.IMAP, o.SMTP
	i.Gate, i.Target, i.NewSpool, i.StartTLS = o.Gate, o.Target, o.NewSpool, startTLS
	i.PlainOK, i.Timeout, i.Log = o.PlainOK, o.Timeout, o.Log
	s.Gate, s.Target, s.NewSpool, s.StartTLS = o.Gate, o.Target, o.NewSpool, startTLS
	s.PlainOK, s.MaxMessage, s.Log = o.PlainOK, o.MaxMessage, o.Log
	var err error
	if p.imap, err = imap.New(i); err != nil {
		return nil, err
	}
	if p.smtp, err = smtp.New(s); err != nil {
		return nil, err
	}
	return p, nil
}

// Greet gives what was learned earlier of how production greets, so that it is
// shown before production was reached once.
func (p *Proxy) Greet(g seam.Greeting) { p.imap.Greet(g) }

// Greeting returns what was learned, to be kept.
func (p *Proxy) Greeting() seam.Greeting { return p.imap.Greeting() }

// GreetingChanged is rung when something new was learned of it. It is for one
// listener.
func (p *Proxy) GreetingChanged() <-chan struct{} { return p.imap.GreetingChanged() }

// Introduce asks production how it greets, so that already the first client is
// greeted alike. It does nothing if that is known.
func (p *Proxy) Introduce(ctx context.Context) error { return p.imap.Introduce(ctx) }

// Kind is what a listener serves.
type Kind uint8

// The kinds of listener.
const (
	IMAP Kind = iota
	IMAPS
	SMTP
	Submission
	Submissions
)

// Serve accepts connections until ctx ends, and returns when all its sessions
// are gone.
func (p *Proxy) Serve(ctx context.Context, l net.Listener, kind Kind) error {
	var g errgroup.Group
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return g.Wait()
		}
		if err != nil {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() || temporary(err) {
				p.opt.Log.Warn("accept", "err", err)
				time.Sleep(50 * time.Millisecond)
				continue
			}
			return errors.Join(fmt.Errorf("accept on %s: %w", l.Addr(), err), g.Wait())
		}
		select {
		case p.slots <- struct{}{}:
		default:
			p.opt.Log.Warn("too many sessions", "limit", p.opt.MaxSessions, "client", conn.RemoteAddr())
			_ = conn.Close()
			continue
		}
		g.Go(func() error {
			defer func() { <-p.slots }()
			p.ServeConn(ctx, conn, kind)
			return nil
		})
	}
}

// temporary: running out of file descriptors passes.
func temporary(err error) bool {
	var se *os.SyscallError
	return errors.As(err, &se)
}

// ServeConn serves one client and closes its connection.
func (p *Proxy) ServeConn(ctx context.Context, conn net.Conn, kind Kind) {
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	if tc, ok := conn.(*net.TCPConn); ok {
		_ = tc.SetNoDelay(true)
	}
	client := conn
	if kind == IMAPS || kind == Submissions {
		t, err := p.handshake(ctx, conn)
		if err != nil {
			p.opt.Log.Debug("TLS", "client", conn.RemoteAddr(), "err", err)
			return
		}
		client = t
	}
	who := seam.Client{Addr: addrPort(conn.RemoteAddr()), Local: addrPort(conn.LocalAddr()),
		TLS: kind == IMAPS || kind == Submissions, Submission: kind == Submission || kind == Submissions}
	switch kind {
	case IMAP, IMAPS:
		p.imap.ServeConn(ctx, client, who)
	default:
		p.smtp.ServeConn(ctx, client, who)
	}
}

// addrPort is an end of a TCP connection, IPv4 as such.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

var errNoTLS = errors.New("no certificate is configured")

func (p *Proxy) handshake(ctx context.Context, conn net.Conn) (net.Conn, error) {
	if p.opt.TLS == nil {
		return nil, errNoTLS
	}
	t := tls.Server(conn, p.opt.TLS)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return t, nil
}
