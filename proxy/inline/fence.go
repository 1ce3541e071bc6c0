package inline

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/google/nftables"
)

// Arm has new connections to the mail ports come to the box, or not. Those that
// are open stay where they are; but beside production the address moves as a
// whole, and open connections break.
func (w *Wire) Arm(on bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !on && w.site.Fenced {
		return errors.New("production is fenced: connections cannot go straight to it before the hand-back")
	}
	return errors.Join(w.turn(func() { w.armed = on }), w.beat())
}

// Gather resets the connections that run past the box, as they speak within the
// next half minute, so that their clients come back through it.
func (w *Wire) Gather() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.armed || w.site.OneArm {
		return errors.New("connections do not come to the box: there is nowhere to gather them")
	}
	w.gather = time.Now().Add(30 * time.Second)
	return w.beat()
}

// Fence keeps production and its clients apart. It is noted on disk first, and
// stays when the process dies.
func (w *Wire) Fence(epoch uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.site.Fenced
	w.site.Fenced = true
	err := w.save(epoch)
	if w.site.Fenced = was; err != nil {
		return err
	}
	if err := w.turn(func() { w.site.Fenced = true }); err != nil || w.site.OneArm {
		return err
	}
	w.armed = true // whatever was ordered while production lived
	// What may pass goes its own way before the fence is up, and until it is down.
	if err := w.pass(true); err != nil {
		w.opt.Log.Error("let other ports through the fence", "err", err)
	}
	if err := w.apply(); err != nil {
		return err
	}
	if w.site.Open {
		if err := w.owner.remake(w.site.fenceTable()); err != nil {
			return err
		}
	}
	return w.beat()
}

// pass makes or removes the table of what passes the fence. mu is held.
func (w *Wire) pass(on bool) error {
	if w.site.MAC == nil || len(w.site.Pass) == 0 {
		return nil
	}
	lan, err1 := net.InterfaceByName(w.site.LAN)
	srv, err2 := net.InterfaceByName(w.site.Server)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	return keep(w.site.passTable(lan.Index, srv.Index)).set(!on)
}

// Release lets production and its clients talk again, and tells the network
// where it is.
func (w *Wire) Release(epoch uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.site.Fenced
	if err := w.turn(func() { w.site.Fenced = false }); err != nil {
		return err
	}
	if w.site.OneArm {
		return w.save(epoch)
	}
	if w.site.NewMAC != nil {
		w.site.MAC, w.site.NewMAC = w.site.NewMAC, nil
	}
	if w.site.Open {
		if err := w.owner.drop(w.site.fenceTable()); err != nil {
			return err
		}
	}
	if err := w.apply(); err != nil {
		return err
	}
	if err := w.pass(false); err != nil {
		return err
	}
	if err := w.save(epoch); err != nil {
		return err
	}
	if was {
		w.announce()
	}
	return w.beat()
}

// announce tells the network where production is. mu is held.
func (w *Wire) announce() {
	for _, a := range w.site.Addrs {
		if w.site.MAC != nil {
			w.send(w.lan, claim(w.site.MAC, w.site.MAC, a, nil, netip.Addr{}))
		}
	}
}

// fenceTable is a fence that ends with the process.
func (s Site) fenceTable() table {
	return table{family: nftables.TableFamilyBridge, name: tableName + "_fence", owned: true,
		chains: []chain{{name: "forward", hook: "forward", num: nftables.ChainHookForward, prio: -300,
			rules: []rule{{iif(s.Server), drop()}, {oif(s.Server), drop()}}}}}
}
