package sim

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy/cmd/box"
	"understudy/console/config"
	"understudy/proxy/seam"
	"understudy/replica/meta"
	"understudy/replica/row"
)

// appliance is the Understudy.
type appliance struct {
	*box.Box
	dir    string
	ctx    context.Context
	cancel context.CancelFunc
	g      errgroup.Group

	mu    sync.Mutex
	dead  bool
	conns []net.Conn // its ends of all connections
}

// holds notes a connection, whose end is the box's; false if it has none any more.
func (b *appliance) holds(c net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.dead {
		b.conns = append(b.conns, c)
	}
	return !b.dead
}

// startBox starts the Understudy on what it has on disk.
func (w *world) startBox() {
	b := &appliance{dir: w.boxDir()}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	dial := func(ctx context.Context, _ seam.Client, addr string) (net.Conn, error) {
		c, err := w.direct(ctx, addr)
		if err == nil && !b.holds(c) {
			_ = c.Close()
			err = errRefused
		}
		return c, err
	}
	rows, err := openRows(b.dir, w)
	if err != nil {
		panic(err)
	}
	b.Box, err = box.New(box.Options{Config: w.boxConfig(b.dir), Log: w.log, Dial: dial, NoListeners: true, Rows: rows,
		Spool: func(sp row.Spool) row.Spool { return slowSpool{sp, w} }})
	if err != nil {
		panic(err)
	}
	b.g.Go(func() error { return b.Run(b.ctx) })
	w.mu.Lock()
	w.box = b
	w.mu.Unlock()
}

// boxDir is where the box has its data: a box that was killed leaves a copy.
func (w *world) boxDir() string {
	if w.boxes == 0 {
		return w.path("box")
	}
	return w.path(fmt.Sprintf("box.%d", w.boxes))
}

func (w *world) boxConfig(dir string) config.Config {
	c := config.Default()
	c.Data, c.Hostname = dir, "mail.sim.test"
	c.Production.IMAP, c.Production.SMTP, c.Production.Timeout = "prod:143", "prod:25", config.Duration(3*time.Second)
	c.Master = config.Master{User: master, Password: masterPassword}
	c.Accounts.List, c.Accounts.Domains = w.users, []string{"sim.test"}
	c.Listen.PlainLogin = true
	c.Standby.LearnLogins = w.cfg.learn
	c.Mirror.Sweep, c.Mirror.Idle = config.Duration(2*time.Second), 2
	s := config.Duration(time.Second)
	c.Failover = config.Failover{Mode: "automatic", Hold: s, HoldSilent: 2 * s, Probe: s / 4, ProbeTimeout: s,
		ReturnProbes: 2, AutoHandback: true, OwedAfter: 20 * s}
	if w.cfg.silent > 0 {
		c.Failover.HoldSilent = config.Duration(w.cfg.silent)
	}
	if w.cfg.owed > 0 {
		c.Failover.OwedAfter = config.Duration(w.cfg.owed)
	}
	return c
}

// slowRows are rows on a disk that takes its time, before they are there and after.
type slowRows struct {
	meta.Store
	w *world
}

func openRows(dir string, w *world) (meta.Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	rows, err := meta.OpenBolt(filepath.Join(dir, "meta.db"))
	return slowRows{rows, w}, err
}

// Commit implements meta.Store.
func (s slowRows) Commit(ctx context.Context, b meta.Batch) (meta.Rev, error) {
	time.Sleep(s.w.some(3 * time.Millisecond))
	rev, err := s.Store.Commit(ctx, b)
	time.Sleep(s.w.some(3 * time.Millisecond))
	return rev, err
}

// slowSpool is a message on a disk that takes its time.
type slowSpool struct {
	row.Spool
	w *world
}

// Commit implements row.Spool.
func (s slowSpool) Commit() (row.Ref, error) {
	time.Sleep(s.w.some(30 * time.Millisecond))
	return s.Spool.Commit()
}

// stopBox ends the Understudy in order.
func (w *world) stopBox() {
	w.mu.Lock()
	b := w.box
	w.box = nil
	w.mu.Unlock()
	if b == nil {
		return
	}
	b.cancel()
	_ = b.g.Wait()
	if err := b.Close(); err != nil {
		w.t.Error(err)
	}
}
