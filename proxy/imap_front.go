package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"understudy/snoop/imapwire"
	"understudy/snoop/smtpwire"
)

// front is an IMAP session before login. Nothing of it reaches an upstream but
// the credentials.
type front struct {
	p       *Proxy
	conn    net.Conn
	br      *bufio.Reader
	secured bool
	bad     int
}

// Limits before login.
const (
	maxBad        = 3 // as Dovecot
	frontLine     = 12 << 10
	frontLiteral  = 4096
	helloCaps     = "IMAP4rev1 SASL-IR LITERAL+ ID ENABLE IDLE"
	denyDelay     = 2 * time.Second
	answerTimeout = 30 * time.Second
	loginPatience = 25 * time.Second // R6: clients wait 30 s
	retryPause    = 100 * time.Millisecond
)

func (p *Proxy) serveIMAP(ctx context.Context, conn net.Conn, secured bool) {
	f := &front{p: p, conn: conn, br: bufio.NewReaderSize(conn, 4<<10), secured: secured}
	p.banner.mu.RLock()
	text := p.banner.imapText
	p.banner.mu.RUnlock()
	f.write("* OK [CAPABILITY %s] %s", f.caps(), text)
	for {
		_ = f.conn.SetReadDeadline(time.Now().Add(p.opt.Timeout))
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
	_ = f.conn.SetWriteDeadline(time.Now().Add(answerTimeout))
	_, _ = fmt.Fprintf(f.conn, format+"\r\n", a...)
	_ = f.conn.SetWriteDeadline(time.Time{})
}

func (f *front) loginAllowed() bool { return f.secured || f.p.opt.PlainOK }

// caps is the capability list before login.
func (f *front) caps() string {
	out := helloCaps
	if !f.secured && f.p.opt.TLS != nil {
		out += " STARTTLS"
	}
	if !f.loginAllowed() {
		return out + " LOGINDISABLED"
	}
	f.p.banner.mu.RLock()
	defer f.p.banner.mu.RUnlock()
	return out + " " + strings.Join(f.p.banner.authCaps, " ")
}

// errEnd ends a session that was answered.
var errEnd = errors.New("session ended")

// errLost tells that production was lost before it answered.
var errLost = errors.New("production was lost")

// step reads and answers one command. After a login it returns what serves
// the rest of the session.
func (f *front) step(ctx context.Context) (func(context.Context), error) {
	line, err := smtpwire.ReadLine(f.br, frontLine)
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
	case f.secured:
		return f.invalid(tag + " BAD TLS is active")
	case f.p.opt.TLS == nil:
		return f.invalid(tag + " BAD TLS is not available")
	case f.br.Buffered() > 0:
		f.write("%s BAD Text behind STARTTLS\r\n* BYE Command injection", tag)
		return errEnd
	}
	f.write("%s OK Begin TLS negotiation now.", tag)
	t, err := f.p.handshake(ctx, f.conn)
	if err != nil {
		return err
	}
	f.conn, f.br, f.secured = t, bufio.NewReaderSize(t, 4<<10), true
	return nil
}

// login reads the credentials and enters a side.
func (f *front) login(ctx context.Context, tag, verb, line string) (func(context.Context), error) {
	var l Login
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
		lease, err := f.p.opt.Gate.Enter(wait, l.User)
		if err != nil {
			return nil, err
		}
		if lease.Side == Standby {
			return f.enterStandby(ctx, tag, l, lease)
		}
		next, err := f.enterProduction(ctx, tag, l, lease)
		if !errors.Is(err, errLost) {
			return next, err
		}
		// The gate knows; by now it may hold, or let the standby answer.
		select {
		case <-time.After(retryPause):
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

func (f *front) enterStandby(ctx context.Context, tag string, l Login, lease Lease) (func(context.Context), error) {
	account, err := f.p.opt.IMAP.Authenticate(ctx, l)
	if errors.Is(err, ErrDenied) {
		lease.Release()
		return nil, f.deny(ctx, tag, "[AUTHENTICATIONFAILED] Authentication failed.")
	}
	if err != nil {
		// Not a wrong password: the line is dropped, and the client comes again.
		lease.Release()
		f.p.opt.Log.Warn("login cannot be served", "user", l.User, "err", err)
		return nil, errEnd
	}
	f.p.banner.mu.RLock()
	caps := f.p.banner.caps
	f.p.banner.mu.RUnlock()
	f.write("%s OK [CAPABILITY %s] Logged in", tag, strings.Join(caps, " "))
	_ = f.conn.SetDeadline(time.Time{})
	s := f.session(account, l)
	return func(ctx context.Context) {
		s.run(ctx, func() *upstream { return s.standby(lease) })
	}, nil
}

func (f *front) who() Client {
	return Client{Addr: f.conn.RemoteAddr(), Local: f.conn.LocalAddr(), TLS: f.secured}
}

func (f *front) session(account string, l Login) *imapSession {
	return newIMAPSession(f.p, account, l, f.who(), &buffered{f.conn, f.br})
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

func (f *front) enterProduction(ctx context.Context, tag string, l Login, lease Lease) (func(context.Context), error) {
	t := f.p.opt.Target
	dctx, cancel := leaseContext(ctx, lease)
	defer cancel()
	up, r, err := t.loginIMAP(dctx, f.who(), l)
	if up != nil {
		f.p.learnBanner(up)
	}
	if err != nil {
		lease.Release()
		f.p.opt.Gate.Trouble(err)
		if up != nil {
			_ = up.Close()
		}
		f.p.opt.Log.Debug("login waits", "user", l.User, "err", err)
		return nil, errLost
	}
	switch {
	case r.Name == "OK":
		return f.begin(ctx, tag, l, up, lease)
	case r.Code == "UNAVAILABLE" || r.Code == "SERVERBUG" || r.Code == "INUSE" || r.Name == "BYE":
		lease.Release()
		_ = up.Close()
		f.p.opt.Gate.Trouble(fmt.Errorf("login: %s %s", r.Name, r.Rest))
		return nil, errEnd
	}
	lease.Release()
	_ = up.Close()
	f.p.opt.Tap.Denied(l)
	code := ""
	if r.Code != "" {
		code = "[" + r.Code + "] "
	}
	return nil, f.invalid(fmt.Sprintf("%s %s %s%s", tag, r.Name, code, r.Rest))
}

// learnBanner keeps production's greeting and mechanisms for later clients.
func (p *Proxy) learnBanner(up *imapConn) {
	auth := []string{}
	for _, c := range up.caps {
		switch u := strings.ToUpper(c); u {
		case "AUTH=PLAIN", "AUTH=LOGIN", "AUTH=XOAUTH2", "AUTH=OAUTHBEARER":
			auth = append(auth, u)
		}
	}
	text := strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f {
			return -1
		}
		return r
	}, up.text)
	p.banner.mu.Lock()
	defer p.banner.mu.Unlock()
	if text != "" {
		p.banner.imapText = text
	}
	if len(auth) > 0 {
		p.banner.authCaps = auth
	}
}

// Greeting is what production says of itself.
type Greeting struct {
	Text string
	Auth []string // AUTH= capabilities
	Caps []string // shown after login
}

// Greet gives what was learned earlier, so that it is shown before production
// was reached once.
func (p *Proxy) Greet(g Greeting) {
	p.learnBanner(&imapConn{text: g.Text, caps: g.Auth})
	if len(g.Caps) > 0 {
		p.banner.mu.Lock()
		p.banner.caps = g.Caps
		p.banner.mu.Unlock()
	}
}

// Introduce asks production how it greets, so that already the first client is
// greeted alike. It does nothing if that is known.
func (p *Proxy) Introduce(ctx context.Context) error {
	p.banner.mu.RLock()
	known := p.banner.imapText != unknownText
	p.banner.mu.RUnlock()
	if known {
		return nil
	}
	up, err := p.opt.Target.IMAP.dialIMAP(ctx, Client{})
	if err != nil {
		return err
	}
	p.learnBanner(up)
	_, _ = up.command("U9", "LOGOUT") // it says BYE
	return up.Close()
}

// Greeting returns what was learned, to be kept.
func (p *Proxy) Greeting() Greeting {
	p.banner.mu.RLock()
	defer p.banner.mu.RUnlock()
	return Greeting{p.banner.imapText, slices.Clone(p.banner.authCaps), slices.Clone(p.banner.caps)}
}

// begin hands over to the pumps after production's OK.
func (f *front) begin(ctx context.Context, tag string, l Login, up *imapConn, lease Lease) (func(context.Context), error) {
	account, err := f.p.opt.Tap.LoggedIn(ctx, l)
	if err != nil {
		lease.Release()
		_ = up.Close()
		f.p.opt.Log.Error("login is not carried", "user", l.User, "err", err)
		return nil, errEnd
	}
	if up.caps == nil {
		if _, err := up.command("U4", "CAPABILITY"); err != nil {
			lease.Release()
			_ = up.Close()
			f.p.opt.Gate.Trouble(err)
			return nil, errEnd
		}
	}
	caps := cutCaps(up.caps, f.p.opt.Caps)
	f.p.banner.mu.Lock()
	f.p.banner.caps = strings.Fields(caps)
	f.p.banner.mu.Unlock()
	s := f.session(account, l)
	f.write("%s OK [CAPABILITY %s] Logged in", tag, caps)
	_ = f.conn.SetDeadline(time.Time{})
	_ = up.SetDeadline(time.Time{})
	return func(ctx context.Context) {
		s.run(ctx, func() *upstream { return &upstream{imapConn: up, lease: lease, lost: make(chan struct{})} })
	}, nil
}

// cutCaps keeps of production's capabilities those that the standby has.
func cutCaps(have, allowed []string) string {
	var out []string
	for _, c := range have {
		if hasWord(allowed, c) {
			out = append(out, c)
		}
	}
	return strings.Join(out, " ")
}

// readLogin reads LOGIN, whose arguments may be literals.
func (f *front) readLogin(tag, line string) (Login, error) {
	text := []byte(line)
	for {
		lit := imapwire.ParseMarker(append(bytes.Clone(text), '\n'))
		if !lit.Present {
			break
		}
		if lit.Size > frontLiteral || lit.Binary || len(text) > 2*frontLine {
			f.write("%s BAD Literal too long\r\n* BYE Literal too long", tag)
			return Login{}, errEnd
		}
		if !lit.NonSync {
			f.write("+ OK")
		}
		body := make([]byte, lit.Size)
		if _, err := io.ReadFull(f.br, body); err != nil {
			return Login{}, err
		}
		rest, err := smtpwire.ReadLine(f.br, frontLine)
		if err != nil {
			return Login{}, err
		}
		text = append(text, "\r\n"...)
		text = append(append(text, body...), rest...)
	}
	r := imapwire.NewReader(text[len(tag)+1+len("LOGIN"):])
	r.SP()
	user := r.AString()
	r.SP()
	pass := r.AString()
	r.End()
	if r.Err() != nil {
		return Login{}, r.Err()
	}
	return newLogin("", user, pass)
}

// newLogin refuses what SASL PLAIN cannot carry.
func newLogin(authz, user, pass string) (Login, error) {
	if user == "" || len(user)+len(authz) > 512 || len(pass) > 4096 || strings.ContainsFunc(authz+user, func(r rune) bool { return r < 0x20 || r == 0x7f }) || strings.ContainsRune(pass, 0) {
		return Login{}, fmt.Errorf("%w: user name or password", imapwire.ErrSyntax)
	}
	if authz == "" {
		authz = user
	}
	return Login{User: authz, AuthUser: user, Password: pass}, nil
}

// readSASL reads AUTHENTICATE with or without an initial response.
func (f *front) readSASL(tag, line string) (Login, error) {
	args := strings.Fields(line)[2:]
	if len(args) < 1 || len(args) > 2 {
		return Login{}, fmt.Errorf("%w: AUTHENTICATE takes a mechanism", imapwire.ErrSyntax)
	}
	initial, has := "", len(args) == 2
	if has {
		initial = args[1]
	}
	return readMechanism(strings.ToUpper(args[0]), initial, has, func(challenge string) (string, error) {
		f.write("+ %s", challenge)
		return smtpwire.ReadLine(f.br, smtpwire.MaxAuth)
	})
}

// readMechanism runs the server's side of a SASL exchange; ask sends a base64
// challenge and returns the answer's line.
func readMechanism(mech, initial string, has bool, ask func(challenge string) (string, error)) (Login, error) {
	next := func(challenge string) ([]byte, error) {
		line := initial
		if !has {
			var err error
			if line, err = ask(challenge); err != nil {
				return nil, err
			}
		}
		has = false
		if line == "*" {
			return nil, fmt.Errorf("%w: cancelled", imapwire.ErrSyntax)
		}
		if line == "=" {
			line = ""
		}
		b, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			return nil, fmt.Errorf("%w: bad base64", imapwire.ErrSyntax)
		}
		return b, nil
	}
	switch mech {
	case "PLAIN":
		b, err := next("")
		if err != nil {
			return Login{}, err
		}
		f := bytes.Split(b, []byte{0})
		if len(f) != 3 {
			return Login{}, fmt.Errorf("%w: bad PLAIN response", imapwire.ErrSyntax)
		}
		return newLogin(string(f[0]), string(f[1]), string(f[2]))
	case "LOGIN":
		user, err := next("VXNlcm5hbWU6")
		if err != nil {
			return Login{}, err
		}
		pass, err := next("UGFzc3dvcmQ6")
		if err != nil {
			return Login{}, err
		}
		return newLogin("", string(user), string(pass))
	case "XOAUTH2", "OAUTHBEARER":
		b, err := next("")
		if err != nil {
			return Login{}, err
		}
		return tokenLogin(mech, b)
	}
	return Login{}, fmt.Errorf("%w: unknown mechanism", imapwire.ErrSyntax)
}

// tokenLogin takes the user out of an XOAUTH2 or OAUTHBEARER response.
func tokenLogin(mech string, b []byte) (Login, error) {
	user := ""
	if mech == "XOAUTH2" {
		head, _, _ := bytes.Cut(b, []byte{1})
		user, _ = strings.CutPrefix(string(head), "user=")
	} else if parts := strings.SplitN(string(b), ",", 3); len(parts) == 3 {
		user, _ = strings.CutPrefix(parts[1], "a=")
	}
	l, err := newLogin("", user, "")
	l.Mechanism, l.Response = mech, b
	return l, err
}
