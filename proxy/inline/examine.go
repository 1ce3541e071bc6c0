package inline

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
)

// Finding is something to know before the box goes into the wire.
type Finding struct {
	Level  string // ok, note, warning or error
	Text   string
	Remedy string
}

// listening is how long the examination listens to the network.
const listening = 2 * time.Second

// Examine looks at the machine and its network. It changes nothing, but asks for
// neighbours and makes a table for a moment.
func Examine(ctx context.Context, s Site) []Finding {
	x := &examination{site: s}
	if !x.rights() || !x.links() {
		return x.found
	}
	x.kernel()
	x.settings()
	x.network(ctx)
	if s.OneArm {
		x.add("warning", "set failover.fence_command (power, switch port), or keep failover.mode = \"confirm\"",
			"beside production the box can take its address, but cannot keep it from answering, or from sending "+
				"what it has queued")
		x.add("note",
			"`understudy network bypass off` takes the address while production lives, or name a mirror port in "+
				"network.tap",
			"beside production the box sees no passwords, so that nobody could log in to it in an outage, unless it "+
				"learns them")
	}
	return x.found
}

type examination struct {
	site  Site
	found []Finding
}

func (x *examination) add(level, remedy, format string, a ...any) {
	x.found = append(x.found, Finding{level, fmt.Sprintf(format, a...), remedy})
}

// rights looks for the capabilities that are needed.
func (x *examination) rights() bool {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		x.add("error", "mount /proc", "%v", err)
		return false
	}
	var eff uint64
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, "CapEff:"); ok {
			eff, _ = strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		}
	}
	good := true
	for bit, name := range map[int]string{12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW"} {
		if eff>>bit&1 == 0 {
			good = false
			x.add("error", "run as root, or with AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW in the unit",
				"the process lacks %s", name)
		}
	}
	return good
}

// links looks at the interfaces.
func (x *examination) links() bool {
	names := []string{x.site.LAN}
	if !x.site.OneArm {
		names = append(names, x.site.Server)
	}
	good, mtu := true, map[string]int{}
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if err != nil {
			x.add("error", "`ip link` lists them; set network.lan and network.server", "interface %s: %v", name, err)
			good = false
			continue
		}
		a := l.Attrs()
		mtu[name] = a.MTU
		if l.Type() == "bridge" || len(a.HardwareAddr) != 6 {
			x.add("error", "name a network card", "%s is no Ethernet port (%s)", name, l.Type())
			good = false
		}
		if a.RawFlags&0x40 == 0 {
			x.add("warning", "plug it in, or set it up (`ip link set "+name+" up`)", "%s has no carrier", name)
		}
		addrs, _ := linkAddrs(name)
		addrs = slices.DeleteFunc(addrs, func(p netip.Prefix) bool { return p.Addr().IsLinkLocalUnicast() })
		switch {
		case !x.site.OneArm && len(addrs) > 0:
			x.add("warning", "move it to network.own, and take it out of the system's own configuration",
				"%s has the address %s, which does not work any more once it is a port of the bridge", name, addrs[0])
		case x.site.OneArm && len(addrs) == 0:
			x.add("error", "give it one in production's network", "%s has no address of its own", name)
		}
	}
	if len(mtu) == 2 && mtu[x.site.LAN] != mtu[x.site.Server] {
		x.add("error", "set both to the smaller",
			"the two ports have different MTUs (%d and %d): long packets would be lost without a word", mtu[x.site.LAN],
			mtu[x.site.Server])
	}
	return good
}

// kernel makes the tables with what is needed, each for a moment.
func (x *examination) kernel() {
	o, err := newOwner()
	if err != nil {
		x.add("error", "a kernel with nf_tables is needed", "%v", err)
		return
	}
	defer func() { _ = o.close() }()
	s := x.site
	s.MAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	s.BridgeMAC = s.MAC
	for i := range s.Ports {
		s.Ports[i].V4, s.Ports[i].V6 = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 1),
			netip.AddrPortFrom(netip.IPv6Loopback(), 1)
	}
	lan, err := net.InterfaceByName(s.LAN)
	if err != nil {
		return
	}
	parts := []struct {
		t      table
		module string
	}{{s.inetTable(s.device()), "nft_tproxy and nft_socket"}, {s.bounceTable(lan.Index, s.MAC), "nft_dup_netdev"}}
	if !s.OneArm {
		parts = append(parts, struct {
			t      table
			module string
		}{s.bridgeTable(), "nf_tables_bridge"})
	}
	good := true
	for i, p := range parts {
		p.t.name = fmt.Sprint("understudy_doctor", i)
		for j := range p.t.chains {
			p.t.chains[j].prio += 1000 // behind everything
			if p.t.family != nftables.TableFamilyNetdev {
				continue
			}
			p.t.chains[j].rules = append([]rule{{accept()}}, p.t.chains[j].rules...)
		}
		if err := o.make(p.t); err != nil {
			good = false
			x.add("error",
				"a kernel of Linux 5.12 or newer with "+p.module+" is needed (Debian 12 and Ubuntu 22.04 have it)",
				"a feature of the kernel is missing: %v", err)
			continue
		}
		_ = o.drop(p.t)
	}
	l, _, err := listen(context.Background(), false, nil)
	if err != nil {
		good = false
		x.add("error", "", "%v", err)
	} else {
		_ = l.Close()
	}
	if good {
		x.add("ok", "", "the kernel has what diversion and the fence need")
	}
}

func readNumber(path string) int {
	b, err := os.ReadFile(path)
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return -1
	}
	return n
}

// settings looks at what else on the machine could be in the way.
func (x *examination) settings() {
	for _, p := range []string{"iptables", "ip6tables"} {
		if !x.site.OneArm && readNumber("/proc/sys/net/bridge/bridge-nf-call-"+p) == 1 {
			x.add("warning", "the box sets it to 0 while it runs; see to it that nothing sets it again (Docker does)",
				"net.bridge.bridge-nf-call-%s is 1: diverted packets would be lost", p)
		}
	}
	if readNumber("/proc/sys/net/ipv4/conf/all/rp_filter") == 1 {
		x.add("error", "sysctl net.ipv4.conf.all.rp_filter=2",
			"net.ipv4.conf.all.rp_filter is 1: packets with clients' addresses would be dropped")
	}
	if n := readNumber("/proc/sys/net/netfilter/nf_conntrack_count"); n > 0 {
		x.add("warning", "exempt the mail ports (notrack in prerouting and output of the raw table), or do without",
			"connection tracking is in use on this machine (%d entries): both halves of a diverted connection have "+
				"the same addresses and ports", n)
	}
}

// heard is what the network said while it was listened to.
type heard struct {
	mu    sync.Mutex
	lan   map[netip.Addr]map[string]bool // who says to be where, on the LAN
	srv   map[netip.Addr]map[string]bool
	loops []string
	tags  bool
}

func (h *heard) note(at map[netip.Addr]map[string]bool, n neighbour, own net.HardwareAddr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if bytes.Equal(n.etherSrc, own) {
		h.loops = append(h.loops, n.etherSrc.String())
	}
	if a, mac := n.told(); usable(a, mac) && len(at) < maxHosts {
		if at[a] == nil {
			at[a] = map[string]bool{}
		}
		at[a][mac.String()] = true
	}
}

func (h *heard) others(at map[netip.Addr]map[string]bool, but []netip.Addr) []string {
	var out []string
	for a := range at {
		if !slices.Contains(but, a) && !a.IsLinkLocalUnicast() {
			out = append(out, a.String())
		}
	}
	slices.Sort(out)
	return out
}

func keys(m map[string]bool) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// network asks for production and for the box's own addresses, and listens.
func (x *examination) network(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, listening)
	defer cancel()
	h := &heard{lan: map[netip.Addr]map[string]bool{}, srv: map[netip.Addr]map[string]bool{}}
	mac, err := LinkMAC(x.site.LAN)
	if err != nil {
		x.add("error", "", "%v", err)
		return
	}
	var wait sync.WaitGroup
	port := func(name string, filter []bpf.Instruction, ask bool, f func([]byte)) {
		p, err := openPackets(name, filter)
		if err != nil {
			x.add("error", "", "%v", err)
			return
		}
		if ask {
			x.ask(p, mac)
		}
		wait.Go(func() {
			defer func() { _ = p.Close() }()
			_ = (&Wire{}).read(ctx, p, f)
		})
	}
	on := func(at map[netip.Addr]map[string]bool) func([]byte) {
		return func(b []byte) {
			if n, ok := parseNeighbour(b); ok {
				n.fromMAC, n.etherSrc = slices.Clone(n.fromMAC), slices.Clone(n.etherSrc)
				h.note(at, n, mac)
			}
		}
	}
	port(x.site.LAN, neighbourFilter(), true, on(h.lan))
	if !x.site.OneArm {
		port(x.site.Server, neighbourFilter(), true, on(h.srv))
		port(x.site.Server, taggedFilter(), false, func([]byte) { h.mu.Lock(); h.tags = true; h.mu.Unlock() })
	}
	wait.Wait()
	x.judge(h)
}

// ask asks who has production's addresses, and whether somebody has the box's.
func (x *examination) ask(p *packets, mac net.HardwareAddr) {
	own, _ := linkAddrs(x.site.device())
	if len(own) == 0 {
		own = x.site.Own
	}
	w := &Wire{opt: Options{Site: Site{Own: own}}, lanMAC: mac}
	for _, a := range x.site.Addrs {
		if from, ok := w.ownAddr(a); ok {
			_, _ = p.Write(ask(mac, from, a))
		}
	}
	for _, o := range x.site.Own {
		if o.Addr().Is4() {
			_, _ = p.Write(ask(mac, netip.IPv4Unspecified(), o.Addr())) // RFC 5227: a probe
		}
	}
}

func (x *examination) judge(h *heard) {
	side, where := h.srv, "on "+x.site.Server
	if x.site.OneArm {
		side, where = h.lan, "on "+x.site.LAN
	}
	for _, a := range x.site.Addrs {
		switch macs := keys(side[a]); len(macs) {
		case 0:
			x.add("warning", "is it plugged in there, and are network.addresses right?",
				"nobody %s answers for production's address %s", where, a)
		case 1:
			x.add("ok", "", "production's %s is at %s %s", a, macs[0], where)
		default:
			x.add("error", "find the second one", "several machines %s say that they have production's address %s: %s",
				where, a, strings.Join(macs, " and "))
		}
		if !x.site.OneArm && len(h.lan[a]) > 0 {
			x.add("error",
				"production must have no way to the network but through the box: no second cable, no other machine "+
					"with its address", "%s answers for production's %s on the LAN, past the box",
				strings.Join(keys(h.lan[a]), ", "), a)
		}
	}
	for _, o := range x.site.Own {
		if macs := append(keys(h.lan[o.Addr()]), keys(h.srv[o.Addr()])...); len(macs) > 0 {
			x.add("error", "choose another one for network.own", "the box's own address %s is in use at %s", o.Addr(),
				strings.Join(macs, ", "))
		}
	}
	if !x.site.OneArm {
		var but []netip.Addr
		but = append(but, x.site.Addrs...)
		for _, o := range x.site.Own {
			but = append(but, o.Addr())
		}
		if l := h.others(h.srv, but); len(l) > 0 {
			x.add("warning", "plug production alone into "+x.site.Server+": those on its side reach it past the box",
				"other hosts are on production's side: %s", strings.Join(l[:min(len(l), 5)], ", "))
		}
	}
	if len(h.loops) > 0 {
		x.add("error",
			"look for a loop: both ports in the same switch, or another bridge beside the box; switches see the "+
				"box's address wander", "frames of the box itself come back to it")
	}
	if h.tags {
		x.add("error", "put the box where production's traffic is untagged",
			"frames on %s carry VLAN tags: they would pass, but are not diverted", x.site.Server)
	}
}
