package smtpsession

import (
	"net/netip"
	"os"
	"slices"
	"testing"

	"understudy/proxy/seam"
	"understudy/snoop/smtpwire"
)

// at brings a session to a stage.
func at(t *testing.T, stage Stage) *Session {
	t.Helper()
	s := New(seam.Client{Addr: netip.MustParseAddrPort("192.0.2.7:4711")})
	for _, step := range []func(){
		func() { s.Hello("client.test", true); s.Greeted() },
		func() { s.From(smtpwire.Path{Addr: "a@b.test", Params: []string{"SIZE=3"}}) },
		func() { s.To(smtpwire.Path{Addr: "c@d.test", Params: []string{"NOTIFY=NEVER"}}) },
		s.Begin,
	} {
		if s.Stage() == stage && (stage != Idle || s.greeted) {
			return s
		}
		step()
	}
	if stage == Over {
		s.End()
		s.Quit()
	}
	if s.Stage() != stage {
		t.Fatalf("stands at %q, not at %q", s.Stage(), stage)
	}
	return s
}

func TestEveryPair(t *testing.T) {
	for _, stage := range Stages() {
		for _, on := range Events() {
			rules := 0
			for _, r := range Rules() {
				if r.From == stage && r.On == on {
					rules++
				}
			}
			quiet := slices.Contains(quiet()[stage], on)
			if (rules > 0) == quiet {
				t.Errorf("%s, %s: %d rules, quiet is %v", stage, on, rules, quiet)
			}
			s := at(t, stage)
			if quiet {
				if _, ok := s.May(on); ok || s.move(on) || s.Stage() != stage {
					t.Errorf("%s, %s: is quiet and does something", stage, on)
				}
			}
		}
	}
	for _, r := range Rules() {
		if !slices.Contains(Stages(), r.From) || !slices.Contains(Stages(), r.To) || !slices.Contains(Events(), r.On) ||
			r.No.Code != 0 && r.To != r.From || (r.If == "") != (r.Cond == nil) {
			t.Errorf("rule %q, %q is not well formed", r.From, r.On)
		}
	}
}

// RFC 5321 section 4.1.4: the order of commands.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		stage Stage
		on    Event
		no    string // "" is that it may be said
	}{
		{Idle, Mail, ""},
		{Idle, Auth, ""},
		{Idle, Rcpt, "503 5.5.1 MAIL first"},
		{Idle, Data, "554 5.5.1 No valid recipients"},
		{Sender, Mail, "503 5.5.1 Nested MAIL"},
		{Sender, Auth, "503 5.5.1 Not now"},
		{Sender, Data, "554 5.5.1 No valid recipients"},
		{Sender, Rcpt, ""},
		{Recipients, Rcpt, ""},
		{Recipients, Data, ""},
		{Recipients, Mail, "503 5.5.1 Nested MAIL"},
		{Body, Mail, "503 5.5.1 Not now"},
		{Over, Hello, "503 5.5.1 Not now"},
	} {
		no, ok := at(t, c.stage).May(c.on)
		if got := no.String(); ok != (c.no == "") || !ok && got != c.no {
			t.Errorf("%s at %q: %v %s, not %q", c.on, c.stage, ok, got, c.no)
		}
	}
}

func TestConditions(t *testing.T) {
	s := New(seam.Client{})
	if _, ok := s.May(Auth); ok {
		t.Error("AUTH before EHLO")
	}
	if _, ok := s.May(Mail); !ok {
		t.Error("MAIL before EHLO is the server's to refuse")
	}
	s.Hello("client.test", true)
	if _, ok := s.May(Auth); ok {
		t.Error("AUTH after an EHLO that the server has not taken")
	}
	s.Greeted()
	s.LoggedIn(seam.Login{User: "anna", AuthUser: "anna"})
	if _, ok := s.May(Auth); ok {
		t.Error("AUTH twice")
	}
	if _, ok := s.May(StartTLS); !ok {
		t.Error("STARTTLS once")
	}
	s.Secured()
	if no, ok := s.May(StartTLS); ok || no.Code != 503 {
		t.Errorf("STARTTLS twice: %v", no)
	}
	if steps := s.Again(); !s.Client().TLS || len(steps) != 1 || steps[0].On != Auth {
		t.Errorf("a name of before TLS is said again: %+v", steps)
	}
}

// A message has its envelope until its outcome is told, EHLO, RSET or STARTTLS.
func TestEnvelope(t *testing.T) {
	for name, forget := range map[string]func(*Session){"EHLO": func(s *Session) { s.Hello("x", false) },
		"RSET": (*Session).Reset, "STARTTLS": (*Session).Secured, "QUIT": (*Session).Quit} {
		s := at(t, Recipients)
		if e := s.Envelope(); e.From != "a@b.test" || !slices.Equal(e.Params, []string{"SIZE=3"}) ||
			!slices.Equal(e.Rcpts, []string{"c@d.test"}) || e.User != "" {
			t.Errorf("envelope %+v", e)
		}
		forget(s)
		if e := s.Envelope(); e.From != "" || e.Params != nil || e.Rcpts != nil {
			t.Errorf("%s leaves %+v", name, e)
		}
	}
	s := at(t, Body)
	if e := s.Envelope(); e.From != "a@b.test" {
		t.Errorf("envelope %+v in the body", e)
	}
	s.End()
	if e := s.Envelope(); e.From != "" || s.Stage() != Idle {
		t.Errorf("the end leaves %+v at %q", e, s.Stage())
	}
}

func TestAgain(t *testing.T) {
	s := at(t, Idle)
	s.LoggedIn(seam.Login{User: "anna", AuthUser: "anna", Password: "pw"})
	s.From(smtpwire.Path{Addr: "a@b.test", Params: []string{"SIZE=3", "BODY=8BITMIME"}})
	for _, a := range []string{"one@d.test", "two@d.test", "one@d.test"} {
		s.To(smtpwire.Path{Addr: a, Params: []string{"NOTIFY=NEVER"}})
	}
	s.Begin()
	say := func() (out []string) {
		for _, st := range s.Again() {
			switch st.On {
			case Hello:
				out = append(out, "EHLO "+st.Client.Helo)
			case Auth:
				out = append(out, "AUTH "+st.Login.User)
			default:
				out = append(out, st.Line)
			}
		}
		return out
	}
	want := []string{"EHLO client.test", "AUTH anna", "MAIL FROM:<a@b.test> SIZE=3 BODY=8BITMIME",
		"RCPT TO:<one@d.test> NOTIFY=NEVER", "RCPT TO:<two@d.test> NOTIFY=NEVER", "RCPT TO:<one@d.test> NOTIFY=NEVER"}
	if got := say(); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	before := s.Envelope()
	s.Only([]string{"two@d.test"})
	if got := say(); !slices.Equal(got, append(want[:3:3], want[4])) {
		t.Errorf("those that are left: %q", got)
	}
	if !slices.Equal(before.Rcpts, []string{"one@d.test", "two@d.test", "one@d.test"}) {
		t.Errorf("an envelope that was handed out changed: %q", before.Rcpts)
	}
	s.End()
	if got := say(); !slices.Equal(got, want[:2]) {
		t.Errorf("after the message: %q", got)
	}
	if e := s.Envelope(); e.User != "anna" {
		t.Errorf("the user is forgotten: %+v", e)
	}
}

func TestMistakes(t *testing.T) {
	s := New(seam.Client{})
	for i := range 4 {
		if over := s.Denied(); over != (i == 3) {
			t.Errorf("refused login %d: %v", i+1, over)
		}
	}
	for i := 4; i < 21; i++ {
		if over := s.Mistake(); over != (i == 20) {
			t.Errorf("mistake %d: %v", i+1, over)
		}
	}
}

func TestDiagram(t *testing.T) {
	b, err := os.ReadFile("../../docs/smtpsession.mmd")
	if err != nil || string(b) != Diagram() {
		t.Errorf("docs/smtpsession.mmd is not the table's:\n%s(%v)", Diagram(), err)
	}
}
