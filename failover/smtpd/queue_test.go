package smtpd_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/failover/smtpd"
	"understudy/replica/row"
	"understudy/snoop/smtpwire"
)

// relay is a server that takes mail. It answers what is in says in its own way: a
// line, "." for the end of a message; "" there is that it closes without an answer.
type relay struct {
	says  map[string]string
	heard []string // by session: the lines and messages
}

func (r *relay) dial(context.Context) (net.Conn, error) {
	if r.says["dial"] != "" {
		return nil, errors.New(r.says["dial"])
	}
	near, far := net.Pipe()
	r.heard = append(r.heard, "")
	at := len(r.heard) - 1
	go func() {
		defer func() { _ = far.Close() }()
		br := bufio.NewReader(far)
		line, code := "", "220"
		for {
			say, own := r.says[line]
			if !own {
				say = code + " ok"
			}
			if own && say == "" {
				return
			}
			if _, err := io.WriteString(far, say+"\r\n"); err != nil {
				return
			}
			if strings.HasPrefix(say, "354") {
				var b bytes.Buffer
				if _, err := smtpwire.CopyBody(&b, br, 0); err != nil {
					return
				}
				line, code = ".", "250"
				r.heard[at] += fmt.Sprintf("%q ", b.String())
				continue
			}
			l, err := br.ReadString('\n')
			if err != nil {
				return
			}
			line, code = strings.TrimRight(l, "\r\n"), "250"
			r.heard[at] += line + " "
			if line == "DATA" {
				code = "354"
			}
		}
	}()
	return near, nil
}

// queued puts messages into the queue.
func queued(s *store, rcpts ...string) {
	for i, r := range rcpts {
		s.queue = append(s.queue, row.Queued{ID: uint64(i + 1), From: "anna@here.test", Rcpts: []string{r},
			Ref: s.keep(".hello " + r + "\r\n")})
	}
}

func TestFlush(t *testing.T) {
	s, r := newStore(), &relay{}
	queued(s, "x@far.test", "y@far.test")
	s.queue[1].Next = time.Now().Add(time.Minute) // not due
	left, err := server(s).Flush(t.Context(), smtpd.Relay{Dial: r.dial, Hostname: "box.test"}, time.Now())
	if left != 1 || err != nil || !slices.Equal(s.journal, []string{"sent 1"}) {
		t.Errorf("%d left, %v, %q", left, err, s.journal)
	}
	if want := `EHLO box.test MAIL FROM:<anna@here.test> RCPT TO:<x@far.test> DATA ".hello x@far.test\r\n" QUIT `; len(
		r.heard) != 1 || r.heard[0] != want {
		t.Errorf("relay heard %q", r.heard)
	}
}

// What is refused for now is tried soon, what is refused for good tomorrow, and what
// got no answer is not taken for sent.
func TestFlushFails(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		name, line, say string
		next            time.Duration
	}{
		{"nobody is there", "dial", "refused", time.Minute},
		{"busy", "", "421 busy", time.Minute},
		{"greylisted", "RCPT TO:<x@far.test>", "450 later", time.Minute},
		{"unknown user", "RCPT TO:<x@far.test>", "550 no such user", 24 * time.Hour},
		{"refused at the end", ".", "554 spam", 24 * time.Hour},
		{"no answer at the end", ".", "", time.Minute},
	} {
		s, r := newStore(), &relay{says: map[string]string{c.line: c.say}}
		queued(s, "x@far.test")
		left, err := server(s).Flush(t.Context(), smtpd.Relay{Dial: r.dial, Hostname: "box.test"}, now)
		if q := s.queue; left != 1 || err != nil || len(q) != 1 || q[0].Tries != 1 || q[0].LastErr == "" ||
			q[0].Next.Sub(now) != c.next {
			t.Errorf("%s: %d left, %v, %+v", c.name, left, err, q)
		}
	}
}

// A session takes ten messages (Exim's smtp_accept_queue_per_connection).
func TestTenInASession(t *testing.T) {
	s, r := newStore(), &relay{}
	for i := range 12 {
		s.queue = append(s.queue, row.Queued{ID: uint64(i + 1), Rcpts: []string{"x@far.test"},
			Ref: s.keep("hello\r\n")})
	}
	if left, err := server(s).Flush(t.Context(), smtpd.Relay{Dial: r.dial}, time.Now()); left != 0 || err != nil {
		t.Fatal(left, err)
	}
	if len(r.heard) != 2 || strings.Count(r.heard[0], "DATA") != 10 || !strings.HasSuffix(r.heard[0], "QUIT ") ||
		strings.Count(r.heard[1], "DATA") != 2 {
		t.Errorf("sessions: %q", r.heard)
	}
}

// A relay that has ended a session since gets the next message in a new one.
func TestSessionEndedBetweenMessages(t *testing.T) {
	s, r := newStore(), &relay{}
	queued(s, "x@far.test", "y@far.test")
	first := true
	dial := func(ctx context.Context) (net.Conn, error) {
		r.says = map[string]string{}
		if first {
			// Whatever stands between two messages ends the session.
			r.says["MAIL FROM:<second@here.test>"] = "421 enough"
		}
		first = false
		return r.dial(ctx)
	}
	s.queue[1].From = "second@here.test"
	if left, err := server(s).Flush(t.Context(), smtpd.Relay{Dial: dial}, time.Now()); left != 0 || err != nil ||
		len(r.heard) != 2 {
		t.Errorf("%d left, %v, %q", left, err, r.heard)
	}
}

// What becomes of a held message that is given to production: it has it, it has it
// not, or nobody knows.
func TestInject(t *testing.T) {
	for _, c := range []struct {
		name, line, say string
		did             []string
		fails           bool
	}{
		{"taken", "", "220 hi", []string{"giving 1", "given 1", "giving 2", "given 2"}, false},
		{"refused for now", "RCPT TO:<anna@here.test>", "451 later", []string{"giving 1", "not given 1"}, true},
		{"refused for good", "RCPT TO:<anna@here.test>", "550 no such user",
			[]string{"giving 1", "not given 1", "giving 2", "given 2"}, true},
		{"not answered", ".", "", []string{"giving 1", "giving 1 lost"}, true},
		{"lost before the end", "DATA", "", []string{"giving 1", "not given 1"}, true},
	} {
		s, r := newStore(), &relay{says: map[string]string{c.line: c.say}}
		ref := s.keep("hello\r\n")
		s.held = []row.Held{{ID: 1, State: row.HeldOurs, Rcpts: []string{"anna@here.test"}, Ref: ref},
			{ID: 2, State: row.HeldOurs, Rcpts: []string{"bert@here.test"}, Ref: ref}}
		err := server(s).Inject(t.Context(), smtpd.Relay{Dial: r.dial}, func(row.Held) bool { return true })
		if (err != nil) != c.fails || !slices.Equal(s.journal, c.did) {
			t.Errorf("%s: %v, %q", c.name, err, s.journal)
		}
	}
}

// A message that production refuses for good is left alone for an hour; others are not.
func TestInjectPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, r := newStore(), &relay{says: map[string]string{"RCPT TO:<anna@here.test>": "550 no"}}
		s.held = []row.Held{{ID: 1, State: row.HeldOurs, Rcpts: []string{"anna@here.test"}, Ref: s.keep("hello\r\n")}}
		srv := server(s)
		inject := func() error {
			s.journal = nil
			return srv.Inject(t.Context(), smtpd.Relay{Dial: r.dial}, func(row.Held) bool { return true })
		}
		if err := inject(); err == nil {
			t.Error("a refusal is not told")
		}
		time.Sleep(59 * time.Minute)
		if err := inject(); err != nil || s.journal != nil {
			t.Errorf("%v, %q", err, s.journal)
		}
		time.Sleep(2 * time.Minute)
		if _ = inject(); !slices.Equal(s.journal, []string{"giving 1", "not given 1"}) {
			t.Errorf("after an hour: %q", s.journal)
		}
	})
}

// One that was delivered while others were sent is not given.
func TestInjectLooksAgain(t *testing.T) {
	s, r := newStore(), &relay{}
	s.held = []row.Held{{ID: 1, State: row.HeldOurs, Rcpts: []string{"anna@here.test"}, Ref: s.keep("hello\r\n")}}
	asked := 0
	err := server(s).Inject(t.Context(), smtpd.Relay{Dial: r.dial}, func(row.Held) bool { asked++; return asked == 1 })
	if err != nil || asked != 2 || !slices.Equal(s.journal, []string{"giving 1"}) || r.heard != nil {
		t.Errorf("%v, %q, %q", err, s.journal, r.heard)
	}
}
