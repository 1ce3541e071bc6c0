package upstream

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"understudy/proxy/seam"
	"understudy/snoop/smtpwire"
)

// SMTP is one SMTP session with production.
type SMTP struct {
	t    Target
	e    Endpoint
	conn net.Conn
	br   *bufio.Reader
	w    *bufio.Writer
	dots *smtpwire.DotWriter
	hi   smtpwire.Reply
	ext  []string
}

// DialSMTP connects for a client, under TLS where that is asked for.
func (t Target) DialSMTP(ctx context.Context, c seam.Client) (*SMTP, error) {
	e := t.SMTP
	if c.Submission {
		e = t.Submission
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout())
	defer cancel()
	conn, err := e.dial(ctx, c)
	if err != nil {
		return nil, err
	}
	u := &SMTP{t: t, e: e}
	u.use(conn)
	if e.Security != StartTLS {
		return u, nil
	}
	if err := u.startTLS(ctx); err != nil {
		u.Close()
		return nil, fmt.Errorf("production at %s: %w", e.Addr, err)
	}
	return u, nil
}

func (u *SMTP) use(conn net.Conn) {
	u.conn = conn
	u.br = bufio.NewReaderSize(conn, 4<<10)
	u.w = bufio.NewWriterSize(conn, 16<<10)
}

func (u *SMTP) startTLS(ctx context.Context) error {
	hi, err := u.read()
	if err != nil || !hi.OK() {
		return fmt.Errorf("greeting: %s: %w", hi, err)
	}
	u.hi = hi
	for _, cmd := range []string{"EHLO understudy.invalid", "STARTTLS"} {
		r, err := u.do(cmd)
		if err == nil && !r.OK() {
			err = fmt.Errorf("%s", r)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", cmd, err)
		}
	}
	conn, err := u.e.secure(ctx, u.conn)
	if err != nil {
		return err
	}
	u.use(conn)
	return nil
}

// replyTimeout is the longest that a reply is waited for: end-of-data may take
// ten minutes (RFC 5321 section 4.5.3.2.6).
const replyTimeout = 10 * time.Minute

// writeTimeout is the longest that a line may take to be sent.
const writeTimeout = 5 * time.Minute

func (u *SMTP) read() (smtpwire.Reply, error) {
	_ = u.conn.SetReadDeadline(time.Now().Add(replyTimeout))
	return smtpwire.ReadReply(u.br)
}

func (u *SMTP) do(line string) (smtpwire.Reply, error) {
	_ = u.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := u.w.WriteString(line + "\r\n"); err != nil {
		return smtpwire.Reply{}, err
	}
	if err := u.w.Flush(); err != nil {
		return smtpwire.Reply{}, err
	}
	return u.read()
}

// Greeting implements proxy/smtp.Upstream.
func (u *SMTP) Greeting() (smtpwire.Reply, error) {
	if u.hi.Code != 0 {
		return u.hi, nil
	}
	return u.read()
}

// Hello implements proxy/smtp.Upstream. Where production offers XCLIENT it is told
// the client first, which begins the session anew.
func (u *SMTP) Hello(c seam.Client) (smtpwire.Reply, error) {
	verb := "HELO "
	if c.ESMTP {
		verb = "EHLO "
	}
	r, err := u.do(verb + c.Helo)
	if err != nil || !r.OK() {
		return r, err
	}
	u.ext = nil
	for _, l := range r.Lines[1:] {
		u.ext = append(u.ext, strings.ToUpper(l))
	}
	attrs := u.xclient(c)
	if attrs == "" {
		return r, nil
	}
	if x, err := u.do("XCLIENT " + attrs); err != nil || !x.OK() {
		return x, err
	}
	return u.do(verb + c.Helo)
}

func (u *SMTP) xclient(c seam.Client) string {
	if !u.t.XClient {
		return ""
	}
	ap := c.Addr
	if !ap.IsValid() {
		return ""
	}
	addr := ap.Addr().WithZone("").String()
	if ap.Addr().Is6() {
		addr = "IPV6:" + addr
	}
	for _, l := range u.ext {
		if !strings.HasPrefix(l, "XCLIENT") {
			continue
		}
		out := ""
		for _, a := range strings.Fields(l)[1:] {
			switch a {
			case "ADDR":
				out += " ADDR=" + addr
			case "PORT":
				out += fmt.Sprintf(" PORT=%d", ap.Port())
			case "NAME":
				out += " NAME=[UNAVAILABLE]"
			}
		}
		return strings.TrimSpace(out)
	}
	return ""
}

// Auth implements proxy/smtp.Upstream.
func (u *SMTP) Auth(l seam.Login) (smtpwire.Reply, error) {
	mech, resp := l.SASL()
	for _, x := range u.ext {
		if f := seam.Caps(strings.Fields(x)); f[0] == "AUTH" && !f[1:].Has(mech) && f[1:].Has("LOGIN") && !l.Token() {
			return u.authLogin(l)
		}
	}
	r, err := u.do("AUTH " + mech + " " + encode(resp))
	if err == nil && r.Code == 334 {
		r, err = u.do("")
	}
	return r, err
}

func (u *SMTP) authLogin(l seam.Login) (smtpwire.Reply, error) {
	r, err := u.do("AUTH LOGIN")
	for _, v := range []string{l.AuthUser, l.Password} {
		if err != nil || r.Code != 334 {
			return r, err
		}
		r, err = u.do(encode([]byte(v)))
	}
	return r, err
}

// Command implements proxy/smtp.Upstream.
func (u *SMTP) Command(_, line string) (smtpwire.Reply, error) { return u.do(line) }

// Data implements proxy/smtp.Upstream.
func (u *SMTP) Data() (io.Writer, smtpwire.Reply, error) {
	r, err := u.do("DATA")
	if err != nil || r.Code != 354 {
		return nil, r, err
	}
	u.dots = &smtpwire.DotWriter{W: u.w}
	return u.dots, r, nil
}

// Finish implements proxy/smtp.Upstream.
func (u *SMTP) Finish() (smtpwire.Reply, error) {
	if err := u.dots.Close(); err != nil {
		return smtpwire.Reply{}, err
	}
	return u.read()
}

// Close implements proxy/smtp.Upstream.
func (u *SMTP) Close() { _ = u.conn.Close() }

func encode(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
