package imapwire

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
)

func set(t *testing.T, s string) Set {
	t.Helper()
	out, err := ParseSet(s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What each command says, and what is left to the server.
func TestParseCommand(t *testing.T) {
	for _, c := range []struct {
		text string
		name string
		want Args // nil: none
		bad  bool // arguments that the verb does not take
	}{
		{text: "a noop", name: "NOOP"},
		{text: "a uid store 1:3 (UNCHANGEDSINCE 7) -flags.silent (\\Seen x)", name: "UID STORE",
			want: StoreArgs{Set: set(t, "1:3"), Op: RemoveFlags, Silent: true, Flags: []string{`\Seen`, "x"},
				Conditional: true, UnchangedSince: 7}},
		{text: "a STORE 1 FLAGS x y", name: "STORE", want: StoreArgs{Set: set(t, "1"), Flags: []string{"x", "y"}}},
		{text: "a STORE 1 +X-GM-LABELS (x)", name: "STORE", bad: true},
		{text: "a STORE 1 (BY me) FLAGS x", name: "STORE", bad: true},
		{text: "a STORE $ FLAGS x", name: "STORE", bad: true},
		{text: `a COPY 2,4:* "a \"b\""`, name: "COPY", want: CopyArgs{Set: set(t, "2,4:*"), Target: `a "b"`}},
		{text: "a UID MOVE 7 {5+}\r\nFiled", name: "UID MOVE", want: CopyArgs{Set: set(t, "7"), Target: "Filed"}},
		{text: "a UID MOVE 7 inbox more", name: "UID MOVE", want: CopyArgs{Set: set(t, "7"), Target: "INBOX",
			Tail: []byte(" more")}},
		{text: "a COPY 1", name: "COPY", bad: true},
		{text: "a EXPUNGE", name: "EXPUNGE"},
		{text: "a UID EXPUNGE 3:5", name: "UID EXPUNGE", want: SetArgs{Set: set(t, "3:5")}},
		{text: "a UID EXPUNGE", name: "UID EXPUNGE", bad: true},
		{text: "a UID CLOSE", name: "UID CLOSE"},
		{text: `a CREATE "{5}"`, name: "CREATE", want: MailboxArgs{Mailbox: "{5}"}},
		{text: "a RENAME a {3+}\r\nb c", name: "RENAME", want: RenameArgs{From: "a", To: "b c"}},
		{text: "a EXAMINE b (CONDSTORE)", name: "EXAMINE",
			want: SelectArgs{Mailbox: "b", Params: []byte(" (CONDSTORE)")}},
		{text: "a STATUS b (MESSAGES)", name: "STATUS", want: MailboxArgs{Mailbox: "b", Tail: []byte(" (MESSAGES)")}},
		{text: "a FETCH 1:* (FLAGS)", name: "FETCH", want: FetchArgs{Set: set(t, "1:*"), Items: []byte("(FLAGS)")}},
		{text: "a UID SEARCH ALL", name: "UID SEARCH", want: SearchArgs{Keys: []byte("ALL")}},
		{text: "a ENABLE CONDSTORE x", name: "ENABLE", want: EnableArgs{Words: []string{"CONDSTORE", "x"}}},
		{text: "a LOGIN {1+}\r\nu \"p w\"", name: "LOGIN", want: LoginArgs{User: "u", Password: "p w"}},
		{text: "a AUTHENTICATE plain =", name: "AUTHENTICATE", want: AuthArgs{Mechanism: "PLAIN", Initial: []byte("="),
			Has: true}},
		{text: "a APPEND b (\\Seen) \" 1-Jan-2026 10:00:00 +0000\" {3+}\r\nabc", name: "APPEND",
			want: AppendArgs{Mailbox: "b", Flags: []string{`\Seen`}, Date: time.Date(2026, 1, 1, 10, 0, 0, 0, time.UTC),
				Message: Literal{true, 3, true, false}}},
		{text: "a APPEND b", name: "APPEND", bad: true},
	} {
		got, err := ParseCommand([]byte(c.text + "\r\n"))
		if err != nil || got.Name() != c.name || got.Tag != "a" {
			t.Errorf("%q: %s, %v", c.text, got.Name(), err)
			continue
		}
		if a, ok := got.Args.(AppendArgs); ok && !a.Date.IsZero() {
			a.Date = a.Date.UTC()
			got.Args = a
		}
		if u, bad := got.Args.(Unreadable); bad != c.bad || bad && !errors.Is(u.Err, ErrSyntax) {
			t.Errorf("%q: %+v", c.text, got.Args)
		} else if !bad && !same(got.Args, c.want) {
			t.Errorf("%q: %+v, want %+v", c.text, got.Args, c.want)
		}
	}
}

// same compares arguments; no text and empty text are alike.
func same(a, b Args) bool { return fmt.Sprintf("%T %+v", a, a) == fmt.Sprintf("%T %+v", b, b) }

func TestNoCommand(t *testing.T) {
	for _, text := range []string{"", "\r\n", "a\r\n", " a NOOP\r\n", "+ NOOP\r\n", "a* NOOP\r\n", "a\x7f NOOP\r\n",
		"a NOOP\r\nb NOOP\r\n", "a NOOP",
		"a LIST \"\" {3}\r\nab", "a " + strings.Repeat("x", 40) + "\r\n", strings.Repeat("a", 300) + " NOOP\r\n"} {
		if c, err := ParseCommand([]byte(text)); err == nil {
			t.Errorf("%.40q is %s", text, c.Name())
		}
	}
}

// Tail goes on where Args ends, tells places in all of the arguments, and fails with
// the error that made them Unreadable.
func TestTail(t *testing.T) {
	for _, c := range []struct{ text, rest, err string }{
		{"a COPY 1 b", "", ""},
		{"a COPY 1 b x", " x", "unexpected text at byte 3"},
		{"a COPY 1  b", "", "expected an atom at byte 2"},
		{"a FETCH 1:3 FLAGS", " FLAGS", "unexpected text at byte 3"},
		{"a SEARCH ALL", "ALL", "unexpected text at byte 0"},
		{"a STATUS {1+}\r\nb (X)", " (X)", "unexpected text at byte 7"},
		{"a STORE 1 (NO 1) FLAGS x", "", "unknown modifier"},
		{"a STORE 1 FLAG x", "", "expected FLAGS"},
		{"a APPEND b", "", "expected ' ' at byte 1"},
		{"a APPEND b (x", "", "list without end"},
		{"a APPEND b \"no date\"", "", "bad date"},
		{"a APPEND b text", "", "expected a message"},
		{"a CREATE {b {1+}\r\nc", "", "bad literal at byte 0"},
	} {
		cmd, err := ParseCommand([]byte(c.text + "\r\n"))
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		r := cmd.Tail()
		if rest := string(r.Rest()); rest != c.rest {
			t.Errorf("%q leaves %q", c.text, rest)
		}
		r.End()
		if got := fmt.Sprint(r.Err()); r.Err() != nil && !strings.HasSuffix(got, ": "+c.err) ||
			(r.Err() == nil) != (c.err == "") {
			t.Errorf("%q: %v, not %s", c.text, r.Err(), c.err)
		}
	}
}

// ENABLE tells all words, and whether they are well formed.
func TestEnable(t *testing.T) {
	for text, ok := range map[string]bool{"A": true, "A B": true, "A  B": false, "A (B": false, "": false,
		"A ": false} {
		cmd, err := ParseCommand([]byte("a ENABLE " + text + "\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		a, _ := cmd.Args.(EnableArgs)
		if (a.Err == nil) != ok || !reflect.DeepEqual(a.Words, strings.Fields(text)) {
			t.Errorf("%q: %+v", text, a)
		}
	}
}

// Which literal of an APPEND is its message: all but one that is its mailbox's name.
func TestAppendsMessage(t *testing.T) {
	type lits = []bool // for each announced literal that is kept: is it the message?
	for _, c := range []struct {
		text    string
		mailbox string
		lits    lits
		form    Form
		extra   bool
	}{
		{"a APPEND APPEND {3+}\r\nabc", "APPEND", lits{true}, Plain, false},
		{"a APPEND append {3+}\r\nabc", "append", lits{true}, Plain, false},
		{"a APPEND {6+}\r\nAPPEND {3+}\r\nabc", "APPEND", lits{false, true}, Plain, false},
		{"a APPEND {6+}\r\nAPPEND (x) {3+}\r\nabc", "APPEND", lits{false, true}, Plain, false},
		{"a APPEND \"{5}\" {3+}\r\nabc", "{5}", lits{true}, Plain, false},
		{"a APPEND \"a {3}\" {3+}\r\nabc", "a {3}", lits{true}, Plain, false},
		{"a APPEND {5+}\r\na {3} {3+}\r\nabc", "a {3}", lits{false, true}, Plain, false},
		{"a APPEND {3+}\r\n{5} {3+}\r\nabc", "{5}", lits{false, true}, Plain, false},
		{"a APPEND {0+}\r\n {3+}\r\nabc", "", lits{false, true}, Plain, false},
		{"a APPEND b ~{3+}\r\nabc", "b", lits{true}, Plain, false},
		{"a APPEND b UTF8 (~{3+}\r\nabc)", "b", lits{true}, UTF8, false},
		{"a APPEND b UTF8 (~{3+}\r\nabc) {3+}\r\nabc", "b", lits{true}, UTF8, true},
		{"a APPEND b \"no date\" {3+}\r\nabc", "b", lits{true}, Odd, false},
		{"a APPEND b (\x80) {3+}\r\nabc", "b", lits{true}, Odd, false},
		{"a APPEND b {3+}\r\nabc {3+}\r\nabc", "b", lits{true}, Plain, true}, // MULTIAPPEND
		{"a APPEND b CATENATE (TEXT {3+}\r\nabc URL {3+}\r\nabc)", "b", nil, Catenate, true},
		{"a APPEND b CATENATE (URL {3+}\r\nabc)", "b", nil, Catenate, true},
	} {
		cmd, err := ParseCommand([]byte(c.text + "\r\n"))
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		a, _ := cmd.Args.(AppendArgs)
		var got lits
		for _, l := range cmd.Literals {
			got = append(got, l.Message)
		}
		if a.Mailbox != c.mailbox || a.Form != c.form || cmd.Extra != c.extra || !cmd.Message || !reflect.DeepEqual(got,
			c.lits) {
			t.Errorf("%q: %+v, extra %v, literals %v", c.text, a, cmd.Extra, got)
		}
		if bytes.Contains(cmd.Text, []byte("abc")) {
			t.Errorf("%q: the message is kept: %q", c.text, cmd.Text)
		}
	}
	// Without a mailbox it is nobody's message: not kept, and not understood.
	for _, text := range []string{"a APPEND  {9000000+}\r\n", "a APPEND ~{9000000+}\r\n",
		"a APPEND (x) {9000000+}\r\n"} {
		var cmd Command
		sc := Scanner{Side: Client}
		p, _ := sc.Next([]byte(text))
		if err := cmd.Receive(p, []byte(text)); err != nil || !cmd.Extra || !cmd.Message {
			t.Errorf("%q: %v, %+v", text, err, cmd)
		}
	}
}

// What is kept of a command is bounded.
func TestCommandBounds(t *testing.T) {
	feed := func(text string) error {
		var c Command
		sc := Scanner{Side: Client}
		for b := []byte(text); len(b) > 0; {
			p, err := sc.Next(b)
			if err != nil || p.Kind == More {
				return err
			}
			if err := c.Receive(p, b[:p.N]); err != nil {
				return err
			}
			b = b[p.N:]
		}
		return nil
	}
	name := "{60000+}\r\n" + strings.Repeat("x", 60000)
	for _, c := range []struct {
		text string
		want error
	}{
		{"a CREATE {70000+}\r\n", ErrTooLong},
		{"a APPEND {70000+}\r\n", ErrTooLong},
		{"a RENAME " + name + " " + name + "\r\n", nil},
		{"a LIST (" + name + " " + name + " " + name + ")\r\n", ErrTooLong},
		{"a APPEND APPEND {70000000+}\r\n" + strings.Repeat("x", 200000), nil},
	} {
		if err := feed(c.text); !errors.Is(err, c.want) {
			t.Errorf("%.20q: %v, want %v", c.text, err, c.want)
		}
	}
}

func TestSetsSeen(t *testing.T) {
	for items, want := range map[string]bool{"FLAGS": false, "(FLAGS BODY.PEEK[])": false, "BODY[1]": true,
		"rfc822": true, "(RFC822 FLAGS)": true,
		"RFC822.HEADER": false, "RFC822.SIZE": false, "(RFC822.TEXT)": true, "BINARY[1]": true,
		"BINARY.PEEK[1]": false} {
		c, err := ParseCommand([]byte("a FETCH 1 " + items + "\r\n"))
		if err != nil || c.SetsSeen() != want {
			t.Errorf("%s: %v", items, !want)
		}
	}
}

func TestEnablesCondStore(t *testing.T) {
	for text, want := range map[string]bool{"ENABLE condstore": true, "ENABLE X": false, "SELECT b (CONDSTORE)": true,
		"SELECT CONDSTORE":                 false,
		"FETCH 1 (FLAGS) (CHANGEDSINCE 3)": true, "FETCH 1 MODSEQ": true,
		"UID STORE 1 (UNCHANGEDSINCE 3) FLAGS x": true,
		"STORE 1 FLAGS x":                        false,
		"SEARCH MODSEQ 7":                        true, "STATUS b (HIGHESTMODSEQ)": true, "FETCH $ MODSEQ": true,
		"NOOP":          false,
		"CREATE MODSEQ": false} {
		c, err := ParseCommand([]byte("a " + text + "\r\n"))
		if err != nil || c.EnablesCondStore() != want {
			t.Errorf("%s: %v", text, !want)
		}
	}
}

func TestSplitSet(t *testing.T) {
	before, s, behind, ok := SplitSet([]byte("a STORE 2:3 +FLAGS (x)\r\n"))
	if !ok || string(before) != "a STORE " || len(s) != 1 || string(behind) != " +FLAGS (x)\r\n" {
		t.Errorf("%q %v %q", before, s, behind)
	}
	if _, _, _, ok := SplitSet([]byte("a STORE x\r\n")); ok {
		t.Error("x is no set")
	}
}

var commandSeeds = []string{
	"a NOOP\r\n", "a UID STORE 1:3 +FLAGS (x)\r\n", "a APPEND b (\\Seen) {3}\r\nabc\r\n",
	"a APPEND {6}\r\nAPPEND {3+}\r\nabc {3}\r\nabc\r\n",
	"a APPEND b UTF8 (~{3}\r\nabc)\r\n", "a RENAME {1}\r\na \"{5}\"\r\n", "a COPY 1 {3+}\r\nabc\r\n",
	"a SEARCH CHARSET X {1}\r\na\r\n", "a\r\n", "a UID\r\n",
	"a APPEND b CATENATE (URL \"x\" TEXT {3}\r\nabc)\r\n", "\r\n", "a LOGIN {1}\r\nu {1}\r\np\r\n",
}

// Any split of a command's bytes makes the same command; what is kept is what was
// sent, and bounded; only the message of an APPEND is left out.
func FuzzCommand(f *testing.F) {
	for i, s := range commandSeeds {
		f.Add([]byte(s), uint64(i))
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		receive := func(chunk func() int) (c Command, n int, err error) {
			sc := Scanner{Side: Client}
			var buf []byte
			for rest := in; !c.Whole; {
				p, err := sc.Next(buf)
				if err != nil {
					return c, n, err
				}
				if p.Kind == More {
					if len(rest) == 0 {
						return c, n, nil
					}
					k := min(max(1, chunk()), len(rest))
					buf, rest = append(buf, rest[:k]...), rest[k:]
					continue
				}
				if err := c.Receive(p, buf[:p.N]); err != nil {
					return c, n, err
				}
				n, buf = n+p.N, buf[p.N:]
			}
			return c, n, nil
		}
		whole, n, err := receive(func() int { return len(in) })
		rng := rand.New(rand.NewPCG(seed, 1))
		split, n2, err2 := receive(func() int { return 1 + rng.IntN(7) })
		if whole.Whole && !reflect.DeepEqual(whole, split) || whole.Whole && n != n2 ||
			!errors.Is(err2, err) && err == nil {
			t.Fatalf("whole: %+v %v\nsplit: %+v %v", whole, err, split, err2)
		}
		if len(whole.Text) > MaxText+MaxLine+MaxLiteral {
			t.Fatalf("%d bytes are kept", len(whole.Text))
		}
		if !whole.Message && whole.Whole && !bytes.Equal(whole.Text, in[:n]) {
			t.Fatalf("%q was kept as %q", in[:n], whole.Text)
		}
		_, _, _, _ = SplitSet(in)
		_ = whole.SetsSeen() || whole.EnablesCondStore() || whole.ByNumber()
	})
}

func BenchmarkCommand(b *testing.B) {
	for _, text := range []string{"a1 NOOP\r\n", "a1 UID FETCH 1:* (FLAGS)\r\n",
		"a1 UID STORE 17 +FLAGS.SILENT (\\Seen)\r\n"} {
		line := []byte(text)
		b.Run(strings.Fields(text)[1], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				var c Command
				sc := Scanner{Side: Client}
				p, _ := sc.Next(line)
				_ = c.Receive(p, line)
			}
		})
	}
}
