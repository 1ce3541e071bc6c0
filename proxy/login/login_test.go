package login

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"understudy/proxy/seam"
	"understudy/snoop/imapwire"
	"understudy/snoop/smtpwire"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// RFC 4616, RFC 4954 section 4, RFC 7628: with and without an initial response.
func TestSASL(t *testing.T) {
	anna := seam.Login{User: "anna", AuthUser: "anna", Password: "p w"}
	xoauth, bearer := "user=anna\x01auth=Bearer t\x01\x01", "n,a=anna,\x01auth=Bearer t\x01\x01"
	for _, c := range []struct {
		name, mech string
		initial    string // "-" is none
		answers    []string
		challenges string
		want       seam.Login
		ok         bool
	}{
		{"initial response", "PLAIN", b64("\x00anna\x00p w"), nil, "", anna, true},
		{"asked for", "PLAIN", "-", []string{b64("\x00anna\x00p w")}, "[]", anna, true},
		{"as somebody else", "PLAIN", b64("anna\x00master\x00pw"), nil, "",
			seam.Login{User: "anna", AuthUser: "master", Password: "pw"}, true},
		{"LOGIN", "LOGIN", "-", []string{b64("anna"), b64("p w")}, "[VXNlcm5hbWU6 UGFzc3dvcmQ6]", anna, true},
		{"LOGIN with the name at once", "LOGIN", b64("anna"), []string{b64("p w")}, "[UGFzc3dvcmQ6]", anna, true},
		{"XOAUTH2", "XOAUTH2", b64(xoauth), nil, "", seam.Login{User: "anna", AuthUser: "anna", Mechanism: "XOAUTH2",
			Response: []byte(xoauth)}, true},
		{"OAUTHBEARER", "OAUTHBEARER", "-", []string{b64(bearer)}, "[]",
			seam.Login{User: "anna", AuthUser: "anna", Mechanism: "OAUTHBEARER", Response: []byte(bearer)}, true},
		{"empty initial response", "PLAIN", "=", nil, "", seam.Login{}, false},
		{"cancelled", "PLAIN", "-", []string{"*"}, "[]", seam.Login{}, false},
		{"no base64", "PLAIN", "-", []string{"a b"}, "[]", seam.Login{}, false},
		{"two fields", "PLAIN", b64("anna\x00pw"), nil, "", seam.Login{}, false},
		{"NUL in the password", "LOGIN", b64("anna"), []string{b64("p\x00w")}, "[UGFzc3dvcmQ6]", seam.Login{}, false},
		{"no user in a token", "XOAUTH2", b64("auth=Bearer t\x01\x01"), nil, "", seam.Login{}, false},
		{"no user in a bearer token", "OAUTHBEARER", b64("n,,\x01auth=Bearer t\x01\x01"), nil, "", seam.Login{}, false},
		{"something else in place of the user", "OAUTHBEARER", b64("n,host=x,\x01auth=Bearer t\x01\x01"), nil, "",
			seam.Login{}, false},
		{"other mechanism", "CRAM-MD5", "-", nil, "", seam.Login{}, false},
	} {
		answers, challenges := slices.Clone(c.answers), []string{}
		initial, has := c.initial, c.initial != "-"
		if !has {
			initial = ""
		}
		got, err := SASL(c.mech, initial, has, func(challenge string) (string, error) {
			challenges = append(challenges, challenge)
			if len(answers) == 0 {
				return "", io.ErrUnexpectedEOF
			}
			a := answers[0]
			answers = answers[1:]
			return a, nil
		})
		if c.ok && (err != nil || !reflect.DeepEqual(got, c.want)) || !c.ok && !errors.Is(err, imapwire.ErrSyntax) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
		if asked := fmt.Sprint(challenges); c.challenges != "" && asked != c.challenges || c.challenges == "" &&
			len(challenges) > 0 {
			t.Errorf("%s: asked %s", c.name, asked)
		}
	}
}

// What the client's connection failed with is not the client's mistake.
func TestSASLConnectionLost(t *testing.T) {
	_, err := SASL("LOGIN", "", false, func(string) (string, error) { return "", io.ErrUnexpectedEOF })
	if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, imapwire.ErrSyntax) {
		t.Error(err)
	}
}

func TestNew(t *testing.T) {
	for _, c := range []struct {
		authz, user, pass string
		ok                bool
	}{
		{"", "anna", "pw", true},
		{"", "anna", "", true},
		{"", "anna", strings.Repeat("p", 4096), true},
		{"", "anna", strings.Repeat("p", 4097), false},
		{"", strings.Repeat("u", 512), "pw", true},
		{"a", strings.Repeat("u", 512), "pw", false},
		{"", "", "pw", false},
		{"", "an\nna", "pw", false},
		{"an\x7fna", "master", "pw", false},
		{"", "anna", "p\x00w", false},
		{"", "anna", "p\nw", true},
	} {
		l, err := New(c.authz, c.user, c.pass)
		if (err == nil) != c.ok || c.ok && (l.AuthUser != c.user || l.Password != c.pass || c.authz == "" &&
			l.User != c.user) {
			t.Errorf("%.20q %.20q %.20q: %v", c.authz, c.user, c.pass, err)
		}
	}
}

// RFC 9051 section 6.2.3: every argument of LOGIN may be a literal.
func TestLine(t *testing.T) {
	for _, c := range []struct {
		name, text, rest string
		asked            int
		user, pass       string
		left             string // of the stream
	}{
		{"atoms", " anna pw", "next", 0, "anna", "pw", "next"},
		{"quoted", ` "an na" "p\"w"`, "next", 0, "an na", `p"w`, "next"},
		{"literals", " {4}", "anna {3}\r\np w\r\nnext", 2, "anna", "p w", "next"},
		{"literals without waiting", " {4+}", "anna {3+}\r\np w\r\nnext", 0, "anna", "p w", "next"},
		{"a password with a line end", " anna {4}", "p\r\nw\r\nnext", 1, "anna", "p\r\nw", "next"},
		{"a password that looks like a literal", " anna {3+}", "{9}\r\nnext", 0, "anna", "{9}", "next"},
		{"a marker in quotes", ` anna "{3}"`, "next", 0, "anna", "{3}", "next"},
	} {
		br, asked := bufio.NewReader(strings.NewReader(c.rest)), 0
		l, err := Line(c.text, br, func() { asked++ })
		left, _ := io.ReadAll(br)
		if err != nil || l.User != c.user || l.Password != c.pass || asked != c.asked || string(left) != c.left {
			t.Errorf("%s: %+v, %v; asked %d times, %q is left", c.name, l, err, asked, left)
		}
	}
}

func TestLineRefuses(t *testing.T) {
	for _, c := range []struct {
		name, text, rest string
		want             error
	}{
		{"one argument", " anna", "", imapwire.ErrSyntax},
		{"three arguments", " anna pw x", "", imapwire.ErrSyntax},
		{"no space", "anna pw", "", imapwire.ErrSyntax},
		{"text behind a literal", " anna {2}", "pw x\r\n", imapwire.ErrSyntax},
		{"long literal", " anna {4097}", "", ErrTooLong},
		{"binary literal", " anna ~{2}", "", ErrTooLong},
		{"many literals", " {0+}", strings.Repeat(" {0+}\r\n", 10_000), ErrTooLong},
		{"cut literal", " anna {4}", "p", io.ErrUnexpectedEOF},
		{"long line behind a literal", " anna {1}", "p" + strings.Repeat("x", MaxLine+1) + "\r\n",
			smtpwire.ErrLineTooLong},
	} {
		if l, err := Line(c.text, bufio.NewReader(strings.NewReader(c.rest)), func() {}); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v", c.name, l, err)
		}
	}
}

func TestBanner(t *testing.T) {
	b := NewBanner(seam.Caps{"IMAP4rev1", "MOVE"})
	if g := b.Show(); b.Known() || g.Text != "ready." || !slices.Equal(g.Auth, []string{"AUTH=PLAIN", "AUTH=LOGIN"}) ||
		!slices.Equal(g.Caps, []string{"IMAP4rev1", "MOVE"}) {
		t.Errorf("before anything was learned: %+v", g)
	}
	b.Learn("mail \x07ready\r\n* BYE", seam.Caps{"IMAP4rev1", "auth=plain", "AUTH=GSSAPI", "AUTH=XOAUTH2"})
	b.LearnCaps(seam.Caps{"IMAP4rev1"})
	g := b.Show()
	if !b.Known() || g.Text != "mail ready* BYE" || !slices.Equal(g.Auth, []string{"AUTH=PLAIN", "AUTH=XOAUTH2"}) ||
		!slices.Equal(g.Caps, []string{"IMAP4rev1"}) {
		t.Errorf("learned %+v", g)
	}
	g.Auth[0], g.Caps[0] = "", "" // the copy is the caller's
	b.Learn("", seam.Caps{"AUTH=GSSAPI"})
	if again := b.Show(); again.Text != "mail ready* BYE" || again.Auth[0] != "AUTH=PLAIN" ||
		again.Caps[0] != "IMAP4rev1" {
		t.Errorf("what says nothing changes %+v", again)
	}
}
