package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/proxy/seam"
	"understudy/snoop/imapwire"
)

// The login that the client gave is said in the one form that the server takes.
func TestLoginIMAP(t *testing.T) {
	own := seam.Login{User: "anna", AuthUser: "anna", Password: "p w"}
	token := seam.Login{User: "anna", AuthUser: "anna", Mechanism: "XOAUTH2", Response: []byte("user=anna\x01\x01")}
	id := `ID ("x-originating-ip" "192.0.2.7" "x-originating-port" "4711")`
	for _, c := range []struct {
		name     string
		clientID bool
		l        seam.Login
		script   []turn
		ok       bool
		caps     seam.Caps
	}{
		{"SASL-IR", false, own, []turn{
			{"", "* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi\r\n"},
			{"U2 AUTHENTICATE PLAIN AGFubmEAcCB3", "U2 OK [CAPABILITY IMAP4rev1 MOVE] in\r\n"},
		}, true, seam.Caps{"IMAP4rev1", "MOVE"}},
		{"capabilities are asked for", false, own, []turn{
			{"", "* OK hi\r\n"},
			{"U1 CAPABILITY", "* CAPABILITY IMAP4rev1 SASL-IR\r\nU1 OK\r\n"},
			{"U2 AUTHENTICATE PLAIN AGFubmEAcCB3", "U2 OK in\r\n"},
		}, true, nil},
		{"without SASL-IR", false, own, []turn{
			{"", "* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi\r\n"},
			{"U2 AUTHENTICATE PLAIN", "+ \r\n"},
			{"AGFubmEAcCB3", "U2 OK in\r\n"},
		}, true, nil},
		{"LOGIN only", false, own, []turn{
			{"", "* OK [CAPABILITY IMAP4rev1] hi\r\n"},
			{`U2 LOGIN anna "p w"`, "* CAPABILITY IMAP4rev1 IDLE\r\nU2 OK in\r\n"},
		}, true, seam.Caps{"IMAP4rev1", "IDLE"}},
		{"a master never by LOGIN", false, seam.Login{User: "anna", AuthUser: "m", Password: "x"}, []turn{
			{"", "* OK [CAPABILITY IMAP4rev1] hi\r\n"},
			{"U2 AUTHENTICATE PLAIN", "U2 NO no such mechanism\r\n"},
		}, false, nil},
		{"the client's address goes along", true, own, []turn{
			{"", "* OK [CAPABILITY IMAP4rev1 SASL-IR ID] hi\r\n"},
			{"U3 " + id, ""},
			{"U2 AUTHENTICATE PLAIN AGFubmEAcCB3", "* ID NIL\r\nU3 OK\r\nU2 OK in\r\n"},
		}, true, nil},
		{"the client's address without SASL-IR", true, own, []turn{
			{"", "* OK [CAPABILITY IMAP4rev1 ID AUTH=PLAIN] hi\r\n"},
			{"U3 " + id, "U3 OK [CAPABILITY IMAP4rev1] done\r\n"},
			{"U2 AUTHENTICATE PLAIN", "+ \r\n"},
			{"AGFubmEAcCB3", "U2 OK in\r\n"},
		}, true, nil},
		{"no ID where none is offered", true, own, []turn{
			{"", "* OK [CAPABILITY IMAP4rev1 SASL-IR] hi\r\n"},
			{"U2 AUTHENTICATE PLAIN AGFubmEAcCB3", "U2 OK in\r\n"},
		}, true, nil},
		// A refusal is a challenge first, which asks for an empty answer (RFC 7628
		// section 3.2.3).
		{"a refused token", false, token, []turn{
			{"", "* OK [CAPABILITY IMAP4rev1 SASL-IR] hi\r\n"},
			{"U2 AUTHENTICATE XOAUTH2 dXNlcj1hbm5hAQE=", "+ eyJzIjoiNDAxIn0=\r\n"},
			{emptyLine, "U2 NO [AUTHENTICATIONFAILED] no\r\n"},
		}, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, rest := play(t, c.script)
			up, r, err := Target{IMAP: e, ClientID: c.clientID}.LoginIMAP(t.Context(), client(), c.l)
			if err != nil || (r.Name == "OK") != c.ok || c.ok && !slices.Equal(up.Caps, c.caps) {
				t.Errorf("%s %s %v, %q", r.Name, r.Rest, err, up.Caps)
			}
			if got := rest(); got != "" {
				t.Errorf("then said %q", got)
			}
		})
	}
}

func TestDialIMAPRefuses(t *testing.T) {
	for name, script := range map[string][]turn{
		"BYE":           {{"", "* BYE full\r\n"}},
		"PREAUTH":       {{"", "* PREAUTH you are root\r\n"}},
		"another's tag": {{"", "a OK hi\r\n"}},
		"a BYE later":   {{"", "* OK hi\r\n"}, {"U1 CAPABILITY", "* BYE full\r\n"}},
		"a refusal":     {{"", "* OK hi\r\n"}, {"U1 CAPABILITY", "U1 NO\r\n"}},
	} {
		e, rest := play(t, script)
		if ic, err := e.DialIMAP(t.Context(), client()); err == nil || ic != nil {
			t.Errorf("%s: %v, %v", name, ic, err)
		}
		rest()
	}
}

// A server that accepts and says nothing is given up after Timeout.
func TestSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer func() { _ = far.Close() }()
		e := Endpoint{Via: func(context.Context, seam.Client, string) (net.Conn, error) { return near, nil }}
		begin := time.Now()
		up, _, err := Target{IMAP: e, Timeout: 7 * time.Second}.LoginIMAP(t.Context(), client(), seam.Login{})
		if err == nil || up != nil || time.Since(begin) != 7*time.Second {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

// What comes in the clear behind the answer to STARTTLS is not read as the server's
// (RFC 9051 section 6.2.1).
func TestStartTLSDropsInjection(t *testing.T) {
	near, far := net.Pipe()
	e := Endpoint{Security: StartTLS, TLS: &tls.Config{InsecureSkipVerify: true},
		Via: func(context.Context, seam.Client, string) (net.Conn, error) { return near, nil }}
	cert := certificate(t)
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			br := bufio.NewReader(far)
			_, _ = io.WriteString(far, "* OK [CAPABILITY IMAP4rev1 STARTTLS] hi\r\n")
			if line, _ := br.ReadString('\n'); line != "U0 STARTTLS\r\n" {
				return errors.New("heard " + line)
			}
			_, _ = io.WriteString(far, "U0 OK go\r\n* CAPABILITY IMAP4rev1 INJECTED\r\n")
			s := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{cert}})
			if err := s.Handshake(); err != nil {
				return err
			}
			if line, _ := bufio.NewReader(s).ReadString('\n'); line != "U1 CAPABILITY\r\n" {
				return errors.New("heard " + line)
			}
			_, err := io.WriteString(s, "* CAPABILITY IMAP4rev1 SECURE\r\nU1 OK\r\n")
			return err
		}()
	}()
	ic, err := e.DialIMAP(t.Context(), client())
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || !ic.Caps.Has("SECURE") || ic.Caps.Has("INJECTED") {
		t.Errorf("%q, %v", ic.Caps, err)
	}
}

func TestAsk(t *testing.T) {
	e, rest := play(t, []turn{
		{"", "* OK [CAPABILITY IMAP4rev1] hi\r\n"},
		{"A1 SELECT b", "* 3 EXISTS\r\n* OK [UIDNEXT 9] x\r\nA1 OK [READ-WRITE] done\r\n"},
		{"A2 NOOP", "* BYE shutting down\r\n"},
	})
	ic, err := e.DialIMAP(t.Context(), client())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	r, err := ic.Ask("A1", "SELECT b", func(r imapwire.Response) { got = append(got, r.Name+" "+r.Code) })
	if err != nil || r.Code != "READ-WRITE" || strings.Join(got, ",") != "EXISTS ,OK UIDNEXT" {
		t.Errorf("%+v %v %q", r, err, got)
	}
	if _, err := ic.Ask("A2", "NOOP", func(imapwire.Response) {}); err == nil {
		t.Error("a BYE is no answer")
	}
	rest()
}
