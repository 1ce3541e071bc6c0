package lab

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/lab/hosts"
	"understudy/lab/load"
)

// B12, B5, N31: clients on the network and behind the router, with IPv4 and IPv6,
// work while production dies in three ways, the box is killed, and both are. What
// was answered OK or 250, through the box or past it, is on production once in the
// end.
func TestB12_LedgerInTheWire(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	some := func(ms int) { time.Sleep(time.Duration(50+rng.IntN(ms)) * time.Millisecond) }
	n := newNetwork(t)
	n.serve(t, 3)
	for _, u := range n.site.Users {
		c := must(n.site.Direct(t.Context(), u))(t)
		do(t, c, "CREATE Filed")
		c.Logout()
	}
	more := quick()
	more["failover.auto_handback"], more["failover.return_probes"] = "true", "2"
	n.plug(t, more)
	n.armed(t)
	waitPhase(t, n.b, "protecting")
	// Everybody reaches production by another way.
	ways := []struct {
		h    *hosts.Host
		addr string
	}{{n.client, server4}, {n.client, server6}, {n.remote, server4}, {n.remote, server6}, {n.other, server4}}
	next := make(chan int, 1)
	next <- 0
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		i := <-next
		next <- i + 1
		w := ways[i%len(ways)]
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return w.h.Dial(ctx, net.JoinHostPort(w.addr, port))
	}
	l, book,
		stop := work(t,
		load.Options{IMAP: at(server4, 143), SMTP: at(server4, 25), Users: n.site.Users, Seed: seed, Tag: "wire",
			Pause: 15 * time.Millisecond, PerUser: 2, Dial: dial})
	fs := failures()
	boxKilled := 0
	for i := range kills(8) {
		some(700)
		f := fs[i%len(fs)]
		what := f.name
		switch i % 4 {
		case 1: // the box alone: clients go straight
			what = "the box is killed"
			n.b.Kill()
			boxKilled++
			some(700)
			check(t, n.b.Start(t.Context()))
			some(200)
			past := must(n.b.Status(t.Context()))(t).Network.Past
			// A message that was deleted past the box, unseen, would come back.
			order(t, n.b, "network", "gather")
			some(500)
			order(t, n.b, "sync")
			what += fmt.Sprintf(" (%d connections past it)", past)
		case 2: // both
			what += ", and the box is killed"
			f.fail(t, n)
			n.b.Kill()
			boxKilled++
			some(300)
			check(t, n.b.Start(t.Context()))
			waitPhase(t, n.b, "serving")
			some(700)
			f.mend(t, n)
		case 3: // the box in the outage
			what += ", the box is killed later"
			f.fail(t, n)
			waitPhase(t, n.b, "serving")
			some(500)
			n.b.Kill()
			boxKilled++
			f.mend(t, n) // production is there, and must not be reached
			if got := who(greeting(n.client, at(server4, 143), 300*time.Millisecond)); !strings.HasPrefix(got,
				"failed") {
				t.Errorf("with the box killed in an outage %s answers", got)
			}
			check(t, n.b.Start(t.Context()))
		default:
			f.fail(t, n)
			waitPhase(t, n.b, "serving")
			some(700)
			f.mend(t, n)
		}
		waitPhase(t, n.b, "protecting")
		t.Logf("%s: %d answers so far", what, l.Answers.Load())
	}
	some(500)
	stop()
	settled(t, n.b)
	judged(t, n.site, l)
	if dir := os.Getenv("UNDERSTUDY_LOGS"); dir != "" && t.Failed() {
		check(t, os.WriteFile(filepath.Join(dir, t.Name()+".history"), book.History(), 0o600))
	}
	t.Logf("the box was killed %d times", boxKilled)
	legal(t, book, n.b)
	order(t, n.b, "sync")
	for _, u := range n.site.Users {
		if !renumbered(n.b) {
			same(t, n.site, n.b, u, 10*time.Second)
		}
	}
}
