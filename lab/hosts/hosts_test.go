package hosts

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// made is a host; where none may be made the test is skipped, but not in CI.
func made(t *testing.T, name string) *Host {
	t.Helper()
	h, err := New(name)
	if errors.Is(err, syscall.EPERM) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func ok(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// echo serves one connection on a host.
func echo(t *testing.T, h *Host, addr string) {
	t.Helper()
	l, err := h.Listen(addr)
	ok(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
}

func says(t *testing.T, h *Host, addr string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	c, err := h.Dial(ctx, addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	b := make([]byte, 5)
	if _, err = io.ReadFull(c, b); err == nil && string(b) != "hello" {
		t.Errorf("heard %q", b)
	}
	return err
}

// Two hosts at a switch reach each other by both families, know each other's hardware
// addresses, and do so no more when a cable is down; a third one sees none of them.
func TestSwitch(t *testing.T) {
	a, b, sw, alone := made(t, "a"), made(t, "b"), made(t, "switch"), made(t, "alone")
	ok(t, Cable(a, "eth0", sw, "p0"), Cable(b, "eth0", sw, "p1"), sw.Switch("p0", "p1"),
		a.Addr("eth0", false, "10.9.0.1/24", "fd09::1/64"), b.Addr("eth0", false, "10.9.0.2/24", "fd09::2/64"))
	echo(t, b, "10.9.0.2:7")
	echo(t, b, "[fd09::2]:7")
	for _, addr := range []string{"10.9.0.2:7", "[fd09::2]:7"} {
		var err error
		for range 20 { // the ports of the switch begin to forward
			if err = says(t, a, addr); err == nil {
				break
			}
		}
		if err != nil {
			t.Errorf("%s: %v", addr, err)
		}
		if says(t, alone, addr) == nil {
			t.Errorf("%s is reached without a cable", addr)
		}
	}
	mac := b.MAC("eth0").String()
	for _, addr := range []string{"10.9.0.2", "fd09::2"} {
		if got := a.Neighbour("eth0", addr); got != mac || mac == "" {
			t.Errorf("%s has %q, want %q", addr, got, mac)
		}
	}
	ok(t, a.Forget("eth0"))
	if got := a.Neighbour("eth0", "10.9.0.2"); got != "" {
		t.Errorf("%q is not forgotten", got)
	}
	if failed, pending, err := a.Tentative("eth0", "fd09::1"); failed || pending || err != nil {
		t.Errorf("address without duplicate detection: %v %v %v", failed, pending, err)
	}
	ok(t, a.Up("eth0", false))
	if says(t, a, "10.9.0.2:7") == nil {
		t.Error("reached over a cable that is down")
	}
}

// What is sent arrives as it is, at the other end of the cable and, by a mirror, at a
// third host's.
func TestFramesAndMirror(t *testing.T) {
	a, b, c := made(t, "a"), made(t, "b"), made(t, "c")
	ok(t, Cable(a, "eth0", b, "in"), Cable(b, "out", c, "eth0"))
	off, err := b.Mirror("out", "in")
	ok(t, err)
	at := map[string]*Capture{}
	for name, h := range map[string]*Host{"in": b, "eth0": c} {
		at[name], err = h.Capture(name)
		ok(t, err)
	}
	frame := append([]byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 0x88, 0xb5}, bytes.Repeat([]byte("x"), 60)...)
	had := func(c *Capture) bool {
		for _, f := range c.Frames() {
			if bytes.Equal(f.Data, frame) {
				return true
			}
		}
		return false
	}
	until := time.Now().Add(10 * time.Second)
	for !had(at["in"]) || !had(at["eth0"]) {
		if time.Now().After(until) {
			t.Fatalf("arrived: %v, mirrored: %v", had(at["in"]), had(at["eth0"]))
		}
		ok(t, a.Send("eth0", frame))
		time.Sleep(5 * time.Millisecond)
	}
	ok(t, off())
	before := len(at["in"].Stop())
	if before == 0 || len(at["eth0"].Stop()) == 0 {
		t.Error("what was captured is gone")
	}
}

// Interfaces can be given other addresses, another MTU, and be taken away; what is not
// there is an error.
func TestInterfaces(t *testing.T) {
	a, b := made(t, "a"), made(t, "b")
	ok(t, Cable(a, "eth0", b, "eth0"), a.Up("eth0", false))
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	ok(t, a.SetMAC("eth0", mac), a.Up("eth0", true), a.MTU("eth0", 1400), a.Addr("eth0", false, "10.9.0.1/24"),
		a.Route("", "10.9.0.2"), a.Route("10.8.0.0/16", "10.9.0.3"), a.Sysctl("net/ipv4/ip_forward", "1"))
	if got := a.MAC("eth0"); !bytes.Equal(got, mac) {
		t.Errorf("hardware address %v", got)
	}
	ok(t, a.Do(func() error {
		i, err := net.InterfaceByName("eth0")
		if err == nil && i.MTU != 1400 {
			t.Errorf("MTU %d", i.MTU)
		}
		return err
	}))
	ok(t, a.Unplug("eth0"))
	if a.Up("eth0", true) == nil || b.Up("eth0", true) == nil || a.MAC("eth0") != nil {
		t.Error("the cable is still there")
	}
	if a.Route("10.7.0.0/16", "10.9.0.2") == nil || a.Addr("eth0", false, "10.9.0.1/24") == nil {
		t.Error("an interface that is gone was used")
	}
	if a.Addr("lo", false, "no address") == nil {
		t.Error("an address that is none was taken")
	}
}
