package inline

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// directory is who is where on the network, as far as the box has heard.
type directory struct {
	mu    sync.Mutex
	at    map[netip.Addr]net.HardwareAddr
	asked map[netip.Addr]asker // what a fenced production asked for
}

type asker struct {
	ip   netip.Addr
	mac  net.HardwareAddr
	when time.Time
}

// maxHosts bounds both maps; beyond, an arbitrary host is forgotten.
const maxHosts = 4096

func put[V any](m map[netip.Addr]V, a netip.Addr, v V) {
	if _, ok := m[a]; !ok && len(m) >= maxHosts {
		for k := range m {
			delete(m, k)
			break
		}
	}
	m[a] = v
}

func usable(a netip.Addr, mac net.HardwareAddr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && len(mac) == 6 && mac[0]&1 == 0 &&
		!bytes.Equal(mac, make([]byte, 6))
}

func (w *Wire) neighbours(ctx context.Context, p *packets, f func(neighbour)) error {
	return w.read(ctx, p, func(frame []byte) {
		if n, ok := parseNeighbour(frame); ok {
			n.fromMAC, n.etherSrc = slices.Clone(n.fromMAC), slices.Clone(n.etherSrc)
			f(n)
		}
	})
}

func (w *Wire) ours(a netip.Addr) bool { return slices.Contains(w.opt.Site.Addrs, a) }

// onLAN takes what the network's hosts ask and say.
func (w *Wire) onLAN(n neighbour) {
	if w.opt.Site.OneArm {
		w.onSegment(n)
		return
	}
	if a, mac := n.told(); usable(a, mac) && !w.ours(a) {
		w.hosts.mu.Lock()
		put(w.hosts.at, a, mac)
		q, waits := w.hosts.asked[a]
		delete(w.hosts.asked, a)
		w.hosts.mu.Unlock()
		if waits && time.Since(q.when) < 5*time.Second {
			w.send(w.srv, claim(w.lanMAC, mac, a, q.mac, q.ip))
		}
	}
	if !n.ask || !w.ours(n.target) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.site.MAC != nil && (w.site.Fenced || w.down.Load() || w.opt.Absent()) {
		w.answer(n, w.site.MAC, w.site.MAC)
	}
}

// answer tells who asked where n.target is. mu is held.
func (w *Wire) answer(n neighbour, ether, mac net.HardwareAddr) {
	to, at := n.from, n.fromMAC
	if n.v6 && !usable(n.from, n.fromMAC) {
		to, at = netip.Addr{}, nil // duplicate address detection is answered to all
	}
	w.send(w.lan, claim(ether, mac, n.target, at, to))
}

// onServer takes what production asks and says on its side.
func (w *Wire) onServer(n neighbour) {
	if a, mac := n.told(); w.ours(a) && usable(a, mac) {
		w.found(mac)
	}
	w.mu.Lock()
	fenced := w.site.Fenced
	w.mu.Unlock()
	own := slices.ContainsFunc(w.opt.Site.Own, func(p netip.Prefix) bool { return p.Addr() == n.target })
	if !fenced || !n.ask || own || w.ours(n.target) || !usable(n.from, n.fromMAC) || !usable(n.target, n.fromMAC) {
		return
	}
	// It asks for a host that it cannot reach. The box looks for it, and answers:
	// the connections of sessions that were handed back need it.
	w.hosts.mu.Lock()
	mac, known := w.hosts.at[n.target]
	put(w.hosts.asked, n.target, asker{n.from, n.fromMAC, time.Now()})
	w.hosts.mu.Unlock()
	if known {
		w.send(w.srv, claim(w.lanMAC, mac, n.target, n.fromMAC, n.from))
		return
	}
	if from, ok := w.ownAddr(n.target); ok {
		w.send(w.lan, ask(w.lanMAC, from, n.target))
	}
}

// ownAddr is the address of the box by which it asks for a.
func (w *Wire) ownAddr(a netip.Addr) (netip.Addr, bool) {
	if a.Is6() {
		// The link-local address that the kernel makes of the hardware address.
		m := w.lanMAC
		return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3],
			14: m[4], 15: m[5]}), true
	}
	for _, p := range w.opt.Site.Own {
		if p.Addr().Is4() {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// found notes production's hardware address.
func (w *Wire) found(mac net.HardwareAddr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if bytes.Equal(mac, w.site.reach()) || bytes.Equal(mac, w.lanMAC) {
		return
	}
	if w.site.OneArm && w.site.MAC != nil && (w.opt.Site.MAC != nil || !w.opt.Absent()) {
		// On a shared network anybody can say so.
		w.trouble(fmt.Sprintf("%s says that it has production's address, which is at %s", mac, w.site.MAC))
		return
	}
	w.opt.Log.Info("production's hardware address", "mac", mac.String(), "before", w.site.reach().String())
	switch {
	case w.site.Fenced && w.site.MAC != nil:
		// The network knows the old one until the fence is lowered.
		w.site.NewMAC = mac
		if bytes.Equal(mac, w.site.MAC) {
			w.site.NewMAC = nil
		}
	default:
		w.site.MAC, w.site.NewMAC = mac, nil
	}
	err := w.apply()
	if err == nil && w.site.Fenced {
		err = w.pass(true)
	}
	if err == nil {
		err = w.save(w.memory.Epoch)
	}
	if err == nil {
		err = w.beat()
	}
	if err != nil {
		w.opt.Log.Error("note production's hardware address", "err", err)
	}
}

// learn asks production where it is, until it is known, and while it does not
// answer: it may be another machine by now, that has not said so.
func (w *Wire) learn(ctx context.Context) {
	p := w.srv
	if p == nil {
		p = w.lan
	}
	for {
		w.mu.Lock()
		need := w.site.MAC == nil || w.site.Fenced
		w.mu.Unlock()
		if need || w.opt.Absent() {
			for _, a := range w.opt.Site.Addrs {
				if from, ok := w.ownAddr(a); ok {
					w.send(p, ask(w.lanMAC, from, a))
				}
			}
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
}
