package lab

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/lab/site"
)

// raw is a client that speaks lines, to stop at any byte.
type raw struct {
	t *testing.T
	net.Conn
	br *bufio.Reader
}

func rawDial(t *testing.T, addr string) *raw {
	t.Helper()
	c := must(net.Dial("tcp", addr))(t)
	t.Cleanup(func() { _ = c.Close() })
	r := &raw{t, c, bufio.NewReader(c)}
	r.line()
	return r
}

func rawLogin(t *testing.T, addr, user string) *raw {
	t.Helper()
	r := rawDial(t, addr)
	r.do("l LOGIN %s %s", user, site.Password(user))
	return r
}

func (r *raw) send(format string, a ...any) {
	r.t.Helper()
	if _, err := fmt.Fprintf(r.Conn, format, a...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) line() string {
	r.t.Helper()
	_ = r.SetReadDeadline(time.Now().Add(20 * time.Second))
	l, err := r.br.ReadString('\n')
	if err != nil {
		r.t.Fatalf("read: %v (%q)", err, l)
	}
	return strings.TrimRight(l, "\r\n")
}

// until reads lines up to one with a prefix, and returns all.
func (r *raw) until(prefix string) []string {
	r.t.Helper()
	var out []string
	for {
		l := r.line()
		out = append(out, l)
		if strings.HasPrefix(l, prefix) {
			return out
		}
		if strings.HasPrefix(l, "* BYE") {
			r.t.Fatalf("waiting for %q: %q", prefix, out)
		}
		if n := literalSize(l); n >= 0 {
			b := make([]byte, n)
			if _, err := io.ReadFull(r.br, b); err != nil {
				r.t.Fatal(err)
			}
			out = append(out, string(b))
		}
	}
}

func literalSize(l string) int {
	i := strings.LastIndexByte(l, '{')
	if i < 0 || !strings.HasSuffix(l, "}") || !strings.HasPrefix(l, "*") {
		return -1
	}
	n, err := strconv.Atoi(l[i+1 : len(l)-1])
	if err != nil {
		return -1
	}
	return n
}

// do sends a command and wants OK.
func (r *raw) do(format string, a ...any) []string {
	r.t.Helper()
	cmd := fmt.Sprintf(format, a...)
	r.send("%s\r\n", cmd)
	tag, _, _ := strings.Cut(cmd, " ")
	out := r.until(tag + " ")
	if l := out[len(out)-1]; !strings.HasPrefix(l, tag+" OK") {
		r.t.Fatalf("%s: %s", cmd, l)
	}
	return out
}

func (r *raw) append(mailbox string, msg []byte) {
	r.t.Helper()
	r.send("ap APPEND %s {%d+}\r\n%s\r\n", mailbox, len(msg), msg)
	if out := r.until("ap "); !strings.HasPrefix(out[len(out)-1], "ap OK") {
		r.t.Fatal(out)
	}
}

func textOf(id string, size int) []byte {
	b := fmt.Appendf(nil, "From: a@other.test\r\nSubject: %s\r\nMessage-ID: <%s>\r\n\r\n", id, id)
	for i := 0; len(b) < size; i++ {
		b = fmt.Appendf(b, "%s line %d: the quick brown fox jumps over the lazy dog\r\n", id, i)
	}
	return b
}

// B2, T20, T9: sessions at every sort of moment live through a takeover and a
// hand-back: no reset, every tag answered once, literals byte for byte.
func TestB2_EveryMoment(t *testing.T) {
	s := newSite(t, 1)
	u := s.Users[0]
	big := textOf("big", 24<<20)
	seed := rawLogin(t, direct(s), u)
	seed.do("c CREATE Filed")
	for i := range 5 {
		seed.append("INBOX", textOf(fmt.Sprintf("old%d", i), 2000))
	}
	seed.append("INBOX", big)
	b := newBox(t, s, map[string]string{"failover.auto_handback": "false"})
	waitPhase(t, b, "protecting")
	order(t, b, "sync")

	idle := rawLogin(t, b.IMAP, u)
	idle.do("a SELECT INBOX")
	idle.send("i IDLE\r\n")
	idle.until("+")
	quiet := rawLogin(t, b.IMAP, u)
	quiet.do("a SELECT INBOX")
	fresh := rawLogin(t, b.IMAP, u)
	down := rawLogin(t, b.IMAP, u) // in the middle of a literal to the client
	down.do("a SELECT INBOX")
	down.send("f UID FETCH 1:* (FLAGS BODY.PEEK[])\r\n")
	var got bytes.Buffer
	head := ""
	for literalSize(head) != len(big) {
		if head = down.line(); literalSize(head) > 0 && literalSize(head) != len(big) {
			_, _ = io.CopyN(io.Discard, down.br, int64(literalSize(head)))
		}
	}
	if _, err := io.CopyN(&got, down.br, 1<<20); err != nil {
		t.Fatal(err)
	}
	up := rawLogin(t, b.IMAP, u) // in the middle of a literal to the server
	upMsg := textOf("up", 300_000)
	up.send("p APPEND INBOX (\\Seen) {%d}\r\n", len(upMsg))
	up.until("+")
	up.send("%s", upMsg[:100_000])
	ask := rawLogin(t, b.IMAP, u) // a literal announced and asked for, none sent
	ask.send("q APPEND Filed {%d}\r\n", 2000)
	ask.until("+")
	time.Sleep(100 * time.Millisecond)

	round := func(name string, swap func()) {
		swap()
		t.Run(name, func(t *testing.T) {
			quiet.do("b%s NOOP", name)
			if out := quiet.do("b%s FETCH 1:3 (UID FLAGS)", name); len(out) < 4 {
				t.Errorf("FETCH by number: %q", out)
			}
			fresh.do("b%s STATUS INBOX (MESSAGES UIDNEXT)", name)
			if out := fresh.do("b%s LIST \"\" *", name); !strings.Contains(strings.Join(out, "\n"), "Filed") {
				t.Errorf("LIST: %q", out)
			}
			quiet.append("INBOX", textOf("new"+name, 1500))
			for !strings.Contains(idle.line(), "EXISTS") {
			}
		})
	}
	round("takeover", func() {
		s.Kill()
		waitPhase(t, b, "serving")
	})
	// The cut literals go on.
	if _, err := io.CopyN(&got, down.br, int64(len(big)-got.Len())); err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(got.Bytes()) != sha256.Sum256(big) {
		t.Error("a literal that was cut differs")
	}
	if out := down.until("f "); !strings.HasPrefix(out[len(out)-1], "f OK") {
		t.Error(out)
	}
	up.send("%s\r\n", upMsg[100_000:])
	if out := up.until("p "); !strings.HasPrefix(out[len(out)-1], "p OK [APPENDUID") {
		t.Error(out)
	}
	ask.send("%s", textOf("ask", 1900)) // some bytes now, the others after the hand-back
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	round("handback", func() {
		waitPhase(t, b, "returning")
		order(t, b, "handback")
		waitPhase(t, b, "protecting")
	})
	ask.send("%s\r\n", strings.Repeat("x", 2000-len(textOf("ask", 1900))))
	if out := ask.until("q "); !strings.HasPrefix(out[len(out)-1], "q OK [APPENDUID") {
		t.Error(out)
	}
	idle.send("DONE\r\n")
	idle.until("i OK")
	order(t, b, "sync")
	if diff := fingerprint(t, direct(s), u).Diff(fingerprint(t, b.IMAP, u)); diff != "" {
		t.Errorf("through the box it differs:\n%s", diff)
	}
	all := fingerprint(t, direct(s), u).Bodies
	for _, m := range [][]byte{upMsg, textOf("newtakeover", 1500), textOf("newhandback", 1500)} {
		sum := sha256.Sum256(m)
		if n := all[fmt.Sprintf("%x", sum[:8])]; n != 1 {
			t.Errorf("a message is there %d times", n)
		}
	}
}
