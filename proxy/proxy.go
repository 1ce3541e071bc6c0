// Package proxy stands between clients and the mail server: it accepts, ends
// TLS, logs in on behalf of the client, and then moves bytes both ways while
// the transaction cache looks on.
//
// Implementation notes. Before login nothing is passed through: commands are
// read strictly and written again canonically, one at a time, so that proxy
// and server can never disagree about who logged in. After login IMAP bytes
// pass unchanged, but for capability lists and, in a mailbox that has one, the
// virtual UIDVALIDITY. SMTP is read and written command by command throughout.
// A tagged OK to a change, and the 250 to a message, are passed on only when
// the Tap says that the change is durable. A session's upstream is replaced when
// it is lost or its lease is revoked: what the client is owed is asked of the
// next one (imap_adopt.go, smtp_seam.go). Locks that are held while a peer is
// waited for are of the type lock. Where the state of a session is in doubt it
// is closed.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
	"understudy/snoop/smtpwire"
)

// Side is who answers.
type Side uint8

// The sides.
const (
	Production Side = iota
	Standby
)

// Lease lets a session use a side until Revoked is closed.
type Lease struct {
	Side    Side
	Revoked <-chan struct{}
	// Patience is asked once Revoked is closed: how long commands that are under
	// way may still be answered. nil is not at all.
	Patience func() time.Duration
	Release  func()
}

func (l Lease) patience() time.Duration {
	if l.Patience == nil {
		return 0
	}
	return l.Patience()
}

// Gate decides which side answers. While none does, Enter waits.
type Gate interface {
	// Enter is for an account, or with "" for a session that has none yet.
	Enter(ctx context.Context, account string) (Lease, error)
	// Trouble reports a failure of production that a session met.
	Trouble(err error)
}

// BoxState identifies a state of a mailbox.
type BoxState struct {
	UIDValidity, UIDNext uint32
	Exists               int
}

// Login is a client's proof of who it is.
type Login struct {
	User     string // whose mailbox
	AuthUser string // who proves it; equal to User but for master users
	Password string
	// Mechanism and Response are set for tokens, which are passed on as they are.
	Mechanism string
	Response  []byte
}

// Token reports a login that is no password.
func (l Login) Token() bool { return l.Mechanism != "" }

// Errors of an Authenticator.
var (
	ErrDenied      = errors.New("authentication failed")
	ErrUnavailable = errors.New("authentication is not possible at the moment")
)

// Tap is the transaction cache as the proxy sees it.
type Tap interface {
	// LoggedIn tells that production accepted a login, and returns the account.
	LoggedIn(ctx context.Context, l Login) (account string, err error)
	// Known is what the replica holds of a mailbox now; nil if it does not know it.
	Known(account, mailbox string) *row.Snapshot
	// Changes returns the flags of the messages that changed after a MODSEQ of
	// the replica (0: none), and of some others.
	Changes(account, mailbox string, since uint64, also []uint32) []row.FlagsOf
	// Mark returns the UID that the next message of a mailbox gets, as far as
	// the replica knows.
	Mark(account, mailbox string) uint32
	// Outcome finds out whether a command that was not answered was done, and
	// returns the response code of its OK.
	Outcome(ctx context.Context, account string, c *imapsession.Cmd, sp row.Spool, side Side) (code string, done bool, err error)
	// NewSpool begins to keep a message that a client sends.
	NewSpool() row.Spool
	// Settle makes durable what a command that production accepted changed.
	Settle(ctx context.Context, account string, c *imapsession.Cmd, ok imapwire.Response, sp row.Spool) error
	// Follow waits a moment until the replica has what production has of a mailbox.
	Follow(ctx context.Context, account, mailbox string)
	// Hint tells that a mailbox changed in a way that was not followed.
	Hint(account, mailbox string)
	// Asking notes a command that is about to be sent to production; answered, if
	// not nil, is called when its outcome is known, or Unanswered was told of it.
	Asking(account string, c *imapsession.Cmd) (answered func())
	// Unanswered tells of a command that production did not answer before the
	// session was lost.
	Unanswered(account string, c *imapsession.Cmd)
	// Denied tells that production refused a login.
	Denied(l Login)
	// Virtual returns what a mailbox's UIDVALIDITY is shown as, 0 if as it is.
	Virtual(account, mailbox string) uint32
	// Arriving begins to make a whole message durable while production decides
	// about it. Accepted waits for that; Refused forgets the message.
	Arriving(ctx context.Context, m row.Envelope, sp row.Spool) Arrival
	// Repeated reports whether a message was taken before and its sender not
	// answered.
	Repeated(ctx context.Context, m row.Envelope, sp row.Spool) (bool, error)
	// Taking tells that a message is about to be taken; answered must be called
	// with whether its sender was told anything.
	Taking(m row.Envelope, sp row.Spool) (answered func(bool))
}

// Arrival is a message between its end-of-data and production's answer.
type Arrival interface {
	Accepted() error
	Refused()
	// Owe is for a message of which it is not known whether production has it:
	// it is as good as accepted for those recipients whose mailboxes are known
	// here. The others are returned.
	Owe() (others []string, err error)
}

// StandbyIMAP serves a session that has logged in.
type StandbyIMAP interface {
	Authenticate(ctx context.Context, l Login) (account string, err error)
	ServeIMAP(ctx context.Context, conn net.Conn, account string, caps []string) error
}

// StandbySMTP makes an upstream of its own for one SMTP session.
type StandbySMTP interface {
	NewSMTP(ctx context.Context, c Client) SMTPUpstream
}

// Client is what an upstream is told of a client.
type Client struct {
	Addr       net.Addr
	Local      net.Addr
	Submission bool
	TLS        bool
	Helo       string
	ESMTP      bool
}

// SMTPUpstream is one SMTP session with whoever answers.
type SMTPUpstream interface {
	// Greeting and the other calls return the reply, or an error if the
	// session is lost; the outcome of the call is then unknown.
	Greeting() (smtpwire.Reply, error)
	Hello(c Client) (smtpwire.Reply, error)
	Auth(l Login) (smtpwire.Reply, error)
	Command(verb, line string) (smtpwire.Reply, error)
	// Data begins a body after a 354; Finish ends it and returns the outcome.
	Data() (io.Writer, error)
	Finish() (smtpwire.Reply, error)
	Close()
}

// Options of New.
type Options struct {
	Gate    Gate
	Tap     Tap
	Target  Target
	IMAP    StandbyIMAP
	SMTP    StandbySMTP
	TLS     *tls.Config // nil: no TLS towards clients
	Caps    []string    // IMAP capabilities that may be shown
	Log     *slog.Logger
	PlainOK bool // logins without TLS are allowed
	// Master returns a login as somebody else, for sessions whose own
	// credentials are no longer taken when they are moved; nil if there is none.
	Master func(user string) Login
	// Timeout of an idle session before login; 0 is 3 minutes.
	Timeout time.Duration
	// MaxSessions is the number of open sessions; 0 is 10,000.
	MaxSessions int
	// MaxMessage in bytes; 0 is 50 MiB.
	MaxMessage int64
}

// Proxy serves listeners.
type Proxy struct {
	opt    Options
	slots  chan struct{}
	again  chan struct{}  // sessions that log in to production once more, at a time
	turns  chan struct{}  // sessions that the standby takes on at a time: the first need not wait for the last
	far    sync.WaitGroup // far ends of sessions
	banner banner
}

// unknownText is how clients are greeted while production's way is not known.
const unknownText = "ready."

// banner is what production says of itself, learned from its sessions.
type banner struct {
	mu       sync.RWMutex
	imapText string
	authCaps []string // AUTH= of production
	caps     []string // shown after login: production's, cut down
}

// New checks the options.
func New(o Options) (*Proxy, error) {
	if o.Gate == nil || o.Tap == nil || o.IMAP == nil || o.SMTP == nil {
		return nil, errors.New("proxy: gate, tap and standby are needed")
	}
	if o.Timeout == 0 {
		o.Timeout = 3 * time.Minute
	}
	if o.MaxSessions == 0 {
		o.MaxSessions = 10_000
	}
	if o.MaxMessage == 0 {
		o.MaxMessage = 50 << 20
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{opt: o, slots: make(chan struct{}, o.MaxSessions), again: make(chan struct{}, 64), turns: make(chan struct{}, 16)}
	p.banner.imapText = unknownText
	p.banner.caps = o.Caps
	p.banner.authCaps = []string{"AUTH=PLAIN", "AUTH=LOGIN"}
	return p, nil
}

// Kind is what a listener serves.
type Kind uint8

// The kinds of listener.
const (
	IMAP Kind = iota
	IMAPS
	SMTP
	Submission
	Submissions
)

// Serve accepts connections until ctx ends, and returns when all its sessions
// are gone.
func (p *Proxy) Serve(ctx context.Context, l net.Listener, kind Kind) error {
	var g errgroup.Group
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return g.Wait()
		}
		if err != nil {
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() || temporary(err) {
				p.opt.Log.Warn("accept", "err", err)
				time.Sleep(50 * time.Millisecond)
				continue
			}
			return errors.Join(fmt.Errorf("accept on %s: %w", l.Addr(), err), g.Wait())
		}
		select {
		case p.slots <- struct{}{}:
		default:
			p.opt.Log.Warn("too many sessions", "limit", p.opt.MaxSessions, "client", conn.RemoteAddr())
			_ = conn.Close()
			continue
		}
		g.Go(func() error {
			defer func() { <-p.slots }()
			p.ServeConn(ctx, conn, kind)
			return nil
		})
	}
}

// temporary: running out of file descriptors passes.
func temporary(err error) bool {
	var se *os.SyscallError
	return errors.As(err, &se)
}

// ServeConn serves one client and closes its connection.
func (p *Proxy) ServeConn(ctx context.Context, conn net.Conn, kind Kind) {
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })()
	if tc, ok := conn.(*net.TCPConn); ok {
		_ = tc.SetNoDelay(true)
	}
	client := conn
	if kind == IMAPS || kind == Submissions {
		t, err := p.handshake(ctx, conn)
		if err != nil {
			p.opt.Log.Debug("TLS", "client", conn.RemoteAddr(), "err", err)
			return
		}
		client = t
	}
	switch kind {
	case IMAP, IMAPS:
		p.serveIMAP(ctx, client, kind == IMAPS)
	default:
		p.serveSMTP(ctx, client, kind)
	}
}

var errNoTLS = errors.New("no certificate is configured")

func (p *Proxy) handshake(ctx context.Context, conn net.Conn) (net.Conn, error) {
	if p.opt.TLS == nil {
		return nil, errNoTLS
	}
	t := tls.Server(conn, p.opt.TLS)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return t, nil
}
