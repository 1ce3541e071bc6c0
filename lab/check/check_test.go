package check

import (
	"bytes"
	"strings"
	"testing"
)

// good is a legal history; each bug is planted into it by a replacement.
const good = `> a SELECT INBOX
< * 3 EXISTS
< * OK [UIDVALIDITY 7] ok
< a OK done
> b UID FETCH 1:* (FLAGS BODY[])
< * 1 FETCH (UID 4 FLAGS () BODY[] {36}
< Message-ID: <m4>
< X-Owner: u
< 
< abcd)
< * 2 FETCH (UID 6 FLAGS ())
< * 3 FETCH (UID 9 FLAGS ())
< b OK done
> c UID EXPUNGE 6
< * 2 EXPUNGE
< c OK done
> d APPEND INBOX {3+}
> abc
< * 3 EXISTS
< d OK [APPENDUID 7 12] done
> e UID FETCH 12 (FLAGS)
< * 3 FETCH (UID 12 FLAGS ())
< e OK done
> f FETCH 1 (UID BODY[])
< * 1 FETCH (UID 4 BODY[] {36}
< Message-ID: <m4>
< X-Owner: u
< 
< abcd)
< f OK done
> g LOGOUT
< * BYE bye
< g OK done
`

func play(script string) *Book {
	b := NewBook()
	s := b.Session("u")
	for l := range strings.Lines(script) {
		text := []byte(strings.TrimSuffix(l[2:], "\n") + "\r\n")
		if l[0] == '>' {
			s.Client(text)
		} else {
			s.Server(text)
		}
	}
	s.End(true)
	return b
}

// The checker finds planted bugs, in a running session and in a kept history.
func TestPlantedBugs(t *testing.T) {
	if f := play(good).Faults(); len(f) > 0 {
		t.Fatalf("the legal history has faults: %q", f)
	}
	for name, bug := range map[string][2]string{
		"lost answer":                   {"< c OK done\n", ""},
		"doubled answer":                {"< c OK done\n", "< c OK done\n< c OK done\n"},
		"answer to nothing":             {"< c OK done\n", "< c OK done\n< zz OK done\n"},
		"EXISTS shrinks":                {"< * 3 EXISTS\n< d OK", "< * 1 EXISTS\n< d OK"},
		"EXPUNGE out of range":          {"* 2 EXPUNGE", "* 4 EXPUNGE"},
		"EXPUNGE while nothing goes on": {"< c OK done\n", "< c OK done\n< * 1 EXPUNGE\n"},
		"EXPUNGE during FETCH":          {"< f OK done", "< * 3 EXPUNGE\n< f OK done"},
		"UID of a message changes":      {"< * 1 FETCH (UID 4 BODY[]", "< * 1 FETCH (UID 5 BODY[]"},
		"UIDs out of order":             {"(UID 12 FLAGS", "(UID 8 FLAGS"},
		"FETCH out of range":            {"* 3 FETCH (UID 12", "* 7 FETCH (UID 12"},
		"UID used again": {"BODY[] {36}\n< Message-ID: <m4>\n< X-Owner: u\n< \n< abcd)\n< f",
			"BODY[] {36}\n< Message-ID: <m5>\n< X-Owner: u\n< \n< abcd)\n< f"},
		"somebody else's mail": {"X-Owner: u", "X-Owner: v"},
	} {
		script := strings.Replace(good, bug[0], bug[1], 1)
		if script == good {
			t.Fatalf("%s: not planted", name)
		}
		b := play(script)
		if len(b.Faults()) == 0 {
			t.Errorf("%s: not found", name)
		}
		again, err := Judge(bytes.NewReader(b.History()))
		if err != nil || strings.Join(again, "\n") != strings.Join(b.Faults(), "\n") {
			t.Errorf("%s: the kept history is judged %q, %v", name, again, err)
		}
	}
	two := NewBook()
	for _, v := range []string{"7", "8"} {
		s := two.Session("u")
		s.Client([]byte("a SELECT INBOX\r\n"))
		s.Server([]byte("* 0 EXISTS\r\n* OK [UIDVALIDITY " + v + "] ok\r\na OK done\r\n"))
	}
	if len(two.Faults()) == 0 {
		t.Error("another UIDVALIDITY: not found")
	}
}
