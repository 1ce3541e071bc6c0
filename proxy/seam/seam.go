// Package seam holds what passes between a client's session and whoever answers
// it: which side that is and for how long, who the client is, and how it proves
// that. It is what all protocols of the proxy speak in.
//
// Implementation notes. The package is pure. A session holds one Lease for one
// upstream; it gives it back (Release, once) after nothing more is read from that
// upstream. A Turn is for what is held while a peer is waited for. The
// ledgers' turns (replica/turn) are others: they can be given up and come in sets with a
// mutex, so that they are not pure, and only pure packages are imported across the folders.
package seam

import (
	"context"
	"errors"
	"net/netip"
	"time"
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

// Grace is how long commands that are under way may still be answered, once the
// lease is revoked.
func (l Lease) Grace() time.Duration {
	if l.Patience == nil {
		return 0
	}
	return l.Patience()
}

// IsRevoked reports whether the side has to be left.
func (l Lease) IsRevoked() bool {
	select {
	case <-l.Revoked:
		return true
	default:
		return false
	}
}

// Gate decides which side answers. While none does, Enter waits.
type Gate interface {
	// Enter is for an account, or with "" for a session that has none yet.
	Enter(ctx context.Context, account string) (Lease, error)
	// Trouble reports a failure of production that a session met.
	Trouble(err error)
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

// SASL returns the mechanism and the response by which the login is proved.
func (l Login) SASL() (mechanism string, response []byte) {
	if l.Token() {
		return l.Mechanism, l.Response
	}
	authz := ""
	if l.User != l.AuthUser {
		authz = l.User
	}
	return "PLAIN", []byte(authz + "\x00" + l.AuthUser + "\x00" + l.Password)
}

// Client is what an upstream is told of a client.
type Client struct {
	// Addr and Local are the ends of the client's connection, IPv4 as such; not
	// valid if it is not of TCP, or if there is no client.
	Addr, Local netip.AddrPort
	Submission  bool
	TLS         bool
	Helo        string
	ESMTP       bool
}

// Greeting is what production says of itself.
type Greeting struct {
	Text string
	Auth []string // AUTH= capabilities
	Caps []string // shown after login
}

// Errors of whoever checks a login.
var (
	ErrDenied      = errors.New("authentication failed")
	ErrUnavailable = errors.New("authentication is not possible at the moment")
)

// ErrLost tells that an upstream was lost before it answered.
var ErrLost = errors.New("production was lost")

// RetryPause is how long a session waits before it tries an upstream again.
const RetryPause = 100 * time.Millisecond

// Turn is a lock that is held while a peer is waited for. Made of a channel, it
// shows as waiting to tests under virtual time.
type Turn chan struct{}

// NewTurn returns a free one.
func NewTurn() Turn { return make(Turn, 1) }

// Lock implements sync.Locker.
func (t Turn) Lock() { t <- struct{}{} }

// Unlock implements sync.Locker.
func (t Turn) Unlock() { <-t }

// TryLock takes the turn if nobody has it, and reports whether it did.
func (t Turn) TryLock() bool {
	select {
	case t <- struct{}{}:
		return true
	default:
		return false
	}
}
