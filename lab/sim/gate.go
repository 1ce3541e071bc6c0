package sim

import (
	"net"
	"regexp"
	"sync"
	"time"
)

// moveCode is where a MOVE led to, and why a mailbox is refused. (Copy-back needs
// COPYUID of its own COPYs.)
var moveCode = regexp.MustCompile(`(\* OK |NO )\[(COPYUID|ALREADYEXISTS|NONEXISTENT)[^]\r\n]*\] `)

// gated is production's end of a connection: slow, in pieces, and stopped while
// production is frozen. What it writes waits in a queue, as in a socket.
type gated struct {
	net.Conn
	w     *world
	queue chan []byte
	end   chan struct{} // closed when nothing more is written
	sent  chan struct{}
	once  sync.Once
	stall chan struct{} // of this one alone, as frozen is of all; the world's lock guards it
}

// newGated begins; deliver must run.
func newGated(c net.Conn, w *world) *gated {
	return &gated{Conn: c, w: w, queue: make(chan []byte, 1<<12), end: make(chan struct{}), sent: make(chan struct{})}
}

func (g *gated) deliver() {
	defer close(g.sent)
	for {
		var p []byte
		select {
		case p = <-g.queue:
		default:
			select {
			case p = <-g.queue:
			case <-g.end:
				return
			}
		}
		g.pass()
		for len(p) > 0 {
			n, err := g.Conn.Write(p[:min(len(p), 7+len(p)/3)])
			if err != nil {
				_ = g.Conn.Close()
				return
			}
			p = p[n:]
		}
	}
}

// pass waits as long as the way takes, and production is stopped.
func (g *gated) pass() {
	pause := g.w.some(2 * time.Millisecond)
	g.w.mu.Lock()
	frozen, stall := g.w.frozen, g.stall
	g.w.mu.Unlock()
	time.Sleep(pause)
	for _, c := range []chan struct{}{frozen, stall} {
		if c != nil {
			<-c
		}
	}
}

// Read implements net.Conn.
func (g *gated) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	g.pass()
	return n, err
}

// Write implements net.Conn; the server writes from one goroutine at a time, and
// whole lines.
func (g *gated) Write(p []byte) (int, error) {
	said := append([]byte(nil), p...)
	if g.w.terse {
		said = moveCode.ReplaceAll(said, []byte("$1"))
	}
	select {
	case g.queue <- said:
		return len(p), nil
	case <-g.sent:
		return 0, net.ErrClosed
	}
}

// Close implements net.Conn: what is in the queue is sent before.
func (g *gated) Close() error {
	g.once.Do(func() { close(g.end) })
	<-g.sent
	return g.Conn.Close()
}
