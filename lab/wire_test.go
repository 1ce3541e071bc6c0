package lab

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"understudy/lab/hosts"
	"understudy/lab/site"
	"understudy/replica/imapc"
	"understudy/snoop/smtpwire"
)

// send gives a message to an SMTP server; it returns the first reply that is no
// success.
func send(t *testing.T, addr, from, body string, rcpts ...string) smtpwire.Reply {
	t.Helper()
	return converse(t, must(net.DialTimeout("tcp", addr, 10*time.Second))(t), from, body, rcpts...)
}

// sendFrom is send from a host.
func sendFrom(t *testing.T, h *hosts.Host, addr, from, body string, rcpts ...string) smtpwire.Reply {
	t.Helper()
	return converse(t, must(h.Dial(t.Context(), addr))(t), from, body, rcpts...)
}

func converse(t *testing.T, conn net.Conn, from, body string, rcpts ...string) smtpwire.Reply {
	t.Helper()
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	br := bufio.NewReader(conn)
	lines := []string{"", "EHLO client.other.test", "MAIL FROM:<" + from + ">"}
	for _, r := range rcpts {
		lines = append(lines, "RCPT TO:<"+r+">")
	}
	var last smtpwire.Reply
	for _, l := range append(lines, "DATA", strings.ReplaceAll(body, "\r\n.", "\r\n..")+"\r\n.") {
		if l != "" {
			if _, err := conn.Write([]byte(l + "\r\n")); err != nil {
				t.Fatal(err)
			}
		}
		r, err := smtpwire.ReadReply(br)
		if err != nil {
			t.Fatalf("%.60s: %v", l, err)
		}
		if last = r; r.Code >= 400 {
			return r
		}
	}
	return last
}

// T7, T10: with the sweep off, what crosses the wire is in the replica within a
// second of its OK, without a body being fetched.
func TestT7_SnoopedChanges(t *testing.T) {
	s := newSite(t, 2)
	u := s.Users[0]
	fill(t, s, u, 40)
	b := newBox(t, s, map[string]string{"mirror.sweep": `"0s"`})
	waitPhase(t, b, "protecting")
	same(t, s, b, u, time.Second)
	fetched := must(b.Status(t.Context()))(t).Fetched
	c := dial(t, b.IMAP, u)
	appendTo := func(box, id string) {
		t.Helper()
		if _, uid,
			err := c.Append(imapc.Appending{Mailbox: box, Flags: []string{`\Seen`, "mine"},
			Body: message(id, 3000)}); err != nil || uid == 0 {
			t.Fatal(uid, err)
		}
	}
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"APPEND", func() { appendTo("INBOX", "a1"); appendTo("INBOX", "a2"); appendTo("Sent", "a3") }},
		{"SELECT and STORE by number",
			func() { do(t, c, "SELECT INBOX"); do(t, c, `STORE 2:4 +FLAGS (\Flagged new)`) }},
		{"STORE silent",
			func() { do(t, c, `STORE 3 -FLAGS.SILENT (\Flagged)`); do(t, c, `UID STORE 1:* +FLAGS.SILENT (all)`) }},
		{"STORE replacing", func() { do(t, c, `STORE 1 FLAGS (\Answered)`) }},
		{"COPY", func() { do(t, c, "COPY 1:3 Sent"); do(t, c, `UID COPY 2 "Archive/2025/Q&AOQ-"`) }},
		{"MOVE", func() { do(t, c, "MOVE 2 Sent"); do(t, c, "UID MOVE 4:5 Sent") }},
		{"EXPUNGE", func() { do(t, c, `STORE 1:2 +FLAGS (\Deleted)`); do(t, c, "EXPUNGE") }},
		{"UID EXPUNGE", func() { do(t, c, `STORE 1:2 +FLAGS (\Deleted)`); do(t, c, "UID EXPUNGE 1:*") }},
		{"CLOSE", func() { do(t, c, `STORE 1 +FLAGS.SILENT (\Deleted)`); do(t, c, "CLOSE") }},
		{"CREATE", func() { do(t, c, "CREATE New/Sub"); appendTo("New/Sub", "n1"); do(t, c, "CREATE {5+}\r\nplain") }},
		{"SUBSCRIBE",
			func() { do(t, c, "SUBSCRIBE New/Sub"); do(t, c, "SUBSCRIBE Sent"); do(t, c, "UNSUBSCRIBE Sent") }},
		{"RENAME", func() { do(t, c, "RENAME New Renamed"); appendTo("Renamed/Sub", "n2") }},
		{"DELETE", func() { do(t, c, "DELETE Renamed/Sub"); do(t, c, "CREATE Renamed/Sub") }},
		{"SMTP", func() {
			if r := send(t, b.SMTP, "x@other.test", string(message("in", 10))+".dots\r\n..more\r\n", u); r.Code != 250 {
				t.Fatal(r)
			}
			if r := send(t, b.SMTP, "", string(message("bounce", 20000)), "info@"+site.Domain); r.Code != 250 {
				t.Fatal(r)
			}
			waitFor(t, "delivery", func() bool { return must(b.Status(t.Context()))(t).Held == 0 })
		}},
	} {
		t.Run(step.name, func(t *testing.T) { step.do(); same(t, s, b, u, time.Second) })
	}
	st := must(b.Status(t.Context()))(t)
	// A sync that is under way at the very moment of an APPEND may see the
	// message before the OK was read.
	if st.Fetched > fetched+1 {
		t.Errorf("T10: %d bodies were fetched that had crossed the wire", st.Fetched-fetched)
	}
	t.Logf("settled from the wire %d, by a sync %d; bodies fetched %d, known from SMTP %d", st.Wire, st.BySync,
		st.Fetched-fetched, st.FromWire)
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 15 s", what)
		}
	}
}

// T11, C18: what changes behind the box is found by a sweep, an old message
// moved in from elsewhere included.
func TestT11_BehindTheBox(t *testing.T) {
	s := newSite(t, 2)
	u := s.Users[0]
	fill(t, s, u, 40)
	b := newBox(t, s, map[string]string{"mirror.sweep": `"0s"`, "mirror.idle": "0"})
	waitPhase(t, b, "protecting")
	d := dial(t, direct(s), u)
	do(t, d, "SELECT INBOX")
	do(t, d, `STORE 1:3 +FLAGS (\Flagged behind)`)
	do(t, d, `STORE 4 +FLAGS (\Deleted)`)
	do(t, d, "EXPUNGE")
	do(t, d, "MOVE 1 Sent")
	do(t, d, "CREATE Behind")
	do(t, d, "COPY 2:4 Behind")
	do(t, d, `RENAME "Archive/2025/Q&AOQ-" Old`)
	do(t, d, "DELETE {25+}\r\nProjekte &APw-ber alles")
	if r := send(t, fmt.Sprintf("127.0.0.1:%d", s.SMTPPort), "x@other.test", "Subject: behind\r\n\r\nx\r\n",
		u); r.Code != 250 {
		t.Fatal(r)
	}
	time.Sleep(500 * time.Millisecond)
	t.Log(order(t, b, "sync"))
	t.Log(order(t, b, "tasks"))
	same(t, s, b, u, 0)
}

// B9, B10, T19: in the outage a learned password logs in, a wrong one does not,
// an unknown recipient is refused with 550, a learned alias delivered; nothing
// was configured but the domain.
func TestB9_LearnedLoginsAndRoutes(t *testing.T) {
	s := newSite(t, 3)
	b := newBox(t, s, nil)
	waitPhase(t, b, "protecting")
	u := s.Users[0]
	dial(t, b.IMAP, u).Logout()
	if r := send(t, b.SMTP, "x@other.test", "Subject: to the alias\r\n\r\nhello\r\n",
		"sales@"+site.Domain); r.Code != 250 {
		t.Fatal(r)
	}
	waitFor(t, "the alias is learned", func() bool {
		st := must(b.Status(t.Context()))(t)
		return st.Routes > 0 && st.Held == 0 && st.Verifiers > 0
	})
	s.Kill()
	waitPhase(t, b, "serving")
	c := dial(t, b.IMAP, u)
	if _, err := c.Do("NOOP", nil); err != nil {
		t.Fatal(err)
	}
	conn := must(net.Dial("tcp", b.IMAP))(t)
	w := must(imapc.New(t.Context(), conn, imapc.Options{}))(t)
	if err := w.Login(u, "", "wrong"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a wrong password: %v", err)
	}
	if r := send(t, b.SMTP, "x@other.test", "x", "nobody@"+site.Domain); r.Code != 550 {
		t.Errorf("unknown recipient: %s", r)
	}
	if r := send(t, b.SMTP, "x@other.test", "x", "someone@elsewhere.test"); r.Code != 554 {
		t.Errorf("relaying: %s", r)
	}
	if r := send(t, b.SMTP, "x@other.test", "Subject: again\r\n\r\nhello\r\n", "sales@"+site.Domain); r.Code != 250 {
		t.Errorf("learned alias: %s", r)
	}
	l := must(b.Replica(t.Context(), s.Users[2]))(t)
	if n := strings.Count(l.String(), "uid="); n != 2 {
		t.Errorf("the alias's owner has %d messages, want 2:\n%s", n, l)
	}
	// A user who was never seen is not told that the password is wrong.
	conn = must(net.Dial("tcp", b.IMAP))(t)
	w = must(imapc.New(context.Background(), conn, imapc.Options{}))(t)
	if err := w.Login(s.Users[1], "", site.Password(s.Users[1])); err == nil ||
		strings.Contains(err.Error(), "refused") {
		t.Errorf("N28: a login that cannot be verified must be dropped, not denied: %v", err)
	}
}
