package lab

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// relay stands between the box and production, and can lose a command: the line
// with the trap's word reaches production no more, what the trap does in its
// place is all that becomes of it, and the connection breaks.
type relay struct {
	to   string
	mu   sync.Mutex
	word string
	trap func()
}

func newRelay(t *testing.T, to string) (r *relay, addr string) {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = l.Close() })
	r = &relay{to: to}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.carry(c)
		}
	}()
	return r, l.Addr().String()
}

func (r *relay) set(word string, trap func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.word, r.trap = word, trap
}

func (r *relay) carry(c net.Conn) {
	defer func() { _ = c.Close() }()
	p, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer func() { _ = p.Close() }()
	go func() {
		_, _ = io.Copy(c, p)
		_ = c.Close()
	}()
	br := bufio.NewReader(c)
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return
		}
		r.mu.Lock()
		trap := r.trap
		if trap == nil || !strings.Contains(line, r.word) {
			trap = nil
		} else {
			r.trap = nil
		}
		r.mu.Unlock()
		if trap != nil {
			if n := literalSize("*" + strings.Replace(strings.TrimSpace(line), "+}", "}", 1)); n > 0 {
				_, _ = io.CopyN(io.Discard, br, int64(n)+2)
			}
			trap()
			return
		}
		if _, err := io.WriteString(p, line); err != nil {
			return
		}
	}
}

// B5, T9, N17: whatever production had done of a command that it did not answer,
// nothing, all or half, the client gets one OK, and the outcome is that of the
// command done once.
func TestB5_UnansweredWhileProductionLives(t *testing.T) {
	s := newSite(t, 1)
	u := s.Users[0]
	r, addr := newRelay(t, direct(s))
	seed := rawLogin(t, direct(s), u)
	seed.do("c CREATE Filed")
	b := newBox(t, s, map[string]string{"production.imap": fmt.Sprintf("%q", addr), "failover.hold": `"20s"`})
	waitPhase(t, b, "protecting")
	behind := rawLogin(t, direct(s), u)
	behind.do("s SELECT INBOX")
	c := rawLogin(t, b.IMAP, u)
	c.do("s SELECT INBOX")
	count := func(mailbox string, i int) int {
		behind.do("e EXAMINE %s", mailbox)
		out := behind.do("c SEARCH HEADER Subject case%d.", i)
		behind.do("s SELECT INBOX")
		return len(strings.Fields(out[0])) - 2
	}
	uid := 0
	for i, k := range []struct {
		name, command string // @ and @@ are UIDs of two messages
		done          []string
		inbox, filed  int // copies of the two in the end
	}{
		{"MOVE, nothing", "UID MOVE @ Filed", nil, 1, 1},
		{"MOVE, all", "UID MOVE @ Filed", []string{"UID MOVE @ Filed"}, 1, 1},
		{"MOVE, half", "UID MOVE @ Filed", []string{"UID COPY @ Filed"}, 1, 1},
		{"MOVE of two, one whole, one half", "UID MOVE @,@@ Filed", []string{"UID COPY @@ Filed", "UID MOVE @ Filed"}, 0, 2},
		{"MOVE of two, half of one", "UID MOVE @,@@ Filed", []string{"UID COPY @ Filed"}, 0, 2},
		{"COPY, nothing", "UID COPY @,@@ Filed", nil, 2, 2},
		{"COPY, all", "UID COPY @,@@ Filed", []string{"UID COPY @,@@ Filed"}, 2, 2},
		{"STORE, nothing", `UID STORE @ +FLAGS (\Flagged)`, nil, 2, 0},
		{"STORE, all", `UID STORE @ +FLAGS (\Flagged)`, []string{`UID STORE @ +FLAGS (\Flagged)`}, 2, 0},
		{"EXPUNGE, nothing", "UID EXPUNGE @", nil, 1, 0},
		{"EXPUNGE, all", "UID EXPUNGE @", []string{"UID EXPUNGE @"}, 1, 0},
		{"APPEND, nothing", "APPEND Filed", nil, 2, 1},
		{"APPEND, all", "APPEND Filed", []string{"APPEND Filed"}, 2, 1},
		{"CREATE, all", "CREATE New", []string{"CREATE New"}, 2, 0},
		{"RENAME, all", "RENAME New Newer", []string{"RENAME New Newer"}, 2, 0},
		{"DELETE, all", "DELETE Newer", []string{"DELETE Newer"}, 2, 0},
	} {
		one, two := textOf(fmt.Sprintf("case%d.one", i), 900), textOf(fmt.Sprintf("case%d.two", i), 900)
		c.append("INBOX", one)
		c.append("INBOX", two)
		uid += 2
		fits := strings.NewReplacer("@@", fmt.Sprint(uid), "@", fmt.Sprint(uid-1))
		if strings.Contains(k.name, "EXPUNGE") {
			c.do("d UID STORE %d +FLAGS (\\Deleted)", uid-1)
		}
		third := textOf(fmt.Sprintf("case%d.app", i), 700)
		say := func(r *raw, tag, command string) {
			if command == "APPEND Filed" {
				r.send("%s APPEND Filed {%d+}\r\n%s\r\n", tag, len(third), third)
				return
			}
			r.send("%s %s\r\n", tag, fits.Replace(command))
		}
		r.set(fits.Replace(k.command), func() {
			behind.do("n NOOP")
			for _, d := range k.done {
				say(behind, "x", d)
				behind.until("x OK")
			}
		})
		say(c, "k", k.command)
		out := c.until("k ")
		gone := 0
		for _, l := range out {
			if strings.HasSuffix(l, " EXPUNGE") {
				gone++
			}
		}
		if !strings.HasPrefix(out[len(out)-1], "k OK") || gone != 2-k.inbox {
			t.Errorf("%s: answered %q", k.name, out)
		}
		c.do("z NOOP")
		inbox, filed := count("INBOX", i), count("Filed", i)
		if inbox != k.inbox || filed != k.filed {
			t.Errorf("%s: %d in INBOX, %d in Filed, want %d and %d", k.name, inbox, filed, k.inbox, k.filed)
		}
		if strings.Contains(k.name, "STORE") {
			if out := strings.Join(behind.do("f UID FETCH %d (FLAGS)", uid-1), ""); !strings.Contains(out, `\Flagged`) {
				t.Errorf("%s: %s", k.name, out)
			}
		}
	}
	order(t, b, "sync")
	if diff := fingerprint(t, direct(s), u).Diff(fingerprint(t, b.IMAP, u)); diff != "" {
		t.Errorf("through the box it differs:\n%s", diff)
	}
	if st := must(b.Status(t.Context()))(t); st.Epoch != 0 {
		t.Errorf("a takeover took place: epoch %d", st.Epoch)
	}
}
