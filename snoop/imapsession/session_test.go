package imapsession

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/snoop/imapwire"
)

// play feeds a transcript: "C " lines are the client's, "S " the server's.
// A server is production, and what it lets settle is settled.
func play(t *testing.T, tr *Session, script string) (cmds []*Exchange) {
	t.Helper()
	for _, l := range strings.Split(strings.TrimSpace(script), "\n") {
		line := []byte(strings.TrimSpace(l[2:]) + "\r\n")
		if l[0] == 'S' {
			if d := tr.Server(line, true); d.Exchange != nil {
				cmds = append(cmds, d.Exchange)
				if d.Opened {
					tr.Open(d.Exchange, 0, true)
				}
				if !d.Done {
					tr.Finish(d.Exchange)
				}
			}
			continue
		}
		sc := imapwire.Scanner{Side: imapwire.Client}
		p, err := sc.Next(line)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tr.Client(p, line, time.Time{}, true); err != nil {
			t.Fatal(err)
		}
	}
	return cmds
}

const selectInbox = `
C a1 SELECT INBOX
S * FLAGS (\Seen)
S * 4 EXISTS
S * OK [UIDVALIDITY 7] ok
S * OK [UIDNEXT 50] ok
S a1 OK [READ-WRITE] done
`

func TestView(t *testing.T) {
	tr := New("u")
	play(t, tr, selectInbox)
	if tr.Box == nil || tr.Box.UIDValidity != 7 || tr.Box.UIDNext != 50 || len(tr.Box.View) != 4 {
		t.Fatalf("%+v", tr.Box)
	}
	shared := []uint32{10, 20, 30, 40}
	tr.Box.seed(shared)
	cmds := play(t, tr, `
C a2 STORE 2:3 +FLAGS (x)
S * 2 FETCH (FLAGS (x))
S * 3 FETCH (FLAGS (x))
S a2 OK done
C a3 EXPUNGE
S * 2 EXPUNGE
S * 2 EXPUNGE
S * 3 EXISTS
S a3 OK done
C a4 COPY 2:3 Other
S a4 OK [COPYUID 9 40 1] done`)
	if !slices.Equal(cmds[0].UIDs, []uint32{20, 30}) || len(cmds[0].Heard.Fetched) != 2 ||
		cmds[0].Heard.Fetched[1].UID != 30 {
		t.Errorf("STORE: %+v", cmds[0])
	}
	if !slices.Equal(cmds[1].Heard.Expunged, []uint32{20, 30}) {
		t.Errorf("EXPUNGE: %+v", cmds[1])
	}
	if !cmds[2].Unknown || !slices.Equal(cmds[2].UIDs, []uint32{40}) || string(cmds[2].Heard.CopyUID) != "9 40 1" {
		t.Errorf("COPY of a message whose UID is not known: %+v", cmds[2])
	}
	if !slices.Equal(shared, []uint32{10, 20, 30, 40}) {
		t.Error("the seeded view was changed")
	}
	if tr.Doubt != "" {
		t.Error(tr.Doubt)
	}
}

// A session that meets what a correct server does not send is in doubt.
func TestDoubt(t *testing.T) {
	for _, script := range []string{
		"S zz OK no such tag",
		"S * 9 EXPUNGE",
		"S * 2 EXISTS",
		"S * 1 FETCH (UID 3)\nS * 1 FETCH (UID 4)",
		"S * VANISHED 1:3",
		"C a9 NOOP\rb9 LOGIN victim x",
		"C a9 APPEND INBOX {3+}\nS a9 BAD no",
		"C a9 APPEND INBOX CATENATE (TEXT {3+}\nS a9 BAD no",
	} {
		tr := New("u")
		play(t, tr, selectInbox)
		play(t, tr, script)
		if tr.Doubt == "" {
			t.Errorf("no doubt after %q", script)
		}
		if tr.User != "u" {
			t.Errorf("user became %q", tr.User)
		}
	}
}

func TestBounds(t *testing.T) {
	tr := New("u")
	sc := imapwire.Scanner{Side: imapwire.Client}
	for i := range MaxOutstanding + 1 {
		line := fmt.Appendf(nil, "t%d NOOP\r\n", i)
		p, _ := sc.Next(line)
		if _, err := tr.Client(p, line, time.Time{}, true); err != nil {
			if i < MaxOutstanding {
				t.Fatal(i, err)
			}
			return
		}
	}
	t.Error("no bound on outstanding commands")
}

func TestSelectFailureDeselects(t *testing.T) {
	tr := New("u")
	play(t, tr, selectInbox+"C a2 SELECT Nope\nS a2 NO none\nC a3 STORE 1 +FLAGS (x)")
	if tr.Box != nil || !tr.Outstanding()[0].Unknown {
		t.Errorf("%+v", tr.Box)
	}
}
