package imap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"understudy/proxy/seam"
	"understudy/proxy/upstream"
	"understudy/replica/row"
	"understudy/snoop/imapsession"
)

// A peer that takes nothing for writeLimit is gone. The deadline is set anew
// every writeRenew only, since most writes are small.
const (
	writeLimit = 6 * time.Minute
	writeRenew = time.Minute
)

// Limits of a session between two upstreams.
const (
	// parkLimit is how long a session waits for anybody to answer: clients give
	// up first.
	parkLimit = 30 * time.Minute
	// autologout is after how long without a word of the client production's
	// BYE is its own affair (RFC 9051 section 5.4).
	autologout = 29 * time.Minute
	// goneLimit is how long production may still answer a client that sends no more.
	goneLimit = time.Minute
)

// link is one session with whoever answers, production or the standby.
type link struct {
	*upstream.IMAP
	lease seam.Lease
	lost  chan struct{} // closed when nothing more is read from it
	ended chan struct{} // of the standby's server: it does nothing any more
}

// shut closes the connection, and returns when nothing is done behind it.
func (u *link) shut() {
	_ = u.Close()
	if u.ended != nil {
		<-u.ended
	}
}

// session is a session after login. Its upstream can be replaced at any
// moment: what the client is still owed is asked of the next one.
//
// The client's pump and carry are the two goroutines. send guards which
// upstream is in use and what is written to it, from the moment that a command
// is followed until it is sent; mu guards what both goroutines follow. send is
// taken before mu.
type session struct {
	srv     *Server
	account string
	login   seam.Login
	who     seam.Client
	client  net.Conn
	life    context.Context // of the session, and of what stands in for production

	send     seam.Turn
	attached *sync.Cond // on send: up or over changed
	up       *link      // nil: none takes commands
	over     bool       // the session ends
	unsure   time.Time  // when production was lost over a change; carry's and attach's own
	upDue    time.Time  // when the write deadline was last set

	mu      sync.Mutex
	track   *imapsession.Tracker
	numbers imapsession.Numbers
	news    news
	spools  map[*imapsession.Cmd]row.Spool
	asking  map[*imapsession.Cmd]func()        // commands that production was sent: to be called when it is known what became of them
	done    map[*imapsession.Cmd]string        // unanswered commands that a lost upstream had done: code of their OK
	before  map[*imapsession.Cmd]*row.Snapshot // what the replica held when a SELECT was sent
	waiting *imapsession.Cmd                   // the client pump waits for its continuation
	settles bool                               // an accepted change is being made durable
	bye     bool                               // LOGOUT was seen
	gone    bool                               // the client sends no more
	heard   time.Time                          // of the client
	unit    unit

	proceed chan bool     // outcome of waiting; never more than one is due
	calm    chan struct{} // a command was answered
	ended   chan struct{}

	wmu       seam.Turn // writes to the client
	clientDue time.Time
}

func newSession(srv *Server, account string, l seam.Login, who seam.Client, client net.Conn) *session {
	s := &session{srv: srv, account: account, login: l, who: who, client: client, track: imapsession.New(account), heard: time.Now(),
		spools: map[*imapsession.Cmd]row.Spool{}, done: map[*imapsession.Cmd]string{}, asking: map[*imapsession.Cmd]func(){},
		before: map[*imapsession.Cmd]*row.Snapshot{}, send: seam.NewTurn(), wmu: seam.NewTurn(), proceed: make(chan bool, 1), calm: make(chan struct{}, 1), ended: make(chan struct{})}
	s.attached = sync.NewCond(s.send)
	return s
}

// run carries the session until the client ends it, or nobody can go on with
// it. first makes the upstream to begin with.
func (s *session) run(ctx context.Context, first func() *link) {
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	s.life = ctx
	up := first()
	wg.Go(func() {
		err := s.fromClient()
		s.srv.opt.Log.Debug("client side ended", "account", s.account, "err", err)
		if cut := errCut(""); errors.As(err, &cut) {
			_ = s.toClient([]byte("* BYE " + cut.Error() + "\r\n"))
		}
		s.mu.Lock()
		s.gone = true
		s.mu.Unlock()
		s.leave()
		cancel()
	})
	for ; up != nil; up = s.next(ctx) {
		began := time.Now()
		err := s.carry(ctx, up)
		s.srv.opt.Log.Debug("upstream ended", "account", s.account, "side", up.lease.Side, "err", err)
		if ctx.Err() != nil || s.goodbye() {
			break
		}
		if err = s.mayGoOn(err); err != nil {
			s.giveUp(err)
			break
		}
		if time.Since(began) < seam.RetryPause {
			time.Sleep(seam.RetryPause) // it is of no use yet
		}
	}
	cancel()
	s.send.Lock()
	s.over = true
	s.attached.Broadcast()
	s.send.Unlock()
	close(s.ended)
	_ = s.client.Close()
	wg.Wait()
	for _, sp := range s.spools {
		sp.Discard()
	}
}

// mayGoOn tells why a session must not be continued with another upstream.
func (s *session) mayGoOn(err error) error {
	if errors.Is(err, errUnsettled) || errors.Is(err, errLogout) || errors.As(err, &errClient{}) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unit.open && !s.unit.known() {
		return fmt.Errorf("%w: in the middle of %.40q", imapsession.ErrNotAdoptable, s.unit.line)
	}
	return s.track.Adoptable()
}

// giveUp tells the client that its session ends, where that can be told: not
// within a literal.
func (s *session) giveUp(why error) {
	s.srv.opt.Log.Info("session is closed and not continued", "account", s.account, "client", s.who.Addr, "why", why)
	s.mu.Lock()
	within := s.unit.open
	s.mu.Unlock()
	if !within && !errors.Is(why, errLogout) {
		_ = s.toClient([]byte("* BYE Please log in again\r\n"))
	}
}

// leave lets the upstream answer what the client has sent before it ended.
func (s *session) leave() {
	s.send.Lock()
	up := s.up
	s.send.Unlock()
	if up == nil {
		return
	}
	s.drain(up, goneLimit, func(c *imapsession.Cmd) bool { return c.Verb != "IDLE" })
	_ = up.Close()
}

// drain waits until all complete commands that matter are answered.
func (s *session) drain(up *link, limit time.Duration, matters func(*imapsession.Cmd) bool) {
	end := time.NewTimer(limit)
	defer end.Stop()
	for {
		s.mu.Lock()
		open := s.settles || s.unit.open && !s.unit.known() || slices.ContainsFunc(s.track.Outstanding(), func(c *imapsession.Cmd) bool { return c.Complete() && matters(c) })
		s.mu.Unlock()
		if !open {
			return
		}
		select {
		case <-s.calm:
		case <-end.C:
			return
		case <-up.lost:
			return
		}
	}
}

// slowClient is how long a client that does not read may keep its session from
// leaving an upstream that is lost.
const slowClient = 100 * time.Millisecond

// carry moves bytes both ways until the upstream is lost or has to be left.
func (s *session) carry(ctx context.Context, up *link) error {
	var wg sync.WaitGroup
	work, cancel := context.WithCancel(ctx)
	settle := sync.OnceFunc(func() { s.settle(up) })
	wg.Go(func() {
		select {
		case <-up.lease.Revoked:
			s.retire(up)
			cancel()
		case <-work.Done():
		}
		up.shut()
		select {
		case <-up.lost:
		case <-time.After(slowClient):
		}
		settle()
	})
	wg.Go(func() { s.resend(up) })
	err := s.fromServer(work, up)
	lost := work.Err() == nil && up.lease.Side == seam.Production && !errors.As(err, &errClient{})
	close(up.lost)
	cancel()
	wg.Wait()
	s.send.Lock()
	s.up = nil
	s.send.Unlock()
	s.mu.Lock()
	s.track.Lost()
	s.settles = false
	lost = lost && !s.gone && !s.bye
	s.mu.Unlock()
	if lost {
		s.srv.opt.Gate.Trouble(err)
	}
	return err
}

// settle notes what production has left unanswered, and gives the lease back.
func (s *session) settle(up *link) {
	s.mu.Lock()
	pending := slices.Clone(s.track.Outstanding())
	s.mu.Unlock()
	for _, c := range pending {
		if up.lease.Side == seam.Production && imapsession.Changes(c.Verb) && c.Complete() {
			s.srv.opt.Changes.Unanswered(s.account, c)
			s.unsure = time.Now()
		}
		s.known(c)
	}
	up.lease.Release()
}

// known notes that it is known, or kept, what became of a command.
func (s *session) known(c *imapsession.Cmd) {
	s.mu.Lock()
	answered := s.asking[c]
	delete(s.asking, c)
	s.mu.Unlock()
	if answered != nil {
		answered()
	}
}

// retire leaves an upstream at a command boundary, or at once if the lease has
// no patience.
func (s *session) retire(up *link) {
	patience := up.lease.Grace()
	if patience <= 0 {
		return
	}
	cut := time.AfterFunc(patience, func() { _ = up.Close() })
	defer cut.Stop()
	s.send.Lock()
	if s.up == up {
		s.up = nil
	}
	s.send.Unlock()
	// What only reads is asked again of the next upstream.
	s.drain(up, patience, func(c *imapsession.Cmd) bool { return imapsession.Changes(c.Verb) })
}

// goodbye ends a session that has logged out.
func (s *session) goodbye() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.bye {
		return s.gone
	}
	for _, c := range s.track.Outstanding() {
		if c.Verb == "LOGOUT" {
			_ = s.toClient([]byte("* BYE Logging out\r\n" + c.Tag + " OK Logout completed\r\n"))
		}
	}
	return true
}

// errCut tells a client why its session is ended.
type errCut string

func (e errCut) Error() string { return string(e) }

func (s *session) toClient(b []byte) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if now := time.Now(); now.Sub(s.clientDue) > writeRenew {
		s.clientDue = now
		_ = s.client.SetWriteDeadline(now.Add(writeLimit))
	}
	if _, err := s.client.Write(b); err != nil {
		return errClient{err}
	}
	return nil
}

// errClient marks errors of the client's connection.
type errClient struct{ error }

func (e errClient) Unwrap() error { return e.error }

// write sends to an upstream; send is held. What cannot be sent is asked of the
// next upstream.
func (s *session) write(up *link, b []byte) {
	if len(b) == 0 || s.up != up {
		return
	}
	if now := time.Now(); now.Sub(s.upDue) > writeRenew {
		s.upDue = now
		_ = up.SetWriteDeadline(now.Add(writeLimit))
	}
	if _, err := up.Write(b); err != nil {
		s.up = nil
		_ = up.Close()
	}
}

// hold takes send and waits for an upstream; nil when the session is over.
func (s *session) hold() *link {
	s.send.Lock()
	for s.up == nil && !s.over {
		s.attached.Wait()
	}
	return s.up
}
