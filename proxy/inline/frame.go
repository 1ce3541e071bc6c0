package inline

import (
	"net"
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// neighbour is what a frame of ARP (RFC 826, 5227) or neighbour discovery
// (RFC 4861) says.
type neighbour struct {
	v6       bool
	ask      bool       // who has target
	target   netip.Addr // asked for; of an answer the address that is told of
	from     netip.Addr // who asks; unspecified in duplicate address detection
	fromMAC  net.HardwareAddr
	etherSrc net.HardwareAddr
}

// told is the pair of addresses that the frame tells of, if any.
func (n neighbour) told() (netip.Addr, net.HardwareAddr) {
	if n.ask || !n.v6 {
		return n.from, n.fromMAC
	}
	return n.target, n.fromMAC
}

func parseNeighbour(frame []byte) (n neighbour, ok bool) {
	var (
		eth layers.Ethernet
		arp layers.ARP
		ip6 layers.IPv6
		ic  layers.ICMPv6
		ns  layers.ICMPv6NeighborSolicitation
		na  layers.ICMPv6NeighborAdvertisement
	)
	p := gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet, &eth, &arp, &ip6, &ic, &ns, &na)
	p.IgnoreUnsupported = true
	var got []gopacket.LayerType
	if p.DecodeLayers(frame, &got) != nil || len(got) < 2 {
		return n, false
	}
	n.etherSrc = eth.SrcMAC
	option := func(opts layers.ICMPv6Options, typ layers.ICMPv6Opt) {
		for _, o := range opts {
			if o.Type == typ && len(o.Data) == 6 {
				n.fromMAC = o.Data
			}
		}
	}
	if got[1] == layers.LayerTypeIPv6 && ip6.HopLimit != 255 {
		return n, false // it came from another network (RFC 4861, 7.1)
	}
	switch got[len(got)-1] {
	case layers.LayerTypeARP:
		if arp.Protocol != layers.EthernetTypeIPv4 || len(arp.SourceProtAddress) != 4 || len(arp.DstProtAddress) != 4 {
			return n, false
		}
		n.from, n.target = netip.AddrFrom4([4]byte(arp.SourceProtAddress)), netip.AddrFrom4([4]byte(arp.DstProtAddress))
		n.ask, n.fromMAC = arp.Operation == layers.ARPRequest, arp.SourceHwAddress
	case layers.LayerTypeICMPv6NeighborSolicitation:
		n.v6, n.ask = true, true
		n.from, _ = netip.AddrFromSlice(ip6.SrcIP)
		n.target, _ = netip.AddrFromSlice(ns.TargetAddress)
		if option(ns.Options, layers.ICMPv6OptSourceAddress); n.fromMAC == nil {
			n.fromMAC = eth.SrcMAC
		}
	case layers.LayerTypeICMPv6NeighborAdvertisement:
		n.v6 = true
		n.from, _ = netip.AddrFromSlice(ip6.SrcIP)
		n.target, _ = netip.AddrFromSlice(na.TargetAddress)
		if option(na.Options, layers.ICMPv6OptTargetAddress); n.fromMAC == nil {
			n.fromMAC = eth.SrcMAC
		}
	default:
		return n, false
	}
	return n, true
}

var (
	broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodes  = netip.MustParseAddr("ff02::1")
)

func serialize(l ...gopacket.SerializableLayer) []byte {
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		l...); err != nil {
		panic(err) // layers of this file
	}
	return b.Bytes()
}

// claim says that ip is at mac. It is sent to one host, or to all (toMAC nil).
// ether is the sender in the frame itself: what switches learn from.
func claim(ether, mac net.HardwareAddr, ip netip.Addr, toMAC net.HardwareAddr, to netip.Addr) []byte {
	all := toMAC == nil
	if ip.Is4() {
		if all {
			// A gratuitous reply: sender and target are the same.
			toMAC, to = broadcast, ip
		}
		return serialize(&layers.Ethernet{SrcMAC: ether, DstMAC: toMAC, EthernetType: layers.EthernetTypeARP},
			&layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6,
				ProtAddressSize: 4, Operation: layers.ARPReply,
				SourceHwAddress: mac, SourceProtAddress: ip.AsSlice(), DstHwAddress: toMAC,
				DstProtAddress: to.AsSlice()})
	}
	flags := uint8(0x60) // solicited, override
	if all {
		flags, toMAC, to = 0x20, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, allNodes
	}
	return ndp(ether, toMAC, ip, to, &layers.ICMPv6NeighborAdvertisement{Flags: flags, TargetAddress: ip.AsSlice(),
		Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: mac}}})
}

func ndp(ether, toMAC net.HardwareAddr, from, to netip.Addr, body gopacket.SerializableLayer) []byte {
	typ := uint8(layers.ICMPv6TypeNeighborSolicitation)
	if _, ok := body.(*layers.ICMPv6NeighborAdvertisement); ok {
		typ = layers.ICMPv6TypeNeighborAdvertisement
	}
	ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: from.AsSlice(),
		DstIP: to.AsSlice()}
	ic := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(typ, 0)}
	_ = ic.SetNetworkLayerForChecksum(ip)
	return serialize(&layers.Ethernet{SrcMAC: ether, DstMAC: toMAC, EthernetType: layers.EthernetTypeIPv6}, ip, ic,
		body)
}

// ask asks all who has target.
func ask(mac net.HardwareAddr, from, target netip.Addr) []byte {
	if target.Is4() {
		return serialize(&layers.Ethernet{SrcMAC: mac, DstMAC: broadcast, EthernetType: layers.EthernetTypeARP},
			&layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6,
				ProtAddressSize: 4, Operation: layers.ARPRequest,
				SourceHwAddress: mac, SourceProtAddress: from.AsSlice(), DstHwAddress: make([]byte, 6),
				DstProtAddress: target.AsSlice()})
	}
	t := target.As16()
	group := netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: t[13], 14: t[14], 15: t[15]})
	return ndp(mac, net.HardwareAddr{0x33, 0x33, 0xff, t[13], t[14], t[15]}, from, group,
		&layers.ICMPv6NeighborSolicitation{TargetAddress: target.AsSlice(),
			Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: mac}}})
}
