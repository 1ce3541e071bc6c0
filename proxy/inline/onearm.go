package inline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Beside production (one-arm) the box takes the address when production is gone,
// by telling the network that it is at the box's hardware address, and gives it
// back the same way. It cannot keep production from speaking.

// taken reports whether the address is here: in an outage, or because it was
// ordered, so that the box sees traffic and learns passwords. mu is held.
func (w *Wire) taken() bool { return w.site.OneArm && (w.site.Fenced || w.armed) }

// take takes the address. It is announced to all once; after that to each known
// host alone: production may come back, and a host that hears its own address
// from somebody else while it starts (RFC 5227, RFC 4862) gives it up. mu is held.
func (w *Wire) take() error {
	if w.site.MAC != nil {
		ifi, err := net.InterfaceByName(w.site.LAN)
		if err == nil {
			err = w.owner.remake(w.site.bounceTable(ifi.Index, w.lanMAC))
		}
		if err != nil {
			w.opt.Log.Error("pass other ports on to production", "err", err)
		}
	}
	for _, a := range w.site.Addrs {
		w.send(w.lan, claim(w.lanMAC, w.lanMAC, a, nil, netip.Addr{}))
	}
	w.tellAll(w.lanMAC)
	return nil
}

// giveBack says that the address is production's. mu is held.
func (w *Wire) giveBack() error {
	w.gives = 3
	w.give()
	return w.owner.drop(w.site.bounceTable(0, w.lanMAC))
}

// turn takes the address or gives it back, if what is wanted has changed. mu is
// held.
func (w *Wire) turn(change func()) error {
	before := w.taken()
	change()
	switch now := w.taken(); {
	case now && !before:
		return w.take()
	case before && !now:
		return w.giveBack()
	}
	return nil
}

// give announces production. The frames bear the box's own address, or switches
// would look for production here. mu is held.
func (w *Wire) give() {
	if w.site.MAC == nil {
		return
	}
	w.gives--
	for _, a := range w.site.Addrs {
		w.send(w.lan, claim(w.lanMAC, w.site.MAC, a, nil, netip.Addr{}))
	}
	w.tellAll(w.site.MAC)
}

// tellAll tells each known host where production's addresses are; not production
// itself, which has other addresses, too, and would find its own taken. mu is held.
func (w *Wire) tellAll(mac net.HardwareAddr) {
	w.hosts.mu.Lock()
	hosts := maps.Clone(w.hosts.at)
	w.hosts.mu.Unlock()
	for h, at := range hosts {
		if bytes.Equal(at, w.site.MAC) {
			continue
		}
		for _, a := range w.site.Addrs {
			if a.Is4() == h.Is4() {
				w.send(w.lan, claim(w.lanMAC, mac, a, at, h))
			}
		}
	}
}

// defend renews what was told.
func (w *Wire) defend(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-w.contested:
			// Not more than ten times a second.
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return nil
			}
		}
		w.mu.Lock()
		switch {
		case w.taken():
			w.tellAll(w.lanMAC)
		case w.gives > 0:
			w.give()
		}
		w.mu.Unlock()
	}
}

// onSegment takes what hosts of the network, production among them, ask and say.
func (w *Wire) onSegment(n neighbour) {
	if a, mac := n.told(); usable(a, mac) && !bytes.Equal(mac, w.lanMAC) {
		if !w.ours(a) {
			w.hosts.mu.Lock()
			put(w.hosts.at, a, mac)
			w.hosts.mu.Unlock()
		} else {
			w.found(mac)
			// Those who heard it believe it now.
			select {
			case w.contested <- struct{}{}:
			default:
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.taken() || !n.ask || !w.ours(n.target) || bytes.Equal(n.etherSrc, w.site.MAC) {
		return
	}
	if n.from.IsUnspecified() && w.site.MAC == nil {
		return // production itself, as far as is known
	}
	w.answer(n, w.lanMAC, w.lanMAC)
}

// bounceTable sends what is not for mail on to production, whose address is
// taken but whose host may live.
func (s Site) bounceTable(index int, own net.HardwareAddr) table {
	in := chain{name: "bounce", hook: "ingress", num: nftables.ChainHookIngress, prio: -500, device: s.LAN}
	for _, f := range families() {
		for _, a := range s.Addrs {
			if !f.of(a) {
				continue
			}
			here := rule{f.etherType(), isMAC(etherDst, own), f.addr(f.dst, a)}
			for _, p := range s.Ports {
				in.rules = append(in.rules, append(here[:len(here):len(here)], isTCP(), port(tcpDst, p.Port), accept()))
			}
			if a.Is6() {
				in.rules = append(in.rules, append(here[:len(here):len(here)], l4(f.icmp, f.icmpProto), accept()))
			}
			in.rules = append(in.rules,
				append(here[:len(here):len(here)], setMAC(etherDst, s.MAC), setMAC(etherSrc, own), dup(s.LAN, index),
					drop()))
		}
	}
	return table{family: nftables.TableFamilyNetdev, name: tableName, owned: true, chains: []chain{in}}
}

// join has switches that follow multicast send what is asked of production's
// IPv6 addresses here, too. The socket has to stay open.
func join(dev string, addrs []netip.Addr) (net.PacketConn, error) {
	ifi, err := net.InterfaceByName(dev)
	if err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		e := c.Control(func(fd uintptr) {
			for _, a := range addrs {
				if a.Is6() {
					t := a.As16()
					m := &unix.IPv6Mreq{Interface: uint32(ifi.Index),
						Multiaddr: [16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]}}
					err = errors.Join(err, unix.SetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, m))
				}
			}
		})
		return errors.Join(e, err)
	}}
	p, err := lc.ListenPacket(context.Background(), "udp6", "[::1]:0")
	if err != nil {
		return nil, fmt.Errorf("join the groups of production's addresses: %w", err)
	}
	return p, nil
}
