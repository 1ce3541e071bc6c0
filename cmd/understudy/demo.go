package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"understudy/cmd/box"
	"understudy/console/config"
	"understudy/failover"
	"understudy/lab/load"
	"understudy/replica/imapc"
	"understudy/replica/row"
)

// demonstration is one run of the demo: a mail server in its own process, an
// Understudy before it, clients at work, and the ledger of what they were told.
type demonstration struct {
	out    io.Writer
	dir    string
	site   demoSite
	server *exec.Cmd
	box    *box.Box
	imap   string // addresses of the Understudy
	smtp   string
	ledger load.Ledger
	start  time.Time
	report []string
	live   bool // a terminal: progress is shown in place
	work   sync.WaitGroup
}

var errDemo = errors.New("the demonstration failed")

func demo(e env) error {
	fs := e.flags("demo", "")
	stay := fs.Bool("stay", false, "after the outage began keep everything up until Ctrl-C, for your own mail client")
	keep := fs.Bool("keep", false, "keep the directory with both stores")
	if err := e.parse(fs, 0); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "understudy-demo-")
	if err != nil {
		return err
	}
	d := &demonstration{out: e.out, dir: dir, start: time.Now()}
	if f, ok := e.out.(*os.File); ok {
		d.live = term.IsTerminal(int(f.Fd()))
	}
	defer func() {
		d.killServer()
		if *keep {
			fmt.Fprintf(e.out, "kept: %s\n", dir)
		} else {
			_ = os.RemoveAll(dir)
		}
	}()
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.ctx))
	defer d.work.Wait()
	defer cancel()
	if *stay {
		return d.run(ctx, e.ctx.Done())
	}
	defer context.AfterFunc(e.ctx, cancel)()
	return d.run(ctx, nil)
}

func (d *demonstration) say(format string, a ...any) {
	fmt.Fprintf(d.out, "%6.1f s  %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, a...))
}

func (d *demonstration) note(name, format string, a ...any) {
	d.report = append(d.report, fmt.Sprintf("  %-52s %s", name, fmt.Sprintf(format, a...)))
}

// run is the story; each step is a function that ends when its state is reached.
// stay is when a visitor has seen enough of the outage, nil for no visitor.
func (d *demonstration) run(ctx context.Context, stay <-chan struct{}) error {
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"a mail server starts: 5 users, 400 messages", d.setUp},
		{"Understudy stands before it and copies everything", d.protect},
		{"clients work through it; then production is killed with -9", d.outage},
	} {
		d.say("%s", step.what)
		if err := step.do(ctx); err != nil {
			return err
		}
	}
	if stay != nil {
		d.invite(stay)
	}
	d.say("production comes back; the outage's changes are copied back, the traffic is handed over")
	if err := d.comeBack(ctx); err != nil {
		return err
	}
	d.say("the clients' ledger is compared with production's store")
	return d.judge(ctx)
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String(), nil
}

func (d *demonstration) password(user string) string { return d.site.Users[user] }

func (d *demonstration) users() []string {
	var out []string
	for _, n := range []string{"ada", "ben", "cleo", "dan", "eve"} {
		out = append(out, n+"@"+d.site.Domain)
	}
	return out
}

func (d *demonstration) setUp(ctx context.Context) error {
	d.site = demoSite{Dir: filepath.Join(d.dir, "production"), Domain: "demo.test", Users: map[string]string{},
		Master: "understudy", MasterPassword: "demo-master"}
	for _, u := range d.users() {
		d.site.Users[u] = "demo"
	}
	for _, p := range []*string{&d.site.IMAP, &d.site.SMTP, &d.imap, &d.smtp} {
		var err error
		if *p, err = freeAddr(); err != nil {
			return err
		}
	}
	b, err := json.Marshal(d.site)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.dir, "site.json"), b, 0o600); err != nil {
		return err
	}
	if err := d.startServer(ctx); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for _, u := range d.users() {
		c, err := d.client(ctx, d.site.IMAP, u)
		if err != nil {
			return err
		}
		for _, name := range []string{"Sent", "Archive", "Archive/2025", "Projekte &APw-ber"} {
			if _, err := c.Do("CREATE "+c.Name(name), nil); err != nil {
				return err
			}
		}
		for i := range 80 {
			name := []string{"INBOX", "INBOX", "Archive/2025", "Sent"}[i%4]
			a := imapc.Appending{Mailbox: name, Body: sample(rng, i, u), Flags: []string{`\Seen`},
				Date: time.Now().Add(-time.Duration(i) * time.Hour)}
			if _, _, err := c.Append(a); err != nil {
				return err
			}
		}
		c.Logout()
	}
	return nil
}

// sample makes a message of one of several shapes.
func sample(rng *rand.Rand, i int, to string) []byte {
	id := fmt.Sprintf("old.%d.%s", i, to)
	if i%8 != 0 {
		return load.Message(rng, id, to)
	}
	b := fmt.Appendf(nil, "From: Office <office@other.test>\r\nTo: <%s>\r\nSubject: Report %d\r\nMessage-ID: <%s>\r\n"+
		"Date: Mon, 02 Nov 2026 10:00:00 +0100\r\n"+
		"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=\"=_b\"\r\n\r\n"+
		"--=_b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p>Please find it attached.</p>\r\n"+
		"--=_b\r\nContent-Type: application/pdf; name=report.pdf\r\nContent-Transfer-Encoding: base64\r\n"+
		"Content-Disposition: attachment; filename=report.pdf\r\n\r\n", to, i, id)
	line := make([]byte, 54)
	for range 200 + rng.IntN(2000) {
		for j := range line {
			line[j] = byte(rng.Uint32())
		}
		b = append(b, fmt.Sprintf("%x\r\n", line[:38])...)
	}
	return append(b, "--=_b--\r\n"...)
}

func (d *demonstration) startServer(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	d.server = exec.Command(self, "server", "--site", filepath.Join(d.dir, "site.json"))
	d.server.Stderr = os.Stderr
	d.server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.server.Start(); err != nil {
		return fmt.Errorf("start the mail server: %w", err)
	}
	return d.until(ctx, 20*time.Second, "the mail server answers", func() bool {
		c, err := net.DialTimeout("tcp", d.site.SMTP, time.Second)
		if err == nil {
			_ = c.Close()
			c, err = net.DialTimeout("tcp", d.site.IMAP, time.Second)
		}
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

func (d *demonstration) killServer() {
	if d.server != nil {
		_ = d.server.Process.Kill()
		_ = d.server.Wait()
		d.server = nil
	}
}

// until waits for a condition.
func (d *demonstration) until(ctx context.Context, limit time.Duration, what string, ok func() bool) error {
	end := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(end) {
			return fmt.Errorf("%w: %s: not within %s", errDemo, what, limit)
		}
		if d.live && d.box != nil {
			st := d.box.State()
			fmt.Fprintf(d.out, "\r          %-13s %6d good answers  %d held \x1b[K", st.Phase, d.ledger.Answers.Load(),
				d.box.Store().HeldCount())
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if d.live && d.box != nil {
		fmt.Fprint(d.out, "\r\x1b[K")
	}
	return nil
}

// duties waits for a state in which these are the duties.
func (d *demonstration) duties(ctx context.Context, limit time.Duration, what string,
	ok func(failover.Duties) bool) error {
	return d.until(ctx, limit, what, func() bool { return ok(d.box.State().Duties()) })
}

// The states that the story waits for.
func protecting(d failover.Duties) bool { return d.Complete && d.Accounts == failover.Production }
func serving(d failover.Duties) bool    { return d.SMTP == failover.Standby }
func returned(d failover.Duties) bool {
	return d.GiveBack == failover.GiveReturned && d.NoHandback == ""
}

func (d *demonstration) client(ctx context.Context, addr, user string) (*imapc.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c, err := imapc.New(ctx, conn, imapc.Options{})
	if err != nil {
		return nil, err
	}
	return c, c.Login(user, "", d.password(user))
}

func (d *demonstration) protect(ctx context.Context) error {
	cfg := config.Default()
	cfg.Data = filepath.Join(d.dir, "understudy")
	cfg.Listen.IMAP, cfg.Listen.SMTP, cfg.Listen.PlainLogin = d.imap, d.smtp, true
	cfg.Production.IMAP, cfg.Production.SMTP = d.site.IMAP, d.site.SMTP
	cfg.Master.User, cfg.Master.Password = d.site.Master, d.site.MasterPassword
	cfg.Accounts.List, cfg.Accounts.Domains = d.users(), []string{d.site.Domain}
	cfg.Failover.Mode, cfg.Failover.Cooldown = "automatic", 0
	cfg.Failover.Hold, cfg.Failover.Probe = config.Duration(300*time.Millisecond), config.Duration(200*time.Millisecond)
	cfg.Failover.ReturnProbes = 3
	var err error
	if d.box, err = box.New(box.Options{Config: cfg, Log: newLog("error", io.Discard)}); err != nil {
		return err
	}
	ended := make(chan error, 1)
	d.work.Go(func() {
		err := d.box.Run(ctx)
		ended <- errors.Join(err, d.box.Close())
	})
	begin := time.Now()
	if err := d.duties(ctx, 30*time.Second, "first copy", protecting); err != nil {
		select {
		case rerr := <-ended:
			return errors.Join(err, rerr)
		default:
			return err
		}
	}
	n, bytes := d.box.Store().Blobs.Stats()
	d.note("first copy", "%d messages, %d KiB stored, %s", n, bytes>>10, time.Since(begin).Round(time.Millisecond))
	return nil
}

// outage has clients work, kills production under their hands, and goes on.
func (d *demonstration) outage(ctx context.Context) error {
	work, stop := context.WithCancel(ctx)
	var clients sync.WaitGroup
	clients.Go(func() {
		load.Run(work, load.Options{IMAP: d.imap, SMTP: d.smtp, Users: d.users(), Password: d.password,
			Seed: uint64(time.Now().UnixNano()), Tag: "demo", Pause: 15 * time.Millisecond, Folder: "Archive",
			Deletes: true}, &d.ledger)
	})
	defer func() { stop(); clients.Wait() }()
	select {
	case <-time.After(3 * time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	before := d.ledger.Answers.Load()
	killed := time.Now()
	d.killServer()
	if err := d.duties(ctx, 20*time.Second, "takeover", serving); err != nil {
		return err
	}
	d.say("the standby answers, on the same ports, %s after the kill", time.Since(killed).Round(time.Millisecond))
	c, err := d.client(ctx, d.imap, d.users()[0])
	if err != nil {
		return fmt.Errorf("%w: log in during the outage: %w", errDemo, err)
	}
	sel, err := c.Select("INBOX", true)
	if err != nil {
		return err
	}
	c.Logout()
	d.note("kill -9 to the first login and SELECT on the standby", "%s (%d messages there)",
		time.Since(killed).Round(time.Millisecond), sel.Exists)
	select {
	case <-time.After(4 * time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	during := d.ledger.Answers.Load() - before
	d.note("good answers before and during the outage", "%d, then %d", before, during)
	if during == 0 {
		return fmt.Errorf("%w: no client got an answer during the outage", errDemo)
	}
	return nil
}

// invite lets a person look.
func (d *demonstration) invite(stay <-chan struct{}) {
	fmt.Fprintf(d.out, "\nProduction is dead; the standby serves. Try your own mail client, without TLS:\n"+
		"  IMAP %s, SMTP %s, user %s, password demo\nCtrl-C goes on.\n\n", d.imap, d.smtp, d.users()[0])
	<-stay
}

func (d *demonstration) comeBack(ctx context.Context) error {
	begin := time.Now()
	if err := d.startServer(ctx); err != nil {
		return err
	}
	if err := d.duties(ctx, 20*time.Second, "production returns", returned); err != nil {
		return err
	}
	d.box.Tell(failover.Happened{Event: failover.Handback, Detail: "by the demonstration"})
	var blocked time.Time
	err := d.until(ctx, 60*time.Second, "hand-back", func() bool {
		st := d.box.State()
		if st.Phase == failover.HandingBack && blocked.IsZero() {
			blocked = time.Now()
		}
		return protecting(st.Duties())
	})
	if err != nil {
		return err
	}
	r := d.box.CopyBack()
	d.note("copy-back", "%d appended, %d deleted, %d flags set, %d late doubles dropped", r.Appended, r.Deleted,
		r.Flagged, r.Dropped)
	d.note("accounts were blocked for hand-back, all together", "%s", time.Since(blocked).Round(time.Millisecond))
	d.note("production back to production answering", "%s", time.Since(begin).Round(time.Millisecond))
	for _, n := range r.Notes {
		d.note("note", "%s", n)
	}
	return nil
}

// judge compares the ledger with production's store, and that with what is seen
// through the box.
func (d *demonstration) judge(ctx context.Context) error {
	stores := map[string]map[string]load.Found{}
	old, same := 0, true
	for _, u := range d.users() {
		there, err := d.look(ctx, d.site.IMAP, u)
		if err != nil {
			return err
		}
		through, err := d.look(ctx, d.imap, u)
		if err != nil {
			return err
		}
		stores[u] = there
		for id, f := range there {
			same = same && through[id].Count == f.Count && through[id].Flagged == f.Flagged
			if len(id) > 4 && id[:4] == "old." {
				old += f.Count
			}
		}
		same = same && len(through) == len(there)
	}
	v := d.ledger.Judge(stores)
	d.note("messages that were there before", "%d of 400", old)
	d.note("ledger: confirmed by OK or 250 / unanswered at the kill", "%d / %d", v.Confirmed, v.Unanswered)
	d.note("lost / doubled / undone", "%d / %d / %d", len(v.Lost), len(v.Doubled), len(v.Undone))
	d.note("longest time a client waited for a good answer", "%s", d.ledger.LongestGap().Round(time.Millisecond))
	d.note("production and the view through the box agree", "%v", same)
	fmt.Fprintln(d.out, "\nReport")
	for _, l := range d.report {
		fmt.Fprintln(d.out, l)
	}
	if !v.OK() || old != 400 || !same || v.Confirmed == 0 {
		return fmt.Errorf("%w: %s", errDemo, v)
	}
	for _, a := range d.box.Store().Accounts() {
		if a.Home != row.Production {
			return fmt.Errorf("%w: %s was not handed back", errDemo, a.Name)
		}
	}
	fmt.Fprintln(d.out, "\nNothing was lost and nothing was doubled.")
	return nil
}

func (d *demonstration) look(ctx context.Context, addr, user string) (map[string]load.Found, error) {
	c, err := d.client(ctx, addr, user)
	if err != nil {
		return nil, err
	}
	defer c.Logout()
	return load.Look(c)
}
