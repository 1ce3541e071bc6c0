package imapd

import (
	"strings"
	"time"

	"understudy/snoop/imapwire"
)

func (s *session) dispatch(c *command) {
	run, needsMailbox := s.handler(c)
	switch {
	case run == nil:
		s.line("%s BAD Unknown command", c.tag)
		return
	case needsMailbox && s.sel == nil:
		s.line("%s BAD No mailbox selected", c.tag)
		return
	}
	run(c)
}

// handler returns what does a command, and whether it needs a mailbox.
func (s *session) handler(c *command) (run func(*command), needsMailbox bool) {
	switch c.verb {
	case "FETCH":
		return s.fetch, true
	case "STORE":
		return s.store, true
	case "SEARCH":
		return s.search, true
	case "COPY", "MOVE":
		return s.copy, true
	case "EXPUNGE":
		return s.expunge, true
	}
	if c.uid {
		return nil, false
	}
	switch c.verb {
	case "CLOSE", "UNSELECT":
		return s.closeBox, true
	case "CHECK":
		return s.noop, true
	}
	return s.anyState(c.verb), false
}

func (s *session) anyState(verb string) func(*command) {
	switch verb {
	case "NOOP":
		return s.noop
	case "CAPABILITY":
		return s.capability
	case "LOGOUT":
		return s.logout
	case "ID":
		return s.id
	case "ENABLE":
		return s.enable
	case "SELECT", "EXAMINE":
		return s.selectBox
	case "CREATE":
		return s.create
	case "DELETE":
		return s.delete
	case "RENAME":
		return s.rename
	case "SUBSCRIBE", "UNSUBSCRIBE":
		return s.subscribe
	case "LIST", "LSUB":
		return s.list
	case "NAMESPACE":
		return s.namespace
	case "STATUS":
		return s.status
	case "APPEND":
		return s.append
	case "IDLE":
		return s.idle
	}
	return nil
}

func (s *session) noop(c *command) {
	if s.bad(c) {
		return
	}
	s.tell(true)
	s.ok(c, "%s completed", c.verb)
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
	var on []string
	for {
		if strings.EqualFold(c.args.Atom(), "CONDSTORE") {
			on = append(on, "CONDSTORE")
		}
		if !c.args.Accept(' ') {
			break
		}
	}
	if s.bad(c) {
		return
	}
	s.condstore = s.condstore || len(on) > 0
	s.line("%s", strings.TrimSpace("* ENABLED "+strings.Join(on, " ")))
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
		s.line("%s BAD Expected DONE", c.tag)
	}
}
