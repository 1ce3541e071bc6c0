package lab

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy/lab/site"
	"understudy/replica/imapc"
	"understudy/snoop/imapwire"
)

// certificate writes a self-signed pair for names into dir.
func certificate(t *testing.T, dir, name string, serial int64, names ...string) (cert, key string) {
	t.Helper()
	k := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: names[0]},
		DNSNames:  names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true,
		BasicConstraintsValid: true}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k))(t)
	kb := must(x509.MarshalECPrivateKey(k))(t)
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	for path, b := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der},
		key: {Type: "EC PRIVATE KEY", Bytes: kb}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// talk sends all of in and returns what comes back until the server closes, or
// is silent for a second.
func talk(t *testing.T, addr, in string) string {
	t.Helper()
	conn := must(net.Dial("tcp", addr))(t)
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, in); err != nil {
		return ""
	}
	var out strings.Builder
	buf := make([]byte, 4096)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		n, err := conn.Read(buf)
		out.Write(buf[:n])
		if err != nil {
			if err == io.EOF {
				out.WriteString("<closed>")
			}
			return out.String()
		}
	}
}

// memory of a process in KiB.
func memory(t *testing.T, b *site.Box) int {
	t.Helper()
	text := string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", b.Pid())))(t))
	_, rest, _ := strings.Cut(text, "VmRSS:")
	return must(strconv.Atoi(strings.Fields(rest)[0]))(t)
}

// Hostile clients get clear errors, keep nobody else from working, and cost
// little memory.
func TestHostileClients(t *testing.T) {
	s := newSite(t, 2)
	dir := t.TempDir()
	cert, key := certificate(t, dir, "site", 1, "mail.example.test")
	b := newBox(t, s, map[string]string{"certificate": fmt.Sprintf("[{cert=%q, key=%q}]", cert, key)})
	waitPhase(t, b, "protecting")
	u := s.Users[0]
	login := fmt.Sprintf("l LOGIN %s %s\r\n", u, site.Password(u))
	for _, c := range []struct{ name, addr, in, want, never string }{
		{"endless line", b.IMAP, strings.Repeat("x", 200_000), "BYE", ""},
		{"endless line after login", b.IMAP, login + strings.Repeat("x", 200_000), "BYE", ""},
		{"huge literal", b.IMAP, "a LOGIN {99999999+}\r\n", "BYE", "+ OK"},
		{"huge literal after login", b.IMAP, login + "a SELECT {99999999+}\r\n", "BYE", "a OK"},
		{"literal on an unknown command", b.IMAP, login + "a XFOO {21+}\r\nb LOGIN victim secret\r\n", "BYE", "b OK"},
		{"STARTTLS injection", b.IMAP, "a STARTTLS\r\nb LOGIN " + u + " x\r\n", "BAD", "b OK"},
		{"three bad commands", b.IMAP, "a X\r\nb Y\r\nc Z\r\nd CAPABILITY\r\n", "Too many invalid", "d OK"},
		{"select before login", b.IMAP, "a SELECT INBOX\r\n", "a BAD", ""},
		{"NUL in a password", b.IMAP, "a LOGIN x {3+}\r\na\x00b\r\n", "a BAD", ""},
		{"second login", b.IMAP, login + "m LOGIN " + s.Users[1] + " " + site.Password(s.Users[1]) + "\r\n", "m BAD",
			"m OK"},
		{"COMPRESS and NOTIFY", b.IMAP, login + "c COMPRESS DEFLATE\r\nd NOTIFY NONE\r\ne CAPABILITY\r\n", "e OK",
			"COMPRESS"},
		{"QRESYNC", b.IMAP, login + "c ENABLE QRESYNC\r\nd SELECT INBOX\r\n", "d OK", "QRESYNC"},
		{"half-closed after LOGOUT", b.IMAP, login + "z LOGOUT\r\n", "z OK", ""},
		{"SMTP endless line", b.SMTP, strings.Repeat("x", 200_000), "500", ""},
		{"SMTP STARTTLS injection", b.SMTP, "EHLO a\r\nSTARTTLS\r\nMAIL FROM:<x@y>\r\n", "554", "250 2.1.0"},
		{"SMTP pipelined behind DATA", b.SMTP, "EHLO a\r\nMAIL FROM:<x@y.test>\r\nRCPT TO:<" + u +
			">\r\nDATA\r\nSubject: x\r\n", "503", "354"},
		{"SMTP address tricks", b.SMTP, "EHLO a\r\nMAIL FROM:<x@y.test>\r\nRCPT TO:<\"a> ORCPT=x\"@example.test>\r\n",
			"501", "250 2.1.5"},
		{"SMTP control characters", b.SMTP, "EHLO a\r\nMAIL FROM:<x\x00@y>\r\n", "500", ""},
		{"SMTP BDAT", b.SMTP, "EHLO a\r\nBDAT 99999999999\r\n", "500", "CHUNKING"},
		{"SMTP relay", b.SMTP, "EHLO a\r\nMAIL FROM:<x@y.test>\r\nRCPT TO:<x@elsewhere.test>\r\n", "554", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := talk(t, c.addr, c.in)
			if !strings.Contains(got, c.want) || c.never != "" && strings.Contains(got, c.never) {
				t.Errorf("want %q and never %q in:\n%.2000s", c.want, c.never, got)
			}
		})
	}
	t.Run("bare LF cannot end a message", func(t *testing.T) {
		conn := must(net.Dial("tcp", b.SMTP))(t)
		defer func() { _ = conn.Close() }()
		br := bufio.NewReader(conn)
		for _, l := range []string{"EHLO a\r\n", "MAIL FROM:<x@y.test>\r\n", "RCPT TO:<" + u + ">\r\n", "DATA\r\n"} {
			_, _ = io.WriteString(conn, l)
			time.Sleep(50 * time.Millisecond)
		}
		_, _ = io.WriteString(conn, "Subject: smuggle\r\n\r\na\n.\nMAIL FROM:<evil@y.test>\r\nRCPT TO:<"+
			s.Users[1]+">\r\nDATA\r\n\r\n.\r\nQUIT\r\n")
		all, _ := io.ReadAll(br)
		if n := strings.Count(string(all), "250 2.0.0"); n != 1 || strings.Count(string(all), "354") != 1 {
			t.Errorf("%d messages were taken:\n%s", n, all)
		}
	})
	t.Run("silent and many", func(t *testing.T) {
		before := memory(t, b)
		for range 500 {
			conn := must(net.Dial("tcp", b.IMAP))(t)
			defer func() { _ = conn.Close() }()
			_, _ = io.WriteString(conn, "a LOGIN {4000}\r\n"+strings.Repeat("y", 1000))
		}
		c := dial(t, b.IMAP, u)
		do(t, c, "NOOP")
		if grown := memory(t, b) - before; grown > 100_000 {
			t.Errorf("500 silent sessions cost %d KiB", grown)
		}
	})
	t.Run("TLS", func(t *testing.T) { starttls(t, b, u, dir) })
}

// starttls logs in over STARTTLS, and sees a renewed certificate.
func starttls(t *testing.T, b *site.Box, u, dir string) {
	seen := func() int64 {
		conn := must(net.Dial("tcp", b.IMAP))(t)
		c, err := imapc.New(t.Context(), conn, imapc.Options{StartTLS: &tls.Config{InsecureSkipVerify: true,
			ServerName: "mail.example.test"}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Login(u, "", site.Password(u)); err != nil {
			t.Fatal(err)
		}
		return c.TLS().PeerCertificates[0].SerialNumber.Int64()
	}
	if n := seen(); n != 1 {
		t.Errorf("certificate %d", n)
	}
	time.Sleep(1100 * time.Millisecond) // file times differ
	certificate(t, dir, "site", 2, "mail.example.test")
	waitFor(t, "N29: the renewed certificate", func() bool { return seen() == 2 })
}

// T1, N29: TLS on both sides: production demands STARTTLS and its certificate is
// verified; clients use implicit TLS; the standby shows the same certificate.
func TestTLSOnBothSides(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t, dir, "site", 7, "mail.example.test")
	s := must(site.New(t.TempDir(), users(2), nil))(t)
	if err := s.UseTLS(cert, key); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, s.Log())
	}
	t.Cleanup(s.Stop)
	imaps, submissions := local(must(site.FreePort())(t)), local(must(site.FreePort())(t))
	b := newBox(t, s, map[string]string{"certificate": fmt.Sprintf("[{cert=%q, key=%q}]", cert, key),
		"listen.imaps":       strconv.Quote(imaps),
		"listen.submissions": strconv.Quote(submissions), "listen.plain_login": "false", "production.imap_security": `"starttls"`,
		"production.smtp_security": `"starttls"`, "production.submission_security": `"starttls"`, "production.ca": strconv.Quote(cert), "production.server_name": `"mail.example.test"`})
	waitPhase(t, b, "protecting")
	u := s.Users[0]
	secure := func(addr string) *tls.Conn {
		t.Helper()
		c := must(tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, ServerName: "mail.example.test"}))(t)
		if n := c.ConnectionState().PeerCertificates[0].SerialNumber.Int64(); n != 7 {
			t.Errorf("certificate %d", n)
		}
		return c
	}
	round := func(id string) {
		t.Helper()
		sc := &smtpClient{conn: secure(submissions)}
		sc.br = bufio.NewReader(sc.conn)
		text := strings.TrimSuffix(string(message(id, 300)), "\r\n") + "\r\n."
		if err := sc.talk("", "EHLO c.test", "AUTH PLAIN "+plain(u), "MAIL FROM:<"+u+">", "RCPT TO:<"+u+">", "DATA",
			text, "QUIT"); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "delivery of "+id, func() bool {
			c := must(imapc.New(t.Context(), secure(imaps), imapc.Options{}))(t)
			defer c.Close()
			if err := c.Login(u, "", site.Password(u)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Select("INBOX", true); err != nil {
				t.Fatal(err)
			}
			found := false
			if _, err := c.Do("SEARCH SUBJECT "+id, func(r imapwire.Response, _ []byte) error {
				found = len(r.Rest) > 0
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			return found
		})
	}
	round("carried")
	if got := talk(t, b.IMAP, "a LOGIN "+u+" "+site.Password(u)+"\r\n"); !strings.Contains(got, "PRIVACYREQUIRED") ||
		!strings.Contains(got, "LOGINDISABLED") {
		t.Errorf("login without TLS: %s", got)
	}
	waitFor(t, "the password is learned", func() bool { return must(b.Status(t.Context()))(t).Verifiers > 0 })
	s.Kill()
	waitPhase(t, b, "serving")
	round("served")
	b.Kill()
	wrong := must(site.NewBox(t.TempDir(), binary, s, map[string]string{"production.imap_security": `"starttls"`, "production.server_name": `"other.example.test"`, "production.ca": strconv.Quote(cert)}))(t)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(binary, "doctor", "--config", wrong.Config()).CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "other.example.test") {
		t.Errorf("a wrong certificate: %v\n%s", err, out)
	}
}

// Settings, certificates and files that are wrong are named, with the remedy.
func TestBadInput(t *testing.T) {
	s := newSite(t, 1)
	run := func(settings map[string]string) string {
		b := must(site.NewBox(t.TempDir(), binary, s, settings))(t)
		out, _ := exec.Command(binary, "serve", "--config", b.Config()).CombinedOutput()
		return string(out)
	}
	for _, c := range []struct{ key, value, want string }{
		{"listen.imap", `"nonsense"`, "listen.imap"},
		{"failover.mode", `"sometimes"`, "must be one of advise, confirm, automatic"},
		{"failover.hold", `"soon"`, "is no time span"},
		{"production.iamp", `"x:1"`, "iamp"},
		{"certificate", `[{cert="/nonexistent.pem", key="/x"}]`, "/nonexistent.pem"},
		{"master.password_file", `"/nonexistent"`, "exclude each other"},
		{"production.ca", `"/etc/hostname"`, "holds no certificate"},
	} {
		if out := run(map[string]string{c.key: c.value}); !strings.Contains(out, c.want) {
			t.Errorf("%s = %s: %s", c.key, c.value, out)
		}
	}
	b := must(site.NewBox(t.TempDir(), binary, s, nil))(t)
	text := must(os.ReadFile(b.Config()))(t)
	for n := range 8 {
		cut := bytes.LastIndexByte(text[:len(text)*n/8], '=') + 1 // between two lines it may be whole
		if err := os.WriteFile(b.Config(), text[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(binary, "config", "check", "--config", b.Config()).CombinedOutput(); err == nil ||
			!strings.Contains(string(out), "settings") {
			t.Errorf("settings cut at %d/8: %s", n, out)
		}
	}
	if err := os.WriteFile(b.Config(), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(binary, "doctor", "--config", b.Config()).CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "hidden from clients") {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	s.Kill()
	if out, err := exec.Command(binary, "doctor", "--config", b.Config()).CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "connection refused") {
		t.Errorf("doctor before a dead server: %v\n%s", err, out)
	}
	if out, err := exec.Command(binary, "status", "--config", b.Config()).CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "not running") {
		t.Errorf("status of none: %s", out)
	}
}

// N13: with a full disk nothing is acknowledged that is not stored; what was
// acknowledged is there; with room again it goes on by itself.
func TestN13_FullDisk(t *testing.T) {
	s := newSite(t, 1)
	u := s.Users[0]
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=24m", "none", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", dir).Run() })
	b := newBox(t, s, map[string]string{"data": strconv.Quote(filepath.Join(dir, "data")), "mirror.sweep": `"1s"`})
	waitPhase(t, b, "protecting")
	c := dial(t, b.IMAP, u)
	random := make([]byte, 1<<20)
	acked := 0
	for i := range 60 {
		_, _ = rand.Read(random)
		body := append(message(fmt.Sprint("full", i), 10), []byte(fmt.Sprintf("%x\r\n", random))...)
		if _, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: body}); err != nil {
			break
		}
		acked++
	}
	if acked == 60 || acked == 0 {
		t.Fatalf("%d of 60 messages of 2 MiB were taken with 24 MiB of disk", acked)
	}
	if l := b.Log(); !strings.Contains(l, "no space left") {
		t.Error("the log does not say what is wrong")
	}
	held := 0
	if l := must(b.Replica(t.Context(), u))(t); true {
		held = strings.Count(l.String(), "uid=")
	}
	if held < acked {
		t.Errorf("%d messages were acknowledged, %d are in the replica", acked, held)
	}
	if out, err := exec.Command("mount", "-o", "remount,size=400m", dir).CombinedOutput(); err != nil {
		t.Fatalf("remount: %v: %s", err, out)
	}
	same(t, s, b, u, 20*time.Second)
	c = dial(t, b.IMAP, u)
	if _, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: message("room again", 100)}); err != nil {
		t.Errorf("with room again: %v", err)
	}
}
