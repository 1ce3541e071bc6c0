package lab

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy/lab/site"
	"understudy/replica/imapc"
	"understudy/snoop/smtpwire"
)

// way is one way to production: direct, through the box, or through a peer.
type way struct {
	name                        string
	imap, imapTLS, smtp, submit string
}

// rounds are interleaved over the ways; the median counts.
const rounds = 3

// TestBench prints the figures of `make bench`. It asserts none.
func TestBench(t *testing.T) {
	which := os.Getenv("UNDERSTUDY_BENCH") // make bench; a regular expression picks rows
	if which == "" {
		return
	}
	s := newSite(t, 20)
	u := s.Users[0]
	fillBench(t, s, u, 2000)
	dir := t.TempDir()
	cert, key := certificate(t, dir, "site", 1, "mail.example.test")
	tlsPort := must(site.FreePort())(t)
	b := newBox(t, s, map[string]string{"certificate": fmt.Sprintf("[{cert=%q, key=%q}]", cert, key), "log_level": `"warn"`,
		"listen.imaps": fmt.Sprintf(`"127.0.0.1:%d"`, tlsPort), "failover.mode": `"advise"`, "production.client_id": "false", "production.xclient": "false", "mirror.sweep": `"0s"`})
	waitPhase(t, b, "protecting")
	ways := []way{{"direct", direct(s), "", fmt.Sprintf("127.0.0.1:%d", s.SMTPPort), fmt.Sprintf("127.0.0.1:%d", s.SubmissionPort)},
		{"understudy", b.IMAP, fmt.Sprintf("127.0.0.1:%d", tlsPort), b.SMTP, b.Submission},
		nginx(t, s, dir, cert, key), haproxy(t, s, dir, cert, key)}
	for _, row := range []struct {
		name string
		run  func(t *testing.T, w way) float64
	}{
		{"NOOP, 1 connection /s", func(t *testing.T, w way) float64 { return noops(t, w.imap, u, 1) }},
		{"NOOP, 20 connections /s", func(t *testing.T, w way) float64 { return noops(t, w.imap, u, 20) }},
		{"mixed commands, 20 connections /s", func(t *testing.T, w way) float64 { return mixed(t, w.imap, s.Users) }},
		{"login + logout /s", func(t *testing.T, w way) float64 { return logins(t, w.imap, u) }},
		{"bulk FETCH MB/s", func(t *testing.T, w way) float64 { return bulk(t, w.imap, u, false) }},
		{"bulk FETCH over TLS MB/s", func(t *testing.T, w way) float64 { return bulk(t, w.imapTLS, u, true) }},
		{"APPEND 4 kB /s", func(t *testing.T, w way) float64 { return appends(t, w.imap, s.Users[1]) }},
		{"SMTP 4 kB, one message a session /s", func(t *testing.T, w way) float64 { return smtps(t, w.smtp, s.Users[2], false) }},
		{"SMTP 4 kB, one session /s", func(t *testing.T, w way) float64 { return smtps(t, w.smtp, s.Users[2], true) }},
		{"submission with AUTH /s", func(t *testing.T, w way) float64 { return submits(t, w.submit, s.Users[3]) }},
	} {
		if which != "1" && !regexp.MustCompile(which).MatchString(row.name) {
			continue
		}
		got := make([][]float64, len(ways))
		for range rounds {
			for i, w := range ways {
				got[i] = append(got[i], row.run(t, w))
			}
		}
		line := fmt.Sprintf("%-38s", row.name)
		base := 0.0
		for i, w := range ways {
			slices.Sort(got[i])
			m := got[i][rounds/2]
			switch {
			case m == 0:
				line += fmt.Sprintf("  %s –", w.name)
			case base == 0:
				base = m
				line += fmt.Sprintf("  %s %.0f", w.name, m)
			default:
				line += fmt.Sprintf("  %s %.2f", w.name, m/base)
			}
		}
		fmt.Println(line)
	}
	b.Kill()
	if which == "1" || which == "copy" {
		firstCopy(t)
	}
}

func fillBench(t *testing.T, s *site.Site, u string, n int) {
	t.Helper()
	c := dial(t, direct(s), u)
	var tags []string
	for i := range n {
		tags = append(tags, must(c.SendAppend(imapc.Appending{Mailbox: "INBOX", Flags: []string{`\Seen`}, Body: message(fmt.Sprint("b", i), 2000+i%100*80)}))(t))
		if len(tags) == 100 || i == n-1 {
			for _, tag := range tags {
				if _, err := c.Wait(tag, nil); err != nil {
					t.Fatal(err)
				}
			}
			tags = nil
		}
	}
}

const benchTime = 1500 * time.Millisecond

// rate runs f in n workers for a while and returns calls per second.
func rate(t *testing.T, n int, worker func(i int) (f func() error, stop func())) float64 {
	t.Helper()
	var wg sync.WaitGroup
	var calls atomic.Int64
	fs := make([]func() error, n)
	for i := range n {
		f, stop := worker(i)
		defer stop()
		fs[i] = f
	}
	start := time.Now()
	for _, f := range fs {
		wg.Go(func() {
			for time.Since(start) < benchTime {
				if err := f(); err != nil {
					t.Error(err)
					return
				}
				calls.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(calls.Load()) / time.Since(start).Seconds()
}

func noops(t *testing.T, addr, u string, n int) float64 {
	return rate(t, n, func(int) (func() error, func()) {
		c := must(site.Dial(t.Context(), addr, u))(t)
		return func() error { _, err := c.Do("NOOP", nil); return err }, c.Close
	})
}

func mixed(t *testing.T, addr string, users []string) float64 {
	return rate(t, 20, func(i int) (func() error, func()) {
		c := must(site.Dial(t.Context(), addr, users[i%len(users)]))(t)
		if _, err := c.Select("INBOX", false); err != nil {
			t.Fatal(err)
		}
		cmds := []string{"NOOP", "UID FETCH 1:20 (FLAGS)", "UID SEARCH ALL", `STATUS INBOX (MESSAGES UNSEEN)`, `UID STORE 1 +FLAGS (\Flagged)`, `UID STORE 1 -FLAGS (\Flagged)`, `LIST "" "*"`}
		k := 0
		return func() error { k++; _, err := c.Do(cmds[k%len(cmds)], nil); return err }, c.Close
	})
}

func logins(t *testing.T, addr, u string) float64 {
	return rate(t, 4, func(int) (func() error, func()) {
		return func() error {
			c, err := site.Dial(context.Background(), addr, u)
			if err != nil {
				return err
			}
			c.Logout()
			return nil
		}, func() {}
	})
}

func bulk(t *testing.T, addr, u string, secure bool) float64 {
	if addr == "" {
		return 0
	}
	conn := must(net.Dial("tcp", addr))(t)
	if secure {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	c := must(imapc.New(t.Context(), conn, imapc.Options{}))(t)
	defer c.Close()
	if err := c.Login(u, "", site.Password(u)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Select("INBOX", true); err != nil {
		t.Fatal(err)
	}
	bytes, start := 0, time.Now()
	for time.Since(start) < benchTime {
		if err := c.Fetch("1:*", "(UID BODY.PEEK[])", func(m imapc.Message) error { bytes += len(m.Body); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	return float64(bytes) / 1e6 / time.Since(start).Seconds()
}

func appends(t *testing.T, addr, u string) float64 {
	body := message("append", 4000)
	return rate(t, 1, func(int) (func() error, func()) {
		c := must(site.Dial(t.Context(), addr, u))(t)
		return func() error { _, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: body}); return err }, c.Close
	})
}

// smtpClient is one SMTP session of the benchmark.
type smtpClient struct {
	conn net.Conn
	br   *bufio.Reader
}

func openSMTP(addr string, lines ...string) (*smtpClient, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &smtpClient{conn, bufio.NewReader(conn)}
	return c, c.talk(append([]string{"", "EHLO bench.test"}, lines...)...)
}

func (c *smtpClient) talk(lines ...string) error {
	for _, l := range lines {
		if l != "" {
			if _, err := c.conn.Write([]byte(l + "\r\n")); err != nil {
				return err
			}
		}
		r, err := smtpwire.ReadReply(c.br)
		if err != nil || r.Code >= 400 {
			return fmt.Errorf("%.30s: %s %w", l, r, err)
		}
	}
	return nil
}

func smtps(t *testing.T, addr, u string, one bool) float64 {
	text := strings.TrimSuffix(string(message("smtp", 4000)), "\r\n") + "\r\n."
	deliver := []string{"MAIL FROM:<x@other.test>", "RCPT TO:<" + u + ">", "DATA", text}
	return rate(t, 4, func(int) (func() error, func()) {
		var c *smtpClient
		return func() error {
			var err error
			if c == nil {
				if c, err = openSMTP(addr); err != nil {
					return err
				}
			}
			err = c.talk(deliver...)
			if !one {
				_ = c.talk("QUIT")
				_ = c.conn.Close()
				c = nil
			}
			return err
		}, func() { time.Sleep(300 * time.Millisecond) }
	})
}

func submits(t *testing.T, addr, u string) float64 {
	if addr == "" {
		return 0
	}
	text := strings.TrimSuffix(string(message("submission", 4000)), "\r\n") + "\r\n."
	auth := "AUTH PLAIN " + plain(u)
	return rate(t, 4, func(int) (func() error, func()) {
		return func() error {
			c, err := openSMTP(addr, auth, "MAIL FROM:<"+u+">", "RCPT TO:<"+u+">", "DATA", text, "QUIT")
			if c != nil {
				_ = c.conn.Close()
			}
			return err
		}, func() { time.Sleep(300 * time.Millisecond) }
	})
}

// peer starts a proxy from Debian's packages in the foreground.
func peer(t *testing.T, conf, path string, cmd ...string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(cmd[0], cmd[1:]...)
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM) // its workers end with it
		_ = c.Wait()
	})
}

func ports(t *testing.T, n int) []int {
	var out []int
	for range n {
		out = append(out, must(site.FreePort())(t))
	}
	return out
}

func listening(t *testing.T, addr string) {
	t.Helper()
	waitFor(t, addr, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

func local(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// nginx is the mail proxy; its auth service is a small HTTP answer of nginx
// itself, one for each protocol.
func nginx(t *testing.T, s *site.Site, dir, cert, key string) way {
	p := ports(t, 5)
	conf := fmt.Sprintf(`load_module /usr/lib/nginx/modules/ngx_mail_module.so;
daemon off;
pid %[1]s/nginx.pid;
error_log stderr crit;
worker_processes 2;
events { worker_connections 2000; }
http { access_log off;
 server { listen 127.0.0.1:%[2]d; client_body_temp_path %[1]s/n1;
  location /imap { add_header Auth-Status OK; add_header Auth-Server 127.0.0.1; add_header Auth-Port %[3]d; return 200; }
  location /smtp { add_header Auth-Status OK; add_header Auth-Server 127.0.0.1; add_header Auth-Port %[4]d; return 200; }
 }
}
mail { server_name mail.example.test; imap_capabilities "IMAP4rev1" "UIDPLUS" "LITERAL+" "SASL-IR";
 server { listen 127.0.0.1:%[5]d; protocol imap; imap_auth plain login; auth_http 127.0.0.1:%[2]d/imap; }
 server { listen 127.0.0.1:%[6]d ssl; protocol imap; imap_auth plain login; auth_http 127.0.0.1:%[2]d/imap; ssl_certificate %[8]s; ssl_certificate_key %[9]s; }
 server { listen 127.0.0.1:%[7]d; protocol smtp; smtp_auth none; auth_http 127.0.0.1:%[2]d/smtp; smtp_client_buffer 64k; xclient off; }
}
`, dir, p[0], s.IMAPPort, s.SMTPPort, p[1], p[2], p[3], cert, key)
	path := filepath.Join(dir, "nginx.conf")
	peer(t, conf, path, "nginx", "-c", path, "-p", dir)
	for _, q := range p[:4] {
		listening(t, local(q))
	}
	return way{"nginx", local(p[1]), local(p[2]), local(p[3]), ""}
}

func haproxy(t *testing.T, s *site.Site, dir, cert, key string) way {
	p := ports(t, 4)
	both := append(must(os.ReadFile(cert))(t), must(os.ReadFile(key))(t)...)
	pem := filepath.Join(dir, "both.pem")
	if err := os.WriteFile(pem, both, 0o600); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("global\n maxconn 4000\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"+
		"listen imap\n bind 127.0.0.1:%d\n server a 127.0.0.1:%d\nlisten imaps\n bind 127.0.0.1:%d ssl crt %s\n server a 127.0.0.1:%d\n"+
		"listen smtp\n bind 127.0.0.1:%d\n server a 127.0.0.1:%d\nlisten sub\n bind 127.0.0.1:%d\n server a 127.0.0.1:%d\n",
		p[0], s.IMAPPort, p[1], pem, s.IMAPPort, p[2], s.SMTPPort, p[3], s.SubmissionPort)
	path := filepath.Join(dir, "haproxy.cfg")
	peer(t, conf, path, "haproxy", "-f", path)
	for _, q := range p {
		listening(t, local(q))
	}
	return way{"haproxy", local(p[0]), local(p[1]), local(p[2]), local(p[3])}
}
