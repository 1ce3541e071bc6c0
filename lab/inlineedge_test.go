package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/lab/hosts"
	"understudy/replica/imapc"
)

// T1: behind a router with a smaller MTU large answers get through: what the
// router says of packets that are too long reaches the box.
func TestT1_PathMTU(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 1)
	u := n.site.Users[0]
	n.plug(t, nil)
	n.armed(t)
	waitPhase(t, n.b, "protecting")
	big := message("big", 3<<20)
	c := login(t, n.client, server4, u)
	if _, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: big}); err != nil {
		t.Fatal(err)
	}
	check(t, n.router.MTU("eth1", 1280))
	for _, addr := range []string{server4, server6} {
		c := login(t, n.remote, addr, u)
		do(t, c, "SELECT INBOX")
		start := time.Now()
		var got []byte
		if err := c.Fetch("1", "(UID BODY.PEEK[])",
			func(m imapc.Message) error { got = bytes.Clone(m.Body); return nil }); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, big) {
			t.Errorf("%d of %d bytes came through", len(got), len(big))
		}
		t.Logf("%s: 3 MiB through a router with an MTU of 1280 took %s", addr,
			time.Since(start).Round(time.Millisecond))
	}
}

// A server whose frames carry VLAN tags is not diverted, and the box says so.
func TestTaggedProduction(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 1)
	n.plug(t, nil)
	n.armed(t)
	seen := must(n.client.Capture("eth0"))(t)
	dst, src := n.client.MAC("eth0"), n.server.MAC("eth0")
	frame := append(append(bytes.Clone(dst), src...), 0x81, 0, 0, 7, 8, 0)
	frame = append(frame, make([]byte, 60)...)
	check(t, n.server.Send("eth0", frame))
	n.until(t, 5*time.Second, "warned of tags", func() bool {
		s, err := n.b.Status(t.Context())
		return err == nil && strings.Contains(strings.Join(s.Problems, " "), "VLAN")
	})
	n.until(t, 5*time.Second, "passed on", func() bool {
		for _, f := range seen.Frames() {
			if bytes.Equal(f.Data[:12], frame[:12]) && len(f.Data) > 60 {
				return true
			}
		}
		return false
	})
	seen.Stop()
}

// oneArm puts the box at the switch, beside production, which is plugged in
// there, too.
func oneArm(t *testing.T, n *network, more map[string]string) {
	t.Helper()
	check(t, n.lan.Unplug("box"))
	check(t, hosts.Cable(n.box, "eth0", n.lan, "box2"))
	check(t, hosts.Cable(n.cable, "up", n.lan, "down"))
	check(t, n.lan.Join("box2", "down"))
	check(t, n.cable.Join("up"))
	check(t, n.box.Addr("eth0", false, boxAddr4+"/24", boxAddr6+"/64"))
	check(t, n.box.Route("", "10.99.0.1"))
	check(t, n.box.Route("", "fd99::1"))
	s := map[string]string{"network.mode": `"one-arm"`, "network.lan": `"eth0"`, "network.server": `""`,
		"network.own":            "[]",
		"failover.fence_command": `["true"]`}
	for k, v := range more {
		s[k] = v
	}
	n.plug(t, s)
}

// T17, T22, N32: beside production the box takes its address when it is gone, and
// gives it back; production's own start is not disturbed.
func TestT17_OneArm(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 1)
	echo(t, n.server, ":22")
	u := n.site.Users[0]
	oneArm(t, n, quick())
	waitPhase(t, n.b, "protecting")
	mac, own := n.server.MAC("eth0").String(), n.box.MAC("eth0").String()
	for _, a := range []string{server4, server6} {
		if got := who(greeting(n.client, at(a, 143), time.Second)); got != "direct" {
			t.Fatalf("beside production, %s answers", got)
		}
	}
	// No password has crossed the box: it takes the address for a while.
	order(t, n.b, "network", "bypass", "off")
	n.until(t, 5*time.Second, "in the path",
		func() bool { return who(greeting(n.client, at(server4, 143), time.Second)) == "box" })
	check(t, served(n.client, server4, u, 5*time.Second))
	n.until(t, 5*time.Second, "known",
		func() bool { s, err := n.b.Status(t.Context()); return err == nil && s.Verifiers > 0 })
	order(t, n.b, "network", "bypass", "on")
	for _, a := range []string{server4, server6} {
		n.until(t, 5*time.Second, "direct again",
			func() bool { return who(greeting(n.client, at(a, 143), time.Second)) == "direct" })
	}
	for _, f := range failures()[:2] {
		t.Run(f.name, func(t *testing.T) {
			for _, h := range []*hosts.Host{n.client, n.remote} { // warm caches
				sshTo(t, h, server4)
				sshTo(t, h, server6)
			}
			began := time.Now()
			f.fail(t, n)
			waitPhase(t, n.b, "serving")
			t.Logf("decided after %.0f ms", ms(time.Since(began)))
			check(t, n.other.Forget("eth0"))
			for _, h := range []*hosts.Host{n.client, n.remote, n.other} {
				for _, a := range []string{server4, server6} {
					began := time.Now()
					for served(h, a, u, 5*time.Second) != nil && time.Since(began) < 10*time.Second {
						time.Sleep(20 * time.Millisecond)
					}
					t.Logf("%s at %s: served %.0f ms later", h.Name, a, ms(time.Since(began)))
					if err := served(h, a, u, 5*time.Second); err != nil {
						t.Errorf("%s at %s: %v", h.Name, a, err)
					}
				}
			}
			for _, a := range []string{server4, server6} {
				if got := n.client.Neighbour("eth0", a); got != own {
					t.Errorf("the client has %s for %s, the box is at %s", got, a, own)
				}
			}
			if f.name == failures()[0].name {
				sshTo(t, n.client, server4) // the host lives
				sshTo(t, n.remote, server6)
			}
			// Production starts again, and looks whether its address is free.
			killed := f.name == failures()[0].name
			if !killed {
				f.mend(t, n)
			}
			check(t, n.server.Up("eth0", false))
			check(t, n.server.Up("eth0", true))
			check(t, n.server.Addr("eth0", true, server4+"/24", server6+"/64"))
			check(t, n.server.Route("", "10.99.0.1"))
			n.until(t, 10*time.Second, "free of tentative addresses", func() bool {
				failed, pending, err := n.server.Tentative("eth0", server6)
				check(t, err)
				if failed {
					t.Fatal("production found its own address taken, and gave it up")
				}
				return !pending
			})
			check(t, n.server.Route("", "fd99::1"))
			if killed {
				f.mend(t, n)
			}
			waitPhase(t, n.b, "returning")
			for _, a := range []string{server4, server6} {
				if err := served(n.client, a, u, 5*time.Second); err != nil {
					t.Errorf("while production is back: %v", err)
				}
			}
			began = time.Now()
			order(t, n.b, "handback")
			t.Logf("handed back after %.0f ms", ms(time.Since(began)))
			began = time.Now()
			for _, h := range []*hosts.Host{n.client, n.remote, n.other} {
				for _, a := range []string{server4, server6} {
					n.until(t, 5*time.Second, "answered directly",
						func() bool { return who(greeting(h, at(a, 143), time.Second)) == "direct" })
				}
			}
			t.Logf("all are with production %.0f ms later", ms(time.Since(began)))
			if got := n.client.Neighbour("eth0", server4); got != mac {
				t.Errorf("the client has %s for production, which is at %s", got, mac)
			}
		})
	}
}

// T3, T22: what is no mail passes as it is, with the client's address, whether
// mail is diverted, goes past the box, or is answered by the standby; what may
// not be reached in an outage is not.
func TestT3_OtherPorts(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 1)
	ports := []int{22, 80, 389}
	for _, p := range ports {
		told(t, n.server, fmt.Sprintf(":%d", p))
	}
	more := quick()
	more["network.pass"] = "[22, 80]"
	n.plug(t, more)
	n.armed(t)
	waitPhase(t, n.b, "protecting")
	through := func(state string, open ...int) {
		t.Helper()
		for h, ip := range map[*hosts.Host][2]string{n.client: {client4, client6}, n.remote: {remote4, remote6}} {
			for i, addr := range []string{server4, server6} {
				for _, p := range ports {
					got, err := transfer(h, at(addr, p))
					switch {
					case !slices.Contains(open, p):
						if err == nil {
							t.Errorf("%s: port %d of %s is reached from %s", state, p, addr, h.Name)
						}
					case err != nil:
						t.Errorf("%s: port %d of %s from %s: %v", state, p, addr, h.Name, err)
					case got != ip[i]:
						t.Errorf("%s: port %d of %s saw %s in place of %s", state, p, addr, got, ip[i])
					}
				}
			}
		}
	}
	through("diverted", ports...)
	order(t, n.b, "network", "bypass", "on")
	through("bypass", ports...)
	order(t, n.b, "network", "bypass", "off")
	n.site.Kill()
	waitPhase(t, n.b, "serving")
	through("in an outage", 22, 80)
	check(t, n.site.Start(t.Context()))
	waitPhase(t, n.b, "returning")
	order(t, n.b, "handback")
	through("handed back", ports...)
}

// told serves a port: it tells the peer its address, and sends back what comes.
func told(t *testing.T, h *hosts.Host, addr string) {
	t.Helper()
	accepting(t, h, addr, func(c net.Conn) {
		host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		_, _ = fmt.Fprintln(c, host)
		_, _ = io.Copy(c, c)
	})
}

// transfer sends 2 MiB to and fro; it returns the address that the other side saw.
func transfer(h *hosts.Host, addr string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := h.Dial(ctx, addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	br := bufio.NewReader(c)
	host, err := br.ReadString('\n')
	if err != nil {
		return "", err
	}
	sent := message("bulk", 2<<20)
	go func() { _, _ = c.Write(sent) }()
	back := make([]byte, len(sent))
	if _, err := io.ReadFull(br, back); err != nil {
		return "", err
	}
	if !bytes.Equal(sent, back) {
		return "", errors.New("what came back is something else")
	}
	return strings.TrimSpace(host), nil
}
