// Package smtpd is the standby's SMTP server (RFC 5321) behind the proxy's
// front: the front has read and checked every command, this package decides
// about recipients, delivers into the replica, and keeps outbound mail.
//
// Implementation notes. A message is held durably, with all its local
// recipients, before it is put into mailboxes; delivering a recipient and
// striking it off is one batch. So 250 is given for what is durable, and a
// crash in between delivers nothing twice. A library's server is not used: the
// front must parse and bound every command anyway, and what then is left is
// this package.
package smtpd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"understudy/replica/row"
	"understudy/snoop/smtpwire"
)

// Store is what the server needs of the replica.
type Store interface {
	RouteOf(rcpt string) (row.Route, bool)
	Take(ctx context.Context, h row.Held) (row.Held, error)
	HeldAll() []row.Held
	Deliver(ctx context.Context, h row.Held, rcpt string, msg []byte) error
	Giving(ctx context.Context, id uint64, now time.Time, due func(row.Held) bool) (was row.Held, ok bool, err error)
	Given(ctx context.Context, id uint64) error
	NotGiven(ctx context.Context, id uint64) error
	GivingLost(ctx context.Context, id uint64) error
	Message(ref row.Ref) ([]byte, error)
	Enqueue(ctx context.Context, q row.Queued) (row.Queued, error)
	Dequeue(ctx context.Context, id uint64) error
	Queued() ([]row.Queued, error)
}

// Options of New.
type Options struct {
	Store    Store
	NewSpool func() row.Spool
	Hostname string
	// Local reports whether a domain's mail is kept here.
	Local func(addr string) bool
	// Check verifies a password, and returns the account.
	Check   func(user, password string) (account string, err error)
	MaxSize int64
	Log     *slog.Logger
}

// Server is the standby's SMTP server.
type Server struct {
	opt     Options
	refused map[uint64]time.Time // Inject: held messages that production refused
}

// New returns a server.
func New(o Options) *Server { return &Server{opt: o, refused: map[uint64]time.Time{}} }

// Session is one client's session.
type Session struct {
	s          *Server
	ctx        context.Context
	submission bool
	client     string
	helo       string
	user       string
	from       string
	inTx       bool
	params     []string
	local      []string
	remote     []string
	spool      row.Spool
}

// Session begins a session of a client at an address.
func (s *Server) Session(ctx context.Context, client string, submission bool) *Session {
	return &Session{s: s, ctx: ctx, client: client, submission: submission}
}

func reply(code int, format string, a ...any) smtpwire.Reply {
	return smtpwire.NewReply(code, format, a...)
}

// Greeting is the 220.
func (c *Session) Greeting() smtpwire.Reply {
	return reply(220, "%s ESMTP", c.s.opt.Hostname)
}

// Hello answers EHLO or HELO.
func (c *Session) Hello(name string, esmtp bool) smtpwire.Reply {
	c.reset()
	c.helo = name
	if !esmtp {
		return reply(250, "%s", c.s.opt.Hostname)
	}
	return smtpwire.Reply{Code: 250, Lines: []string{c.s.opt.Hostname, "PIPELINING",
		fmt.Sprintf("SIZE %d", c.s.opt.MaxSize),
		"AUTH PLAIN LOGIN", "ENHANCEDSTATUSCODES", "8BITMIME", "SMTPUTF8", "DSN"}}
}

// Auth answers AUTH with a password; denied and unknown are told apart, so
// that a fault never looks like a wrong password.
func (c *Session) Auth(user, password string, denied error) smtpwire.Reply {
	account, err := c.s.opt.Check(user, password)
	switch {
	case errors.Is(err, denied):
		time.Sleep(time.Second)
		return reply(535, "5.7.8 Authentication failed")
	case err != nil:
		return reply(454, "4.7.0 Temporary authentication failure")
	}
	c.user = account
	return reply(235, "2.7.0 Authentication successful")
}

func (c *Session) reset() {
	c.from, c.inTx, c.params, c.local, c.remote = "", false, nil, nil, nil
	if c.spool != nil {
		c.spool.Discard()
		c.spool = nil
	}
}

// Command answers a command that the front has checked.
func (c *Session) Command(verb, line string) smtpwire.Reply {
	_, arg, _ := strings.Cut(line, " ")
	switch verb {
	case "MAIL":
		return c.mail(arg)
	case "RCPT":
		return c.rcpt(arg)
	case "RSET":
		c.reset()
		return reply(250, "2.0.0 Ok")
	case "NOOP":
		return reply(250, "2.0.0 Ok")
	case "VRFY":
		return reply(252, "2.0.0 Send some mail, I'll try my best")
	case "HELP":
		return reply(214, "2.0.0 See RFC 5321")
	case "QUIT":
		return reply(221, "2.0.0 Bye")
	}
	return reply(502, "5.5.1 Command not implemented")
}

func (c *Session) mail(arg string) smtpwire.Reply {
	p, err := smtpwire.ParsePath("FROM", arg)
	if err != nil {
		return reply(501, "5.1.7 Bad sender address")
	}
	if c.helo == "" {
		return reply(503, "5.5.1 Send HELO/EHLO first")
	}
	if c.submission && c.user == "" {
		return reply(530, "5.7.0 Authentication required")
	}
	c.reset()
	c.from, c.params, c.inTx = p.Addr, p.Params, true
	return reply(250, "2.1.0 Ok")
}

func (c *Session) rcpt(arg string) smtpwire.Reply {
	p, err := smtpwire.ParsePath("TO", arg)
	switch {
	case err != nil:
		return reply(501, "5.1.3 Bad recipient address")
	case !c.inTx:
		return reply(503, "5.5.1 Need MAIL first")
	case len(c.local)+len(c.remote) >= 1000:
		return reply(452, "4.5.3 Too many recipients")
	}
	switch _, known := c.s.opt.Store.RouteOf(p.Addr); {
	case known && c.s.opt.Local(p.Addr):
		c.local = append(c.local, p.Addr)
	case c.s.opt.Local(p.Addr):
		return reply(550, "5.1.1 <%s>: Recipient address rejected: User unknown", p.Addr)
	case c.user != "":
		c.remote = append(c.remote, p.Addr)
	default:
		return reply(554, "5.7.1 <%s>: Relay access denied", p.Addr)
	}
	return reply(250, "2.1.5 Ok")
}

// Data begins the message.
func (c *Session) Data() (io.Writer, *smtpwire.Reply) {
	if len(c.local)+len(c.remote) == 0 {
		r := reply(554, "5.5.1 Error: no valid recipients")
		return nil, &r
	}
	c.spool = c.s.opt.NewSpool()
	return c.spool, nil
}

// Finish makes the message durable and delivers it.
func (c *Session) Finish() smtpwire.Reply {
	defer c.reset()
	ref, err := c.spool.Commit()
	if err != nil {
		c.s.opt.Log.Error("store a message that arrives", "err", err)
		return reply(452, "4.3.1 Insufficient system storage")
	}
	now := time.Now()
	if len(c.remote) > 0 {
		if _, err := c.s.opt.Store.Enqueue(c.ctx, row.Queued{From: c.from, Rcpts: c.remote, Ref: ref, Arrived: now,
			Next: now}); err != nil {
			c.s.opt.Log.Error("queue outbound mail", "err", err)
			return reply(451, "4.3.0 Queue failed")
		}
	}
	if len(c.local) > 0 {
		h := row.Held{From: c.from, Rcpts: c.local, Params: c.params, Ref: ref, Arrived: now}
		if h, err = c.s.opt.Store.Take(c.ctx, h); err != nil {
			c.s.opt.Log.Error("hold a message that arrives", "err", err)
			return reply(451, "4.3.0 Store failed")
		}
		// From here on the message is accepted; what fails is done by Replay.
		c.s.deliver(c.ctx, h, fmt.Sprintf("from %s (%s)", c.helo, c.client))
	}
	return reply(250, "2.0.0 Ok: queued as %s", ref.String()[:12])
}

// deliver puts a held message into the mailboxes of its recipients.
func (s *Server) deliver(ctx context.Context, h row.Held, via string) (left int) {
	orig, err := s.opt.Store.Message(h.Ref)
	if err != nil {
		s.opt.Log.Error("read a held message", "held", h.ID, "err", err)
		return len(h.Rcpts)
	}
	for _, rcpt := range h.Rcpts {
		head := fmt.Sprintf("Return-Path: <%s>\r\nDelivered-To: %s\r\nReceived: %s\r\n\tby %s with ESMTP id %s\r\n"+
			"\tfor <%s>; %s\r\n",
			h.From, rcpt, via, s.opt.Hostname, h.Ref.String()[:12], rcpt, h.Arrived.Format(time.RFC1123Z))
		if err := s.opt.Store.Deliver(ctx, h, rcpt, append([]byte(head), orig...)); err != nil {
			s.opt.Log.Info("message stays held", "held", h.ID, "err", err)
			left++
		}
	}
	return left
}

// Replay delivers what production accepted and was not seen in a mailbox. It
// returns the number of recipients that have no known mailbox.
func (s *Server) Replay(ctx context.Context) (left int) {
	for _, h := range s.opt.Store.HeldAll() {
		if !h.MayDeliver() {
			continue // nobody was told 250; the sender will come again
		}
		left += s.deliver(ctx, h, "from production (held)")
	}
	return left
}
