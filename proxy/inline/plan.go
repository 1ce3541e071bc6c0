package inline

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"crypto/sha256"

	"golang.org/x/sys/unix"
)

// item is one thing of the kernel's configuration. Two with the same id are
// the same thing; if their texts differ, too, it has to be changed.
type item interface {
	id() string
	String() string
}

type bridgeItem struct {
	name string
	mac  net.HardwareAddr
}

type portItem struct{ name, bridge string }

// upItem comes when the ports are isolated as they have to be.
type upItem struct{ name string }

type isolatedItem struct {
	port string
	on   bool
}

type addrItem struct {
	link string
	addr netip.Prefix
}

type sysctlItem struct{ path, value string }

type ruleItem struct {
	v6    bool
	prio  int
	mark  uint32
	from  netip.Addr
	to    netip.Addr
	table int
}

type routeItem struct {
	dst   netip.Prefix
	via   netip.Addr
	dev   string
	local bool
	table int
}

type neighItem struct {
	ip  netip.Addr
	dev string
	mac net.HardwareAddr
}

type fdbItem struct {
	mac  net.HardwareAddr
	port string
}

// tableItem is a table that stays; what it says is known by its digest.
type tableItem struct {
	t      table
	digest string
}

func (i bridgeItem) id() string   { return "bridge " + i.name }
func (i portItem) id() string     { return "port " + i.name }
func (i upItem) id() string       { return "up " + i.name }
func (i isolatedItem) id() string { return "isolation of " + i.port }
func (i addrItem) id() string     { return fmt.Sprintf("address %s on %s", i.addr, i.link) }
func (i sysctlItem) id() string   { return "sysctl " + i.path }
func (i ruleItem) id() string {
	return fmt.Sprintf("rule %v %d %s%s", i.v6, i.prio, str(i.from), str(i.to))
}
func (i routeItem) id() string { return fmt.Sprintf("route %s table %d", i.dst, i.table) }
func (i neighItem) id() string { return fmt.Sprintf("neighbour %s on %s", i.ip, i.dev) }
func (i fdbItem) id() string   { return "forwarding of " + i.mac.String() }
func (i tableItem) id() string { return fmt.Sprintf("table %d %s", i.t.family, i.t.name) }

func str(a netip.Addr) string {
	if a.IsValid() {
		return a.String()
	}
	return ""
}

func (i bridgeItem) String() string {
	return fmt.Sprintf("bridge %s address %s, no STP, no snooping", i.name, i.mac)
}
func (i portItem) String() string { return fmt.Sprintf("port %s of bridge %s", i.name, i.bridge) }
func (i isolatedItem) String() string {
	if i.on {
		return fmt.Sprintf("port %s isolated: FENCED", i.port)
	}
	return fmt.Sprintf("port %s not isolated", i.port)
}
func (i upItem) String() string     { return i.name + " up" }
func (i addrItem) String() string   { return i.id() }
func (i sysctlItem) String() string { return fmt.Sprintf("sysctl %s = %s", i.path, i.value) }
func (i ruleItem) String() string {
	what := fmt.Sprintf("fwmark %#x/%#x", i.mark, markMask)
	fam := "ip"
	if i.v6 {
		fam = "ip6"
	}
	switch {
	case i.from.IsValid():
		what = "from " + i.from.String()
	case i.to.IsValid():
		what = "to " + i.to.String()
	}
	return fmt.Sprintf("%s rule %d: %s lookup %d", fam, i.prio, what, i.table)
}
func (i routeItem) String() string {
	switch {
	case i.local:
		return fmt.Sprintf("route local %s dev %s table %d", i.dst, i.dev, i.table)
	case i.via.IsValid():
		return fmt.Sprintf("route %s via %s dev %s onlink table %d", i.dst, i.via, i.dev, i.table)
	}
	return fmt.Sprintf("route %s dev %s table %d", i.dst, i.dev, i.table)
}
func (i neighItem) String() string {
	return fmt.Sprintf("neighbour %s at %s on %s, permanent", i.ip, i.mac, i.dev)
}
func (i fdbItem) String() string   { return fmt.Sprintf("frames to %s leave by %s", i.mac, i.port) }
func (i tableItem) String() string { return i.t.name + " " + i.digest }

// keep returns the item of a table that stays.
func keep(t table) tableItem {
	return tableItem{t, fmt.Sprintf("%x", sha256.Sum256([]byte(t.String())))[:12]}
}

// The routing tables: of diverted packets, of answers to clients, of production.
const (
	markTable, clientTable, serverTable = 77, 78, 79
	markPrio, clientPrio, serverPrio    = 100, 110, 111
)

// The next hops of answers to clients; their packets get the client's address
// of Ethernet when they leave.
var (
	hop4 = netip.AddrFrom4([4]byte{169, 254, 77, 1})
	hop6 = netip.MustParseAddr("fe80::77")
)

// Desired is what the kernel has to be told, in the order of telling. Tables
// that the process owns are not part of it.
func (s Site) Desired() []item {
	dev := s.device()
	var out []item
	add := func(i ...item) { out = append(out, i...) }
	if !s.OneArm {
		add(sysctlItem{"net.bridge.bridge-nf-call-iptables", "0"},
			sysctlItem{"net.bridge.bridge-nf-call-ip6tables", "0"}, bridgeItem{s.Bridge, s.BridgeMAC})
		for _, p := range []string{s.LAN, s.Server} {
			add(sysctlItem{"net.ipv6.conf." + p + ".disable_ipv6", "1"}, portItem{p, s.Bridge},
				isolatedItem{p, s.Fenced && !s.Open})
		}
		// Nothing passes before the fence is as it has to be.
		add(upItem{s.Bridge})
		add(sysctlItem{"net.ipv6.conf." + dev + ".accept_ra", "0"},
			sysctlItem{"net.ipv6.conf." + dev + ".autoconf", "0"})
		for _, o := range s.Own {
			add(addrItem{dev, o})
		}
		if s.Gateway.IsValid() {
			add(routeItem{dst: everything(s.Gateway.Is6()), via: s.Gateway, dev: dev, table: unix.RT_TABLE_MAIN})
		}
	}
	add(sysctlItem{"net.ipv4.conf." + dev + ".rp_filter", "0"}, sysctlItem{"net.ipv4.tcp_tw_reuse", "1"})
	for _, v6 := range []bool{false, true} {
		if !slices.ContainsFunc(s.Addrs, func(a netip.Addr) bool { return a.Is6() == v6 }) {
			continue
		}
		add(routeItem{dst: everything(v6), dev: "lo", local: true, table: markTable},
			ruleItem{v6: v6, prio: markPrio, mark: diverted, table: markTable})
		if s.OneArm {
			continue
		}
		hop := hop4
		if v6 {
			hop = hop6
		}
		add(neighItem{hop, dev, nextHop}, routeItem{dst: everything(v6), via: hop, dev: dev, table: clientTable})
	}
	if !s.OneArm {
		add(fdbItem{nextHop, s.LAN})
	}
	for _, a := range s.Addrs {
		if !s.OneArm {
			add(ruleItem{v6: a.Is6(), prio: clientPrio, from: a, table: clientTable})
		}
		if s.MAC != nil {
			add(neighItem{a, dev, s.reach()},
				routeItem{dst: netip.PrefixFrom(a, a.BitLen()), dev: dev, table: serverTable},
				ruleItem{v6: a.Is6(), prio: serverPrio, to: a, table: serverTable})
		}
	}
	if s.MAC != nil && !s.OneArm {
		add(keep(s.srcTable()), keep(s.macTable()))
	}
	return out
}

func everything(v6 bool) netip.Prefix {
	if v6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// Step is one change.
type Step struct {
	Op   string // add, change or remove
	What item
}

func (s Step) String() string {
	t := s.Op + " " + s.What.String()
	if ti, ok := s.What.(tableItem); ok && s.Op != "remove" {
		t = s.Op + " " + ti.t.String()
	}
	return t
}

// Diff is what has to be done: first removals, last things first, then the
// rest in order.
func Diff(have, want []item) []Step {
	var out []Step
	at := map[string]item{}
	for _, i := range have {
		at[i.id()] = i
	}
	wanted := map[string]bool{}
	for _, i := range want {
		wanted[i.id()] = true
	}
	for _, i := range slices.Backward(have) {
		if _, ok := i.(sysctlItem); !ok && !wanted[i.id()] {
			out = append(out, Step{"remove", i})
		}
	}
	for _, i := range want {
		old, ok := at[i.id()]
		switch {
		case !ok:
			out = append(out, Step{"add", i})
		case old.String() != i.String():
			out = append(out, Step{"change", i})
		}
	}
	return out
}
