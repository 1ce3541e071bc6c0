// Package site runs a real mail site for tests and benchmarks: Dovecot and
// Postfix from Debian's packages, with their own configuration, on loopback
// ports of their own. It needs root, since both drop privileges by themselves.
package site

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"
)

// Domain is the mail domain of every site.
const Domain = "example.test"

// Credentials that a site knows beside its users.
const (
	MasterUser     = "understudy"
	MasterPassword = "master-secret"
)

// Host is where a site runs, if not on this machine's loopback.
type Host interface {
	Start(c *exec.Cmd) error
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

// Site is one production server.
//
// Large: its fields are what the templates of both daemons' configuration are filled
// with, and it has a method for each thing that a test does to a server.
type Site struct {
	Host                  Host     // nil: this machine
	Addrs                 []string // of Host, that it listens on beside loopback
	Sessions              int      // that are served at a time; 0: as few as most tests need
	Dir                   string
	IMAPPort, SMTPPort    int
	SubmissionPort        int
	LMTPPort              int
	Users                 []string // full addresses; the password is Password(user)
	Cert, Key             string   // set by UseTLS
	Format                string   // of mailboxes: sdbox, or what UNDERSTUDY_FORMAT says
	Aliases               map[string]string
	dovecot, postfix      *exec.Cmd
	checked               bool
	cyrus                 string // where it is unpacked, if it serves in Dovecot's place
	dovecotDone, postDone chan struct{}
}

// Password is a user's password.
func Password(user string) string { return "pw-" + user }

// New writes the configuration of a site with users into dir.
func New(dir string, users []string, aliases map[string]string) (*Site, error) {
	s := &Site{Dir: dir, Users: users, Aliases: aliases, Format: "sdbox"}
	if f := os.Getenv("UNDERSTUDY_FORMAT"); f != "" {
		s.Format = f
	}
	for _, p := range []*int{&s.IMAPPort, &s.SMTPPort, &s.SubmissionPort, &s.LMTPPort} {
		var err error
		if *p, err = FreePort(); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{"mail", "run", "state", "pf", "spool", "pfdata"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	// Both daemons work under users of their own below dir.
	for d := dir; d != "/" && d != "."; d = filepath.Dir(d) {
		if fi, err := os.Stat(d); err == nil && fi.Mode().Perm()&0o011 != 0o011 {
			if err := os.Chmod(d, fi.Mode().Perm()|0o055); err != nil {
				return nil, err
			}
		}
	}
	if err := chown(filepath.Join(dir, "mail"), "mail"); err != nil {
		return nil, err
	}
	if err := chown(filepath.Join(dir, "pfdata"), "postfix"); err != nil {
		return nil, err
	}
	return s, s.write()
}

// Move has the site run on a host of its own, on the standard ports of its
// addresses; call it before Start.
func (s *Site) Move(h Host, addrs ...string) error {
	s.Host, s.Addrs = h, addrs
	s.IMAPPort, s.SMTPPort, s.SubmissionPort, s.LMTPPort = 143, 25, 587, 24
	return s.write()
}

// Everywhere lists the addresses that Postfix listens on, as it writes them.
func (s *Site) Everywhere() []string {
	out := []string{"127.0.0.1"}
	for _, a := range s.Addrs {
		if strings.Contains(a, ":") {
			a = "[" + a + "]"
		}
		out = append(out, a)
	}
	return out
}

// Replacement is an empty server with the same users on the same ports.
func (s *Site) Replacement(dir string) (*Site, error) {
	n, err := New(dir, s.Users, s.Aliases)
	if err != nil {
		return nil, err
	}
	n.IMAPPort, n.SMTPPort, n.SubmissionPort, n.LMTPPort = s.IMAPPort, s.SMTPPort, s.SubmissionPort, s.LMTPPort
	return n, n.write()
}

// FreePort returns a loopback port that is free now, below those that the
// kernel gives to outgoing connections: a server that is started again must
// find its port free.
func FreePort() (int, error) {
	for range 100 {
		port := 12000 + rand.IntN(18000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		return port, l.Close()
	}
	return 0, errors.New("no free port")
}

func chown(path, user string) error {
	if out, err := exec.Command("chown", "-R", user, path).CombinedOutput(); err != nil {
		return fmt.Errorf("chown %s: %w: %s", user, err, out)
	}
	return nil
}

// Serve makes room for many sessions; call it before Start.
func (s *Site) Serve(sessions int) error {
	s.Sessions = sessions
	return s.write()
}

// UseTLS has both daemons demand TLS by STARTTLS; call it before Start.
func (s *Site) UseTLS(cert, key string) error {
	s.Cert, s.Key = cert, key
	return s.write()
}

const dovecotConf = `
base_dir = {{.Dir}}/run
state_dir = {{.Dir}}/state
log_path = {{.Dir}}/dovecot.log
protocols = imap lmtp
listen = 127.0.0.1{{range .Addrs}}, {{.}}{{end}}
{{if .Cert}}ssl = required
ssl_cert = <{{.Cert}}
ssl_key = <{{.Key}}
{{else}}ssl = no
{{end}}disable_plaintext_auth = no
auth_mechanisms = plain login
auth_username_format = %Lu
auth_master_user_separator = *
mail_location = {{.Format}}:{{.Dir}}/mail/%u{{if eq .Format "maildir"}}:LAYOUT=fs{{end}}
mail_uid = mail
mail_gid = mail
first_valid_uid = 1
mail_max_userip_connections = {{if .Sessions}}{{.Sessions}}{{else}}200{{end}}
imap_logout_format = body_count=%{fetch_body_count} body_bytes=%{fetch_body_bytes}
login_trusted_networks = 127.0.0.0/8
passdb {
  driver = passwd-file
  master = yes
  args = scheme=PLAIN {{.Dir}}/master.pw
}
passdb {
  driver = passwd-file
  args = scheme=PLAIN {{.Dir}}/users.pw
}
userdb {
  driver = static
  args = uid=mail gid=mail home={{.Dir}}/mail/%u/home allow_all_users=no
}
namespace inbox {
  inbox = yes
  separator = /
  mailbox Sent {
    special_use = \Sent
  }
  mailbox Trash {
    special_use = \Trash
  }
}
default_client_limit = {{if .Sessions}}40000{{else}}5000{{end}}
service imap-login {
  service_count = 0
  process_min_avail = 2
  client_limit = {{if .Sessions}}5000{{else}}2000{{end}}
  inet_listener imap {
    port = {{.IMAPPort}}
  }
  inet_listener imaps {
    port = 0
  }
}
service imap {
{{if .Sessions}}  client_limit = 50
  process_limit = {{.Sessions}}
{{else}}  service_count = 100
  process_limit = 2000
{{end}}}
service anvil {
  client_limit = {{if .Sessions}}40000{{else}}6000{{end}}
}
service auth {
  client_limit = {{if .Sessions}}40000{{else}}6000{{end}}
  unix_listener {{.Dir}}/spool/private/auth {
    mode = 0666
  }
}
service lmtp {
  inet_listener lmtp {
    address = 127.0.0.1
    port = {{.LMTPPort}}
  }
}
`

const mainCf = `
compatibility_level = 3.6
queue_directory = {{.Dir}}/spool
data_directory = {{.Dir}}/pfdata
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = mail.example.test
mydestination =
inet_interfaces = {{if .Addrs}}all
inet_protocols = all{{else}}127.0.0.1
inet_protocols = ipv4{{end}}
mynetworks = 127.0.0.99/32
maillog_file = {{.Dir}}/postfix.log
maillog_file_prefixes = /
virtual_mailbox_domains = example.test
virtual_mailbox_maps = texthash:{{.Dir}}/pf/boxes
virtual_alias_maps = texthash:{{.Dir}}/pf/aliases
virtual_transport = lmtp:inet:127.0.0.1:{{.LMTPPort}}
default_transport = smtp:[127.0.0.1]:9
relay_domains =
smtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination
smtpd_recipient_restrictions =
smtpd_sasl_type = dovecot
smtpd_sasl_path = private/auth
smtpd_peername_lookup = no
message_size_limit = 60000000
virtual_mailbox_limit = 0
smtpd_client_connection_count_limit = 0
{{if .Cert}}smtpd_tls_security_level = encrypt
smtpd_tls_cert_file = {{.Cert}}
smtpd_tls_key_file = {{.Key}}
{{end}}smtpd_authorized_xclient_hosts = 127.0.0.1
minimal_backoff_time = 1s
maximal_backoff_time = 2s
queue_run_delay = 1s
smtpd_error_sleep_time = 0
default_process_limit = {{if .Sessions}}400{{else}}100{{end}}
lmtp_destination_concurrency_limit = 20
alias_maps =
alias_database =
`

const masterCf = `
{{range .Everywhere}}{{.}}:{{$.SMTPPort}} inet n - n - - smtpd
{{.}}:{{$.SubmissionPort}} inet n - n - - smtpd
  -o smtpd_sasl_auth_enable=yes
  -o smtpd_relay_restrictions=permit_sasl_authenticated,reject
{{end}}pickup    unix n - n 60 1 pickup
cleanup   unix n - n - 0 cleanup
qmgr      unix n - n 1 1 qmgr
rewrite   unix - - n - - trivial-rewrite
bounce    unix - - n - 0 bounce
defer     unix - - n - 0 bounce
trace     unix - - n - 0 bounce
verify    unix - - n - 1 verify
flush     unix n - n 1000? 0 flush
proxymap  unix - - n - - proxymap
smtp      unix - - n - - smtp
error     unix - - n - - error
retry     unix - - n - - error
discard   unix - - n - - discard
lmtp      unix - - n - - lmtp
anvil     unix - - n - 1 anvil
tlsmgr    unix - - n 1000? 1 tlsmgr
scache    unix - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
`

func (s *Site) write() error {
	var users, boxes, aliases bytes.Buffer
	for _, u := range s.Users {
		fmt.Fprintf(&users, "%s:%s\n", u, Password(u))
		fmt.Fprintf(&boxes, "%s x\n", u)
	}
	for a, to := range s.Aliases {
		fmt.Fprintf(&aliases, "%s %s\n", a, to)
	}
	files := map[string]string{"users.pw": users.String(), "master.pw": MasterUser + ":" + MasterPassword + "\n",
		"pf/boxes": boxes.String(), "pf/aliases": aliases.String()}
	for name, text := range map[string]string{"dovecot.conf": dovecotConf, "pf/main.cf": mainCf,
		"pf/master.cf": masterCf} {
		t, err := template.New(name).Parse(text)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := t.Execute(&b, s); err != nil {
			return err
		}
		files[name] = b.String()
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Start starts both daemons and waits until they answer.
func (s *Site) Start(ctx context.Context) error {
	// Postfix first: it makes the folder of Dovecot's socket.
	if err := s.StartPostfix(ctx); err != nil {
		return err
	}
	return s.StartDovecot(ctx)
}

// StartPostfix starts Postfix.
func (s *Site) StartPostfix(ctx context.Context) error {
	if !s.checked {
		if out, err := exec.Command("postfix", "-c", filepath.Join(s.Dir, "pf"), "check").CombinedOutput(); err != nil {
			return fmt.Errorf("postfix check: %w: %s", err, out)
		}
		s.checked = true
	}
	_ = os.Remove(filepath.Join(s.Dir, "spool/pid/master.pid"))
	_ = os.Remove(filepath.Join(s.Dir, "pfdata/master.lock"))
	s.postfix = exec.Command("/usr/lib/postfix/sbin/master", "-c", filepath.Join(s.Dir, "pf"), "-d")
	s.postfix.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	done, err := s.start(s.postfix)
	if err != nil {
		return err
	}
	s.postDone = done
	return s.waitPort(ctx, s.SMTPPort, "220")
}

// StartDovecot starts Dovecot.
func (s *Site) StartDovecot(ctx context.Context) error {
	if s.cyrus != "" {
		return s.startCyrus(ctx)
	}
	_ = os.Remove(filepath.Join(s.Dir, "run/master.pid"))
	return s.serveIMAP(ctx, exec.Command("dovecot", "-F", "-c", filepath.Join(s.Dir, "dovecot.conf")))
}

func (s *Site) serveIMAP(ctx context.Context, c *exec.Cmd) error {
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	done, err := s.start(c)
	if err != nil {
		return err
	}
	s.dovecot, s.dovecotDone = c, done
	return s.waitPort(ctx, s.IMAPPort, "* OK")
}

func (s *Site) start(c *exec.Cmd) (chan struct{}, error) { return start(s.Host, c) }

func start(h Host, c *exec.Cmd) (chan struct{}, error) {
	run := c.Start
	if h != nil {
		run = func() error { return h.Start(c) }
	}
	if err := run(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	done := make(chan struct{})
	go func() { _ = c.Wait(); close(done) }()
	return done, nil
}

func (s *Site) waitPort(ctx context.Context, port int, greeting string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		conn, err := s.dial(ctx, fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			b := make([]byte, 64)
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, _ := conn.Read(b)
			_ = conn.Close()
			if strings.HasPrefix(string(b[:n]), greeting) {
				return nil
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("port %d did not answer in time (%v)", port, err)
		}
	}
}

func (s *Site) dial(ctx context.Context, addr string) (net.Conn, error) {
	if s.Host != nil {
		return s.Host.Dial(ctx, addr)
	}
	return (&net.Dialer{Timeout: 20 * time.Second}).DialContext(ctx, "tcp", addr)
}

// family returns a process and all its descendants.
func family(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range stats {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		i := bytes.LastIndexByte(b, ')')
		fields := strings.Fields(string(b[i+1:]))
		id, err1 := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		parent, err2 := strconv.Atoi(fields[1])
		if err1 == nil && err2 == nil {
			children[parent] = append(children[parent], id)
		}
	}
	out := []int{pid}
	for i := 0; i < len(out); i++ {
		out = append(out, children[out[i]]...)
	}
	sort.Ints(out)
	return out
}

func signalAll(c *exec.Cmd, sig syscall.Signal) {
	if c == nil || c.Process == nil {
		return
	}
	for _, pid := range family(c.Process.Pid) {
		_ = syscall.Kill(pid, sig)
	}
}

// Signal sends a signal to every process of both daemons.
func (s *Site) Signal(sig syscall.Signal) {
	signalAll(s.dovecot, sig)
	signalAll(s.postfix, sig)
}

// Kill ends every process of both daemons with SIGKILL.
func (s *Site) Kill() {
	s.KillDovecot()
	s.KillPostfix()
}

// Aim looks up all processes of both daemons now, and returns what ends them
// with SIGKILL at one blow. Kill has to be called afterwards.
func (s *Site) Aim() func() {
	all := append(family(s.dovecot.Process.Pid), family(s.postfix.Process.Pid)...)
	groups := []int{-s.dovecot.Process.Pid, -s.postfix.Process.Pid}
	return func() {
		for _, pid := range append(groups, all...) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// KillDovecot ends every process of Dovecot with SIGKILL.
func (s *Site) KillDovecot() { kill(&s.dovecot, s.dovecotDone) }

// KillPostfix ends every process of Postfix with SIGKILL.
func (s *Site) KillPostfix() { kill(&s.postfix, s.postDone) }

func kill(c **exec.Cmd, done chan struct{}) {
	if *c == nil {
		return
	}
	// The process group dies at once; what has left it is found by its parents,
	// which are listed first.
	all := family((*c).Process.Pid)
	_ = syscall.Kill(-(*c).Process.Pid, syscall.SIGKILL)
	for _, pid := range all {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-done
	*c = nil
}

// Stop ends both daemons.
func (s *Site) Stop() {
	for _, d := range []struct {
		c    *exec.Cmd
		done chan struct{}
	}{{s.dovecot, s.dovecotDone}, {s.postfix, s.postDone}} {
		if d.c == nil {
			continue
		}
		_ = d.c.Process.Signal(syscall.SIGTERM)
		select {
		case <-d.done:
		case <-time.After(3 * time.Second):
		}
	}
	s.Kill()
}

// Doveadm runs doveadm on the site.
func (s *Site) Doveadm(args ...string) (string, error) {
	cmd := exec.Command("doveadm", append([]string{"-c", filepath.Join(s.Dir, "dovecot.conf")}, args...)...)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	done, err := s.start(cmd)
	if err == nil {
		<-done
		if !cmd.ProcessState.Success() {
			err = errors.New(cmd.ProcessState.String())
		}
	}
	out := b.Bytes()
	if err != nil {
		err = fmt.Errorf("doveadm %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// SetPostfix sets a parameter of Postfix and has it read again.
func (s *Site) SetPostfix(t interface{ Fatal(...any) }, name, value string) {
	pf := filepath.Join(s.Dir, "pf")
	for _, args := range [][]string{{"postconf", "-c", pf, "-e", name + "=" + value}, {"postfix", "-c", pf, "reload"},
		{"postqueue", "-c", pf, "-f"}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil && args[0] != "postqueue" {
			t.Fatal(err, string(out))
		}
	}
}

// PostfixLog returns Postfix's log.
func (s *Site) PostfixLog() string {
	b, _ := os.ReadFile(filepath.Join(s.Dir, "postfix.log"))
	return string(b)
}

// Log returns Dovecot's log.
func (s *Site) Log() string {
	b, err := os.ReadFile(filepath.Join(s.Dir, "dovecot.log"))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	return string(b)
}
