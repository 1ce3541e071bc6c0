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
	c, old := p.take(account)
	closeThem(old)
	if c != nil {
		return c, false, nil
	}
	c, err = p.dial(ctx, account)
	return c, true, err
}

// take takes an idle connection out, and those that are too old to be used; c is nil
// if there is none.
func (p *pool) take(account string) (c *imapc.Conn, old []*pooled) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := p.idle[account]; len(l) > 0; l = p.idle[account] {
		e := l[len(l)-1]
		p.idle[account] = l[:len(l)-1]
		p.n--
		if time.Since(e.since) < poolAge {
			return e.c, old
		}
		old = append(old, e)
	}
	return nil, old
}

func (p *pool) put(account string, c *imapc.Conn) { closeThem(p.add(account, c)) }

// add keeps a connection, and returns those that are to be closed.
func (p *pool) add(account string, c *imapc.Conn) (rest []*pooled) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := &pooled{c, time.Now()}
	if p.n >= poolSize {
		rest = p.expire()
	}
	if p.n >= poolSize || len(p.idle[account]) >= poolEach {
		return append(rest, e)
	}
	p.idle[account] = append(p.idle[account], e)
	p.n++
	return rest
}

// expire takes out what is too old to be used; mu is held.
func (p *pool) expire() (old []*pooled) {
	for a, l := range p.idle {
		for len(l) > 0 && time.Since(l[0].since) > poolAge {
			old, l = append(old, l[0]), l[1:]
			p.n--
		}
		if len(l) == 0 {
			delete(p.idle, a)
		} else {
			p.idle[a] = l
		}
	}
	return old
}

// empty takes all out.
func (p *pool) empty() (all []*pooled) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.idle {
		all = append(all, l...)
	}
	p.idle, p.n = map[string][]*pooled{}, 0
	return all
}

func (p *pool) closeAll() { closeThem(p.empty()) }

func closeThem(l []*pooled) {
	for _, e := range l {
		e.c.Close()
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
