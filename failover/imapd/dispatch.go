package imapd

import (
	"slices"
	"strings"
	"time"

	"understudy/snoop/imapwire"
)

func (s *session) dispatch(c *command) {
	run, needsMailbox := s.handler(c)
	switch {
	case run == nil:
		s.line("%s BAD Unknown command", c.Tag)
		return
	case needsMailbox && s.sel == nil:
		s.line("%s BAD No mailbox selected", c.Tag)
		return
	}
	run(c)
}

// handler returns what does a command, and whether it needs a mailbox.
func (s *session) handler(c *command) (run func(*command), needsMailbox bool) {
	switch c.Verb {
	case imapwire.Fetch:
		return s.fetch, true
	case imapwire.Store:
		return s.store, true
	case imapwire.Search:
		return s.search, true
	case imapwire.Copy, imapwire.Move:
		return s.copy, true
	case imapwire.Expunge:
		return s.expunge, true
	case imapwire.Close, imapwire.Unselect:
		return s.closeBox, true
	case imapwire.Check:
		return s.noop, true
	}
	return s.anyState(c.Verb), false
}

func (s *session) anyState(verb imapwire.Verb) func(*command) {
	switch verb {
	case imapwire.Noop:
		return s.noop
	case imapwire.Capability:
		return s.capability
	case imapwire.Logout:
		return s.logout
	case imapwire.ID:
		return s.id
	case imapwire.Enable:
		return s.enable
	case imapwire.Select, imapwire.Examine:
		return s.selectBox
	case imapwire.Create:
		return s.create
	case imapwire.Delete:
		return s.delete
	case imapwire.Rename:
		return s.rename
	case imapwire.Subscribe, imapwire.Unsubscribe:
		return s.subscribe
	case imapwire.List, imapwire.LSub:
		return s.list
	case imapwire.Namespace:
		return s.namespace
	case imapwire.Status:
		return s.status
	case imapwire.Append:
		return s.append
	case imapwire.Idle:
		return s.idle
	}
	return nil
}

func (s *session) noop(c *command) {
	if s.bad(c) {
		return
	}
	s.tell(true)
	s.ok(c, "%s completed", c.Verb)
}

func (s *session) capability(c *command) {
	if s.bad(c) {
		return
	}
	s.line("* CAPABILITY %s", strings.Join(s.Caps, " "))
	s.ok(c, "Capability completed")
}

func (s *session) logout(c *command) {
	s.line("* BYE Logging out")
	s.ok(c, "Logout completed")
	s.bye = true
}

func (s *session) id(c *command) {
	c.args.Skip()
	if s.bad(c) {
		return
	}
	s.line("* ID NIL")
	s.ok(c, "ID completed")
}

func (s *session) enable(c *command) {
	a, _ := c.Args.(imapwire.EnableArgs)
	if a.Err != nil {
		s.refuse(c, a.Err)
		return
	}
	on := slices.ContainsFunc(a.Words, func(w string) bool { return strings.EqualFold(w, "CONDSTORE") })
	s.condstore = s.condstore || on
	if on {
		s.line("* ENABLED CONDSTORE")
	} else {
		s.line("* ENABLED")
	}
	s.ok(c, "Enabled")
}

func (s *session) namespace(c *command) {
	if s.bad(c) {
		return
	}
	s.line(`* NAMESPACE (("" %s)) NIL NIL`, sepString(s.sep()))
	s.ok(c, "Namespace completed")
}

// idle serves IDLE (RFC 2177): the continuation comes first, then changes.
func (s *session) idle(c *command) {
	if s.bad(c) {
		return
	}
	ch, stop, err := s.opt.Store.Watch(s.User)
	if err != nil {
		s.fail(c, err)
		return
	}
	defer stop()
	s.line("+ idling")
	s.tell(true)
	if s.w.Flush() != nil {
		s.bye = true
		return
	}
	_ = s.conn.SetReadDeadline(time.Time{})
	type result struct {
		line []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		line, _, err := s.readLine()
		done <- result{line, err}
	}()
	tick := time.NewTicker(s.opt.KeepAlive)
	defer tick.Stop()
	for {
		select {
		case r := <-done:
			s.endIdle(c, r.line, r.err)
			return
		case <-ch:
			s.tell(true)
		case <-tick.C:
			s.line("* OK Still here")
		case <-s.ctx.Done():
			_ = s.conn.SetReadDeadline(time.Unix(1, 0))
			<-done
			s.line("* BYE Server is shutting down")
			s.bye = true
			return
		}
		if s.w.Flush() != nil {
			_ = s.conn.SetReadDeadline(time.Unix(1, 0))
			<-done
			s.bye = true
			return
		}
	}
}

func (s *session) endIdle(c *command, line []byte, err error) {
	switch {
	case err != nil:
		s.bye = true
	case strings.EqualFold(string(imapwire.TrimEOL(line)), "DONE"):
		s.tell(true)
		s.ok(c, "Idle completed")
	default:
		s.line("%s BAD Expected DONE", c.Tag)
	}
}
