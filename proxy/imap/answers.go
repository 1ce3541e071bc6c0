package imap

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// Reasons for which a session ends that are nobody's fault.
var (
	// errUnsettled ends a session whose last change could not be made durable; it
	// gets no OK.
	errUnsettled = errors.New("change is not durable")
	// errLogout is production ending a session by its own rules.
	errLogout = errors.New("production ended the session")
)

// answers is an upstream's pump.
type answers struct {
	s    *session
	up   *link
	sc   imapwire.Scanner
	win  window
	from int // where in the window begins what is not forwarded yet

	within bool // in a unit with literals, or in a long line
	drop   bool // the unit is not for the client
}

// run moves what the upstream says until it is lost.
func (a *answers) run(ctx context.Context) error {
	src := &buffered{a.up.Conn, a.up.R}
	for {
		if err := a.units(ctx); err != nil {
			return err
		}
		if err := a.win.fill(src); err != nil {
			return err
		}
	}
}

// flush forwards what came before the piece at hand.
func (a *answers) flush() error {
	out := a.win.b[a.from:a.win.r]
	a.from = a.win.r
	return a.s.toClient(out)
}

// units follows and forwards what the window holds. What was followed is
// forwarded, whatever comes then.
func (a *answers) units(ctx context.Context) (err error) {
	a.from = a.win.r
	defer func() {
		if ferr := a.flush(); err == nil {
			err = ferr
		}
	}()
	for a.win.r < a.win.w {
		b := a.win.b[a.win.r:a.win.w]
		piece, err := a.sc.Next(b)
		if err != nil {
			return err
		}
		if piece.Kind == imapwire.More {
			if !a.win.full() {
				return nil
			}
			if piece = a.sc.Long(b); piece.N == 0 {
				return nil
			}
		}
		if err := a.piece(ctx, piece, b[:piece.N]); err != nil {
			return err
		}
		a.win.r += piece.N
	}
	return nil
}

// piece follows a piece, and forwards it, or what takes its place, if it is not
// forwarded together with its neighbours.
func (a *answers) piece(ctx context.Context, p imapwire.Piece, b []byte) (err error) {
	var tell, line []byte
	if p.Kind != imapwire.Body && p.First {
		if tell, line, err = a.unit(ctx, b); err != nil {
			return err
		}
	}
	if p.Kind != imapwire.Line || p.Lit.Present || a.within {
		a.s.mu.Lock()
		a.s.state.Piece(p, b, a.drop)
		a.s.mu.Unlock()
		a.within = p.Kind != imapwire.Line || p.Lit.Present
	}
	if !a.drop && line == nil && tell == nil {
		return nil
	}
	if err := a.flush(); err != nil {
		return err
	}
	if line == nil && !a.drop {
		line = b
	}
	if err := a.s.toClient(tell); err != nil {
		return err
	}
	if err := a.s.toClient(line); err != nil {
		return err
	}
	a.from += p.N
	return nil
}

// unit has the state decide about the first line of a unit, and does what is to be
// done. tell goes ahead of the line, or of what it returns in its place.
func (a *answers) unit(ctx context.Context, first []byte) (tell, line []byte, err error) {
	s, production := a.s, a.up.production()
	s.mu.Lock()
	d := s.state.Server(first, production)
	s.mu.Unlock()
	a.drop = d.Drop
	if d.End != nil {
		d.Release.Release()
		return nil, nil, a.end(&d, first)
	}
	if d.Hint != "" {
		s.srv.opt.Mailboxes.Hint(s.account, d.Hint)
	}
	if d.Exchange != nil && !d.Done {
		if err := a.settle(ctx, &d); err != nil {
			return nil, nil, err
		}
	}
	d.Release.Release()
	if line = d.Line; d.Virtual.Mailbox != "" {
		if v := s.srv.opt.Replica.Virtual(s.account, d.Virtual.Mailbox); v != 0 {
			if line == nil {
				line = first
			}
			line = imapsession.WithNumber(line, d.Virtual.Word, v)
		}
	}
	if d.Wake != imapsession.Sleep {
		s.proceed <- d.Wake == imapsession.Proceed
	}
	if d.Exchange != nil {
		select {
		case s.calm <- struct{}{}:
		default:
		}
	}
	return d.Tell, line, nil
}

// end tells why the upstream, or the session, ends with a line.
func (a *answers) end(d *imapsession.Decision, line []byte) error {
	if !errors.Is(d.End, imapsession.ErrBye) {
		return d.End
	}
	now := time.Now()
	a.s.mu.Lock()
	silent := a.s.state.Silent(now)
	a.s.mu.Unlock()
	if !a.up.production() || silent <= autologout {
		return fmt.Errorf("%w: %s", d.End, d.Response.Rest)
	}
	_ = a.flush()
	_ = a.s.toClient(line)
	return errLogout
}

// settle sees to it that what an answer says is so here, and that the replica has
// the messages that the client was told of, before the answer goes on.
func (a *answers) settle(ctx context.Context, d *imapsession.Decision) error {
	s, ex := a.s, d.Exchange
	if d.Opened {
		a.opened(d)
	}
	if d.Verify {
		if err := a.verify(ctx, d); err != nil {
			return err
		}
	}
	lacks := false
	if d.Ahead != "" {
		sn := s.srv.opt.Replica.Known(s.account, d.Ahead)
		s.mu.Lock()
		lacks = s.state.Lacks(sn)
		s.mu.Unlock()
	}
	if d.Settle || lacks {
		if err := a.flush(); err != nil {
			s.reopen(ex)
			return err
		}
	}
	if d.Settle {
		if err := a.change(ctx, d); err != nil {
			return err
		}
	}
	if lacks {
		s.srv.opt.Mailboxes.Follow(ctx, s.account, d.Ahead)
	}
	s.mu.Lock()
	tell, release := s.state.Finish(ex)
	s.mu.Unlock()
	d.Tell, d.Release = append(d.Tell, tell...), release
	return nil
}

// opened completes the selection of a mailbox.
func (a *answers) opened(d *imapsession.Decision) {
	s := a.s
	virtual := a.up.virtual(s, d.Exchange.Mailbox)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Open(d.Exchange, virtual, a.up.production())
	if a.up.production() {
		d.Ahead = s.state.Ahead()
	}
}

// virtual is what the UIDVALIDITY of a mailbox is shown as, 0 if as it is.
func (u *link) virtual(s *session, mailbox string) uint32 {
	if !u.production() {
		return 0
	}
	return s.srv.opt.Replica.Virtual(s.account, mailbox)
}

// change makes a change durable that production accepted. If that fails, production
// may have been lost meanwhile: whoever answers next is asked what became of it, and
// for the change.
func (a *answers) change(ctx context.Context, d *imapsession.Decision) error {
	s, ex := a.s, d.Exchange
	err := s.srv.opt.Changes.Settle(ctx, s.account, ex, d.Response)
	if err == nil {
		return nil
	}
	if s.reopen(ex) {
		return fmt.Errorf("%s was accepted and is not durable: %w", ex.Name(), err)
	}
	s.srv.opt.Log.Error("an accepted change could not be made durable; the session ends without its OK",
		"account", s.account, "command", ex.Name(), "err", err)
	return errors.Join(errUnsettled, err)
}

// reopen has a command wait for an answer again; false if that was done too often.
func (s *session) reopen(ex *imapsession.Exchange) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Reopen(ex)
}

// verify makes an OK of the refusal of a command that a lost upstream had done
// already: what it asks for is so. (Not every server says why it refuses.)
func (a *answers) verify(ctx context.Context, d *imapsession.Decision) error {
	if a.up.production() {
		if err := a.change(ctx, d); err != nil {
			return err
		}
	}
	there := func(mailbox string) bool { return a.s.srv.opt.Replica.Known(a.s.account, mailbox) != nil }
	done := false
	switch args := d.Exchange.Args.(type) {
	case imapwire.MailboxArgs:
		done = there(args.Mailbox) == (d.Exchange.Verb == imapwire.Create)
	case imapwire.RenameArgs:
		done = !there(args.From) && there(args.To)
	}
	if done {
		d.Line = []byte(d.Exchange.Tag + " OK Completed\r\n")
	}
	return nil
}
