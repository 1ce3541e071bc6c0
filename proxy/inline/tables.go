package inline

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/google/nftables"
)

// Names of the tables.
const (
	tableName = "understudy"      // bridge and inet, owned: gone when the process is
	macName   = "understudy_mac"  // bridge: the clients' addresses of frames; stays
	srcName   = "understudy_src"  // bridge: production's address of frames; stays
	passName  = "understudy_pass" // netdev: what passes the fence; stays while fenced
)

const (
	flowLives   = time.Hour   // of a connection without packets
	synLives    = time.Minute // of one that never carried data
	macLives    = 3 * time.Hour
	pastLives   = 2 * time.Minute
	heartbeatOK = 1800 * time.Millisecond // after the last heartbeat new connections go straight to production
)

// elements of a set of address and port.
func (s *set) add(a netip.Addr, p uint16) {
	s.elems = append(s.elems, serviceKey(a, p))
	s.shown = append(s.shown, fmt.Sprintf("%s . %d", a, p))
}

// serviceKey is an address and a port as a set holds them: each in a multiple
// of four bytes.
func serviceKey(a netip.Addr, p uint16) []byte {
	return append(append(a.AsSlice(), be16(p)...), 0, 0)
}

// bridgeTable diverts connections to the mail ports to the box, packet by
// packet, by connection: what is not in a set is bridged untouched.
func (s Site) bridgeTable() table {
	t := table{family: nftables.TableFamilyBridge, name: tableName, owned: true}
	pre := chain{name: "pre", hook: "prerouting", num: nftables.ChainHookPrerouting, prio: -300}
	out := chain{name: "out", hook: "output", num: nftables.ChainHookOutput, prio: -300}
	divert := chain{name: "divert", rules: []rule{{toHost(), setMAC(etherDst, s.BridgeMAC), counter(), accept()}}}
	var rest []chain
	for _, f := range families() {
		service, flow := []field{f.dst, tcpDst}, f.flow()
		t.sets = append(t.sets,
			set{name: "armed" + f.n, fields: service, timed: true}, // new connections are diverted
			// those that went around the box are ended
			set{name: "cut" + f.n, fields: service, timed: true},
			set{name: "flow" + f.n, fields: flow, dynamic: true, timeout: flowLives}, // of clients
			set{name: "past" + f.n, fields: flow, dynamic: true, timeout: pastLives}, // of clients, past the box
			set{name: "up" + f.n, fields: flow, dynamic: true, timeout: flowLives})   // of production, to the box
		pre.rules = append(pre.rules, rule{iif(s.LAN), f.etherType(), isTCP(), jump("lan" + f.n)},
			rule{iif(s.Server), f.etherType(), isTCP(), jump("srv" + f.n)})
		for _, typ := range f.icmpErrors {
			from := append([]term{f.etherType()}, f.icmpError(typ)...)
			pre.rules = append(pre.rules,
				append(append(rule{iif(s.LAN)}, from...), in("flow"+f.n, f.quoted[:]...), jump("divert")),
				append(append(rule{iif(s.Server)}, from...), in("up"+f.n, f.quoted[:]...), jump("divert")))
		}
		rest = append(rest,
			chain{name: "lan" + f.n, rules: []rule{
				{isSYN(), jump("syn" + f.n)},
				{in("flow"+f.n, flow...), update("flow"+f.n, 0, flow...), jump("divert")},
				{in("cut"+f.n, service...), notRST(), jump("divert")}, // no socket knows it: it is reset
				{in("armed"+f.n, service...), update("past"+f.n, 0, flow...)}}},
			chain{name: "syn" + f.n, rules: []rule{
				{in("armed"+f.n, service...), update("flow"+f.n, synLives, flow...), jump("divert")},
				// It goes straight: what is remembered of an earlier connection is void.
				{in("flow"+f.n, flow...), remove("flow"+f.n, flow...)},
				{in("up"+f.n, f.reply()...), remove("up"+f.n, f.reply()...)}}},
			chain{name: "srv" + f.n,
				rules: []rule{{in("up"+f.n, flow...), update("up"+f.n, 0, flow...), jump("divert")}}})
		out.rules = append(out.rules,
			rule{oif(s.Server), f.etherType(), isTCP(), isSYN(), update("up"+f.n, 0, f.reply()...)})
	}
	t.chains = append(append([]chain{divert}, rest...), pre, out)
	return t
}

// macTable gives frames of the box the addresses that the two sides know each
// other by. It outlives the process: the last packets of its connections are
// sent after the tables that it owns are gone.
func (s Site) macTable() table {
	t := table{family: nftables.TableFamilyBridge, name: macName}
	pre := chain{name: "pre", hook: "prerouting", num: nftables.ChainHookPrerouting, prio: -310}
	out := chain{name: "out", hook: "output", num: nftables.ChainHookOutput, prio: -290}
	for _, f := range families() {
		mail := set{name: "mail" + f.n, fields: []field{f.dst, tcpDst}}
		for _, a := range s.Addrs {
			for _, p := range s.Ports {
				if f.of(a) {
					mail.add(a, p.Port)
				}
			}
		}
		if len(mail.elems) == 0 {
			continue
		}
		mac := etherSrc
		t.sets = append(t.sets, mail,
			set{name: "client" + f.n, fields: []field{f.src}, value: &mac, dynamic: true, timeout: macLives})
		pre.rules = append(pre.rules,
			rule{iif(s.LAN), f.etherType(), isTCP(), in("mail"+f.n, f.dst, tcpDst),
				updateMap("client"+f.n, f.src, etherSrc)})
		out.rules = append(out.rules,
			rule{oif(s.LAN), isMAC(etherDst, nextHop), f.etherType(), setFromMap(etherDst, f.dst, "client"+f.n)},
			rule{oif(s.Server), f.etherType(), setFromMap(etherSrc, f.src, "client"+f.n)})
	}
	t.chains = []chain{pre, out}
	return t
}

// srcTable comes before macTable. It is a table of its own, since a replaced
// network card must not cost what is known of the clients.
func (s Site) srcTable() table {
	return table{family: nftables.TableFamilyBridge, name: srcName,
		chains: []chain{{name: "out", hook: "output", num: nftables.ChainHookOutput, prio: -291,
			rules: []rule{{oif(s.LAN), isMAC(etherDst, nextHop), setMAC(etherSrc, s.MAC)}}}}}
}

// inetTable hands diverted packets to the sockets of the box. from is the
// interface that they come in by.
func (s Site) inetTable(from string) table {
	pre := chain{name: "pre", hook: "prerouting", num: nftables.ChainHookPrerouting, prio: -150}
	pre.rules = []rule{{isTCP(), notSYN(), ownSocket(), setMark(), accept()}}
	for _, f := range families() {
		pre.rules = append(pre.rules, rule{l4(f.icmp, f.icmpProto), ownSocket(), setMark(), accept()})
		for _, a := range s.Addrs {
			for _, p := range s.Ports {
				to := p.V4
				if !f.of(a) {
					continue
				}
				if a.Is6() {
					to = p.V6
				}
				pre.rules = append(pre.rules,
					rule{iif(from), f.nfproto(), f.addr(f.dst, a), isTCP(), port(tcpDst, p.Port), f.tproxy(to),
						setMark(), accept()})
			}
		}
	}
	return table{family: nftables.TableFamilyINet, name: tableName, owned: true, chains: []chain{pre}}
}

// passTable lets connections to some ports of a fenced production through. The
// bridge keeps its two sides apart; these frames go past it. If somebody removes
// the table, more is fenced, not less.
func (s Site) passTable(lan, server int) table {
	t := table{family: nftables.TableFamilyNetdev, name: passName}
	toServer := chain{name: "lan", hook: "ingress", num: nftables.ChainHookIngress, prio: -500, device: s.LAN}
	toLAN := chain{name: "server", hook: "ingress", num: nftables.ChainHookIngress, prio: -500, device: s.Server}
	for _, f := range families() {
		for _, a := range s.Addrs {
			if !f.of(a) {
				continue
			}
			for _, p := range s.Pass {
				toServer.rules = append(toServer.rules,
					rule{f.etherType(), f.addr(f.dst, a), isTCP(), port(tcpDst, p), setMAC(etherDst, s.reach()),
						dup(s.Server, server), drop()})
				toLAN.rules = append(toLAN.rules,
					rule{f.etherType(), f.addr(f.src, a), isTCP(), port(tcpSrc, p), notSYN(), setMAC(etherSrc, s.MAC),
						dup(s.LAN, lan), drop()})
			}
		}
	}
	t.chains = []chain{toServer, toLAN}
	return t
}

// nextHop is the address that answers to clients are sent to within the box,
// before they get that of the client or its router.
var nextHop = net.HardwareAddr{0x02, 0x55, 0x53, 0x4e, 0x48, 0x01}
