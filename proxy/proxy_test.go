package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/proxy/imap"
	"understudy/proxy/seam"
	"understudy/proxy/smtp"
	"understudy/replica/row"
	"understudy/snoop/smtpwire"
)

// alone is a site where the standby is all there is.
type alone struct{ seen chan seam.Client }

func (a alone) Enter(context.Context, string) (seam.Lease, error) {
	return seam.Lease{Side: seam.Standby, Revoked: make(chan struct{}), Release: func() {}}, nil
}
func (a alone) Trouble(error) {}
func (a alone) Authenticate(context.Context, seam.Login) (string, error) {
	return "", seam.ErrUnavailable
}
func (a alone) ServeIMAP(context.Context, net.Conn, string, []string) error { return nil }
func (a alone) NewSMTP(_ context.Context, c seam.Client) smtp.Upstream {
	if a.seen != nil {
		a.seen <- c
	}
	return greeter{}
}

// greeter is an SMTP session that goes no further than the greeting.
type greeter struct{ smtp.Upstream }

func (greeter) Greeting() (smtpwire.Reply, error) { return smtpwire.NewReply(220, "standby"), nil }
func (greeter) Command(string, string) (smtpwire.Reply, error) {
	return smtpwire.NewReply(250, "ok"), nil
}
func (greeter) Close() {}

func options(a alone) Options {
	return Options{Gate: a, NewSpool: func() row.Spool { return nil },
		IMAP: imap.Options{Standby: a, Caps: seam.Caps{"IMAP4rev1"}}, SMTP: smtp.Options{Standby: a}}
}

// pair writes a certificate and its key.
func pair(t *testing.T, dir, name string, serial int64) Pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{name},
		NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	priv, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p := Pair{filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")}
	for file, block := range map[string]*pem.Block{p.Cert: {Type: "CERTIFICATE", Bytes: der},
		p.Key: {Type: "PRIVATE KEY", Bytes: priv}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// Each kind of listener serves its protocol, and offers TLS where there is none yet.
func TestKinds(t *testing.T) {
	certs, err := LoadCertificates([]Pair{pair(t, t.TempDir(), "mail.test", 1)}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		kind       Kind
		tls        bool
		greeting   string
		submission bool
	}{
		{IMAP, false, "* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID ENABLE IDLE STARTTLS LOGINDISABLED] ready.",
			false},
		{IMAPS, true, "* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID ENABLE IDLE AUTH=PLAIN AUTH=LOGIN] ready.",
			false},
		{SMTP, false, "220 standby", false},
		{Submission, false, "220 standby", true},
		{Submissions, true, "220 standby", true},
	} {
		a := alone{make(chan seam.Client, 1)}
		o := options(a)
		o.TLS = certs.Config()
		p, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			p.ServeConn(t.Context(), far, c.kind)
		}()
		var conn net.Conn = near
		if c.tls {
			conn = tls.Client(near, &tls.Config{InsecureSkipVerify: true})
		}
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || strings.TrimRight(line, "\r\n") != c.greeting {
			t.Errorf("kind %d greets %q, %v", c.kind, line, err)
		}
		if c.greeting[0] == '2' {
			if who := <-a.seen; who.Submission != c.submission || who.TLS != c.tls || who.Addr.IsValid() {
				t.Errorf("kind %d: the client is %+v", c.kind, who)
			}
		}
		_ = near.Close()
		<-done
	}
}

// A client that wants TLS where there is no certificate is dropped.
func TestNoCertificate(t *testing.T) {
	p, err := New(options(alone{}))
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	go p.ServeConn(t.Context(), far, IMAPS)
	if b, err := io.ReadAll(near); err != nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
}

// pipes is a listener whose connections are made by hand.
type pipes struct {
	next chan net.Conn
	done chan struct{}
}

func (l pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.next:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l pipes) Close() error   { close(l.done); return nil }
func (l pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (l pipes) connect() *bufio.Reader {
	near, far := net.Pipe()
	l.next <- far
	return bufio.NewReader(near)
}

// One session too many is closed; Serve returns when all are gone.
func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(alone{})
		o.MaxSessions = 2
		p, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		l := pipes{make(chan net.Conn), make(chan struct{})}
		done := make(chan error, 1)
		go func() { done <- p.Serve(ctx, l, IMAP) }()
		var open []*bufio.Reader
		for range 2 {
			c := l.connect()
			if line, err := c.ReadString('\n'); err != nil || !strings.HasPrefix(line, "* OK") {
				t.Errorf("%q, %v", line, err)
			}
			open = append(open, c)
		}
		if line, err := l.connect().ReadString('\n'); err == nil {
			t.Errorf("a third session is greeted: %q", line)
		}
		cancel()
		for _, c := range open {
			_, _ = io.Copy(io.Discard, c)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// An accept that fails for good ends Serve, one that passes does not.
func TestAcceptFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := New(options(alone{}))
		if err != nil {
			t.Fatal(err)
		}
		l := &failing{errs: []error{os.NewSyscallError("accept", errors.New("too many open files")),
			errors.New("gone")}}
		if err := p.Serve(t.Context(), l, IMAP); err == nil || !strings.Contains(err.Error(), "gone") ||
			len(l.errs) != 0 {
			t.Errorf("%v, %d left", err, len(l.errs))
		}
	})
}

type failing struct {
	pipes
	errs []error
}

func (l *failing) Accept() (net.Conn, error) {
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, err
}
func (l *failing) Close() error { return nil }

func TestAddrPort(t *testing.T) {
	for _, c := range []struct {
		addr net.Addr
		want netip.AddrPort
	}{
		{&net.TCPAddr{IP: net.ParseIP("192.0.2.7"), Port: 4711}, netip.MustParseAddrPort("192.0.2.7:4711")},
		// as ::ffff:192.0.2.7
		{&net.TCPAddr{IP: net.ParseIP("fe80::7"), Port: 4711, Zone: "eth0"},
			netip.MustParseAddrPort("[fe80::7%eth0]:4711")},
		{&net.UnixAddr{Name: "x"}, netip.AddrPort{}},
		{nil, netip.AddrPort{}},
	} {
		if got := addrPort(c.addr); got != c.want {
			t.Errorf("%v is %v", c.addr, got)
		}
	}
}

func TestNew(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("nothing is enough")
	}
	o := options(alone{})
	o.Target.IMAP.Addr = "production:143"
	if _, err := New(o); err == nil {
		t.Error("production whose answers nobody follows")
	}
	p, err := New(options(alone{}))
	if err != nil {
		t.Fatal(err)
	}
	p.Greet(seam.Greeting{Text: "mail ready", Auth: []string{"AUTH=PLAIN"}, Caps: []string{"IMAP4rev1", "MOVE"}})
	if g := p.Greeting(); g.Text != "mail ready" || len(g.Auth) != 1 || len(g.Caps) != 2 ||
		p.Introduce(t.Context()) != nil {
		t.Errorf("%+v", g)
	}
}

// The certificate is chosen by the name that is asked for, and a renewed one is shown
// within ten seconds; one that cannot be used leaves the old one.
func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	pairs := []Pair{pair(t, dir, "one.test", 1), pair(t, dir, "two.test", 2)}
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		c, err := LoadCertificates(pairs, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		serial := func(name string) int64 {
			h := &tls.ClientHelloInfo{ServerName: name, SupportedVersions: []uint16{tls.VersionTLS13},
				SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}}
			cert, err := c.get(h)
			if err != nil {
				t.Fatal(err)
			}
			return cert.Leaf.SerialNumber.Int64()
		}
		for name, want := range map[string]int64{"one.test": 1, "two.test": 2, "three.test": 1, "": 1} {
			if got := serial(name); got != want {
				t.Errorf("%q gets %d", name, got)
			}
		}
		renew := func(serial int64, stamp time.Time) {
			pair(t, dir, "two.test", serial)
			if serial == 0 {
				if err := os.WriteFile(pairs[1].Cert, []byte("broken"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chtimes(pairs[1].Cert, stamp, stamp); err != nil {
				t.Fatal(err)
			}
		}
		renew(3, time.Now().Add(time.Hour))
		if got := serial("two.test"); got != 2 {
			t.Errorf("%d is read at once", got)
		}
		time.Sleep(recheck + 1)
		if got := serial("two.test"); got != 3 {
			t.Errorf("%d after it was renewed", got)
		}
		renew(0, time.Now().Add(2*time.Hour))
		time.Sleep(recheck + 1)
		if got := serial("two.test"); got != 3 || !strings.Contains(log.String(), "cannot be used") {
			t.Errorf("%d after a broken one; log %s", got, &log)
		}
		if leaves := c.Leaves(); len(leaves) != 2 || leaves[1].SerialNumber.Int64() != 3 {
			t.Errorf("%d leaves", len(leaves))
		}
	})
	if _, err := LoadCertificates([]Pair{{pairs[0].Cert, pairs[0].Key}, {dir, dir}},
		slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a directory is no certificate")
	}
}
