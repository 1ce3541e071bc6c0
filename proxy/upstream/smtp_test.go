package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"understudy/proxy/seam"
)

const ehlo = "250-mail\r\n250-XCLIENT NAME ADDR PORT HELO\r\n250 AUTH PLAIN LOGIN\r\n"

// The client is told before a word of its envelope, and the session begins anew.
func TestXClientBeforeEnvelope(t *testing.T) {
	for _, c := range []struct {
		name   string
		x      bool
		addr   string
		script []turn
	}{
		{"IPv4", true, "192.0.2.7:4711", []turn{
			{"", "220 hi\r\n"}, {"EHLO client.test", ehlo},
			{"XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7 PORT=4711", "220 again\r\n"},
			{"EHLO client.test", ehlo}, {"MAIL FROM:<a@b.test>", "250 ok\r\n"}}},
		{"IPv6", true, "[2001:db8::7]:4711", []turn{
			{"", "220 hi\r\n"}, {"EHLO client.test", "250-mail\r\n250 XCLIENT ADDR\r\n"},
			{"XCLIENT ADDR=IPV6:2001:db8::7", "220 again\r\n"},
			{"EHLO client.test", ehlo}, {"MAIL FROM:<a@b.test>", "250 ok\r\n"}}},
		{"not set", false, "192.0.2.7:4711", []turn{
			{"", "220 hi\r\n"}, {"EHLO client.test", ehlo}, {"MAIL FROM:<a@b.test>", "250 ok\r\n"}}},
		{"no client", true, "", []turn{
			{"", "220 hi\r\n"}, {"EHLO client.test", ehlo}, {"MAIL FROM:<a@b.test>", "250 ok\r\n"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, rest := play(t, c.script)
			who := client()
			who.Addr = netip.AddrPort{}
			if c.addr != "" {
				who.Addr = netip.MustParseAddrPort(c.addr)
			}
			u, err := Target{SMTP: e, XClient: c.x}.DialSMTP(t.Context(), who)
			if err != nil {
				t.Fatal(err)
			}
			if hi, err := u.Greeting(); err != nil || hi.Code != 220 {
				t.Fatal(hi, err)
			}
			if r, err := u.Hello(who); err != nil || !r.OK() || r.Lines[0] != "mail" {
				t.Errorf("EHLO: %s, %v", r, err)
			}
			if r, err := u.Command("MAIL", "MAIL FROM:<a@b.test>"); err != nil || !r.OK() {
				t.Errorf("MAIL: %s, %v", r, err)
			}
			if got := rest(); got != "" {
				t.Errorf("then said %q", got)
			}
		})
	}
}

// A refused XCLIENT is the answer to EHLO, which is not said again.
func TestXClientRefused(t *testing.T) {
	e, rest := play(t, []turn{{"", "220 hi\r\n"}, {"EHLO client.test", ehlo},
		{"XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.7 PORT=4711", "550 not you\r\n"}})
	u, err := Target{SMTP: e, XClient: true}.DialSMTP(t.Context(), client())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = u.Greeting()
	if r, err := u.Hello(client()); err != nil || r.Code != 550 {
		t.Errorf("%s, %v", r, err)
	}
	if got := rest(); got != "" {
		t.Errorf("then said %q", got)
	}
}

func TestAuth(t *testing.T) {
	own := seam.Login{User: "anna", AuthUser: "anna", Password: "pw"}
	for _, c := range []struct {
		name   string
		l      seam.Login
		script []turn
		code   int
	}{
		{"PLAIN", own, []turn{{"EHLO client.test", ehlo}, {"AUTH PLAIN AGFubmEAcHc=", "235 in\r\n"}}, 235},
		{"LOGIN only", own, []turn{{"EHLO client.test", "250-mail\r\n250 AUTH LOGIN\r\n"},
			{"AUTH LOGIN", "334 VXNlcm5hbWU6\r\n"}, {"YW5uYQ==", "334 UGFzc3dvcmQ6\r\n"}, {"cHc=", "235 in\r\n"}}, 235},
		{"LOGIN refused at the name", own, []turn{{"EHLO client.test", "250-mail\r\n250 AUTH LOGIN\r\n"},
			{"AUTH LOGIN", "334 VXNlcm5hbWU6\r\n"}, {"YW5uYQ==", "535 no\r\n"}}, 535},
		{"refused token", seam.Login{User: "anna", AuthUser: "anna", Mechanism: "XOAUTH2", Response: []byte("t")},
			[]turn{
				{"EHLO client.test", ehlo}, {"AUTH XOAUTH2 dA==", "334 eyJ9\r\n"}, {emptyLine, "535 no\r\n"}}, 535},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, rest := play(t, append([]turn{{"", "220 hi\r\n"}}, c.script...))
			u, err := Target{SMTP: e}.DialSMTP(t.Context(), client())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = u.Greeting()
			if _, err := u.Hello(client()); err != nil {
				t.Fatal(err)
			}
			if r, err := u.Auth(c.l); err != nil || r.Code != c.code {
				t.Errorf("%s, %v", r, err)
			}
			if got := rest(); got != "" {
				t.Errorf("then said %q", got)
			}
		})
	}
}

func TestData(t *testing.T) {
	e, rest := play(t, []turn{
		{"", "220 hi\r\n"},
		{"DATA", "554 nobody\r\n"},
		{"DATA", "354 go\r\n"},
		{"one", ""}, {"..dot", ""}, {".", "250 2.0.0 queued\r\n"},
	})
	u, err := Target{SMTP: e}.DialSMTP(t.Context(), client())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = u.Greeting()
	if w, r, err := u.Data(); w != nil || r.Code != 554 || err != nil {
		t.Errorf("refused: %v %s %v", w, r, err)
	}
	w, r, err := u.Data()
	if w == nil || r.Code != 354 || err != nil {
		t.Fatalf("%v %s %v", w, r, err)
	}
	if _, err := io.WriteString(w, "one\r\n.dot\r\n"); err != nil {
		t.Fatal(err)
	}
	if r, err := u.Finish(); err != nil || r.Code != 250 {
		t.Errorf("%s, %v", r, err)
	}
	if got := rest(); got != "" {
		t.Errorf("then said %q", got)
	}
}

// A submission client goes to the submission port; under STARTTLS the greeting is
// the one from before TLS, and nothing is said in the clear but for the box itself.
func TestSubmissionOverStartTLS(t *testing.T) {
	near, far := net.Pipe()
	cert := certificate(t)
	heard := make(chan string, 1)
	go func() {
		var all strings.Builder
		br := bufio.NewReader(far)
		_, _ = io.WriteString(far, "220 hi\r\n")
		for range 2 {
			line, _ := br.ReadString('\n')
			all.WriteString(line)
			_, _ = io.WriteString(far, "250 go\r\n")
		}
		s := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{cert}})
		line, _ := bufio.NewReader(s).ReadString('\n')
		all.WriteString("TLS: " + line)
		_, _ = io.WriteString(s, "250 mail\r\n")
		heard <- all.String()
		_, _ = io.Copy(io.Discard, s)
	}()
	who := client()
	who.Submission = true
	sub := Endpoint{Security: StartTLS, TLS: &tls.Config{InsecureSkipVerify: true},
		Via: func(context.Context, seam.Client, string) (net.Conn, error) { return near, nil }}
	u, err := Target{Submission: sub}.DialSMTP(t.Context(), who)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if hi, err := u.Greeting(); err != nil || hi.String() != "220 hi" {
		t.Errorf("%s, %v", hi, err)
	}
	if r, err := u.Hello(who); err != nil || !r.OK() {
		t.Errorf("%s, %v", r, err)
	}
	if got := <-heard; got != "EHLO understudy.invalid\r\nSTARTTLS\r\nTLS: EHLO client.test\r\n" {
		t.Errorf("said %q", got)
	}
}
