package imapd_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"understudy/failover/imapd"
	"understudy/replica"
	"understudy/replica/row"
)

const nested = "From: \"Ada, L.\" <ada@d.test>, Group: b@d.test, (c) c@d.test;\r\nTo: <@relay:d@d.test>\r\n" +
	"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= \"x\"\r\n" +
	"Date: Mon, 02 Nov 2026 10:00:00 +0100\r\nMessage-ID: <n@d.test>\r\nMIME-Version: 1.0\r\nContent-Type: " +
	"multipart/mixed; boundary=\"b 1\"\r\n\r\npreamble\r\n" +
	"--b 1\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" +
	"na=EFve text\r\n" +
	"--b 1\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\nFrom: i@d.test\r\n\r\ninner body\r\n--b 1--\r\n"

func server(t testing.TB) (*replica.Replica, *imapd.Server) {
	t.Helper()
	s, err := replica.Open(replica.Options{Dir: t.TempDir(), Primary: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	ctx := context.Background()
	if _, err := s.EnsureAccount(ctx, "u", row.Standby); err != nil {
		t.Fatal(err)
	}
	for _, b := range []string{"INBOX", "Sent", "A/B"} {
		if err := s.Create(ctx, "u", b, nil); err != nil {
			t.Fatal(err)
		}
	}
	for i, text := range []string{nested, "Subject: two\r\n\r\nsecond\r\n",
		"broken header\r\nSubject: three\r\n\r\nx"} {
		ref, err := s.PutMessage([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Append(ctx, "u", "INBOX", []row.New{{Ref: ref,
			Date: time.Date(2026, 1, 1+i, 0, 0, 0, 0, time.UTC)}}); err != nil {
			t.Fatal(err)
		}
	}
	return s, imapd.New(imapd.Options{Store: s, MaxMessage: 100_000})
}

// client sends lines and collects answers.
type client struct {
	t  *testing.T
	c  net.Conn
	br *bufio.Reader
}

func connect(t *testing.T, srv *imapd.Server) *client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_ = srv.ServeConn(context.Background(), c, imapd.Session{User: "u"})
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { _ = c.Close(); _ = l.Close(); <-done })
	return &client{t, c, bufio.NewReader(c)}
}

// do sends text and reads up to the answer to tag "a".
func (c *client) do(text string) string {
	c.t.Helper()
	if _, err := c.c.Write([]byte("a " + text + "\r\n")); err != nil {
		c.t.Fatal(err)
	}
	var all strings.Builder
	for {
		l, err := c.br.ReadString('\n')
		all.WriteString(l)
		if err != nil || strings.HasPrefix(l, "a ") {
			return all.String()
		}
	}
}

func (c *client) want(cmd string, parts ...string) {
	c.t.Helper()
	got := c.do(cmd)
	for _, p := range parts {
		neg := strings.HasPrefix(p, "!")
		if strings.Contains(got, strings.TrimPrefix(p, "!")) == neg {
			c.t.Errorf("%s: want %q in\n%s", cmd, p, got)
		}
	}
}

func TestSession(t *testing.T) {
	_, srv := server(t)
	c := connect(t, srv)
	for _, s := range [][]string{
		{"CAPABILITY", "CONDSTORE", "a OK"},
		{"ID NIL", "* ID", "a OK"},
		{"NAMESPACE", `(("" "/"))`},
		{"SELECT INBOX", "* 3 EXISTS", "[UIDVALIDITY ", "[UIDNEXT 4]", "[HIGHESTMODSEQ ", "[READ-WRITE]"},
		{"FETCH 1 (ENVELOPE)",
			`(("Ada, L." NIL "ada" "d.test")(NIL NIL "Group" NIL)(NIL NIL "b" "d.test")(NIL NIL "c" "d.test")` +
				`(NIL NIL NIL NIL))`, "{31}\r\n=?utf-8?q?Gr=C3=BC=C3=9Fe?= \"x\"", `((NIL "@relay" "d" "d.test"))`},
		{"FETCH 1 BODYSTRUCTURE",
			`("text" "plain" ("charset" "iso-8859-1") NIL NIL "quoted-printable" 12 0 NIL NIL NIL NIL)`,
			`("message" "rfc822"`, `"inner"`, `"mixed" ("boundary" "b 1")`},
		{"FETCH 1 (BODY.PEEK[1] BODY.PEEK[2.1] BODY.PEEK[2.HEADER] BODY.PEEK[1.MIME])", "na=EFve text", "inner body",
			"Subject: inner"},
		{"FETCH 1 BODY.PEEK[HEADER.FIELDS (SUBJECT)]", "BODY[HEADER.FIELDS (SUBJECT)]", "Subject: =?utf"},
		{"FETCH 2 BODY.PEEK[]<5:3>", "BAD"},
		{"FETCH 2 BODY.PEEK[]<5.3>", "BODY[]<5> {3}", "ct:"},
		{"FETCH 3 BODY[]", "broken header", `FLAGS (\Seen)`},
		{"FETCH 9 FLAGS", "BAD"},
		{"UID FETCH 9 FLAGS", "!FETCH (", "a OK"},
		{"SEARCH SUBJECT gr\xc3\xbc\xc3\x9fe", "BAD"},
		{"SEARCH CHARSET UTF-8 SUBJECT {7+}\r\ngr\xc3\xbc\xc3\x9fe", "* SEARCH 1\r\n"},
		{"SEARCH BODY naïve", "BAD"},
		{"SEARCH CHARSET UTF-8 BODY {6+}\r\nna\xc3\xafve", "* SEARCH 1\r\n"},
		{"SEARCH NOT SEEN SINCE 2-Jan-2026", "* SEARCH 2\r\n"},
		{"SEARCH RETURN (MIN COUNT ALL) OR SEEN UNSEEN", "MIN 1 ALL 1:3 COUNT 3"},
		{"SEARCH XYZZY", "BAD"},
		{"STORE 1:2 +FLAGS.SILENT (\\Deleted k)", "!FETCH (", "a OK"},
		{"UID EXPUNGE 2", "* 2 EXPUNGE", "a OK"},
		{"COPY 1 Nope", "[TRYCREATE]"},
		{"COPY 1 Sent", "[COPYUID "},
		{"MOVE 1 A/B", "[COPYUID ", "* 1 EXPUNGE"},
		{"STATUS A/B (MESSAGES UIDNEXT SIZE)", "MESSAGES 1 UIDNEXT 2 SIZE"},
		{"CREATE A/B", "[ALREADYEXISTS]"},
		{"CREATE C/D/", "a OK"},
		{"RENAME C E", "a OK"},
		{"SUBSCRIBE E/D", "a OK"},
		{`LIST (SUBSCRIBED) "" "*" RETURN (CHILDREN)`, `(\HasNoChildren \Subscribed) "/" E/D`, "!INBOX"},
		{`LIST "" %`, `(\HasChildren) "/" A`, "!A/B"},
		{`LIST "" ""`, `* LIST (\Noselect) "/" ""`},
		{`LSUB "" *`, "* LSUB"},
		{"DELETE A", "a OK"},
		{"DELETE INBOX", "a NO"},
		{"APPEND Sent (\\Seen) \"01-Jan-2026 10:00:00 +0000\" {5+}\r\nhello", "[APPENDUID "},
		{"APPEND Sent {5+}\r\nhello (x) {3+}\r\nabc", "BAD"},
		{"APPEND Nope {5+}\r\nhello", "[TRYCREATE]"},
		{"APPEND Sent {100001}", "[TOOBIG]"},
		{"APPEND Sent {100001+}\r\n" + strings.Repeat("DELETE E/D\r\n", 8334)[:100001], "[TOOBIG]"},
		{"STATUS E/D (MESSAGES)", "MESSAGES 0"},
		{"ENABLE CONDSTORE QRESYNC", "* ENABLED CONDSTORE\r\n"},
		{"STORE 1 (UNCHANGEDSINCE 1) +FLAGS (z)", "[MODIFIED 1]"},
		{"FETCH 1 (FLAGS) (CHANGEDSINCE 1)", "MODSEQ ("},
		{"EXAMINE INBOX", "[READ-ONLY]"},
		{"STORE 1 +FLAGS (x)", "a NO"},
		{"CLOSE", "a OK"},
		{"FETCH 1 FLAGS", "BAD"},
		{"NONSENSE", "BAD"},
		{"LOGOUT", "* BYE", "a OK"},
	} {
		c.want(s[0], s[1:]...)
	}
}

// N27, T20: two sessions: IDLE answers + first, then tells what the other did;
// an expunged message can be read until it was told.
func TestN27_TwoSessions(t *testing.T) {
	_, srv := server(t)
	one, two := connect(t, srv), connect(t, srv)
	one.want("SELECT INBOX", "a OK")
	two.want("SELECT INBOX", "a OK")
	two.want("STORE 2 +FLAGS (\\Deleted)", "a OK")
	two.want("EXPUNGE", "* 2 EXPUNGE")
	one.want("FETCH 2 (BODY.PEEK[TEXT])", "second", "!EXPUNGE")
	if _, err := one.c.Write([]byte("i IDLE\r\n")); err != nil {
		t.Fatal(err)
	}
	if l, _ := one.br.ReadString('\n'); !strings.HasPrefix(l, "+") {
		t.Errorf("first line after IDLE: %q", l)
	}
	if l, _ := one.br.ReadString('\n'); !strings.HasPrefix(l, "* 2 EXPUNGE") {
		t.Errorf("not told: %q", l)
	}
	two.want("APPEND INBOX {3+}\r\nabc", "a OK")
	if l, _ := one.br.ReadString('\n'); !strings.HasPrefix(l, "* 3 EXISTS") {
		t.Errorf("not told: %q", l)
	}
	if _, err := one.c.Write([]byte("done\n")); err != nil {
		t.Fatal(err)
	}
	for l := ""; !strings.HasPrefix(l, "i "); {
		var err error
		if l, err = one.br.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
}

// No bytes of a client make a session panic, whatever its state.
func FuzzSession(f *testing.F) {
	for _, s := range []string{"a FETCH 1:* (BODY[] ENVELOPE BODYSTRUCTURE)\r\n", "a SEARCH OR (1 NOT 2) BODY x\r\n",
		"a APPEND INBOX {3+}\r\nabc\r\n", "a IDLE\r\nDONE\r\n",
		"a LIST (SUBSCRIBED) \"\" (a %) RETURN (STATUS (SIZE))\r\n"} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	_, srv := server(f)
	f.Fuzz(func(t *testing.T, in []byte, selected bool) {
		a, b := net.Pipe()
		go func() {
			if selected {
				_, _ = fmt.Fprint(a, "s SELECT INBOX\r\n")
			}
			_, _ = a.Write(in)
			_ = a.Close()
		}()
		go func() {
			buf := make([]byte, 4096)
			for {
				if _, err := a.Read(buf); err != nil {
					return
				}
			}
		}()
		_ = srv.ServeConn(context.Background(), b, imapd.Session{User: "u"})
		_ = b.Close()
	})
}

// No message makes a FETCH panic.
func FuzzMessage(f *testing.F) {
	f.Add([]byte(nested))
	f.Add([]byte("Content-Type: multipart/mixed; boundary=\r\n\r\n--\r\n"))
	f.Add([]byte("From: (((\r\nTo: \"\r\nCc: <,;:>\r\n\r\n"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		imapd.Describe(msg)
	})
}

// What stands where nothing may stand is not passed over: the client meant
// something by it. A message is one whatever its mailbox is called.
func TestAppendArguments(t *testing.T) {
	s, srv := server(t)
	if err := s.Create(context.Background(), "u", "APPEND", nil); err != nil {
		t.Fatal(err)
	}
	c := connect(t, srv)
	for _, s := range [][]string{
		{"APPEND APPEND {80000+}\r\n" + strings.Repeat("x", 80000), "[APPENDUID "},
		{"APPEND {6+}\r\nAPPEND (\\Seen) {80000+}\r\n" + strings.Repeat("x", 80000), "[APPENDUID "},
		{"APPEND {70000+}\r\n" + strings.Repeat("x", 70000) + " {3+}\r\nabc", "a BAD"},
		{"APPEND INBOX {(\\Seen) {3+}\r\nabc", "a BAD syntax error: expected a message"},
		{"APPEND INBOX \"01-Foo-2026 10:00:00 +0100\" {3+}\r\nabc", "a BAD syntax error: bad date"},
		{"APPEND INBOX (\\Seen", "a BAD"},
		{"APPEND INBOX UTF8 (~{3+}\r\nabc)", "a BAD syntax error: expected a message"},
		{"APPEND INBOX CATENATE (TEXT {3+}\r\nabc URL {3+}\r\nabc)", "a BAD syntax error: expected a message"},
		{"STATUS APPEND (MESSAGES)", "(MESSAGES 2)"},
		{"STATUS INBOX (MESSAGES)", "(MESSAGES 3)"},
		{"ENABLE", "a BAD"},
		{"ENABLE X CONDSTORE", "* ENABLED CONDSTORE", "a OK"},
	} {
		c.want(s[0], s[1:]...)
	}
}
