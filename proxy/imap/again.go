package imap

import (
	"context"

	"understudy/snoop/imapsession"
)

// What a session asks again of its next upstream.

// outcomes finds out what the lost upstream had done of the commands that it
// did not answer, as far as that shows now. What was found stays found, should
// this upstream be lost as well.
func (s *session) outcomes(ctx context.Context, production bool) error {
	s.mu.Lock()
	unclear := s.state.Unclear()
	s.mu.Unlock()
	for _, ex := range unclear {
		code, done, err := s.srv.opt.Changes.Outcome(ctx, s.account, ex, production)
		if err != nil {
			return err
		}
		s.srv.opt.Log.Debug("outcome of a command without an answer", "account", s.account, "tag", ex.Tag,
			"command", ex.Name(), "done", done, "code", code, "production", production)
		if done {
			s.mu.Lock()
			s.state.Discovered(ex, code)
			s.mu.Unlock()
		}
	}
	return nil
}

// answerFound answers the commands that a lost upstream had done.
func (s *session) answerFound() error {
	for {
		s.mu.Lock()
		line, wake, release, ok := s.state.AnswerFound()
		s.mu.Unlock()
		if !ok {
			return nil
		}
		if err := s.tell(line, wake, release); err != nil {
			return err
		}
	}
}

// tell gives the client an answer in the name of a lost upstream.
func (s *session) tell(line []byte, wake imapsession.Wake, release imapsession.Kept) error {
	release.Release()
	if wake != imapsession.Sleep {
		s.proceed <- false
	}
	return s.toClient(line)
}

// resend asks the new upstream for what the client is owed, and lets the client
// go on.
func (s *session) resend(up *link) {
	s.seat.turn.Lock()
	defer s.seat.turn.Unlock()
	s.seat.up = up
	s.mu.Lock()
	pending := s.state.Outstanding()
	s.mu.Unlock()
	for _, ex := range pending {
		if err := s.askAgain(up, ex); err != nil {
			s.srv.opt.Log.Debug("cannot be asked again", "account", s.account, "tag", ex.Tag, "command", ex.Name(),
				"err", err)
			_ = up.Close()
			return
		}
	}
	s.seat.attached.Broadcast()
}

// askAgain sends a command to another upstream, or answers it. The turn is held.
func (s *session) askAgain(up *link, ex *imapsession.Exchange) error {
	s.mu.Lock()
	needs := s.state.Prepare(ex, up.production())
	s.mu.Unlock()
	s.attach(ex, needs)
	s.mu.Lock()
	again, err := s.state.Again(ex, up.production())
	sp := ex.Kept.Spool
	var line []byte
	var wake imapsession.Wake
	if again.Answer != "" {
		var k imapsession.Kept
		line, wake, k = s.state.Answer(ex, again.Answer)
		again.Release = again.Release.With(k)
	}
	s.mu.Unlock()
	s.srv.opt.Log.Debug("asked again", "account", s.account, "tag", ex.Tag, "command", ex.Name(),
		"uids", ex.UIDs, "side", up.lease.Side, "answer", again.Answer)
	if again.Answer != "" {
		_ = s.tell(line, wake, again.Release)
		return nil
	}
	again.Release.Release()
	if err != nil {
		return err
	}
	_ = s.toClient(again.Tell)
	s.seat.write(up, again.Before)
	if again.Message && sp != nil {
		body, err := sp.Bytes()
		if err != nil {
			return err
		}
		s.seat.write(up, body)
	}
	s.seat.write(up, again.After)
	return nil
}
