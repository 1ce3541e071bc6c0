// Package hosts makes hosts of network namespaces, joined by virtual cables and
// switches, for tests of what crosses a network. Namespaces have no names and no
// mounts, and go with the process.
package hosts

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is one host.
type Host struct {
	Name string
	ns   netns.NsHandle
	nl   *netlink.Handle
}

// New makes a host without interfaces.
func New(name string) (*Host, error) {
	h := &Host{Name: name}
	err := thread(func() error {
		var err error
		if h.ns, err = netns.New(); err != nil {
			return fmt.Errorf("namespace for %s: %w (root, or a user namespace, is needed)", name, err)
		}
		if h.nl, err = netlink.NewHandleAt(h.ns); err != nil {
			return err
		}
		lo, err := h.nl.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.nl.LinkSetUp(lo)
	})
	return h, err
}

// thread runs f on a thread of its own, which ends with it.
func thread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is not used again
		done <- f()
	}()
	return <-done
}

// Close forgets the host.
func (h *Host) Close() {
	h.nl.Close()
	_ = h.ns.Close()
}

// Do runs f on the host. Goroutines that it starts run elsewhere.
func (h *Host) Do(f func() error) error {
	return thread(func() error {
		if err := netns.Set(h.ns); err != nil {
			return err
		}
		return f()
	})
}

// Start starts a process on the host.
func (h *Host) Start(c *exec.Cmd) error { return h.Do(c.Start) }

// Dial connects from the host. addr is a literal address with port.
func (h *Host) Dial(ctx context.Context, addr string) (conn net.Conn, err error) {
	err = h.Do(func() error {
		d := net.Dialer{}
		d.SetMultipathTCP(false)
		conn, err = d.DialContext(ctx, "tcp", addr)
		return err
	})
	return conn, err
}

// Listen listens on the host.
func (h *Host) Listen(addr string) (l net.Listener, err error) {
	err = h.Do(func() error {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		l, err = lc.Listen(context.Background(), "tcp", addr)
		return err
	})
	return l, err
}

// Cable joins two hosts: each gets an interface of the name.
func Cable(a *Host, an string, b *Host, bn string) error {
	la := netlink.NewLinkAttrs()
	la.Name = an
	v := &netlink.Veth{LinkAttrs: la, PeerName: bn, PeerNamespace: netlink.NsFd(b.ns)}
	if err := a.nl.LinkAdd(v); err != nil {
		return fmt.Errorf("cable %s %s - %s %s: %w", a.Name, an, b.Name, bn, err)
	}
	return errors.Join(a.Up(an, true), b.Up(bn, true))
}

// Up sets an interface up or down; the peer loses its carrier.
func (h *Host) Up(name string, up bool) error {
	l, err := h.nl.LinkByName(name)
	if err != nil {
		return err
	}
	if up {
		return h.nl.LinkSetUp(l)
	}
	return h.nl.LinkSetDown(l)
}

// Switch makes the host a switch of ports.
func (h *Host) Switch(ports ...string) error {
	off := false
	la := netlink.NewLinkAttrs()
	la.Name = "switch"
	br := &netlink.Bridge{LinkAttrs: la, MulticastSnooping: &off}
	return errors.Join(h.nl.LinkAdd(br), h.Join(ports...), h.nl.LinkSetUp(br))
}

// Addr gives an interface addresses; dad: IPv6 ones are tried for duplicates.
func (h *Host) Addr(name string, dad bool, addrs ...string) error {
	l, err := h.nl.LinkByName(name)
	if err != nil {
		return err
	}
	for _, t := range addrs {
		a, err := netlink.ParseAddr(t)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil && !dad {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.nl.AddrReplace(l, a); err != nil {
			return fmt.Errorf("%s: address %s: %w", h.Name, t, err)
		}
	}
	return nil
}

// Tentative tells whether an address failed, or has not ended, its duplicate
// address detection.
func (h *Host) Tentative(name, addr string) (failed, pending bool, err error) {
	l, err := h.nl.LinkByName(name)
	if err != nil {
		return false, false, err
	}
	list, err := h.nl.AddrList(l, netlink.FAMILY_V6)
	for _, a := range list {
		if a.IP.String() == addr {
			return a.Flags&unix.IFA_F_DADFAILED != 0, a.Flags&unix.IFA_F_TENTATIVE != 0, nil
		}
	}
	return false, false, errors.Join(err, fmt.Errorf("%s has no %s", name, addr))
}

// Route adds a route; dst is "" for all of via's family.
func (h *Host) Route(dst, via string) error {
	gw := netip.MustParseAddr(via)
	r := &netlink.Route{Gw: gw.AsSlice()}
	if dst == "" {
		dst = "0.0.0.0/0"
		if gw.Is6() {
			dst = "::/0"
		}
	}
	_, n, err := net.ParseCIDR(dst)
	if err != nil {
		return err
	}
	r.Dst = n
	return h.nl.RouteReplace(r)
}

// Sysctl sets a value below /proc/sys.
func (h *Host) Sysctl(path, value string) error {
	return h.Do(func() error { return os.WriteFile("/proc/sys/"+path, []byte(value), 0o644) })
}

// MAC is an interface's address.
func (h *Host) MAC(name string) net.HardwareAddr {
	l, err := h.nl.LinkByName(name)
	if err != nil {
		return nil
	}
	return l.Attrs().HardwareAddr
}

// SetMAC gives an interface another one; it has to be down.
func (h *Host) SetMAC(name string, mac net.HardwareAddr) error {
	l, err := h.nl.LinkByName(name)
	if err != nil {
		return err
	}
	return h.nl.LinkSetHardwareAddr(l, mac)
}

// Forget empties the host's knowledge of its neighbours.
func (h *Host) Forget(name string) error {
	l, err := h.nl.LinkByName(name)
	if err != nil {
		return err
	}
	list, err := h.nl.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
	for _, n := range list {
		if n.State&netlink.NUD_PERMANENT == 0 && n.State&netlink.NUD_NOARP == 0 {
			_ = h.nl.NeighDel(&n)
		}
	}
	return err
}

// Neighbour is the hardware address that the host has for an address.
func (h *Host) Neighbour(name, addr string) string {
	l, err := h.nl.LinkByName(name)
	if err != nil {
		return ""
	}
	list, _ := h.nl.NeighList(l.Attrs().Index, netlink.FAMILY_ALL)
	for _, n := range list {
		if n.IP.String() == addr &&
			n.State&(netlink.NUD_REACHABLE|netlink.NUD_STALE|netlink.NUD_DELAY|netlink.NUD_PROBE) != 0 {
			return n.HardwareAddr.String()
		}
	}
	return ""
}

// Frame is a captured frame.
type Frame struct {
	At   time.Time
	Data []byte
}

// Capture is a running capture.
type Capture struct {
	mu     sync.Mutex
	frames []Frame
	file   *os.File
	done   chan struct{}
}

// Capture records the frames that arrive at an interface, each cut to 256 bytes.
func (h *Host) Capture(name string) (*Capture, error) {
	c := &Capture{done: make(chan struct{})}
	err := h.Do(func() error {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		c.file = os.NewFile(uintptr(fd), "capture")
		_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
			&unix.PacketMreq{Ifindex: int32(ifi.Index), Type: unix.PACKET_MR_PROMISC}); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_ALL << 8, Ifindex: ifi.Index})
	})
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(c.done)
		buf := make([]byte, 70000)
		for {
			n, err := c.file.Read(buf)
			if err != nil {
				return
			}
			c.mu.Lock()
			c.frames = append(c.frames, Frame{time.Now(), append([]byte(nil), buf[:min(n, 256)]...)})
			c.mu.Unlock()
		}
	}()
	return c, nil
}

// Frames are those captured so far.
func (c *Capture) Frames() []Frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Frame(nil), c.frames...)
}

// Stop ends the capture and returns all of it.
func (c *Capture) Stop() []Frame {
	_ = c.file.Close()
	<-c.done
	return c.Frames()
}

// Send sends a frame out of an interface, as it is.
func (h *Host) Send(name string, frame []byte) error {
	return h.Do(func() error {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: ifi.Index})
	})
}

// Unplug removes an interface of the host, and with it its routes.
func (h *Host) Unplug(name string) error {
	l, err := h.nl.LinkByName(name)
	if err != nil {
		return err
	}
	return h.nl.LinkDel(l)
}

// MTU sets the longest packet that leaves by an interface.
func (h *Host) MTU(name string, bytes int) error {
	l, err := h.nl.LinkByName(name)
	if err != nil {
		return err
	}
	return h.nl.LinkSetMTU(l, bytes)
}

// Join plugs interfaces into the host's switch.
func (h *Host) Join(ports ...string) error {
	br, err := h.nl.LinkByName("switch")
	if err != nil {
		return err
	}
	for _, p := range ports {
		l, err := h.nl.LinkByName(p)
		if err != nil {
			return err
		}
		if err := h.nl.LinkSetMaster(l, br); err != nil {
			return err
		}
	}
	return nil
}

// Here is the host that this process runs on.
func Here(name string) (*Host, error) {
	ns, err := netns.Get()
	if err != nil {
		return nil, err
	}
	nl, err := netlink.NewHandleAt(ns)
	h := &Host{Name: name, ns: ns, nl: nl}
	if err != nil {
		return nil, err
	}
	return h, h.Up("lo", true)
}
