package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/lab/hosts"
	"understudy/lab/site"
	"understudy/replica/imapc"
	"understudy/snoop/imapwire"
)

// quick are settings with which a silent production is found out soon.
func quick() map[string]string {
	return map[string]string{"failover.hold": `"200ms"`, "failover.hold_silent": `"300ms"`,
		"failover.probe_timeout": `"500ms"`, "mirror.idle": "4"}
}

// failure is a way of production to go, and to come back.
type failure struct {
	name       string
	fail, mend func(t *testing.T, n *network)
}

func failures() []failure {
	cable := func(port string, up bool) func(*testing.T, *network) {
		return func(t *testing.T, n *network) {
			t.Helper()
			if err := n.cable.Up(port, up); err != nil {
				t.Fatal(err)
			}
		}
	}
	return []failure{
		{"its processes are killed", func(_ *testing.T, n *network) { n.site.Kill() }, func(t *testing.T, n *network) {
			t.Helper()
			if err := n.site.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
		{"its host goes silently", cable("server", false), cable("server", true)},
		{"its cable is pulled", cable("box", false), cable("box", true)},
	}
}

// served is a whole visit: a new connection, a login, a mailbox.
func served(h *hosts.Host, addr, user string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := site.DialFrom(ctx, h, at(addr, 143), user)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Do("SELECT INBOX", nil)
	return err
}

// timing prints how long something took in several rounds.
func timing(t *testing.T, what string, ds []time.Duration) {
	t.Helper()
	slices.Sort(ds)
	t.Logf("%-60s n=%d  least %.0f  median %.0f  most %.0f ms", what, len(ds), ms(ds[0]), ms(ds[len(ds)/2]),
		ms(ds[len(ds)-1]))
}

// T17, B12: production goes in three ways; open sessions live on, new ones are
// served at the same address and hardware address, those with cold caches, too;
// after the hand-back everybody is with production again.
func TestT17_TakeoverInTheWire(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 3)
	n.plug(t, quick())
	n.armed(t)
	waitPhase(t, n.b, "protecting")
	u := n.site.Users
	mac := n.server.MAC("eth0").String()
	held := map[string]*imapc.Conn{}
	for name, c := range map[string]*imapc.Conn{"IPv4": login(t, n.client, server4, u[0]),
		"IPv6": login(t, n.client, server6, u[1]), "routed": login(t, n.remote, server4, u[0]),
		"routed IPv6": login(t, n.remote, server6, u[2])} {
		do(t, c, "SELECT INBOX")
		held[name] = c
	}
	for _, addr := range []string{server4, server6} {
		for _, h := range []*hosts.Host{n.client, n.other, n.remote} { // passwords are learned
			for _, user := range u {
				if err := served(h, addr, user, 10*time.Second); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	acked := map[string]string{} // message → account
	for _, f := range failures() {
		var open, fresh, cold []time.Duration
		for i := range times("UNDERSTUDY_ROUNDS", 2) {
			ok := t.Run(fmt.Sprintf("%s/%d", f.name, i), func(t *testing.T) {
				began := time.Now()
				f.fail(t, n)
				for _, h := range []*hosts.Host{n.other, n.router} {
					if err := h.Forget("eth0"); err != nil {
						t.Fatal(err)
					}
				}
				type outcome struct {
					what string
					took time.Duration
					err  error
				}
				ch := make(chan outcome, 20)
				run := func(what string, f func() error) {
					go func() { err := f(); ch <- outcome{what, time.Since(began), err} }()
				}
				jobs := 0
				for name, c := range held {
					jobs++
					run("open "+name, func() error { _, err := c.Do("NOOP", nil); return err })
				}
				for _, addr := range []string{server4, server6} {
					jobs += 3
					run("fresh "+addr, func() error { return served(n.client, addr, u[0], 20*time.Second) })
					run("cold "+addr, func() error { return served(n.other, addr, u[1], 20*time.Second) })
					run("cold routed "+addr, func() error { return served(n.remote, addr, u[2], 20*time.Second) })
				}
				for range jobs {
					o := <-ch
					if o.err != nil {
						t.Errorf("%s: %v after %s", o.what, o.err, o.took)
						continue
					}
					switch o.what[:4] {
					case "open":
						open = append(open, o.took)
					case "fres":
						fresh = append(fresh, o.took)
					default:
						cold = append(cold, o.took)
					}
				}
				waitPhase(t, n.b, "serving")
				for _, h := range []*hosts.Host{n.client, n.other} {
					for _, a := range []string{server4, server6} {
						if got := h.Neighbour("eth0", a); got != mac {
							t.Errorf("%s has %q for %s, production was at %s", h.Name, got, a, mac)
						}
					}
				}
				id := fmt.Sprint(strings.ReplaceAll(f.name, " ", "-"), i)
				for name, user := range map[string]string{"IPv4": u[0], "IPv6": u[1], "routed IPv6": u[2]} {
					if _, _, err := held[name].Append(imapc.Appending{Mailbox: "INBOX",
						Body: message(id+user, 800)}); err != nil {
						t.Fatalf("append in %s: %v", name, err)
					}
					acked[id+user] = user
				}
				f.mend(t, n)
				waitPhase(t, n.b, "returning")
				order(t, n.b, "handback")
				for name, c := range held {
					if _, err := c.Do("NOOP", nil); err != nil {
						t.Errorf("%s after the hand-back: %v", name, err)
					}
				}
			})
			if !ok {
				return
			}
		}
		timing(t, f.name+": open sessions answered after", open)
		timing(t, f.name+": new ones served after", fresh)
		timing(t, f.name+": with cold caches after", cold)
	}
	for id, user := range acked {
		c := must(n.site.Direct(t.Context(), user))(t)
		if got := countMessage(t, c, id); got != 1 {
			t.Errorf("production has %s %d times", id, got)
		}
		c.Close()
	}
}

// countMessage counts the copies of a message in INBOX.
func countMessage(t *testing.T, c *imapc.Conn, id string) int {
	t.Helper()
	if _, err := c.Select("INBOX", true); err != nil {
		t.Fatal(err)
	}
	k := 0
	_, err := c.Do("SEARCH HEADER MESSAGE-ID <"+id+"@other.test>", func(r imapwire.Response, unit []byte) error {
		if r.Name == "SEARCH" {
			k = len(strings.Fields(string(unit))) - 2
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}
