package smtp

import (
	"context"

	"understudy/proxy/seam"
	"understudy/replica/row"
	"understudy/snoop/smtpwire"
)

// finish ends a message. Its outcome is passed on after it is durable here.
// If production was lost after the end-of-data, whether it has the message is
// not known: those of its recipients whose mailboxes are here are answered for
// at once, and the message is owed to them; the others are asked of the next
// upstream, where they may come to get it twice (RFC 5321 section 6.1).
func (s *session) finish(ctx context.Context, sp row.Spool) error {
	// Noted before it is known whether it is a repeated one: should this end here,
	// it comes once more.
	mail := s.state.Envelope()
	told, answered := false, s.srv.opt.Senders.Taking(mail, sp)
	defer func() { answered(told) }()
	if again, err := s.srv.opt.Senders.Repeated(ctx, mail, sp); err != nil {
		return s.unsafe(err)
	} else if again {
		s.swap.abandon()
		s.state.End()
		s.reply(smtpwire.NewReply(250, "2.0.0 Ok: accepted before"))
		if err := s.w.Flush(); err != nil {
			return err
		}
		told = true
		return nil
	}
	for {
		var arrival Arrival
		sent, lost := false, false
		r, err := s.swap.call(ctx, func(up *link) (smtpwire.Reply, error) {
			if r, err := up.wholeBody(sp); err != nil || r.Code != 0 {
				return r, err
			}
			if arrival != nil {
				arrival.Refused() // by an upstream that closed
				arrival = nil
			}
			if up.lease.Side == seam.Production {
				arrival = s.srv.opt.Arrivals.Arriving(ctx, s.state.Envelope(), sp)
			}
			sent = true
			r, err := up.Finish()
			if lost = err != nil; lost {
				// The call must not be made again.
				s.swap.lose(err)
				return smtpwire.NewReply(250, "2.0.0 Ok"), nil
			}
			return r, nil
		})
		switch {
		case err != nil:
			if arrival != nil {
				arrival.Refused()
			}
			return err
		case arrival != nil && !r.OK():
			arrival.Refused()
		case arrival != nil && lost:
			left, err := arrival.Owe()
			if err != nil {
				return s.unsafe(err)
			}
			if s.state.Only(left); len(left) > 0 {
				continue
			}
		case arrival != nil:
			if err := arrival.Accepted(); err != nil {
				return s.unsafe(err)
			}
		case sent && lost:
			return errEnd
		}
		s.state.End()
		s.reply(r)
		if err := s.w.Flush(); err != nil {
			return err
		}
		told = true
		return nil
	}
}

func (s *session) unsafe(err error) error {
	s.srv.opt.Log.Error("an accepted message could not be made durable; its 250 is not passed on", "err", err)
	return errEnd
}
