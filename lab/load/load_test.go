package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/replica/imapc"
)

// The judge, for each thing that a client was told and each way a store can be.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name  string
		e     Entry
		found Found
		want  string // lost, doubled, undone, repeated, or nothing
	}{
		{"confirmed and there", Entry{Stored: Yes, Deleted: No, Flagged: No}, Found{Count: 1}, ""},
		{"confirmed and gone", Entry{Stored: Yes, Deleted: No, Flagged: No}, Found{}, "lost"},
		{"sent again and gone", Entry{Stored: Yes, Deleted: No, Flagged: No, Again: true}, Found{}, "lost"},
		{"unanswered and there", Entry{Deleted: No, Flagged: No}, Found{Count: 1}, ""},
		{"unanswered and gone", Entry{Deleted: No, Flagged: No}, Found{}, ""},
		{"refused and gone", Entry{Stored: No, Deleted: No, Flagged: No}, Found{}, ""},
		{"twice", Entry{Stored: Yes, Deleted: No, Flagged: No}, Found{Count: 2}, "doubled"},
		{"unanswered and twice", Entry{Deleted: No, Flagged: No}, Found{Count: 2}, "doubled"},
		{"sent again and twice", Entry{Stored: Yes, Deleted: No, Flagged: No, Again: true}, Found{Count: 2},
			"repeated"},
		{"sent again and thrice", Entry{Stored: Yes, Deleted: No, Flagged: No, Again: true}, Found{Count: 3},
			"doubled"},
		{"deleted and gone", Entry{Stored: Yes, Deleted: Yes, Flagged: No}, Found{}, ""},
		{"deleted and there", Entry{Stored: Yes, Deleted: Yes, Flagged: No}, Found{Count: 1}, "undone"},
		{"perhaps deleted and gone", Entry{Stored: Yes, Flagged: No}, Found{}, ""},
		{"perhaps deleted and there", Entry{Stored: Yes, Flagged: No}, Found{Count: 1}, ""},
		{"flagged", Entry{Stored: Yes, Deleted: No, Flagged: Yes}, Found{Count: 1, Flagged: true}, ""},
		{"flag lost", Entry{Stored: Yes, Deleted: No, Flagged: Yes}, Found{Count: 1}, "undone"},
		{"perhaps flagged", Entry{Stored: Yes, Deleted: No}, Found{Count: 1}, ""},
	} {
		l := &Ledger{}
		c.e.ID, c.e.Account = "id", "u"
		l.add(&c.e)
		v := l.Judge(map[string]map[string]Found{"u": {"id": c.found}, "other": {"id": {Count: 1}}})
		var got []string
		for what, list := range map[string][]string{"lost": v.Lost, "doubled": v.Doubled, "undone": v.Undone,
			"repeated": v.Repeated} {
			if len(list) > 0 {
				got = append(got, what)
			}
		}
		if strings.Join(got, ",") != c.want {
			t.Errorf("%s: %v, want %q", c.name, got, c.want)
		}
		if v.OK() != (c.want == "" || c.want == "repeated") {
			t.Errorf("%s: %v", c.name, v)
		}
		if (v.Confirmed == 1) != (c.e.Stored == Yes) || (v.Unanswered == 1) != (c.e.Stored == Unknown) {
			t.Errorf("%s: %d confirmed, %d unanswered", c.name, v.Confirmed, v.Unanswered)
		}
	}
}

// The longest wait is that of the worst client; TakeGaps begins anew.
func TestGaps(t *testing.T) {
	l, a, b := &Ledger{}, &client{}, &client{}
	l.noteGap(a, 3*time.Second)
	l.noteGap(a, time.Second)
	l.noteGap(b, 2*time.Second)
	got := l.TakeGaps()
	slices.Sort(got)
	if want := []time.Duration{2 * time.Second, 3 * time.Second}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if again := l.TakeGaps(); len(again) != 0 || l.LongestGap() != 3*time.Second {
		t.Errorf("%v, longest %v", again, l.LongestGap())
	}
	for i := range 20 {
		l.broke("u", fmt.Errorf("break %d", i))
	}
	if list := l.Breaks(); l.Broken.Load() != 20 || len(list) != 10 || !strings.HasSuffix(list[0], "u: break 0") {
		t.Errorf("%d breaks, told of %v", l.Broken.Load(), list)
	}
}

func TestRefused(t *testing.T) {
	for err, want := range map[error]Known{&imapc.NoError{Name: "NO"}: No, io.EOF: Unknown,
		fmt.Errorf("x: %w", &imapc.NoError{}): No} {
		k := Unknown
		if got := refused(err, &k); k != want || !errors.Is(got, err) {
			t.Errorf("%v: %v %v", err, k, got)
		}
	}
}

// A message can be told by its Message-ID.
func TestMessage(t *testing.T) {
	m := string(Message(rand.New(rand.NewPCG(1, 1)), "a.1", "u@example.test"))
	head, body, ok := strings.Cut(m, "\r\n\r\n")
	if !ok || body == "" || strings.Contains(strings.ReplaceAll(m, "\r\n", ""), "\n") {
		t.Errorf("%q", m)
	}
	i := strings.Index(head, "Message-ID: ")
	if i < 0 || idOf([]byte(head[i:])) != "a.1" {
		t.Errorf("%q", head)
	}
	for _, none := range []string{"", "Message-ID: \r\n", "Message-ID: <no end"} {
		if id := idOf([]byte(none)); id != "" {
			t.Errorf("%q has %q", none, id)
		}
	}
}

// A sender that was not answered sends the same message again, and says so; one that
// was refused before it gave the message away does not.
func TestSendsAgain(t *testing.T) {
	for _, c := range []struct {
		cut   string // after which the server is gone, once
		again bool
	}{{"RCPT", false}, {".", true}} {
		l, sessions := &Ledger{}, 0
		var texts []string
		o := Options{Users: []string{"u@example.test"}, Tag: "t"}
		m := &client{o: o, l: l, user: o.Users[0], rng: rand.New(rand.NewPCG(1, 2)), last: time.Now()}
		for m.unsent == nil && sessions == 0 || m.unsent != nil && sessions < 3 {
			sessions++
			near, far := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				texts = append(texts, receive(far, c.cut, sessions == 1))
			}()
			m.o.Dial = dialOnce(near)
			if err := m.smtp(t.Context()); err == nil {
				t.Error("a session that broke was none")
			}
			<-done
		}
		if len(l.entries) == 0 || l.entries[0].Stored != Yes || l.entries[0].Again != c.again {
			t.Errorf("cut after %s: %+v", c.cut, l.entries)
		}
		if c.again && (len(texts) < 2 || texts[0] != texts[1] || texts[0] == "") {
			t.Errorf("cut after %s: sent %q", c.cut, texts)
		}
	}
}

// receive is a server that takes one message; it goes away after the first one, or
// after the line that begins with cut.
func receive(conn net.Conn, cut string, cuts bool) (text string) {
	defer func() { _ = conn.Close() }()
	br := bufio.NewReader(conn)
	_, _ = io.WriteString(conn, "220 hello\r\n")
	for data := false; ; {
		line, err := br.ReadString('\n')
		if err != nil || cuts && strings.HasPrefix(line, cut) && (!data || line == ".\r\n") {
			return text
		}
		switch {
		case data && line != ".\r\n":
			text += line
			continue
		case data:
			_, _ = io.WriteString(conn, "250 taken\r\n")
			return text
		case strings.HasPrefix(line, "DATA"):
			data = true
			_, _ = io.WriteString(conn, "354 go\r\n")
		default:
			_, _ = io.WriteString(conn, "250 ok\r\n")
		}
	}
}

func dialOnce(conn net.Conn) func(context.Context, string) (net.Conn, error) {
	return func(context.Context, string) (net.Conn, error) { return conn, nil }
}
