package mirror

import (
	"context"
	"sync"
	"time"

	"understudy/replica/imapc"
	"understudy/snoop/imapwire"
)

// pool keeps idle connections of accounts for a while: a targeted sync must not
// pay for a login each time.
type pool struct {
	dial func(ctx context.Context, account string) (*imapc.Conn, error)

	mu   sync.Mutex
	idle map[string][]*pooled
	n    int
}

type pooled struct {
	c     *imapc.Conn
	since time.Time
}

const (
	poolAge  = 50 * time.Second
	poolSize = 64 // connections, all accounts together
	poolEach = 2
)

// get returns a connection; fresh tells that it was made just now.
func (p *pool) get(ctx context.Context, account string) (c *imapc.Conn, fresh bool, err error) {
	for {
		e := p.last(account)
		if e == nil {
			c, err = p.dial(ctx, account)
			return c, true, err
		}
		if time.Since(e.since) < poolAge {
			return e.c, false, nil
		}
		e.c.Close()
	}
}

// last takes out the connection of an account that was used last; nil if there is none.
func (p *pool) last(account string) *pooled {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.idle[account]
	if len(l) == 0 {
		return nil
	}
	p.idle[account] = l[:len(l)-1]
	p.n--
	return l[len(l)-1]
}

func (p *pool) put(account string, c *imapc.Conn) {
	for _, c := range p.keep(account, c) {
		c.Close()
	}
}

// keep takes a connection in, and returns those that there is no room for.
func (p *pool) keep(account string, c *imapc.Conn) (out []*imapc.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n >= poolSize {
		out = p.expire()
	}
	if p.n >= poolSize || len(p.idle[account]) >= poolEach {
		return append(out, c)
	}
	p.idle[account] = append(p.idle[account], &pooled{c, time.Now()})
	p.n++
	return out
}

// expire takes out what is too old to be used; mu is held.
func (p *pool) expire() (out []*imapc.Conn) {
	for a, l := range p.idle {
		for len(l) > 0 && time.Since(l[0].since) > poolAge {
			out = append(out, l[0].c)
			l = l[1:]
			p.n--
		}
		if len(l) == 0 {
			delete(p.idle, a)
		} else {
			p.idle[a] = l
		}
	}
	return out
}

func (p *pool) closeAll() {
	p.mu.Lock()
	all := p.idle
	p.idle, p.n = map[string][]*pooled{}, 0
	p.mu.Unlock()
	for _, l := range all {
		for _, e := range l {
			e.c.Close()
		}
	}
}

// runIdle watches the INBOX of accounts by IDLE, as many as allowed.
func (m *Mirror) runIdle(ctx context.Context) error {
	watched := map[string]bool{}
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, a := range m.opt.Store.Accounts() {
			if !watched[a.Name] && len(watched) < m.opt.IdleLimit {
				watched[a.Name] = true
				wg.Go(func() { m.idle(ctx, a.Name) })
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *Mirror) idle(ctx context.Context, account string) {
	for pause := time.Second; ctx.Err() == nil; {
		if !m.paused.Load() {
			began := time.Now()
			err := m.idleConn(ctx, account)
			m.opt.Log.Debug("IDLE ended", "account", account, "err", err)
			if time.Since(began) > time.Minute {
				pause = time.Second
			}
			pause = min(2*pause, time.Minute)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		if m.paused.Load() {
			pause = time.Second
		}
	}
}

func (m *Mirror) idleConn(ctx context.Context, account string) error {
	c, err := m.opt.Dial(ctx, account)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, c.Close)()
	if _, err := c.Select("INBOX", true); err != nil {
		return err
	}
	m.Hint(account, "INBOX")
	return c.Idle(ctx, func(r imapwire.Response) {
		switch r.Name {
		case "EXISTS", "EXPUNGE":
			m.Hint(account, "INBOX")
		case "FETCH":
			m.Later(account, "INBOX")
		}
	})
}
