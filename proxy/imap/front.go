package imap

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"understudy/proxy/login"
	"understudy/proxy/seam"
	"understudy/proxy/upstream"
	"understudy/snoop/imapwire"
	"understudy/snoop/smtpwire"
)

// front is an IMAP session before login. Nothing of it reaches an upstream but
// the credentials.
type front struct {
	srv  *Server
	conn net.Conn
	br   *bufio.Reader
	who  seam.Client
	bad  int
}

// Limits before login.
const (
	maxBad        = 3 // as Dovecot
	helloCaps     = "IMAP4rev1 SASL-IR LITERAL+ ID ENABLE IDLE"
	denyDelay     = 2 * time.Second
	loginPatience = 25 * time.Second // R6: clients wait 30 s
)

// ServeConn serves a client's connection, which the caller closes.
func (srv *Server) ServeConn(ctx context.Context, conn net.Conn, who seam.Client) {
	f := &front{srv: srv, conn: conn, br: bufio.NewReaderSize(conn, 4<<10), who: who}
	f.write("* OK [CAPABILITY %s] %s", f.caps(), srv.banner.Show().Text)
	for {
		_ = f.conn.SetReadDeadline(time.Now().Add(srv.opt.Timeout))
		if ctx.Err() != nil {
			f.write("* BYE Server is shutting down")
			return
		}
		next, err := f.step(ctx)
		if err != nil {
			if errors.Is(err, smtpwire.ErrLineTooLong) {
				f.write("* BYE Line too long")
			}
			return
		}
		if next != nil {
			next(ctx)
			return
		}
	}
}

func (f *front) write(format string, a ...any) {
	_ = f.conn.SetWriteDeadline(time.Now().Add(upstream.AnswerTimeout))
	_, _ = fmt.Fprintf(f.conn, format+"\r\n", a...)
	_ = f.conn.SetWriteDeadline(time.Time{})
}

func (f *front) loginAllowed() bool { return f.who.TLS || f.srv.opt.PlainOK }

// caps is the capability list before login.
func (f *front) caps() string {
	out := helloCaps
	if !f.who.TLS && f.srv.opt.StartTLS != nil {
		out += " STARTTLS"
	}
	if !f.loginAllowed() {
		return out + " LOGINDISABLED"
	}
	return out + " " + strings.Join(f.srv.banner.Show().Auth, " ")
}

// errEnd ends a session that was answered.
var errEnd = errors.New("session ended")

// step reads and answers one command. After a login it returns what serves
// the rest of the session.
func (f *front) step(ctx context.Context) (func(context.Context), error) {
	line, err := smtpwire.ReadLine(f.br, login.MaxLine)
	if err != nil {
		return nil, err
	}
	head := imapwire.ParseHead([]byte(line))
	tag, verb := head.Tag, head.Name()
	if !head.Valid() || strings.ContainsFunc(line, func(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }) {
		return nil, f.invalid("* BAD Error in IMAP command")
	}
	switch verb {
	case "CAPABILITY":
		f.write("* CAPABILITY %s\r\n%s OK Capability completed", f.caps(), tag)
	case "NOOP":
		f.write("%s OK NOOP completed", tag)
	case "LOGOUT":
		f.write("* BYE Logging out\r\n%s OK Logout completed", tag)
		return nil, errEnd
	case "ID":
		f.write("* ID NIL\r\n%s OK ID completed", tag)
	case "STARTTLS":
		return nil, f.startTLS(ctx, tag)
	case "LOGIN", "AUTHENTICATE":
		if !f.loginAllowed() {
			return nil, f.invalid(tag + " NO [PRIVACYREQUIRED] Use TLS first")
		}
		return f.login(ctx, tag, verb, line)
	default:
		return nil, f.invalid(tag + " BAD Unknown command, or not before login")
	}
	return nil, nil
}

// invalid answers, and ends the session at the third time.
func (f *front) invalid(answer string) error {
	f.write("%s", answer)
	if f.bad++; f.bad >= maxBad {
		f.write("* BYE Too many invalid IMAP commands.")
		return errEnd
	}
	return nil
}

func (f *front) startTLS(ctx context.Context, tag string) error {
	switch {
	case f.who.TLS:
		return f.invalid(tag + " BAD TLS is active")
	case f.srv.opt.StartTLS == nil:
		return f.invalid(tag + " BAD TLS is not available")
	case f.br.Buffered() > 0:
		f.write("%s BAD Text behind STARTTLS\r\n* BYE Command injection", tag)
		return errEnd
	}
	f.write("%s OK Begin TLS negotiation now.", tag)
	t, err := f.srv.opt.StartTLS(ctx, f.conn)
	if err != nil {
		return err
	}
	f.conn, f.br, f.who.TLS = t, bufio.NewReaderSize(t, 4<<10), true
	return nil
}

// login reads the credentials and enters a side.
func (f *front) login(ctx context.Context, tag, verb, line string) (func(context.Context), error) {
	var l seam.Login
	var err error
	if verb == "LOGIN" {
		l, err = f.readLogin(tag, line)
	} else {
		l, err = f.readSASL(tag, line)
	}
	if errors.Is(err, imapwire.ErrSyntax) {
		return nil, f.invalid(tag + " BAD " + err.Error())
	}
	if err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, loginPatience)
	defer cancel()
	for {
		lease, err := f.srv.opt.Gate.Enter(wait, l.User)
		if err != nil {
			return nil, err
		}
		if lease.Side == seam.Standby {
			return f.enterStandby(ctx, tag, l, lease)
		}
		next, err := f.enterProduction(ctx, tag, l, lease)
		if !errors.Is(err, seam.ErrLost) {
			return next, err
		}
		// The gate knows; by now it may hold, or let the standby answer.
		select {
		case <-time.After(seam.RetryPause):
		case <-wait.Done():
			return nil, wait.Err()
		}
	}
}

func (f *front) deny(ctx context.Context, tag, text string) error {
	select {
	case <-time.After(denyDelay):
	case <-ctx.Done():
	}
	return f.invalid(tag + " NO " + text)
}

func (f *front) enterStandby(ctx context.Context, tag string, l seam.Login,
	lease seam.Lease) (func(context.Context), error) {
	account, err := f.srv.opt.Standby.Authenticate(ctx, l)
	if errors.Is(err, seam.ErrDenied) {
		lease.Release()
		return nil, f.deny(ctx, tag, "[AUTHENTICATIONFAILED] Authentication failed.")
	}
	if err != nil {
		// Not a wrong password: the line is dropped, and the client comes again.
		lease.Release()
		f.srv.opt.Log.Warn("login cannot be served", "user", l.User, "err", err)
		return nil, errEnd
	}
	f.write("%s OK [CAPABILITY %s] Logged in", tag, strings.Join(f.srv.banner.Show().Caps, " "))
	_ = f.conn.SetDeadline(time.Time{})
	s := f.session(account, l)
	return func(ctx context.Context) {
		s.run(ctx, func() *link { return s.standby(lease) })
	}, nil
}

func (f *front) session(account string, l seam.Login) *session {
	return newSession(f.srv, account, l, f.who, &buffered{f.conn, f.br})
}

// buffered is a connection of which some bytes were read ahead.
type buffered struct {
	net.Conn
	br *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) {
	if b.br.Buffered() > 0 {
		return b.br.Read(p)
	}
	return b.Conn.Read(p)
}

func (f *front) enterProduction(ctx context.Context, tag string, l seam.Login,
	lease seam.Lease) (func(context.Context), error) {
	t := f.srv.opt.Target
	dctx, cancel := upstream.LeaseContext(ctx, lease)
	defer cancel()
	up, r, err := t.LoginIMAP(dctx, f.who, l)
	if up != nil {
		f.srv.banner.Learn(up.Text, up.Caps)
	}
	if err != nil {
		lease.Release()
		f.srv.opt.Gate.Trouble(err)
		if up != nil {
			_ = up.Close()
		}
		f.srv.opt.Log.Debug("login waits", "user", l.User, "err", err)
		return nil, seam.ErrLost
	}
	switch {
	case r.Name == "OK":
		return f.begin(ctx, tag, l, up, lease)
	case r.Code == "UNAVAILABLE" || r.Code == "SERVERBUG" || r.Code == "INUSE" || r.Name == "BYE":
		lease.Release()
		_ = up.Close()
		f.srv.opt.Gate.Trouble(fmt.Errorf("login: %s %s", r.Name, r.Rest))
		return nil, errEnd
	}
	lease.Release()
	_ = up.Close()
	f.srv.opt.Logins.Denied(l)
	code := ""
	if r.Code != "" {
		code = "[" + r.Code + "] "
	}
	return nil, f.invalid(fmt.Sprintf("%s %s %s%s", tag, r.Name, code, r.Rest))
}

// begin hands over to the pumps after production's OK.
func (f *front) begin(ctx context.Context, tag string, l seam.Login, up *upstream.IMAP,
	lease seam.Lease) (func(context.Context), error) {
	account, err := f.srv.opt.Logins.LoggedIn(ctx, l)
	if err != nil {
		lease.Release()
		_ = up.Close()
		f.srv.opt.Log.Error("login is not carried", "user", l.User, "err", err)
		return nil, errEnd
	}
	if up.Caps == nil {
		if _, err := up.Command("U4", "CAPABILITY"); err != nil {
			lease.Release()
			_ = up.Close()
			f.srv.opt.Gate.Trouble(err)
			return nil, errEnd
		}
	}
	caps := up.Caps.Cut(f.srv.opt.Caps)
	f.srv.banner.LearnCaps(caps)
	s := f.session(account, l)
	f.write("%s OK [CAPABILITY %s] Logged in", tag, caps)
	_ = f.conn.SetDeadline(time.Time{})
	_ = up.SetDeadline(time.Time{})
	return func(ctx context.Context) {
		s.run(ctx, func() *link { return &link{IMAP: up, lease: lease, lost: make(chan struct{})} })
	}, nil
}

// readLogin reads LOGIN.
func (f *front) readLogin(tag, line string) (seam.Login, error) {
	l, err := login.Line(line[len(tag)+1+len("LOGIN"):], f.br, func() { f.write("+ OK") })
	if errors.Is(err, login.ErrTooLong) {
		f.write("%s BAD Literal too long\r\n* BYE Literal too long", tag)
		return l, errEnd
	}
	return l, err
}

// readSASL reads AUTHENTICATE with or without an initial response.
func (f *front) readSASL(tag, line string) (seam.Login, error) {
	args := strings.Fields(line)[2:]
	if len(args) < 1 || len(args) > 2 {
		return seam.Login{}, fmt.Errorf("%w: AUTHENTICATE takes a mechanism", imapwire.ErrSyntax)
	}
	initial, has := "", len(args) == 2
	if has {
		initial = args[1]
	}
	return login.SASL(strings.ToUpper(args[0]), initial, has, func(challenge string) (string, error) {
		f.write("+ %s", challenge)
		return smtpwire.ReadLine(f.br, smtpwire.MaxAuth)
	})
}
