package smtpwire

import (
	"bufio"
	"bytes"
	"errors"
	"strings"
	"testing"
)

func body(in string, size int) (string, string, error) {
	br := bufio.NewReaderSize(strings.NewReader(in), size)
	var out bytes.Buffer
	_, err := CopyBody(&out, br, 0)
	rest, _ := br.Peek(br.Buffered())
	return out.String(), string(rest), err
}

// Only CRLF "." CRLF ends a message; what smugglers try is part of it.
func TestEndOfData(t *testing.T) {
	for _, c := range []struct{ in, want, rest string }{
		{"a\r\n.\r\nNEXT", "a\r\n", "NEXT"},
		{".\r\nNEXT", "", "NEXT"},
		{"a\n.\nb\r\n.\r\n", "a\r\n\r\nb\r\n", ""},
		{"a\n.\r\nb\r\n.\r\n", "a\r\n\r\nb\r\n", ""},
		{"a\r.\rb\r\n.\r\n", "a\r.\rb\r\n", ""},
		{"a\r\n.\rMAIL\r\n.\r\n", "a\r\n\rMAIL\r\n", ""},
		{"a\r\r\n.\r\nNEXT", "a\r\n", "NEXT"},
		{"..a\r\n.b\r\n.\r\n", ".a\r\nb\r\n", ""},
	} {
		for _, size := range []int{16, 17, 64, 4096} {
			got, rest, err := body(c.in, size)
			if got != c.want || !strings.HasPrefix(c.rest, rest) || err != nil {
				t.Errorf("%q with %d: %q, rest %q, %v", c.in, size, got, rest, err)
			}
		}
	}
	if _, _, err := body("a\r\n.\r", 16); err == nil {
		t.Error("a message without end was taken")
	}
}

func TestTooBig(t *testing.T) {
	br := bufio.NewReader(strings.NewReader(strings.Repeat("x", 100) + "\r\n.\r\nNEXT"))
	if _, err := CopyBody(&bytes.Buffer{}, br, 10); !errors.Is(err, ErrTooBig) {
		t.Error(err)
	}
	if rest, _ := br.Peek(4); string(rest) != "NEXT" {
		t.Errorf("out of step: %q", rest)
	}
}

// What is read and written again is read the same, and has one end.
func FuzzBody(f *testing.F) {
	for _, s := range []string{"a\r\n.\r\n", "a\n.\n\r\n.\r\n", "\r\r\n..\r\n.\r\n", ".\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		first, _, err := body(string(in), 16)
		if err != nil {
			return
		}
		var wire bytes.Buffer
		d := &DotWriter{W: bufio.NewWriter(&wire)}
		if _, err := d.Write([]byte(first)); err != nil || d.Close() != nil {
			t.Fatal(err)
		}
		second, rest, err := body(wire.String()+"REST", 16)
		if second != first || !strings.HasPrefix("REST", rest) || err != nil {
			t.Fatalf("%q became %q (%v)", first, second, err)
		}
		if big, _, _ := body(string(in), 4096); big != first {
			t.Fatalf("buffer size matters: %q, %q", big, first)
		}
	})
}

func TestPaths(t *testing.T) {
	for _, bad := range []string{"TO:a@b", "TO:<a@b", "TO:<\"a b\"@c>",
		`TO:<victim@evil> NOTIFY=x ORCPT=rfc822;x <@local>x`[:10], "TO:<a b@c>", "TO:<a@b@c>", "TO:<a@b>x",
		"FROM:<a@b>"} {
		if p, err := ParsePath("TO", bad); err == nil {
			t.Errorf("%q is taken as %+v", bad, p)
		}
	}
	p, err := ParsePath("TO", "to:<@relay.test:a@[192.0.2.1]> NOTIFY=NEVER")
	if err != nil || p.Addr != "a@[192.0.2.1]" || len(p.Params) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := ParseCommand("MAIL\x00 x"); err == nil {
		t.Error("control character is taken")
	}
}

func TestReplies(t *testing.T) {
	r, err := ReadReply(bufio.NewReader(strings.NewReader("250-a\r\n250-b\r\n250 c\r\n")))
	if err != nil || len(r.Lines) != 3 || string(r.Append(nil)) != "250-a\r\n250-b\r\n250 c\r\n" {
		t.Errorf("%+v, %v", r, err)
	}
	for _, bad := range []string{"250-a\r\n251 b\r\n", "x\r\n", "250"} {
		if _, err := ReadReply(bufio.NewReader(strings.NewReader(bad))); err == nil {
			t.Errorf("%q is no reply", bad)
		}
	}
}
