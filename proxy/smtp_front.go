package proxy

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
	"understudy/snoop/smtpwire"
)

// smtpSession reads one client's commands strictly, has the upstream answer
// them one by one, and keeps the envelope and the message for the Tap.
type smtpSession struct {
	p      *Proxy
	conn   net.Conn
	br     *bufio.Reader
	w      *bufio.Writer
	client Client
	up     SMTPUpstream
	lease  Lease

	mail row.Envelope
	inTx bool
	helo bool
	bad  int
	quit bool
}

const (
	smtpTimeout = 5 * time.Minute // RFC 5321 section 4.5.3.2
	bodyTimeout = 30 * time.Minute
	maxBadSMTP  = 20
)

func (p *Proxy) serveSMTP(ctx context.Context, conn net.Conn, kind Kind) {
	s := &smtpSession{p: p, conn: conn}
	s.client = Client{Addr: conn.RemoteAddr(), Local: conn.LocalAddr(), Submission: kind != SMTP, TLS: kind == Submissions}
	s.buffers()
	if err := s.open(ctx); err != nil {
		// No 4xx greeting: a peer tries again all the sooner after a drop.
		p.opt.Log.Debug("SMTP session cannot begin", "client", s.client.Addr, "err", err)
		return
	}
	defer func() { s.up.Close(); s.lease.Release() }()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-s.lease.Revoked:
			_ = conn.SetReadDeadline(time.Unix(1, 0))
			s.up.Close()
		case <-stop:
		}
	}()
	for !s.quit {
		if s.br.Buffered() == 0 && s.w.Flush() != nil {
			return
		}
		if err := s.step(ctx); err != nil {
			s.fail(err)
			return
		}
	}
	_ = s.w.Flush()
}

// fail ends a session; what is not answered stays unanswered.
func (s *smtpSession) fail(err error) {
	if s.revoked() {
		return
	}
	var lost errUpstream
	switch {
	case errors.As(err, &lost):
		s.p.opt.Gate.Trouble(err)
	case errors.Is(err, smtpwire.ErrLineTooLong):
		s.reply(smtpwire.NewReply(500, "5.5.2 Line too long"))
		_ = s.w.Flush()
	case errors.Is(err, errEnd), errors.Is(err, io.EOF):
		_ = s.w.Flush()
	}
	s.p.opt.Log.Debug("SMTP session ended", "client", s.client.Addr, "err", err)
}

// revoked reports whether the session has to leave its side. It is asked after
// a deadline was set, which the revocation may have set before.
func (s *smtpSession) revoked() bool {
	select {
	case <-s.lease.Revoked:
		return true
	default:
		return false
	}
}

// errUpstream marks errors of the upstream.
type errUpstream struct{ error }

func (e errUpstream) Unwrap() error { return e.error }

func (s *smtpSession) buffers() {
	s.br = bufio.NewReaderSize(s.conn, 8<<10)
	s.w = bufio.NewWriterSize(s.conn, 4<<10)
}

// open enters a side and greets. Production that cannot be reached is
// reported, and the gate asked again.
func (s *smtpSession) open(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, smtpTimeout)
	defer cancel()
	for {
		lease, err := s.p.opt.Gate.Enter(wait, "")
		if err != nil {
			return err
		}
		s.lease = lease
		if lease.Side == Standby {
			s.up = s.p.opt.SMTP.NewSMTP(ctx, s.client)
		} else {
			s.up, err = s.p.opt.Target.dialSMTP(wait, s.client)
		}
		var hi smtpwire.Reply
		if err == nil {
			if hi, err = s.up.Greeting(); err != nil {
				s.up.Close()
			}
		}
		if err == nil {
			s.reply(hi)
			s.quit = !hi.OK()
			return nil
		}
		lease.Release()
		s.p.opt.Gate.Trouble(err)
		select {
		case <-time.After(retryPause):
		case <-wait.Done():
			return err
		}
	}
}

func (s *smtpSession) reply(r smtpwire.Reply) {
	_ = s.conn.SetWriteDeadline(time.Now().Add(smtpTimeout))
	_, _ = s.w.Write(r.Append(nil))
}

func (s *smtpSession) step(ctx context.Context) error {
	_ = s.conn.SetReadDeadline(time.Now().Add(smtpTimeout))
	if s.revoked() {
		return errEnd
	}
	if ctx.Err() != nil {
		s.reply(smtpwire.NewReply(421, "4.3.2 Service is shutting down"))
		return errEnd
	}
	line, err := smtpwire.ReadLine(s.br, smtpwire.MaxAuth)
	if err != nil {
		return err
	}
	c, err := smtpwire.ParseCommand(line)
	if err != nil || len(line) > smtpwire.MaxCommand && c.Verb != "AUTH" {
		return s.refuse(500, "5.5.2 Syntax error")
	}
	switch c.Verb {
	case "EHLO", "HELO":
		return s.hello(c)
	case "STARTTLS":
		return s.startTLS(ctx)
	case "AUTH":
		return s.auth(c)
	case "MAIL":
		return s.mailFrom(c)
	case "RCPT":
		return s.rcptTo(c)
	case "DATA":
		return s.data(ctx, c)
	case "RSET", "NOOP", "VRFY", "HELP":
		return s.simple(c)
	case "QUIT":
		return s.goodbye()
	}
	return s.refuse(500, "5.5.1 Unknown command")
}

func (s *smtpSession) refuse(code int, text string) error {
	s.reply(smtpwire.NewReply(code, "%s", text))
	if s.bad++; s.bad > maxBadSMTP {
		s.reply(smtpwire.NewReply(421, "4.7.0 Too many errors"))
		return errEnd
	}
	return nil
}

func (s *smtpSession) simple(c smtpwire.Command) error {
	line := c.Verb
	switch c.Verb {
	case "RSET":
		s.reset()
	case "VRFY", "HELP":
		if c.Arg == "" {
			break
		}
		line += " " + c.Arg
	}
	return s.pass(c.Verb, line)
}

func (s *smtpSession) reset() { s.mail, s.inTx = row.Envelope{User: s.mail.User}, false }

// pass has the upstream answer a command.
func (s *smtpSession) pass(verb, line string) error {
	r, err := s.up.Command(verb, line)
	if err != nil {
		return errUpstream{err}
	}
	s.reply(r)
	if r.Code == 421 {
		return errEnd
	}
	return nil
}

func (s *smtpSession) goodbye() error {
	r, err := s.up.Command("QUIT", "QUIT")
	if err != nil {
		r = smtpwire.NewReply(221, "2.0.0 Bye")
	}
	s.reply(r)
	s.quit = true
	return nil
}

func (s *smtpSession) hello(c smtpwire.Command) error {
	if c.Arg == "" || strings.ContainsAny(c.Arg, " \t") {
		return s.refuse(501, "5.5.4 Name of the client is missing")
	}
	s.client.Helo, s.client.ESMTP = c.Arg, c.Verb == "EHLO"
	r, err := s.up.Hello(s.client)
	if err != nil {
		return errUpstream{err}
	}
	s.reset()
	s.helo = r.OK()
	if s.client.ESMTP && r.OK() {
		r.Lines = s.cutExtensions(r.Lines)
	}
	s.reply(r)
	return nil
}

// cutExtensions keeps of an EHLO answer what this proxy and the standby do.
func (s *smtpSession) cutExtensions(lines []string) []string {
	out := lines[:1:1]
	for _, l := range lines[1:] {
		word, _, _ := strings.Cut(strings.ToUpper(l), " ")
		switch word {
		case "PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN":
			out = append(out, l)
		case "AUTH":
			if mechs := cutCaps(strings.Fields(strings.ToUpper(l))[1:], []string{"PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"}); mechs != "" && (s.client.TLS || s.p.opt.PlainOK) {
				out = append(out, "AUTH "+mechs)
			}
		}
	}
	if s.p.opt.TLS != nil && !s.client.TLS {
		out = append(out, "STARTTLS")
	}
	return out
}

func (s *smtpSession) startTLS(ctx context.Context) error {
	switch {
	case s.p.opt.TLS == nil:
		return s.refuse(502, "5.5.1 TLS is not available")
	case s.client.TLS:
		return s.refuse(503, "5.5.1 TLS is active")
	case s.br.Buffered() > 0:
		s.reply(smtpwire.NewReply(554, "5.5.0 Text behind STARTTLS"))
		return errEnd
	}
	s.reply(smtpwire.NewReply(220, "2.0.0 Ready to start TLS"))
	if err := s.w.Flush(); err != nil {
		return err
	}
	t, err := s.p.handshake(ctx, s.conn)
	if err != nil {
		return err
	}
	s.conn = t
	s.client.TLS = true
	s.buffers()
	s.reset()
	s.helo = false
	return nil
}

func (s *smtpSession) auth(c smtpwire.Command) error {
	f := strings.Fields(c.Arg)
	switch {
	case !s.client.TLS && !s.p.opt.PlainOK:
		return s.refuse(538, "5.7.11 Use TLS first")
	case s.mail.User != "" || s.inTx || !s.helo:
		return s.refuse(503, "5.5.1 Not now")
	case len(f) < 1 || len(f) > 2:
		return s.refuse(501, "5.5.4 AUTH takes a mechanism")
	}
	initial, has := "", len(f) == 2
	if has {
		initial = f[1]
	}
	l, err := readMechanism(strings.ToUpper(f[0]), initial, has, func(challenge string) (string, error) {
		s.reply(smtpwire.Reply{Code: 334, Lines: []string{challenge}})
		if err := s.w.Flush(); err != nil {
			return "", err
		}
		return smtpwire.ReadLine(s.br, smtpwire.MaxAuth)
	})
	if errors.Is(err, imapwire.ErrSyntax) {
		return s.refuse(501, "5.5.2 Bad credentials: "+err.Error())
	}
	if err != nil {
		return err
	}
	r, err := s.up.Auth(l)
	if err != nil {
		return errUpstream{err}
	}
	if r.OK() {
		if s.lease.Side == Production {
			if _, err := s.p.opt.Tap.LoggedIn(context.Background(), l); err != nil {
				s.p.opt.Log.Warn("login was not learned", "user", l.User, "err", err)
			}
		}
		s.mail.User = l.User
	} else if s.bad++; s.bad > maxBad {
		s.reply(r)
		return errEnd
	}
	s.reply(r)
	return nil
}

func (s *smtpSession) mailFrom(c smtpwire.Command) error {
	path, err := smtpwire.ParsePath("FROM", c.Arg)
	switch {
	case err != nil:
		return s.refuse(501, "5.5.4 "+err.Error())
	case s.inTx:
		return s.refuse(503, "5.5.1 Nested MAIL")
	}
	for _, p := range path.Params {
		if v, ok := strings.CutPrefix(strings.ToUpper(p), "SIZE="); ok {
			if n, err := strconv.ParseInt(v, 10, 64); err != nil || n > s.p.opt.MaxMessage {
				return s.refuse(552, fmt.Sprintf("5.3.4 Message is over the limit of %d bytes", s.p.opt.MaxMessage))
			}
		}
	}
	r, err := s.up.Command("MAIL", canonical("MAIL FROM:", path))
	if err != nil {
		return errUpstream{err}
	}
	if r.OK() {
		s.inTx = true
		s.mail.From, s.mail.Params, s.mail.Rcpts = path.Addr, path.Params, nil
	}
	s.reply(r)
	return nil
}

func canonical(cmd string, p smtpwire.Path) string {
	return strings.Join(append([]string{cmd + "<" + p.Addr + ">"}, p.Params...), " ")
}

func (s *smtpSession) rcptTo(c smtpwire.Command) error {
	path, err := smtpwire.ParsePath("TO", c.Arg)
	switch {
	case err != nil || path.Addr == "":
		return s.refuse(501, "5.5.4 Bad recipient address")
	case !s.inTx:
		return s.refuse(503, "5.5.1 MAIL first")
	}
	r, err := s.up.Command("RCPT", canonical("RCPT TO:", path))
	if err != nil {
		return errUpstream{err}
	}
	if r.OK() {
		s.mail.Rcpts = append(s.mail.Rcpts, path.Addr)
	} else {
		s.bad++
	}
	s.reply(r)
	return nil
}

// data carries a message. Its outcome is passed on after it is durable here.
func (s *smtpSession) data(ctx context.Context, c smtpwire.Command) error {
	switch {
	case c.Arg != "":
		return s.refuse(501, "5.5.4 DATA takes no argument")
	case len(s.mail.Rcpts) == 0:
		return s.refuse(554, "5.5.1 No valid recipients")
	case s.br.Buffered() > 0:
		s.reply(smtpwire.NewReply(503, "5.5.0 Text behind DATA"))
		return errEnd
	}
	w, err := s.up.Data()
	var no errReply
	if errors.As(err, &no) {
		s.reply(no.Reply)
		return nil
	}
	if err != nil {
		return errUpstream{err}
	}
	_ = s.conn.SetReadDeadline(time.Now().Add(bodyTimeout))
	s.reply(smtpwire.NewReply(354, "End data with <CR><LF>.<CR><LF>"))
	if err := s.w.Flush(); err != nil {
		return err
	}
	var sp row.Spool
	dst := w
	if s.lease.Side == Production {
		sp = s.p.opt.Tap.NewSpool()
		defer sp.Discard()
		dst = io.MultiWriter(sp, upstreamWriter{w})
	}
	_, err = smtpwire.CopyBody(dst, s.br, s.p.opt.MaxMessage)
	return s.finish(ctx, sp, err)
}

func (s *smtpSession) finish(ctx context.Context, sp row.Spool, err error) error {
	mail := s.mail
	s.reset()
	lost := errUpstream{}
	if err != nil {
		// Upstream never gets an end-of-data: it has no message.
		switch {
		case errors.As(err, &lost):
			return err
		case errors.Is(err, smtpwire.ErrTooBig):
			s.reply(smtpwire.NewReply(552, "5.3.4 Message is over the limit of %d bytes", s.p.opt.MaxMessage))
			return errEnd
		case isNet(err):
			return err
		}
		s.p.opt.Log.Error("keep a message that arrives", "err", err)
		s.reply(smtpwire.NewReply(452, "4.3.1 Storage of the appliance failed"))
		return errEnd
	}
	var arrival Arrival
	if sp != nil {
		arrival = s.p.opt.Tap.Arriving(ctx, mail, sp)
	}
	r, err := s.up.Finish()
	if arrival != nil && (err != nil || !r.OK()) {
		arrival.Refused()
	}
	if err != nil {
		return errUpstream{err}
	}
	if arrival != nil && r.OK() {
		if err := arrival.Accepted(); err != nil {
			s.p.opt.Log.Error("an accepted message could not be made durable; its 250 is not passed on", "err", err)
			return errEnd
		}
	}
	s.reply(r)
	return nil
}

// isNet: the client's connection failed.
func isNet(err error) bool {
	var ne net.Error
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &ne)
}

// upstreamWriter marks errors of the upstream among those of a MultiWriter.
type upstreamWriter struct{ w io.Writer }

func (u upstreamWriter) Write(p []byte) (int, error) {
	n, err := u.w.Write(p)
	if err != nil {
		err = errUpstream{err}
	}
	return n, err
}

// errReply is a refusal where a message was to begin.
type errReply struct{ smtpwire.Reply }

func (e errReply) Error() string { return e.String() }

// Refused makes the error by which an upstream's Data tells a refusal.
func Refused(r smtpwire.Reply) error { return errReply{r} }

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
