package imap

import (
	"bytes"
	"net"
	"strings"
	"time"

	"understudy/proxy/seam"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// Buffers of a pump, in bytes: they begin small, since most sessions idle, and
// grow to hold a whole line; a server's longer line, as SEARCH gives it in a large
// mailbox, for as long as it takes. A session that is in the middle of a line can
// only be continued if the client has got nothing of that.
const (
	bufStart = 8 << 10
	bufMax   = 128 << 10
	lineMax  = 2 << 20
)

// window is a growing read buffer.
type window struct {
	b    []byte
	r, w int
	max  int // 0 is bufMax
}

func (w *window) limit() int { return max(w.max, bufMax) }

// fill reads more; consumed bytes make room.
func (w *window) fill(conn net.Conn) error {
	if w.b == nil || w.r == w.w && len(w.b) > bufMax {
		w.b, w.r, w.w = make([]byte, bufStart), 0, 0
	}
	if w.r > 0 {
		w.w = copy(w.b, w.b[w.r:w.w])
		w.r = 0
	}
	if w.w == len(w.b) {
		b := make([]byte, min(2*len(w.b), w.limit()))
		copy(b, w.b)
		w.b = b
	}
	n, err := conn.Read(w.b[w.w:])
	w.w += n
	if n > 0 {
		if n == len(w.b)-(w.w-n) && len(w.b) < bufMax && w.r == 0 {
			b := make([]byte, 2*len(w.b))
			copy(b, w.b[:w.w])
			w.b = b
		}
		return nil
	}
	return err
}

func (w *window) full() bool { return w.w-w.r == len(w.b) && len(w.b) == w.limit() }

// fromClient is the client's pump.
func (s *session) fromClient() error {
	sc := imapwire.Scanner{Side: imapwire.Client}
	var win window
	for {
		if err := win.fill(s.client); err != nil {
			return err
		}
		for win.r < win.w {
			wait, err := s.batch(&sc, &win)
			if err != nil {
				return err
			}
			if wait == nil {
				break
			}
			if err := s.await(wait, &sc, &win); err != nil {
				return err
			}
		}
	}
}

// batch follows and sends what the window holds, up to a point where the
// server's word has to be waited for, which it returns.
func (s *session) batch(sc *imapwire.Scanner, win *window) (wait *imapsession.Cmd, err error) {
	up := s.hold()
	defer s.send.Unlock()
	if up == nil {
		return nil, net.ErrClosed
	}
	from := win.r
	defer func() { s.write(up, win.b[from:win.r]) }()
	for win.r < win.w {
		piece, err := sc.Next(win.b[win.r:win.w])
		if err != nil {
			return nil, errCut("Cannot follow: " + err.Error())
		}
		if piece.Kind == imapwire.More {
			return nil, nil
		}
		b := win.b[win.r : win.r+piece.N]
		cmd, wait, err := s.follow(piece, b, up.lease.Side == seam.Production)
		if err != nil {
			return nil, err
		}
		repl, ok, err := s.rewriteCommand(cmd, piece, b)
		if err != nil {
			return nil, err
		}
		if ok {
			s.write(up, win.b[from:win.r])
			s.write(up, repl)
			from = win.r + piece.N
		}
		win.r += piece.N
		if wait {
			return cmd, nil
		}
	}
	return nil, nil
}

// follow gives a piece of the client's to the tracker, and keeps the message of
// an APPEND.
func (s *session) follow(piece imapwire.Piece, b []byte, production bool) (cmd *imapsession.Cmd, wait bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = time.Now()
	cmd, done, err := s.track.Client(piece, b)
	if err != nil {
		return nil, false, errCut(err.Error())
	}
	if wait = piece.Lit.Present && !piece.Lit.NonSync || done && cmd.Verb == "IDLE"; wait {
		s.waiting = cmd
	}
	if done {
		s.opens(cmd)
	}
	switch {
	case done && (strings.HasSuffix(cmd.Verb, "COPY") || strings.HasSuffix(cmd.Verb, "MOVE")):
		if to := copyTarget(cmd); to != "" {
			cmd.Mark = s.srv.opt.Replica.Mark(s.account, to)
		}
		if production {
			s.asking[cmd] = s.srv.opt.Changes.Asking(s.account, cmd)
		}
		return cmd, wait, nil
	case !cmd.Message || cmd.Extra || cmd.Answered():
		return cmd, wait, nil
	}
	sp := s.spools[cmd]
	if sp == nil {
		sp = s.srv.opt.NewSpool()
		s.spools[cmd] = sp
		cmd.Mark = s.srv.opt.Replica.Mark(s.account, imapwire.NewReader(cmd.Args().Rest()).Mailbox())
	}
	if piece.Kind != imapwire.Body {
		return cmd, wait, nil
	}
	_, err = sp.Write(b)
	if piece.Left == 0 && production {
		sp.Start()
	}
	if err != nil {
		s.srv.opt.Log.Error("keep a message that a client appends", "account", s.account, "err", err)
		return nil, false, errCut("Storage of the appliance failed")
	}
	return cmd, wait, nil
}

// copyTarget is the mailbox that a COPY or MOVE leads to.
func copyTarget(c *imapsession.Cmd) string {
	r := c.Args()
	r.Set()
	r.SP()
	to := r.Mailbox()
	if r.Err() != nil {
		return ""
	}
	return to
}

// await waits for the server's word to a synchronising literal or an IDLE. An
// IDLE that runs takes one line, which is no command.
func (s *session) await(cmd *imapsession.Cmd, sc *imapwire.Scanner, win *window) error {
	var ok bool
	select {
	case ok = <-s.proceed:
	case <-s.ended:
		return net.ErrClosed
	}
	if cmd.Verb != "IDLE" {
		if !ok {
			sc.Cancel()
		}
		return nil
	}
	if !ok {
		return nil
	}
	for {
		if i := bytes.IndexByte(win.b[win.r:win.w], '\n'); i >= 0 {
			line := win.b[win.r : win.r+i+1]
			win.r += i + 1
			return s.endIdle(cmd, line)
		}
		if win.w-win.r > imapwire.MaxLine {
			return errCut("Line too long")
		}
		if err := win.fill(s.client); err != nil {
			return err
		}
	}
}

// endIdle passes on the line that ends an IDLE.
func (s *session) endIdle(cmd *imapsession.Cmd, line []byte) error {
	up := s.hold()
	defer s.send.Unlock()
	if up == nil {
		return net.ErrClosed
	}
	s.mu.Lock()
	s.heard = time.Now()
	if !strings.EqualFold(string(imapwire.TrimEOL(line)), "DONE") {
		s.track.Doubt = "IDLE was ended by another line than DONE"
	}
	cmd.Ended = true
	open := !cmd.Answered()
	s.mu.Unlock()
	if open {
		s.write(up, line)
	}
	return nil
}

// rewriteCommand replaces commands that would leave what the standby can do.
// A command that production does not know keeps the answers in order.
func (s *session) rewriteCommand(c *imapsession.Cmd, p imapwire.Piece, b []byte) ([]byte, bool, error) {
	if p.Kind != imapwire.Line || !p.First {
		return nil, false, nil
	}
	if out, err := s.renumber(c, b); out != nil || err != nil {
		return out, true, err
	}
	if !p.Last {
		return nil, false, nil
	}
	out := s.replaceCommand(c)
	return out, out != nil, nil
}

// replaceCommand returns what is sent in place of a one-line command, or nil.
func (s *session) replaceCommand(c *imapsession.Cmd) []byte {
	switch c.Verb {
	case "LOGOUT":
		s.mu.Lock()
		s.bye = true
		s.mu.Unlock()
	case "COMPRESS", "NOTIFY", "UNAUTHENTICATE", "STARTTLS", "LOGIN", "AUTHENTICATE", "XCLIENT":
		return []byte(c.Tag + " XHIDDEN\r\n")
	case "ENABLE":
		var keep []string
		for _, w := range strings.Fields(string(c.Args().Rest())) {
			if s.srv.opt.Caps.Has(w) {
				keep = append(keep, w)
			}
		}
		if keep == nil {
			return []byte(c.Tag + " NOOP\r\n")
		}
		return []byte(c.Tag + " ENABLE " + strings.Join(keep, " ") + "\r\n")
	}
	return nil
}
