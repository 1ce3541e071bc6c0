// Package smtp carries SMTP sessions between clients and whoever answers them.
//
// Implementation notes. Everything is read and written command by command
// (front.go): one is sent after the one before was answered. A session keeps what
// its client has said, so that its upstream can be replaced (swap.go): between two
// commands, or in the middle of one that was not answered. The body of a message
// is kept while it passes; its 250 is passed on only when it is durable
// (finish.go). One goroutine serves the client; another waits for the lease to be
// revoked, and takes swap.mu, a Turn, before it gives up the upstream.
package smtp

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"

	"understudy/proxy/seam"
	"understudy/proxy/upstream"
	"understudy/replica/row"
	"understudy/snoop/smtpwire"
)

// Upstream is one SMTP session with whoever answers. The calls return the reply,
// or an error if the session is lost; the outcome of the call is then unknown.
type Upstream interface {
	Greeting() (smtpwire.Reply, error)
	Hello(c seam.Client) (smtpwire.Reply, error)
	Auth(l seam.Login) (smtpwire.Reply, error)
	Command(verb, line string) (smtpwire.Reply, error)
	// Data begins a body after a 354; without a body the reply is a refusal.
	Data() (body io.Writer, r smtpwire.Reply, err error)
	// Finish ends the body and returns the outcome.
	Finish() (smtpwire.Reply, error)
	Close()
}

// Standby makes an upstream of its own for one session.
type Standby interface {
	NewSMTP(ctx context.Context, c seam.Client) Upstream
}

// Logins is told that production accepted a login.
type Logins interface {
	LoggedIn(ctx context.Context, l seam.Login) (account string, err error)
}

// Arrivals keeps what production is given.
type Arrivals interface {
	// Arriving begins to make a whole message durable while production decides
	// about it.
	Arriving(ctx context.Context, m row.Envelope, sp row.Spool) Arrival
}

// Arrival is a message between its end-of-data and production's answer. One of
// its methods is called, once.
type Arrival interface {
	// Accepted waits until the message is durable.
	Accepted() error
	// Refused forgets the message.
	Refused()
	// Owe is for a message of which it is not known whether production has it:
	// it is as good as accepted for those recipients whose mailboxes are known
	// here. The others are returned.
	Owe() (others []string, err error)
}

// Senders knows messages whose senders may come again, whoever answers.
type Senders interface {
	// Taking tells that a message is about to be taken; answered must be called
	// with whether its sender was told anything.
	Taking(m row.Envelope, sp row.Spool) (answered func(bool))
	// Repeated reports whether a message was taken before and its sender not
	// answered.
	Repeated(ctx context.Context, m row.Envelope, sp row.Spool) (bool, error)
}

// Options of New.
type Options struct {
	Gate     seam.Gate
	Standby  Standby
	Target   upstream.Target
	NewSpool func() row.Spool // begins to keep a message that a client sends
	// Logins, Arrivals and Senders are needed where there is production: without a
	// Target's SMTP address they may be nil.
	Logins   Logins
	Arrivals Arrivals
	Senders  Senders
	// StartTLS ends TLS on a client's connection; nil: there is none.
	StartTLS   func(ctx context.Context, conn net.Conn) (net.Conn, error)
	PlainOK    bool  // logins without TLS are allowed
	MaxMessage int64 // in bytes; 0 is 50 MiB
	Log        *slog.Logger
}

// Server serves clients' connections.
type Server struct{ opt Options }

// New checks the options.
func New(o Options) (*Server, error) {
	if o.Gate == nil || o.Standby == nil || o.NewSpool == nil {
		return nil, errors.New("proxy/smtp: gate, standby and spools are needed")
	}
	if o.Target.SMTP.Addr+o.Target.Submission.Addr != "" && (o.Logins == nil || o.Arrivals == nil || o.Senders == nil) {
		return nil, errors.New("proxy/smtp: what production answers has to be followed")
	}
	if o.Senders == nil {
		o.Senders = forgetful{}
	}
	if o.MaxMessage == 0 {
		o.MaxMessage = 50 << 20
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{opt: o}, nil
}

// forgetful is for a site whose standby is all there is.
type forgetful struct{}

func (forgetful) Taking(row.Envelope, row.Spool) func(bool) { return func(bool) {} }
func (forgetful) Repeated(context.Context, row.Envelope, row.Spool) (bool, error) {
	return false, nil
}
