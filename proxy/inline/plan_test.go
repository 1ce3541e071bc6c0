package inline

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func testSite() Site {
	at := func(p uint16) (netip.AddrPort, netip.AddrPort) {
		return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), p), netip.AddrPortFrom(netip.IPv6Loopback(), p)
	}
	s := Site{LAN: "eth0", Server: "eth1", Bridge: "understudy0", BridgeMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
		MAC:     net.HardwareAddr{2, 0, 0, 0, 0, 0x10},
		Addrs:   []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")},
		Own:     []netip.Prefix{netip.MustParsePrefix("192.0.2.9/24")},
		Gateway: netip.MustParseAddr("192.0.2.1"), Pass: []uint16{22}}
	for i, p := range []Port{{Name: "imap", Port: 143}, {Name: "smtp", Port: 25}} {
		p.V4, p.V6 = at(uint16(40001 + i))
		s.Ports = append(s.Ports, p)
	}
	return s
}

func planText(s Site, steps []Step, tables ...table) string {
	var b strings.Builder
	for _, st := range steps {
		fmt.Fprintln(&b, st)
	}
	for _, t := range tables {
		fmt.Fprintf(&b, "\n%s\n", t)
	}
	return b.String()
}

// T3: what is done to the kernel, as text. UNDERSTUDY_UPDATE=1 writes it anew.
func TestT3_Plans(t *testing.T) {
	fenced := testSite()
	fenced.Fenced, fenced.NewMAC = true, net.HardwareAddr{2, 0, 0, 0, 0, 0x11}
	arm := testSite()
	arm.OneArm, arm.Own, arm.Gateway = true, nil, netip.Addr{}
	s := testSite()
	for name, got := range map[string]string{
		"inline":  planText(s, Diff(nil, s.Desired()), s.bridgeTable(), s.inetTable(s.Bridge)),
		"fenced":  planText(fenced, Diff(s.Desired(), fenced.Desired()), fenced.passTable(2, 3), fenced.fenceTable()),
		"one-arm": planText(arm, Diff(nil, arm.Desired()), arm.inetTable(arm.LAN), arm.bounceTable(2, arm.BridgeMAC)),
		"remove":  planText(s, Diff(s.Desired(), nil)),
	} {
		file := filepath.Join("testdata", name+".txt")
		if os.Getenv("UNDERSTUDY_UPDATE") != "" {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s differs; UNDERSTUDY_UPDATE=1 writes what it is now:\n%s", file, got)
		}
	}
}

// N31: in whatever state the kernel is, nothing passes the bridge before the
// fence is as it has to be, and nothing is left to do after a plan.
func TestN31_OrderOfAPlan(t *testing.T) {
	s := testSite()
	s.Fenced = true
	want := s.Desired()
	for cut := range len(want) + 1 {
		for _, have := range [][]item{want[:cut], want[cut:]} {
			steps := Diff(have, want)
			now := slices.Clone(have)
			for _, st := range steps {
				if st.Op == "remove" {
					t.Fatalf("%s though it is wanted", st)
				}
				if _, up := st.What.(upItem); up {
					for _, p := range []string{s.LAN, s.Server} {
						if !slices.ContainsFunc(now,
							func(i item) bool { return i.String() == isolatedItem{p, true}.String() }) {
							t.Fatalf("the bridge is up before %s is isolated", p)
						}
					}
				}
				now = append(slices.DeleteFunc(now, func(i item) bool { return i.id() == st.What.id() }), st.What)
			}
			if left := Diff(now, want); len(left) > 0 {
				t.Fatalf("left over: %v", left)
			}
		}
	}
}

func TestCheck(t *testing.T) {
	for want, spoil := range map[string]func(*Site){
		"network.lan is missing":      func(s *Site) { s.LAN = "" },
		"network.server must name":    func(s *Site) { s.Server = s.LAN },
		"longer than 15 characters":   func(s *Site) { s.Bridge = "a-very-long-name" },
		"network.addresses is empty":  func(s *Site) { s.Addrs = nil },
		"an address of its own":       func(s *Site) { s.Own = append(s.Own, netip.MustParsePrefix("192.0.2.10/24")) },
		"network.own is empty":        func(s *Site) { s.Own = nil },
		"network.pass has 143, which": func(s *Site) { s.Pass = []uint16{143} },
	} {
		s := testSite()
		spoil(&s)
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q was not found: %v", want, err)
		}
	}
	if err := testSite().Check(); err != nil {
		t.Error(err)
	}
}
