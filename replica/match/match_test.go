package match

import (
	"slices"
	"testing"
)

const every = WholeButCarriageReturns

// D1, N08: which evidence there is for each thing that a server may do to a message.
func TestEvidence(t *testing.T) {
	const sent = "From: a@b\r\nSubject: hello\r\n there\r\n\r\nbody\r\n.\r\n"
	for _, c := range []struct {
		name, sent, found string
		want              Evidence
	}{
		{"nothing", sent, sent, SameBytes},
		{"trace prepended", sent, "Return-Path: <a@b>\r\nReceived: by z\r\n\tfor <c@d>; now\r\n" + sent,
			HeaderPrepended},
		{"a field added in between", sent, "From: a@b\r\nX-Spam: no\r\nSubject: hello\r\n there\r\n\r\nbody\r\n.\r\n",
			HeaderLinesKept},
		{"fields added before, between and behind", sent,
			"Received: z\r\nFrom: a@b\r\nX-Spam: no\r\nSubject: hello\r\n there\r\nX-Last: 1\r\n\r\nbody\r\n.\r\n",
			HeaderLinesKept},
		{"carriage returns taken away", sent, "From: a@b\nSubject: hello\n there\n\nbody\n.\n", SameButCarriageReturns},
		{"CR CR LF mended", "Subject: x\r\r\n\r\nbody\r\r\n", "Subject: x\r\n\r\nbody\r\n", SameButCarriageReturns},
		{"CR CR LF mended, trace prepended", "Subject: x\r\n\r\nbody\r\r\n",
			"Received: z\r\nSubject: x\r\n\r\nbody\r\n", PrependedButCarriageReturns},
		{"CR CR LF mended, a field added", "A: 1\r\nB: 2\r\n\r\nbody\r\r\n", "A: 1\r\nX: y\r\nB: 2\r\n\r\nbody\r\n",
			KeptButCarriageReturns},
		{"unfolded", sent, "From: a@b\r\nSubject: hello there\r\n\r\nbody\r\n.\r\n", 0},
		{"a field taken away", sent, "Subject: hello\r\n there\r\n\r\nbody\r\n.\r\n", 0},
		{"fields in another order", "A: 1\r\nB: 2\r\n\r\nx", "B: 2\r\nA: 1\r\n\r\nx", 0},
		{"another body of the length", sent,
			"Received: z\r\nFrom: a@b\r\nSubject: hello\r\n there\r\n\r\nbodi\r\n.\r\n", 0},
		{"a footer", sent, sent + "footer\r\n", 0},
		{"a header that only ends alike", "Subject: hello\r\n\r\nbody", "X-Subject: hello\r\n\r\nbody", 0},
		{"a line that only ends alike", "A: 1\r\nSubject: hello\r\n\r\nbody",
			"A: 1\r\nX-Subject: hello\r\nB: 2\r\n\r\nbody", 0},
		{"a line that ends alike, and then the line", "A: 1\r\nB: 2\r\n\r\nx", "XA: 1\r\nA: 1\r\nC: 3\r\nB: 2\r\n\r\nx",
			HeaderLinesKept},
		{"no body", "Subject: x\r\n\r\n", "Received: z\r\nSubject: x\r\n\r\n", HeaderPrepended},
		{"no body, another header", "Subject: x\r\n\r\n", "Subject: y\r\n\r\n", 0},
		{"no empty line", "Subject: x\r\n", "Received: z\r\nSubject: x\r\n", HeaderPrepended},
		{"no empty line, which the server adds", "Subject: x\r\n", "Received: z\r\nSubject: x\r\n\r\n",
			HeaderLinesKept},
		{"no header", "\r\nbody\r\n", "\r\nbody\r\n", SameBytes},
		{"no header, trace prepended", "\r\nbody\r\n", "Received: z\r\n\r\nbody\r\n", HeaderPrepended},
		{"at the end of another one", sent, "Subject: look\r\n\r\n" + sent, 0},
		{"without the end of its last line", "Subject: x", "Received: z\r\nSubject: x\r\n\r\n", HeaderLinesKept},
		{"without the end of its last line, and a longer one", "Subject: x", "Subject: xyz\r\n\r\n", 0},
		{"empty", "", "", SameBytes},
		{"empty, and anything", "", "Subject: x\r\n\r\nbody", 0},
		{"empty, and a header", "", "Received: z\r\n", 0},
	} {
		s, f := Read([]byte(c.sent)), Read([]byte(c.found))
		if got := Compare(s, f, every); got != c.want {
			t.Errorf("%s: %b, want %b", c.name, got, c.want)
		}
		if got := Compare(s, f, every&^c.want); c.want == SameBytes && got == 0 {
			t.Errorf("%s: the same bytes are no weaker evidence", c.name)
		}
		if got := Compare(s, f, Whole); (got != 0) != (c.want&Whole != 0) {
			t.Errorf("%s: carriage returns are not looked away from: %b", c.name, got)
		}
	}
}

// What is found by its header alone is what is found by its whole.
func TestHeader(t *testing.T) {
	const sent = "Subject: hello\r\n\r\nbody\r\n"
	for _, c := range []struct {
		name, header string
		size         int64
		whole        string
	}{
		{"the same", "Subject: hello\r\n\r\n", 24, sent},
		{"trace prepended", "Received: z\r\nSubject: hello\r\n\r\n", 37, "Received: z\r\n" + sent},
		{"another length", "Subject: hello\r\n\r\n", 25, ""},
		{"ends alike", "X-Subject: hello\r\n\r\n", 26, ""},
		{"a field behind it", "Subject: hello\r\nX: y\r\n\r\n", 30, ""},
		{"shorter", "hello\r\n\r\n", 15, ""},
		{"nothing", "", 6, ""},
	} {
		e, whole := Header(Read([]byte(sent)), []byte(c.header), c.size)
		if (e == HeaderAndLength) != (c.whole != "") || string(whole) != c.whole {
			t.Errorf("%s: %b %q", c.name, e, whole)
		}
		if c.whole != "" && Compare(Read([]byte(sent)), Read(whole), Whole) == 0 {
			t.Errorf("%s: found by its header and not by its whole", c.name)
		}
	}
}

// Candidates are found by what no server changes: the length of the body, without
// carriage returns where a server may change those.
func TestIndex(t *testing.T) {
	var exact, plain Index[string]
	for _, m := range []string{"A: 1\r\n\r\nbody\r\r\n", "B: 1\r\n\r\nbody\r\n", "no header"} {
		exact.Add(Read([]byte(m)).BodyLen(), m)
		plain.Add(Read([]byte(m)).PlainBodyLen(), m)
	}
	found := Read([]byte("X: y\r\nA: 1\r\n\r\nbody\r\n"))
	if got := exact.Candidates(found.BodyLen()); !slices.Equal(got, []string{"B: 1\r\n\r\nbody\r\n"}) {
		t.Errorf("%q", got)
	}
	if got := plain.Candidates(found.PlainBodyLen()); len(got) != 2 {
		t.Errorf("%q", got)
	}
	if Key(found.BodyLen()) != "6" {
		t.Error("rows tell the length in decimals")
	}
}
