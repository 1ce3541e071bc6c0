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

// The boxes of the table: this tree's, and with UNDERSTUDY_BEFORE that of an older
// binary.
const thisBox, beforeBox = "understudy", "before"

// rounds are interleaved over the ways; the median counts.
const rounds = 3

// benchRow is one row of the table.
type benchRow struct {
	name string
	run  rowWork
}

// rowWork is what a row does through a way; it returns how much it did in which time.
type rowWork func(t *testing.T, w way) (done float64, took time.Duration)

func benchRows() []benchRow {
	noop := func(n int) rowWork {
		return func(t *testing.T, w way) (float64, time.Duration) { return noops(t, w.imap, w.users[0], n) }
	}
	smtp := func(one bool) rowWork {
		return func(t *testing.T, w way) (float64, time.Duration) { return smtps(t, w.smtp, w.users[2], one) }
	}
	return []benchRow{
		{"NOOP, 1 connection /s", noop(1)},
		{"NOOP, 20 connections /s", noop(20)},
		{"mixed commands, 20 connections /s", func(t *testing.T, w way) (float64, time.Duration) {
			return mixed(t, w.imap, w.users)
		}},
		{"login + logout /s", func(t *testing.T, w way) (float64, time.Duration) {
			return logins(t, w.imap, w.users[0])
		}},
		{"bulk FETCH MB/s", func(t *testing.T, w way) (float64, time.Duration) {
			return bulk(t, w.imap, w.users[0], false)
		}},
		{"bulk FETCH over TLS MB/s", func(t *testing.T, w way) (float64, time.Duration) {
			return bulk(t, w.imapTLS, w.users[0], true)
		}},
		{"APPEND 4 kB /s", func(t *testing.T, w way) (float64, time.Duration) {
			return appends(t, w.imap, w.users[1])
		}},
		{"SMTP 4 kB, one message a session /s", smtp(false)},
		{"SMTP 4 kB, one session /s", smtp(true)},
		{"submission with AUTH /s", func(t *testing.T, w way) (float64, time.Duration) {
			return submits(t, w.submit, w.users[3])
		}},
	}
}

// bench is a site with the ways to it.
type bench struct {
	s         *site.Site
	dir       string
	cert, key string
	boxes     []*site.Box
	ways      []way
}

const benchUsers = 20 // of a way

// TestBench prints the figures of `make bench`. It asserts none.
func TestBench(t *testing.T) {
	which := os.Getenv("UNDERSTUDY_BENCH") // make bench; a regular expression picks rows
	if which == "" {
		return
	}
	before := os.Getenv("UNDERSTUDY_BEFORE")
	var b *bench
	if before == "" {
		b = newBench(t, benchUsers)
		b.box(t, thisBox, binary, b.s.Users)
		b.ways = append(b.ways, nginx(t, b.s, b.dir, b.cert, b.key), haproxy(t, b.s, b.dir, b.cert, b.key))
	} else {
		// Each has accounts of its own: what one does, the other's mirror has no work with.
		b = newBench(t, 3*benchUsers)
		b.box(t, thisBox, binary, b.s.Users[benchUsers:2*benchUsers])
		b.box(t, beforeBox, before, b.s.Users[2*benchUsers:])
	}
	for i := range b.ways {
		if w := &b.ways[i]; w.users == nil {
			w.users = b.s.Users[:benchUsers]
		}
	}
	for _, row := range benchRows() {
		if which == "1" || which != "copy" && regexp.MustCompile(which).MatchString(row.name) {
			b.row(t, row)
		}
	}
	for _, x := range b.boxes {
		x.Kill()
	}
	if which == "1" || which == "copy" {
		firstCopy(t, before)
	}
}

// newBench starts a site, and knows the direct way.
func newBench(t *testing.T, users int) *bench {
	b := &bench{s: newSite(t, users), dir: t.TempDir()}
	b.cert, b.key = certificate(t, b.dir, "site", 1, "mail.example.test")
	for i := 0; i < users; i += benchUsers {
		fillBench(t, b.s, b.s.Users[i], 2000)
	}
	b.ways = []way{{name: "direct", imap: direct(b.s), smtp: local(b.s.SMTPPort), submit: local(b.s.SubmissionPort)}}
	return b
}

// box adds the way through a binary.
func (b *bench) box(t *testing.T, name, binary string, users []string) {
	t.Helper()
	tlsPort := must(site.FreePort())(t)
	x := newBoxOf(t, binary, b.s,
		map[string]string{"certificate": fmt.Sprintf("[{cert=%q, key=%q}]", b.cert, b.key), "log_level": `"warn"`,
			"accounts.list": fmt.Sprintf(`["%s"]`, strings.Join(users, `","`)),
			"listen.imaps":  fmt.Sprintf("%q", local(tlsPort)), "failover.mode": `"advise"`,
			"production.client_id": "false", "production.xclient": "false", "mirror.sweep": `"0s"`})
	waitPhase(t, x, "protecting")
	b.boxes = append(b.boxes, x)
	b.ways = append(b.ways, way{name, x.IMAP, local(tlsPort), x.SMTP, x.Submission, users, x.Pid()})
}

// row measures one row and prints it. Every other round goes through the ways in
// the other order.
func (b *bench) row(t *testing.T, row benchRow) {
	t.Helper()
	got := make([]column, len(b.ways))
	n := rounds
	if os.Getenv("UNDERSTUDY_BEFORE") != "" {
		n = 2*rounds + 1
	}
	for round := range n {
		for k := range b.ways {
			i := k
			if round%2 == 1 {
				i = len(b.ways) - 1 - k
			}
			got[i] = append(got[i], b.ways[i].measured(t, row.run))
		}
	}
	printRow(row.name, b.ways, got)
}

func fillBench(t *testing.T, s *site.Site, u string, n int) {
	t.Helper()
	c := dial(t, direct(s), u)
	var tags []string
	for i := range n {
		tags = append(tags,
			must(c.SendAppend(imapc.Appending{Mailbox: "INBOX", Flags: []string{`\Seen`},
				Body: message(fmt.Sprint("b", i), 2000+i%100*80)}))(t))
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

// calls runs f in n workers for a while and counts calls.
func calls(t *testing.T, n int, worker func(i int) (f func() error, stop func())) (done float64, took time.Duration) {
	t.Helper()
	var wg sync.WaitGroup
	var made atomic.Int64
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
				made.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(made.Load()), time.Since(start)
}

func noops(t *testing.T, addr, u string, n int) (done float64, took time.Duration) {
	return calls(t, n, func(int) (func() error, func()) {
		c := must(site.Dial(t.Context(), addr, u))(t)
		return func() error { _, err := c.Do("NOOP", nil); return err }, c.Close
	})
}

func mixed(t *testing.T, addr string, users []string) (done float64, took time.Duration) {
	return calls(t, 20, func(i int) (func() error, func()) {
		c := must(site.Dial(t.Context(), addr, users[i%len(users)]))(t)
		if _, err := c.Select("INBOX", false); err != nil {
			t.Fatal(err)
		}
		cmds := []string{"NOOP", "UID FETCH 1:20 (FLAGS)", "UID SEARCH ALL", `STATUS INBOX (MESSAGES UNSEEN)`,
			`UID STORE 1 +FLAGS (\Flagged)`, `UID STORE 1 -FLAGS (\Flagged)`, `LIST "" "*"`}
		k := 0
		return func() error { k++; _, err := c.Do(cmds[k%len(cmds)], nil); return err }, c.Close
	})
}

func logins(t *testing.T, addr, u string) (done float64, took time.Duration) {
	return calls(t, 4, func(int) (func() error, func()) {
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

func bulk(t *testing.T, addr, u string, secure bool) (done float64, took time.Duration) {
	if addr == "" {
		return 0, time.Second
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
		err := c.Fetch("1:*", "(UID BODY.PEEK[])", func(m imapc.Message) error { bytes += len(m.Body); return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	return float64(bytes) / 1e6, time.Since(start)
}

func appends(t *testing.T, addr, u string) (done float64, took time.Duration) {
	body := message("append", 4000)
	return calls(t, 1, func(int) (func() error, func()) {
		c := must(site.Dial(t.Context(), addr, u))(t)
		return func() error {
			_, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: body})
			return err
		}, c.Close
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

func smtps(t *testing.T, addr, u string, one bool) (done float64, took time.Duration) {
	text := strings.TrimSuffix(string(message("smtp", 4000)), "\r\n") + "\r\n."
	deliver := []string{"MAIL FROM:<x@other.test>", "RCPT TO:<" + u + ">", "DATA", text}
	return calls(t, 4, func(int) (func() error, func()) {
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

func submits(t *testing.T, addr, u string) (done float64, took time.Duration) {
	if addr == "" {
		return 0, time.Second
	}
	text := strings.TrimSuffix(string(message("submission", 4000)), "\r\n") + "\r\n."
	auth := "AUTH PLAIN " + plain(u)
	return calls(t, 4, func(int) (func() error, func()) {
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
	return way{name: "nginx", imap: local(p[1]), imapTLS: local(p[2]), smtp: local(p[3])}
}

func haproxy(t *testing.T, s *site.Site, dir, cert, key string) way {
	p := ports(t, 4)
	both := append(must(os.ReadFile(cert))(t), must(os.ReadFile(key))(t)...)
	pem := filepath.Join(dir, "both.pem")
	if err := os.WriteFile(pem, both, 0o600); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("global\n maxconn 4000\ndefaults\n mode tcp\n"+
		" timeout connect 5s\n timeout client 60s\n timeout server 60s\n"+
		"listen imap\n bind 127.0.0.1:%d\n server a 127.0.0.1:%d\n"+
		"listen imaps\n bind 127.0.0.1:%d ssl crt %s\n server a 127.0.0.1:%d\n"+
		"listen smtp\n bind 127.0.0.1:%d\n server a 127.0.0.1:%d\n"+
		"listen sub\n bind 127.0.0.1:%d\n server a 127.0.0.1:%d\n",
		p[0], s.IMAPPort, p[1], pem, s.IMAPPort, p[2], s.SMTPPort, p[3], s.SubmissionPort)
	path := filepath.Join(dir, "haproxy.cfg")
	peer(t, conf, path, "haproxy", "-f", path)
	for _, q := range p {
		listening(t, local(q))
	}
	return way{name: "haproxy", imap: local(p[0]), imapTLS: local(p[1]), smtp: local(p[2]), submit: local(p[3])}
}
