package inline

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// neighbourFilter lets ARP, and neighbour solicitations and advertisements,
// through; not what carries a VLAN tag.
func neighbourFilter() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 9},
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_ARP, SkipTrue: 6},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IPV6, SkipTrue: 6},
		bpf.LoadAbsolute{Off: 20, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: 4},
		bpf.LoadAbsolute{Off: 54, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 135, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 136, SkipTrue: 1},
		bpf.RetConstant{Val: 2048},
		bpf.RetConstant{Val: 0},
	}
}

// taggedFilter lets only what carries a VLAN tag through.
func taggedFilter() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 2},
		bpf.LoadExtension{Num: bpf.ExtVLANTag},
		bpf.RetConstant{Val: 64},
		bpf.RetConstant{Val: 0},
	}
}

// packets is a socket for whole frames of one interface, as far as a filter
// lets them through. Frames that the box sends are not seen.
type packets struct {
	*os.File
	index int
}

func openPackets(name string, filter []bpf.Instruction) (*packets, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	code, err := bpf.Assemble(filter)
	if err != nil {
		return nil, err
	}
	// Protocol 0: nothing arrives before the filter is there.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w (the process needs CAP_NET_RAW)", name, err)
	}
	f := make([]unix.SockFilter, len(code))
	for i, c := range code {
		f[i] = unix.SockFilter{Code: c.Op, Jt: c.Jt, Jf: c.Jf, K: c.K}
	}
	fail := func(what string, err error) (*packets, error) {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("packet socket on %s: %s: %w", name, what, err)
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}); err != nil {
		return fail("filter", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return fail("ignore own frames", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifi.Index}); err != nil {
		return fail("bind", err)
	}
	// Multicast of addresses that are not this host's, too.
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
		&unix.PacketMreq{Ifindex: int32(ifi.Index), Type: unix.PACKET_MR_ALLMULTI}); err != nil {
		return fail("multicast", err)
	}
	return &packets{os.NewFile(uintptr(fd), "packets of "+name), ifi.Index}, nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// tcpFilter lets TCP through, whatever its tag.
func tcpFilter() []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: 5},
		bpf.LoadAbsolute{Off: 23, Size: 1},
		bpf.Jump{Skip: 1},
		bpf.LoadAbsolute{Off: 20, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_TCP, SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 18},
		bpf.RetConstant{Val: 0},
	}
}

// Mirror is a port that gets copies of production's traffic from a switch.
type Mirror struct{ p *packets }

// OpenMirror listens on an interface, which it sets up.
func OpenMirror(name string) (*Mirror, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("network.tap: interface %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return nil, fmt.Errorf("network.tap: set %s up: %w", name, err)
	}
	p, err := openPackets(name, tcpFilter())
	if err != nil {
		return nil, fmt.Errorf("network.tap: %w", err)
	}
	rc, err := p.SyscallConn()
	if err != nil {
		return nil, err
	}
	err = rc.Control(func(fd uintptr) {
		// With less room bursts are lost.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		_ = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
			&unix.PacketMreq{Ifindex: int32(p.index), Type: unix.PACKET_MR_PROMISC})
	})
	return &Mirror{p}, err
}

// Read reads a frame.
func (m *Mirror) Read(b []byte) (int, error) { return m.p.Read(b) }

// SetReadDeadline bounds Read.
func (m *Mirror) SetReadDeadline(t time.Time) error { return m.p.SetReadDeadline(t) }

// Close ends it.
func (m *Mirror) Close() error { return m.p.Close() }

// Lost is the number of frames that were lost since it was last asked.
func (m *Mirror) Lost() (int, error) {
	rc, err := m.p.SyscallConn()
	if err != nil {
		return 0, err
	}
	var st *unix.TpacketStats
	if e := rc.Control(func(fd uintptr) {
		st, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); e != nil || err != nil {
		return 0, errors.Join(e, err)
	}
	return int(st.Drops), nil
}
