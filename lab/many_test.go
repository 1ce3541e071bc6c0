package lab

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy/lab/site"
)

// held is a session of the crowd, stopped at some moment.
type held struct {
	kind string
	conn net.Conn
	br   *bufio.Reader
	rest []byte      // of a literal that is being sent
	want []byte      // of a literal that is being read: what is still to come
	told []time.Time // when its commands were answered
}

func (h *held) expect(prefix string) error {
	for {
		_ = h.conn.SetReadDeadline(time.Now().Add(60 * time.Second))
		l, err := h.br.ReadString('\n')
		if err != nil {
			return fmt.Errorf("%s: waiting for %q: %w", h.kind, prefix, err)
		}
		if strings.HasPrefix(l, prefix) {
			h.told = append(h.told, time.Now())
			return nil
		}
		if tag, _, _ := strings.Cut(prefix, " "); tag != "*" && strings.HasPrefix(l, tag+" ") ||
			strings.HasPrefix(l, "* BYE") {
			return fmt.Errorf("%s: waiting for %q: %q", h.kind, prefix, l)
		}
	}
}

func (h *held) say(format string, a ...any) error {
	_ = h.conn.SetWriteDeadline(time.Now().Add(60 * time.Second))
	_, err := fmt.Fprintf(h.conn, format, a...)
	return err
}

// talk says lines and waits for their answers: pairs of both.
func (h *held) talk(lines ...string) error {
	for i := 0; i < len(lines); i += 2 {
		if lines[i] != "" {
			if err := h.say("%s\r\n", lines[i]); err != nil {
				return err
			}
		}
		if err := h.expect(lines[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// reach brings a session to its moment.
func (h *held) reach(user string, i int, big []byte) error {
	if h.kind == "data" {
		if err := h.talk("", "220", "EHLO crowd.test", "250 ", "MAIL FROM:<c@other.test>", "250", "RCPT TO:<"+user+">",
			"250", "DATA", "354"); err != nil {
			return err
		}
		msg := message(fmt.Sprintf("data%d", i), 20_000)
		h.rest = append(msg[10_000:], ".\r\n"...)
		_, err := h.conn.Write(msg[:10_000])
		return err
	}
	if err := h.talk("", "* OK", fmt.Sprintf("l LOGIN %s %s", user, site.Password(user)), "l OK", "s SELECT INBOX",
		"s OK"); err != nil {
		return err
	}
	switch h.kind {
	case "idle":
		return h.talk("i IDLE", "+")
	case "upload":
		msg := message(fmt.Sprintf("upload%d", i), 50_000)
		if err := h.talk(fmt.Sprintf("u APPEND INBOX {%d}", len(msg)), "+"); err != nil {
			return err
		}
		h.rest = append(msg[20_000:], "\r\n"...)
		_, err := h.conn.Write(msg[:20_000])
		return err
	case "download":
		if err := h.say("d FETCH 1 (BODY.PEEK[])\r\n"); err != nil {
			return err
		}
		if err := h.expect("* 1 FETCH"); err != nil {
			return err
		}
		got := make([]byte, 64<<10)
		if _, err := io.ReadFull(h.br, got); err != nil || !bytes.Equal(got, big[:len(got)]) {
			return errors.Join(err, errors.New("the beginning differs"))
		}
		h.want = big[len(got):]
	}
	return nil
}

// goOn finishes what a session is at, and asks for one thing more.
func (h *held) goOn(user string) error {
	switch h.kind {
	case "data":
		if _, err := h.conn.Write(h.rest); err != nil {
			return err
		}
		return h.talk("", "250", "NOOP", "250")
	case "idle":
		if err := h.talk("DONE", "i OK"); err != nil {
			return err
		}
	case "upload":
		if _, err := h.conn.Write(h.rest); err != nil {
			return err
		}
		if err := h.expect("u OK [APPENDUID "); err != nil {
			return err
		}
	case "download":
		got := make([]byte, len(h.want))
		_ = h.conn.SetReadDeadline(time.Now().Add(60 * time.Second))
		if _, err := io.ReadFull(h.br, got); err != nil || !bytes.Equal(got, h.want) {
			return errors.Join(err, errors.New("a literal that was cut differs"))
		}
		if err := h.expect("d OK"); err != nil {
			return err
		}
	}
	return h.talk("n NOOP", "n OK", "f FETCH 1 (FLAGS)", "f OK")
}

// B2, N38: some thousand sessions, by TLS and without, idle, busy and in the
// middle of literals and of DATA, when production is killed with -9: no reset,
// no failed command, every tag answered, literals byte for byte.
func TestB2_Thousands(t *testing.T) {
	n := times("UNDERSTUDY_SESSIONS", 2000)
	s := must(site.New(t.TempDir(), users(40), nil))(t)
	check(t, s.Serve(n+100))
	check(t, s.Start(t.Context()))
	t.Cleanup(func() {
		s.Stop()
		if t.Failed() {
			for l := range strings.Lines(s.Log()) {
				if strings.Contains(l, "Warning") || strings.Contains(l, "Error") || strings.Contains(l, "Fatal") {
					t.Log(l)
				}
			}
		}
	})
	big := message("big", 4<<20)
	for _, u := range s.Users {
		r := rawLogin(t, direct(s), u)
		r.append("INBOX", big)
		_ = r.Close()
	}
	dir := t.TempDir()
	cert, key := certificate(t, dir, "site", 7, "mail.example.test")
	imaps := local(must(site.FreePort())(t))
	b := newBox(t, s,
		map[string]string{"certificate": fmt.Sprintf("[{cert=%q, key=%q}]", cert, key),
			"listen.imaps":  strconv.Quote(imaps),
			"failover.hold": `"0s"`, "failover.auto_handback": "false", "failover.probe": `"1s"`,
			"failover.probe_timeout": `"10s"`, "mirror.idle": "0", "mirror.sweep": `"1m"`})
	waitPhase(t, b, "protecting")
	order(t, b, "sync")
	kinds := []string{"idle", "idle", "idle", "idle", "busy", "busy", "busy", "download", "upload", "data"}
	crowd := make([]*held, n)
	var g errgroup.Group
	g.SetLimit(64)
	for i := range crowd {
		h := &held{kind: kinds[i%len(kinds)]}
		if i >= 3000 && (h.kind == "data" || h.kind == "download") {
			h.kind = "idle" // Postfix has a process for each, and the kernel's memory for TCP is bounded
		}
		crowd[i] = h
		g.Go(func() error {
			addr := b.IMAP
			if h.kind == "data" {
				addr = b.SMTP
			}
			var err error
			if h.kind != "data" && i/len(kinds)%3 == 0 {
				h.conn, err = tls.Dial("tcp", imaps, &tls.Config{InsecureSkipVerify: true})
			} else {
				h.conn, err = net.Dial("tcp", addr)
			}
			if err != nil {
				return err
			}
			h.br = bufio.NewReader(h.conn)
			if err := h.reach(s.Users[i%len(s.Users)], i, big); err != nil {
				return fmt.Errorf("session %d: %w", i, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, h := range crowd {
		defer func() { _ = h.conn.Close() }()
	}
	busy := func(h *held, until time.Time) error {
		for j := 0; time.Now().Before(until); j++ {
			if err := h.talk(fmt.Sprintf("b%d UID FETCH 1:* (FLAGS)", j), fmt.Sprintf("b%d OK", j)); err != nil {
				return err
			}
			time.Sleep(500 * time.Millisecond)
		}
		return nil
	}
	st := must(b.Status(t.Context()))(t)
	if st.Epoch != 0 {
		t.Fatalf("a takeover before anything happened: %+v", st.History)
	}
	time.Sleep(time.Second)
	shoot := s.Aim()
	killed := time.Now().Add(200 * time.Millisecond) // by then all are waiting
	until := killed.Add(3 * time.Second)
	var mu sync.Mutex
	var took []time.Duration
	broken := map[string]int{}
	var wg sync.WaitGroup
	for i, h := range crowd {
		wg.Go(func() {
			var err error
			if h.kind == "busy" {
				err = busy(h, until)
			} else {
				time.Sleep(time.Until(killed.Add(50 * time.Millisecond)))
			}
			if err == nil {
				err = h.goOn(s.Users[i%len(s.Users)])
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if broken[h.kind]++; broken[h.kind] < 4 {
					t.Errorf("session %d: %v", i, err)
				}
			} else if h.kind != "busy" {
				took = append(took, time.Since(killed))
			}
		})
	}
	time.Sleep(time.Until(killed))
	shoot()
	dead := time.Now()
	wg.Wait()
	s.Kill()
	st = must(b.Status(t.Context()))(t)
	var decided, serving time.Time
	for _, e := range st.History {
		switch e.Phase {
		case "fencing":
			decided = e.At
		case "serving":
			serving = e.At
		}
	}
	var answers []time.Duration // by the standby, since the decision
	for _, h := range crowd {
		for _, at := range h.told {
			if at.After(serving) {
				answers = append(answers, at.Sub(decided))
			}
		}
	}
	t.Logf("%d sessions, broken: %v; production dead %s after the kill, decision after %s", n, broken,
		dead.Sub(killed).Round(time.Millisecond), decided.Sub(killed).Round(time.Millisecond))
	if len(took) > 0 && len(answers) > 0 {
		last := quantile(took, 1)
		t.Logf("the standby's first answer %s after the decision; sessions that have finished what they were at: "+
			"median %s, last %s after the kill, last %s after the decision",
			quantile(answers, 0).Round(time.Millisecond),
			quantile(took, 0.5).Round(time.Millisecond), last.Round(time.Millisecond),
			(last - decided.Sub(killed)).Round(time.Millisecond))
	}
}
