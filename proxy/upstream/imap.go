package upstream

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"understudy/proxy/seam"
	"understudy/snoop/imapwire"
	"understudy/snoop/smtpwire"
)

// AnswerTimeout is how long a step of a login may take.
const AnswerTimeout = 30 * time.Second

// maxAnswer bounds a line of an answer after login: the UIDs of a large mailbox.
const maxAnswer = 16 << 20

// IMAP is a connection to an IMAP server, whose answers are read line by line.
type IMAP struct {
	net.Conn
	R    *bufio.Reader // of Conn
	Text string        // of the greeting
	Caps seam.Caps     // as told last; nil after a login that told none
}

// NewIMAP takes a connection that is logged in, to a server with these capabilities.
func NewIMAP(conn net.Conn, caps seam.Caps) *IMAP {
	return &IMAP{Conn: conn, R: bufio.NewReaderSize(conn, 1<<10), Caps: caps}
}

// DialIMAP connects, and reads the greeting and the capabilities, under TLS where
// that is asked for.
func (e Endpoint) DialIMAP(ctx context.Context, c seam.Client) (*IMAP, error) {
	conn, err := e.dial(ctx, c)
	if err != nil {
		return nil, err
	}
	ic := &IMAP{Conn: conn, R: bufio.NewReaderSize(conn, 4<<10)}
	if dl, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(dl)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := ic.greet(ctx, e); err != nil {
		_ = ic.Close()
		return nil, fmt.Errorf("production at %s: %w", e.Addr, err)
	}
	return ic, nil
}

// LoginIMAP connects and logs in as a client. The connection may come with an
// error, and is then the caller's to close.
func (t Target) LoginIMAP(ctx context.Context, who seam.Client, l seam.Login) (*IMAP, imapwire.Response, error) {
	dctx, cancel := context.WithTimeout(ctx, t.timeout())
	defer cancel()
	up, err := t.IMAP.DialIMAP(dctx, who)
	if err != nil {
		return nil, imapwire.Response{}, err
	}
	id := ""
	if t.ClientID {
		id = originID(who)
	}
	_ = up.SetDeadline(time.Now().Add(AnswerTimeout))
	defer context.AfterFunc(ctx, func() { _ = up.Close() })()
	r, err := up.login(l, id)
	return up, r, err
}

func (ic *IMAP) greet(ctx context.Context, e Endpoint) error {
	r, err := ic.response()
	if err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if r.Tag != "*" || r.Name != "OK" {
		return fmt.Errorf("greeting: %s %s", r.Name, r.Rest)
	}
	ic.Text = string(r.Rest)
	ic.note(r)
	if e.Security == StartTLS {
		if _, err := ic.Command("U0", "STARTTLS"); err != nil {
			return fmt.Errorf("STARTTLS: %w", err)
		}
		t, err := e.secure(ctx, ic.Conn)
		if err != nil {
			return err
		}
		// Whatever came in the clear behind the answer is dropped.
		ic.Conn, ic.R, ic.Caps = t, bufio.NewReaderSize(t, 4<<10), nil
	}
	if ic.Caps == nil {
		if _, err := ic.Command("U1", "CAPABILITY"); err != nil {
			return fmt.Errorf("CAPABILITY: %w", err)
		}
	}
	return nil
}

func (ic *IMAP) note(r imapwire.Response) {
	if r.Code == "CAPABILITY" {
		ic.Caps = seam.Caps(strings.Fields(string(r.Arg)))
	}
	if r.Name == "CAPABILITY" {
		ic.Caps = seam.Caps(strings.Fields(string(r.Rest)))
	}
}

// response reads one line, which before login holds no literal.
func (ic *IMAP) response() (imapwire.Response, error) {
	line, err := smtpwire.ReadLine(ic.R, 16<<10)
	if err != nil {
		return imapwire.Response{}, err
	}
	r := imapwire.ParseResponse([]byte(line))
	return r, nil
}

// Command sends a line and reads up to its tagged answer.
func (ic *IMAP) Command(tag, text string) (imapwire.Response, error) {
	if _, err := fmt.Fprintf(ic.Conn, "%s %s\r\n", tag, text); err != nil {
		return imapwire.Response{}, err
	}
	r, err := ic.answer(tag)
	if err == nil && r.Name != "OK" {
		err = fmt.Errorf("%s %s", r.Name, r.Rest)
	}
	return r, err
}

// ReadLine reads a line of an answer.
func (ic *IMAP) ReadLine() (string, error) { return smtpwire.ReadLine(ic.R, maxAnswer) }

// Ask sends a command and reads its answers, none of which may hold a literal: on gets
// the untagged ones, the tagged one is returned.
func (ic *IMAP) Ask(tag, text string, on func(imapwire.Response)) (imapwire.Response, error) {
	if _, err := fmt.Fprintf(ic.Conn, "%s %s\r\n", tag, text); err != nil {
		return imapwire.Response{}, err
	}
	for {
		line, err := ic.ReadLine()
		if err != nil {
			return imapwire.Response{}, err
		}
		r := imapwire.ParseResponse([]byte(line))
		if r.Tag == tag {
			return r, nil
		}
		if r.Name == "BYE" {
			return r, fmt.Errorf("BYE %s", r.Rest)
		}
		on(r)
	}
}

func (ic *IMAP) answer(tag string) (imapwire.Response, error) {
	for {
		r, err := ic.response()
		if err != nil {
			return r, err
		}
		ic.note(r)
		switch {
		case r.Tag == tag:
			return r, nil
		case r.Tag == "+":
			// A failed token exchange asks for an empty answer.
			if _, err := ic.Conn.Write([]byte("\r\n")); err != nil {
				return r, err
			}
		case r.Name == "BYE":
			return r, fmt.Errorf("BYE %s", r.Rest)
		}
	}
}

// login authenticates; the answer is production's. id is an ID command that
// goes along, or "".
func (ic *IMAP) login(l seam.Login, id string) (imapwire.Response, error) {
	mech, resp := l.SASL()
	enc := base64.StdEncoding.EncodeToString(resp)
	if !ic.Caps.Has("ID") {
		id = ""
	}
	if !ic.Caps.Has("SASL-IR") {
		if id != "" {
			caps := ic.Caps
			if _, err := ic.Command("U3", id); err != nil {
				return imapwire.Response{}, err
			}
			ic.Caps = caps
		}
		return ic.loginPlain(l, mech, enc)
	}
	if id != "" {
		id = "U3 " + id + "\r\n"
	}
	if _, err := fmt.Fprintf(ic.Conn, "%sU2 AUTHENTICATE %s %s\r\n", id, mech, enc); err != nil {
		return imapwire.Response{}, err
	}
	if id != "" {
		if r, err := ic.answer("U3"); err != nil || r.Name != "OK" {
			return r, errors.Join(err, fmt.Errorf("ID: %s %s", r.Name, r.Rest))
		}
	}
	ic.Caps = nil
	return ic.answer("U2")
}

// loginPlain is for servers without SASL-IR.
func (ic *IMAP) loginPlain(l seam.Login, mech, enc string) (imapwire.Response, error) {
	if !ic.Caps.Has("AUTH="+mech) && mech == "PLAIN" && l.User == l.AuthUser {
		ic.Caps = nil
		if _, err := fmt.Fprintf(ic.Conn, "U2 LOGIN %s %s\r\n", imapwire.AString(l.User),
			imapwire.AString(l.Password)); err != nil {
			return imapwire.Response{}, err
		}
		return ic.answer("U2")
	}
	ic.Caps = nil
	if _, err := fmt.Fprintf(ic.Conn, "U2 AUTHENTICATE %s\r\n", mech); err != nil {
		return imapwire.Response{}, err
	}
	r, err := ic.response()
	if err != nil || r.Tag != "+" {
		return r, err
	}
	if _, err := fmt.Fprintf(ic.Conn, "%s\r\n", enc); err != nil {
		return r, err
	}
	return ic.answer("U2")
}

// originID is the ID command that tells Dovecot the client's address.
func originID(c seam.Client) string {
	if !c.Addr.IsValid() {
		return ""
	}
	return fmt.Sprintf(`ID ("x-originating-ip" "%s" "x-originating-port" "%d")`, c.Addr.Addr().WithZone(""),
		c.Addr.Port())
}
