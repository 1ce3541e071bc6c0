package inline

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/lab/hosts"
)

// inNamespace runs a test again in a network of its own, as root of a user
// namespace, or as real root where there are none. It reports whether this is the
// inner run.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv("UNDERSTUDY_INNER") != "" {
		return true
	}
	run := func(attr *syscall.SysProcAttr) ([]byte, error) {
		c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		c.Env = append(os.Environ(), "UNDERSTUDY_INNER=1")
		c.SysProcAttr = attr
		return c.CombinedOutput()
	}
	out, err := run(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}})
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Logf("no user namespace: %v", err)
		out, err = run(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET})
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// wired is a client and production at the two ends of this process's wire.
func wired(t *testing.T) (client, server *hosts.Host, s Site) {
	t.Helper()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	box, err := hosts.Here("box")
	ok(err)
	client, err = hosts.New("client")
	ok(err)
	server, err = hosts.New("server")
	ok(err)
	ok(hosts.Cable(box, "lan0", client, "eth0"))
	ok(hosts.Cable(box, "srv0", server, "eth0"))
	ok(client.Addr("eth0", false, "10.99.0.2/24", "fd99::2/64"))
	ok(server.Addr("eth0", false, "10.99.0.10/24", "fd99::10/64"))
	return client, server,
		Site{LAN: "lan0", Server: "srv0", Bridge: "understudy0",
			Addrs: []netip.Addr{netip.MustParseAddr("10.99.0.10"), netip.MustParseAddr("fd99::10")},
			Own:   []netip.Prefix{netip.MustParsePrefix("10.99.0.9/24")}, Ports: []Port{{Name: "imap", Port: 143}},
			Pass: []uint16{22}}
}

// telling serves a port: it says who it is, and from where it was called.
func telling(t *testing.T, h *hosts.Host, addr, name string) {
	t.Helper()
	l, err := h.Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr().(*net.TCPAddr).IP)
			_ = c.Close()
		}
	}()
}

// call says who answers, or "".
func call(h *hosts.Host, addr string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	c, err := h.Dial(ctx, addr)
	if err != nil {
		return ""
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	l, _ := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(l)
}

// The wire on a real kernel, without root where that is allowed: what is planned
// is done, is found again, and can be taken away.
func TestT1_WireOnAKernel(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	client, server, s := wired(t)
	telling(t, server, ":143", "production")
	telling(t, server, ":22", "shell")
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	memory := filepath.Join(t.TempDir(), "network.json")
	open := func() (*Wire, func()) {
		ctx, cancel := context.WithCancel(t.Context())
		w, err := Open(ctx, Options{Site: s, Memory: memory, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		for _, l := range w.Listeners("imap") {
			go relay(w, l)
		}
		return w, func() {
			cancel()
			if err := errors.Join(<-done, w.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	want := func(state, mail, ssh string) {
		t.Helper()
		for addr, from := range map[string]string{"10.99.0.10": "10.99.0.2", "fd99::10": "fd99::2"} {
			for port, who := range map[string]string{"143": mail, "22": ssh} {
				if who != "" {
					who += " " + from
				}
				end := time.Now().Add(3 * time.Second)
				got := call(client, net.JoinHostPort(addr, port))
				for got != who && time.Now().Before(end) {
					got = call(client, net.JoinHostPort(addr, port))
				}
				if got != who {
					t.Errorf("%s: %q answers port %s of %s, not %q", state, got, port, addr, who)
				}
			}
		}
		if steps, _, err := PlanFor(s, memory, false); err != nil || len(steps) > 0 {
			t.Errorf("%s: still to be done: %v %v", state, steps, err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w, end := open()
	for end := time.Now().Add(5 * time.Second); w.State().MAC == "" && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	want("before it is armed", "production", "shell")
	must(w.Arm(true))
	want("armed", "relay: production", "shell")
	if _, err := Open(t.Context(), Options{Site: s, Memory: memory, Log: log}); !errors.Is(err, ErrOwned) {
		t.Errorf("a second one in the same wire: %v", err)
	}
	must(w.Fence(1))
	want("fenced", "relay: production", "shell") // the box reaches it, as the client
	if err := w.Arm(false); err == nil {
		t.Error("disarmed while production is fenced")
	}
	end()
	want("fenced, without the process", "", "shell")
	w, end = open()
	must(w.Arm(true))
	want("fenced, with the next process", "relay: production", "shell")
	must(w.Release(2))
	want("released", "relay: production", "shell")
	end()
	want("without the process", "production", "shell")
	steps, _, err := PlanFor(s, memory, true)
	must(err)
	must(Run(steps))
	if left, err := s.PlanRemoval(); err != nil || len(left) > 0 {
		t.Errorf("left after the removal: %v %v", left, err)
	}
}

// relay answers like the proxy: it says so, and passes on what production says.
func relay(w *Wire, l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			up, err := w.Dial(ctx, c.RemoteAddr().(*net.TCPAddr).AddrPort(), c.LocalAddr().(*net.TCPAddr).AddrPort())
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "relay: ")
			_, _ = io.Copy(c, up)
			_ = up.Close()
		}()
	}
}
