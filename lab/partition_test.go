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
	b := newBox(t, s, map[string]string{"production.imap": strconv.Quote(addr), "failover.mode": `"confirm"`, "failover.return_probes": "1"})
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
