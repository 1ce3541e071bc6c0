package imap

import (
	"bytes"
	"net"
	"time"

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
		if err := win.fill(s.client.Conn); err != nil {
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
// server's word has to be waited for, on the exchange which it returns.
func (s *session) batch(sc *imapwire.Scanner, win *window) (wait *imapsession.Exchange, err error) {
	up := s.seat.hold()
	defer s.seat.turn.Unlock()
	if up == nil {
		return nil, net.ErrClosed
	}
	from := win.r
	defer func() { s.seat.write(up, win.b[from:win.r]) }()
	for win.r < win.w {
		piece, err := sc.Next(win.b[win.r:win.w])
		if err != nil {
			return nil, imapsession.Cut("Cannot follow: " + err.Error())
		}
		if piece.Kind == imapwire.More {
			return nil, nil
		}
		taken, instead, err := s.follow(piece, win.b[win.r:win.r+piece.N], up.production())
		if err != nil {
			return nil, err
		}
		if taken.Drop || instead != nil {
			s.seat.write(up, win.b[from:win.r])
			s.seat.write(up, instead)
			from = win.r + piece.N
		}
		win.r += piece.N
		if taken.Wait {
			return taken.Exchange, nil
		}
	}
	return nil, nil
}

// follow has the state take a piece of the client's, and does what has to be done
// before it is sent, or what is to be sent in its place. The turn is held.
func (s *session) follow(piece imapwire.Piece, b []byte, production bool) (t imapsession.Taken,
	instead []byte, err error) {
	now := time.Now()
	s.mu.Lock()
	if t, err = s.state.Client(piece, b, now, production); err == nil {
		instead, err = s.state.Rewrite(t.Exchange, piece, b)
	}
	s.mu.Unlock()
	t.Release.Release()
	if err != nil {
		return t, nil, imapsession.Cut(err.Error())
	}
	s.attach(t.Exchange, t.Needs)
	if sp := t.Exchange.Kept.Spool; t.Write && sp != nil {
		if _, err = sp.Write(b); err != nil {
			s.srv.opt.Log.Error("keep a message that a client appends", "account", s.account, "err", err)
			return t, nil, imapsession.Cut("Storage of the appliance failed")
		}
		if t.Start {
			sp.Start()
		}
	}
	return t, instead, nil
}

// attach attaches to a command what it needs before it is sent. The turn is held.
func (s *session) attach(ex *imapsession.Exchange, n imapsession.Needs) {
	if n == (imapsession.Needs{}) {
		return
	}
	var k imapsession.Kept
	if n.Before != "" {
		k.Before = s.srv.opt.Replica.Known(s.account, n.Before)
	}
	if n.Mark != "" {
		k.Mark = s.srv.opt.Replica.Mark(s.account, n.Mark)
	}
	if n.Spool {
		k.Spool = s.srv.opt.NewSpool()
	}
	if n.Intent != nil {
		if n.Mark != "" {
			n.Intent.Mark = k.Mark
		}
		k.Intent = s.srv.opt.Changes.Intend(s.account, *n.Intent)
	}
	s.mu.Lock()
	back := ex.Attach(k)
	s.mu.Unlock()
	back.Release()
}

// await waits for the server's word to a synchronising literal or an IDLE. An
// IDLE that runs takes one line, which is no command.
func (s *session) await(ex *imapsession.Exchange, sc *imapwire.Scanner, win *window) error {
	var ok bool
	select {
	case ok = <-s.proceed:
	case <-s.ended:
		return net.ErrClosed
	}
	if ex.Verb != imapwire.Idle {
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
			return s.endIdle(ex, line)
		}
		if win.w-win.r > imapwire.MaxLine {
			return imapsession.Cut("Line too long")
		}
		if err := win.fill(s.client.Conn); err != nil {
			return err
		}
	}
}

// endIdle passes on the line that ends an IDLE.
func (s *session) endIdle(ex *imapsession.Exchange, line []byte) error {
	up := s.seat.hold()
	defer s.seat.turn.Unlock()
	if up == nil {
		return net.ErrClosed
	}
	now := time.Now()
	s.mu.Lock()
	send := s.state.EndIdle(ex, line, now)
	s.mu.Unlock()
	if send {
		s.seat.write(up, line)
	}
	return nil
}
