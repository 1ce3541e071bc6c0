package imapsession

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// R7: numbers of a client whose view differs from the server's.
func TestNumbers(t *testing.T) {
	// 3 is gone (a ghost), 4 was told to be gone (hidden), 8 and 9 are new.
	n, fresh := NewNumbers([]uint32{1, 3, 5, 7}, []uint32{1, 4, 5, 7, 8, 9})
	if !slices.Equal(fresh, []uint32{8, 9}) || n.Same() {
		t.Fatal(fresh, n)
	}
	for client, want := range map[uint32]uint32{1: 1, 2: 0, 3: 3, 4: 4, 5: 5, 6: 6, 7: 0} {
		if got, ok := n.Server(client); ok != (want != 0) || ok && got != want {
			t.Errorf("client's %d is the server's %d (%v), want %d", client, got, ok, want)
		}
		if want != 0 {
			if back, ok := n.Client(want); !ok || back != client {
				t.Errorf("server's %d is the client's %d (%v), want %d", want, back, ok, client)
			}
		}
	}
	if _, ok := n.Client(2); ok {
		t.Error("a hidden message has a number")
	}
	set, _ := imapwire.ParseSet("2:*")
	if got, ok := n.Set(set); !ok || got != "3:6" {
		t.Errorf("2:* became %q", got)
	}
	if got := n.Exists(7); got != 7 {
		t.Errorf("7 for the server are %d for the client", got)
	}
	if got, ok := n.Expunge(3); !ok || got != 3 {
		t.Errorf("EXPUNGE 3 became %d", got)
	}
	if _, ok := n.Expunge(2); ok {
		t.Error("the client is told twice that a message is gone")
	}
	if got := n.Ghosts(); !slices.Equal(got, []uint32{2}) || !n.Same() {
		t.Errorf("ghosts %v, then %+v", got, n)
	}
}

func TestFill(t *testing.T) {
	for _, c := range []struct {
		view, server, want []uint32
		blind, fail        bool
	}{
		{view: []uint32{1, 0, 0}, server: []uint32{1, 4, 6}, want: []uint32{1, 4, 6}},
		{view: []uint32{1, 0, 0}, server: []uint32{1, 4, 6, 9}, want: []uint32{1, 4, 6}},
		{view: []uint32{1, 0, 0}, server: []uint32{1, 4}, want: []uint32{1, 4, 0}},
		{view: []uint32{1, 0, 7, 0}, server: []uint32{1, 4, 7, 8}, want: []uint32{1, 4, 7, 8}, blind: true},
		{view: []uint32{1, 0, 0}, server: []uint32{1, 4}, blind: true, fail: true},
	} {
		b := &Box{View: slices.Clone(c.view), blind: c.blind}
		_, err := b.Fill(c.server)
		if c.fail != errors.Is(err, ErrNotAdoptable) || !c.fail && !slices.Equal(b.View, c.want) {
			t.Errorf("%v with %v: %v, %v", c.view, c.server, b.View, err)
		}
	}
}

// What is sent again of commands without an answer.
func TestAgain(t *testing.T) {
	for _, c := range []struct{ script, want string }{
		{"C b FETCH 1:4 (FLAGS)", "b FETCH 1:4 (FLAGS)\r\n"},
		{"C b FETCH 1:4 (FLAGS)\nS * 1 FETCH (FLAGS ())\nS * 2 FETCH (FLAGS ())", "b FETCH 3:4 (FLAGS)\r\n"},
		{"C b UID FETCH 1:* BODY[]\nS * 1 FETCH (UID 10 FLAGS ())\nS * 3 FETCH (UID 30 FLAGS ())",
			"b UID FETCH 20,40 BODY[]\r\n"},
		{"C b FETCH 1 (FLAGS)\nS * 1 FETCH (FLAGS ())", "OK Fetch completed"},
		{"C b STORE 2:3 +FLAGS (x)", "b UID STORE 20,30 +FLAGS (x)\r\n"},
		{"C b MOVE 1 Filed\nS * OK [COPYUID 1 10 5] moved\nS * 1 EXPUNGE", "b UID MOVE 10 Filed\r\n"},
		{"C b SEARCH ALL\nS * SEARCH 1 2 3 4", "OK Search completed"},
		{"C b NOOP", "b NOOP\r\n"},
	} {
		tr := New("u")
		play(t, tr, selectInbox)
		tr.Box.seed([]uint32{10, 20, 30, 40})
		play(t, tr, c.script)
		if err := tr.Adoptable(); err != nil {
			t.Errorf("%s: %v", c.script, err)
		}
		a, err := tr.Again(tr.Outstanding()[0], true)
		if err != nil {
			t.Error(err)
		}
		if got := a.Answer + string(a.Before); got != c.want {
			t.Errorf("%s: %q, want %q", c.script, got, c.want)
		}
	}
}

// A command over which one upstream after the other is lost is not tried for ever.
func TestPoison(t *testing.T) {
	tr := New("u")
	play(t, tr, selectInbox+"C b FETCH 1 BODY[]")
	for range maxLost - 1 {
		tr.Lost()
		if err := tr.Adoptable(); err != nil {
			t.Fatal(err)
		}
	}
	if tr.Lost(); tr.Adoptable() == nil {
		t.Error("tried once more")
	}
}

// A literal that the client was asked for is announced as one that needs no
// asking; the message of an APPEND goes between.
func TestAgainLiterals(t *testing.T) {
	tr := New("u")
	sc := imapwire.Scanner{Side: imapwire.Client}
	feed := func(text string) {
		b := []byte(text)
		for len(b) > 0 {
			p, err := sc.Next(b)
			if err != nil || p.Kind == imapwire.More {
				t.Fatal(err, p)
			}
			if _, err := tr.Client(p, b[:p.N], time.Time{}, true); err != nil {
				t.Fatal(err)
			}
			b = b[p.N:]
		}
	}
	again := func(i int) Again {
		a, err := tr.Again(tr.Outstanding()[i], true)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for _, text := range []string{"a APPEND {5}\r\n", "Filed (\\Seen) {10}\r\n"} {
		feed(text)
		if d := tr.Server([]byte("+ OK\r\n"), true); d.Wake != Proceed {
			t.Fatal("the client is not told to go on")
		}
	}
	feed("0123")
	if a := again(0); string(a.Before) != "a APPEND {5+}\r\nFiled (\\Seen) {10+}\r\n" || !a.Message ||
		len(a.After) > 0 {
		t.Errorf("in the middle of the message: %+v", a)
	}
	feed("456789\r\n")
	if a := again(0); string(a.After) != "\r\n" || !strings.HasSuffix(string(a.Before), "{10+}\r\n") {
		t.Errorf("whole: %+v", a)
	}
	feed("b LIST \"\" {3}\r\n")
	if a := again(1); string(a.Before) != "b LIST \"\" {3}\r\n" {
		t.Errorf("not yet asked for: %q", a.Before)
	}
}

// No two views make a translation that panics, and what has a number on both
// sides comes back.
func FuzzNumbers(f *testing.F) {
	f.Add([]byte{1, 2, 3}, []byte{1, 3, 4}, byte(2))
	f.Fuzz(func(t *testing.T, a, b []byte, op byte) {
		view := func(steps []byte) (out []uint32) {
			u := uint32(0)
			for _, s := range steps {
				u += uint32(s%7) + 1
				out = append(out, u)
			}
			return out
		}
		n, _ := NewNumbers(view(a), view(b))
		n.Expunge(uint32(op))
		n.Exists(uint32(len(b)) + uint32(op%3))
		for i := uint32(0); i < 300; i++ {
			if s, ok := n.Server(i); ok && i > 0 {
				if c, ok := n.Client(s); !ok || c != i {
					t.Fatalf("%d became %d became %d", i, s, c)
				}
			}
		}
		n.Ghosts()
	})
}

// What a client was not told of one move it is told after the next.
func TestMovedTwiceUntold(t *testing.T) {
	tr := New("u")
	play(t, tr, selectInbox)
	tr.Box.seed([]uint32{10, 20, 30, 40})
	move := func(uids []uint32, flags ...row.FlagsOf) {
		t.Helper()
		tr.Lost()
		if r := tr.Resume(); !r.Open {
			t.Fatalf("%+v", r)
		}
		if _, err := tr.Reopened(BoxState{7, 51, len(uids)}, uids, 0); err != nil {
			t.Fatal(err)
		}
		if flags != nil {
			tr.Changed(flags)
		}
	}
	move([]uint32{10, 20, 30, 40, 50}, row.FlagsOf{UID: 10, Flags: []string{`\Seen`}}, row.FlagsOf{UID: 20})
	move([]uint32{10, 20, 40, 50}, row.FlagsOf{UID: 20, Flags: []string{"x"}})
	line := []byte("a2 NOOP\r\n")
	p := imapwire.Piece{Kind: imapwire.Line, N: len(line), First: true, Last: true}
	if _, err := tr.Client(p, line, time.Time{}, true); err != nil {
		t.Fatal(err)
	}
	want := "* 5 EXISTS\r\n* 3 EXPUNGE\r\n* 1 FETCH (UID 10 FLAGS (\\Seen))\r\n* 2 FETCH (UID 20 FLAGS (x))\r\n"
	d := tr.Server([]byte("a2 OK done\r\n"), true)
	got := string(d.Tell)
	if !d.Done {
		tell, _ := tr.Finish(d.Exchange)
		got += string(tell)
	}
	if got != want {
		t.Errorf("told %q, not %q", got, want)
	}
}
