package imapsession

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
)

// spool counts what is done with it.
type spool struct {
	bytes.Buffer
	discarded int
}

func (s *spool) Start()                   {}
func (s *spool) Commit() (row.Ref, error) { return row.RefOf(s.Buffer.Bytes()), nil }
func (s *spool) Bytes() ([]byte, error)   { return s.Buffer.Bytes(), nil }
func (s *spool) Discard()                 { s.discarded++ }

// sayer feeds a session what a client says, as the proxy does.
type sayer struct {
	s        *Session
	sc       imapwire.Scanner
	spools   []*spool
	released map[*spool]bool
	sent     []byte
}

func newSayer() *sayer {
	return &sayer{s: New("u"), sc: imapwire.Scanner{Side: imapwire.Client}, released: map[*spool]bool{}}
}

func (c *sayer) release(k Kept) {
	if sp, ok := k.Spool.(*spool); ok {
		sp.Discard()
	}
}

// say says text, as far as the session lets it, and returns what is left.
func (c *sayer) say(text string, production bool) (last Taken, rest string, err error) {
	for text != "" {
		p, err := c.sc.Next([]byte(text))
		if err != nil || p.Kind == imapwire.More {
			return last, text, err
		}
		b := []byte(text[:p.N])
		text = text[p.N:]
		if last, err = c.s.Client(p, b, time.Time{}, production); err != nil {
			return last, text, err
		}
		c.release(last.Release)
		if last.Needs.Spool {
			sp := &spool{}
			c.spools = append(c.spools, sp)
			c.release(last.Exchange.Attach(Kept{Spool: sp}))
		}
		if last.Write {
			_, _ = last.Exchange.Kept.Spool.Write(b)
		}
		if !last.Drop {
			c.sent = append(c.sent, b...)
		}
		if last.Wait {
			return last, text, nil
		}
	}
	return last, "", nil
}

// hear feeds a server's line, and settles what is to be settled.
func (c *sayer) hear(line string, production bool) Decision {
	d := c.s.Server([]byte(line+"\r\n"), production)
	if d.Wake == Refuse {
		c.sc.Cancel()
	}
	if d.Exchange != nil && !d.Done && d.End == nil {
		_, k := c.s.Finish(d.Exchange)
		c.release(k)
	}
	c.release(d.Release)
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The rest of a literal that was refused in its middle is for the server that
// refused it, and for no other: it would take a message for commands.
func TestRestOfRefused(t *testing.T) {
	c := newSayer()
	_, _, err := c.say("a APPEND b {10+}\r\nabc", true)
	must(t, err)
	if d := c.hear("a NO over quota", true); !d.Done || d.Exchange.State() != Refused {
		t.Fatalf("%+v", d)
	}
	t1, _, err := c.say("def", true)
	must(t, err)
	if t1.Drop || c.spools[0].discarded != 1 || c.spools[0].String() != "abc" {
		t.Errorf("the rest that is for the server: %+v, %+v", t1, c.spools[0])
	}
	c.s.Lost()
	must(t, c.s.Adoptable())
	c.sent = nil
	_, _, err = c.say("ghij\r\nb NOOP\r\n", true)
	must(t, err)
	if string(c.sent) != "b NOOP\r\n" {
		t.Errorf("the next upstream is sent %q", c.sent)
	}
}

// An answer that comes before its command is whole is believed if it refuses; a
// server that accepts takes the client's words for others.
func TestEarlyOK(t *testing.T) {
	c := newSayer()
	_, _, err := c.say("a APPEND b {10+}\r\nabc", true)
	must(t, err)
	if d := c.hear("a OK done", true); d.End == nil || d.Settle || c.s.Adoptable() == nil {
		t.Errorf("%+v", d)
	}
}

// A command behind a SELECT that is not answered yet is about that mailbox, and
// what it names is not known.
func TestBehindSelect(t *testing.T) {
	tr := New("u")
	play(t, tr, selectInbox)
	tr.Box.seed([]uint32{10, 20, 30, 40})
	play(t, tr, "C b SELECT Other\nC c STORE 1 +FLAGS (x)\nC d EXPUNGE\nC e CLOSE\nC f UID STORE 10 +FLAGS (x)")
	want := map[string]string{"c": "Other", "d": "Other", "e": "Other", "f": ""}
	for _, ex := range tr.Outstanding()[1:] {
		if ex.Mailbox != want[ex.Tag] || !ex.Unknown || ex.UIDs != nil {
			t.Errorf("%s %s: %q, %+v", ex.Tag, ex.Name(), ex.Mailbox, ex.UIDs)
		}
	}
}

// What a MOVE needs before it is sent, first and again.
func TestNeeds(t *testing.T) {
	tr := New("u")
	play(t, tr, selectInbox)
	tr.Box.seed([]uint32{10, 20, 30, 40})
	line := []byte("b MOVE 2 Filed\r\n")
	sc := imapwire.Scanner{Side: imapwire.Client}
	p, _ := sc.Next(line)
	taken, err := tr.Client(p, line, time.Time{}, true)
	must(t, err)
	n := taken.Needs
	if n.Mark != "Filed" || n.Intent == nil || n.Intent.From != "INBOX" || n.Intent.To != "Filed" ||
		!slices.Equal(n.Intent.UIDs, []uint32{20}) {
		t.Fatalf("%+v", n)
	}
	over := 0
	intent := Intent{Arrived: func() {}, Over: func() { over++ }}
	taken.Exchange.Attach(Kept{Mark: 7, Intent: intent})
	if n := tr.Prepare(taken.Exchange, true); n.Intent != nil || n.Mark != "" {
		t.Errorf("while it is noted: %+v", n)
	}
	for _, u := range tr.Unanswered(true) {
		if u.Doubt == nil || u.Doubt.Mark != 7 {
			t.Errorf("%+v", u)
		}
		u.Release.Release()
	}
	tr.Lost()
	if n := tr.Prepare(taken.Exchange, true); over != 1 || n.Intent == nil || n.Intent.Mark != 7 || n.Mark != "" {
		t.Errorf("before it is sent again: %+v", n)
	}
	if n := tr.Prepare(taken.Exchange, false); n.Intent != nil {
		t.Errorf("to the standby: %+v", n)
	}
	taken.Exchange.Attach(Kept{Intent: intent})
	if a, err := tr.Again(taken.Exchange, false); err != nil || a.Release.Intent.Over == nil {
		t.Errorf("the standby does not move on production: %+v, %v", a, err)
	}
}

// A unit of a message that the client does not count is dropped whole; when it is
// cut, nothing of it is completed.
func TestHiddenUnitIsCut(t *testing.T) {
	tr := New("u")
	play(t, tr, selectInbox)
	tr.Box.seed([]uint32{10, 20, 30, 40})
	tr.Server([]byte("* 1 FETCH (FLAGS ())\r\n"), true)
	if _, err := tr.Reopened(BoxState{7, 50, 5}, []uint32{10, 15, 20, 30, 40}, 0); err != nil {
		t.Fatal(err)
	}
	sc := imapwire.Scanner{Side: imapwire.Server}
	for _, text := range []string{"* 2 FETCH (BODY[] {10}\r\n", "abc"} {
		p, _ := sc.Next([]byte(text))
		drop := true
		if p.First {
			drop = tr.Server([]byte(text), true).Drop
		}
		tr.Piece(p, []byte(text), drop)
		if !drop {
			t.Error("it is not hidden")
		}
	}
	tr.Lost()
	if err := tr.Adoptable(); err != nil || tr.Unit.Open() {
		t.Errorf("%v, %+v", err, tr.Unit)
	}
}

// Whatever both sides say: a session does not panic and keeps its bounds, a command
// gets one answer at most, a message is given back once, and what is pending is
// what is owed.
func FuzzSession(f *testing.F) {
	f.Add([]byte(selectInbox))
	f.Add([]byte("C a FETCH 1 (FLAGS)\nS * 1 FETCH (FLAGS (x) UID 3)\nC b APPEND x {3+}\nC abc"))
	f.Add([]byte("C a APPEND b {3}\nS + go\nC abc\nL\nA\nS a OK [APPENDUID 1 2] x\nR"))
	f.Add([]byte("C a IDLE\nS + idling\nD\nS * 3 EXISTS\nL\nA\nS + idling\nS a OK x\n"))
	f.Add([]byte("C a APPEND b {9+}\nC abc\nS a NO x\nL\nA\nC defghi\nC b NOOP\nS b OK x"))
	f.Add([]byte(selectInbox + "C b MOVE 1 x\nS * OK [COPYUID 1 2 3] x\nS * 1 EXPUNGE\nL\nF\nA\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		c := newSayer()
		told := map[*Exchange]int{}
		for l := range strings.Lines(string(in)) {
			if !c.op(l, told) {
				break
			}
			c.check(t, told)
		}
		for _, k := range c.s.End() {
			c.release(k)
		}
		for _, sp := range c.spools {
			if sp.discarded != 1 {
				t.Fatalf("a message is given back %d times", sp.discarded)
			}
		}
	})
}

// op does one thing to the session; false ends it.
func (c *sayer) op(l string, told map[*Exchange]int) bool {
	answered := func(ex *Exchange, k Kept) {
		told[ex]++
		c.release(k)
	}
	switch line := []byte(strings.TrimSuffix(strings.TrimPrefix(l[1:], " "), "\n") + "\r\n"); l[0] {
	case 'S', 's':
		d := c.s.Server(line, l[0] == 'S')
		if d.Wake == Refuse {
			c.sc.Cancel()
		}
		if d.End != nil {
			c.release(d.Release)
			return false
		}
		switch ex := d.Exchange; {
		case ex == nil:
		case d.Done:
			answered(ex, d.Release)
		case len(line)%3 == 0 && d.Settle && c.s.Reopen(ex):
		default:
			if d.Opened {
				c.s.Open(ex, 0, l[0] == 'S')
			}
			_, k := c.s.Finish(ex)
			answered(ex, k)
		}
	case 'L':
		for _, u := range c.s.Unanswered(true) {
			c.release(u.Release)
		}
		c.s.Lost()
		_ = c.s.Adoptable()
	case 'A':
		_ = c.s.Resume()
		for _, ex := range c.s.Outstanding() {
			a, err := c.s.Again(ex, true)
			if err != nil {
				return false
			}
			if a.Answer != "" {
				_, _, k := c.s.Answer(ex, a.Answer)
				answered(ex, k)
			}
		}
	case 'R':
		if c.s.Box != nil && len(line) < 100 {
			uids := []uint32{}
			for i := range line {
				uids = append(uids, uint32(i)*2+1)
			}
			_, _ = c.s.Reopened(BoxState{1, 1000, len(uids)}, uids, 0)
		}
	case 'F':
		for _, ex := range c.s.Unclear() {
			c.s.Discovered(ex, "")
		}
		if n := c.s.Oldest(); n != nil && n.State() == Found {
			_, _, k, _ := c.s.AnswerFound()
			answered(n, k)
		}
	case 'D':
		if ex := c.s.Oldest(); ex != nil {
			c.s.EndIdle(ex, line, time.Time{})
		}
	default:
		if c.s.waiting() != nil {
			return true // it waits
		}
		_, _, err := c.say(string(line), true)
		return err == nil
	}
	return true
}

func (c *sayer) check(t *testing.T, told map[*Exchange]int) {
	seen := map[*Exchange]bool{}
	kept := 0
	for _, ex := range c.s.pending {
		if seen[ex] || !ex.Owed() || told[ex] > 0 || ex == c.s.settling {
			t.Fatalf("%s %s is pending twice, or after its answer: %s", ex.Tag, ex.Name(), ex.State())
		}
		seen[ex] = true
		kept += len(ex.Text)
	}
	if n := len(c.s.pending); n > MaxOutstanding || kept > n*(imapwire.MaxText+imapwire.MaxLine) {
		t.Fatalf("%d commands of %d bytes", n, kept)
	}
	for ex, n := range told {
		if n > 1 || ex.Owed() {
			t.Fatalf("%s %s is answered %d times, and %s", ex.Tag, ex.Name(), n, ex.State())
		}
	}
	if s := c.s.settling; s != nil && s.State() != Settling {
		t.Fatalf("%s is settled", s.State())
	}
}

// What a round trip costs the session.
func BenchmarkSession(b *testing.B) {
	for _, c := range []struct{ name, client, server string }{
		{"NOOP", "a1 NOOP\r\n", "a1 OK done\r\n"},
		{"FETCH", "a1 UID FETCH 1:* (FLAGS)\r\n",
			"* 1 FETCH (UID 10 FLAGS (\\Seen))\r\n* 2 FETCH (UID 20 FLAGS ())\r\na1 OK done\r\n"},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := New("u")
			s.Box = &Box{Name: "INBOX", View: []uint32{10, 20, 30, 40}, Held: 40}
			client := []byte(c.client)
			var server [][]byte
			for l := range strings.Lines(c.server) {
				server = append(server, []byte(l))
			}
			sc := imapwire.Scanner{Side: imapwire.Client}
			b.ReportAllocs()
			for b.Loop() {
				p, _ := sc.Next(client)
				t, err := s.Client(p, client, time.Time{}, true)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := s.Rewrite(t.Exchange, p, client); err != nil {
					b.Fatal(err)
				}
				for _, l := range server {
					s.Server(l, true)
				}
			}
			if n := len(s.pending); n != 0 {
				b.Fatal(fmt.Sprint(n, " are not answered"))
			}
		})
	}
}
