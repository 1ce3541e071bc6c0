package inline

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The words of which rules are made. Each is the text of nft(8) and what the
// kernel takes, so that the plan that is shown is the plan that is applied.

// term is a part of a rule.
type term struct {
	text string
	ex   []expr.Any
}

type rule []term

func (r rule) String() string {
	var s []string
	for _, t := range r {
		s = append(s, t.text)
	}
	return strings.Join(s, " ")
}

func (r rule) exprs() []expr.Any {
	var out []expr.Any
	for _, t := range r {
		out = append(out, t.ex...)
	}
	return out
}

// set is a named set or map.
type set struct {
	name    string
	fields  []field // of the key
	value   *field  // of a map
	timeout time.Duration
	dynamic bool
	timed   bool // elements carry their own timeout
	elems   [][]byte
	shown   []string // elems as text
}

// chain is a base chain if hook is set.
type chain struct {
	name   string
	hook   string // as nft says
	num    *nftables.ChainHook
	prio   int
	device string // of a netdev chain
	rules  []rule
}

// table is one table with what is in it.
type table struct {
	family nftables.TableFamily
	name   string
	owned  bool // dies with the process
	sets   []set
	chains []chain
}

// field is a part of a packet that can be matched and put into sets.
type field struct {
	text string
	typ  nftables.SetDatatype
	base expr.PayloadBase
	off  uint32
	size uint32
}

// Fields of both families; th is the transport header.
var (
	etherDst = field{"ether daddr", nftables.TypeEtherAddr, expr.PayloadBaseLLHeader, 0, 6}
	etherSrc = field{"ether saddr", nftables.TypeEtherAddr, expr.PayloadBaseLLHeader, 6, 6}
	tcpSrc   = field{"tcp sport", nftables.TypeInetService, expr.PayloadBaseTransportHeader, 0, 2}
	tcpDst   = field{"tcp dport", nftables.TypeInetService, expr.PayloadBaseTransportHeader, 2, 2}
)

// family is IPv4 or IPv6 as rules see it.
type family struct {
	n          string // suffix of names
	ethertype  uint16
	ether      string
	nf         byte
	src, dst   field
	icmp       string
	icmpProto  byte
	icmpErrors []byte
	// Of the packet that an ICMP error quotes, from the error's header on.
	quoted [4]field // destination, its port, source, its port
}

func raw(bits, size int, typ nftables.SetDatatype) field {
	return field{fmt.Sprintf("@th,%d,%d", bits, size), typ, expr.PayloadBaseTransportHeader, uint32(bits / 8),
		uint32(size / 8)}
}

func families() []family {
	return []family{
		{"4", unix.ETH_P_IP, "ip", unix.NFPROTO_IPV4,
			field{"ip saddr", nftables.TypeIPAddr, expr.PayloadBaseNetworkHeader, 12, 4},
			field{"ip daddr", nftables.TypeIPAddr, expr.PayloadBaseNetworkHeader, 16, 4},
			"icmp", unix.IPPROTO_ICMP, []byte{3, 11, 12},
			[4]field{raw(192, 32, nftables.TypeIPAddr), raw(240, 16, nftables.TypeInetService),
				raw(160, 32, nftables.TypeIPAddr), raw(224, 16, nftables.TypeInetService)}},
		{"6", unix.ETH_P_IPV6, "ip6", unix.NFPROTO_IPV6,
			field{"ip6 saddr", nftables.TypeIP6Addr, expr.PayloadBaseNetworkHeader, 8, 16},
			field{"ip6 daddr", nftables.TypeIP6Addr, expr.PayloadBaseNetworkHeader, 24, 16},
			"icmpv6", unix.IPPROTO_ICMPV6, []byte{1, 2, 3, 4},
			[4]field{raw(256, 128, nftables.TypeIP6Addr), raw(400, 16, nftables.TypeInetService),
				raw(128, 128, nftables.TypeIP6Addr), raw(384, 16, nftables.TypeInetService)}},
	}
}

func (f family) of(a netip.Addr) bool { return a.Is4() == (f.n == "4") }

// proto returns the fields that name a connection, from the sender's side.
func (f family) flow() []field { return []field{f.src, tcpSrc, f.dst, tcpDst} }

// reply is the connection as the other side names it.
func (f family) reply() []field { return []field{f.dst, tcpDst, f.src, tcpSrc} }

// firstReg is the first of the 32-bit registers (NFT_REG32_00).
const firstReg = 8

// load puts fields one behind the other, as the key of a set.
func load(fields []field) (text string, ex []expr.Any) {
	reg := uint32(firstReg)
	var t []string
	for _, f := range fields {
		ex = append(ex,
			&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: reg, Base: f.base, Offset: f.off, Len: f.size})
		reg += (f.size + 3) / 4
		t = append(t, f.text)
	}
	return strings.Join(t, " . "), ex
}

func in(set string, fields ...field) term {
	text, ex := load(fields)
	return term{text + " @" + set, append(ex, &expr.Lookup{SourceRegister: firstReg, SetName: set})}
}

func dynset(op string, num uint32, set string, timeout time.Duration, fields []field) term {
	text, ex := load(fields)
	t := ""
	if timeout > 0 {
		t = " timeout " + timeout.String()
	}
	return term{fmt.Sprintf("%s @%s { %s%s }", op, set, text, t),
		append(ex, &expr.Dynset{SrcRegKey: firstReg, SetName: set, Operation: num, Timeout: timeout})}
}

func update(set string, timeout time.Duration, fields ...field) term {
	return dynset("update", unix.NFT_DYNSET_OP_UPDATE, set, timeout, fields)
}

func remove(set string, fields ...field) term {
	return dynset("delete", 2 /* NFT_DYNSET_OP_DELETE */, set, 0, fields)
}

// updateMap remembers a value for a key.
func updateMap(set string, key, value field) term {
	kt, kx := load([]field{key})
	const reg = firstReg + 8
	kx = append(kx,
		&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: reg, Base: value.base, Offset: value.off,
			Len: value.size},
		&expr.Dynset{SrcRegKey: firstReg, SrcRegData: reg, SetName: set, Operation: unix.NFT_DYNSET_OP_UPDATE})
	return term{fmt.Sprintf("update @%s { %s : %s }", set, kt, value.text), kx}
}

func store(f field, reg uint32) expr.Any {
	return &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: reg, Base: f.base, Offset: f.off,
		Len: f.size}
}

// setFromMap writes what a map holds for a key; the rule ends where it holds
// nothing.
func setFromMap(f, key field, set string) term {
	_, ex := load([]field{key})
	ex = append(ex,
		&expr.Lookup{SourceRegister: firstReg, DestRegister: firstReg + 8, IsDestRegSet: true, SetName: set},
		store(f, firstReg+8))
	return term{fmt.Sprintf("%s set %s map @%s", f.text, key.text, set), ex}
}

func setMAC(f field, mac net.HardwareAddr) term {
	return term{f.text + " set " + mac.String(), []expr.Any{&expr.Immediate{Register: 1, Data: mac}, store(f, 1)}}
}

func isMAC(f field, mac net.HardwareAddr) term {
	_, ex := load([]field{f})
	return term{f.text + " " + mac.String(), append(ex, &expr.Cmp{Op: expr.CmpOpEq, Register: firstReg, Data: mac})}
}

func is(f field, text string, v []byte) term {
	_, ex := load([]field{f})
	return term{f.text + " " + text, append(ex, &expr.Cmp{Op: expr.CmpOpEq, Register: firstReg, Data: v})}
}

func (f family) addr(fd field, a netip.Addr) term { return is(fd, a.String(), a.AsSlice()) }

func port(f field, p uint16) term { return is(f, fmt.Sprint(p), be16(p)) }

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

func ifname(n string) []byte { return append([]byte(n), make([]byte, 16-len(n))...) }

func iif(n string) term {
	return term{"iifname " + n,
		[]expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(n)}}}
}

func oif(n string) term {
	return term{"oifname " + n,
		[]expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(n)}}}
}

// etherType looks at the frame itself: the kernel's idea of the protocol is
// also that of a frame with a VLAN tag.
func (f family) etherType() term {
	return is(field{"ether type", nftables.SetDatatype{}, expr.PayloadBaseLLHeader, 12, 2}, f.ether, be16(f.ethertype))
}

func l4(name string, proto byte) term {
	return term{"meta l4proto " + name,
		[]expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}}}}
}

func isTCP() term { return l4("tcp", unix.IPPROTO_TCP) }

// flags compares some flags of TCP.
func flags(text string, mask, want byte, op expr.CmpOp) term {
	return term{text, []expr.Any{
		&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseTransportHeader,
			Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{want}}}}
}

func isSYN() term {
	return flags("tcp flags & (fin | syn | rst | ack) == syn", 0x17, 0x02, expr.CmpOpEq)
}
func notRST() term { return flags("tcp flags & rst == 0", 0x04, 0, expr.CmpOpEq) }

func notSYN() term {
	return flags("tcp flags & (fin | syn | rst | ack) != syn", 0x17, 0x02, expr.CmpOpNeq)
}

// icmpError is an ICMP error; what is matched behind it is what it quotes.
func (f family) icmpError(typ byte) []term {
	return []term{l4(f.icmp, f.icmpProto),
		is(field{f.icmp + " type", nftables.SetDatatype{}, expr.PayloadBaseTransportHeader, 0, 1}, fmt.Sprint(typ),
			[]byte{typ})}
}

func verdict(kind expr.VerdictKind, text string) term {
	return term{text, []expr.Any{&expr.Verdict{Kind: kind}}}
}

func accept() term { return verdict(expr.VerdictAccept, "accept") }
func drop() term   { return verdict(expr.VerdictDrop, "drop") }

func jump(chain string) term {
	return term{"jump " + chain, []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}}
}

func counter() term { return term{"counter", []expr.Any{&expr.Counter{}}} }

// toHost makes the bridge deliver a frame to the box itself.
func toHost() term {
	return term{"meta pkttype set host",
		[]expr.Any{&expr.Immediate{Register: 1, Data: []byte{unix.PACKET_HOST}},
			&expr.Meta{Key: expr.MetaKeyPKTTYPE, SourceRegister: true, Register: 1}}}
}

// diverted is the mark of packets that are for sockets of the box.
const diverted, markMask = 0x4d50, 0xffff

func setMark() term {
	return term{fmt.Sprintf("meta mark set %#x", diverted),
		[]expr.Any{&expr.Immediate{Register: 1, Data: binary.NativeEndian.AppendUint32(nil, diverted)},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1}}}
}

func ownSocket() term {
	return term{"socket transparent 1",
		[]expr.Any{&expr.Socket{Key: expr.SocketKeyTransparent, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}}}}
}

func (f family) nfproto() term {
	return term{"meta nfproto ipv" + f.n,
		[]expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.nf}}}}
}

func (f family) tproxy(to netip.AddrPort) term {
	if !to.IsValid() {
		return term{"tproxy " + f.ether + " to a listener of the process", nil}
	}
	return term{fmt.Sprintf("tproxy %s to %s", f.ether, to), []expr.Any{
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()}, &expr.Immediate{Register: 2, Data: be16(to.Port())},
		&expr.TProxy{Family: f.nf, TableFamily: unix.NFPROTO_INET, RegAddr: 1, RegPort: 2}}}
}

// dup sends a copy out of another interface, past the bridge.
func dup(name string, index int) term {
	return term{"dup to " + name,
		[]expr.Any{&expr.Immediate{Register: 1, Data: binary.NativeEndian.AppendUint32(nil, uint32(index))},
			&expr.Dup{RegDev: 1, IsRegDevSet: true}}}
}

func (s set) String() string {
	var b strings.Builder
	kind, key := "set", []string{}
	for _, f := range s.fields {
		key = append(key, f.typ.Name)
	}
	t := strings.Join(key, " . ")
	if s.value != nil {
		kind, t = "map", t+" : "+s.value.typ.Name
	}
	fmt.Fprintf(&b, "\t%s %s { type %s;", kind, s.name, t)
	if s.dynamic {
		b.WriteString(" size 65536; flags dynamic,timeout;")
	} else if s.timed {
		b.WriteString(" flags timeout;")
	}
	if s.timeout > 0 {
		fmt.Fprintf(&b, " timeout %s;", s.timeout)
	}
	if len(s.shown) > 0 {
		fmt.Fprintf(&b, " elements = { %s };", strings.Join(s.shown, ", "))
	}
	b.WriteString(" }\n")
	return b.String()
}

// String is the table as nft(8) prints it.
func (t table) String() string {
	fam := map[nftables.TableFamily]string{nftables.TableFamilyBridge: "bridge", nftables.TableFamilyINet: "inet",
		nftables.TableFamilyNetdev: "netdev"}[t.family]
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s {\n", fam, t.name)
	if t.owned {
		b.WriteString("\tflags owner\n")
	}
	for _, s := range t.sets {
		b.WriteString(s.String())
	}
	for _, c := range t.chains {
		fmt.Fprintf(&b, "\tchain %s {", c.name)
		if c.hook != "" {
			dev := ""
			if c.device != "" {
				dev = " device " + c.device
			}
			fmt.Fprintf(&b, " type filter hook %s%s priority %d; policy accept;", c.hook, dev, c.prio)
		}
		b.WriteString("\n")
		for _, r := range c.rules {
			fmt.Fprintf(&b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}")
	return b.String()
}
