package proxy

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"understudy/replica/row"
	"understudy/snoop/imapwire"
	"understudy/snoop/smtpwire"
)

// smtpSession reads one client's commands strictly, has the upstream answer
// them one by one, and keeps the envelope and the message for the Tap and for
// the next upstream.
type smtpSession struct {
	p      *Proxy
	conn   net.Conn
	br     *bufio.Reader
	w      *bufio.Writer
	client Client
	seam   smtpSeam

	mail  row.Envelope
	lines []string // MAIL and RCPT as they were sent
	inTx  bool
	helo  bool
	login *Login // taken
	bad   int
	quit  bool
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
	s.seam.s, s.seam.mu = s, newLock()
	defer s.seam.leave()
	hi, err := s.seam.call(ctx, func(up *smtpUpstream) (smtpwire.Reply, error) { return up.hi, nil })
	if err != nil {
		// No 4xx greeting: a peer tries again all the sooner after a drop.
		p.opt.Log.Debug("SMTP session cannot begin", "client", s.client.Addr, "err", err)
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
func (s *smtpSession) fail(err error) {
	switch {
	case errors.Is(err, smtpwire.ErrLineTooLong):
		s.reply(smtpwire.NewReply(500, "5.5.2 Line too long"))
		_ = s.w.Flush()
	case errors.Is(err, errEnd), errors.Is(err, io.EOF):
		_ = s.w.Flush()
	}
	s.p.opt.Log.Debug("SMTP session ended", "client", s.client.Addr, "err", err)
}

func (s *smtpSession) buffers() {
	s.br = bufio.NewReaderSize(s.conn, 8<<10)
	s.w = bufio.NewWriterSize(s.conn, 4<<10)
}

func (s *smtpSession) reply(r smtpwire.Reply) {
	_ = s.conn.SetWriteDeadline(time.Now().Add(smtpTimeout))
	_, _ = s.w.Write(r.Append(nil))
}

func (s *smtpSession) step(ctx context.Context) error {
	_ = s.conn.SetReadDeadline(time.Now().Add(smtpTimeout))
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

func (s *smtpSession) refuse(code int, text string) error {
	s.reply(smtpwire.NewReply(code, "%s", text))
	if s.bad++; s.bad > maxBadSMTP {
		s.reply(smtpwire.NewReply(421, "4.7.0 Too many errors"))
		return errEnd
	}
	return nil
}

func (s *smtpSession) simple(ctx context.Context, c smtpwire.Command) error {
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

func (s *smtpSession) reset() {
	s.mail, s.lines, s.inTx = row.Envelope{User: s.mail.User}, nil, false
}

func (s *smtpSession) goodbye(ctx context.Context) error {
	r := smtpwire.NewReply(221, "2.0.0 Bye")
	if up, unlock := s.seam.now(); up != nil {
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
func (s *smtpSession) command(ctx context.Context, verb, line string) (smtpwire.Reply, error) {
	return s.seam.call(ctx, func(up *smtpUpstream) (smtpwire.Reply, error) { return up.Command(verb, line) })
}

func (s *smtpSession) hello(ctx context.Context, c smtpwire.Command) error {
	if c.Arg == "" || strings.ContainsAny(c.Arg, " \t") {
		return s.refuse(501, "5.5.4 Name of the client is missing")
	}
	s.client.Helo, s.client.ESMTP = c.Arg, c.Verb == "EHLO"
	s.reset()
	s.helo = false // said below
	r, err := s.seam.call(ctx, func(up *smtpUpstream) (smtpwire.Reply, error) { return up.Hello(s.client) })
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

func (s *smtpSession) auth(ctx context.Context, c smtpwire.Command) error {
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
	side := Standby
	r, err := s.seam.call(ctx, func(up *smtpUpstream) (smtpwire.Reply, error) {
		side = up.lease.Side
		return up.Auth(l)
	})
	if err != nil {
		return err
	}
	if r.OK() {
		s.login = &l
		if side == Production {
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

func (s *smtpSession) mailFrom(ctx context.Context, c smtpwire.Command) error {
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

func (s *smtpSession) rcptTo(ctx context.Context, c smtpwire.Command) error {
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
	r, err := s.seam.call(ctx, (*smtpUpstream).begin)
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
	sp := s.p.opt.Tap.NewSpool()
	defer sp.Discard()
	_, err = smtpwire.CopyBody(io.MultiWriter(sp, &s.seam), s.br, s.p.opt.MaxMessage)
	if err == nil {
		return s.finish(ctx, sp)
	}
	// Upstream never gets an end-of-data: it has no message.
	switch {
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

// finish ends a message. Its outcome is passed on after it is durable here.
// If production was lost after the end-of-data, whether it has the message is
// not known: those of its recipients whose mailboxes are here are answered for
// at once, and the message is owed to them; the others are asked of the next
// upstream, where they may come to get it twice (RFC 5321 section 6.1).
func (s *smtpSession) finish(ctx context.Context, sp row.Spool) error {
	// Noted before it is known whether it is a repeated one: should this end here,
	// it comes once more.
	told, answered := false, s.p.opt.Tap.Taking(s.mail, sp)
	defer func() { answered(told) }()
	if again, err := s.p.opt.Tap.Repeated(ctx, s.mail, sp); err != nil {
		return s.unsafe(err)
	} else if again {
		s.seam.abandon()
		s.reset()
		s.reply(smtpwire.NewReply(250, "2.0.0 Ok: accepted before"))
		if err := s.w.Flush(); err != nil {
			return err
		}
		told = true
		return nil
	}
	for {
		var arrival Arrival
		sent, lost := false, false
		r, err := s.seam.call(ctx, func(up *smtpUpstream) (smtpwire.Reply, error) {
			if r, err := up.wholeBody(sp); err != nil || r.Code != 0 {
				return r, err
			}
			if arrival != nil {
				arrival.Refused() // by an upstream that closed
				arrival = nil
			}
			if up.lease.Side == Production {
				arrival = s.p.opt.Tap.Arriving(ctx, s.mail, sp)
			}
			sent = true
			r, err := up.Finish()
			if lost = err != nil; lost {
				// The call must not be made again.
				s.seam.lose(err)
				return smtpwire.NewReply(250, "2.0.0 Ok"), nil
			}
			return r, nil
		})
		switch {
		case err != nil:
			if arrival != nil {
				arrival.Refused()
			}
			return err
		case arrival != nil && !r.OK():
			arrival.Refused()
		case arrival != nil && lost:
			left, err := arrival.Owe()
			if err != nil {
				return s.unsafe(err)
			}
			if s.only(left); len(left) > 0 {
				continue
			}
		case arrival != nil:
			if err := arrival.Accepted(); err != nil {
				return s.unsafe(err)
			}
		case sent && lost:
			return errEnd
		}
		s.reset()
		s.reply(r)
		if err := s.w.Flush(); err != nil {
			return err
		}
		told = true
		return nil
	}
}

func (s *smtpSession) unsafe(err error) error {
	s.p.opt.Log.Error("an accepted message could not be made durable; its 250 is not passed on", "err", err)
	return errEnd
}

// only leaves of the transaction the recipients that are still to be asked for.
func (s *smtpSession) only(rcpts []string) {
	lines := s.lines[:1:1]
	for i, r := range s.mail.Rcpts {
		if slices.Contains(rcpts, r) {
			lines = append(lines, s.lines[i+1])
		}
	}
	s.mail.Rcpts, s.lines = rcpts, lines
}

// isNet: the client's connection failed.
func isNet(err error) bool {
	var ne net.Error
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &ne)
}

// errReply is a refusal where a message was to begin.
type errReply struct{ smtpwire.Reply }

func (e errReply) Error() string { return e.String() }

// Refused makes the error by which an upstream's Data tells a refusal.
func Refused(r smtpwire.Reply) error { return errReply{r} }

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
