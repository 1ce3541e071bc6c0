// Package imapc is the IMAP client of the mirror, the copy-back, the probes and
// the tests: pipelined, bounded in memory, on the grammar of imapwire. It takes
// any untagged data that it does not know, where general client libraries end
// the connection.
//
// Implementation notes. A Conn is for one goroutine. Send writes commands;
// Wait reads up to a command's answer and hands out the untagged units in
// between. Several commands may be on their way.
package imapc

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"understudy/snoop/imapwire"
)

// ErrAuth tells that the server refused the credentials.
var ErrAuth = errors.New("login was refused")

// NoError is a NO or BAD answer.
type NoError struct {
	Command, Name, Code, Text string
}

func (e *NoError) Error() string {
	code := ""
	if e.Code != "" {
		code = "[" + e.Code + "] "
	}
	return fmt.Sprintf("%s: %s %s%s", e.Command, e.Name, code, e.Text)
}

// Options of New.
type Options struct {
	StartTLS *tls.Config   // non-nil: secure the connection first
	Timeout  time.Duration // of each answer without progress; 0 is 60 s
	MaxUnit  int64         // bytes of one response; 0 is 256 MiB
}

// Conn is a connection.
type Conn struct {
	conn net.Conn
	br   *bufio.Reader
	w    *bufio.Writer
	sc   imapwire.Scanner
	opt  Options
	n    int
	caps []string
	buf  []byte

	selected bool
}

// New takes a connection over and reads the greeting. It closes conn on error.
func New(ctx context.Context, conn net.Conn, o Options) (*Conn, error) {
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.MaxUnit == 0 {
		o.MaxUnit = 256 << 20
	}
	c := &Conn{opt: o}
	c.use(conn)
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := c.greet(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

func (c *Conn) use(conn net.Conn) {
	c.conn = conn
	c.br = bufio.NewReaderSize(conn, 64<<10)
	c.w = bufio.NewWriterSize(conn, 32<<10)
	c.sc = imapwire.Scanner{Side: imapwire.Server}
}

func (c *Conn) greet(ctx context.Context) error {
	u, err := c.unit()
	if err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	r := imapwire.ParseResponse(u)
	if r.Tag != "*" || r.Name != "OK" && r.Name != "PREAUTH" {
		return fmt.Errorf("greeting: %s %s", r.Name, r.Rest)
	}
	c.note(r)
	if c.opt.StartTLS == nil {
		return nil
	}
	if _, err := c.Do("STARTTLS", nil); err != nil {
		return err
	}
	t := tls.Client(c.conn, c.opt.StartTLS)
	if err := t.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	c.use(t)
	c.caps = nil
	return nil
}

func (c *Conn) note(r imapwire.Response) {
	switch {
	case r.Code == "CAPABILITY":
		c.caps = strings.Fields(strings.ToUpper(string(r.Arg)))
	case r.Name == "CAPABILITY":
		c.caps = strings.Fields(strings.ToUpper(string(r.Rest)))
	}
}

// TLS returns the state of a connection that was secured by STARTTLS.
func (c *Conn) TLS() tls.ConnectionState {
	if t, ok := c.conn.(*tls.Conn); ok {
		return t.ConnectionState()
	}
	return tls.ConnectionState{}
}

// Close closes the connection without a LOGOUT.
func (c *Conn) Close() { _ = c.conn.Close() }

// Logout ends the session politely.
func (c *Conn) Logout() {
	_ = c.conn.SetDeadline(time.Now().Add(2 * time.Second))
	_, _ = c.Do("LOGOUT", nil)
	_ = c.conn.Close()
}

// Has reports whether the server has a capability.
func (c *Conn) Has(name string) bool { return slices.Contains(c.caps, name) }

// Caps returns all capabilities.
func (c *Conn) Caps() []string { return c.caps }

// unit reads one response with its literals in line. The slice is valid until
// the next call.
func (c *Conn) unit() ([]byte, error) {
	c.buf = c.buf[:0]
	if cap(c.buf) > 8<<20 {
		c.buf = nil
	}
	for {
		_ = c.conn.SetReadDeadline(time.Now().Add(c.opt.Timeout))
		start := len(c.buf)
		for {
			frag, err := c.br.ReadSlice('\n')
			c.buf = append(c.buf, frag...)
			if err == nil {
				break
			}
			if !errors.Is(err, bufio.ErrBufferFull) {
				return nil, err
			}
			if int64(len(c.buf)) > c.opt.MaxUnit {
				return nil, imapwire.ErrLineTooLong
			}
		}
		p, err := c.sc.Next(c.buf[start:])
		if err != nil {
			return nil, err
		}
		if p.Last {
			return c.buf, nil
		}
		if err := c.body(p.Lit.Size); err != nil {
			return nil, err
		}
	}
}

func (c *Conn) body(n int64) error {
	if int64(len(c.buf))+n > c.opt.MaxUnit {
		return fmt.Errorf("response of more than %d bytes", c.opt.MaxUnit)
	}
	start := len(c.buf)
	c.buf = slices.Grow(c.buf, int(n))[:start+int(n)]
	for off := start; off < len(c.buf); {
		_ = c.conn.SetReadDeadline(time.Now().Add(c.opt.Timeout))
		k, err := c.br.Read(c.buf[off:])
		off += k
		if err != nil && off < len(c.buf) {
			return err
		}
	}
	c.sc.Took(n)
	return nil
}

// Send writes a command, and returns its tag. Flush or Wait puts it on its way.
func (c *Conn) Send(text string) string {
	c.n++
	tag := fmt.Sprintf("u%d", c.n)
	_, _ = c.w.WriteString(tag + " " + text + "\r\n")
	return tag
}

// Flush puts what was sent on its way.
func (c *Conn) Flush() error {
	_ = c.conn.SetWriteDeadline(time.Now().Add(c.opt.Timeout))
	return c.w.Flush()
}

// Wait reads up to the answer to tag. on gets every untagged unit; its slice is
// valid only during the call. A NO or BAD is a *NoError.
func (c *Conn) Wait(tag string, on func(r imapwire.Response, unit []byte) error) (imapwire.Response, error) {
	if err := c.Flush(); err != nil {
		return imapwire.Response{}, err
	}
	var failed error
	for {
		u, err := c.unit()
		if err != nil {
			return imapwire.Response{}, err
		}
		r := imapwire.ParseResponse(u)
		c.note(r)
		switch {
		case r.Tag == tag && r.Name == "OK":
			r.Arg, r.Rest = slices.Clone(r.Arg), slices.Clone(r.Rest)
			return r, failed
		case r.Tag == tag:
			return r, &NoError{Command: tag, Name: r.Name, Code: r.Code, Text: string(r.Rest)}
		case r.Name == "BYE" && r.Tag == "*" && failed == nil:
			failed = fmt.Errorf("server said BYE %s", r.Rest)
		case r.Tag == "*" && on != nil && failed == nil:
			failed = on(r, u)
		}
	}
}

// Do sends a command and waits for its answer.
func (c *Conn) Do(text string, on func(r imapwire.Response, unit []byte) error) (imapwire.Response, error) {
	r, err := c.Wait(c.Send(text), on)
	var no *NoError
	if errors.As(err, &no) {
		no.Command, _, _ = strings.Cut(text, " ")
	}
	return r, err
}

// Login authenticates as user, with the password of authUser if that is
// another one (a master user, by the authorization identity of SASL PLAIN).
func (c *Conn) Login(user, authUser, password string) error {
	if c.caps == nil {
		if _, err := c.Do("CAPABILITY", nil); err != nil {
			return err
		}
	}
	authz := ""
	if authUser == "" {
		authUser = user
	}
	if authUser != user {
		authz = user
	}
	var err error
	if c.Has("AUTH=PLAIN") {
		resp := base64.StdEncoding.EncodeToString([]byte(authz + "\x00" + authUser + "\x00" + password))
		if c.Has("SASL-IR") {
			c.caps = nil
			_, err = c.Do("AUTHENTICATE PLAIN "+resp, nil)
		} else {
			c.caps = nil
			err = c.plain(resp)
		}
	} else {
		c.caps = nil
		_, err = c.Do("LOGIN "+imapwire.NonSyncString(user)+" "+imapwire.NonSyncString(password), nil)
	}
	var no *NoError
	if errors.As(err, &no) {
		if no.Code == "UNAVAILABLE" || no.Code == "INUSE" || no.Code == "LIMIT" {
			return err
		}
		return fmt.Errorf("%w for %s: %s", ErrAuth, user, no.Text)
	}
	if err == nil && c.caps == nil {
		_, err = c.Do("CAPABILITY", nil)
	}
	return err
}

func (c *Conn) plain(resp string) error {
	tag := c.Send("AUTHENTICATE PLAIN")
	if err := c.Flush(); err != nil {
		return err
	}
	u, err := c.unit()
	if err != nil {
		return err
	}
	if u[0] == '+' {
		_, _ = c.w.WriteString(resp + "\r\n")
	}
	_, err = c.Wait(tag, nil)
	return err
}

// Appending is a message for Append.
type Appending struct {
	Mailbox string
	Flags   []string
	Date    time.Time // zero: now, as the server sees it
	Body    []byte
}

// AppendsMany reports whether one APPEND can take several messages, all or none
// (RFC 3502).
func (c *Conn) AppendsMany() bool { return c.Has("MULTIAPPEND") && c.Has("LITERAL+") }

// SendAppend writes an APPEND; with LITERAL+ it does not wait. More messages for
// the same mailbox are only for where AppendsMany.
func (c *Conn) SendAppend(a Appending, more ...Appending) (tag string, err error) {
	if !c.Has("LITERAL+") {
		tag = c.Send(fmt.Sprintf("APPEND %s%s {%d}", imapwire.AString(a.Mailbox), a.attributes(), len(a.Body)))
		if err := c.Flush(); err != nil {
			return tag, err
		}
		u, err := c.unit()
		if err != nil {
			return tag, err
		}
		if u[0] != '+' {
			r := imapwire.ParseResponse(u)
			return tag, &NoError{Command: "APPEND", Name: r.Name, Code: r.Code, Text: string(r.Rest)}
		}
	} else {
		tag = c.Send(fmt.Sprintf("APPEND %s%s {%d+}", imapwire.NonSyncString(a.Mailbox), a.attributes(), len(a.Body)))
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(10 * time.Minute))
	if _, err := c.w.Write(a.Body); err != nil {
		return tag, err
	}
	for _, m := range more {
		if _, err := fmt.Fprintf(c.w, "%s {%d+}\r\n", m.attributes(), len(m.Body)); err != nil {
			return tag, err
		}
		if _, err := c.w.Write(m.Body); err != nil {
			return tag, err
		}
	}
	_, err = io.WriteString(c.w, "\r\n")
	return tag, err
}

// attributes are flags and date as APPEND takes them, each with a space ahead.
func (a Appending) attributes() (s string) {
	if a.Flags != nil {
		s += " " + imapwire.FormatFlags(a.Flags)
	}
	if !a.Date.IsZero() {
		s += ` "` + a.Date.Format(imapwire.DateTime) + `"`
	}
	return s
}

// Append appends a message and returns what APPENDUID told, zeros if nothing.
func (c *Conn) Append(a Appending) (validity, uid uint32, err error) {
	tag, err := c.SendAppend(a)
	if err != nil {
		return 0, 0, err
	}
	r, err := c.Wait(tag, nil)
	if err != nil {
		return 0, 0, err
	}
	validity, uids := AppendUIDs(r)
	if len(uids) != 1 {
		return 0, 0, nil
	}
	return validity, uids[0], nil
}

// maxAppended bounds the UIDs of one APPENDUID.
const maxAppended = 10_000

// AppendUIDs reads an APPENDUID code; nil if there is none.
func AppendUIDs(r imapwire.Response) (validity uint32, uids []uint32) {
	if r.Code != "APPENDUID" {
		return 0, nil
	}
	rd := imapwire.NewReader(r.Arg)
	v := rd.Number32()
	rd.SP()
	uids, err := rd.Set().Numbers(maxAppended)
	if rd.Err() != nil || err != nil {
		return 0, nil
	}
	return v, uids
}

// Idle waits for untagged data until ctx ends; on is called for each unit. It
// renews itself every nine minutes.
func (c *Conn) Idle(ctx context.Context, on func(r imapwire.Response)) error {
	for ctx.Err() == nil {
		if err := c.idleOnce(ctx, on); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (c *Conn) idleOnce(ctx context.Context, on func(r imapwire.Response)) error {
	round, cancel := context.WithTimeout(ctx, 9*time.Minute)
	defer cancel()
	tag := c.Send("IDLE")
	if err := c.Flush(); err != nil {
		return err
	}
	defer func(t time.Duration) { c.opt.Timeout = t }(c.opt.Timeout)
	c.opt.Timeout = 10 * time.Minute
	stop := context.AfterFunc(round, func() {
		_ = c.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
		_, _ = c.conn.Write([]byte("DONE\r\n"))
	})
	defer stop()
	for {
		u, err := c.unit()
		if err != nil {
			return err
		}
		switch r := imapwire.ParseResponse(u); {
		case r.Tag == tag && r.Name != "OK":
			return &NoError{Command: "IDLE", Name: r.Name, Text: string(r.Rest)}
		case r.Tag == tag:
			return nil
		case r.Tag == "*" && !r.Status():
			on(r)
		}
	}
}
