package lab

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	history "understudy/lab/check"
	"understudy/lab/load"
	"understudy/lab/site"
)

// under runs clients while f works, and judges their ledger in the end: no
// session broke, nothing is lost or doubled.
func under(t *testing.T, s *site.Site, b *site.Box, f func(l *load.Ledger)) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for _, u := range s.Users {
		do(t, dial(t, direct(s), u), "CREATE Filed")
	}
	order(t, b, "sync")
	l, book,
		stop := work(t,
		load.Options{IMAP: b.IMAP, SMTP: b.SMTP, Users: s.Users, Seed: seed, Tag: "swap", Pause: 25 * time.Millisecond,
			PerUser: 2})
	time.Sleep(500 * time.Millisecond)
	f(l)
	time.Sleep(500 * time.Millisecond)
	stop()
	settled(t, b)
	if v := judged(t, s, l); v.Unanswered > 0 {
		t.Errorf("%d commands without an answer", v.Unanswered)
	}
	if n := l.Broken.Load(); n > 0 {
		t.Errorf("%d sessions broke: %v", n, l.Breaks())
	}
	legal(t, book, b)
	order(t, b, "sync")
	alike(t, s, b)
}

// judged compares the ledger with what production holds.
func judged(t *testing.T, s *site.Site, l *load.Ledger) load.Verdict {
	t.Helper()
	v := l.Judge(look(t, s.Direct, s.Users))
	own := len(v.Doubled)
	v.Doubled = slices.DeleteFunc(v.Doubled, func(id string) bool { return byItself(s, id) })
	own -= len(v.Doubled)
	v.Undone = slices.DeleteFunc(v.Undone, func(what string) bool {
		id, deleted := strings.CutSuffix(what, " (deleted)")
		back := deleted && rebuilt(s, id)
		if back {
			t.Logf("%s is there again: Dovecot rebuilt the mailbox's index from its files", id)
		}
		return back
	})
	t.Logf("on production: %s; sessions that broke: %d; longest wait for an answer %s", v, l.Broken.Load(),
		l.LongestGap())
	t.Logf("there twice: by Postfix or Dovecot itself %d, sent again by a sender without an answer %d", own,
		len(v.Repeated))
	if !v.OK() || v.Confirmed == 0 {
		t.Errorf("ledger and production differ: %s; %q", v, v.Where)
		for _, id := range append(v.Lost, v.Doubled...) {
			_, log := mailLog(s, id)
			t.Logf("Postfix's log of %s:\n%s", id, log)
		}
		for l := range strings.Lines(s.Log()) {
			if strings.Contains(l, "Warning:") || strings.Contains(l, "Error:") || strings.Contains(l, "Panic:") {
				t.Logf("Dovecot: %s", l)
			}
		}
	}
	return v
}

// byItself reports whether a message is there twice with or without anybody before
// the server. Postfix delivers one queue entry again if it, or Dovecot, was killed
// between a delivery and the note of it: then Dovecot has saved it twice, or Postfix
// has lost sight of an attempt. And Dovecot that was killed between writing a file
// and its index takes that file for a message once it comes across it.
func byItself(s *site.Site, id string) bool {
	if rebuilt(s, id) {
		return true
	}
	q, log := mailLog(s, id)
	return len(q) == 1 &&
		(strings.Count(s.Log(), "msgid=<"+id+">: saved mail to") > 1 ||
			strings.Contains(log, "may be sent more than once") ||
			strings.Count(log, "(queue active)") > strings.Count(log, "status="))
}

// rebuilt reports whether Dovecot, killed in the middle of a change, has made an
// index of the account of a message anew: of all files that it finds, those of
// deleted messages that it had not come to remove among them.
func rebuilt(s *site.Site, id string) bool {
	for l := range strings.Lines(s.Log()) {
		if strings.Contains(strings.ToLower(l), "rebuilding index") &&
			slices.ContainsFunc(s.Users,
				func(u string) bool { return strings.Contains(l, u) && strings.HasSuffix(id, u) }) {
			return true
		}
	}
	return false
}

// renumbered reports whether the box said of a mailbox that clients see it with
// another UIDVALIDITY from then on: production, killed and started at random, had
// taken a UID by itself at the moment when that was given back to it.
func renumbered(b *site.Box) bool {
	return strings.Contains(b.Log(), "clients will see a new UIDVALIDITY")
}

// alike fails the test if what clients see through the box is not what production
// has. It waits a moment: mail may still be on its way.
func alike(t *testing.T, s *site.Site, b *site.Box) {
	t.Helper()
	for _, u := range s.Users {
		diff := ""
		for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
			diff = ""
			for l := range strings.Lines(fingerprint(t, direct(s), u).Diff(fingerprint(t, b.IMAP, u))) {
				if !renumbered(b) || !strings.Contains(l, " uidvalidity=") {
					diff += l
				}
			}
			if diff == "" {
				break
			}
		}
		if diff != "" {
			t.Errorf("through the box %s differs:\n%s", u, diff)
		}
	}
}

// legal fails the test if clients were told what is not legal, and keeps the
// history, to be judged again.
func legal(t *testing.T, book *history.Book, b *site.Box) {
	t.Helper()
	faults := book.Faults()
	if renumbered(b) {
		t.Logf("a mailbox got another UIDVALIDITY, as the box has said")
		faults = slices.DeleteFunc(faults, func(f string) bool { return strings.Contains(f, "UIDVALIDITY of") })
	}
	for _, f := range faults[:min(len(faults), 10)] {
		t.Error(f)
	}
	if dir := os.Getenv("UNDERSTUDY_LOGS"); dir != "" && len(faults) > 0 {
		check(t, os.WriteFile(filepath.Join(dir, t.Name()+".history"), book.History(), 0o600))
	}
}

// settled waits until every message that was accepted was seen in a mailbox.
func settled(t *testing.T, b *site.Box) {
	t.Helper()
	end := time.Now().Add(60 * time.Second)
	for {
		st := must(b.Status(t.Context()))(t)
		if st.Held == 0 {
			break
		}
		if time.Now().After(end) {
			t.Errorf("%d messages are still held", st.Held)
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	time.Sleep(3 * time.Second)
}

// mailLog returns the queue entries that Postfix made of a message, and what it
// logged of them.
func mailLog(s *site.Site, id string) (ids []string, log string) {
	var out []string
	all := s.PostfixLog()
	for l := range strings.Lines(all) {
		if f := strings.Fields(l); strings.Contains(l, "message-id=<"+id+">") {
			for _, w := range f {
				if strings.HasSuffix(w, ":") && len(w) > 8 && strings.ToUpper(w) == w {
					ids = append(ids, w)
				}
			}
		}
	}
	for l := range strings.Lines(all) {
		if slices.ContainsFunc(ids, func(q string) bool { return strings.Contains(l, q) }) {
			out = append(out, l)
		}
	}
	return ids, strings.Join(out, "")
}

func quantile(d []time.Duration, q float64) time.Duration {
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))]
}

// work begins to run clients that are judged; stop ends them between two commands.
func work(t *testing.T, o load.Options) (l *load.Ledger, book *history.Book, stop func()) {
	l, book = &load.Ledger{}, history.NewBook()
	o.Password, o.Folder, o.Deletes, o.Book = site.Password, "Filed", true, book
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		load.Run(ctx, o, l)
	}()
	return l, book, func() { cancel(); <-done }
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func times(name string, n int) int {
	if v, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return v
	}
	return n
}

// T27, M6: planned takeover and hand-back under load: no failed command,
// no loss.
func TestT27_PlannedUnderLoad(t *testing.T) {
	s := newSite(t, 3)
	b := newBox(t, s, map[string]string{"failover.mode": `"confirm"`, "failover.return_probes": "1"})
	waitPhase(t, b, "protecting")
	var there, back []time.Duration
	under(t, s, b, func(l *load.Ledger) {
		for range times("UNDERSTUDY_SWAPS", 5) {
			l.TakeGaps()
			order(t, b, "takeover")
			waitPhase(t, b, "serving", "returning")
			time.Sleep(200 * time.Millisecond)
			there = append(there, l.TakeGaps()...)
			waitPhase(t, b, "returning")
			l.TakeGaps()
			order(t, b, "handback")
			waitPhase(t, b, "protecting")
			time.Sleep(200 * time.Millisecond)
			back = append(back, l.TakeGaps()...)
		}
	})
	t.Logf("longest pause of a client, median / p99: takeover %s / %s, hand-back %s / %s", quantile(there, 0.5),
		quantile(there, 0.99), quantile(back, 0.5), quantile(back, 0.99))
}

// B3: production is restarted inside the hold: no takeover, no session
// breaks, and what it did without answering is done once.
func TestB3_RestartInsideTheHold(t *testing.T) {
	s := newSite(t, 3)
	b := newBox(t, s,
		map[string]string{"failover.hold": `"20s"`, "failover.hold_silent": `"20s"`, "failover.owed_after": `"4s"`})
	waitPhase(t, b, "protecting")
	under(t, s, b, func(l *load.Ledger) {
		for i := range times("UNDERSTUDY_SWAPS", 6) {
			switch i % 3 {
			case 0:
				s.KillDovecot()
				time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
				check(t, s.StartDovecot(t.Context()))
			case 1:
				s.KillPostfix()
				time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
				check(t, s.StartPostfix(t.Context()))
			default:
				s.Stop() // as systemctl does
				check(t, s.Start(t.Context()))
			}
			waitPhase(t, b, "protecting")
			time.Sleep(1500 * time.Millisecond)
		}
		time.Sleep(6 * time.Second) // what is owed is given again
	})
	if st := must(b.Status(t.Context()))(t); st.Epoch != 0 {
		t.Errorf("a takeover took place: epoch %d", st.Epoch)
	}
}

// T16, N37: production that says nothing at all for a while, and goes on.
func TestB2_SilentProduction(t *testing.T) {
	s := newSite(t, 2)
	b := newBox(t, s,
		map[string]string{"failover.auto_handback": "true", "failover.hold_silent": `"500ms"`,
			"failover.probe_timeout": `"500ms"`})
	waitPhase(t, b, "protecting")
	under(t, s, b, func(*load.Ledger) {
		began := time.Now()
		s.Signal(syscall.SIGSTOP)
		waitPhase(t, b, "serving")
		t.Logf("served %s after production fell silent", time.Since(began).Round(time.Millisecond))
		time.Sleep(time.Second)
		s.Kill()
		check(t, s.Start(t.Context()))
		waitPhase(t, b, "protecting")
	})
}

// drop carries connections to an address, until it is silent: then nothing passes
// any more in either direction, and the kernel drops what would connect.
type drop struct {
	l    *net.TCPListener
	gate sync.RWMutex // held for writing: silent
	fill []net.Conn
}

func newDrop(t *testing.T, to string) (d *drop, addr string) {
	t.Helper()
	d = &drop{l: must(net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}))(t)}
	t.Cleanup(func() { _ = d.l.Close() })
	pass := func(dst, src net.Conn) {
		defer func() { _ = dst.Close() }()
		buf := make([]byte, 32<<10)
		for {
			n, err := src.Read(buf)
			d.gate.RLock()
			if err == nil {
				_, err = dst.Write(buf[:n])
			}
			d.gate.RUnlock()
			if err != nil {
				return
			}
		}
	}
	go func() {
		for {
			c, err := d.l.Accept()
			if err != nil {
				return
			}
			d.gate.RLock() // one may wait here; the queue is full behind it
			p, err := net.Dial("tcp", to)
			d.gate.RUnlock()
			if err != nil {
				_ = c.Close()
				continue
			}
			go pass(p, c)
			go pass(c, p)
		}
	}()
	return d, d.l.Addr().String()
}

// silence begins the silence; end ends it.
func (d *drop) silence(t *testing.T) (end func()) {
	t.Helper()
	d.gate.Lock()
	rc := must(d.l.SyscallConn())(t)
	check(t, rc.Control(func(fd uintptr) { _ = syscall.Listen(int(fd), 0) }))
	for range 4 { // fills the queue: SYNs are dropped from now on
		if c, err := net.DialTimeout("tcp", d.l.Addr().String(), 50*time.Millisecond); err == nil {
			d.fill = append(d.fill, c)
		}
	}
	return func() {
		for _, c := range d.fill {
			_ = c.Close()
		}
		_ = rc.Control(func(fd uintptr) { _ = syscall.Listen(int(fd), 128) })
		d.gate.Unlock()
	}
}

// B2, T14: packets from and to production are dropped without a word, as by a
// cable that is pulled: clients are served within probe time, and nothing is lost.
func TestB2_SilentDrop(t *testing.T) {
	s := newSite(t, 2)
	imap, imapAddr := newDrop(t, direct(s))
	smtp, smtpAddr := newDrop(t, fmt.Sprintf("127.0.0.1:%d", s.SMTPPort))
	b := newBox(t, s,
		map[string]string{"production.imap": strconv.Quote(imapAddr), "production.smtp": strconv.Quote(smtpAddr),
			"failover.auto_handback": "true",
			"failover.hold_silent":   `"500ms"`, "failover.probe_timeout": `"500ms"`})
	waitPhase(t, b, "protecting")
	under(t, s, b, func(*load.Ledger) {
		began := time.Now()
		heard, connects := imap.silence(t), smtp.silence(t)
		waitPhase(t, b, "serving")
		t.Logf("served %s after the silence began", time.Since(began).Round(time.Millisecond))
		time.Sleep(2 * time.Second)
		heard()
		connects()
		waitPhase(t, b, "protecting")
	})
}
