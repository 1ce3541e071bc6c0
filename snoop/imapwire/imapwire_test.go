package imapwire

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// pieces scans in with chunks of the given sizes, and returns what was found as
// text that does not depend on the chunks.
func pieces(side Side, in []byte, chunk func() int) (string, error) {
	var out strings.Builder
	sc := Scanner{Side: side}
	var buf []byte
	body := 0
	for len(in) > 0 || len(buf) > 0 {
		n := min(max(chunk(), 1), len(in))
		buf, in = append(buf, in[:n]...), in[n:]
		for {
			p, err := sc.Next(buf)
			if err != nil {
				fmt.Fprintf(&out, "error %v", err)
				return out.String(), err
			}
			if p.Kind == More {
				break
			}
			if p.Kind == Body {
				body += p.N
			} else {
				if body > 0 {
					fmt.Fprintf(&out, "body %d\n", body)
					body = 0
				}
				fmt.Fprintf(&out, "line %q first=%v last=%v lit=%v\n", buf[:p.N], p.First, p.Last, p.Lit)
			}
			buf = buf[p.N:]
		}
		if len(in) == 0 {
			break
		}
	}
	fmt.Fprintf(&out, "body %d rest %q", body, buf)
	return out.String(), nil
}

var seeds = []string{
	"a NOOP\r\nb APPEND INBOX (\\Seen) {5+}\r\nhello\r\nc SELECT {3}\r\nabc\r\n",
	"a LIST \"\" {03+}\r\nabc\r\n", "a NOOP x{3}\r\nabc\r\n", "a FOO {3+}\r\nabc\r\n",
	"* 1 FETCH (BODY[] {4}\r\nabcd UID 3)\r\n* OK text {9}\r\na OK done {3}\r\n+ go {2}\r\n",
	"* 2 FETCH (BODY[1] {0}\r\n BODY[2] {1}\r\nx)\r\n* LIST () \"/\" {3}\r\nabc\r\n",
	"x \"{3}\"\r\ny {99999999999999999999}\r\n\n\r\n",
}

// Any split of the input gives the same pieces.
func FuzzScanner(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s), uint64(1), true)
		f.Add([]byte(s), uint64(2), false)
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64, client bool) {
		side := Server
		if client {
			side = Client
		}
		whole, err := pieces(side, in, func() int { return len(in) })
		rng := rand.New(rand.NewPCG(seed, 1))
		split, err2 := pieces(side, in, func() int { return 1 + rng.IntN(7) })
		if whole != split || (err == nil) != (err2 == nil) {
			t.Fatalf("whole:\n%s\nsplit:\n%s", whole, split)
		}
	})
}

// The reader never panics and never reads past the end.
func FuzzReader(f *testing.F) {
	for _, s := range []string{`(a "b\"c" {3}` + "\r\nabc)", `INBOX (\Seen) "01-Jan-2026 10:00:00 +0000" {3}`,
		"1:4,7,* +FLAGS (x)", "(((((", "(a 5\rb)"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(b)
		r.Skip()
		NewReader(b).AString()
		NewReader(b).Set()
		NewReader(b).Flags()
		NewReader(b).ListMailbox()
		ParseFetchHead(b)
		ParseResponse(b)
	})
}

// Framing as Dovecot 2.3 really does it: whether a literal follows.
func TestFramingAsDovecot(t *testing.T) {
	for _, c := range []struct {
		in   string
		lit  bool
		fail error
	}{
		{"a NOOP x{3}\r\n", false, nil},
		{"a FOO {3+}\r\n", false, ErrMarker}, // Dovecot does not consume it; the session ends
		{"a FOO {3}\r\n", false, nil},
		{"a LIST \"\" x{3+}\r\n", false, nil},
		{"a LIST \"\" {03+}\r\n", true, nil},
		{"a LIST \"\" {-3}\r\n", false, nil},
		{"a LIST \"\" {+3}\r\n", false, nil},
		{"a LIST \"\" {3++}\r\n", false, nil},
		{"a LIST \"\" { 3+}\r\n", false, nil},
		{"a LIST \"\" {3} \r\n", false, nil},
		{"a LIST \"\" \"x {3+}\r\n", false, nil},
		{"a LIST \"\" {3+}\n", true, nil},
		{"a APPEND x ~{3+}\r\n", true, nil},
	} {
		sc := Scanner{Side: Client}
		p, err := sc.Next([]byte(c.in))
		if !errors.Is(err, c.fail) || p.Lit.Present != c.lit {
			t.Errorf("%q: literal %v, error %v", c.in, p.Lit.Present, err)
		}
	}
	// A bare CR ends nothing.
	sc := Scanner{Side: Client}
	if p, _ := sc.Next([]byte("a NOOP\rb NOOP\r\n")); p.N != 15 {
		t.Errorf("bare CR: piece of %d bytes", p.N)
	}
	if _, err := sc.Next(bytes.Repeat([]byte("x"), MaxLine+1)); !errors.Is(err, ErrLineTooLong) {
		t.Errorf("endless line: %v", err)
	}
}

func TestSets(t *testing.T) {
	s, err := ParseSet("4,2:1,7:*")
	if err != nil {
		t.Fatal(err)
	}
	got, _ := s.Resolve(9).Numbers(100)
	if !slices.Equal(got, []uint32{4, 1, 2, 7, 8, 9}) {
		t.Error(got)
	}
	for _, bad := range []string{"", "0", "1:", "a", "1,,2", "4294967296", "+1"} {
		if _, err := ParseSet(bad); err == nil {
			t.Errorf("%q is no set", bad)
		}
	}
	if got := FormatSet([]uint32{5, 1, 2, 3}); got != "1:3,5" {
		t.Error(got)
	}
}

// MatchList takes time in proportion to pattern times name.
func TestMatchList(t *testing.T) {
	for _, c := range []struct {
		p, n string
		want bool
	}{{"*", "a/b", true}, {"%", "a/b", false}, {"%/%", "a/b", true}, {"a*b", "a/x/b", true}, {"a%b", "a/b", false}, {"",
		"", true}, {"INBOX", "INBOX", true}} {
		if MatchList(c.p, c.n, '/') != c.want {
			t.Errorf("%q on %q", c.p, c.n)
		}
	}
	start := time.Now()
	MatchList(strings.Repeat("*a", 500)+"b", strings.Repeat("a", 1000), '/')
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %s", d)
	}
}

func TestParseFetchHead(t *testing.T) {
	it := ParseFetchHead([]byte(`(BODY[HEADER.FIELDS (X)]<0> "a b" FLAGS (\Seen x) UID 7 MODSEQ (12))`))
	if it.UID != 7 || !it.HasFlags || len(it.Flags) != 2 || it.ModSeq != 12 {
		t.Errorf("%+v", it)
	}
}

func BenchmarkScanner(b *testing.B) {
	in := bytes.Repeat([]byte("* 12345 FETCH (UID 123456 FLAGS (\\Seen \\Answered))\r\n"), 1000)
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		sc := Scanner{Side: Server}
		for rest := in; len(rest) > 0; {
			p, _ := sc.Next(rest)
			rest = rest[p.N:]
		}
	}
}
