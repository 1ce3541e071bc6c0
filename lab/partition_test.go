package lab

import (
	"bytes"
	"encoding/base64"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/lab/load"
	"understudy/lab/site"
	"understudy/replica/imapc"
)

// slowFor carries connections to a server. What the server says to the master user
// in the name of one account takes delay longer, piece by piece.
func slowFor(t *testing.T, to, user string, delay time.Duration) (addr string) {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = l.Close() })
	mark := []byte(base64.StdEncoding.EncodeToString([]byte(user[:len(user)/3*3])))
	carry := func(dst, src net.Conn, piece func([]byte)) {
		defer func() { _ = dst.Close() }()
		buf := make([]byte, 32<<10)
		for {
			n, err := src.Read(buf)
			if err != nil {
				return
			}
			piece(buf[:n])
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p, err := net.Dial("tcp", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			slow := make(chan struct{})
			found := false
			go carry(p, c, func(b []byte) {
				if !found && bytes.Contains(b, mark) {
					found = true
					close(slow)
				}
			})
			go carry(c, p, func([]byte) {
				select {
				case <-slow:
					time.Sleep(delay)
				default:
				}
			})
		}
	}()
	return l.Addr().String()
}

// M7, M8: accounts are copied and handed back each by itself. One that takes many
// times longer holds up no client of another, and the others' copy is complete and
// shown as such while its own is under way.
func TestM7_OneSlowAccount(t *testing.T) {
	s := newSite(t, 3)
	quick, slow := s.Users[:2], s.Users[2:]
	addr := slowFor(t, direct(s), slow[0], 30*time.Millisecond)
	b := newBox(t, s,
		map[string]string{"production.imap": strconv.Quote(addr), "failover.mode": `"confirm"`,
			"failover.return_probes": "1"})
	for _, u := range s.Users {
		do(t, dial(t, direct(s), u), "CREATE Filed")
	}
	waitPhase(t, b, "protecting")
	order(t, b, "sync")
	o := load.Options{IMAP: b.IMAP, SMTP: b.SMTP, Seed: uint64(time.Now().UnixNano()), Pause: 25 * time.Millisecond}
	o.Users, o.Tag = quick, "quick"
	ql, qbook, stopQuick := work(t, o)
	o.Users, o.Tag = slow, "slow"
	sl, sbook, stopSlow := work(t, o)
	time.Sleep(500 * time.Millisecond)
	order(t, b, "takeover")
	waitPhase(t, b, "returning")
	time.Sleep(2 * time.Second)
	ql.TakeGaps()
	sl.TakeGaps()
	ordered := make(chan error, 1)
	go func() { _, err := b.Run(t.Context(), "handback"); ordered <- err }()
	early := false
	for {
		st := must(b.Status(t.Context()))(t)
		if st.Phase == "protecting" && st.Epoch == 2 {
			break
		}
		if st.Phase == "copying back" && !early {
			out := must(b.Run(t.Context(), "tasks"))(t)
			done := func(u string) bool { return strings.Contains(out, "copy-back/"+u) }
			early = done(quick[0]) && done(quick[1]) && !done(slow[0])
		}
		time.Sleep(20 * time.Millisecond)
	}
	check(t, <-ordered)
	time.Sleep(2 * time.Second)
	waited, held := quantile(ql.TakeGaps(), 1), quantile(sl.TakeGaps(), 1)
	t.Logf("longest pause of a client at the hand-back: %s; of the slow account's %s", waited, held)
	if waited >= held {
		t.Error("clients of one account waited for another")
	}
	if !early {
		t.Error("no account was complete before the slow one")
	}
	stopQuick()
	stopSlow()
	settled(t, b)
	for _, l := range []*load.Ledger{ql, sl} {
		if v := judged(t, s, l); v.Unanswered > 0 || l.Broken.Load() > 0 {
			t.Errorf("%d commands without an answer, %d sessions broke: %v", v.Unanswered, l.Broken.Load(), l.Breaks())
		}
	}
	legal(t, qbook, b)
	legal(t, sbook, b)
	order(t, b, "sync")
	alike(t, s, b)
}

// M7, T27: some accounts are handed back first. Their clients work on production,
// the others' with the standby, and nobody notices; when production dies again the
// standby answers for all, and the rest is handed back in the end.
func TestM7_SomeAccountsFirst(t *testing.T) {
	s := newSite(t, 3)
	first := s.Users[0]
	b := newBox(t, s, map[string]string{"failover.mode": `"confirm"`, "failover.return_probes": "1"})
	waitPhase(t, b, "protecting")
	answering := func(user string) string {
		t.Helper()
		for l := range strings.Lines(order(t, b, "accounts")) {
			if f := strings.Fields(l); len(f) > 1 && f[0] == user {
				return f[1]
			}
		}
		return ""
	}
	under(t, s, b, func(l *load.Ledger) {
		order(t, b, "takeover")
		waitPhase(t, b, "returning")
		if out, err := b.Run(t.Context(), "handback", "nobody@example.test"); err == nil ||
			!strings.Contains(out+err.Error(), "no account") {
			t.Errorf("an account that is not there: %q, %v", out, err)
		}
		order(t, b, "handback", first)
		st := must(b.Status(t.Context()))(t)
		if st.Phase != "returning" || !strings.Contains(st.Answering, "standby for 2 accounts") ||
			answering(first) != "production" || answering(s.Users[1]) != "standby" {
			t.Errorf("%s, answering: %s\n%s", st.Phase, st.Answering, order(t, b, "accounts"))
		}
		// What its clients do is on production at once, and mail comes to it.
		c := dial(t, b.IMAP, first)
		if _, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: message("canary", 300)}); err != nil {
			t.Error(err)
		}
		if n := look(t, s.Direct, []string{first})[first]["canary@other.test"].Count; n != 1 {
			t.Errorf("a message is on production %d times", n)
		}
		if r := send(t, b.SMTP, "x@other.test", string(message("mailed", 300)), first); r.Code != 250 {
			t.Error(r)
		}
		arrived := func() bool { return look(t, s.Direct, []string{first})[first]["mailed@other.test"].Count == 1 }
		for end := time.Now().Add(20 * time.Second); !arrived() && time.Now().Before(end); {
			time.Sleep(200 * time.Millisecond)
		}
		if !arrived() {
			t.Error("mail for an account that was handed back does not arrive on production")
		}
		time.Sleep(time.Second)
		s.Kill()
		waitPhase(t, b, "serving")
		time.Sleep(time.Second)
		if a := answering(first); a != "standby" {
			t.Errorf("production is dead, and %s answers for %s", a, first)
		}
		check(t, s.Start(t.Context()))
		waitPhase(t, b, "returning")
		order(t, b, "handback", s.Users[2])
		order(t, b, "handback")
		waitPhase(t, b, "protecting")
	})
}

// M7 in the wire: production stays fenced while some accounts are with it. Their
// sessions reach it through the box all the same, with the clients' addresses.
func TestM7_SomeAccountsInTheWire(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 2)
	more := quick()
	more["failover.mode"], more["failover.return_probes"] = `"confirm"`, "1"
	n.plug(t, more)
	n.armed(t)
	waitPhase(t, n.b, "protecting")
	u := n.site.Users
	held := map[string]*imapc.Conn{"IPv4": login(t, n.client, server4, u[0]),
		"routed IPv6": login(t, n.remote, server6, u[0]), "other": login(t, n.client, server4, u[1])}
	all := func(when string) {
		t.Helper()
		for name, c := range held {
			if _, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: message(name+when, 400)}); err != nil {
				t.Errorf("%s, %s: %v", when, name, err)
			}
		}
		for _, addr := range []string{server4, server6} {
			for _, user := range u {
				if err := served(n.other, addr, user, 10*time.Second); err != nil {
					t.Errorf("%s, a new session of %s to %s: %v", when, user, addr, err)
				}
			}
		}
	}
	onProduction := func(user string) int {
		t.Helper()
		c := must(site.DialFrom(t.Context(), n.server, at(server4, 143), user))(t)
		defer c.Close()
		return must(c.Select("INBOX", true))(t).Exists
	}
	for _, c := range held {
		do(t, c, "SELECT INBOX")
	}
	all("before")
	order(t, n.b, "takeover")
	waitPhase(t, n.b, "returning")
	all("in the outage")
	before := onProduction(u[1])
	order(t, n.b, "handback", u[0])
	all("handed back")
	if a, b := onProduction(u[0]), onProduction(u[1]); a != 6 || b != before {
		t.Errorf("production has %d messages of the account that was handed back, and %d, not %d, of the other", a, b,
			before)
	}
	if !must(n.b.Status(t.Context()))(t).Network.Fenced {
		t.Error("production is not fenced any more")
	}
	n.site.Kill()
	waitPhase(t, n.b, "serving")
	all("production is dead again")
	check(t, n.site.Start(t.Context()))
	waitPhase(t, n.b, "returning")
	order(t, n.b, "handback")
	waitPhase(t, n.b, "protecting")
	all("after")
	if a, b := onProduction(u[0]), onProduction(u[1]); a != 10 || b != 5 {
		t.Errorf("production has %d and %d messages", a, b)
	}
}
