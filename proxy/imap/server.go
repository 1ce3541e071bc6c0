// Package imap carries IMAP sessions between clients and whoever answers them.
//
// Implementation notes. Before login (front.go) nothing is passed through:
// commands are read strictly and written again canonically, one at a time. After
// login bytes pass unchanged, but for capability lists and, in a mailbox that has
// one, the virtual UIDVALIDITY. A session's two goroutines are the client's pump
// (pump.go) and the upstream's (answers.go). A tagged OK to a change is passed on
// only when Changes.Settle says that the change is durable. A session's upstream
// is replaced when it is lost or its lease is revoked (adopt.go): what the client
// is owed is asked of the next one (again.go). Where the state of a session is in
// doubt it is closed.
//
// Locks: seat.turn is taken before session.mu, and that before downlink.turn. Both
// turns are Turns, since a peer is waited for under them.
package imap

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"understudy/proxy/login"
	"understudy/proxy/seam"
	"understudy/proxy/upstream"
	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// Logins is told what production said to logins.
type Logins interface {
	// LoggedIn tells that production accepted a login, and returns the account.
	LoggedIn(ctx context.Context, l seam.Login) (account string, err error)
	// Denied tells that production refused a login.
	Denied(l seam.Login)
}

// Replica is what is known here of production's mailboxes.
type Replica interface {
	// Known is what the replica holds of a mailbox now; nil if it does not know it.
	Known(account, mailbox string) *row.Snapshot
	// Changes returns the flags of the messages that changed after a MODSEQ of
	// the replica (0: none), and of some others.
	Changes(account, mailbox string, since uint64, also []uint32) []row.FlagsOf
	// Mark returns the UID that the next message of a mailbox gets, as far as
	// the replica knows.
	Mark(account, mailbox string) uint32
	// Virtual returns what a mailbox's UIDVALIDITY is shown as, 0 if as it is.
	Virtual(account, mailbox string) uint32
}

// Changes follows the commands that change something, each from before it is sent
// until it is known what became of it.
type Changes interface {
	// Intend notes a MOVE that is about to be sent to production.
	Intend(account string, d row.Doubt) imapsession.Intent
	// Settle makes durable what a command that production accepted changed.
	Settle(ctx context.Context, account string, ex *imapsession.Exchange, ok imapwire.Response) error
	// Unanswered keeps what a MOVE may have done that production did not answer
	// before the session was lost.
	Unanswered(account string, d row.Doubt)
	// Outcome finds out whether a command that was not answered was done, and
	// returns the response code of its OK. production tells who is asked.
	Outcome(ctx context.Context, account string, ex *imapsession.Exchange,
		production bool) (code string, done bool, err error)
}

// Mailboxes is told of what mailboxes got from elsewhere.
type Mailboxes interface {
	// Follow waits a moment until the replica has what production has of a mailbox.
	Follow(ctx context.Context, account, mailbox string)
	// Hint tells that a mailbox changed in a way that was not followed.
	Hint(account, mailbox string)
}

// Standby answers in production's place.
type Standby interface {
	Authenticate(ctx context.Context, l seam.Login) (account string, err error)
	// ServeIMAP serves a session that has logged in.
	ServeIMAP(ctx context.Context, conn net.Conn, account string, caps []string) error
}

// Options of New.
type Options struct {
	Gate     seam.Gate
	Standby  Standby
	Target   upstream.Target
	NewSpool func() row.Spool // begins to keep a message that a client sends
	// Logins, Replica, Changes and Mailboxes are needed where there is production:
	// without a Target's IMAP address they may be nil.
	Logins    Logins
	Replica   Replica
	Changes   Changes
	Mailboxes Mailboxes
	Caps      seam.Caps // capabilities that may be shown
	// Master returns a login as somebody else, for sessions whose own
	// credentials are no longer taken when they are moved; nil if there is none.
	Master func(user string) seam.Login
	// StartTLS ends TLS on a client's connection; nil: there is none.
	StartTLS func(ctx context.Context, conn net.Conn) (net.Conn, error)
	PlainOK  bool          // logins without TLS are allowed
	Timeout  time.Duration // of an idle session before login; 0 is 3 minutes
	Log      *slog.Logger
}

// Bounds of what all sessions do at a time.
const (
	maxRelogins = 64 // sessions that log in to production once more
	maxTurns    = 16 // sessions that the standby takes on: the first need not wait for the last
)

// Server serves clients' connections.
type Server struct {
	opt    Options
	again  chan struct{}
	turns  chan struct{}
	far    sync.WaitGroup // far ends of sessions
	banner *login.Banner
}

// New checks the options.
func New(o Options) (*Server, error) {
	if o.Gate == nil || o.Standby == nil || o.NewSpool == nil {
		return nil, errors.New("proxy/imap: gate, standby and spools are needed")
	}
	if o.Target.IMAP.Addr != "" && (o.Logins == nil || o.Replica == nil || o.Changes == nil || o.Mailboxes == nil) {
		return nil, errors.New("proxy/imap: what production answers has to be followed")
	}
	if o.Replica == nil {
		o.Replica = unknown{}
	}
	if o.Changes == nil {
		o.Changes = unknown{}
	}
	if o.Timeout == 0 {
		o.Timeout = 3 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{opt: o, again: make(chan struct{}, maxRelogins), turns: make(chan struct{}, maxTurns),
		banner: login.NewBanner(o.Caps)}, nil
}

// Greet gives what was learned earlier, so that it is shown before production
// was reached once.
func (srv *Server) Greet(g seam.Greeting) {
	srv.banner.Learn(g.Text, g.Auth)
	if len(g.Caps) > 0 {
		srv.banner.LearnCaps(g.Caps)
	}
}

// Greeting returns what was learned, to be kept.
func (srv *Server) Greeting() seam.Greeting { return srv.banner.Show() }

// GreetingChanged is rung when something new was learned of it.
func (srv *Server) GreetingChanged() <-chan struct{} { return srv.banner.Changed() }

// Introduce asks production how it greets, so that already the first client is
// greeted alike. It does nothing if that is known.
func (srv *Server) Introduce(ctx context.Context) error {
	if srv.banner.Known() {
		return nil
	}
	up, err := srv.opt.Target.IMAP.DialIMAP(ctx, seam.Client{})
	if err != nil {
		return err
	}
	srv.banner.Learn(up.Text, up.Caps)
	_, _ = up.Command("U9", "LOGOUT") // it says BYE
	return up.Close()
}

// unknown is for a site whose standby is all there is: nothing is known of
// production.
type unknown struct{}

func (unknown) Known(string, string) *row.Snapshot                     { return nil }
func (unknown) Changes(string, string, uint64, []uint32) []row.FlagsOf { return nil }
func (unknown) Mark(string, string) uint32                             { return 0 }
func (unknown) Virtual(string, string) uint32                          { return 0 }
func (unknown) Intend(string, row.Doubt) imapsession.Intent            { return imapsession.Intent{} }
func (unknown) Unanswered(string, row.Doubt)                           {}
func (unknown) Settle(context.Context, string, *imapsession.Exchange, imapwire.Response) error {
	return nil
}
func (unknown) Outcome(context.Context, string, *imapsession.Exchange, bool) (string, bool, error) {
	return "", false, nil
}
