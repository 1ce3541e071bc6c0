package sim

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"understudy/failover"
	"understudy/lab/check"
	"understudy/lab/load"
)

// simulate runs one seed. sabotage, if any, stands between clients and the box.
func simulate(t *testing.T, o options, seed uint64, sabotage func(net.Conn) net.Conn) *judgement {
	w := newWorld(t, o, seed)
	defer w.end()
	w.start()
	for _, u := range w.users {
		c, err := w.dial(u, w.direct)
		if err == nil {
			_, err = c.Do("CREATE Filed", nil)
			c.Close()
		}
		if err != nil {
			t.Error(err)
		}
	}
	w.startBox()
	w.wait(failover.Protecting)
	book, l := check.NewBook(), &load.Ledger{}
	ctx, stop := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	clients.Go(func() { load.Run(ctx, w.clients(seed, book, sabotage), l) })
	w.liven(600 * time.Millisecond)
	time.Sleep(300 * time.Millisecond) // all have logged in
	w.fail()
	time.Sleep(time.Second)
	back := w.wait(failover.Protecting)
	time.Sleep(time.Second)
	stop()
	clients.Wait()
	w.settle()
	j := w.judge(l, book)
	if !back {
		j.fault("production does not come back to answer")
	}
	if len(j.faults) > 0 {
		w.keep(seed, book)
		j.fault("seed %d, plan %v", seed, w.plan)
	}
	return j
}

// clients are those of a seed.
func (w *world) clients(seed uint64, book *check.Book, sabotage func(net.Conn) net.Conn) load.Options {
	perUser := 2
	if w.opt.brief {
		perUser = 1
	}
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := w.toBox(ctx, addr)
		if err == nil && sabotage != nil && addr == "imap" {
			c = sabotage(c)
		}
		return c, err
	}
	return load.Options{IMAP: "imap", SMTP: "smtp", Users: w.users, Password: password, Seed: seed,
		Tag: "sim", Pace: w.pace, Folder: "Filed", Deletes: true, PerUser: perUser, Dial: dial, Book: book}
}
