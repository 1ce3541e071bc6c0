package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"understudy/console/api"
	"understudy/console/config"
	"understudy/failover"
	"understudy/proxy"
	"understudy/proxy/inline"
)

// wireSite is the network's settings as the wire wants them.
func wireSite(c config.Config) (inline.Site, error) {
	n := c.Network
	s := inline.Site{OneArm: n.Mode == "one-arm", LAN: n.LAN, Server: n.Server, Bridge: n.Bridge, Open: n.WhenDead == "open"}
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
	for _, l := range []struct{ name, addr string }{{"imap", c.Listen.IMAP}, {"imaps", c.Listen.IMAPS}, {"smtp", c.Listen.SMTP},
		{"submission", c.Listen.Submission}, {"submissions", c.Listen.Submissions}} {
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

func wireMemory(c config.Config) string { return filepath.Join(c.Data, "network.json") }

// openWire puts the box into the wire, if it is to be there.
func (a *app) openWire(ctx context.Context) error {
	if a.cfg.Network.Mode == "proxy" {
		return nil
	}
	s, err := wireSite(a.cfg)
	if err != nil {
		return err
	}
	a.wire, err = inline.Open(ctx, inline.Options{Site: s, Memory: wireMemory(a.cfg), Log: a.log,
		Absent: func() bool {
			p := a.keeper.State().Phase
			a.hmu.Lock()
			defer a.hmu.Unlock()
			return p != failover.Protecting && p != failover.Seeding || !a.health.OK
		},
		Link: func(up bool) {
			if up {
				a.keeper.Trouble(nil) // have a look
				return
			}
			a.keeper.Tell(failover.Happened{Event: failover.Failed, Detail: inline.ErrLink.Error()})
		}})
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	via := func(ctx context.Context, c proxy.Client, addr string) (net.Conn, error) {
		to, err := netip.ParseAddrPort(addr)
		if err != nil {
			return nil, err
		}
		var client netip.AddrPort
		from, ok1 := c.Addr.(*net.TCPAddr)
		at, ok2 := c.Local.(*net.TCPAddr)
		if ok1 && ok2 && !s.OneArm {
			client = netip.AddrPortFrom(from.AddrPort().Addr().Unmap(), from.AddrPort().Port())
			to = netip.AddrPortFrom(at.AddrPort().Addr().Unmap(), to.Port())
		}
		return a.wire.Dial(ctx, client, to)
	}
	a.target.IMAP.Via, a.target.SMTP.Via, a.target.Submission.Via = via, via, via
	return nil
}

// enterWire makes the fence in the wire as the failover's saved state says, before
// anything is diverted. The site's fence command is the keeper's to repeat: that
// it fails is no reason not to serve.
func (a *app) enterWire() error {
	if a.wire == nil {
		return nil
	}
	switch st := a.keeper.State(); st.Phase {
	case failover.Seeding, failover.Protecting, failover.Holding:
		return a.wire.Release(st.Epoch)
	default:
		return a.wire.Fence(st.Epoch)
	}
}

// standAside returns a context that ends a moment after ctx: in the wire, new
// connections go straight to production first, and those that were on their way
// here are still taken.
func (a *app) standAside(ctx context.Context) (context.Context, func()) {
	if a.wire == nil {
		return context.WithCancel(ctx)
	}
	later, stop := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		if a.wire.Arm(false) == nil {
			time.Sleep(100 * time.Millisecond)
		}
		stop()
	})
	return later, stop
}

// Bypass implements api.Service.
func (a *app) Bypass(_ context.Context, o api.Order) (api.Answer, error) {
	if a.wire == nil {
		return api.Answer{}, errors.New("the box is not in the wire (network.mode): connections cannot go past it")
	}
	if err := a.wire.Arm(o.Off); err != nil {
		return api.Answer{}, err
	}
	if o.Off {
		return api.Answer{Text: "new connections come to the box again"}, nil
	}
	return api.Answer{Text: "new connections go straight to production; those that are open stay where they are"}, nil
}

// Gather implements api.Service.
func (a *app) Gather(context.Context, api.Order) (api.Answer, error) {
	if a.wire == nil {
		return api.Answer{}, errors.New("the box is not in the wire (network.mode)")
	}
	if err := a.wire.Gather(); err != nil {
		return api.Answer{}, err
	}
	return api.Answer{Text: "connections that run past the box are reset as they speak, for half a minute; their clients come back through it"}, nil
}

func networkCmd(e env) error {
	fs := e.flags("network", "plan|apply|remove|bypass on|bypass off|gather")
	c := ctlFlags(fs)
	dry := fs.Bool("dry-run", false, "only show what would be done (apply, remove)")
	usage := fs.Usage
	fs.Usage = func() {
		usage()
		fmt.Fprint(e.out, networkHelp)
	}
	words, err := e.verbs(fs)
	if err != nil {
		return err
	}
	what := strings.Join(words, " ")
	switch what {
	case "bypass on", "bypass off":
		return c.tell(e, "bypass", api.Order{Off: what == "bypass off"})
	case "gather":
		return c.tell(e, what, api.Order{})
	case "plan", "apply", "remove":
	default:
		return fmt.Errorf("%w: %q is neither plan, apply, remove, bypass on, bypass off nor gather", errUsage, what)
	}
	cfg, err := readConfig(*c.config)
	if err != nil {
		return err
	}
	if cfg.Network.Mode == "proxy" {
		return errors.New("network.mode is proxy: nothing is changed in the network")
	}
	s, err := wireSite(cfg)
	if err != nil {
		return err
	}
	steps, owned, err := inline.PlanFor(s, wireMemory(cfg), what == "remove")
	if err != nil {
		return err
	}
	if *c.asJSON {
		if err := printJSON(e.out, struct {
			Steps []string `json:"steps"`
			Owned string   `json:"owned_tables"`
		}{lines(steps), owned}); err != nil {
			return err
		}
	} else {
		printSteps(e, steps)
		if what == "plan" {
			fmt.Fprintf(e.out, "\nwhile `understudy serve` runs, and gone with it:\n%s\n", owned)
		}
	}
	if what == "plan" || *dry {
		return nil
	}
	if cl, err := c.client(); what == "remove" && err == nil && cl.Get(e.ctx, "/v1/status", &api.Status{}) == nil {
		return errors.New("`understudy serve` is running and would put it back: stop it first")
	}
	return inline.Run(steps)
}

const networkHelp = `
plan        what apply would change, and the tables of the running process
apply       make the bridge, with the fence as it was: traffic passes (at boot, before serve)
remove      take all of it away: the two interfaces stand alone
bypass on   have new connections go straight to production; open ones stay
bypass off  have them come to the box again
gather      reset connections that run past the box (they began before it, or while
            it was down), so that their clients come back through it
`

func lines(steps []inline.Step) []string {
	out := make([]string, 0, len(steps))
	for _, s := range steps {
		out = append(out, s.String())
	}
	return out
}

func printSteps(e env, steps []inline.Step) {
	for _, l := range lines(steps) {
		fmt.Fprintln(e.out, l)
	}
	if len(steps) == 0 {
		fmt.Fprintln(e.out, "nothing to do: the network is as it has to be")
	}
}
