package sim

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"understudy/lab/maild"
)

// server is production.
type server struct {
	*maild.Server
	ctx    context.Context
	cancel context.CancelFunc
	g      errgroup.Group
	mu     sync.Mutex
	gates  []*gated
}

// start starts production on what it has on disk.
func (w *world) start() {
	o := maild.Options{Dir: w.path("prod"), Domain: "sim.test", Users: map[string]string{},
		Master: master, MasterPassword: masterPassword, Greeting: "Simulated server ready.",
		Log: slog.New(slog.DiscardHandler)}
	for _, u := range w.users {
		o.Users[u] = password(u)
	}
	s := &server{}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	var err error
	if s.Server, err = maild.New(s.ctx, o); err != nil {
		panic(err)
	}
	w.mu.Lock()
	w.prod = s
	w.mu.Unlock()
}

// kill ends production: connections break at any byte; what a command had begun
// is finished without an answer.
func (w *world) kill() {
	w.mu.Lock()
	s := w.prod
	w.prod = nil
	w.mu.Unlock()
	if s == nil {
		return
	}
	s.cut(1)
	s.cancel()
	_ = s.g.Wait()
	if err := s.Close(); err != nil {
		w.t.Error(err)
	}
}

// cut breaks every n-th connection.
func (s *server) cut(n int) {
	s.mu.Lock()
	gates := slices.Clone(s.gates)
	s.mu.Unlock()
	for i, g := range gates {
		if i%n == 0 {
			_ = g.Conn.Close()
		}
	}
}

// freeze stops production, or has it go on.
func (w *world) freeze(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case on && w.frozen == nil:
		w.frozen = make(chan struct{})
	case !on && w.frozen != nil:
		close(w.frozen)
		w.frozen = nil
	}
}
