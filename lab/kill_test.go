package lab

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"understudy/lab/load"
	"understudy/lab/site"
	"understudy/replica/imapc"
)

// to logs in at an address.
func to(addr string) func(context.Context, string) (*imapc.Conn, error) {
	return func(ctx context.Context, user string) (*imapc.Conn, error) { return site.Dial(ctx, addr, user) }
}

// look reads accounts.
func look(t *testing.T, dial func(context.Context, string) (*imapc.Conn, error),
	users []string) map[string]map[string]load.Found {
	t.Helper()
	out := map[string]map[string]load.Found{}
	for _, u := range users {
		c := must(dial(t.Context(), u))(t)
		out[u] = must(load.Look(c))(t)
		c.Close()
	}
	return out
}

func kills(n int) int {
	if v, err := strconv.Atoi(os.Getenv("UNDERSTUDY_KILLS")); err == nil {
		return v
	}
	return n
}

// B5, N18, B2: both daemons are killed with -9 under load, 20 times at random
// moments; each time the standby serves on the same ports, production comes
// back and gets everything. No session breaks, no command fails, and every
// message that was answered OK or 250 is there once in the end.
func TestB5_KillsUnderLoad(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	s := newSite(t, 3)
	for _, u := range s.Users {
		c := dial(t, direct(s), u)
		do(t, c, "CREATE Filed")
	}
	b := newBox(t, s, map[string]string{"failover.auto_handback": "true"})
	waitPhase(t, b, "protecting")
	l, book,
		stop := work(t,
		load.Options{IMAP: b.IMAP, SMTP: b.SMTP, Users: s.Users, Seed: seed, Tag: "kill", Pause: 15 * time.Millisecond})
	for i := range kills(20) {
		time.Sleep(time.Duration(300+rng.IntN(700)) * time.Millisecond)
		before := l.Answers.Load()
		killed := time.Now()
		s.Kill()
		waitPhase(t, b, "serving")
		served := time.Since(killed)
		time.Sleep(time.Duration(200+rng.IntN(300)) * time.Millisecond)
		during := l.Answers.Load()
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		waitPhase(t, b, "protecting")
		t.Logf("kill %d: served after %s, back after %s; answers %d, then %d", i+1, served.Round(time.Millisecond),
			time.Since(killed).Round(time.Millisecond), before, during)
	}
	stop()
	// What Postfix still has queued is delivered now.
	settled(t, b)
	judged(t, s, l)
	if n := l.Broken.Load(); n > 0 {
		t.Errorf("%d sessions broke: %v", n, l.Breaks())
	}
	legal(t, book, b)
	order(t, b, "sync")
	alike(t, s, b)
}

// B5, M16: the Understudy itself is killed with -9 under load, at random moments
// of protecting, of an outage, and of the way back; once production dies with it.
// Sessions break then. What was answered OK or 250 is there all the same, once.
func TestB5_UnderstudyKilled(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	some := func(ms int) { time.Sleep(time.Duration(rng.IntN(ms)) * time.Millisecond) }
	s := newSite(t, 3)
	for _, u := range s.Users {
		do(t, dial(t, direct(s), u), "CREATE Filed")
	}
	b := newBox(t, s, map[string]string{"failover.auto_handback": "true", "failover.return_probes": "1"})
	waitPhase(t, b, "protecting")
	l, book,
		stop := work(t,
		load.Options{IMAP: b.IMAP, SMTP: b.SMTP, Users: s.Users, Seed: seed, Tag: "box", Pause: 15 * time.Millisecond})
	again := func() {
		b.Kill()
		some(200)
		check(t, b.Start(t.Context()))
	}
	for i := range kills(8) {
		some(800)
		switch i % 4 {
		case 0: // production lives
			again()
		case 1: // in the outage
			s.Kill()
			waitPhase(t, b, "serving")
			some(600)
			again()
			some(600)
			check(t, s.Start(t.Context()))
		case 2: // on the way back
			s.Kill()
			waitPhase(t, b, "serving")
			some(600)
			check(t, s.Start(t.Context()))
			waitPhase(t, b, "copying back", "handing back", "protecting")
			some(300)
			again()
		case 3: // both at once
			s.Kill()
			again()
			some(1000)
			check(t, s.Start(t.Context()))
		}
		waitPhase(t, b, "protecting")
	}
	some(500)
	stop()
	settled(t, b)
	judged(t, s, l)
	legal(t, book, b)
	order(t, b, "sync")
	alike(t, s, b)
}
