package box

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy/console/api"
	"understudy/console/config"
	"understudy/proxy"
)

// Run serves until ctx ends.
func (b *Box) Run(ctx context.Context) error {
	ctx, stop := b.standAside(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	if err := b.enterWire(); err != nil {
		return err
	}
	addrs := map[string]string{}
	if !b.opt.NoListeners {
		var err error
		if addrs, err = b.open(ctx, g); err != nil {
			return err
		}
	}
	b.work(ctx, g)
	if b.port != nil {
		g.Go(func() error { return b.port.run(ctx) })
	}
	if b.wire != nil {
		g.Go(func() error { return b.wire.Run(ctx) })
		// Beside production nothing comes here but in an outage, or by order.
		if err := b.wire.Arm(b.opt.Config.Network.Mode == "inline"); err != nil && b.opt.Config.Network.Mode == "inline" {
			return err
		}
	}
	if b.opt.Ready != nil {
		b.opt.Ready(addrs)
	}
	return g.Wait()
}

// open begins to listen: for clients, and for commands.
func (b *Box) open(ctx context.Context, g *errgroup.Group) (map[string]string, error) {
	listeners, err := b.listen(ctx)
	if err != nil {
		return nil, err
	}
	addrs := map[string]string{}
	for _, l := range listeners {
		addrs[l.name] = l.l.Addr().String()
		g.Go(func() error { return b.proxy.Serve(ctx, l.l, l.kind) })
	}
	socket, err := b.controlSocket()
	if err != nil {
		return nil, err
	}
	srv := &http.Server{Handler: api.Handler(b.service()), ReadHeaderTimeout: 10 * time.Second}
	g.Go(func() error {
		if err := srv.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return srv.Close()
	})
	return addrs, nil
}

// work runs what needs no listener.
func (b *Box) work(ctx context.Context, g *errgroup.Group) {
	for _, f := range []func(context.Context) error{b.keeper.Run, b.mirror.Run, b.prober.Run, b.learn.run, b.cache.Run, b.actor.deliver, b.chores} {
		g.Go(func() error { return f(ctx) })
	}
}

type listener struct {
	name string
	kind proxy.Kind
	l    net.Listener
}

func (b *Box) listen(ctx context.Context) ([]listener, error) {
	var out []listener
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	for _, w := range []struct {
		name, addr string
		kind       proxy.Kind
	}{
		{"imap", b.opt.Config.Listen.IMAP, proxy.IMAP}, {"imaps", b.opt.Config.Listen.IMAPS, proxy.IMAPS}, {"smtp", b.opt.Config.Listen.SMTP, proxy.SMTP},
		{"submission", b.opt.Config.Listen.Submission, proxy.Submission}, {"submissions", b.opt.Config.Listen.Submissions, proxy.Submissions},
	} {
		if w.addr == "" {
			continue
		}
		if b.wire != nil {
			for _, l := range b.wire.Listeners(w.name) {
				out = append(out, listener{w.name, w.kind, l})
			}
			continue
		}
		l, err := lc.Listen(ctx, "tcp", w.addr)
		if err != nil {
			for _, o := range out {
				_ = o.l.Close()
			}
			return nil, fmt.Errorf("listen.%s: %w", w.name, err)
		}
		out = append(out, listener{w.name, w.kind, l})
	}
	return out, nil
}

// ControlPath is where commands are taken.
func ControlPath(cfg config.Config) string {
	if cfg.Control != "" {
		return cfg.Control
	}
	return filepath.Join(cfg.Data, "control.sock")
}

func (b *Box) controlSocket() (net.Listener, error) {
	path := ControlPath(b.opt.Config)
	// The data directory is locked by the metadata store, so a socket that is
	// there is a dead process's.
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, os.Chmod(path, 0o600)
}
