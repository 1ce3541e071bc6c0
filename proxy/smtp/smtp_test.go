package smtp_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy/proxy/seam"
	"understudy/proxy/smtp"
	"understudy/proxy/upstream"
	"understudy/replica/row"
	"understudy/snoop/smtpwire"
)

// turn of production: it hears a line, or the whole of a message, unless hear is "",
// and says something.
type turn struct{ hear, say string }

const whole = "a message"

// site is all that a session of the proxy has to do with. Its connections to
// production play one script after the other, and break when theirs is over.
type site struct {
	t       *testing.T
	scripts [][]turn
	standby *standby

	mu       sync.Mutex
	side     seam.Side
	revoked  chan struct{}
	trouble  []string
	logins   []string
	arrivals []*arrival
	again    bool     // the message was taken before
	others   []string // that Owe leaves
	durable  error
	answered []bool
	got      string // the last whole message that production heard
}

func (s *site) Enter(context.Context, string) (seam.Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return seam.Lease{Side: s.side, Revoked: s.revoked, Release: func() {}}, nil
}

// revoke has all sessions leave for another side.
func (s *site) revoke(to seam.Side) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.revoked)
	s.revoked, s.side = make(chan struct{}), to
}

func (s *site) Trouble(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = append(s.trouble, err.Error())
}

func (s *site) LoggedIn(_ context.Context, l seam.Login) (string, error) {
	s.logins = append(s.logins, l.User)
	return l.User, nil
}

// arrival notes what became of a message.
type arrival struct {
	s    *site
	mail row.Envelope
	body string
	end  string
}

func (s *site) Arriving(_ context.Context, m row.Envelope, sp row.Spool) smtp.Arrival {
	b, _ := sp.Bytes()
	a := &arrival{s: s, mail: m, body: string(b)}
	s.arrivals = append(s.arrivals, a)
	return a
}

func (a *arrival) close(end string) {
	if a.end != "" {
		a.s.t.Errorf("message is %s and %s", a.end, end)
	}
	a.end = end
}
func (a *arrival) Accepted() error        { a.close("accepted"); return a.s.durable }
func (a *arrival) Refused()               { a.close("refused") }
func (a *arrival) Owe() ([]string, error) { a.close("owed"); return a.s.others, a.s.durable }

func (s *site) Taking(row.Envelope, row.Spool) func(bool) {
	return func(told bool) { s.answered = append(s.answered, told) }
}

func (s *site) Repeated(context.Context, row.Envelope, row.Spool) (bool, error) { return s.again, nil }

// spool is a row.Spool in memory.
type spool struct{ bytes.Buffer }

func (s *spool) Start()                   {}
func (s *spool) Bytes() ([]byte, error)   { return s.Buffer.Bytes(), nil }
func (s *spool) Commit() (row.Ref, error) { return row.RefOf(s.Buffer.Bytes()), nil }
func (s *spool) Discard()                 {}

// standby notes what it is told, and takes everything but what is in no.
type standby struct {
	told []string
	no   map[string]int
	body bytes.Buffer
	dies bool // at the end of a message
}

func (u *standby) NewSMTP(context.Context, seam.Client) smtp.Upstream { return u }

func (u *standby) hear(line string) (smtpwire.Reply, error) {
	u.told = append(u.told, line)
	if code := u.no[line]; code != 0 {
		return smtpwire.NewReply(code, "standby says no"), nil
	}
	return smtpwire.NewReply(250, "standby"), nil
}
func (u *standby) Greeting() (smtpwire.Reply, error) { return smtpwire.NewReply(220, "standby"), nil }
func (u *standby) Hello(c seam.Client) (smtpwire.Reply, error) {
	return u.hear(fmt.Sprintf("EHLO %s %v", c.Helo, c.TLS))
}
func (u *standby) Auth(l seam.Login) (smtpwire.Reply, error)      { return u.hear("AUTH " + l.User) }
func (u *standby) Command(_, line string) (smtpwire.Reply, error) { return u.hear(line) }
func (u *standby) Data() (io.Writer, smtpwire.Reply, error) {
	_, _ = u.hear("DATA")
	return &u.body, smtpwire.Reply{Code: 354}, nil
}
func (u *standby) Finish() (smtpwire.Reply, error) {
	if u.dies {
		return smtpwire.Reply{}, io.ErrUnexpectedEOF
	}
	return u.hear(u.body.String())
}
func (u *standby) Close() {}

// dial is a connection to production, which plays the next script.
func (s *site) dial(context.Context, seam.Client, string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.scripts) == 0 {
		return nil, errors.New("connection refused")
	}
	script := s.scripts[0]
	s.scripts = s.scripts[1:]
	near, far := net.Pipe()
	go func() {
		defer func() { _ = far.Close() }()
		br := bufio.NewReader(far)
		for _, x := range script {
			if x.hear == whole {
				var b bytes.Buffer
				_, _ = smtpwire.CopyBody(&b, br, 0)
				s.got = b.String()
			} else if x.hear != "" {
				line, err := br.ReadString('\n')
				if err != nil || strings.TrimRight(line, "\r\n") != x.hear {
					s.t.Errorf("production heard %q, not %q (%v)", line, x.hear, err)
					return
				}
			}
			if x.say == "wait" {
				_, _ = io.Copy(io.Discard, br)
				return
			}
			if _, err := io.WriteString(far, x.say); err != nil {
				return
			}
		}
	}()
	return near, nil
}

// client talks to the proxy.
type client struct {
	t  *testing.T
	c  net.Conn
	br *bufio.Reader
}

// talk runs a session of a client in a bubble of virtual time.
func talk(t *testing.T, s *site, o smtp.Options, f func(c *client)) {
	synctest.Test(t, func(t *testing.T) {
		s.t, s.revoked = t, make(chan struct{})
		if s.standby == nil {
			s.standby = &standby{}
		}
		o.Gate, o.Standby, o.Logins, o.Arrivals, o.Senders = s, s.standby, s, s, s
		o.NewSpool = func() row.Spool { return &spool{} }
		o.Target = upstream.Target{SMTP: upstream.Endpoint{Addr: "production:25", Via: s.dial}}
		srv, err := smtp.New(o)
		if err != nil {
			t.Fatal(err)
		}
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer func() { _ = far.Close() }()
			srv.ServeConn(t.Context(), far, seam.Client{Addr: netip.MustParseAddrPort("192.0.2.7:4711")})
		}()
		f(&client{t, near, bufio.NewReader(near)})
		_ = near.Close()
		<-done
	})
}

// say sends lines and returns the reply; "" is the end of the connection.
func (c *client) say(lines ...string) string {
	if lines != nil {
		if _, err := io.WriteString(c.c, strings.Join(lines, "\r\n")+"\r\n"); err != nil {
			return ""
		}
	}
	r, err := smtpwire.ReadReply(c.br)
	if err != nil {
		return ""
	}
	return r.String()
}

func (c *client) want(want string, lines ...string) {
	c.t.Helper()
	if got := c.say(lines...); got != want {
		c.t.Errorf("%q: %q, not %q", lines, got, want)
	}
}

// begin opens a message for two recipients.
func (c *client) begin() {
	c.t.Helper()
	c.want("220 hi")
	c.want("250 mail", "EHLO client.test")
	c.want("250 from", "MAIL FROM:<a@b.test> SIZE=3")
	c.want("250 one", "RCPT TO:<one@here.test>")
	c.want("250 two", "RCPT TO:<two@far.test>")
}

// opening is production's side of begin.
func opening(more ...turn) []turn {
	return append([]turn{{"", "220 hi\r\n"}, {"EHLO client.test", "250 mail\r\n"},
		{"MAIL FROM:<a@b.test> SIZE=3", "250 from\r\n"},
		{"RCPT TO:<one@here.test>", "250 one\r\n"}, {"RCPT TO:<two@far.test>", "250 two\r\n"}}, more...)
}

func body(end string) []turn {
	return []turn{{"DATA", "354 go\r\n"}, {"Subject: x", ""}, {"..dot", ""}, {".", end}}
}

const sent = "Subject: x\r\n.dot\r\n"

func (c *client) send(want string) {
	c.t.Helper()
	c.want("354 End data with <CR><LF>.<CR><LF>", "DATA")
	c.want(want, "Subject: x", "..dot", ".")
}

func ends(as []*arrival) (out []string) {
	for _, a := range as {
		out = append(out, a.end)
	}
	return out
}

func TestMessage(t *testing.T) {
	s := &site{scripts: [][]turn{append(opening(body("250 queued\r\n")...), turn{"QUIT", "221 bye\r\n"})}}
	talk(t, s, smtp.Options{}, func(c *client) {
		c.begin()
		c.send("250 queued")
		c.want("503 5.5.1 MAIL first", "RCPT TO:<one@here.test>")
		c.want("221 bye", "QUIT")
	})
	if len(s.arrivals) != 1 || s.arrivals[0].end != "accepted" || s.arrivals[0].body != sent ||
		s.arrivals[0].mail.From != "a@b.test" ||
		!slices.Equal(s.arrivals[0].mail.Rcpts, []string{"one@here.test", "two@far.test"}) ||
		!slices.Equal(s.answered, []bool{true}) || s.trouble != nil {
		t.Errorf("%+v, %v, %q", s.arrivals, s.answered, s.trouble)
	}
}

// A 421 in the middle is not the client's: the next upstream is told all again.
func TestClosingInTheMiddle(t *testing.T) {
	first := opening()
	first[4].say = "421 going down\r\n"
	s := &site{scripts: [][]turn{first, opening(body("250 queued\r\n")...)}}
	talk(t, s, smtp.Options{}, func(c *client) {
		c.begin()
		c.send("250 queued")
	})
	if len(s.trouble) != 1 {
		t.Errorf("told the gate %q", s.trouble)
	}
}

// A second 421 to the same command is the answer: it may be the command that it is
// about.
func TestClosingTwice(t *testing.T) {
	busy := []turn{{"", "220 hi\r\n"}, {"EHLO client.test", "421 no\r\n"}}
	s := &site{scripts: [][]turn{busy, busy}}
	talk(t, s, smtp.Options{}, func(c *client) {
		c.want("220 hi")
		c.want("421 no", "EHLO client.test")
		c.want("", "NOOP")
	})
}

// A body of which production got a part is given whole to the next.
func TestBodyGivenAgain(t *testing.T) {
	big := strings.Repeat("a line of the message\r\n", 5000)
	s := &site{scripts: [][]turn{opening(turn{"DATA", "354 go\r\n"}, turn{"a line of the message", ""}),
		opening(turn{"DATA", "354 go\r\n"}, turn{whole, "250 queued\r\n"})}}
	talk(t, s, smtp.Options{}, func(c *client) {
		c.begin()
		c.want("354 End data with <CR><LF>.<CR><LF>", "DATA")
		c.want("250 queued", big+".")
	})
	if got := ends(s.arrivals); !slices.Equal(got, []string{"accepted"}) || s.got != big ||
		s.arrivals[0].body != big || len(s.trouble) != 1 {
		t.Errorf("messages are %q, of %d bytes; trouble %q", got, len(s.got), s.trouble)
	}
}

// A next upstream that refuses the message has not got it, and nor has anybody.
func TestBodyRefusedAgain(t *testing.T) {
	big := strings.Repeat("a line of the message\r\n", 5000)
	s := &site{scripts: [][]turn{opening(turn{"DATA", "354 go\r\n"}, turn{"a line of the message", ""}),
		opening(turn{"DATA", "452 full\r\n"})}}
	talk(t, s, smtp.Options{}, func(c *client) {
		c.begin()
		c.want("354 End data with <CR><LF>.<CR><LF>", "DATA")
		c.want("452 full", big+".")
	})
	if len(s.arrivals) != 0 {
		t.Errorf("messages are %q", ends(s.arrivals))
	}
}

// Production was lost after the end of the data: who is here is owed the message,
// and only the others are asked for again.
func TestOwedInPart(t *testing.T) {
	again := append([]turn{{"", "220 hi\r\n"}, {"EHLO client.test", "250 mail\r\n"},
		{"MAIL FROM:<a@b.test> SIZE=3", "250 from\r\n"},
		{"RCPT TO:<two@far.test>", "250 two\r\n"}}, body("250 queued again\r\n")...)
	s := &site{scripts: [][]turn{opening(body("")...), again}, others: []string{"two@far.test"}}
	talk(t, s, smtp.Options{}, func(c *client) {
		c.begin()
		c.send("250 queued again")
	})
	if got := ends(s.arrivals); !slices.Equal(got, []string{"owed", "accepted"}) ||
		!slices.Equal(s.arrivals[1].mail.Rcpts, []string{"two@far.test"}) ||
		!slices.Equal(s.arrivals[0].mail.Rcpts, []string{"one@here.test", "two@far.test"}) {
		t.Errorf("messages are %q", got)
	}
}

func TestOwedWhole(t *testing.T) {
	s := &site{scripts: [][]turn{opening(body("")...), opening()[:2]}}
	talk(t, s, smtp.Options{}, func(c *client) {
		c.begin()
		c.send("250 2.0.0 Ok")
		c.want("250 mail", "EHLO client.test")
	})
	if got := ends(s.arrivals); !slices.Equal(got, []string{"owed"}) || !slices.Equal(s.answered, []bool{true}) {
		t.Errorf("messages are %q, answered %v", got, s.answered)
	}
}

// What is not durable is not answered: the sender comes again.
func TestNotDurable(t *testing.T) {
	for name, end := range map[string]string{"accepted": "250 queued\r\n", "owed": ""} {
		s := &site{scripts: [][]turn{opening(body(end)...)}, durable: errors.New("disk is full")}
		talk(t, s, smtp.Options{}, func(c *client) {
			c.begin()
			c.send("")
		})
		if got := ends(s.arrivals); !slices.Equal(got, []string{name}) || !slices.Equal(s.answered, []bool{false}) {
			t.Errorf("messages are %q, answered %v", got, s.answered)
		}
	}
}

func TestRefusedMessage(t *testing.T) {
	s := &site{scripts: [][]turn{append(opening(body("554 spam\r\n")...), turn{"NOOP", "250 still here\r\n"})}}
	talk(t, s, smtp.Options{}, func(c *client) {
		c.begin()
		c.send("554 spam")
		c.want("250 still here", "NOOP")
	})
	if got := ends(s.arrivals); !slices.Equal(got, []string{"refused"}) || !slices.Equal(s.answered, []bool{true}) {
		t.Errorf("messages are %q, answered %v", got, s.answered)
	}
}

// A message that was taken before is not given to production once more.
func TestRepeated(t *testing.T) {
	s := &site{again: true, scripts: [][]turn{opening(turn{"DATA", "354 go\r\n"}, turn{"", "wait"}), opening()[:3]}}
	talk(t, s, smtp.Options{}, func(c *client) {
		c.begin()
		c.send("250 2.0.0 Ok: accepted before")
		c.want("250 from", "MAIL FROM:<a@b.test> SIZE=3")
	})
	if len(s.arrivals) != 0 || !slices.Equal(s.answered, []bool{true}) {
		t.Errorf("%v arrived, answered %v", ends(s.arrivals), s.answered)
	}
}

// The standby takes over a session that idles, and one that does not.
func TestTakenOver(t *testing.T) {
	script := append([]turn{{"", "220 hi\r\n"}, {"EHLO client.test", "250 mail\r\n"},
		{"AUTH PLAIN AGFubmEAcHc=", "235 in\r\n"}},
		append(opening()[2:], turn{"", "wait"})...)
	s := &site{scripts: [][]turn{script}}
	talk(t, s, smtp.Options{PlainOK: true}, func(c *client) {
		c.want("220 hi")
		c.want("250 mail", "EHLO client.test")
		c.want("235 in", "AUTH PLAIN AGFubmEAcHc=")
		c.want("250 from", "MAIL FROM:<a@b.test> SIZE=3")
		c.want("250 one", "RCPT TO:<one@here.test>")
		c.want("250 two", "RCPT TO:<two@far.test>")
		s.revoke(seam.Standby)
		synctest.Wait()
		c.want("250 standby", "RCPT TO:<three@here.test>")
		c.send("250 standby")
	})
	want := []string{"EHLO client.test false", "AUTH anna", "MAIL FROM:<a@b.test> SIZE=3", "RCPT TO:<one@here.test>",
		"RCPT TO:<two@far.test>",
		"RCPT TO:<three@here.test>", "DATA", sent}
	if !slices.Equal(s.standby.told, want) || len(s.arrivals) != 0 || s.trouble != nil ||
		!slices.Equal(s.logins, []string{"anna"}) {
		t.Errorf("standby heard %q; %v; %q; %q", s.standby.told, s.arrivals, s.trouble, s.logins)
	}
}

// What the next upstream does not grant again ends the session without a word.
func TestNotGrantedAgain(t *testing.T) {
	s := &site{scripts: [][]turn{opening(turn{"", "wait"})},
		standby: &standby{no: map[string]int{"RCPT TO:<one@here.test>": 550}}}
	talk(t, s, smtp.Options{}, func(c *client) {
		c.begin()
		s.revoke(seam.Standby)
		synctest.Wait()
		c.want("", "NOOP")
	})
}

// The standby's loss after the end of the data leaves the message unanswered.
func TestStandbyDies(t *testing.T) {
	s := &site{side: seam.Standby, standby: &standby{dies: true}}
	talk(t, s, smtp.Options{}, func(c *client) {
		c.want("220 standby")
		c.want("250 standby", "EHLO client.test")
		c.want("250 standby", "MAIL FROM:<a@b.test>")
		c.want("250 standby", "RCPT TO:<one@here.test>")
		c.send("")
	})
	if !slices.Equal(s.answered, []bool{false}) {
		t.Errorf("answered %v", s.answered)
	}
}

// While nobody can be reached a command waits, five minutes at most.
func TestNobodyAnswers(t *testing.T) {
	s := &site{}
	talk(t, s, smtp.Options{}, func(c *client) {
		begin := time.Now()
		c.want("")
		if d := time.Since(begin).Round(time.Second); d != 5*time.Minute {
			t.Errorf("waited %v", d)
		}
	})
	if len(s.trouble) == 0 {
		t.Error("the gate was not told")
	}
}

// RFC 5321 sections 4.1.4 and 4.2.4, RFC 4954 section 4, RFC 3207 section 4.
func TestRefusals(t *testing.T) {
	s := &site{side: seam.Standby}
	talk(t, s, smtp.Options{MaxMessage: 10, StartTLS: func(context.Context, net.Conn) (net.Conn, error) {
		return nil,
			errors.New("no handshake")
	}}, func(c *client) {
		c.want("220 standby")
		c.want("501 5.5.4 Name of the client is missing", "EHLO")
		c.want("250 standby / STARTTLS", "EHLO client.test")
		c.want("538 5.7.11 Use TLS first", "AUTH PLAIN AGFubmEAcHc=")
		c.want("503 5.5.1 MAIL first", "RCPT TO:<one@here.test>")
		c.want("554 5.5.1 No valid recipients", "DATA")
		c.want("552 5.3.4 Message is over the limit of 10 bytes", "MAIL FROM:<a@b.test> SIZE=11")
		c.want("501 5.5.4 syntax error: address without brackets", "MAIL FROM:a@b.test")
		c.want("250 standby", "MAIL FROM:<a@b.test>")
		c.want("503 5.5.1 Nested MAIL", "MAIL FROM:<a@b.test>")
		c.want("501 5.5.4 Bad recipient address", "RCPT TO:<>")
		c.want("554 5.5.1 No valid recipients", "DATA")
		c.want("501 5.5.4 DATA takes no argument", "DATA now")
		c.want("500 5.5.1 Unknown command", "XCLIENT ADDR=192.0.2.9")
		c.want("500 5.5.2 Syntax error", "MAIL\x01")
		c.want("250 standby", "RSET")
		c.want("503 5.5.1 MAIL first", "RCPT TO:<one@here.test>")
		c.want("554 5.5.0 Text behind STARTTLS", "STARTTLS", "MAIL FROM:<injected@b.test>")
		c.want("", "NOOP")
	})
	if slices.Contains(s.standby.told, "MAIL FROM:<injected@b.test>") {
		t.Error("a command of before TLS was taken")
	}
}

// Too many mistakes end a session.
func TestTooManyMistakes(t *testing.T) {
	s := &site{side: seam.Standby, standby: &standby{no: map[string]int{"AUTH anna": 535}}}
	talk(t, s, smtp.Options{PlainOK: true}, func(c *client) {
		c.want("220 standby")
		c.want("250 standby", "EHLO client.test")
		for range 4 {
			c.want("535 standby says no", "AUTH PLAIN AGFubmEAcHc=")
		}
		c.want("", "NOOP")
	})
	if s.logins != nil {
		t.Errorf("learned %q", s.logins)
	}
}

// A message over the limit never gets its end upstream.
func TestTooBig(t *testing.T) {
	s := &site{scripts: [][]turn{opening(turn{"DATA", "354 go\r\n"}, turn{"", "wait"})}}
	talk(t, s, smtp.Options{MaxMessage: 10}, func(c *client) {
		c.begin()
		c.want("354 End data with <CR><LF>.<CR><LF>", "DATA")
		c.want("552 5.3.4 Message is over the limit of 10 bytes", strings.Repeat("x", 100), ".")
		c.want("", "NOOP")
	})
	if len(s.arrivals) != 0 {
		t.Errorf("%v", ends(s.arrivals))
	}
}

func TestNew(t *testing.T) {
	s := &site{standby: &standby{}}
	o := smtp.Options{Gate: s, Standby: s.standby, NewSpool: func() row.Spool { return &spool{} }}
	if _, err := smtp.New(o); err != nil {
		t.Errorf("a standby alone: %v", err)
	}
	o.Target.Submission.Addr = "production:587"
	if _, err := smtp.New(o); err == nil {
		t.Error("production whose answers nobody follows")
	}
	if _, err := smtp.New(smtp.Options{}); err == nil {
		t.Error("nothing at all")
	}
}
