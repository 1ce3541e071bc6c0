package smtpd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"understudy/replica/row"
	"understudy/snoop/smtpwire"
)

// Relay is where outbound mail goes: a smarthost, or production once it is
// back.
type Relay struct {
	Dial     func(ctx context.Context) (net.Conn, error)
	Hostname string
}

var (
	// errPermanent is a refusal that no further try will change.
	errPermanent = errors.New("refused for good")
	// errUnknown is no answer where one decides about the message.
	errUnknown = errors.New("no answer to the end of data")
)

// Flush sends all outbound mail that is due, and returns how much is left. A
// message is taken off the queue after the relay's 250.
func (s *Server) Flush(ctx context.Context, r Relay, now time.Time) (left int, err error) {
	all, err := s.opt.Store.Queued()
	if err != nil {
		return 0, err
	}
	out := &transfer{relay: r}
	defer out.close()
	for _, q := range all {
		if ctx.Err() != nil {
			return len(all), ctx.Err()
		}
		if q.Next.After(now) {
			left++
			continue
		}
		serr := s.send(ctx, out, q)
		if serr == nil {
			if err := s.opt.Store.Dequeue(ctx, q.ID); err != nil {
				return left, err
			}
			continue
		}
		left++
		q.Tries++
		q.LastErr = serr.Error()
		q.Next = now.Add(min(time.Duration(q.Tries)*time.Minute, time.Hour))
		if errors.Is(serr, errPermanent) {
			q.Next = now.Add(24 * time.Hour) // parked; production bounces it, not the standby (N20)
		}
		s.opt.Log.Warn("outbound mail waits", "id", q.ID, "tries", q.Tries, "err", serr)
		if _, err := s.opt.Store.Enqueue(ctx, q); err != nil {
			return left, err
		}
	}
	return left, nil
}

// refusedPause is how long a message that production refuses for good is left
// alone before it is tried again.
const refusedPause = time.Hour

// Inject gives production the held messages that are due: what the standby
// accepted and could not put into a mailbox before the hand-back, and what
// production was lost over before it answered and has not delivered by itself
// since. Afterwards it is held like any message that production accepted. What is
// lost sight of in between is owed: production may have it.
func (s *Server) Inject(ctx context.Context, r Relay, due func(row.Held) bool) error {
	var refused error
	out := &transfer{relay: r}
	defer out.close()
	for _, h := range s.opt.Store.HeldAll() {
		if !due(h) || time.Since(s.refused[h.ID]) < refusedPause {
			continue
		}
		// It may have been delivered while the others were sent.
		h, ok, err := s.opt.Store.Giving(ctx, h.ID, time.Now(), due)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		err = s.send(ctx, out, row.Queued{From: h.From, Rcpts: h.Rcpts, Ref: h.Ref})
		switch {
		case err == nil:
			s.opt.Log.Info("a message was given to production", "held", h.ID, "was", h.State, "arrived", h.Arrived)
			err = s.opt.Store.Given(ctx, h.ID)
		case errors.Is(err, errUnknown):
			err = errors.Join(fmt.Errorf("give held message %d to production: %w", h.ID, err),
				s.opt.Store.GivingLost(ctx, h.ID))
		default:
			err = errors.Join(fmt.Errorf("give held message %d to production: %w", h.ID, err),
				s.opt.Store.NotGiven(ctx, h.ID))
		}
		if errors.Is(err, errPermanent) {
			s.refused[h.ID] = time.Now()
			refused, err = errors.Join(refused, err), nil
		}
		if err != nil {
			return errors.Join(refused, err)
		}
	}
	return refused
}

// perSession is how many messages a session takes: Exim lets the end of each
// session wait for 0.2 s, and what comes after ten messages for its next queue run
// (smtp_accept_queue_per_connection).
const perSession = 10

// transfer is a session with a relay.
type transfer struct {
	relay Relay
	given int // messages, in this session
	conn  net.Conn
	br    *bufio.Reader
	w     *bufio.Writer
}

func (t *transfer) open(ctx context.Context) (err error) {
	if t.conn, err = t.relay.Dial(ctx); err != nil {
		t.conn = nil
		return err
	}
	t.given = 0
	t.br, t.w = bufio.NewReader(t.conn), bufio.NewWriter(t.conn)
	_ = t.conn.SetDeadline(time.Now().Add(5 * time.Minute))
	if err := t.step("", 2); err != nil {
		return err
	}
	return t.step("EHLO "+t.relay.Hostname, 2)
}

// close ends the session in order, or drops it after an error.
func (t *transfer) close() {
	if t.conn == nil {
		return
	}
	_ = t.conn.SetDeadline(time.Now().Add(5 * time.Second))
	_ = t.step("QUIT", 2)
	t.drop()
}

func (t *transfer) drop() {
	if t.conn != nil {
		_ = t.conn.Close()
		t.conn = nil
	}
}

func (t *transfer) step(line string, want int) error {
	if line != "" {
		if _, err := t.w.WriteString(line + "\r\n"); err != nil {
			return err
		}
		if err := t.w.Flush(); err != nil {
			return err
		}
	}
	got, err := smtpwire.ReadReply(t.br)
	switch {
	case err != nil:
		return err
	case got.Code/100 == 5:
		return fmt.Errorf("%w: %s", errPermanent, got)
	case got.Code/100 != want:
		return fmt.Errorf("relay: %s", got)
	}
	return nil
}

// begin starts a message, in a new session if there is none or the old one is
// not taken any further.
func (t *transfer) begin(ctx context.Context, from string) error {
	mail := "MAIL FROM:<" + from + ">"
	if t.given >= perSession {
		t.close()
	}
	if t.conn != nil {
		_ = t.conn.SetDeadline(time.Now().Add(5 * time.Minute))
		if t.step(mail, 2) == nil {
			return nil
		}
		t.drop()
	}
	if err := t.open(ctx); err != nil {
		return err
	}
	return t.step(mail, 2)
}

// send gives the relay one message. After an error the session is over.
func (s *Server) send(ctx context.Context, t *transfer, q row.Queued) (err error) {
	msg, err := s.opt.Store.Message(q.Ref)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			t.drop()
		}
	}()
	if err := t.begin(ctx, q.From); err != nil {
		return err
	}
	for _, rc := range q.Rcpts {
		if err := t.step("RCPT TO:<"+rc+">", 2); err != nil {
			return err
		}
	}
	if err := t.step("DATA", 3); err != nil {
		return err
	}
	d := &smtpwire.DotWriter{W: t.w}
	if _, err := d.Write(msg); err != nil {
		return err
	}
	if err := d.Close(); err != nil {
		return errors.Join(errUnknown, err)
	}
	got, err := smtpwire.ReadReply(t.br)
	switch {
	case err != nil:
		return errors.Join(errUnknown, err)
	case got.Code/100 == 5:
		return fmt.Errorf("%w: %s", errPermanent, got)
	case got.Code/100 != 2:
		return fmt.Errorf("relay: %s", got)
	}
	t.given++
	return nil
}
