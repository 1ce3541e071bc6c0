package upstream

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/proxy/seam"
)

// turn of a scripted server: it hears a line, unless hear is "", and says something.
type turn struct{ hear, say string }

const emptyLine = "\r\n"

// play is production: it follows a script and then reads until the end. It returns
// what it heard that was not in the script.
func play(t *testing.T, script []turn) (e Endpoint, rest func() string) {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan string, 1)
	go func() {
		br := bufio.NewReader(far)
		for _, s := range script {
			if s.hear != "" {
				line, err := br.ReadString('\n')
				if err != nil || strings.TrimRight(line, "\r\n") != strings.TrimSuffix(s.hear, emptyLine) {
					t.Errorf("production heard %q, not %q (%v)", line, s.hear, err)
					break
				}
			}
			if _, err := io.WriteString(far, s.say); err != nil {
				break
			}
		}
		b, _ := io.ReadAll(br)
		_ = far.Close()
		done <- string(b)
	}()
	e = Endpoint{Addr: "production:1", Via: func(context.Context, seam.Client, string) (net.Conn, error) {
		return near,
			nil
	}}
	return e, func() string {
		_ = near.Close()
		return <-done
	}
}

func client() seam.Client {
	return seam.Client{Addr: netip.MustParseAddrPort("192.0.2.7:4711"),
		Local: netip.MustParseAddrPort("198.51.100.1:143"), Helo: "client.test", ESMTP: true}
}

// The PROXY protocol, section 2.2.
func TestProxyHeader(t *testing.T) {
	sig := "\r\n\r\n\x00\r\nQUIT\n"
	for _, c := range []struct {
		name          string
		client, local string
		want          string
	}{
		{"IPv4", "192.0.2.7:4711", "198.51.100.1:143",
			"\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x12\x67\x00\x8f"},
		{"IPv6", "[2001:db8::7]:4711", "[2001:db8::1]:25", "\x21\x21\x00\x24" +
			"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07" +
			"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + "\x12\x67\x00\x19"},
		{"with a zone", "[fe80::7%eth0]:4711", "[fe80::1%eth0]:25", "\x21\x21\x00\x24" +
			"\xfe\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07" +
			"\xfe\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + "\x12\x67\x00\x19"},
		{"both kinds", "192.0.2.7:4711", "[2001:db8::1]:25", "\x20\x00\x00\x00"},
		{"no client", "", "198.51.100.1:143", "\x20\x00\x00\x00"},
	} {
		who := seam.Client{Local: netip.MustParseAddrPort(c.local)}
		if c.client != "" {
			who.Addr = netip.MustParseAddrPort(c.client)
		}
		if got := string(proxyHeader(who)); got != sig+c.want {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

// The header goes before anything else, also before TLS.
func TestDialSendsHeaderFirst(t *testing.T) {
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	e := Endpoint{Addr: "production:1", ProxyProtocol: true, Security: Implicit,
		TLS: &tls.Config{InsecureSkipVerify: true},
		Via: func(_ context.Context, c seam.Client, addr string) (net.Conn, error) {
			if addr != "production:1" || c.Addr != client().Addr {
				t.Errorf("dials %s for %s", addr, c.Addr)
			}
			return near, nil
		}}
	go func() { _, _ = e.dial(t.Context(), client()) }()
	got := make([]byte, 28+1)
	if _, err := io.ReadFull(far, got); err != nil || string(got[:28]) != string(proxyHeader(client())) ||
		got[28] != 0x16 {
		t.Errorf("%q, %v", got, err)
	}
}

// lingering is a connection that may be reset.
type lingering struct {
	net.Conn
	sec *int
}

func (l lingering) SetLinger(sec int) error { *l.sec = sec; return nil }

// What production was sent and has not got must not arrive after another was asked.
func TestConnectionsAreReset(t *testing.T) {
	near, _ := net.Pipe()
	sec := -1
	e := Endpoint{Via: func(context.Context, seam.Client, string) (net.Conn, error) {
		return lingering{near, &sec},
			nil
	}}
	if _, err := e.Dial(t.Context()); err != nil || sec != 0 {
		t.Errorf("linger %d, %v", sec, err)
	}
}

func TestLeaseContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		revoked := make(chan struct{})
		ctx, cancel := LeaseContext(t.Context(), seam.Lease{Revoked: revoked})
		defer cancel()
		time.Sleep(time.Hour)
		if ctx.Err() != nil {
			t.Error("ends while the lease lasts")
		}
		close(revoked)
		synctest.Wait()
		if ctx.Err() == nil {
			t.Error("outlives the lease")
		}
		never, stop := LeaseContext(t.Context(), seam.Lease{})
		stop()
		if never.Err() == nil {
			t.Error("outlives its cancel")
		}
	})
}

// certificate is a server's, good for nothing but a test.
func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"production"},
		NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
