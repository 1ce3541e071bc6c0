package site

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy/console/config"
)

func TestFingerprintDiff(t *testing.T) {
	f := Fingerprint{Lines: []string{"a", "b", "c"}}
	if d := f.Diff(Fingerprint{Lines: []string{"c", "b", "a"}}); d != "" {
		t.Errorf("equal ones differ: %s", d)
	}
	if d := f.Diff(Fingerprint{Lines: []string{"b", "d"}}); d != "- a\n- c\n+ d" {
		t.Errorf("%q", d)
	}
	var many []string
	for i := range 60 {
		many = append(many, strings.Repeat("x", i+1))
	}
	if d := f.Diff(Fingerprint{Lines: many}); !strings.HasSuffix(d, "… and 23 more") || strings.Count(d, "\n") != 40 {
		t.Errorf("%q", d)
	}
	if f.String() != "a\nb\nc" {
		t.Errorf("%q", f)
	}
}

// The configuration that a site writes is of what it was told, and no template has a
// place that nothing fills.
func TestConfiguration(t *testing.T) {
	s := &Site{Dir: t.TempDir(), Users: []string{"a@example.test", "b@example.test"}, Format: "sdbox",
		Aliases: map[string]string{"all@example.test": "a@example.test, b@example.test"}, IMAPPort: 1143,
		SMTPPort:       1025,
		SubmissionPort: 1587, LMTPPort: 1024}
	if err := os.Mkdir(filepath.Join(s.Dir, "pf"), 0o700); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(s.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "{{") || strings.Contains(string(b), "<no value>") {
			t.Errorf("%s: %s", name, b)
		}
		return string(b)
	}
	has := func(name string, want ...string) {
		t.Helper()
		lines := strings.Split(read(name), "\n")
		for i, l := range lines {
			lines[i] = strings.TrimSpace(l)
		}
		for _, w := range want {
			if !slices.Contains(lines, w) {
				t.Errorf("%s has no line %q", name, w)
			}
		}
	}
	if err := s.write(); err != nil {
		t.Fatal(err)
	}
	has("users.pw", "a@example.test:pw-a@example.test", "b@example.test:pw-b@example.test")
	has("master.pw", MasterUser+":"+MasterPassword)
	has("pf/aliases", "all@example.test a@example.test, b@example.test")
	has("pf/boxes", "a@example.test x", "b@example.test x")
	has("dovecot.conf", "port = 1143", "port = 1024", "ssl = no", "listen = 127.0.0.1",
		"mail_max_userip_connections = 200")
	has("pf/master.cf", "127.0.0.1:1025 inet n - n - - smtpd", "127.0.0.1:1587 inet n - n - - smtpd")
	has("pf/main.cf", "virtual_transport = lmtp:inet:127.0.0.1:1024", "inet_interfaces = 127.0.0.1")

	if err := s.UseTLS("/c.pem", "/k.pem"); err != nil {
		t.Fatal(err)
	}
	has("dovecot.conf", "ssl = required", "ssl_cert = </c.pem", "ssl_key = </k.pem")
	has("pf/main.cf", "smtpd_tls_security_level = encrypt", "smtpd_tls_cert_file = /c.pem")

	if err := s.Serve(700); err != nil {
		t.Fatal(err)
	}
	has("dovecot.conf", "mail_max_userip_connections = 700", "process_limit = 700")

	if err := s.Move(nil, "10.0.0.1", "fd00::1"); err != nil {
		t.Fatal(err)
	}
	has("dovecot.conf", "listen = 127.0.0.1, 10.0.0.1, fd00::1", "port = 143")
	has("pf/master.cf", "127.0.0.1:25 inet n - n - - smtpd", "[fd00::1]:587 inet n - n - - smtpd")
	has("pf/main.cf", "inet_interfaces = all")
}

// What a box's settings are written as can be read by the real configuration; a test's
// settings are over the lab's.
func TestBoxSettings(t *testing.T) {
	s := &Site{Dir: t.TempDir(), Users: []string{"a@example.test"}, IMAPPort: 1143, SMTPPort: 1025,
		SubmissionPort: 1587}
	dir := filepath.Join(t.TempDir(), "box")
	b, err := NewBox(dir, "none", s, map[string]string{"failover.mode": q("confirm"), "hostname": q("x.example.test")})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(b.Config())
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if c.Failover.Mode != "confirm" || c.Hostname != "x.example.test" || c.Data != filepath.Join(dir, "data") ||
		c.Production.IMAP != "127.0.0.1:1143" || c.Listen.IMAP != b.IMAP || !c.Listen.PlainLogin ||
		!slices.Equal(c.Accounts.List, s.Users) || c.Master.User != MasterUser {
		t.Errorf("%+v", c)
	}
	if b.IMAP == b.SMTP || b.SMTP == b.Submission {
		t.Errorf("ports are shared: %s %s %s", b.IMAP, b.SMTP, b.Submission)
	}
}
