package lab

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"understudy/lab/hosts"
	"understudy/replica/imapc"
	"understudy/snoop/imapwire"
)

// sink is another site's mail server: it takes everything, and counts it.
func sink(t *testing.T, h *hosts.Host, addr string) *atomic.Int64 {
	t.Helper()
	n := &atomic.Int64{}
	accepting(t, h, addr, func(c net.Conn) {
		br := bufio.NewReader(c)
		_, _ = io.WriteString(c, "220 other.test\r\n")
		for data := false; ; {
			line, err := br.ReadString('\n')
			switch {
			case err != nil:
				return
			case data && line == ".\r\n":
				data = false
				n.Add(1)
			case data:
				continue
			case strings.HasPrefix(strings.ToUpper(line), "DATA"):
				data = true
				_, _ = io.WriteString(c, "354 go\r\n")
				continue
			}
			_, _ = io.WriteString(c, "250 ok\r\n")
		}
	})
	return n
}

// accepting serves a port of a host until the test ends.
func accepting(t *testing.T, h *hosts.Host, addr string, f func(net.Conn)) {
	t.Helper()
	l := must(h.Listen(addr))(t)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				f(c)
			}()
		}
	}()
}

// echo serves a port as ssh would: what comes goes back.
func echo(t *testing.T, h *hosts.Host, addr string) {
	t.Helper()
	accepting(t, h, addr, func(c net.Conn) { _, _ = io.Copy(c, c) })
}

// shell is a session with echo.
type shell struct{ net.Conn }

func (s shell) ask(text string) error {
	_ = s.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(s, text); err != nil {
		return err
	}
	b := make([]byte, len(text))
	_, err := io.ReadFull(s, b)
	if err == nil && string(b) != text {
		err = fmt.Errorf("%q came back as %q", text, b)
	}
	return err
}

func sshTo(t *testing.T, h *hosts.Host, addr string) shell {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	s := shell{must(h.Dial(ctx, at(addr, 22)))(t)}
	t.Cleanup(func() { _ = s.Close() })
	if err := s.ask("hello"); err != nil {
		t.Fatalf("port 22 of %s from %s: %v", addr, h.Name, err)
	}
	return s
}

// ttl marks what production itself sends.
const ttl = 77

// ofProduction returns the frames that can only be production's own: packets with
// its mark, and questions and announcements of its neighbours. Frames of
// connections to port 22 are let through, and are not counted.
func ofProduction(frames []hosts.Frame, macs ...net.HardwareAddr) []string {
	var out []string
	for _, f := range frames {
		d := f.Data
		own := false
		for _, m := range macs {
			own = own || bytes.Equal(d[6:12], m)
		}
		switch ip := addresses(d); {
		case ip != nil && d[12] == 8 && d[22] == ttl && !(d[23] == 6 && d[34] == 0 && d[35] == 22),
			ip != nil && d[12] == 0x86 && d[21] == ttl && !(d[20] == 6 && d[54] == 0 && d[55] == 22):
			out = append(out, fmt.Sprintf("%v → %v, protocol %d", ip[0], ip[1], d[23]))
		case ip != nil && own && d[12] == 0x86 && d[20] == 58 && d[54] != 136:
			out = append(out, fmt.Sprintf("ICMPv6 %d from %v", d[54], ip[0]))
		case d[12] == 8 && d[13] == 6 && own && (d[21] == 1 || bytes.Equal(d[28:32], d[38:42])):
			out = append(out, fmt.Sprintf("ARP %d of %v for %v", d[21], net.IP(d[28:32]), net.IP(d[38:42])))
		}
	}
	return out
}

func other(mac net.HardwareAddr) net.HardwareAddr {
	m := bytes.Clone(mac)
	m[5] ^= 0x55
	return m
}

// T18, T22, N31, N33, B12: production comes back, as it was and with another
// network card, announces itself, and has mail to send. Nothing of it gets
// through before the hand-back, nothing reaches it but what may, whatever happens
// to the box meanwhile.
func TestT18_Fence(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 2)
	for _, p := range []string{"net/ipv4/ip_default_ttl", "net/ipv6/conf/all/hop_limit",
		"net/ipv6/conf/eth0/hop_limit"} {
		check(t, n.server.Sysctl(p, fmt.Sprint(ttl)))
	}
	for _, p := range []string{"net/ipv4/conf/eth0/arp_notify", "net/ipv6/conf/eth0/ndisc_notify"} {
		check(t, n.server.Sysctl(p, "1")) // it announces itself when it comes up
	}
	n.site.SetPostfix(t, "default_transport", "smtp:["+remote4+"]:25")
	for _, a := range []string{":22"} {
		echo(t, n.server, a)
	}
	n.plug(t, quick())
	n.armed(t)
	waitPhase(t, n.b, "protecting")
	u := n.site.Users
	held, second := login(t, n.client, server4, u[0]), login(t, n.remote, server6, u[1])
	do(t, held, "SELECT INBOX")
	do(t, second, "SELECT INBOX")
	var received *atomic.Int64
	mac := n.server.MAC("eth0")

	// A message for another site that production cannot send now.
	queued := func(id string) {
		t.Helper()
		c := shell{must(n.client.Dial(t.Context(), at(server4, 587)))(t)}
		defer func() { _ = c.Close() }()
		br := bufio.NewReader(c)
		auth := "AUTH PLAIN " + plain(u[0])
		for _, l := range []string{"", "EHLO c.test", auth, "MAIL FROM:<" + u[0] + ">", "RCPT TO:<friend@other.test>",
			"DATA", string(message(id, 100)) + "\r\n.", "QUIT"} {
			if l != "" {
				_, _ = io.WriteString(c, l+"\r\n")
			}
			for {
				r, err := br.ReadString('\n')
				if err != nil || r[0] > '3' {
					t.Fatalf("%.30s: %s %v", l, r, err)
				}
				if r[3] == ' ' {
					break
				}
			}
		}
	}

	top := t
	for round, fresh := range []bool{false, true} {
		t.Run(map[bool]string{false: "same network card", true: "another network card"}[fresh], func(t *testing.T) {
			if received == nil {
				queued("queued")
			}
			ssh := sshTo(t, n.client, server4)
			sshTo(t, n.remote, server6)
			n.site.Kill()
			waitPhase(t, n.b, "serving")
			// The host lives, without its mail.
			check(t, ssh.ask("still here"))
			check(t, n.server.Forget("eth0"))
			for _, a := range []string{server4, server6} {
				for _, h := range []*hosts.Host{n.client, n.other, n.remote} {
					sshTo(t, h, a)
				}
			}
			// Power off, and on again.
			check(t, n.server.Up("eth0", false))
			if fresh {
				check(t, n.server.SetMAC("eth0", other(mac)))
			}
			if received == nil {
				received = sink(t, n.remote, ":25")
			}
			client, router := must(n.client.Capture("eth0"))(t), must(n.router.Capture("eth0"))(t)
			check(t, n.server.Up("eth0", true))
			check(t, n.address())
			check(t, n.site.Start(t.Context()))
			waitPhase(t, n.b, "returning")
			if fresh {
				n.until(t, 5*time.Second, "at its new address", func() bool {
					s, err := n.b.Status(t.Context())
					return err == nil && s.Network.MAC == other(mac).String()
				})
			}
			id := fmt.Sprint("fenced", round)
			if _, _, err := held.Append(imapc.Appending{Mailbox: "INBOX", Body: message(id, 300)}); err != nil {
				t.Fatal(err)
			}
			for _, h := range []*hosts.Host{n.client, n.other, n.remote} {
				check(t, h.Forget("eth0"))
				for _, a := range []string{server4, server6} {
					check(t, served(h, a, u[0], 10*time.Second))
					sshTo(t, h, a)
				}
			}
			n.killAndReboot(t)
			time.Sleep(2500 * time.Millisecond) // two runs of its queue
			if k := received.Load(); k != 0 && round == 0 {
				t.Errorf("%d messages left a fenced production", k)
			}
			for where, c := range map[string]*hosts.Capture{"client": client, "router": router} {
				if l := ofProduction(c.Stop(), mac, other(mac)); len(l) > 0 {
					t.Errorf("at the %s %d frames of a fenced production were seen: %.600q", where, len(l), l)
				}
			}
			// the box was killed
			held, second = login(top, n.client, server4, u[0]), login(top, n.remote, server6, u[1])
			do(t, held, "SELECT INBOX")
			waitPhase(t, n.b, "returning")
			order(t, n.b, "handback")
			do(t, held, "NOOP")
			do(t, second, "NOOP")
			c := must(n.site.Direct(t.Context(), u[0]))(t)
			defer c.Close()
			if k := countMessage(t, c, id); k != 1 {
				t.Errorf("production has the message of the outage %d times", k)
			}
			now := n.server.MAC("eth0").String()
			for _, h := range []*hosts.Host{n.client, n.other, n.router} {
				for _, a := range []string{server4, server6} {
					n.until(t, 5*time.Second,
						fmt.Sprintf("known to %s at %s, but at %s", h.Name, now, h.Neighbour("eth0", a)), func() bool {
							k := h.Neighbour("eth0", a)
							return k == now || k == "" && h == n.router
						})
				}
			}
			sshTo(t, n.client, server4)
			n.until(t, 20*time.Second, "free to send its mail", func() bool { return received.Load() == 1 })
		})
	}
}

// killAndReboot kills the box while production is fenced, lets production try
// its luck, has the machine forget all of its network, and starts again.
func (n *network) killAndReboot(t *testing.T) {
	t.Helper()
	n.b.Kill()
	for _, h := range []*hosts.Host{n.client, n.remote} {
		if got := who(greeting(h, at(server4, 143), 500*time.Millisecond)); !strings.HasPrefix(got, "failed") {
			t.Errorf("with the box killed and production fenced, %s answers %s", got, h.Name)
		}
	}
	// As after a reboot: nothing of the bridge, of routes and tables is left.
	check(t, n.box.Unplug("understudy0"))
	order(t, n.b, "network", "apply")
	if got := who(greeting(n.client, at(server4, 143), 500*time.Millisecond)); !strings.HasPrefix(got, "failed") {
		t.Errorf("after a reboot, before the box runs, %s answers", got)
	}
	if _, err := n.b.Run(t.Context(), "network", "remove"); err == nil {
		t.Error("the bridge could be removed while production is fenced")
	}
	if err := n.b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.until(t, 10*time.Second, "serving again",
		func() bool { return served(n.client, server4, n.site.Users[0], time.Second) == nil })
	if s, err := n.b.Status(t.Context()); err != nil || s.Answering != "standby" || !s.Network.Fenced {
		t.Errorf("started again it says %+v %v", s, err)
	}
}

// B12: with when_dead = "open" a box that dies in an outage lets clients through
// to production, if that lives. Sessions that went past the box are ended when
// production is fenced: they do not hang.
func TestB12_OpenWhenDead(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 1)
	more := quick()
	more["network.when_dead"] = `"open"`
	// It works once: a switch that cannot be reached later must not keep the box from serving.
	once := filepath.Join(t.TempDir(), "fenced")
	check(t, os.Chmod(filepath.Dir(filepath.Dir(once)), 0o755))
	check(t, os.Chmod(filepath.Dir(once), 0o777))
	more["failover.fence_command"] = `["mkdir", "` + once + `"]`
	n.plug(t, more)
	n.armed(t)
	waitPhase(t, n.b, "protecting")
	u := n.site.Users[0]
	check(t, served(n.client, server4, u, 5*time.Second))
	order(t, n.b, "network", "bypass", "on")
	var past []*imapc.Conn
	for _, a := range []string{server4, server6} {
		c := login(t, n.client, a, u)
		do(t, c, "SELECT INBOX")
		past = append(past, c)
	}
	order(t, n.b, "takeover") // with the bypass still on
	for _, c := range past {
		began := time.Now()
		if _, err := c.Do("NOOP", nil); err == nil || time.Since(began) > 2*time.Second {
			t.Errorf("a session past the box, when production was fenced: %v after %s", err, time.Since(began))
		}
	}
	if _, err := n.b.Run(t.Context(), "network", "bypass", "on"); err == nil {
		t.Error("connections could be sent straight to a fenced production")
	}
	check(t, served(n.client, server4, u, 5*time.Second))
	if got := who(greeting(n.client, at(server6, 143), time.Second)); got != "box" {
		t.Errorf("in the outage %s answers", got)
	}
	n.b.Kill()
	for _, a := range []string{server4, server6} {
		n.until(t, 5*time.Second, "open",
			func() bool { return who(greeting(n.client, at(a, 143), time.Second)) == "direct" })
	}
	if err := n.b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.until(t, 10*time.Second, "fenced again",
		func() bool { return who(greeting(n.client, at(server4, 143), time.Second)) == "box" })
	check(t, served(n.client, server4, u, 5*time.Second))
	waitPhase(t, n.b, "returning")
	order(t, n.b, "handback")
	check(t, served(n.client, server4, u, 5*time.Second))
}

// T18, T20: a client that only listens hears of new mail after production came back
// with another network card, on the connection it had before.
func TestT18_ListenersOfANewCard(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 2)
	n.plug(t, quick())
	n.armed(t)
	waitPhase(t, n.b, "protecting")
	u := n.site.Users
	heard := make(chan uint32, 100)
	for _, h := range []*hosts.Host{n.client, n.remote} {
		c := login(t, h, server4, u[0])
		do(t, c, "SELECT INBOX")
		go func() {
			_ = c.Idle(t.Context(), func(r imapwire.Response) {
				if r.Name == "EXISTS" {
					heard <- r.Num
				}
			})
		}()
	}
	hear := func(id string) {
		t.Helper()
		c := login(t, n.other, server6, u[0])
		if _, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: message(id, 300)}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			select {
			case <-heard:
			case <-time.After(5 * time.Second):
				t.Fatalf("a listening client did not hear of %q", id)
			}
		}
		c.Logout()
	}
	hear("before")
	n.site.Kill()
	waitPhase(t, n.b, "serving")
	hear("in the outage")
	mac := other(n.server.MAC("eth0"))
	check(t, n.server.Up("eth0", false))
	check(t, n.server.SetMAC("eth0", mac))
	check(t, n.server.Up("eth0", true))
	check(t, n.address())
	check(t, n.site.Start(t.Context()))
	waitPhase(t, n.b, "returning")
	order(t, n.b, "handback")
	hear("after")
	if got := n.client.Neighbour("eth0", server4); got != mac.String() {
		t.Errorf("the client has %s for production, which is at %s now", got, mac)
	}
}

// B5, N17: what was on its way to production when that was lost must not arrive
// later: the standby has done it. The kernel would go on sending it.
func TestB5_NothingArrivesLate(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 1)
	n.plug(t, quick())
	n.armed(t)
	waitPhase(t, n.b, "protecting")
	u := n.site.Users[0]
	c := login(t, n.client, server4, u)
	do(t, c, "SELECT INBOX")
	check(t, n.cable.Up("server", false))
	if _, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: message("in-flight", 20_000)}); err != nil {
		t.Fatal(err)
	}
	if r := sendFrom(t, n.client, at(server4, 25), "x@other.test", string(message("in-flight-mail", 20_000)),
		u); r.Code != 250 {
		t.Fatal(r)
	}
	waitPhase(t, n.b, "serving")
	// A connection that was given up and has data left (FIN_WAIT1): local and remote
	// address, state, queues.
	check(t, n.box.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/tcp")
		for l := range strings.Lines(string(b)) {
			if f := strings.Fields(l); len(f) > 4 && f[3] == "04" && !strings.HasPrefix(f[4], "00000000:") {
				t.Errorf("the kernel still has something to send: %s", l)
			}
		}
		return err
	}))
	time.Sleep(5 * time.Second) // it would try more seldom by now
	check(t, n.cable.Up("server", true))
	waitPhase(t, n.b, "returning")
	order(t, n.b, "handback")
	time.Sleep(7 * time.Second)
	d := must(n.site.Direct(t.Context(), u))(t)
	defer d.Close()
	for _, id := range []string{"in-flight", "in-flight-mail"} {
		if k := countMessage(t, d, id); k != 1 {
			t.Errorf("%s is there %d times", id, k)
		}
	}
}
