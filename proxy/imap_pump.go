package proxy

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/imapwire"
)

// Buffers of a pump, in bytes: they begin small, since most sessions idle, and
// grow to hold a whole line.
const (
	bufStart = 8 << 10
	bufMax   = 128 << 10
)

// A peer that takes nothing for writeLimit is gone. The deadline is set anew
// every writeRenew only, since most writes are small.
const (
	writeLimit = 6 * time.Minute
	writeRenew = time.Minute
)

// imapSession is a session after login, carried by production.
type imapSession struct {
	p       *Proxy
	account string
	client  net.Conn
	up      *imapConn
	lease   Lease

	mu      sync.Mutex
	track   *imapsession.Tracker
	spools  map[*imapsession.Cmd]row.Spool
	waiting *imapsession.Cmd // the client pump waits for its continuation
	bye     bool             // LOGOUT was seen
	proceed chan bool        // its outcome; never more than one is due
	ended   chan struct{}
	wmu     sync.Mutex // writes to the client

	clientDue, upDue time.Time // when the write deadlines were last set
}

func newIMAPSession(p *Proxy, account string, client net.Conn, up *imapConn, lease Lease) *imapSession {
	return &imapSession{p: p, account: account, client: client, up: up, lease: lease, track: imapsession.New(account),
		spools: map[*imapsession.Cmd]row.Spool{}, proceed: make(chan bool, 1), ended: make(chan struct{})}
}

// run moves bytes both ways until one side ends or the lease is revoked.
func (s *imapSession) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer func() {
		_ = s.client.Close()
		_ = s.up.Close()
		close(s.ended)
		wg.Wait()
		for _, c := range s.track.Outstanding() {
			if changes(c.Verb) {
				s.p.opt.Tap.Unanswered(s.account, c)
			}
		}
		s.lease.Release()
		for _, sp := range s.spools {
			sp.Discard()
		}
	}()
	wg.Go(func() {
		select {
		case <-s.lease.Revoked:
		case <-ctx.Done():
		case <-s.ended:
		}
		_ = s.client.Close()
		_ = s.up.Close()
	})
	wg.Go(func() {
		if err := s.fromClient(); err != nil {
			s.p.opt.Log.Debug("client side ended", "account", s.account, "err", err)
			if cut := errCut(""); errors.As(err, &cut) {
				_ = s.toClient([]byte("* BYE " + cut.Error() + "\r\n"))
			}
		}
		s.endUpstream()
	})
	s.p.opt.Log.Debug("production side ended", "account", s.account, "err", s.fromServer(ctx))
}

// endUpstream passes on that the client sends no more; what production still
// answers is carried for a minute.
func (s *imapSession) endUpstream() {
	if c, ok := s.up.Conn.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
		_ = s.up.SetReadDeadline(time.Now().Add(time.Minute))
		return
	}
	_ = s.up.Close()
}

// errCut tells a client why its session is ended.
type errCut string

func (e errCut) Error() string { return string(e) }

func (s *imapSession) toClient(b []byte) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if now := time.Now(); now.Sub(s.clientDue) > writeRenew {
		s.clientDue = now
		_ = s.client.SetWriteDeadline(now.Add(writeLimit))
	}
	_, err := s.client.Write(b)
	return err
}

// window is a growing read buffer.
type window struct {
	b    []byte
	r, w int
}

// fill reads more; consumed bytes make room.
func (w *window) fill(conn net.Conn) error {
	if w.b == nil {
		w.b = make([]byte, bufStart)
	}
	if w.r > 0 {
		w.w = copy(w.b, w.b[w.r:w.w])
		w.r = 0
	}
	if w.w == len(w.b) {
		b := make([]byte, min(2*len(w.b), bufMax))
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

func (w *window) full() bool { return w.w-w.r == len(w.b) && len(w.b) == bufMax }

// fromClient is the client's pump.
func (s *imapSession) fromClient() error {
	sc := imapwire.Scanner{Side: imapwire.Client}
	var win window
	var cmd *imapsession.Cmd
	for {
		from := win.r
		for win.r < win.w {
			piece, err := sc.Next(win.b[win.r:win.w])
			if err != nil {
				return errors.Join(s.send(win.b[from:win.r]), errCut("Cannot follow: "+err.Error()))
			}
			if piece.Kind == imapwire.More {
				break
			}
			b := win.b[win.r : win.r+piece.N]
			var done bool
			s.mu.Lock()
			cmd, done, err = s.track.Client(piece, b)
			wait := err == nil && (piece.Lit.Present && !piece.Lit.NonSync || done && cmd.Verb == "IDLE")
			if wait {
				s.waiting = cmd
			}
			s.mu.Unlock()
			if err != nil {
				return errCut(err.Error())
			}
			if err := s.capture(cmd, piece, b); err != nil {
				return err
			}
			if repl, ok := s.rewriteCommand(cmd, piece); ok {
				if err := s.send(win.b[from:win.r]); err != nil {
					return err
				}
				win.r += piece.N
				from = win.r
				if err := s.send(repl); err != nil {
					return err
				}
				continue
			}
			win.r += piece.N
			if !wait {
				continue
			}
			if err := s.send(win.b[from:win.r]); err != nil {
				return err
			}
			if err := s.await(cmd, &sc, &win); err != nil {
				return err
			}
			from = win.r
		}
		if err := s.send(win.b[from:win.r]); err != nil {
			return err
		}
		if err := win.fill(s.client); err != nil {
			return err
		}
	}
}

func (s *imapSession) send(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if now := time.Now(); now.Sub(s.upDue) > writeRenew {
		s.upDue = now
		_ = s.up.SetWriteDeadline(now.Add(writeLimit))
	}
	if _, err := s.up.Write(b); err != nil {
		s.p.opt.Gate.Trouble(err)
		return err
	}
	return nil
}

// await waits for the server's word to a synchronising literal or an IDLE. An
// IDLE that runs takes one line, which is no command.
func (s *imapSession) await(cmd *imapsession.Cmd, sc *imapwire.Scanner, win *window) error {
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
			if !strings.EqualFold(string(imapwire.TrimEOL(line)), "DONE") {
				s.mu.Lock()
				s.track.Doubt = "IDLE was ended by another line than DONE"
				s.mu.Unlock()
			}
			win.r += i + 1
			return s.send(line)
		}
		if win.w-win.r > imapwire.MaxLine {
			return errCut("Line too long")
		}
		if err := win.fill(s.client); err != nil {
			return err
		}
	}
}

// capture keeps the message of an APPEND.
func (s *imapSession) capture(cmd *imapsession.Cmd, piece imapwire.Piece, b []byte) error {
	if !cmd.Message || cmd.Extra {
		return nil
	}
	s.mu.Lock()
	sp := s.spools[cmd]
	if sp == nil {
		sp = s.p.opt.Tap.NewSpool()
		s.spools[cmd] = sp
	}
	s.mu.Unlock()
	if piece.Kind != imapwire.Body {
		return nil
	}
	_, err := sp.Write(b)
	if piece.Left == 0 {
		sp.Start()
	}
	if err != nil {
		s.p.opt.Log.Error("keep a message that a client appends", "account", s.account, "err", err)
		return errCut("Storage of the appliance failed")
	}
	return nil
}

// rewriteCommand replaces commands that would leave what the standby can do.
// A command that production does not know keeps the answers in order.
func (s *imapSession) rewriteCommand(c *imapsession.Cmd, p imapwire.Piece) ([]byte, bool) {
	if p.Kind != imapwire.Line || !p.First || !p.Last {
		return nil, false
	}
	switch c.Verb {
	case "LOGOUT":
		s.mu.Lock()
		s.bye = true
		s.mu.Unlock()
	case "COMPRESS", "NOTIFY", "UNAUTHENTICATE", "STARTTLS", "LOGIN", "AUTHENTICATE", "XCLIENT":
		return []byte(c.Tag + " XHIDDEN\r\n"), true
	case "ENABLE":
		var keep []string
		for _, w := range strings.Fields(string(c.Args().Rest())) {
			if hasWord(s.p.opt.Caps, w) {
				keep = append(keep, w)
			}
		}
		if keep == nil {
			return []byte(c.Tag + " NOOP\r\n"), true
		}
		return []byte(c.Tag + " ENABLE " + strings.Join(keep, " ") + "\r\n"), true
	}
	return nil, false
}

// fromServer is production's pump.
func (s *imapSession) fromServer(ctx context.Context) error {
	sc := imapwire.Scanner{Side: imapwire.Server}
	var win window
	src := net.Conn(&buffered{s.up.Conn, s.up.br})
	for {
		from := win.r
		for win.r < win.w {
			b := win.b[win.r:win.w]
			piece, err := sc.Next(b)
			if err != nil {
				return err
			}
			if piece.Kind == imapwire.More {
				if !win.full() {
					break
				}
				if piece = sc.Long(b); piece.N == 0 {
					break
				}
			}
			b = b[:piece.N]
			if piece.Kind == imapwire.Body || !piece.First {
				win.r += piece.N
				continue
			}
			verdict, err := s.serverUnit(ctx, b, func() error {
				out := win.b[from:win.r]
				from = win.r
				return s.forward(out)
			})
			if err != nil {
				return err
			}
			win.r += piece.N
			if verdict != nil {
				if err := s.forward(win.b[from : win.r-piece.N]); err != nil {
					return err
				}
				if err := s.forward(verdict); err != nil {
					return err
				}
				from = win.r
			}
		}
		if err := s.forward(win.b[from:win.r]); err != nil {
			return err
		}
		if err := win.fill(src); err != nil {
			s.mu.Lock()
			ended := s.bye
			s.mu.Unlock()
			if !ended && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
				s.p.opt.Gate.Trouble(err)
			}
			return err
		}
	}
}

func (s *imapSession) forward(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	return s.toClient(b)
}

// errUnsettled ends a session whose last change could not be made durable; it
// gets no OK.
var errUnsettled = errors.New("change is not durable")

// serverUnit follows the first line of a unit. It returns what replaces the
// line, nil for the line itself. flush forwards what came before it.
func (s *imapSession) serverUnit(ctx context.Context, line []byte, flush func() error) ([]byte, error) {
	s.mu.Lock()
	ev := s.track.Server(line)
	box := s.track.Box
	sp := s.spools[ev.Cmd]
	delete(s.spools, ev.Cmd)
	signal := s.waiting != nil && (ev.Resp.Tag == "+" || ev.Cmd == s.waiting)
	if signal {
		s.waiting = nil
	}
	bye := s.bye
	s.mu.Unlock()
	if sp != nil {
		defer sp.Discard()
	}
	if ev.Resp.Name == "BYE" && ev.Resp.Tag == "*" && !bye {
		// A dying server's; whether the client must know is not its to say.
		_ = flush()
		return nil, errors.New("production said BYE " + string(ev.Resp.Rest))
	}
	if ev.Hint && box != nil {
		s.p.opt.Tap.Hint(s.account, box.Name)
	}
	if ev.Selected {
		s.seed(ev.Cmd.Mailbox)
	}
	if ev.Cmd != nil && ev.Resp.Name == "OK" && changes(ev.Cmd.Verb) {
		if err := flush(); err != nil {
			return nil, err
		}
		if err := s.p.opt.Tap.Settle(ctx, s.account, ev.Cmd, ev.Resp, sp); err != nil {
			s.p.opt.Log.Error("an accepted change could not be made durable; the session ends without its OK",
				"account", s.account, "command", ev.Cmd.Verb, "err", err)
			return nil, errors.Join(errUnsettled, err)
		}
	}
	out := s.rewrite(ev, line)
	if signal {
		s.proceed <- ev.Resp.Tag == "+"
	}
	return out, nil
}

// changes reports whether a command, once accepted, changed the store.
func changes(verb string) bool {
	switch verb {
	case "APPEND", "STORE", "UID STORE", "COPY", "UID COPY", "MOVE", "UID MOVE", "EXPUNGE", "UID EXPUNGE", "CLOSE",
		"CREATE", "DELETE", "RENAME", "SUBSCRIBE", "UNSUBSCRIBE":
		return true
	}
	return false
}

// seed gives the tracker the view of a mailbox that the replica knows.
func (s *imapSession) seed(mailbox string) {
	s.mu.Lock()
	box := s.track.Box
	v, next, n := box.UIDValidity, box.UIDNext, len(box.View)
	s.mu.Unlock()
	uids, ok := s.p.opt.Tap.View(s.account, mailbox, v, next, n)
	if !ok {
		return
	}
	s.mu.Lock()
	if s.track.Box == box {
		s.track.Seed(uids)
	}
	s.mu.Unlock()
}

// rewrite returns a line with its capability list cut, and its UIDVALIDITY
// replaced; nil if it stays.
func (s *imapSession) rewrite(ev imapsession.Event, line []byte) []byte {
	r := &ev.Resp
	if r.Name == "CAPABILITY" && r.Tag == "*" {
		return []byte("* CAPABILITY " + cutCaps(strings.Fields(string(r.Rest)), s.p.opt.Caps) + "\r\n")
	}
	if r.Code == "CAPABILITY" {
		return []byte(r.Tag + " " + r.Name + " [CAPABILITY " + cutCaps(strings.Fields(string(r.Arg)), s.p.opt.Caps) + "] " + string(r.Rest) + "\r\n")
	}
	word, mailbox := "", ""
	switch {
	case r.Code == "UIDVALIDITY", r.Code == "APPENDUID", r.Code == "COPYUID":
		word, mailbox = "["+r.Code+" ", s.concerned(ev)
	case r.Name == "STATUS":
		word, mailbox = "UIDVALIDITY ", imapwire.NewReader(r.Rest).Mailbox()
	}
	if mailbox == "" {
		return nil
	}
	if v := s.p.opt.Tap.Virtual(s.account, mailbox); v != 0 {
		return replaceNumber(line, word, v)
	}
	return nil
}

// concerned is the mailbox whose UIDVALIDITY a response code tells.
func (s *imapSession) concerned(ev imapsession.Event) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := ev.Cmd
	if out := s.track.Outstanding(); c == nil && len(out) > 0 {
		c = out[0]
	}
	switch {
	case c == nil:
	case ev.Resp.Code == "COPYUID":
		r := c.Args()
		r.Set()
		r.SP()
		return r.Mailbox()
	case c.Verb == "SELECT", c.Verb == "EXAMINE", c.Verb == "APPEND":
		return c.Mailbox
	}
	return ""
}

// replaceNumber replaces the number behind the last occurrence of word.
func replaceNumber(line []byte, word string, with uint32) []byte {
	i := bytes.LastIndex(bytes.ToUpper(line), []byte(word))
	if i < 0 {
		return nil
	}
	i += len(word)
	j := i
	for j < len(line) && line[j] >= '0' && line[j] <= '9' {
		j++
	}
	out := append([]byte(nil), line[:i]...)
	out = strconv.AppendUint(out, uint64(with), 10)
	return append(out, line[j:]...)
}
