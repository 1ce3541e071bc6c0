package site

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"understudy/console/api"
	"understudy/replica/imapc"
)

// Box is one Understudy, the real binary in its own process, before a site.
type Box struct {
	Dir                    string
	Binary                 string
	IMAP, SMTP, Submission string
	Settings               map[string]string    // "table.key" → value as in TOML, over the defaults of the lab
	Host                   Host                 // nil: this machine
	Attr                   *syscall.SysProcAttr // of its processes
	site                   *Site
	cmd                    *exec.Cmd
	done                   chan struct{}
	Client                 api.Client
}

// NewBox prepares an Understudy before s.
func NewBox(dir, binary string, s *Site, settings map[string]string) (*Box, error) {
	b := &Box{Dir: dir, Binary: binary, site: s}
	for _, p := range []*string{&b.IMAP, &b.SMTP, &b.Submission} {
		port, err := FreePort()
		if err != nil {
			return nil, err
		}
		*p = fmt.Sprintf("127.0.0.1:%d", port)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	b.Client = api.Client{Socket: filepath.Join(dir, "control.sock")}
	users := `["` + strings.Join(s.Users, `","`) + `"]`
	if len(s.Users) == 0 {
		users = "[]"
	}
	b.Settings = map[string]string{
		"data": q(data), "control": q(b.Client.Socket), "log_level": q("debug"), "hostname": q("mail.example.test"),
		"listen.imap": q(b.IMAP), "listen.smtp": q(b.SMTP), "listen.submission": q(b.Submission),
		"listen.plain_login":    "true",
		"production.imap":       q(fmt.Sprintf("127.0.0.1:%d", s.IMAPPort)),
		"production.smtp":       q(fmt.Sprintf("127.0.0.1:%d", s.SMTPPort)),
		"production.submission": q(fmt.Sprintf("127.0.0.1:%d", s.SubmissionPort)),
		"production.client_id":  fmt.Sprint(s.cyrus == ""), "production.xclient": "true",
		"master.user": q(MasterUser), "master.password": q(MasterPassword),
		"accounts.list": users, "accounts.domains": `["` + Domain + `"]`,
		"mirror.sweep": q("2s"), "mirror.idle": "50",
		"failover.mode": q("automatic"), "failover.hold": q("200ms"), "failover.hold_silent": q("2s"),
		"failover.probe":         q("200ms"),
		"failover.return_probes": "3", "failover.cooldown": q("0s"), "failover.owed_after": q("20s"),
	}
	for k, v := range settings {
		b.Settings[k] = v
	}
	return b, b.write()
}

func q(s string) string { return fmt.Sprintf("%q", s) }

func (b *Box) write() error {
	tables := map[string][]string{}
	for k, v := range b.Settings {
		t, key, ok := strings.Cut(k, ".")
		if !ok {
			t, key = "", k
		}
		tables[t] = append(tables[t], key+" = "+v)
	}
	text := strings.Join(tables[""], "\n") + "\n"
	for t, lines := range tables {
		if t != "" {
			text += "[" + t + "]\n" + strings.Join(lines, "\n") + "\n"
		}
	}
	return os.WriteFile(b.Config(), []byte(text), 0o600)
}

// Config is the path of the settings file.
func (b *Box) Config() string { return filepath.Join(b.Dir, "understudy.toml") }

// Start starts the process and waits for its listeners.
func (b *Box) Start(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(b.Dir, "understudy.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	b.cmd = exec.Command(b.Binary, "serve", "--config", b.Config())
	b.cmd.Stdout, b.cmd.Stderr, b.cmd.SysProcAttr = log, log, b.Attr
	if b.done, err = start(b.Host, b.cmd); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		if _, err := b.Status(ctx); err == nil {
			return nil
		}
		select {
		case <-b.done:
			return fmt.Errorf("understudy ended at its start: %s", b.Log())
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Pid is the process's number.
func (b *Box) Pid() int { return b.cmd.Process.Pid }

// Kill ends the process with SIGKILL.
func (b *Box) Kill() { kill(&b.cmd, b.done) }

// Stop ends the process as an operator would.
func (b *Box) Stop() error {
	if b.cmd == nil {
		return nil
	}
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-b.done:
	case <-time.After(15 * time.Second):
		b.Kill()
		return errors.New("understudy did not end within 15 s of SIGTERM")
	}
	code := b.cmd.ProcessState.ExitCode()
	b.cmd = nil
	if code != 0 {
		return fmt.Errorf("understudy ended with code %d", code)
	}
	return nil
}

// Log returns what the process logged.
func (b *Box) Log() string {
	t, _ := os.ReadFile(filepath.Join(b.Dir, "understudy.log"))
	return string(t)
}

// Status asks the process.
func (b *Box) Status(ctx context.Context) (api.Status, error) {
	var s api.Status
	return s, b.Client.Get(ctx, "/v1/status", &s)
}

// Replica is the fingerprint of what the replica holds of an account.
func (b *Box) Replica(ctx context.Context, account string) (Fingerprint, error) {
	var f Fingerprint
	return f, b.Client.Get(ctx, "/v1/fingerprint?"+url.Values{"account": {account}}.Encode(), &f.Lines)
}

// WaitPhase waits until the failover is in a phase.
func (b *Box) WaitPhase(ctx context.Context, limit time.Duration, phases ...string) (api.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last api.Status
	for {
		s, err := b.Status(ctx)
		if err == nil {
			last = s
			for _, p := range phases {
				if s.Phase == p {
					return s, nil
				}
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t, _ := json.Marshal(last)
			return last, fmt.Errorf("not %s within %s: %s", strings.Join(phases, " or "), limit, t)
		}
	}
}

// Run runs a command of the binary.
func (b *Box) Run(ctx context.Context, args ...string) (string, error) {
	args = append(args[:1:1], append([]string{"--config", b.Config()}, args[1:]...)...)
	cmd := exec.CommandContext(ctx, b.Binary, args...)
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = &text, &text, b.Attr
	done, err := start(b.Host, cmd)
	if err == nil {
		<-done
		if !cmd.ProcessState.Success() {
			err = errors.New(cmd.ProcessState.String())
		}
	}
	out := text.Bytes()
	if err != nil {
		err = fmt.Errorf("understudy %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// Dial opens an IMAP connection and logs in with the user's own password.
func Dial(ctx context.Context, addr, user string) (*imapc.Conn, error) {
	return DialFrom(ctx, nil, addr, user)
}

// DialFrom is Dial from a host.
func DialFrom(ctx context.Context, h Host, addr, user string) (*imapc.Conn, error) {
	conn, err := (&Site{Host: h}).dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	c, err := imapc.New(ctx, conn, imapc.Options{})
	if err != nil {
		return nil, err
	}
	if err := c.Login(user, "", Password(user)); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Direct opens a connection to production itself.
func (s *Site) Direct(ctx context.Context, user string) (*imapc.Conn, error) {
	return DialFrom(ctx, s.Host, fmt.Sprintf("127.0.0.1:%d", s.IMAPPort), user)
}
