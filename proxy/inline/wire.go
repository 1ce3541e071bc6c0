package inline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy/proxy/seam"
)

// Options of Open.
type Options struct {
	Site Site
	// Memory is the file with what outlives the process: production's address,
	// and whether it is fenced.
	Memory string
	// Absent reports that production does not answer for its address, so that
	// the box has to.
	Absent func() bool
	// Past hears, while there are any, how many connections run past the box.
	Past func(n int)
	// Link hears when production's cable goes and comes.
	Link func(up bool)
	Log  *slog.Logger
}

// Wire is the box in the wire.
//
// Large: each kind of frame, and each place in the wire, has its file of methods; they
// all turn on what the kernel is told, which is one state (diversion).
type Wire struct {
	opt      Options
	owner    *owner
	lan, srv *packets // srv is nil beside production
	tagged   *packets

	// mu holds the parts below, and every change of the kernel's configuration, which takes its time.
	mu seam.Turn
	diversion
	past     int
	problem  string
	troubled time.Time // when the problem was last seen
	lanMAC   net.HardwareAddr

	contested chan struct{} // one-arm: production spoke with the address that is taken
	groups    net.PacketConn
	down      atomic.Bool // production's cable
	listeners []net.Listener
	hosts     directory
}

// diversion is what the kernel is told to do, and what was stored of it.
type diversion struct {
	site   Site
	memory memory
	armed  bool
	gives  int       // one-arm: how often it is still announced that it is not
	gather time.Time // until then connections past the box are reset
}

// beatEvery is how often what is armed is renewed.
const beatEvery = 500 * time.Millisecond

// Open puts the box into the wire, as far as that can be done without
// production: with the fence that was up when the last process ended. Nothing
// is diverted before Arm.
func Open(ctx context.Context, o Options) (*Wire, error) {
	w := &Wire{opt: o, diversion: diversion{site: o.Site}, mu: seam.NewTurn(), contested: make(chan struct{}, 1),
		hosts: directory{at: map[netip.Addr]net.HardwareAddr{}, asked: map[netip.Addr]asker{}}}
	if w.opt.Absent == nil {
		w.opt.Absent = func() bool { return false }
	}
	if w.opt.Past == nil {
		w.opt.Past = func(int) {}
	}
	if w.opt.Link == nil {
		w.opt.Link = func(bool) {}
	}
	if err := w.site.Check(); err != nil {
		return nil, err
	}
	var err error
	if w.memory, err = Remember(o.Memory, &w.site); err != nil {
		return nil, err
	}
	if w.lanMAC, err = LinkMAC(w.site.LAN); err != nil {
		return nil, err
	}
	w.site.BridgeMAC = w.lanMAC
	if w.site.OneArm {
		if w.opt.Site.Own, err = linkAddrs(w.site.LAN); err != nil {
			return nil, err
		}
	}
	if err := w.open(ctx); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

func (w *Wire) open(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.site.Open || w.site.OneArm {
		w.site.Fenced = false // until it is raised again
	}
	if err := w.apply(); err != nil {
		return err
	}
	var err error
	if w.lan, err = openPackets(w.site.LAN, neighbourFilter()); err != nil {
		return err
	}
	if !w.site.OneArm {
		if w.srv, err = openPackets(w.site.Server, neighbourFilter()); err != nil {
			return err
		}
		if w.tagged, err = openPackets(w.site.Server, taggedFilter()); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(w.site.Addrs, netip.Addr.Is6) {
		if w.groups, err = join(w.site.device(), w.site.Addrs); err != nil {
			return err
		}
	}
	if w.owner, err = newOwner(); err != nil {
		return err
	}
	if !w.site.OneArm {
		if err := w.owner.make(w.site.bridgeTable()); err != nil {
			return err
		}
	}
	return w.listen(ctx)
}

// listen opens the listeners and hands diverted packets to them.
func (w *Wire) listen(ctx context.Context) error {
	for i := range w.site.Ports {
		p := &w.site.Ports[i]
		for _, v6 := range []bool{false, true} {
			if !slices.ContainsFunc(w.site.Addrs, func(a netip.Addr) bool { return a.Is6() == v6 }) {
				continue
			}
			l, at, err := listen(ctx, v6, w.site.Addrs)
			if err != nil {
				return err
			}
			w.listeners = append(w.listeners, named{l, p.Name})
			if v6 {
				p.V6 = at
			} else {
				p.V4 = at
			}
		}
	}
	return w.owner.make(w.site.inetTable(w.site.device()))
}

// named is a listener with the name of its port.
type named struct {
	net.Listener
	name string
}

// Listeners are the sockets for a port's diverted connections.
func (w *Wire) Listeners(name string) []net.Listener {
	var out []net.Listener
	for _, l := range w.listeners {
		if l.(named).name == name {
			out = append(out, l)
		}
	}
	return out
}

// apply brings the kernel to what is desired. mu is held.
func (w *Wire) apply() error {
	steps, err := w.site.Plan()
	if err != nil {
		return err
	}
	for _, st := range steps {
		w.opt.Log.Info("network", "op", st.Op, "what", st.What.String())
	}
	return Run(steps)
}

// Run keeps the wire until ctx ends, and then has new connections go straight
// to production.
func (w *Wire) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.keep(ctx) })
	g.Go(func() error { return w.neighbours(ctx, w.lan, w.onLAN) })
	if w.srv != nil {
		g.Go(func() error { return w.neighbours(ctx, w.srv, w.onServer) })
		g.Go(func() error { return w.watchTags(ctx) })
		g.Go(func() error { return w.watchLink(ctx) })
	}
	g.Go(func() error { w.learn(ctx); return nil })
	if w.site.OneArm {
		g.Go(func() error { return w.defend(ctx) })
	}
	return g.Wait()
}

func (w *Wire) keep(ctx context.Context) error {
	beat := time.NewTicker(beatEvery)
	defer beat.Stop()
	for n := 1; ; n++ {
		select {
		case <-beat.C:
		case <-ctx.Done():
			w.mu.Lock()
			defer w.mu.Unlock()
			return errors.Join(w.turn(func() { w.armed = false }), w.beat())
		}
		w.mu.Lock()
		err := w.beat()
		// A fence that somebody takes down is up again at once, other things soon.
		if (n%10 == 0 || w.site.Fenced) && err == nil {
			err = w.apply()
		}
		if n%4 == 0 && err == nil && !w.site.OneArm {
			w.past, err = past()
		}
		beside := w.past
		w.mu.Unlock()
		if n%4 == 0 && beside > 0 {
			w.opt.Past(beside)
		}
		if err != nil {
			w.opt.Log.Error("keep the wire", "err", err)
		}
	}
}

// beat renews what is armed. mu is held.
func (w *Wire) beat() error {
	if w.site.OneArm {
		return nil
	}
	var services []netip.AddrPort
	if w.armed && w.site.MAC != nil {
		for _, a := range w.site.Addrs {
			for _, p := range w.site.Ports {
				services = append(services, netip.AddrPortFrom(a, p.Port))
			}
		}
	}
	return w.owner.beat(services, w.site.Fenced || time.Now().Before(w.gather), heartbeatOK)
}

func (w *Wire) send(p *packets, frame []byte) {
	if _, err := p.Write(frame); err != nil {
		w.opt.Log.Debug("send frame", "on", p.Name(), "err", err)
	}
}

// ErrLink means that production's cable is out.
var ErrLink = errors.New("production's cable is out")

// Dial connects to production as a client, on the address that the client
// used, or as the box itself if client is unset.
func (w *Wire) Dial(ctx context.Context, client netip.AddrPort, to netip.AddrPort) (net.Conn, error) {
	if w.down.Load() {
		return nil, fmt.Errorf("dial %s: %w", to, ErrLink)
	}
	if client.IsValid() {
		return dialAs(ctx, client, to)
	}
	d := net.Dialer{}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, "tcp", to.String())
}

// State is what the wire is like, for people.
type State struct {
	Armed   bool // new connections come to the box
	Fenced  bool // production is kept apart, or its address taken
	Cable   bool // production's
	MAC     string
	Past    int // connections that run past the box
	Problem string
}

// troubleLives is for how long a problem that is not seen any more is shown.
const troubleLives = 5 * time.Minute

// trouble notes a problem. mu is held.
func (w *Wire) trouble(text string) {
	if text != w.problem || time.Since(w.troubled) > troubleLives {
		w.opt.Log.Warn("network", "problem", text)
	}
	w.problem, w.troubled = text, time.Now()
}

// State tells what the wire is like.
func (w *Wire) State() State {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := State{Armed: w.armed && w.site.MAC != nil, Fenced: w.site.Fenced, Cable: !w.down.Load(),
		MAC: w.site.reach().String(), Past: w.past}
	if time.Since(w.troubled) < troubleLives {
		s.Problem = w.problem
	}
	if w.site.MAC == nil && s.Problem == "" {
		s.Problem = "production's hardware address is not known yet: it has not been seen on " + w.site.Server +
			"; until then nothing is diverted (network.mac tells it)"
	}
	return s
}

// Close ends it. What is fenced stays fenced.
func (w *Wire) Close() error {
	var errs []error
	if w.owner != nil {
		errs = append(errs, w.owner.close())
	}
	if w.groups != nil {
		errs = append(errs, w.groups.Close())
	}
	for _, l := range w.listeners {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	for _, p := range []*packets{w.lan, w.srv, w.tagged} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(errs...)
}

// PlanFor is what would be done to bring the wire about, or to take it away,
// and the tables that a running process adds.
func PlanFor(s Site, memory string, away bool) (steps []Step, owned string, err error) {
	if _, err := Remember(memory, &s); err != nil {
		return nil, "", err
	}
	if s.BridgeMAC, err = LinkMAC(s.LAN); err != nil {
		return nil, "", err
	}
	if away {
		if s.Fenced && !s.OneArm {
			return nil, "",
				errors.New(
					"production is fenced: without the bridge it would answer clients again, without what the " +
						"standby took. Hand back first (`understudy handback`)")
		}
		steps, err = s.PlanRemoval()
	} else {
		steps, err = s.Plan()
	}
	tables := []table{s.inetTable(s.device())}
	if !s.OneArm {
		tables = append(tables, s.bridgeTable())
	}
	for _, t := range tables {
		owned += t.String() + "\n"
	}
	return steps, owned, err
}
