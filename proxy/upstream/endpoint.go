// Package upstream connects to production on behalf of a client: TLS, the PROXY
// protocol, XCLIENT, and the logins of IMAP and SMTP.
//
// Implementation notes. A connection to production is reset when it is closed,
// never closed in order: what the kernel has not got through by then must not
// arrive after somebody else was asked. A session's calls are made by one
// goroutine at a time; only Close may come from another.
package upstream

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"understudy/proxy/seam"
)

// Security is how a connection to production is protected.
type Security string

// The kinds of protection.
const (
	Plain    Security = "plain"
	StartTLS Security = "starttls"
	Implicit Security = "tls"
)

// Endpoint is one port of production.
type Endpoint struct {
	Addr     string // host:port
	Security Security
	TLS      *tls.Config // for the two that need it
	// Via makes the connection, on behalf of a client if there is one; nil is a
	// net.Dialer.
	Via func(ctx context.Context, c seam.Client, addr string) (net.Conn, error)
	// ProxyProtocol: send the client's address in a version 2 header first.
	ProxyProtocol bool
}

// Target is production.
type Target struct {
	IMAP, SMTP, Submission Endpoint
	// XClient: tell SMTP the client's address and name where it offers XCLIENT.
	XClient bool
	// ClientID: tell IMAP the client's address by ID (x-originating-ip), which
	// Dovecot believes of its login_trusted_networks.
	ClientID bool
	// Timeout to connect, and of each step up to the login; 0 is 10 s.
	Timeout time.Duration
}

func (t Target) timeout() time.Duration {
	if t.Timeout == 0 {
		return 10 * time.Second
	}
	return t.Timeout
}

// Dial connects as the box itself.
func (e Endpoint) Dial(ctx context.Context) (net.Conn, error) { return e.dial(ctx, seam.Client{}) }

// dial connects, with TLS if implicit, and sends the PROXY header.
func (e Endpoint) dial(ctx context.Context, c seam.Client) (net.Conn, error) {
	via := e.Via
	if via == nil {
		d := net.Dialer{}
		d.SetMultipathTCP(false)
		via = func(ctx context.Context, _ seam.Client, addr string) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	conn, err := via(ctx, c, e.Addr)
	if err != nil {
		return nil, fmt.Errorf("production: %w", err)
	}
	// Whoever gives a connection up asks somebody else: what the kernel has not
	// got through by then must not arrive later.
	if l, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	if e.ProxyProtocol {
		if _, err := conn.Write(proxyHeader(c)); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("production: %w", err)
		}
	}
	if e.Security == Implicit {
		return e.secure(ctx, conn)
	}
	return conn, nil
}

func (e Endpoint) secure(ctx context.Context, conn net.Conn) (net.Conn, error) {
	t := tls.Client(conn, e.TLS)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("TLS with production at %s: %w", e.Addr, err)
	}
	return t, nil
}

// LeaseContext ends when the lease is revoked. Its cancel function must be called.
func LeaseContext(ctx context.Context, l seam.Lease) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-l.Revoked:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		cancel()
		wg.Wait()
	}
}
