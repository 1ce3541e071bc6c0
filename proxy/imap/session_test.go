package imap

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/proxy/seam"
	"understudy/proxy/upstream"
	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// site is a production that answers as it is told, and what the box noted of it.
type site struct {
	mu    sync.Mutex
	say   func(conn int, c imapwire.Command) (answer string, end bool)
	conns int
	raw   [][]byte // what each connection was sent after its login
	notes []string // in order
}

func (s *site) note(format string, a ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, fmt.Sprintf(format, a...))
}

const siteCaps = "IMAP4rev1 SASL-IR LITERAL+ UIDPLUS MOVE IDLE"

// dial connects to production.
func (s *site) dial(context.Context, seam.Client, string) (net.Conn, error) {
	near, far := net.Pipe()
	s.mu.Lock()
	n := s.conns
	s.conns++
	s.raw = append(s.raw, nil)
	s.mu.Unlock()
	go s.serve(n, far)
	return near, nil
}

// serve is one connection of production's.
func (s *site) serve(n int, conn net.Conn) {
	defer func() { _ = conn.Close() }()
	w := bufio.NewWriter(conn)
	tell := func(text string) bool {
		_, _ = w.WriteString(text)
		return w.Flush() == nil
	}
	tell("* OK [CAPABILITY " + siteCaps + "] ready\r\n")
	in := make([]byte, 4<<10)
	var buf []byte
	var cmd imapwire.Command
	sc := imapwire.Scanner{Side: imapwire.Client}
	for loggedIn, over := false, false; !over; {
		k, err := conn.Read(in)
		if err != nil {
			return
		}
		buf = append(buf, in[:k]...)
		if loggedIn {
			s.mu.Lock()
			s.raw[n] = append(s.raw[n], in[:k]...)
			s.mu.Unlock()
		}
		for {
			p, err := sc.Next(buf)
			if err != nil || p.Kind == imapwire.More {
				break
			}
			if cmd.Receive(p, buf[:p.N]) != nil {
				return
			}
			buf = buf[p.N:]
			if p.Lit.Present && !p.Lit.NonSync && !tell("+ go\r\n") {
				return
			}
			if !cmd.Whole {
				continue
			}
			c := cmd
			cmd = imapwire.Command{}
			if !loggedIn {
				loggedIn = c.Verb == imapwire.Authenticate || c.Verb == imapwire.Login
				if !tell(c.Tag + " OK [CAPABILITY " + siteCaps + "] done\r\n") {
					return
				}
				continue
			}
			s.note("%d %s", n, c.Name())
			answer, end := s.say(n, c)
			if over = end; !tell(answer) {
				return
			}
		}
	}
}

// gate lets every session to production.
type gate struct{}

func (gate) Enter(ctx context.Context, _ string) (seam.Lease, error) {
	return seam.Lease{Side: seam.Production, Revoked: make(chan struct{}), Release: func() {}}, ctx.Err()
}
func (gate) Trouble(error) {}

// The site is also what is known of it, and follows what changes.
func (s *site) LoggedIn(context.Context, seam.Login) (string, error) { return "u", nil }
func (s *site) Denied(seam.Login)                                    {}
func (s *site) Known(_, mailbox string) *row.Snapshot {
	s.note("known %s", mailbox)
	return nil
}
func (s *site) Changes(string, string, uint64, []uint32) []row.FlagsOf { return nil }
func (s *site) Mark(_, mailbox string) uint32 {
	s.note("mark %s", mailbox)
	return 9
}
func (s *site) Virtual(string, string) uint32          { return 0 }
func (s *site) Follow(context.Context, string, string) {}
func (s *site) Hint(string, string)                    {}
func (s *site) Authenticate(context.Context, seam.Login) (string, error) {
	return "", seam.ErrUnavailable
}
func (s *site) ServeIMAP(context.Context, net.Conn, string, []string) error { return nil }
func (s *site) Intend(_ string, d row.Doubt) imapsession.Intent {
	s.note("intend %s %v mark %d", d.To, d.UIDs, d.Mark)
	return imapsession.Intent{Arrived: func() {}, Over: func() { s.note("over") }}
}
func (s *site) Unanswered(_ string, d row.Doubt) { s.note("unanswered %s %v", d.To, d.UIDs) }
func (s *site) Settle(_ context.Context, _ string, ex *imapsession.Exchange, _ imapwire.Response) error {
	text := []byte(nil)
	if ex.Kept.Spool != nil && !ex.Extra {
		text, _ = ex.Kept.Spool.Bytes()
	}
	s.note("settle %s %q %.3s %d", ex.Name(), ex.Mailbox, text, len(text))
	return nil
}
func (s *site) Outcome(_ context.Context, _ string, ex *imapsession.Exchange, _ bool) (string, bool, error) {
	s.note("outcome %s", ex.Name())
	return "", false, nil
}

// memory keeps a message; it counts those that were not given back.
type memory struct {
	bytes.Buffer
	open *int
}

func (m *memory) Start()                   {}
func (m *memory) Commit() (row.Ref, error) { return row.RefOf(m.Buffer.Bytes()), nil }
func (m *memory) Bytes() ([]byte, error)   { return m.Buffer.Bytes(), nil }
func (m *memory) Discard()                 { *m.open-- }

// client talks to a session through the box.
type client struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func (c *client) send(text string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, text); err != nil {
		c.t.Error("send:", err)
	}
}

// until reads to a line that begins so.
func (c *client) until(prefix string) (lines []string) {
	c.t.Helper()
	for {
		l, err := c.r.ReadString('\n')
		if err != nil {
			c.t.Fatalf("waiting for %q: %v; got %q", prefix, err, lines)
		}
		lines = append(lines, strings.TrimSpace(l))
		if strings.HasPrefix(l, prefix) {
			return lines
		}
	}
}

// through runs f as a client that is logged in at a site.
func through(t *testing.T, s *site, f func(c *client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		open := 0
		srv, err := New(Options{Gate: gate{}, Standby: s, Logins: s, Replica: s, Changes: s, Mailboxes: s,
			PlainOK:  true,
			Target:   upstream.Target{IMAP: upstream.Endpoint{Addr: "production:143", Via: s.dial}},
			NewSpool: func() row.Spool { open++; return &memory{open: &open} }, Caps: strings.Fields(siteCaps)})
		if err != nil {
			t.Fatal(err)
		}
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			srv.ServeConn(t.Context(), far, seam.Client{})
			_ = far.Close()
		}()
		c := &client{t, near, bufio.NewReader(near)}
		_ = near.SetDeadline(time.Now().Add(time.Minute))
		c.until("* OK")
		c.send("l LOGIN u p\r\n")
		c.until("l OK")
		f(c)
		_ = near.Close()
		<-done
		if open != 0 {
			t.Errorf("%d messages are not given back", open)
		}
	})
}

// answer answers as a server that has three messages in each mailbox.
func answer(c imapwire.Command) string {
	switch c.Verb {
	case imapwire.Select:
		return "* 3 EXISTS\r\n* OK [UIDVALIDITY 7] x\r\n* OK [UIDNEXT 40] x\r\n" + c.Tag + " OK [READ-WRITE] x\r\n"
	case imapwire.Search:
		return "* SEARCH 10 20 30\r\n" + c.Tag + " OK x\r\n"
	case imapwire.Fetch:
		return "* 1 FETCH (UID 10 FLAGS ())\r\n* 2 FETCH (UID 20 FLAGS ())\r\n* 3 FETCH (UID 30 FLAGS ())\r\n" +
			c.Tag + " OK x\r\n"
	}
	return c.Tag + " OK done\r\n"
}

// An APPEND passes whole, whatever its mailbox is called and however that is said,
// and is settled with what was sent.
func TestAppendWhole(t *testing.T) {
	body := "abc" + strings.Repeat("x", 100_000)
	for _, c := range []struct {
		name    string
		parts   []string // the client waits for "+" between
		settled string
	}{
		{"APPEND", []string{"a APPEND APPEND {100003}\r\n", body + "\r\n"}, `"APPEND" abc 100003`},
		{"without asking", []string{"a APPEND append {100003+}\r\n" + body + "\r\n"}, `"append" abc 100003`},
		{"literal name", []string{"a APPEND {6}\r\n", "APPEND (\\Seen) {100003}\r\n", body + "\r\n"},
			`"APPEND" abc 100003`},
		{"{5}", []string{"a APPEND \"{5}\" {100003}\r\n", body + "\r\n"}, `"{5}" abc 100003`},
		{"a {3}", []string{"a APPEND \"a {3}\" {100003}\r\n", body + "\r\n"}, `"a {3}" abc 100003`},
		{"literal {5}", []string{"a APPEND {3+}\r\n{5} {100003}\r\n", body + "\r\n"}, `"{5}" abc 100003`},
		{"binary", []string{"a APPEND b ~{100003}\r\n", body + "\r\n"}, `"b" abc 100003`},
		{"UTF8", []string{"a APPEND b UTF8 (~{100003}\r\n", body + ")\r\n"}, `"b" abc 100003`},
		{"MULTIAPPEND", []string{"a APPEND b {100003}\r\n", body + " {3}\r\n", "abc\r\n"}, `"b"  0`},
		{"CATENATE", []string{"a APPEND b CATENATE (TEXT {100003}\r\n", body + " URL {3+}\r\nabc)\r\n"}, `"b"  0`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &site{say: func(_ int, c imapwire.Command) (string, bool) { return answer(c), false }}
			through(t, s, func(cl *client) {
				for i, p := range c.parts {
					if i > 0 {
						cl.until("+")
					}
					cl.send(p)
				}
				cl.until("a OK")
			})
			if got, want := string(s.raw[0]), strings.Join(c.parts, ""); got != want {
				t.Errorf("production was sent %.60q… (%d bytes), not %.60q… (%d)", got, len(got), want, len(want))
			}
			if want := "settle APPEND " + c.settled; !slices.Contains(s.notes, want) {
				t.Errorf("%q is not among %q", want, s.notes)
			}
		})
	}
}

// A MOVE's Mark is taken, and it is noted, before it is sent, first and again; what an
// upstream left is a doubt before the note is struck off.
func TestMoveIsNotedFirst(t *testing.T) {
	s := &site{}
	s.say = func(n int, c imapwire.Command) (string, bool) {
		if n == 0 && c.Verb == imapwire.Move {
			return "", true
		}
		return answer(c), false
	}
	through(t, s, func(c *client) {
		c.send("a SELECT INBOX\r\nb UID FETCH 1:* FLAGS\r\n")
		c.until("b OK")
		c.send("c MOVE 2 Filed\r\n")
		c.until("c OK")
	})
	want := []string{"known INBOX", "0 SELECT", "0 UID FETCH", "mark Filed", "intend Filed [20] mark 9", "0 MOVE",
		"unanswered Filed [20]", "over", "outcome MOVE",
		"known INBOX", "1 SELECT", "1 UID SEARCH", "intend Filed [20] mark 9", "1 UID MOVE", `settle MOVE "INBOX"  0`,
		"over"}
	got := slices.DeleteFunc(slices.Clone(s.notes), func(n string) bool {
		return strings.HasPrefix(n, "known") &&
			!slices.Contains(want, n)
	})
	for _, w := range want {
		i := slices.Index(got, w)
		if i < 0 {
			t.Fatalf("%q is missing, or comes too early: %q", w, s.notes)
		}
		got = got[i+1:]
	}
}

// The rest of a message that production refused in its middle goes to no other
// upstream: it would take it for commands.
func TestRestGoesNowhere(t *testing.T) {
	s := &site{}
	s.say = func(n int, c imapwire.Command) (string, bool) {
		if n == 0 && c.Verb == imapwire.Noop {
			// By then the beginning of the next command was followed.
			return c.Tag + " OK x\r\nb NO over quota\r\n", true
		}
		return answer(c), false
	}
	through(t, s, func(c *client) {
		c.send("a NOOP\r\nb APPEND Filed {30+}\r\nabc\r\n")
		c.until("b NO")
		time.Sleep(time.Second) // of virtual time: production was lost
		c.send("c DELETE Filed\r\nxxxxxxxxx\r\nd NOOP\r\n")
		c.until("d OK")
	})
	if s.conns != 2 || string(s.raw[1]) != "d NOOP\r\n" {
		t.Errorf("the second of %d upstreams was sent %q", s.conns, s.raw[1:])
	}
}
