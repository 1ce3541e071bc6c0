package check

import (
	"net"
	"sync"
)

// Conn is a client's connection that a Session follows.
type Conn struct {
	net.Conn
	s    *Session
	once sync.Once
	wmu  chan struct{} // held while the peer is waited for
}

// Watch follows a client's connection, from behind its login.
func (b *Book) Watch(c net.Conn, account string) *Conn {
	return &Conn{Conn: c, s: b.Session(account), wmu: make(chan struct{}, 1)}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.s.Server(p[:n])
	}
	return n, err
}

// Write implements net.Conn. It is followed before it is sent: an answer must
// not come first.
func (c *Conn) Write(p []byte) (int, error) {
	c.wmu <- struct{}{}
	defer func() { <-c.wmu }()
	c.s.Client(p)
	return c.Conn.Write(p)
}

// Done ends the session; clean is when its client wanted no more.
func (c *Conn) Done(clean bool) { c.once.Do(func() { c.s.End(clean) }) }
