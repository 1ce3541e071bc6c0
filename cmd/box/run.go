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

	"understudy/console/api"
	"understudy/console/config"
	"understudy/proxy"
)

// Run serves until ctx ends.
func (b *Box) Run(ctx context.Context) error {
	ctx, stop := b.standAside(ctx)
	defer stop()
	if err := b.enterWire(); err != nil {
		return err
	}
	tasks, addrs := b.tasks, map[string]string{}
	if !b.opt.NoListeners {
		doors, err := b.listen(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = closeAll(doors) }() // of those that nobody serves
		for _, l := range doors {
			addrs[l.name] = l.l.Addr().String()
			serve := func(ctx context.Context) error { return b.proxy.Serve(ctx, l.l, l.kind) }
			tasks = append(tasks, task{l.name, serve, nil})
		}
		socket, err := b.controlSocket()
		if err != nil {
			return err
		}
		tasks = append(tasks, task{"commands", func(ctx context.Context) error { return b.command(ctx, socket) }, nil})
	}
	if b.wire != nil {
		tasks = append(tasks, task{"wire", b.wire.Run, nil})
	}
	return runTasks(ctx, tasks, func() error {
		if err := b.arm(); err != nil {
			return err
		}
		if b.opt.Ready != nil {
			b.opt.Ready(addrs)
		}
		return nil
	})
}

// arm has new connections come to the box. Beside production nothing comes here
// but in an outage, or by order.
func (b *Box) arm() error {
	if b.wire == nil {
		return nil
	}
	inWire := b.opt.Config.Network.Mode == "inline"
	if err := b.wire.Arm(inWire); err != nil && inWire {
		return err
	}
	return nil
}

// command answers commands.
func (b *Box) command(ctx context.Context, socket net.Listener) error {
	srv := &http.Server{Handler: api.Handler(b.service), ReadHeaderTimeout: 10 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(socket); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
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
	at := b.opt.Config.Listen
	for _, w := range []struct {
		name, addr string
		kind       proxy.Kind
	}{
		{"imap", at.IMAP, proxy.IMAP}, {"imaps", at.IMAPS, proxy.IMAPS}, {"smtp", at.SMTP, proxy.SMTP},
		{"submission", at.Submission, proxy.Submission}, {"submissions", at.Submissions, proxy.Submissions},
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
			return nil, errors.Join(fmt.Errorf("listen.%s: %w", w.name, err), closeAll(out))
		}
		out = append(out, listener{w.name, w.kind, l})
	}
	return out, nil
}

func closeAll(list []listener) error {
	var errs []error
	for _, l := range list {
		errs = append(errs, l.l.Close())
	}
	return errors.Join(errs...)
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
