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
	p.mu.Lock()
	for len(p.idle[account]) > 0 {
		l := p.idle[account]
		e := l[len(l)-1]
		p.idle[account] = l[:len(l)-1]
		p.n--
		if time.Since(e.since) < poolAge {
			p.mu.Unlock()
			return e.c, false, nil
		}
		e.c.Close()
	}
	p.mu.Unlock()
	c, err = p.dial(ctx, account)
	return c, true, err
}

func (p *pool) put(account string, c *imapc.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n >= poolSize {
		p.expire()
	}
	if p.n >= poolSize || len(p.idle[account]) >= poolEach {
		c.Close()
		return
	}
	p.idle[account] = append(p.idle[account], &pooled{c, time.Now()})
	p.n++
}

// expire drops what is too old to be used; mu is held.
func (p *pool) expire() {
	for a, l := range p.idle {
		for len(l) > 0 && time.Since(l[0].since) > poolAge {
			l[0].c.Close()
			l = l[1:]
			p.n--
		}
		if len(l) == 0 {
			delete(p.idle, a)
		} else {
			p.idle[a] = l
		}
	}
}

func (p *pool) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.idle {
		for _, e := range l {
			e.c.Close()
		}
	}
	p.idle, p.n = map[string][]*pooled{}, 0
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
