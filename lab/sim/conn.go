package sim

import (
	"context"
	"errors"
	"net"
	"strings"

	"understudy/proxy"
)

var errRefused = errors.New("connection refused")

// kindOf is what an address is for: host:port of production, or a name of the box's.
func kindOf(addr string) proxy.Kind {
	switch {
	case addr == "submission":
		return proxy.Submission
	case addr == "smtp", strings.HasSuffix(addr, ":25"):
		return proxy.SMTP
	}
	return proxy.IMAP
}

// direct connects to production.
func (w *world) direct(_ context.Context, addr string) (net.Conn, error) {
	w.mu.Lock()
	s := w.prod
	w.mu.Unlock()
	if s == nil {
		return nil, errRefused
	}
	near, far := net.Pipe()
	g := newGated(far, w)
	s.mu.Lock()
	s.gates = append(s.gates, g)
	s.mu.Unlock()
	s.g.Go(func() error {
		g.deliver()
		return nil
	})
	s.g.Go(func() error {
		s.ServeConn(s.ctx, g, kindOf(addr))
		return nil
	})
	return near, nil
}

// toBox connects a client to the Understudy.
func (w *world) toBox(_ context.Context, addr string) (net.Conn, error) {
	b := w.living()
	if b == nil {
		return nil, errRefused
	}
	near, far := net.Pipe()
	if !b.holds(far) {
		return nil, errRefused
	}
	b.g.Go(func() error {
		b.Proxy().ServeConn(b.ctx, far, kindOf(addr))
		return nil
	})
	return near, nil
}
