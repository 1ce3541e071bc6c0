package lab

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy/lab/hosts"
)

// examined runs the doctor and returns what it found of the network, as "level
// text".
func examined(t *testing.T, n *network) []string {
	t.Helper()
	out, _ := n.b.Run(t.Context(), "doctor", "--json")
	var all []struct{ Level, Topic, Text, Remedy string }
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		// Its verdict follows on the error output.
		if err := json.NewDecoder(strings.NewReader(out)).Decode(&all); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	var l []string
	for _, f := range all {
		if f.Topic == "network" {
			l = append(l, f.Level+" "+f.Text)
			if (f.Level == "error" || f.Level == "warning") && f.Remedy == "" {
				t.Errorf("no remedy for: %s", f.Text)
			}
		}
	}
	return l
}

// N32: what is wrong with a network is named, with its remedy, before the box goes
// into the wire.
func TestDoctorNetwork(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 1)
	n.unplugged(t, map[string]string{"production.timeout": `"1s"`})
	check(t, n.box.Sysctl("net/bridge/bridge-nf-call-iptables", "0"))
	check(t, n.box.Sysctl("net/bridge/bridge-nf-call-ip6tables", "0"))
	finds := func(want string) {
		t.Helper()
		l := examined(t, n)
		if want == "" && slices.ContainsFunc(l, func(s string) bool { return !strings.HasPrefix(s, "ok ") }) {
			t.Errorf("a sound network has findings: %q", l)
		}
		if want != "" && !slices.ContainsFunc(l, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("%q was not found: %q", want, l)
		}
	}
	finds("")
	order(t, n.b, "network", "apply")
	finds("")

	echo(t, n.server, ":993")
	finds("warning production answers at " + server4 + ":993, which is not diverted")
	check(t, n.other.Addr("eth0", false, server4+"/24"))
	finds("error " + strings.ToLower(n.other.MAC("eth0").String()) + " answers for production's " + server4 +
		" on the LAN")
	check(t, n.other.Addr("eth0", false, boxAddr4+"/24"))
	finds("error the box's own address " + boxAddr4 + " is in use")
	check(t, n.other.Unplug("eth0"))

	// Another host on production's side, that speaks.
	extra := must(hosts.New("extra"))(t)
	t.Cleanup(extra.Close)
	check(t, hosts.Cable(extra, "eth0", n.cable, "extra"))
	check(t, n.cable.Join("extra"))
	check(t, extra.Addr("eth0", false, "10.99.0.77/24"))
	chatter := make(chan struct{})
	go func() {
		for t.Context().Err() == nil {
			select {
			case <-chatter:
				return
			case <-time.After(100 * time.Millisecond):
			}
			_ = extra.Forget("eth0")
			_, _ = greeting(extra, at(server4, 25), time.Second)
		}
	}()
	finds("warning other hosts are on production's side: 10.99.0.77")
	close(chatter)

	check(t, n.box.MTU("srv0", 1400))
	finds("error the two ports have different MTUs")
	check(t, n.box.MTU("srv0", 1500))
	check(t, n.box.Sysctl("net/bridge/bridge-nf-call-iptables", "1"))
	finds("warning net.bridge.bridge-nf-call-iptables is 1")
	check(t, n.box.Sysctl("net/ipv4/conf/all/rp_filter", "1"))
	finds("error net.ipv4.conf.all.rp_filter is 1")
	check(t, n.cable.Up("box", false))
	finds("warning srv0 has no carrier")
	finds("warning nobody on srv0 answers for production's address")

	n.b.Attr = &syscall.SysProcAttr{Credential: n.b.Attr.Credential}
	finds("error the process lacks CAP_NET_ADMIN")
	if _, err := n.b.Run(t.Context(), "network", "apply"); err == nil ||
		!strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("without rights: %v", err)
	}
}

// The units give the process what it needs, and no more.
func TestUnits(t *testing.T) {
	for file, want := range map[string][]string{
		"understudy.service": {"User=understudy", "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE",
			"CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE",
			"NoNewPrivileges=yes", "LimitNOFILE=65536", "ProtectSystem=strict",
			"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET"},
		"understudy-network.service": {"Type=oneshot",
			"ExecStart=/usr/bin/understudy network apply --config /etc/understudy.toml"},
	} {
		b := must(os.ReadFile(filepath.Join("..", "appliance-image", "units", file)))(t)
		for _, w := range want {
			if !slices.Contains(strings.Split(string(b), "\n"), w) {
				t.Errorf("%s lacks %q", file, w)
			}
		}
	}
}
