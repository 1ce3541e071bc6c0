package imap

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"understudy/proxy/seam"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// What a session asks again of its next upstream, and what it tells the client
// of the difference.

// outcomes finds out what the lost upstream had done of the commands that it
// did not answer, as far as that shows now. What was found stays found, should
// this upstream be lost as well.
func (s *session) outcomes(ctx context.Context, side seam.Side) error {
	s.mu.Lock()
	pending := slices.Clone(s.track.Outstanding())
	s.mu.Unlock()
	for _, c := range pending {
		if !c.Complete() || !strings.HasSuffix(c.Verb, "APPEND") && !strings.HasSuffix(c.Verb, "COPY") && !strings.HasSuffix(c.Verb, "MOVE") {
			continue
		}
		s.mu.Lock()
		sp := s.spools[c]
		_, known := s.done[c]
		s.mu.Unlock()
		if known {
			continue
		}
		code, done, err := s.srv.opt.Changes.Outcome(ctx, s.account, c, sp, side == seam.Production)
		if err != nil {
			return err
		}
		s.srv.opt.Log.Debug("outcome of a command without an answer", "account", s.account, "tag", c.Tag, "command", c.Verb, "done", done, "code", code, "side", side)
		if done {
			s.mu.Lock()
			s.done[c] = code
			s.mu.Unlock()
		}
	}
	return nil
}

// answerDone answers the commands that a lost upstream had done.
func (s *session) answerDone() error {
	s.mu.Lock()
	pending := slices.Clone(s.track.Outstanding())
	s.mu.Unlock()
	for _, c := range pending {
		s.mu.Lock()
		code, done := s.done[c]
		delete(s.done, c)
		s.mu.Unlock()
		if !done {
			continue
		}
		if err := s.answer(c, "OK "+code+"Completed"); err != nil {
			return err
		}
	}
	return nil
}

// answer gives a command the answer that the lost upstream owes.
func (s *session) answer(c *imapsession.Cmd, status string) error {
	s.mu.Lock()
	s.track.Answer(c)
	if sp := s.spools[c]; sp != nil {
		delete(s.spools, c)
		sp.Discard()
	}
	out := s.tellNews(c.Verb)
	signal := s.waiting == c
	if signal {
		s.waiting = nil
	}
	s.mu.Unlock()
	if signal {
		s.proceed <- false
	}
	return s.toClient(append(out, c.Tag+" "+status+"\r\n"...))
}

// resend asks the new upstream for what the client is owed, and lets the client
// go on.
func (s *session) resend(up *link) {
	s.send.Lock()
	defer s.send.Unlock()
	s.up = up
	s.mu.Lock()
	pending := slices.Clone(s.track.Outstanding())
	s.mu.Unlock()
	for _, c := range pending {
		s.mu.Lock()
		c.Rerun = true
		if c.Complete() {
			s.opens(c)
		}
		again := s.track.Again(c)
		sp := s.spools[c]
		idling := c.Verb == "IDLE" && c.Continued && !c.Ended
		var told []byte
		if idling {
			told = s.tellNews(c.Verb)
		}
		s.mu.Unlock()
		s.srv.opt.Log.Debug("asked again", "account", s.account, "tag", c.Tag, "command", c.Verb, "uids", c.UIDs, "side", up.lease.Side, "answer", again.Answer)
		if again.Answer != "" {
			_ = s.answer(c, again.Answer)
			continue
		}
		_ = s.toClient(told)
		if c.Complete() && !again.Message {
			if b := s.replaceCommand(c); b != nil {
				again.Before = b
			} else if b, err := s.renumber(c, again.Before); err != nil {
				_ = up.Close()
				return
			} else if b != nil {
				again.Before = b
			}
		}
		s.write(up, again.Before)
		if again.Message && sp != nil {
			body, err := sp.Bytes()
			if err != nil {
				_ = up.Close()
				return
			}
			s.write(up, body)
		}
		s.write(up, again.After)
	}
	s.attached.Broadcast()
}

// tellNews returns what the client may be told now of its mailbox; mu is held.
func (s *session) tellNews(verb string) []byte {
	if s.numbers.Same() && !s.news.exists && s.news.flags == nil || s.track.Box == nil {
		return nil
	}
	var out []byte
	if verb != "FETCH" && verb != "STORE" && verb != "SEARCH" {
		for _, n := range s.numbers.Ghosts() {
			s.track.Forget(int(n))
			out = fmt.Appendf(out, "* %d EXPUNGE\r\n", n)
		}
	}
	out = append(out, s.tellExists()...)
	for _, f := range s.news.flags {
		if i := slices.Index(s.track.Box.View, f.UID); i >= 0 {
			out = fmt.Appendf(out, "* %d FETCH (UID %d FLAGS %s)\r\n", i+1, f.UID, imapwire.FormatFlags(f.Flags))
		}
	}
	s.news = news{}
	return out
}

// tellExists tells of messages that the mailbox has got: before anything else is
// said of them. mu is held.
func (s *session) tellExists() []byte {
	if !s.news.exists || s.track.Box == nil {
		return nil
	}
	s.news.exists = false
	return fmt.Appendf(nil, "* %d EXISTS\r\n", len(s.track.Box.View))
}

// clientNumbers translates the number of an untagged response; mu is held. hide
// tells that the response is about a message that the client does not count.
func (s *session) clientNumbers(line []byte) (out []byte, hide bool) {
	if s.numbers.Same() || s.track.Opening() {
		return nil, false
	}
	r := imapwire.ParseResponse(line)
	var n uint32
	ok := true
	switch r.Name {
	case "EXISTS":
		n = s.numbers.Exists(r.Num)
	case "EXPUNGE":
		n, ok = s.numbers.Expunge(r.Num)
	case "FETCH":
		n, ok = s.numbers.Client(r.Num)
	case "SEARCH":
		return s.clientSearch(r), false
	default:
		return nil, false
	}
	if !ok {
		return nil, true
	}
	rest := line[len("* "):]
	for len(rest) > 0 && rest[0] >= '0' && rest[0] <= '9' {
		rest = rest[1:]
	}
	return append(fmt.Appendf(nil, "* %d", n), rest...), false
}

func (s *session) clientSearch(r imapwire.Response) []byte {
	if c := s.track.Oldest(); c == nil || c.Verb != "SEARCH" {
		return nil
	}
	out := []byte("* SEARCH")
	for _, f := range strings.Fields(string(r.Rest)) {
		n, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			out = append(append(out, ' '), f...)
		} else if m, ok := s.numbers.Client(uint32(n)); ok {
			out = fmt.Appendf(out, " %d", m)
		}
	}
	return append(out, "\r\n"...)
}

// renumber translates the numbers of a command; nil if there are none.
func (s *session) renumber(c *imapsession.Cmd, line []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.numbers.Same() {
		return nil, nil
	}
	switch c.Verb {
	case "FETCH", "STORE", "COPY", "MOVE":
	case "SEARCH":
		if strings.Contains(strings.ToUpper(string(line)), "RETURN") || slices.ContainsFunc(strings.Fields(string(line))[1:], func(w string) bool { return strings.Trim(w, "0123456789:,*()") == "" }) {
			return nil, errCut("The mailbox has changed; please open it again")
		}
		return nil, nil
	default:
		return nil, nil
	}
	if imapwire.ParseHead(line).ByUID {
		return nil, nil // by UID by now
	}
	head := len(c.Tag) + 1 + len(c.Verb) + 1
	r := imapwire.NewReader(line[head:])
	set := r.Set()
	if r.Err() != nil {
		return nil, nil // production says what is wrong
	}
	nums, ok := s.numbers.Set(set)
	if !ok {
		return []byte(c.Tag + " NOOP\r\n"), nil
	}
	rest := line[len(line)-len(r.Rest())-2:]
	return append(append(append([]byte(nil), line[:head]...), nums...), rest...), nil
}
