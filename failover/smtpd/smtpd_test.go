package smtpd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/failover/smtpd"
	"understudy/replica/row"
	"understudy/snoop/smtpwire"
)

// store is a replica in memory. journal lists what it was asked to do, in order; what
// is in fails fails.
type store struct {
	journal  []string
	fails    map[string]error
	routes   []string
	held     []row.Held
	queue    []row.Queued
	messages map[row.Ref][]byte
	boxes    map[string]string // by recipient, what was delivered last
}

func newStore() *store {
	return &store{routes: []string{"anna@here.test", "bert@here.test"}, fails: map[string]error{},
		messages: map[row.Ref][]byte{}, boxes: map[string]string{}}
}

func (s *store) did(what string, a ...any) error {
	s.journal = append(s.journal, fmt.Sprintf(what, a...))
	return s.fails[s.journal[len(s.journal)-1]]
}

func (s *store) RouteOf(rcpt string) (row.Route, bool) {
	return row.Route{Account: rcpt}, slices.Contains(s.routes, rcpt)
}

func (s *store) Take(_ context.Context, h row.Held) (row.Held, error) {
	if err := s.did("take %s for %s", h.From, strings.Join(h.Rcpts, " ")); err != nil {
		return h, err
	}
	h.ID, h.State = uint64(len(s.held)+1), row.HeldOurs
	s.held = append(s.held, h)
	return h, nil
}

func (s *store) HeldAll() []row.Held { return slices.Clone(s.held) }

func (s *store) Deliver(_ context.Context, _ row.Held, rcpt string, msg []byte) error {
	if err := s.did("deliver %s", rcpt); err != nil {
		return err
	}
	s.boxes[rcpt] = string(msg)
	return nil
}

func (s *store) Giving(_ context.Context, id uint64, _ time.Time, due func(row.Held) bool) (row.Held, bool, error) {
	i := slices.IndexFunc(s.held, func(h row.Held) bool { return h.ID == id })
	ok := i >= 0 && due(s.held[i])
	err := s.did("giving %d", id)
	if i < 0 {
		return row.Held{}, false, err
	}
	return s.held[i], ok, err
}

func (s *store) Given(_ context.Context, id uint64) error      { return s.did("given %d", id) }
func (s *store) NotGiven(_ context.Context, id uint64) error   { return s.did("not given %d", id) }
func (s *store) GivingLost(_ context.Context, id uint64) error { return s.did("giving %d lost", id) }

func (s *store) Message(ref row.Ref) ([]byte, error) {
	b, ok := s.messages[ref]
	if !ok {
		return nil, errors.New("no such message")
	}
	return b, nil
}

func (s *store) Enqueue(_ context.Context, q row.Queued) (row.Queued, error) {
	if err := s.did("queue for %s", strings.Join(q.Rcpts, " ")); err != nil {
		return q, err
	}
	if q.ID == 0 {
		q.ID = uint64(len(s.queue) + 1)
		s.queue = append(s.queue, q)
		return q, nil
	}
	s.queue[slices.IndexFunc(s.queue, func(o row.Queued) bool { return o.ID == q.ID })] = q
	return q, nil
}

func (s *store) Dequeue(_ context.Context, id uint64) error {
	s.queue = slices.DeleteFunc(s.queue, func(q row.Queued) bool { return q.ID == id })
	return s.did("sent %d", id)
}

func (s *store) Queued() ([]row.Queued, error) { return slices.Clone(s.queue), nil }

// keep stores a message.
func (s *store) keep(msg string) row.Ref {
	ref := row.RefOf([]byte(msg))
	s.messages[ref] = []byte(msg)
	return ref
}

// spool keeps what it is written in the store, once.
type spool struct {
	bytes.Buffer
	s *store
}

func (s *spool) Start()                 {}
func (s *spool) Bytes() ([]byte, error) { return s.Buffer.Bytes(), nil }
func (s *spool) Discard()               {}
func (s *spool) Commit() (row.Ref, error) {
	return s.s.keep(s.String()), s.s.did("store")
}

var errDenied, errDown = errors.New("denied"), errors.New("down")

func server(s *store) *smtpd.Server {
	return smtpd.New(smtpd.Options{Store: s, NewSpool: func() row.Spool { return &spool{s: s} },
		Hostname: "mail.here.test", MaxSize: 1000,
		Log: slog.New(slog.DiscardHandler), Local: func(addr string) bool {
			return strings.HasSuffix(addr,
				"@here.test")
		},
		Check: func(user, password string) (string, error) {
			switch password {
			case "right":
				return user + "@here.test", nil
			case "wrong":
				return "", errDenied
			}
			return "", errDown
		}})
}

// session of a client of a server that it has greeted.
func session(t *testing.T, s *store, submission bool) *smtpd.Session {
	t.Helper()
	c := server(s).Session(t.Context(), "192.0.2.7:4711", submission)
	if r := c.Hello("client.test", true); !r.OK() {
		t.Fatal(r)
	}
	return c
}

func want(t *testing.T, r smtpwire.Reply, code int, text string) {
	t.Helper()
	if r.Code != code || !strings.Contains(r.String(), text) {
		t.Errorf("%s, not %d %s", r, code, text)
	}
}

func send(t *testing.T, c *smtpd.Session, msg string) smtpwire.Reply {
	t.Helper()
	w, no := c.Data()
	if no != nil {
		t.Fatal(no)
	}
	if _, err := io.WriteString(w, msg); err != nil {
		t.Fatal(err)
	}
	return c.Finish()
}

func TestOrder(t *testing.T) {
	s := newStore()
	c := server(s).Session(t.Context(), "192.0.2.7:4711", false)
	want(t, c.Greeting(), 220, "mail.here.test ESMTP")
	want(t, c.Command("MAIL", "MAIL FROM:<a@b.test>"), 503, "HELO")
	want(t, c.Hello("client.test", false), 250, "mail.here.test")
	if r := c.Hello("client.test", true); !slices.Contains(r.Lines, "SIZE 1000") ||
		!slices.Contains(r.Lines, "AUTH PLAIN LOGIN") {
		t.Error(r)
	}
	want(t, c.Command("RCPT", "RCPT TO:<anna@here.test>"), 503, "MAIL")
	want(t, c.Command("MAIL", "MAIL FROM:a"), 501, "sender")
	want(t, c.Command("MAIL", "MAIL FROM:<a@b.test>"), 250, "Ok")
	want(t, c.Command("RCPT", "RCPT TO:anna"), 501, "recipient")
	if w, no := c.Data(); w != nil || no == nil || no.Code != 554 {
		t.Errorf("a message for nobody: %v", no)
	}
	want(t, c.Command("NOOP", "NOOP"), 250, "")
	want(t, c.Command("VRFY", "VRFY anna"), 252, "")
	want(t, c.Command("RSET", "RSET"), 250, "")
	want(t, c.Command("RCPT", "RCPT TO:<anna@here.test>"), 503, "MAIL")
	want(t, c.Command("EXPN", "EXPN all"), 502, "")
}

// Whom mail is taken for, and from whom.
func TestRecipients(t *testing.T) {
	s := newStore()
	c := session(t, s, false)
	want(t, c.Command("MAIL", "MAIL FROM:<a@b.test>"), 250, "")
	want(t, c.Command("RCPT", "RCPT TO:<anna@here.test>"), 250, "")
	want(t, c.Command("RCPT", "RCPT TO:<nobody@here.test>"), 550, "User unknown")
	want(t, c.Command("RCPT", "RCPT TO:<x@far.test>"), 554, "Relay access denied")
	s.routes = append(s.routes, "moved@far.test") // a route does not make it local
	want(t, c.Command("RCPT", "RCPT TO:<moved@far.test>"), 554, "Relay access denied")
	for range 999 {
		want(t, c.Command("RCPT", "RCPT TO:<bert@here.test>"), 250, "")
	}
	want(t, c.Command("RCPT", "RCPT TO:<bert@here.test>"), 452, "Too many")

	c = session(t, s, true)
	want(t, c.Command("MAIL", "MAIL FROM:<anna@here.test>"), 530, "Authentication required")
	want(t, c.Auth("anna", "right", errDenied), 235, "")
	want(t, c.Command("MAIL", "MAIL FROM:<anna@here.test>"), 250, "")
	want(t, c.Command("RCPT", "RCPT TO:<x@far.test>"), 250, "")
}

// A fault never looks like a wrong password.
func TestAuth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := session(t, newStore(), true)
		begin := time.Now()
		want(t, c.Auth("anna", "what", errDenied), 454, "Temporary")
		if time.Since(begin) != 0 {
			t.Error("a fault is answered late")
		}
		want(t, c.Auth("anna", "wrong", errDenied), 535, "failed")
		if time.Since(begin) != time.Second {
			t.Error("a wrong password is answered at once")
		}
		want(t, c.Command("MAIL", "MAIL FROM:<anna@here.test>"), 530, "")
	})
}

// A message is durable with all its recipients before it is put into a mailbox, and
// that before the 250.
func TestMessage(t *testing.T) {
	s := newStore()
	c := session(t, s, false)
	want(t, c.Auth("anna", "right", errDenied), 235, "")
	want(t, c.Command("MAIL", "MAIL FROM:<a@b.test> BODY=8BITMIME"), 250, "")
	for _, r := range []string{"anna@here.test", "x@far.test", "bert@here.test", "y@far.test"} {
		want(t, c.Command("RCPT", "RCPT TO:<"+r+">"), 250, "")
	}
	msg := "Subject: x\r\n\r\nhello\r\n"
	want(t, send(t, c, msg), 250, "queued as "+row.RefOf([]byte(msg)).String()[:12])
	if !slices.Equal(s.journal, []string{"store", "queue for x@far.test y@far.test",
		"take a@b.test for anna@here.test bert@here.test", "deliver anna@here.test", "deliver bert@here.test"}) {
		t.Errorf("%q", s.journal)
	}
	if h := s.held[0]; !slices.Equal(h.Params, []string{"BODY=8BITMIME"}) || h.Ref != row.RefOf([]byte(msg)) ||
		h.Arrived.IsZero() {
		t.Errorf("held %+v", h)
	}
	got := s.boxes["bert@here.test"]
	if !strings.HasPrefix(got,
		"Return-Path: <a@b.test>\r\nDelivered-To: bert@here.test\r\nReceived: from client.test (192.0.2.7:4711)\r\n"+
			"\tby mail.here.test with ESMTP id ") ||
		!strings.HasSuffix(got, "\r\n"+msg) || !strings.Contains(got, "\r\n\tfor <bert@here.test>; ") {
		t.Errorf("delivered %q", got)
	}
	want(t, c.Command("RCPT", "RCPT TO:<anna@here.test>"), 503, "MAIL")
}

// What could not be made durable is refused, and nobody gets it.
func TestNotDurable(t *testing.T) {
	for _, c := range []struct {
		fails string
		code  int
		did   []string
	}{
		{"store", 452, []string{"store"}},
		{"queue for x@far.test", 451, []string{"store", "queue for x@far.test"}},
		{"take a@b.test for anna@here.test", 451, []string{"store", "queue for x@far.test",
			"take a@b.test for anna@here.test"}},
	} {
		s := newStore()
		s.fails[c.fails] = errDown
		ses := session(t, s, false)
		ses.Auth("anna", "right", errDenied)
		for _, l := range []string{"MAIL FROM:<a@b.test>", "RCPT TO:<anna@here.test>", "RCPT TO:<x@far.test>"} {
			want(t, ses.Command(l[:4], l), 250, "")
		}
		want(t, send(t, ses, "hello\r\n"), c.code, "")
		if !slices.Equal(s.journal, c.did) {
			t.Errorf("%s fails: %q", c.fails, s.journal)
		}
	}
}

// A recipient whose mailbox cannot take it is served by Replay.
func TestReplay(t *testing.T) {
	s := newStore()
	s.fails["deliver anna@here.test"] = errDown
	c := session(t, s, false)
	for _, l := range []string{"MAIL FROM:<a@b.test>", "RCPT TO:<anna@here.test>", "RCPT TO:<bert@here.test>"} {
		want(t, c.Command(l[:4], l), 250, "")
	}
	want(t, send(t, c, "hello\r\n"), 250, "")
	if s.boxes["anna@here.test"] != "" || s.boxes["bert@here.test"] == "" {
		t.Errorf("delivered to %q", s.boxes)
	}
	s.held[0].Rcpts = []string{"anna@here.test"}
	s.held = append(s.held,
		row.Held{ID: 2, State: row.HeldArriving, Rcpts: []string{"bert@here.test"}, Ref: s.held[0].Ref},
		// nobody was told 250
		row.Held{ID: 3, State: row.HeldAccepted, Rcpts: []string{"bert@here.test", "anna@here.test"},
			Ref: row.Ref{}}) // without its bytes
	s.journal = nil
	if left := server(s).Replay(t.Context()); left != 3 ||
		!slices.Equal(s.journal, []string{"deliver anna@here.test"}) {
		t.Errorf("%d left, %q", left, s.journal)
	}
	s.fails = nil
	if left := server(s).Replay(t.Context()); left != 2 ||
		!strings.Contains(s.boxes["anna@here.test"], "Received: from production (held)\r\n") {
		t.Errorf("%d left, %q", left, s.boxes["anna@here.test"])
	}
}
