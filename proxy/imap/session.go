package imap

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"understudy/proxy/seam"
	"understudy/proxy/upstream"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
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

func (u *link) production() bool { return u.lease.Side == seam.Production }

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
// The client's pump and carry are the two goroutines. The seat is held from the
// moment that a command is followed until it is sent; mu guards the state, which
// is a value: nothing is done under it but to ask it what is to be done. The seat is
// taken before mu.
type session struct {
	srv     *Server
	account string
	login   seam.Login
	who     seam.Client
	life    context.Context // of the session, and of what stands in for production

	seat   seat
	client downlink
	unsure time.Time // when production was lost over a change; carry's and attach's own

	mu    sync.Mutex
	state *imapsession.Session

	proceed chan bool     // the server's word that the client's pump waits for; never more than one is due
	calm    chan struct{} // a command was answered
	ended   chan struct{}
}

func newSession(srv *Server, account string, l seam.Login, who seam.Client, client net.Conn) *session {
	s := &session{srv: srv, account: account, login: l, who: who, state: imapsession.New(account),
		client:  downlink{Conn: client, turn: seam.NewTurn()},
		proceed: make(chan bool, 1), calm: make(chan struct{}, 1), ended: make(chan struct{})}
	s.state.Caps = srv.opt.Caps
	s.state.Begin(time.Now())
	s.seat.init()
	return s
}

// seat is who takes commands.
type seat struct {
	turn     seam.Turn  // guards the rest, and what is written to up
	attached *sync.Cond // on turn: up or over changed
	up       *link      // nil: none takes commands
	over     bool       // the session ends
	due      time.Time  // when the write deadline was last set
}

func (t *seat) init() {
	t.turn = seam.NewTurn()
	t.attached = sync.NewCond(t.turn)
}

// hold takes the turn and waits for an upstream; nil when the session is over.
func (t *seat) hold() *link {
	t.turn.Lock()
	for t.up == nil && !t.over {
		t.attached.Wait()
	}
	return t.up
}

// write sends to an upstream; the turn is held. What cannot be sent is asked of the
// next upstream.
func (t *seat) write(up *link, b []byte) {
	if len(b) == 0 || t.up != up {
		return
	}
	if now := time.Now(); now.Sub(t.due) > writeRenew {
		t.due = now
		_ = up.SetWriteDeadline(now.Add(writeLimit))
	}
	if _, err := up.Write(b); err != nil {
		t.up = nil
		_ = up.Close()
	}
}

// leave has up take no more commands; nil stands for whoever does. It returns who
// did.
func (t *seat) leave(up *link) *link {
	t.turn.Lock()
	defer t.turn.Unlock()
	was := t.up
	if up == nil || was == up {
		t.up = nil
	}
	return was
}

// close tells that there will be no other upstream.
func (t *seat) close() {
	t.turn.Lock()
	defer t.turn.Unlock()
	t.over = true
	t.attached.Broadcast()
}

// downlink is the client's connection, to which both goroutines write.
type downlink struct {
	net.Conn
	turn seam.Turn
	due  time.Time
}

// Write sends to the client. Its errors are of the type errClient.
func (c *downlink) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	c.turn.Lock()
	defer c.turn.Unlock()
	if now := time.Now(); now.Sub(c.due) > writeRenew {
		c.due = now
		_ = c.SetWriteDeadline(now.Add(writeLimit))
	}
	n, err := c.Conn.Write(b)
	if err != nil {
		return n, errClient{err}
	}
	return n, nil
}

// errClient marks errors of the client's connection.
type errClient struct{ error }

func (e errClient) Unwrap() error { return e.error }

// toClient sends to the client.
func (s *session) toClient(b []byte) error {
	_, err := s.client.Write(b)
	return err
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
		if cut := imapsession.Cut(""); errors.As(err, &cut) {
			_ = s.toClient([]byte("* BYE " + cut.Error() + "\r\n"))
		}
		s.mu.Lock()
		s.state.Gone()
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
	s.seat.close()
	close(s.ended)
	_ = s.client.Close()
	wg.Wait()
	s.end()
}

// end gives back what is attached to commands of a session that is over. A MOVE that
// was noted after its upstream was found lost is a doubt, too.
func (s *session) end() {
	s.mu.Lock()
	undone, kept := s.state.Unanswered(true), s.state.End()
	s.mu.Unlock()
	for _, u := range undone {
		if u.Doubt != nil && u.Release.Intent.Over != nil {
			s.srv.opt.Changes.Unanswered(s.account, *u.Doubt)
		}
		u.Release.Release()
	}
	for _, k := range kept {
		k.Release()
	}
}

// mayGoOn tells why a session must not be continued with another upstream.
func (s *session) mayGoOn(err error) error {
	if errors.Is(err, errUnsettled) || errors.Is(err, errLogout) || errors.As(err, &errClient{}) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Adoptable()
}

// giveUp tells the client that its session ends, where that can be told: not
// within a literal.
func (s *session) giveUp(why error) {
	s.srv.opt.Log.Info("session is closed and not continued", "account", s.account, "client", s.who.Addr, "why", why)
	s.mu.Lock()
	within := s.state.Unit.Open()
	s.mu.Unlock()
	if !within && !errors.Is(why, errLogout) {
		_ = s.toClient([]byte("* BYE Please log in again\r\n"))
	}
}

// leave lets the upstream answer what the client has sent before it ended.
func (s *session) leave() {
	s.seat.turn.Lock()
	up := s.seat.up
	s.seat.turn.Unlock()
	if up == nil {
		return
	}
	s.drain(up, goneLimit, true)
	_ = up.Close()
}

// drain waits until all commands that were received whole are answered: all but idle
// ones, or only changes.
func (s *session) drain(up *link, limit time.Duration, all bool) {
	end := time.NewTimer(limit)
	defer end.Stop()
	for {
		s.mu.Lock()
		busy := s.state.Busy(all)
		s.mu.Unlock()
		if !busy {
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
	pump := answers{s: s, up: up, sc: imapwire.Scanner{Side: imapwire.Server}, win: window{max: lineMax}}
	err := pump.run(work)
	lost := work.Err() == nil && up.lease.Side == seam.Production && !errors.As(err, &errClient{})
	close(up.lost)
	cancel()
	wg.Wait()
	s.seat.leave(nil)
	s.mu.Lock()
	s.state.Lost()
	lost = lost && !s.state.Leaving()
	s.mu.Unlock()
	if lost {
		s.srv.opt.Gate.Trouble(err)
	}
	return err
}

// settle notes what production has left unanswered, and gives the lease back.
func (s *session) settle(up *link) {
	s.mu.Lock()
	undone := s.state.Unanswered(up.production())
	s.mu.Unlock()
	for _, u := range undone {
		if u.Changes {
			s.unsure = time.Now()
		}
		if u.Doubt != nil {
			s.srv.opt.Changes.Unanswered(s.account, *u.Doubt)
		}
		u.Release.Release()
	}
	up.lease.Release()
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
	s.seat.leave(up)
	// What only reads is asked again of the next upstream.
	s.drain(up, patience, false)
}

// goodbye ends a session that has logged out.
func (s *session) goodbye() bool {
	s.mu.Lock()
	line, over := s.state.Goodbye()
	s.mu.Unlock()
	_ = s.toClient(line)
	return over
}
