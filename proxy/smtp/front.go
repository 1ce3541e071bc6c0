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
	"understudy/snoop/imapwire"
	"understudy/snoop/smtpsession"
	"understudy/snoop/smtpwire"
)

// session reads one client's commands strictly, and has the upstream answer them
// one by one. state is what the client has been granted, and so what the next
// upstream is told.
type session struct {
	srv   *Server
	conn  net.Conn
	br    *bufio.Reader
	w     *bufio.Writer
	state *smtpsession.Session
	swap  swap
}

const (
	commandTimeout = 5 * time.Minute // RFC 5321 section 4.5.3.2
	bodyTimeout    = 30 * time.Minute
)

// ServeConn serves a client's connection, which the caller closes.
func (srv *Server) ServeConn(ctx context.Context, conn net.Conn, who seam.Client) {
	s := &session{srv: srv, conn: conn, state: smtpsession.New(who)}
	s.buffers()
	s.swap.s, s.swap.mu = s, seam.NewTurn()
	defer s.swap.leave()
	hi, err := s.swap.call(ctx, func(up *link) (smtpwire.Reply, error) { return up.hi, nil })
	if err != nil {
		// No 4xx greeting: a peer tries again all the sooner after a drop.
		srv.opt.Log.Debug("SMTP session cannot begin", "client", s.state.Client().Addr, "err", err)
		return
	}
	s.reply(hi)
	if !hi.OK() {
		s.state.Quit()
	}
	for s.state.Stage() != smtpsession.Over {
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
	s.srv.opt.Log.Debug("SMTP session ended", "client", s.state.Client().Addr, "err", err)
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
	return s.mistake(smtpwire.NewReply(code, "%s", text))
}

// mistake refuses what the client should not have said.
func (s *session) mistake(no smtpwire.Reply) error {
	s.reply(no)
	if s.state.Mistake() {
		s.reply(smtpwire.NewReply(421, "4.7.0 Too many errors"))
		return errEnd
	}
	return nil
}

func (s *session) simple(ctx context.Context, c smtpwire.Command) error {
	line := c.Verb
	switch c.Verb {
	case "RSET":
		s.state.Reset()
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

func (s *session) goodbye(ctx context.Context) error {
	r := smtpwire.NewReply(221, "2.0.0 Bye")
	up, unlock := s.swap.now()
	if up != nil {
		if q, err := up.Command("QUIT", "QUIT"); err == nil {
			r = q
		}
	}
	unlock()
	s.reply(r)
	s.state.Quit()
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
	s.state.Hello(c.Arg, c.Verb == "EHLO")
	who := s.state.Client()
	r, err := s.swap.call(ctx, func(up *link) (smtpwire.Reply, error) { return up.Hello(who) })
	if err != nil {
		return err
	}
	if r.OK() {
		s.state.Greeted()
		if who.ESMTP {
			r.Lines = s.cutExtensions(r.Lines)
		}
	}
	s.reply(r)
	return nil
}

// cutExtensions keeps of an EHLO answer what this proxy and the standby do.
func (s *session) cutExtensions(lines []string) []string {
	out, secure := lines[:1:1], s.state.Client().TLS
	for _, l := range lines[1:] {
		word, _, _ := strings.Cut(strings.ToUpper(l), " ")
		switch word {
		case "PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN":
			out = append(out, l)
		case "AUTH":
			mechs := seam.Caps(strings.Fields(strings.ToUpper(l))[1:]).Cut(seam.Caps{"PLAIN", "LOGIN", "XOAUTH2",
				"OAUTHBEARER"})
			if mechs != nil && (secure || s.srv.opt.PlainOK) {
				out = append(out, "AUTH "+mechs.String())
			}
		}
	}
	if s.srv.opt.StartTLS != nil && !secure {
		out = append(out, "STARTTLS")
	}
	return out
}

func (s *session) startTLS(ctx context.Context) error {
	no, ok := s.state.May(smtpsession.StartTLS)
	switch {
	case s.srv.opt.StartTLS == nil:
		return s.refuse(502, "5.5.1 TLS is not available")
	case !ok:
		return s.mistake(no)
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
	s.buffers()
	s.state.Secured()
	return nil
}

func (s *session) auth(ctx context.Context, c smtpwire.Command) error {
	f := strings.Fields(c.Arg)
	no, ok := s.state.May(smtpsession.Auth)
	switch {
	case !s.state.Client().TLS && !s.srv.opt.PlainOK:
		return s.refuse(538, "5.7.11 Use TLS first")
	case !ok:
		return s.mistake(no)
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
		s.state.LoggedIn(l)
		if side == seam.Production {
			if _, err := s.srv.opt.Logins.LoggedIn(context.Background(), l); err != nil {
				s.srv.opt.Log.Warn("login was not learned", "user", l.User, "err", err)
			}
		}
	} else if s.state.Denied() {
		s.reply(r)
		return errEnd
	}
	s.reply(r)
	return nil
}

func (s *session) mailFrom(ctx context.Context, c smtpwire.Command) error {
	path, err := smtpwire.ParsePath("FROM", c.Arg)
	if err != nil {
		return s.refuse(501, "5.5.4 "+err.Error())
	}
	if no, ok := s.state.May(smtpsession.Mail); !ok {
		return s.mistake(no)
	}
	for _, p := range path.Params {
		if v, ok := strings.CutPrefix(strings.ToUpper(p), "SIZE="); ok {
			if n, err := strconv.ParseInt(v, 10, 64); err != nil || n > s.srv.opt.MaxMessage {
				return s.refuse(552, fmt.Sprintf("5.3.4 Message is over the limit of %d bytes", s.srv.opt.MaxMessage))
			}
		}
	}
	r, err := s.command(ctx, "MAIL", path.MailLine())
	if err != nil {
		return err
	}
	if r.OK() {
		s.state.From(path)
	}
	s.reply(r)
	return nil
}

func (s *session) rcptTo(ctx context.Context, c smtpwire.Command) error {
	path, err := smtpwire.ParsePath("TO", c.Arg)
	if err != nil || path.Addr == "" {
		return s.refuse(501, "5.5.4 Bad recipient address")
	}
	if no, ok := s.state.May(smtpsession.Rcpt); !ok {
		return s.mistake(no)
	}
	r, err := s.command(ctx, "RCPT", path.RcptLine())
	if err != nil {
		return err
	}
	if r.OK() {
		s.state.To(path)
	} else {
		s.state.Mistake()
	}
	s.reply(r)
	return nil
}

// data carries a message. Its outcome is passed on after it is durable here.
func (s *session) data(ctx context.Context, c smtpwire.Command) error {
	no, ok := s.state.May(smtpsession.Data)
	switch {
	case c.Arg != "":
		return s.refuse(501, "5.5.4 DATA takes no argument")
	case !ok:
		return s.mistake(no)
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
	s.state.Begin()
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
