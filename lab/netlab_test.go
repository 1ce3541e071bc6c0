package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/lab/hosts"
	"understudy/lab/site"
	"understudy/replica/imapc"
)

// The addresses of the network of the tests.
const (
	server4, server6   = "10.99.0.10", "fd99::10"
	client4, client6   = "10.99.0.2", "fd99::2"
	remote4, remote6   = "10.98.0.2", "fd98::2"
	boxAddr4, boxAddr6 = "10.99.0.9", "fd99::9"
)

// network is two clients and a router at a switch, behind it a remote host, and
// production, with the box between it and the switch: client, other, router ─ lan
// ─ box ─ cable ─ server. The box is not there before it is plugged in.
type network struct {
	client, other, router, remote, lan, box, cable, server *hosts.Host
	site                                                   *site.Site
	b                                                      *site.Box
	binary                                                 string // of the next box; "": this tree's
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{}
	for name, h := range map[string]**hosts.Host{"client": &n.client, "other": &n.other, "router": &n.router,
		"remote": &n.remote, "lan": &n.lan, "box": &n.box, "cable": &n.cable, "server": &n.server} {
		*h = must(hosts.New(name))(t)
		t.Cleanup((*h).Close)
	}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, h := range []*hosts.Host{n.client, n.other, n.router} {
		ok(hosts.Cable(h, "eth0", n.lan, fmt.Sprint("port", i)))
	}
	ok(hosts.Cable(n.router, "eth1", n.remote, "eth0"))
	ok(hosts.Cable(n.box, "lan0", n.lan, "box"))
	ok(hosts.Cable(n.box, "srv0", n.cable, "box"))
	ok(hosts.Cable(n.server, "eth0", n.cable, "server"))
	ok(n.lan.Switch("port0", "port1", "port2", "box"))
	ok(n.cable.Switch("box", "server"))
	ok(n.client.Addr("eth0", false, client4+"/24", client6+"/64"))
	ok(n.other.Addr("eth0", false, "10.99.0.3/24", "fd99::3/64"))
	ok(n.router.Addr("eth0", false, "10.99.0.1/24", "fd99::1/64"))
	ok(n.router.Addr("eth1", false, "10.98.0.1/24", "fd98::1/64"))
	ok(n.remote.Addr("eth0", false, remote4+"/24", remote6+"/64"))
	for _, p := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		ok(n.router.Sysctl(p, "1"))
	}
	ok(n.remote.Route("", "10.98.0.1"))
	ok(n.remote.Route("", "fd98::1"))
	ok(n.address())
	return n
}

// address gives production its addresses and its router.
func (n *network) address() error {
	for _, f := range []func() error{
		func() error { return n.server.Addr("eth0", false, server4+"/24", server6+"/64") },
		func() error { return n.server.Route("", "10.99.0.1") },
		func() error { return n.server.Route("", "fd99::1") },
	} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// serve starts Dovecot and Postfix on the server.
func (n *network) serve(t *testing.T, accounts int) {
	t.Helper()
	u := users(accounts)
	n.site = must(site.New(t.TempDir(), u, nil))(t)
	if err := n.site.Move(n.server, server4, server6); err != nil {
		t.Fatal(err)
	}
	if err := n.site.Start(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, n.site.Log())
	}
	t.Cleanup(n.site.Stop)
}

// settings of a box in the wire.
func (n *network) settings(more map[string]string) map[string]string {
	s := map[string]string{
		"listen.imap": `":143"`, "listen.smtp": `":25"`, "listen.submission": `":587"`,
		"production.imap": `"` + server4 + `:143"`, "production.smtp": `"` + server4 + `:25"`, "production.submission": `"` + server4 + `:587"`,
		"production.client_id": "false", "production.xclient": "false",
		"network.mode": `"inline"`, "network.lan": `"lan0"`, "network.server": `"srv0"`,
		"network.addresses": `["` + server4 + `", "` + server6 + `"]`, "network.own": `["` + boxAddr4 + `/24", "` + boxAddr6 + `/64"]`,
	}
	for k, v := range more {
		s[k] = v
	}
	return s
}

// unplugged prepares a box. It runs as a user of its own with two capabilities.
func (n *network) unplugged(t *testing.T, more map[string]string) {
	t.Helper()
	dir := t.TempDir()
	if n.binary == "" {
		n.binary = binary
	}
	n.b = must(site.NewBox(dir, n.binary, n.site, n.settings(more)))(t)
	n.b.Host = n.box
	const nobody = 65534
	n.b.Attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}}
	check(t, os.Chmod(filepath.Dir(dir), 0o755))
	check(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chown(p, nobody, nobody))
	}))
}

// plug puts a running box into the wire.
func (n *network) plug(t *testing.T, more map[string]string) {
	t.Helper()
	n.unplugged(t, more)
	if err := n.b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	endBox(t, n.b)
}

// armed waits until connections are diverted.
func (n *network) armed(t *testing.T) {
	t.Helper()
	n.until(t, 20*time.Second, "armed", func() bool {
		s, err := n.b.Status(t.Context())
		return err == nil && s.Network != nil && s.Network.Armed
	})
}

func (n *network) until(t *testing.T, limit time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not %s within %s", what, limit)
		}
	}
}

func at(addr string, port int) string { return net.JoinHostPort(addr, fmt.Sprint(port)) }

// login opens an IMAP session from a host.
func login(t *testing.T, h *hosts.Host, addr, user string) *imapc.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := must(site.DialFrom(ctx, h, at(addr, 143), user))(t)
	t.Cleanup(c.Close)
	return c
}

// greeting is the first line that somebody says to a host.
func greeting(h *hosts.Host, addr string, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := h.Dial(ctx, addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetReadDeadline(time.Now().Add(limit))
	b := make([]byte, 512)
	k, err := c.Read(b)
	return strings.TrimSpace(string(b[:k])), err
}
