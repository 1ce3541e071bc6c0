package inline

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
)

var (
	macA, macB = net.HardwareAddr{2, 0, 0, 0, 0, 0xa}, net.HardwareAddr{2, 0, 0, 0, 0, 0xb}
	ip4A, ip4B = netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("192.0.2.20")
	ip6A, ip6B = netip.MustParseAddr("2001:db8::10"), netip.MustParseAddr("2001:db8::20")
)

// What is made is understood again, and the filter lets it through.
func TestFrames(t *testing.T) {
	vm, err := bpf.NewVM(neighbourFilter()[2:]) // without the look for a VLAN tag, which only the kernel knows
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		frame []byte
		want  neighbour
		told  netip.Addr
	}{
		"ARP question": {ask(macA, ip4A, ip4B), neighbour{ask: true, target: ip4B, from: ip4A}, ip4A},
		"ARP answer":   {claim(macB, macA, ip4A, macB, ip4B), neighbour{target: ip4B, from: ip4A}, ip4A},
		"ARP to all":   {claim(macA, macA, ip4A, nil, netip.Addr{}), neighbour{target: ip4A, from: ip4A}, ip4A},
		"ND question":  {ask(macA, ip6A, ip6B), neighbour{v6: true, ask: true, target: ip6B, from: ip6A}, ip6A},
		"ND answer": {claim(macB, macA, ip6A, macB, ip6B), neighbour{v6: true, target: ip6A, from: ip6A},
			ip6A},
		"ND to all": {claim(macA, macA, ip6A, nil, netip.Addr{}),
			neighbour{v6: true, target: ip6A, from: ip6A}, ip6A},
		"address detection": {ask(macA, netip.IPv6Unspecified(), ip6A),
			neighbour{v6: true, ask: true, target: ip6A, from: netip.IPv6Unspecified()}, netip.IPv6Unspecified()},
		"ARP probe of oneself": {ask(macA, netip.IPv4Unspecified(), ip4A),
			neighbour{ask: true, target: ip4A, from: netip.IPv4Unspecified()}, netip.IPv4Unspecified()},
	} {
		if k, err := vm.Run(c.frame); err != nil || k == 0 {
			t.Errorf("%s: the filter drops it (%v)", name, err)
		}
		n, ok := parseNeighbour(c.frame)
		a, mac := n.told()
		if !ok || n.v6 != c.want.v6 || n.ask != c.want.ask || n.target != c.want.target || n.from != c.want.from ||
			a != c.told || !bytes.Equal(mac, macA) {
			t.Errorf("%s: %v %+v, tells that %s is at %s", name, ok, n, a, mac)
		}
	}
	far := claim(macA, macA, ip6A, nil, netip.Addr{})
	far[21] = 64
	if _, ok := parseNeighbour(far); ok {
		t.Error("an advertisement from another network is believed")
	}
	for _, f := range [][]byte{append(bytes.Clone(far[:12]), 8, 0, 1, 2, 3, 4, 5, 6, 7, 8), make([]byte, 60)} {
		if k, _ := vm.Run(f); k != 0 {
			t.Errorf("the filter lets % x through", f)
		}
	}
}

func TestTCPFilter(t *testing.T) {
	vm, err := bpf.NewVM(tcpFilter())
	if err != nil {
		t.Fatal(err)
	}
	frame := func(typ uint16, at int, proto byte) []byte {
		f := make([]byte, 80)
		copy(f[12:], be16(typ))
		f[at] = proto
		return f
	}
	for want, frames := range map[bool][][]byte{true: {frame(0x800, 23, 6), frame(0x86dd, 20, 6)},
		false: {frame(0x800, 23, 17), frame(0x86dd, 20, 58), frame(0x806, 23, 6), frame(0x86dd, 23, 6)}} {
		for _, f := range frames {
			if k, _ := vm.Run(f); (k > 0) != want {
				t.Errorf("% x: %d", f[:24], k)
			}
		}
	}
}

// FuzzNeighbour: frames come from anybody.
func FuzzNeighbour(f *testing.F) {
	for _, b := range [][]byte{ask(macA, ip4A, ip4B), claim(macB, macA, ip4A, macB, ip4B), ask(macA, ip6A, ip6B),
		claim(macB, macA, ip6A, macB, ip6B)} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, ok := parseNeighbour(b)
		if !ok {
			return
		}
		if a, mac := n.told(); usable(a, mac) && len(mac) != 6 {
			t.Fatalf("usable: %v %v", a, mac)
		}
		if usable(n.from, n.fromMAC) && n.target.IsValid() && n.target.Is4() == n.from.Is4() {
			claim(macA, macB, n.target, n.fromMAC, n.from)
		}
	})
}
