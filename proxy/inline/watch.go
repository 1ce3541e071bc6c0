package inline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/vishvananda/netlink"
)

// watchLink hears of the cable.
func (w *Wire) watchLink(ctx context.Context) error {
	ch, done := make(chan netlink.LinkUpdate), make(chan struct{})
	if err := netlink.LinkSubscribeWithOptions(ch, done, netlink.LinkSubscribeOptions{ListExisting: true}); err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	defer close(done)
	for {
		select {
		case u, ok := <-ch:
			if !ok {
				return errors.New("watch links: the kernel ended it")
			}
			const running = 0x40 // IFF_RUNNING: there is a carrier
			if u.Attrs().Name != w.site.Server {
				continue
			}
			if down := u.IfInfomsg.Flags&running == 0; down != w.down.Swap(down) {
				w.opt.Log.Info("production's cable", "up", !down)
				w.opt.Link(!down)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// watchTags finds out whether production's frames carry VLAN tags, which are not
// diverted.
func (w *Wire) watchTags(ctx context.Context) error {
	return w.read(ctx, w.tagged, func([]byte) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.trouble("frames on " + w.site.Server +
			" carry VLAN tags: they pass, but are not diverted. Put the box where production's traffic is untagged")
	})
}

// read hands every frame of a socket to f.
func (w *Wire) read(ctx context.Context, p *packets, f func([]byte)) error {
	defer context.AfterFunc(ctx, func() { _ = p.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, 4096)
	for {
		n, err := p.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !errors.Is(err, os.ErrClosed):
			// The interface went down, or the like.
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return nil
			}
		case err != nil:
			return err
		default:
			f(buf[:n])
		}
	}
}
