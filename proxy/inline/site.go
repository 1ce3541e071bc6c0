// Package inline puts the box into the wire: a bridge of two ports between the
// network and production, in which connections to the mail ports are diverted
// to the proxy and everything else passes untouched.
//
// Implementation notes. Production and its clients see each other's addresses,
// of IP and of Ethernet, on every packet. Diversion goes by connection: a SYN to
// an armed port enters its connection into a set, and only what is in a set
// leaves the bridge; so connections that run directly are not cut when the box
// begins, nor diverted ones when it ends. What is armed has to be renewed all the
// time, and the tables that divert belong to the process: a dead or frozen one
// means traffic straight to production. The fence is the opposite: it is noted on
// disk, and in the kernel (ports of the bridge that are isolated from each other),
// and stays when the process dies.
//
// File descriptors are released in reverse order of their opening when a process
// is killed, and those of packet sockets slowly: so packet sockets are opened
// first, then the socket that owns the tables, then listeners.
//
// Everything is a plan first (items, desired and observed), and the difference is
// applied; no program is run.
package inline

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Port is a mail port of production and where the box listens for it.
type Port struct {
	Name   string
	Port   uint16
	V4, V6 netip.AddrPort // listeners; unset until they are open
}

// Site is what is known of the wire.
type Site struct {
	OneArm    bool // beside production, not before it: LAN is the only port
	LAN       string
	Server    string
	Bridge    string
	BridgeMAC net.HardwareAddr // of the LAN port
	Addrs     []netip.Addr     // of production
	MAC       net.HardwareAddr // of production, as the network knows it; nil: not yet known
	NewMAC    net.HardwareAddr // of a replacement while it is fenced; nil: as MAC
	Own       []netip.Prefix   // of the box
	Gateway   netip.Addr       // of the box
	Ports     []Port
	Pass      []uint16 // TCP ports that the fence lets through
	Fenced    bool
	// Open: a fence ends with the process, so that production can be reached if
	// the box dies in an outage. Else it stays.
	Open bool
}

// reach is production's address on its own side.
func (s Site) reach() net.HardwareAddr {
	if s.NewMAC != nil {
		return s.NewMAC
	}
	return s.MAC
}

// device is the interface that the box itself has its address on.
func (s Site) device() string {
	if s.OneArm {
		return s.LAN
	}
	return s.Bridge
}

// Check finds what is missing or contradicts itself.
func (s Site) Check() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if s.LAN == "" {
		bad("network.lan is missing: name the interface towards clients")
	}
	if !s.OneArm && (s.Server == "" || s.Server == s.LAN) {
		bad("network.server must name the interface that production is plugged into, another one than network.lan")
	}
	for _, n := range []string{s.LAN, s.Server, s.Bridge} {
		if len(n) > 15 {
			bad("interface name %q is longer than 15 characters", n)
		}
	}
	if len(s.Addrs) == 0 {
		bad("network.addresses is empty: list the addresses of production that clients use")
	}
	for _, a := range s.Addrs {
		for _, o := range s.Own {
			if o.Addr() == a {
				bad("network.own has %s, which is production's: the box needs an address of its own", a)
			}
		}
	}
	if len(s.Own) == 0 && !s.OneArm {
		bad("network.own is empty: the box needs an address of its own in production's network, to copy mail from " +
			"it and to reach it while it is fenced")
	}
	for _, p := range s.Pass {
		for _, m := range s.Ports {
			if m.Port == p {
				bad("network.pass has %d, which is a mail port: two servers would answer there", p)
			}
		}
	}
	return errors.Join(errs...)
}
