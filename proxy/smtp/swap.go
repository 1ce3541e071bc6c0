package smtp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"understudy/proxy/seam"
	"understudy/proxy/upstream"
	"understudy/replica/row"
	"understudy/snoop/smtpsession"
	"understudy/snoop/smtpwire"
)

// link is an SMTP session with whoever answers, brought to the state of
// the client's.
type link struct {
	Upstream
	lease seam.Lease
	hi    smtpwire.Reply
	body  io.Writer // between a 354 and the end of the data
	wrote int64
	left  chan struct{} // closed when it is no longer in use
}

// begin begins a body.
func (u *link) begin() (smtpwire.Reply, error) {
	w, r, err := u.Data()
	if err != nil || w == nil {
		return r, err
	}
	u.body, u.wrote = w, 0
	return smtpwire.Reply{Code: 354}, nil
}

// wholeBody sees to it that upstream got all of a body. A reply with a code is
// a refusal.
func (u *link) wholeBody(sp row.Spool) (smtpwire.Reply, error) {
	b, err := sp.Bytes()
	if err != nil {
		return smtpwire.Reply{}, err
	}
	if u.body != nil && u.wrote == int64(len(b)) {
		return smtpwire.Reply{}, nil
	}
	if r, err := u.begin(); err != nil || r.Code != 354 {
		return r, err
	}
	u.wrote = int64(len(b))
	_, err = u.body.Write(b)
	return smtpwire.Reply{}, err
}

// swap is where a session's upstream is replaced: between two commands, or
// in the middle of one that was not answered. mu is held while the upstream is
// at work.
type swap struct {
	s  *session
	mu seam.Turn
	up *link // nil: the next call gets one
	wg sync.WaitGroup
}

// maxSwaps bounds the upstreams that one command is tried on: it may be what
// they die of.
const maxSwaps = 8

// call has the upstream answer. If it is lost, or says that it closes, the next
// one is asked.
func (m *swap) call(ctx context.Context, f func(*link) (smtpwire.Reply, error)) (smtpwire.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	closing := false
	for i := range maxSwaps {
		if i > 1 {
			time.Sleep(seam.RetryPause)
		}
		if err := m.enter(ctx); err != nil {
			return smtpwire.Reply{}, err
		}
		up, unlock := m.now()
		if up == nil {
			unlock()
			continue
		}
		r, err := f(up)
		if err == nil && r.Code == 421 && !closing {
			closing, err = true, fmt.Errorf("upstream closes: %s", r)
		}
		if err != nil && m.up == up {
			m.lose(err)
		}
		unlock()
		if err == nil {
			if r.Code == 421 {
				m.s.reply(r)
				return r, errEnd
			}
			return r, nil
		}
	}
	return smtpwire.Reply{}, seam.ErrLost
}

// now takes the turn and the upstream in use; nil if there is none.
func (m *swap) now() (up *link, unlock func()) {
	m.mu.Lock()
	return m.up, m.mu.Unlock
}

// lose gives up an upstream; mu is held.
func (m *swap) lose(err error) {
	up := m.up
	m.up = nil
	if up == nil {
		return
	}
	close(up.left)
	up.Close()
	up.lease.Release()
	if err != nil && up.lease.Side == seam.Production && !up.lease.IsRevoked() {
		m.s.srv.opt.Gate.Trouble(err)
	}
}

// abandon gives up an upstream in the middle of a body, which it then has not.
func (m *swap) abandon() {
	m.mu.Lock()
	m.lose(nil)
	m.mu.Unlock()
}

// leave ends the seam with its session.
func (m *swap) leave() {
	m.abandon()
	m.wg.Wait()
}

// Write implements io.Writer for a body: what a lost upstream did not get is in
// the spool.
func (m *swap) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.up != nil && m.up.body != nil {
		if _, err := m.up.body.Write(p); err != nil {
			m.lose(err)
		} else {
			m.up.wrote += int64(len(p))
		}
	}
	return len(p), nil
}

// enter sees to it that there is an upstream.
func (m *swap) enter(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.up == nil {
		lease, err := m.s.srv.opt.Gate.Enter(ctx, "")
		if err != nil {
			return err
		}
		up, err := m.open(ctx, lease)
		if err == nil {
			m.up = up
			m.wg.Go(func() { m.watch(up) })
			return nil
		}
		lease.Release()
		if errors.Is(err, errEnd) {
			return err
		}
		m.s.srv.opt.Gate.Trouble(err)
		select {
		case <-time.After(seam.RetryPause):
		case <-ctx.Done():
			return err
		}
	}
	return nil
}

// watch leaves an upstream whose lease is revoked: after the command that it is
// at, or at once if the lease has no patience.
func (m *swap) watch(up *link) {
	select {
	case <-up.lease.Revoked:
	case <-up.left:
		return
	}
	if patience := up.lease.Grace(); patience > 0 {
		cut := time.AfterFunc(patience, up.Close)
		defer cut.Stop()
	} else {
		up.Close()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.up == up {
		m.lose(nil)
	}
}

// open connects and says again what the client has said.
func (m *swap) open(ctx context.Context, lease seam.Lease) (*link, error) {
	s := m.s
	up := &link{lease: lease, left: make(chan struct{})}
	ctx, cancel := upstream.LeaseContext(ctx, lease)
	defer cancel()
	var err error
	if lease.Side == seam.Standby {
		up.Upstream = s.srv.opt.Standby.NewSMTP(context.WithoutCancel(ctx), s.state.Client())
	} else if up.Upstream, err = s.srv.opt.Target.DialSMTP(ctx, s.state.Client()); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, up.Close)
	if up.hi, err = up.Greeting(); err == nil {
		err = s.sayAgain(up)
	}
	if !stop() && err == nil {
		err = seam.ErrLost
	}
	if err != nil {
		up.Close()
		return nil, err
	}
	return up, nil
}

// sayAgain brings an upstream to the session's state. A refusal of what was
// accepted before ends the session without a word: the client comes again.
func (s *session) sayAgain(up *link) error {
	for _, step := range s.state.Again() {
		r, err := up.say(step)
		switch {
		case err != nil:
			return err
		case r.OK():
		case r.Code == 421:
			return fmt.Errorf("upstream closes: %s", r)
		default:
			s.srv.opt.Log.Info("SMTP session is closed and not continued", "client", s.state.Client().Addr, "why",
				r.String())
			return errEnd
		}
	}
	return nil
}

// say says one step of a session's again.
func (u *link) say(step smtpsession.Step) (smtpwire.Reply, error) {
	switch step.On {
	case smtpsession.Hello:
		if !u.hi.OK() {
			return smtpwire.Reply{}, fmt.Errorf("greeting: %s", u.hi)
		}
		return u.Hello(step.Client)
	case smtpsession.Auth:
		return u.Auth(step.Login)
	default:
		return u.Command(string(step.On), step.Line)
	}
}
