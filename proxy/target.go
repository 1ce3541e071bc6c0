package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"understudy/snoop/imapwire"
	"understudy/snoop/smtpwire"
)

// Security is how a connection to production is protected.
type Security string

// The kinds of protection.
const (
	Plain    Security = "plain"
	StartTLS Security = "starttls"
	Implicit Security = "tls"
)

// Endpoint is one port of production.
type Endpoint struct {
	Addr     string // host:port
	Security Security
	TLS      *tls.Config // for the two that need it
	// Via makes the connection, on behalf of a client if there is one; nil is a
	// net.Dialer.
	Via func(ctx context.Context, c Client, addr string) (net.Conn, error)
	// ProxyProtocol: send the client's address in a version 2 header first.
	ProxyProtocol bool
}

// Target is production.
type Target struct {
	IMAP, SMTP, Submission Endpoint
	// XClient: tell SMTP the client's address and name where it offers XCLIENT.
	XClient bool
	// ClientID: tell IMAP the client's address by ID (x-originating-ip), which
	// Dovecot believes of its login_trusted_networks.
	ClientID bool
	// Timeout to connect, and of each step up to the login; 0 is 10 s.
	Timeout time.Duration
}

func (t Target) timeout() time.Duration {
	if t.Timeout == 0 {
		return 10 * time.Second
	}
	return t.Timeout
}

// Dial connects as the box itself.
func (e Endpoint) Dial(ctx context.Context) (net.Conn, error) { return e.dial(ctx, Client{}) }

// dial connects, with TLS if implicit, and sends the PROXY header.
func (e Endpoint) dial(ctx context.Context, c Client) (net.Conn, error) {
	via := e.Via
	if via == nil {
		d := net.Dialer{}
		d.SetMultipathTCP(false)
		via = func(ctx context.Context, _ Client, addr string) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	conn, err := via(ctx, c, e.Addr)
	if err != nil {
		return nil, fmt.Errorf("production: %w", err)
	}
	// Whoever gives a connection up asks somebody else: what the kernel has not
	// got through by then must not arrive later.
	if l, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	if e.ProxyProtocol {
		if _, err := conn.Write(proxyHeader(c.Addr, c.Local)); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("production: %w", err)
		}
	}
	if e.Security == Implicit {
		return e.secure(ctx, conn)
	}
	return conn, nil
}

func (e Endpoint) secure(ctx context.Context, conn net.Conn) (net.Conn, error) {
	t := tls.Client(conn, e.TLS)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("TLS with production at %s: %w", e.Addr, err)
	}
	return t, nil
}

// proxyHeader is the PROXY protocol's version 2 header for TCP.
func proxyHeader(client, local net.Addr) []byte {
	b := []byte("\r\n\r\n\x00\r\nQUIT\n")
	src, ok1 := addrPort(client)
	dst, ok2 := addrPort(local)
	if !ok1 || !ok2 || src.Addr().Is4() != dst.Addr().Is4() {
		return append(b, 0x20, 0x00, 0, 0) // LOCAL
	}
	fam, n := byte(0x11), 12
	if src.Addr().Is6() {
		fam, n = 0x21, 36
	}
	b = append(b, 0x21, fam, 0, byte(n))
	b = append(b, src.Addr().AsSlice()...)
	b = append(b, dst.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}

func addrPort(a net.Addr) (netip.AddrPort, bool) {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port()), true
}

// imapConn is a connection to production's IMAP server before login.
type imapConn struct {
	net.Conn
	br   *bufio.Reader
	text string   // of the greeting
	caps []string // before login
}

func (e Endpoint) dialIMAP(ctx context.Context, c Client) (*imapConn, error) {
	conn, err := e.dial(ctx, c)
	if err != nil {
		return nil, err
	}
	ic := &imapConn{Conn: conn, br: bufio.NewReaderSize(conn, 4<<10)}
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

// leaseContext ends when the lease is revoked.
func leaseContext(ctx context.Context, l Lease) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-l.Revoked:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// loginIMAP connects and logs in as a client. The connection may come with an
// error, and is then the caller's to close.
func (t Target) loginIMAP(ctx context.Context, who Client, l Login) (*imapConn, imapwire.Response, error) {
	dctx, cancel := context.WithTimeout(ctx, t.timeout())
	defer cancel()
	up, err := t.IMAP.dialIMAP(dctx, who)
	if err != nil {
		return nil, imapwire.Response{}, err
	}
	id := ""
	if t.ClientID {
		id = originID(who)
	}
	_ = up.SetDeadline(time.Now().Add(answerTimeout))
	defer context.AfterFunc(ctx, func() { _ = up.Close() })()
	r, err := up.login(l, id)
	return up, r, err
}

func (ic *imapConn) greet(ctx context.Context, e Endpoint) error {
	r, err := ic.response()
	if err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if r.Tag != "*" || r.Name != "OK" {
		return fmt.Errorf("greeting: %s %s", r.Name, r.Rest)
	}
	ic.text = string(r.Rest)
	ic.note(r)
	if e.Security == StartTLS {
		if _, err := ic.command("U0", "STARTTLS"); err != nil {
			return fmt.Errorf("STARTTLS: %w", err)
		}
		t, err := e.secure(ctx, ic.Conn)
		if err != nil {
			return err
		}
		// Whatever came in the clear behind the answer is dropped.
		ic.Conn, ic.br, ic.caps = t, bufio.NewReaderSize(t, 4<<10), nil
	}
	if ic.caps == nil {
		if _, err := ic.command("U1", "CAPABILITY"); err != nil {
			return fmt.Errorf("CAPABILITY: %w", err)
		}
	}
	return nil
}

func (ic *imapConn) note(r imapwire.Response) {
	if r.Code == "CAPABILITY" {
		ic.caps = strings.Fields(string(r.Arg))
	}
	if r.Name == "CAPABILITY" {
		ic.caps = strings.Fields(string(r.Rest))
	}
}

// response reads one line, which before login holds no literal.
func (ic *imapConn) response() (imapwire.Response, error) {
	line, err := smtpwire.ReadLine(ic.br, 16<<10)
	if err != nil {
		return imapwire.Response{}, err
	}
	r := imapwire.ParseResponse([]byte(line))
	return r, nil
}

// command sends a line and reads up to its tagged answer.
func (ic *imapConn) command(tag, text string) (imapwire.Response, error) {
	if _, err := fmt.Fprintf(ic.Conn, "%s %s\r\n", tag, text); err != nil {
		return imapwire.Response{}, err
	}
	r, err := ic.answer(tag)
	if err == nil && r.Name != "OK" {
		err = fmt.Errorf("%s %s", r.Name, r.Rest)
	}
	return r, err
}

func (ic *imapConn) answer(tag string) (imapwire.Response, error) {
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
func (ic *imapConn) login(l Login, id string) (imapwire.Response, error) {
	mech, resp := "PLAIN", plainResponse(l)
	if l.Token() {
		mech, resp = l.Mechanism, l.Response
	}
	enc := base64.StdEncoding.EncodeToString(resp)
	if !hasWord(ic.caps, "ID") {
		id = ""
	}
	if !hasWord(ic.caps, "SASL-IR") {
		if id != "" {
			caps := ic.caps
			if _, err := ic.command("U3", id); err != nil {
				return imapwire.Response{}, err
			}
			ic.caps = caps
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
	ic.caps = nil
	return ic.answer("U2")
}

// loginPlain is for servers without SASL-IR.
func (ic *imapConn) loginPlain(l Login, mech, enc string) (imapwire.Response, error) {
	if !hasWord(ic.caps, "AUTH="+mech) && mech == "PLAIN" && l.User == l.AuthUser {
		ic.caps = nil
		if _, err := fmt.Fprintf(ic.Conn, "U2 LOGIN %s %s\r\n", imapwire.AString(l.User), imapwire.AString(l.Password)); err != nil {
			return imapwire.Response{}, err
		}
		return ic.answer("U2")
	}
	ic.caps = nil
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

func plainResponse(l Login) []byte {
	authz := ""
	if l.User != l.AuthUser {
		authz = l.User
	}
	return []byte(authz + "\x00" + l.AuthUser + "\x00" + l.Password)
}

func hasWord(list []string, w string) bool {
	for _, x := range list {
		if strings.EqualFold(x, w) {
			return true
		}
	}
	return false
}

// originID is the ID command that tells Dovecot the client's address.
func originID(c Client) string {
	a, ok := addrPort(c.Addr)
	if !ok {
		return ""
	}
	return fmt.Sprintf(`ID ("x-originating-ip" "%s" "x-originating-port" "%d")`, a.Addr(), a.Port())
}
