package inline

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// LinkMAC returns the address of an interface.
func LinkMAC(name string) (net.HardwareAddr, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w (`ip link` lists them; set network.lan and network.server)", name, err)
	}
	return l.Attrs().HardwareAddr, nil
}

// linkAddrs returns the addresses of an interface.
func linkAddrs(name string) ([]netip.Prefix, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	var out []netip.Prefix
	for _, a := range list {
		if p, ok := prefix(a.IPNet); ok {
			out = append(out, p)
		}
	}
	return out, err
}

func sysctlPath(name string) string {
	// A dot within an interface's name is a slash in sysctl's notation.
	return "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
}

// Observe reads what the kernel has of the kinds of things in a plan.
func (s Site) Observe() ([]item, error) {
	var out []item
	add := func(i item) { out = append(out, i) }
	for _, i := range s.Desired() {
		if c, ok := i.(sysctlItem); ok {
			b, err := os.ReadFile(sysctlPath(c.path))
			if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(c.path, "net.bridge.") {
				add(c) // the module that would be in the way is not there
				continue
			}
			if err == nil {
				add(sysctlItem{c.path, strings.TrimSpace(string(b))})
			}
		}
	}
	if !s.OneArm {
		if err := s.observeBridge(add); err != nil {
			return nil, err
		}
	}
	if err := s.observeRouting(add); err != nil {
		return nil, err
	}
	for _, name := range []string{srcName, macName} {
		d, err := tableDigest(name, nftables.TableFamilyBridge)
		if err != nil {
			return nil, err
		}
		if d != "" {
			add(tableItem{table{family: nftables.TableFamilyBridge, name: name}, d})
		}
	}
	return out, nil
}

func (s Site) observeBridge(add func(item)) error {
	br, err := netlink.LinkByName(s.Bridge)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", s.Bridge, err)
	}
	add(bridgeItem{s.Bridge, br.Attrs().HardwareAddr})
	for _, p := range []string{s.LAN, s.Server} {
		l, err := netlink.LinkByName(p)
		if err != nil {
			return fmt.Errorf("interface %s: %w", p, err)
		}
		if l.Attrs().MasterIndex != br.Attrs().Index {
			continue
		}
		add(portItem{p, s.Bridge})
		pi, err := netlink.LinkGetProtinfo(l)
		if err != nil {
			return fmt.Errorf("port %s: %w", p, err)
		}
		add(isolatedItem{p, pi.Isolated})
	}
	if br.Attrs().Flags&net.FlagUp != 0 {
		add(upItem{s.Bridge})
	}
	addrs, err := linkAddrs(s.Bridge)
	if err != nil {
		return err
	}
	for _, p := range addrs {
		if !p.Addr().IsLinkLocalUnicast() {
			add(addrItem{s.Bridge, p})
		}
	}
	fdb, err := netlink.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		return fmt.Errorf("forwarding table: %w", err)
	}
	for _, n := range fdb {
		if l, err := netlink.LinkByIndex(n.LinkIndex); err == nil && n.HardwareAddr.String() == nextHop.String() &&
			n.State&netlink.NUD_NOARP != 0 {
			add(fdbItem{nextHop, l.Attrs().Name})
		}
	}
	return nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if a = a.Unmap(); bits == 32 && a.Is6() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, ones), ok
}

func (s Site) observeRouting(add func(item)) error {
	dev := s.device()
	link, _ := netlink.LinkByName(dev)
	for _, fam := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		v6 := fam == netlink.FAMILY_V6
		rules, err := netlink.RuleList(fam)
		if err != nil {
			return fmt.Errorf("rules: %w", err)
		}
		for _, r := range rules {
			if r.Table != markTable && r.Table != clientTable && r.Table != serverTable {
				continue
			}
			i := ruleItem{v6: v6, prio: r.Priority, mark: r.Mark, table: r.Table}
			if p, ok := prefix(r.Src); ok {
				i.from = p.Addr()
			}
			if p, ok := prefix(r.Dst); ok {
				i.to = p.Addr()
			}
			add(i)
		}
		for _, t := range []int{markTable, clientTable, serverTable, unix.RT_TABLE_MAIN} {
			routes, err := netlink.RouteListFiltered(fam, &netlink.Route{Table: t}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return fmt.Errorf("routes: %w", err)
			}
			for _, r := range routes {
				i := routeItem{dst: everything(v6), local: r.Type == unix.RTN_LOCAL, table: t}
				if p, ok := prefix(r.Dst); ok {
					i.dst = p
				}
				if a, ok := netip.AddrFromSlice(r.Gw); ok {
					i.via = a.Unmap()
				}
				if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
					i.dev = l.Attrs().Name
				}
				if t != unix.RT_TABLE_MAIN || i.dev == dev && i.dst.Bits() == 0 && i.via == s.Gateway {
					add(i)
				}
			}
		}
		if link == nil {
			continue
		}
		neighs, err := netlink.NeighList(link.Attrs().Index, fam)
		if err != nil {
			return fmt.Errorf("neighbours: %w", err)
		}
		for _, n := range neighs {
			if a, ok := netip.AddrFromSlice(n.IP); ok && n.State == netlink.NUD_PERMANENT && !a.IsMulticast() {
				add(neighItem{a.Unmap(), dev, n.HardwareAddr})
			}
		}
	}
	return nil
}

// permitted adds to a refusal what it takes.
func permitted(err error) error {
	if errors.Is(err, os.ErrPermission) {
		err = fmt.Errorf("%w (the process needs CAP_NET_ADMIN and CAP_NET_RAW)", err)
	}
	return err
}

// Plan is what apply would do.
func (s Site) Plan() ([]Step, error) {
	have, err := s.Observe()
	return Diff(have, s.Desired()), permitted(err)
}

// PlanRemoval is what remove would do.
func (s Site) PlanRemoval() ([]Step, error) {
	have, err := s.Observe()
	return Diff(have, nil), permitted(err)
}

// Run performs steps, in order.
func Run(steps []Step) error {
	for _, st := range steps {
		if err := st.run(); err != nil {
			if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) &&
				strings.Contains(st.String(), "table") {
				err = fmt.Errorf("%w (a feature of the kernel is missing: `understudy doctor` names it)", err)
			}
			return permitted(fmt.Errorf("%s %s: %w", st.Op, st.What.id(), err))
		}
	}
	return nil
}

func (st Step) run() error {
	gone := st.Op == "remove"
	switch i := st.What.(type) {
	case sysctlItem:
		return os.WriteFile(sysctlPath(i.path), []byte(i.value), 0o644)
	case bridgeItem:
		return i.set(gone)
	case portItem:
		return i.set(gone)
	case isolatedItem:
		l, err := netlink.LinkByName(i.port)
		if err != nil || gone {
			return err // it ends with the port
		}
		return netlink.LinkSetIsolated(l, i.on)
	case upItem:
		l, err := netlink.LinkByName(i.name)
		if err != nil {
			return err
		}
		if gone {
			return netlink.LinkSetDown(l)
		}
		return netlink.LinkSetUp(l)
	case tableItem:
		return i.set(gone)
	}
	return st.runRouting(gone)
}

func (i bridgeItem) set(gone bool) error {
	l, err := netlink.LinkByName(i.name)
	if gone {
		return errors.Join(err, netlink.LinkDel(l))
	}
	if err == nil {
		return netlink.LinkSetHardwareAddr(l, i.mac)
	}
	off := false
	la := netlink.NewLinkAttrs()
	la.Name, la.HardwareAddr = i.name, i.mac
	return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: la, MulticastSnooping: &off})
}

func (i portItem) set(gone bool) error {
	l, err := netlink.LinkByName(i.name)
	if err != nil {
		return err
	}
	if gone {
		return netlink.LinkSetNoMaster(l)
	}
	br, err := netlink.LinkByName(i.bridge)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(l, br); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func fam(v6 bool) int {
	if v6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

func (st Step) runRouting(gone bool) error {
	switch i := st.What.(type) {
	case addrItem:
		l, err := netlink.LinkByName(i.link)
		if err != nil {
			return err
		}
		a := &netlink.Addr{IPNet: ipnet(i.addr)}
		if gone {
			return netlink.AddrDel(l, a)
		}
		return netlink.AddrReplace(l, a)
	case ruleItem:
		return i.set(gone)
	case routeItem:
		l, err := netlink.LinkByName(i.dev)
		if err != nil {
			return err
		}
		r := &netlink.Route{Family: fam(i.dst.Addr().Is6()), Dst: ipnet(i.dst), LinkIndex: l.Attrs().Index,
			Table: i.table}
		switch {
		case i.local:
			r.Type, r.Scope = unix.RTN_LOCAL, netlink.SCOPE_HOST
		case i.via.IsValid():
			r.Gw, r.Flags = i.via.AsSlice(), int(netlink.FLAG_ONLINK)
		default:
			r.Scope = netlink.SCOPE_LINK
		}
		if gone {
			return netlink.RouteDel(r)
		}
		return netlink.RouteReplace(r)
	case neighItem:
		l, err := netlink.LinkByName(i.dev)
		if err != nil {
			return err
		}
		n := &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: fam(i.ip.Is6()), State: netlink.NUD_PERMANENT,
			IP: i.ip.AsSlice(), HardwareAddr: i.mac}
		if gone {
			return netlink.NeighDel(n)
		}
		return netlink.NeighSet(n)
	case fdbItem:
		l, err := netlink.LinkByName(i.port)
		if err != nil {
			return err
		}
		n := &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP,
			Flags: netlink.NTF_MASTER, HardwareAddr: i.mac}
		if gone {
			return netlink.NeighDel(n)
		}
		return netlink.NeighSet(n)
	}
	return fmt.Errorf("no way to %s this", st.Op)
}

func (i ruleItem) set(gone bool) error {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table = fam(i.v6), i.prio, i.table
	if i.mark != 0 {
		m := uint32(markMask)
		r.Mark, r.Mask = i.mark, &m
	}
	if i.from.IsValid() {
		r.Src = ipnet(netip.PrefixFrom(i.from, i.from.BitLen()))
	}
	if i.to.IsValid() {
		r.Dst = ipnet(netip.PrefixFrom(i.to, i.to.BitLen()))
	}
	if gone {
		return netlink.RuleDel(r)
	}
	return netlink.RuleAdd(r)
}
