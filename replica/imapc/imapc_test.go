package imapc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/snoop/imapwire"
)

// play is a server that says and expects what a script has: lines to the client begin
// with "S: ", bytes from it with "C: "; what follows is sent, or has to come, as it is.
func play(conn net.Conn, script ...string) <-chan error {
	done := make(chan error, 1)
	go func() {
		defer func() { _ = conn.Close() }()
		br := bufio.NewReaderSize(conn, 64<<10)
		for _, step := range script {
			text := step[3:]
			if step[0] == 'S' {
				if _, err := io.WriteString(conn, text); err != nil {
					done <- fmt.Errorf("say %q: %w", text, err)
					return
				}
				continue
			}
			b := make([]byte, len(text))
			if n, err := io.ReadFull(br, b); err != nil || string(b) != text {
				done <- fmt.Errorf("got %q, want %q: %v", b[:n], text, err)
				return
			}
		}
		done <- nil
	}()
	return done
}

// with runs f as the client of a script, whose greeting tells capabilities.
func with(t *testing.T, caps string, script []string, f func(c *Conn)) {
	t.Helper()
	near, far := net.Pipe()
	done := play(far, append([]string{"S: * OK [CAPABILITY IMAP4rev1 " + caps + "] ready\r\n"}, script...)...)
	c, err := New(t.Context(), near, Options{Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f(c)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestGreeting(t *testing.T) {
	for text, want := range map[string]string{"* OK hello\r\n": "", "* PREAUTH you are in\r\n": "",
		"* BYE too many\r\n": "greeting: BYE too many", "hello\r\n": "greeting", "": "greeting: EOF",
		"* OK no end of line": "greeting: EOF"} {
		near, far := net.Pipe()
		play(far, "S: "+text)
		c, err := New(t.Context(), near, Options{})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
		if err == nil {
			c.Close()
		}
	}
}

// An end of ctx ends the wait for a greeting that never comes.
func TestGreetingEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	near, _ := net.Pipe()
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := New(ctx, near, Options{}); err == nil {
		t.Error("greeted")
	}
}

func TestLogin(t *testing.T) {
	plain := "AHUAcA=="  // as u itself
	master := "dQBtAHA=" // as u, by m
	caps := "S: * CAPABILITY IMAP4rev1 MOVE\r\nu2 OK\r\n"
	for _, c := range []struct {
		name, caps, auth string
		script           []string
		is               error
		fails            bool
	}{
		{"in one line", "AUTH=PLAIN SASL-IR", "", []string{"C: u1 AUTHENTICATE PLAIN " + plain + "\r\n",
			"S: u1 OK [CAPABILITY IMAP4rev1 MOVE] in\r\n"}, nil, false},
		{"by a master", "AUTH=PLAIN SASL-IR", "m", []string{"C: u1 AUTHENTICATE PLAIN " + master + "\r\n",
			"S: u1 OK in\r\n", "C: u2 CAPABILITY\r\n", caps}, nil, false},
		{"in two steps", "AUTH=PLAIN", "", []string{"C: u1 AUTHENTICATE PLAIN\r\n", "S: + \r\n",
			"C: " + plain + "\r\n", "S: u1 OK in\r\n", "C: u2 CAPABILITY\r\n", caps}, nil, false},
		{"by LOGIN", "LITERAL+", "", []string{"C: u1 LOGIN \"u\" \"p\"\r\n", "S: u1 OK in\r\n",
			"C: u2 CAPABILITY\r\n", caps}, nil, false},
		{"refused", "AUTH=PLAIN SASL-IR", "", []string{"C: u1 AUTHENTICATE PLAIN " + plain + "\r\n",
			"S: u1 NO [AUTHENTICATIONFAILED] no\r\n"}, ErrAuth, true},
		{"not now", "AUTH=PLAIN SASL-IR", "", []string{"C: u1 AUTHENTICATE PLAIN " + plain + "\r\n",
			"S: u1 NO [UNAVAILABLE] later\r\n"}, nil, true},
	} {
		with(t, c.caps, c.script, func(conn *Conn) {
			err := conn.Login("u", c.auth, "p")
			if (err != nil) != c.fails || errors.Is(err, ErrAuth) != (c.is != nil) {
				t.Errorf("%s: %v", c.name, err)
			}
			if err == nil && !conn.Has("MOVE") {
				t.Errorf("%s: capabilities are %v", c.name, conn.Caps())
			}
		})
	}
}

// Bodies are literals, quoted, or NIL; what a body says is no answer; what is not known
// is skipped.
func TestFetchForms(t *testing.T) {
	body := "a\r\nu1 OK done\r\n* BYE {3}\r\n"
	with(t, "", []string{"C: u1 UID FETCH 1:* (UID BODY[])\r\n",
		fmt.Sprintf("S: * 1 FETCH (UID 7 FLAGS (\\Seen $a) MODSEQ (9) RFC822.SIZE 31 INTERNALDATE "+
			"\"17-Jul-1996 02:44:25 -0700\" BODY[] {%d}\r\n%s)\r\n", len(body), body),
		"S: * 2 FETCH (BODY[] NIL UID 8)\r\n* 3 EXISTS\r\n",
		"S: * 3 FETCH (X-THING (\"a)\" {2}\r\n)( NIL) BODY[HEADER.FIELDS (\"x]y\")] \"q\" UID 9)\r\n",
		"S: * 4 FETCH (BODY[]<0> {0}\r\n UID 10)\r\n* 5 FETCH (FLAGS ())\r\n", "S: u1 OK done\r\n"},
		func(c *Conn) {
			var got []Message
			if err := c.Fetch("1:*", "(UID BODY[])", func(m Message) error {
				m.Body = slices.Clone(m.Body)
				got = append(got, m)
				return nil
			}); err != nil || len(got) != 4 {
				t.Fatalf("%v: %+v", err, got)
			}
			date := time.Date(1996, 7, 17, 9, 44, 25, 0, time.UTC)
			if m := got[0]; m.UID != 7 || string(m.Body) != body || m.ModSeq != 9 || m.Size != 31 ||
				!slices.Equal(m.Flags, []string{`\Seen`, "$a"}) || !m.Date.Equal(date) {
				t.Errorf("literal: %+v", m)
			}
			if m := got[1]; m.UID != 8 || len(m.Body) != 0 || !m.HasBody || m.HasFlags {
				t.Errorf("NIL: %+v", m)
			}
			if m := got[2]; m.UID != 9 || string(m.Body) != "q" {
				t.Errorf("quoted: %+v", m)
			}
			if m := got[3]; m.UID != 10 || len(m.Body) != 0 || !m.HasBody {
				t.Errorf("empty literal: %+v", m)
			}
		})
}

func TestListForms(t *testing.T) {
	with(t, "", []string{"C: u1 LIST \"\" \"*\"\r\n",
		"S: * LIST (\\Noselect) NIL \"top\"\r\n* LIST () \"/\" {3}\r\na b\r\n* LIST () \".\" inbox\r\n",
		"S: u1 OK\r\n", "C: u2 LSUB \"\" \"*\"\r\n", "S: * LSUB () \"/\" \"a b\"\r\n* LSUB () \"/\" gone\r\nu2 OK\r\n",
		"C: u3 STATUS \"a b\" (MESSAGES UIDNEXT UIDVALIDITY)\r\n",
		"S: * STATUS \"a b\" (MESSAGES 3 UIDNEXT 9 X 4 UIDVALIDITY 8)\r\nu3 OK\r\n",
		"C: u4 STATUS INBOX (MESSAGES UIDNEXT UIDVALIDITY)\r\n", "S: u4 OK\r\n"},
		func(c *Conn) {
			got, err := c.List()
			if err != nil || len(got) != 3 {
				t.Fatalf("%v: %+v", err, got)
			}
			if l := got[0]; l.Name != "top" || l.Sep != 0 || !l.NoSelect() || l.Subscribed {
				t.Errorf("NIL separator: %+v", l)
			}
			want := &Selected{Exists: 3, UIDNext: 9, UIDValidity: 8}
			if l := got[1]; l.Name != "a b" || l.Sep != '/' || !l.Subscribed || !reflect.DeepEqual(l.Status, want) {
				t.Errorf("literal name: %+v %+v", l, l.Status)
			}
			if l := got[2]; l.Name != "INBOX" || l.Sep != '.' || l.Status != nil {
				t.Errorf("INBOX without a STATUS: %+v", l)
			}
		})
}

// Several commands are on their way at once; each answer has its own untagged data.
func TestPipelining(t *testing.T) {
	with(t, "", []string{"C: u1 NOOP\r\nu2 UID FETCH 1 (UID)\r\nu3 BAD\r\n",
		"S: * 1 EXISTS\r\nu1 OK [COPYUID 7 1:2 5,9] first\r\n* 1 FETCH (UID 1)\r\nu2 OK second\r\n",
		"S: * 2 EXISTS\r\nu3 BAD [CLIENTBUG] third\r\n"},
		func(c *Conn) {
			tags := []string{c.Send("NOOP"), c.Send("UID FETCH 1 (UID)"), c.Send("BAD")}
			var heard []string
			on := func(r imapwire.Response, _ []byte) error {
				heard = append(heard, fmt.Sprint(r.Num, r.Name))
				return nil
			}
			first, err := c.Wait(tags[0], on)
			if err != nil {
				t.Fatal(err)
			}
			uids := 0
			if err := c.FetchWait(tags[1], func(m Message) error { uids += int(m.UID); return nil }); err != nil {
				t.Fatal(err)
			}
			var no *NoError
			if _, err := c.Wait(tags[2], on); !errors.As(err, &no) || no.Name != "BAD" || no.Code != "CLIENTBUG" {
				t.Errorf("third: %v", err)
			}
			if want := []string{"1EXISTS", "2EXISTS"}; !slices.Equal(heard, want) || uids != 1 {
				t.Errorf("heard %v, want %v; UIDs %d", heard, want, uids)
			}
			// What an answer told stays, though its buffer was read into again.
			if first.Code != "COPYUID" || string(first.Arg) != "7 1:2 5,9" || string(first.Rest) != "first" {
				t.Errorf("first: %+v", first)
			}
		})
}

// A BYE is an error, even before an OK, and so is an end without one; an error of the
// reader leaves the connection in step.
func TestBye(t *testing.T) {
	with(t, "", []string{"C: u1 NOOP\r\n", "S: * BYE going down\r\nu1 OK\r\n"}, func(c *Conn) {
		if _, err := c.Do("NOOP", nil); err == nil || !strings.Contains(err.Error(), "BYE going down") {
			t.Error(err)
		}
	})
	with(t, "", []string{"C: u1 NOOP\r\n", "S: * BYE going down\r\n"}, func(c *Conn) {
		var no *NoError
		if _, err := c.Do("NOOP", nil); err == nil || errors.As(err, &no) {
			t.Error(err)
		}
	})
	with(t, "", []string{"C: u1 NOOP\r\n", "S: * 1 EXISTS\r\n* 2 EXISTS\r\nu1 OK\r\n",
		"C: u2 NOOP\r\n", "S: u2 OK\r\n"},
		func(c *Conn) {
			mine, calls := errors.New("mine"), 0
			if _, err := c.Do("NOOP", func(imapwire.Response, []byte) error { calls++; return mine }); err != mine ||
				calls != 1 {
				t.Errorf("%v after %d calls", err, calls)
			}
			if _, err := c.Do("NOOP", nil); err != nil {
				t.Error(err)
			}
		})
}

func TestAppendUID(t *testing.T) {
	date := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	a := Appending{Mailbox: "a b", Flags: []string{`\Seen`}, Date: date, Body: []byte("x\r\n")}
	line := `APPEND "a b" (\Seen) "` + date.Format(imapwire.DateTime) + `" `
	for _, c := range []struct {
		name, caps    string
		script        []string
		validity, uid uint32
		no            string
	}{
		{"waits to be asked", "", []string{"C: u1 " + line + "{3}\r\n", "S: + go\r\n", "C: x\r\n\r\n",
			"S: * 1 EXISTS\r\nu1 OK [APPENDUID 7 12] done\r\n"}, 7, 12, ""},
		{"refused before", "", []string{"C: u1 " + line + "{3}\r\n", "S: u1 NO [TRYCREATE] none\r\n"}, 0, 0,
			"TRYCREATE"},
		{"at once", "LITERAL+", []string{"C: u1 " + line + "{3+}\r\nx\r\n\r\n",
			"S: u1 OK [APPENDUID 7 12] done\r\n"}, 7, 12, ""},
		{"not told", "LITERAL+", []string{"C: u1 " + line + "{3+}\r\nx\r\n\r\n", "S: u1 OK done\r\n"}, 0, 0, ""},
		{"told badly", "LITERAL+", []string{"C: u1 " + line + "{3+}\r\nx\r\n\r\n",
			"S: u1 OK [APPENDUID 7 x] done\r\n"}, 0, 0, ""},
		{"refused after", "LITERAL+", []string{"C: u1 " + line + "{3+}\r\nx\r\n\r\n",
			"S: u1 NO [OVERQUOTA] full\r\n"}, 0, 0, "OVERQUOTA"},
	} {
		with(t, c.caps, c.script, func(conn *Conn) {
			validity, uid, err := conn.Append(a)
			var no *NoError
			if (err != nil) != (c.no != "") || err != nil && (!errors.As(err, &no) || no.Code != c.no) {
				t.Errorf("%s: %v", c.name, err)
			}
			if validity != c.validity || uid != c.uid {
				t.Errorf("%s: %d %d", c.name, validity, uid)
			}
		})
	}
	with(t, "LITERAL+ MULTIAPPEND", []string{"C: u1 APPEND \"b\" {1+}\r\nx (\\Flagged) {2+}\r\nyz\r\n",
		"S: u1 OK [APPENDUID 7 3:4] done\r\n"}, func(c *Conn) {
		tag, err := c.SendAppend(Appending{Mailbox: "b", Body: []byte("x")},
			Appending{Mailbox: "b", Flags: []string{`\Flagged`}, Body: []byte("yz")})
		if err != nil || !c.AppendsMany() {
			t.Fatal(err)
		}
		r, err := c.Wait(tag, nil)
		if validity, uids := AppendUIDs(r); err != nil || validity != 7 || !slices.Equal(uids, []uint32{3, 4}) {
			t.Errorf("%v: %d %v", err, validity, uids)
		}
	})
}

// What a server sends is bounded, in lines and in literals.
func TestMaxUnit(t *testing.T) {
	for _, text := range []string{"* 1 FETCH (BODY[] {100000}\r\n", "* OK " + strings.Repeat("x", 200_000) + "\r\n",
		"* 1 FETCH (BODY[] {9999999999}\r\n"} {
		near, far := net.Pipe()
		play(far, "S: * OK\r\n", "C: u1 NOOP\r\n", "S: "+text)
		c, err := New(t.Context(), near, Options{MaxUnit: 90_000, Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Do("NOOP", nil); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%.30q: %v", text, err)
		}
		c.Close()
	}
}

func TestSearchAll(t *testing.T) {
	for _, c := range []struct{ caps, cmd, answer string }{
		{"", "UID SEARCH ALL", "* SEARCH 2 3 4 9\r\n"},
		{"ESEARCH", "UID SEARCH RETURN (ALL) ALL", "* ESEARCH (TAG \"u1\") UID ALL 2:4,9\r\n"},
	} {
		with(t, c.caps, []string{"C: u1 " + c.cmd + "\r\n", "S: " + c.answer + "u1 OK\r\n"}, func(conn *Conn) {
			if got, err := conn.SearchAll(); err != nil || !slices.Equal(got, []uint32{2, 3, 4, 9}) {
				t.Errorf("%s: %v %v", c.cmd, got, err)
			}
		})
	}
	with(t, "ESEARCH", []string{"C: u1 UID SEARCH RETURN (ALL) ALL\r\n", "S: * ESEARCH (TAG \"u1\") UID\r\nu1 OK\r\n"},
		func(conn *Conn) {
			if got, err := conn.SearchAll(); err != nil || got != nil {
				t.Errorf("nothing found: %v %v", got, err)
			}
		})
}

// A mailbox is left without being expunged, whatever the server can do.
func TestLeave(t *testing.T) {
	opened := "S: * 3 EXISTS\r\n* OK [UIDVALIDITY 7] x\r\n* OK [UIDNEXT 9] x\r\n* OK [HIGHESTMODSEQ 5] x\r\n" +
		"* OK [PERMANENTFLAGS (\\Seen \\*)] x\r\nu1 OK [READ-WRITE] done\r\n"
	want := Selected{UIDValidity: 7, UIDNext: 9, Exists: 3, ModSeq: 5, Permanent: []string{`\Seen`, `\*`}}
	for caps, left := range map[string][]string{
		"UNSELECT": {"C: u1 SELECT INBOX\r\n", opened, "C: u2 UNSELECT\r\n", "S: u2 OK\r\n"},
		"CONDSTORE": {"C: u1 SELECT INBOX (CONDSTORE)\r\n", opened,
			"C: u2 EXAMINE \"understudy-no-such-mailbox\"\r\n", "S: u2 NO none\r\n"},
	} {
		with(t, caps, left, func(c *Conn) {
			if got, err := c.Select("INBOX", false); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%+v %v", got, err)
			}
			for range 2 {
				if err := c.Leave(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// IDLE hands out what it hears, and ends with its context by a DONE.
func TestIdle(t *testing.T) {
	with(t, "IDLE", []string{"C: u1 IDLE\r\n", "S: + idling\r\n* OK still here\r\n* 4 EXISTS\r\n", "C: DONE\r\n",
		"S: u1 OK\r\n"}, func(c *Conn) {
		ctx, cancel := context.WithCancel(t.Context())
		var heard []string
		err := c.Idle(ctx, func(r imapwire.Response) {
			heard = append(heard, r.Name)
			cancel()
		})
		if !errors.Is(err, context.Canceled) || !slices.Equal(heard, []string{"EXISTS"}) {
			t.Errorf("%v: %v", heard, err)
		}
	})
}
