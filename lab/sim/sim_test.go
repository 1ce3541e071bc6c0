package sim

import (
	"bufio"
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"understudy/failover"
	"understudy/snoop/smtpwire"
)

// B2, B5, M13, M16, T28: simulated sites under faults of all sorts, one or
// several, the Understudy's own end among them; options.go says what may be set in
// the environment.
func TestB5_SimulatedFaults(t *testing.T) {
	o, err := fromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	began, n, excused := time.Now(), 0, map[string]int{}
	t.Logf("seeds %d to %d", o.first, o.first+o.seeds-1)
	for seed := o.first; seed < o.first+o.seeds && !t.Failed(); seed++ {
		n++
		synctest.Test(t, func(t *testing.T) {
			j := simulate(t, o, seed, nil)
			for _, f := range j.faults {
				t.Error(f)
			}
			for what, n := range j.excused {
				excused[what] += n
			}
		})
	}
	t.Logf("%.0f seeds a minute; excused: %v", float64(n)/time.Since(began).Minutes(), excused)
}

// A name that is no fault's ends the test, with the names there are.
func TestFaultNames(t *testing.T) {
	if all, err := chosen(""); err != nil || len(all) != len(faults()) {
		t.Errorf("%d faults, %v", len(all), err)
	}
	if some, err := chosen("twice,kill"); err != nil || !slices.Equal(faultNames(some), []string{"twice", "kill"}) {
		t.Errorf("%v, %v", faultNames(some), err)
	}
	if _, err := chosen("kil"); err == nil || !strings.Contains(err.Error(), "kill, both, restart") {
		t.Errorf("a mistyped name: %v", err)
	}
}

// Promise 1: a message that production took and did not answer for, for minutes,
// is answered 250 at the takeover and is in the mailbox while the standby serves.
func TestB5_LongSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, options{}, 3)
		defer w.end()
		w.cfg.silent = 3 * time.Minute
		w.start()
		w.startBox()
		w.wait(failover.Protecting)
		conn, err := w.toBox(context.Background(), "smtp")
		if err != nil {
			t.Fatal(err)
		}
		br := bufio.NewReader(conn)
		say := func(text string, want int) {
			if text != "" {
				_, _ = io.WriteString(conn, text)
			}
			if r, err := smtpwire.ReadReply(br); err != nil || r.Code != want {
				t.Errorf("%q: %s %v", text, r, err)
			}
		}
		say("", 220)
		say("EHLO a.test\r\n", 250)
		say("MAIL FROM:<a@other.test>\r\n", 250)
		say("RCPT TO:<anna@sim.test>\r\n", 250)
		say("DATA\r\n", 354)
		w.freeze(true)
		say("Message-ID: <late@other.test>\r\n\r\nhello\r\n.\r\n", 250)
		time.Sleep(10 * time.Second)
		if p, n := w.phase(), w.living().Store().HeldCount(); p != failover.Serving || n > 0 {
			t.Errorf("%s, and %d accepted messages are in no mailbox", p, n)
		}
		if sn, err := w.living().Store().Snapshot("anna@sim.test", "INBOX"); err != nil || len(sn.Rows) != 1 {
			t.Errorf("the mailbox: %+v, %v", sn, err)
		}
		_ = conn.Close()
		w.freeze(false)
	})
}

// saboteur is between a client and the Understudy and does what a bug would do.
type saboteur struct {
	net.Conn
	kind string
	n    *atomic.Int64
}

// Write drops an APPEND and answers it, or sends one twice.
func (s *saboteur) Write(p []byte) (int, error) {
	if text := string(p); strings.Contains(text, " APPEND ") && strings.HasSuffix(text, "\r\n") {
		n := s.n.Add(1)
		tag, _, _ := strings.Cut(text, " ")
		switch {
		case n != 5:
		case s.kind == "acknowledged and lost":
			_, err := s.Conn.Write([]byte(tag + " NOOP\r\n"))
			return len(p), err
		case s.kind == "stored twice":
			for _, t := range []string{"twin" + text[len(tag):], text} {
				if _, err := s.Conn.Write([]byte(t)); err != nil {
					return 0, err
				}
			}
			return len(p), nil
		}
	}
	return s.Conn.Write(p)
}

// Read changes a UID.
func (s *saboteur) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if i := strings.Index(string(p[:n]), "FETCH (UID 1"); s.kind == "UID used again" && i >= 0 {
		p[i+len("FETCH (UID ")] = '2'
	}
	return n, err
}

// The simulation finds bugs that are planted between clients and the Understudy.
func TestPlantedBugsInASimulation(t *testing.T) {
	for _, kind := range []string{"acknowledged and lost", "stored twice", "UID used again"} {
		synctest.Test(t, func(t *testing.T) {
			var n atomic.Int64
			j := simulate(t, options{faults: faults()}, 7, func(c net.Conn) net.Conn { return &saboteur{c, kind, &n} })
			if len(j.faults) == 0 {
				t.Errorf("%s: not found", kind)
			} else {
				t.Logf("%s: %.150s", kind, j.faults[0])
			}
		})
	}
}
