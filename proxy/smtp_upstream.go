package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"understudy/snoop/smtpwire"
)

// smtpUp is one SMTP session with production.
type smtpUp struct {
	t    Target
	e    Endpoint
	conn net.Conn
	br   *bufio.Reader
	w    *bufio.Writer
	dots *smtpwire.DotWriter
	hi   smtpwire.Reply
	ext  []string
}

func (t Target) dialSMTP(ctx context.Context, c Client) (SMTPUpstream, error) {
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
	u := &smtpUp{t: t, e: e}
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

func (u *smtpUp) use(conn net.Conn) {
	u.conn = conn
	u.br = bufio.NewReaderSize(conn, 4<<10)
	u.w = bufio.NewWriterSize(conn, 16<<10)
}

func (u *smtpUp) startTLS(ctx context.Context) error {
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

func (u *smtpUp) read() (smtpwire.Reply, error) {
	_ = u.conn.SetReadDeadline(time.Now().Add(replyTimeout))
	return smtpwire.ReadReply(u.br)
}

func (u *smtpUp) do(line string) (smtpwire.Reply, error) {
	_ = u.conn.SetWriteDeadline(time.Now().Add(smtpTimeout))
	if _, err := u.w.WriteString(line + "\r\n"); err != nil {
		return smtpwire.Reply{}, err
	}
	if err := u.w.Flush(); err != nil {
		return smtpwire.Reply{}, err
	}
	return u.read()
}

// Greeting implements SMTPUpstream.
func (u *smtpUp) Greeting() (smtpwire.Reply, error) {
	if u.hi.Code != 0 {
		return u.hi, nil
	}
	return u.read()
}

// Hello implements SMTPUpstream. Where production offers XCLIENT it is told
// the client first, which begins the session anew.
func (u *smtpUp) Hello(c Client) (smtpwire.Reply, error) {
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

func (u *smtpUp) xclient(c Client) string {
	if !u.t.XClient {
		return ""
	}
	ap, ok := addrPort(c.Addr)
	if !ok {
		return ""
	}
	addr := ap.Addr().String()
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

// Auth implements SMTPUpstream.
func (u *smtpUp) Auth(l Login) (smtpwire.Reply, error) {
	mech, resp := "PLAIN", plainResponse(l)
	if l.Token() {
		mech, resp = l.Mechanism, l.Response
	}
	for _, x := range u.ext {
		if f := strings.Fields(x); f[0] == "AUTH" && !hasWord(f[1:], mech) && hasWord(f[1:], "LOGIN") && !l.Token() {
			return u.authLogin(l)
		}
	}
	r, err := u.do("AUTH " + mech + " " + b64(resp))
	if err == nil && r.Code == 334 {
		r, err = u.do("")
	}
	return r, err
}

func (u *smtpUp) authLogin(l Login) (smtpwire.Reply, error) {
	r, err := u.do("AUTH LOGIN")
	for _, v := range []string{l.AuthUser, l.Password} {
		if err != nil || r.Code != 334 {
			return r, err
		}
		r, err = u.do(b64([]byte(v)))
	}
	return r, err
}

// Command implements SMTPUpstream.
func (u *smtpUp) Command(_, line string) (smtpwire.Reply, error) { return u.do(line) }

// Data implements SMTPUpstream.
func (u *smtpUp) Data() (io.Writer, error) {
	r, err := u.do("DATA")
	if err != nil {
		return nil, err
	}
	if r.Code != 354 {
		return nil, Refused(r)
	}
	u.dots = &smtpwire.DotWriter{W: u.w}
	return u.dots, nil
}

// Finish implements SMTPUpstream.
func (u *smtpUp) Finish() (smtpwire.Reply, error) {
	if err := u.dots.Close(); err != nil {
		return smtpwire.Reply{}, err
	}
	return u.read()
}

// Close implements SMTPUpstream.
func (u *smtpUp) Close() { _ = u.conn.Close() }
