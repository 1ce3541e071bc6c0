package smtp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"understudy/proxy/login"
	"understudy/proxy/seam"
	"understudy/replica/row"
	"understudy/snoop/imapwire"
	"understudy/snoop/smtpwire"
)

// session reads one client's commands strictly, has the upstream answer
// them one by one, and keeps the envelope and the message for the Tap and for
// the next upstream.
type session struct {
	srv    *Server
	conn   net.Conn
	br     *bufio.Reader
	w      *bufio.Writer
	client seam.Client
	swap   swap

	mail  row.Envelope
	lines []string // MAIL and RCPT as they were sent
	inTx  bool
	helo  bool
	login *seam.Login // taken
	bad   int
	quit  bool
}

const (
	commandTimeout = 5 * time.Minute // RFC 5321 section 4.5.3.2
	bodyTimeout    = 30 * time.Minute
	maxBad         = 20
	maxBadAuth     = 3
)

// ServeConn serves a client's connection, which the caller closes.
func (srv *Server) ServeConn(ctx context.Context, conn net.Conn, who seam.Client) {
	s := &session{srv: srv, conn: conn, client: who}
	s.buffers()
	s.swap.s, s.swap.mu = s, seam.NewTurn()
	defer s.swap.leave()
	hi, err := s.swap.call(ctx, func(up *link) (smtpwire.Reply, error) { return up.hi, nil })
	if err != nil {
		// No 4xx greeting: a peer tries again all the sooner after a drop.
		srv.opt.Log.Debug("SMTP session cannot begin", "client", s.client.Addr, "err", err)
		return
	}
	s.reply(hi)
	s.quit = !hi.OK()
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
func (s *session) fail(err error) {
	switch {
	case errors.Is(err, smtpwire.ErrLineTooLong):
		s.reply(smtpwire.NewReply(500, "5.5.2 Line too long"))
		_ = s.w.Flush()
	case errors.Is(err, errEnd), errors.Is(err, io.EOF):
		_ = s.w.Flush()
	}
	s.srv.opt.Log.Debug("SMTP session ended", "client", s.client.Addr, "err", err)
}

func (s *session) buffers() {
	s.br = bufio.NewReaderSize(s.conn, 8<<10)
	s.w = bufio.NewWriterSize(s.conn, 4<<10)
}

func (s *session) reply(r smtpwire.Reply) {
	_ = s.conn.SetWriteDeadline(time.Now().Add(commandTimeout))
	_, _ = s.w.Write(r.Append(nil))
}

func (s *session) step(ctx context.Context) error {
	_ = s.conn.SetReadDeadline(time.Now().Add(commandTimeout))
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
		return s.hello(ctx, c)
	case "STARTTLS":
		return s.startTLS(ctx)
	case "AUTH":
		return s.auth(ctx, c)
	case "MAIL":
		return s.mailFrom(ctx, c)
	case "RCPT":
		return s.rcptTo(ctx, c)
	case "DATA":
		return s.data(ctx, c)
	case "RSET", "NOOP", "VRFY", "HELP":
		return s.simple(ctx, c)
	case "QUIT":
		return s.goodbye(ctx)
	}
	return s.refuse(500, "5.5.1 Unknown command")
}

func (s *session) refuse(code int, text string) error {
	s.reply(smtpwire.NewReply(code, "%s", text))
	if s.bad++; s.bad > maxBad {
		s.reply(smtpwire.NewReply(421, "4.7.0 Too many errors"))
		return errEnd
	}
	return nil
}

func (s *session) simple(ctx context.Context, c smtpwire.Command) error {
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
	r, err := s.command(ctx, c.Verb, line)
	if err != nil {
		return err
	}
	s.reply(r)
	return nil
}

func (s *session) reset() {
	s.mail, s.lines, s.inTx = row.Envelope{User: s.mail.User}, nil, false
}

func (s *session) goodbye(ctx context.Context) error {
	r := smtpwire.NewReply(221, "2.0.0 Bye")
	if up, unlock := s.swap.now(); up != nil {
		if q, err := up.Command("QUIT", "QUIT"); err == nil {
			r = q
		}
		unlock()
	}
	s.reply(r)
	s.quit = true
	return nil
}

// command has the upstream answer a line.
func (s *session) command(ctx context.Context, verb, line string) (smtpwire.Reply, error) {
	return s.swap.call(ctx, func(up *link) (smtpwire.Reply, error) { return up.Command(verb, line) })
}

func (s *session) hello(ctx context.Context, c smtpwire.Command) error {
	if c.Arg == "" || strings.ContainsAny(c.Arg, " \t") {
		return s.refuse(501, "5.5.4 Name of the client is missing")
	}
	s.client.Helo, s.client.ESMTP = c.Arg, c.Verb == "EHLO"
	s.reset()
	s.helo = false // said below
	r, err := s.swap.call(ctx, func(up *link) (smtpwire.Reply, error) { return up.Hello(s.client) })
	if err != nil {
		return err
	}
	s.helo = r.OK()
	if s.client.ESMTP && r.OK() {
		r.Lines = s.cutExtensions(r.Lines)
	}
	s.reply(r)
	return nil
}

// cutExtensions keeps of an EHLO answer what this proxy and the standby do.
func (s *session) cutExtensions(lines []string) []string {
	out := lines[:1:1]
	for _, l := range lines[1:] {
		word, _, _ := strings.Cut(strings.ToUpper(l), " ")
		switch word {
		case "PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN":
			out = append(out, l)
		case "AUTH":
			mechs := seam.Caps(strings.Fields(strings.ToUpper(l))[1:]).Cut(seam.Caps{"PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"})
			if mechs != nil && (s.client.TLS || s.srv.opt.PlainOK) {
				out = append(out, "AUTH "+mechs.String())
			}
		}
	}
	if s.srv.opt.StartTLS != nil && !s.client.TLS {
		out = append(out, "STARTTLS")
	}
	return out
}

func (s *session) startTLS(ctx context.Context) error {
	switch {
	case s.srv.opt.StartTLS == nil:
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
	t, err := s.srv.opt.StartTLS(ctx, s.conn)
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

func (s *session) auth(ctx context.Context, c smtpwire.Command) error {
	f := strings.Fields(c.Arg)
	switch {
	case !s.client.TLS && !s.srv.opt.PlainOK:
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
	l, err := login.SASL(strings.ToUpper(f[0]), initial, has, func(challenge string) (string, error) {
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
	side := seam.Standby
	r, err := s.swap.call(ctx, func(up *link) (smtpwire.Reply, error) {
		side = up.lease.Side
		return up.Auth(l)
	})
	if err != nil {
		return err
	}
	if r.OK() {
		s.login = &l
		if side == seam.Production {
			if _, err := s.srv.opt.Logins.LoggedIn(context.Background(), l); err != nil {
				s.srv.opt.Log.Warn("login was not learned", "user", l.User, "err", err)
			}
		}
		s.mail.User = l.User
	} else if s.bad++; s.bad > maxBadAuth {
		s.reply(r)
		return errEnd
	}
	s.reply(r)
	return nil
}

func (s *session) mailFrom(ctx context.Context, c smtpwire.Command) error {
	path, err := smtpwire.ParsePath("FROM", c.Arg)
	switch {
	case err != nil:
		return s.refuse(501, "5.5.4 "+err.Error())
	case s.inTx:
		return s.refuse(503, "5.5.1 Nested MAIL")
	}
	for _, p := range path.Params {
		if v, ok := strings.CutPrefix(strings.ToUpper(p), "SIZE="); ok {
			if n, err := strconv.ParseInt(v, 10, 64); err != nil || n > s.srv.opt.MaxMessage {
				return s.refuse(552, fmt.Sprintf("5.3.4 Message is over the limit of %d bytes", s.srv.opt.MaxMessage))
			}
		}
	}
	line := canonical("MAIL FROM:", path)
	r, err := s.command(ctx, "MAIL", line)
	if err != nil {
		return err
	}
	if r.OK() {
		s.inTx, s.lines = true, []string{line}
		s.mail.From, s.mail.Params, s.mail.Rcpts = path.Addr, path.Params, nil
	}
	s.reply(r)
	return nil
}

func canonical(cmd string, p smtpwire.Path) string {
	return strings.Join(append([]string{cmd + "<" + p.Addr + ">"}, p.Params...), " ")
}

func (s *session) rcptTo(ctx context.Context, c smtpwire.Command) error {
	path, err := smtpwire.ParsePath("TO", c.Arg)
	switch {
	case err != nil || path.Addr == "":
		return s.refuse(501, "5.5.4 Bad recipient address")
	case !s.inTx:
		return s.refuse(503, "5.5.1 MAIL first")
	}
	line := canonical("RCPT TO:", path)
	r, err := s.command(ctx, "RCPT", line)
	if err != nil {
		return err
	}
	if r.OK() {
		s.lines = append(s.lines, line)
		s.mail.Rcpts = append(s.mail.Rcpts, path.Addr)
	} else {
		s.bad++
	}
	s.reply(r)
	return nil
}

// data carries a message. Its outcome is passed on after it is durable here.
func (s *session) data(ctx context.Context, c smtpwire.Command) error {
	switch {
	case c.Arg != "":
		return s.refuse(501, "5.5.4 DATA takes no argument")
	case len(s.mail.Rcpts) == 0:
		return s.refuse(554, "5.5.1 No valid recipients")
	case s.br.Buffered() > 0:
		s.reply(smtpwire.NewReply(503, "5.5.0 Text behind DATA"))
		return errEnd
	}
	r, err := s.swap.call(ctx, (*link).begin)
	if err != nil {
		return err
	}
	if r.Code != 354 {
		s.reply(r)
		return nil
	}
	_ = s.conn.SetReadDeadline(time.Now().Add(bodyTimeout))
	s.reply(smtpwire.NewReply(354, "End data with <CR><LF>.<CR><LF>"))
	if err := s.w.Flush(); err != nil {
		return err
	}
	sp := s.srv.opt.NewSpool()
	defer sp.Discard()
	_, err = smtpwire.CopyBody(io.MultiWriter(sp, &s.swap), s.br, s.srv.opt.MaxMessage)
	if err == nil {
		return s.finish(ctx, sp)
	}
	// Upstream never gets an end-of-data: it has no message.
	switch {
	case errors.Is(err, smtpwire.ErrTooBig):
		s.reply(smtpwire.NewReply(552, "5.3.4 Message is over the limit of %d bytes", s.srv.opt.MaxMessage))
		return errEnd
	case isNet(err):
		return err
	}
	s.srv.opt.Log.Error("keep a message that arrives", "err", err)
	s.reply(smtpwire.NewReply(452, "4.3.1 Storage of the appliance failed"))
	return errEnd
}

// errEnd ends a session that was answered.
var errEnd = errors.New("session ended")

// isNet: the client's connection failed.
func isNet(err error) bool {
	var ne net.Error
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &ne)
}
