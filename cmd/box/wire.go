package box

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"understudy/console/config"
	"understudy/failover"
	"understudy/proxy/inline"
	"understudy/proxy/seam"
)

// WireSite is the network's settings as the wire wants them.
func WireSite(c config.Config) (inline.Site, error) {
	n := c.Network
	s := inline.Site{OneArm: n.Mode == "one-arm", LAN: n.LAN, Server: n.Server, Bridge: n.Bridge,
		Open: n.WhenDead == "open"}
	var errs []error
	keep := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	for _, t := range n.Addresses {
		a, err := netip.ParseAddr(t)
		keep("network.addresses", err)
		s.Addrs = append(s.Addrs, a.Unmap())
	}
	for _, t := range n.Own {
		p, err := netip.ParsePrefix(t)
		keep("network.own", err)
		s.Own = append(s.Own, p)
	}
	var err error
	if n.MAC != "" {
		s.MAC, err = net.ParseMAC(n.MAC)
		keep("network.mac", err)
	}
	if n.Gateway != "" {
		s.Gateway, err = netip.ParseAddr(n.Gateway)
		keep("network.gateway", err)
	}
	for _, p := range n.Pass {
		if p < 1 || p > 65535 {
			keep("network.pass", fmt.Errorf("%d is no TCP port", p))
		}
		s.Pass = append(s.Pass, uint16(p))
	}
	for _, l := range []struct{ name, addr string }{
		{"imap", c.Listen.IMAP}, {"imaps", c.Listen.IMAPS}, {"smtp", c.Listen.SMTP},
		{"submission", c.Listen.Submission}, {"submissions", c.Listen.Submissions},
	} {
		if l.addr == "" {
			continue
		}
		_, text, _ := net.SplitHostPort(l.addr)
		p, err := net.LookupPort("tcp", text)
		keep("listen."+l.name, err)
		s.Ports = append(s.Ports, inline.Port{Name: l.name, Port: uint16(p)})
	}
	if len(errs) == 0 {
		keep("network", s.Check())
	}
	return s, errors.Join(errs...)
}

// WireMemory is the file that outlives the process.
func WireMemory(c config.Config) string { return filepath.Join(c.Data, "network.json") }

// openWire puts the box into the wire, if it is to be there.
func (b *Box) openWire(ctx context.Context) error {
	if b.opt.Config.Network.Mode == "proxy" {
		return nil
	}
	s, err := WireSite(b.opt.Config)
	if err != nil {
		return err
	}
	b.wire, err = inline.Open(ctx, inline.Options{Site: s, Memory: WireMemory(b.opt.Config), Log: b.opt.Log,
		Absent: func() bool {
			return b.keeper.State().Duties().Follow < failover.Believed || !b.judge.verdict().OK
		},
		Past: b.past(),
		Link: func(up bool) {
			if up {
				b.keeper.Trouble(nil) // have a look
				return
			}
			b.keeper.Tell(failover.Happened{Event: failover.Failed, Detail: inline.ErrLink.Error()})
		}})
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	via := func(ctx context.Context, c seam.Client, addr string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, err
		}
		var client netip.AddrPort
		if c.Addr.IsValid() && c.Local.IsValid() && !s.OneArm {
			client = c.Addr
			to = netip.AddrPortFrom(c.Local.Addr(), to.Port())
		}
		return b.wire.Dial(ctx, client, to)
	}
	b.production.dialBy(via)
	return nil
}

// pastSweep is the least pause between sweeps because of connections past the box.
const pastSweep = 20 * time.Second

// past has production read when connections run past the box: what they change is
// not seen.
func (b *Box) past() func(int) {
	var kicked time.Time
	return func(int) {
		if d := b.keeper.State().Duties(); d.Follow == failover.Believed && d.Complete &&
			time.Since(kicked) > pastSweep {
			kicked = time.Now()
			b.mirror.Kick()
		}
	}
}

// enterWire makes the fence in the wire as the failover's saved state says, before
// anything is diverted. The site's fence command is the keeper's to repeat: that
// it fails is no reason not to serve.
func (b *Box) enterWire() error {
	if b.wire == nil {
		return nil
	}
	st := b.keeper.State()
	if st.Duties().Fenced {
		return b.wire.Fence(st.Epoch)
	}
	return b.wire.Release(st.Epoch)
}

// standAside returns a context that ends a moment after ctx: in the wire, new
// connections go straight to production first, and those that were on their way
// here are still taken.
func (b *Box) standAside(ctx context.Context) (context.Context, func()) {
	if b.wire == nil {
		return context.WithCancel(ctx)
	}
	later, stop := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		if b.wire.Arm(false) == nil {
			time.Sleep(100 * time.Millisecond)
		}
		stop()
	})
	return later, stop
}
