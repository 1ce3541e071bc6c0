package inline

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// transparent lets a socket have an address that is not this host's.
func transparent(network string, c syscall.RawConn) error {
	var err error
	e := c.Control(func(fd uintptr) {
		if network == "tcp6" {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
		}
	})
	return errors.Join(e, err)
}

// conn resets the client if the process is killed, and else closes in order. With
// both sides of a diverted connection on the same ports, orderly ends from a dead
// process would have the two peers answer each other without end. (Connections to
// production are reset in any case.)
type conn struct{ *net.TCPConn }

func hard(c net.Conn) net.Conn {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	_ = t.SetLinger(0)
	return conn{t}
}

// Close ends the connection with what was written before.
func (c conn) Close() error {
	_ = c.SetLinger(-1)
	return c.TCPConn.Close()
}

type listener struct {
	net.Listener
	addrs []netip.Addr // of production
}

// Accept returns a connection whose local address is production's. Others are
// from this machine itself, past the network.
func (l listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if at, ok := c.LocalAddr().(*net.TCPAddr); ok && slices.Contains(l.addrs, at.AddrPort().Addr().Unmap()) {
			return hard(c), nil
		}
		_ = c.Close()
	}
}

// listen opens a listener for diverted connections, on a port that the kernel
// chooses, reachable from nowhere else.
func listen(ctx context.Context, v6 bool, addrs []netip.Addr) (net.Listener, netip.AddrPort, error) {
	network, addr := "tcp4", "127.0.0.1:0"
	if v6 {
		network, addr = "tcp6", "[::1]:0"
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return transparent(network, c) }}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, network, addr)
	if err != nil {
		return nil, netip.AddrPort{},
			fmt.Errorf("listen for diverted connections: %w (IP_TRANSPARENT needs CAP_NET_ADMIN or CAP_NET_RAW)", err)
	}
	return listener{l, addrs}, l.Addr().(*net.TCPAddr).AddrPort(), nil
}

// dialAs connects with a client's address: with its port, too, unless that is
// still taken by an earlier connection.
func dialAs(ctx context.Context, client netip.AddrPort, to netip.AddrPort) (net.Conn, error) {
	network := "tcp4"
	if to.Addr().Is6() {
		network = "tcp6"
	}
	try := func(from netip.AddrPort) (net.Conn, error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), KeepAlive: 30 * time.Second,
			Control: func(_, _ string, c syscall.RawConn) error { return transparent(network, c) }}
		d.SetMultipathTCP(false)
		return d.DialContext(ctx, network, to.String())
	}
	c, err := try(client)
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EACCES) {
		c, err = try(netip.AddrPortFrom(client.Addr(), 0))
	}
	return c, err
}
