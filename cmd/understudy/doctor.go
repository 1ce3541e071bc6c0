package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"understudy/cmd/box"
	"understudy/console/config"
	"understudy/failover/imapd"
	"understudy/proxy/inline"
)

// finding is one line of the doctor's report.
type finding struct {
	Level  string `json:"level"` // ok, note, warning or error
	Topic  string `json:"topic"`
	Text   string `json:"text"`
	Remedy string `json:"remedy,omitempty"`
}

type examination struct{ found []finding }

func (x *examination) add(level, topic, remedy, format string, a ...any) {
	x.found = append(x.found, finding{level, topic, fmt.Sprintf(format, a...), remedy})
}

var errSick = errors.New("something must be mended before use")

func doctor(e env) error {
	fs := e.flags("doctor", "")
	path := configFlag(fs)
	asJSON := fs.Bool("json", false, "print JSON")
	account := fs.String("account", "", "account to open as master; empty: the first of accounts.list")
	if err := e.parse(fs, 0); err != nil {
		return err
	}
	cfg, err := readConfig(*path)
	if err != nil {
		return err
	}
	x := &examination{}
	x.settings(cfg)
	x.disk(cfg)
	x.certificates(cfg)
	x.files(cfg)
	x.wire(e.ctx, cfg)
	x.production(e.ctx, cfg, *account)
	x.add("note", "coverage", "",
		"calendars, contacts, ActiveSync, MAPI, ManageSieve and POP3 are not covered in an outage")
	if *asJSON {
		if err := printJSON(e.out, x.found); err != nil {
			return err
		}
	} else {
		for _, f := range x.found {
			fmt.Fprintf(e.out, "%-8s %-13s %s\n", f.Level, f.Topic, f.Text)
			if f.Remedy != "" {
				fmt.Fprintf(e.out, "%-8s %-13s → %s\n", "", "", f.Remedy)
			}
		}
	}
	if slices.ContainsFunc(x.found, func(f finding) bool { return f.Level == "error" }) {
		return errSick
	}
	return nil
}

func (x *examination) settings(cfg config.Config) {
	if cfg.Listen.PlainLogin {
		x.add("warning", "settings", "set listen.plain_login = false where clients can do TLS",
			"logins without TLS are allowed")
	}
	if len(cfg.Accounts.Domains) == 0 {
		x.add("warning", "settings", "list your mail domains in accounts.domains",
			"no domains are named: in an outage mail for unknown users cannot be told from mail to be relayed")
	}
	if len(cfg.Accounts.List) == 0 && len(cfg.Accounts.Command) == 0 {
		x.add("warning", "settings", "set accounts.command or accounts.list",
			"only accounts that log in through the box will be copied")
	}
	if !cfg.Standby.LearnLogins {
		x.add("warning", "settings", "set standby.learn_logins = true",
			"nobody will be able to log in during an outage")
	}
}

// files looks whether there may be enough open files for all sessions.
func (x *examination) files(cfg config.Config) {
	if have, need, err := fileLimit(cfg.Listen.MaxSessions); err != nil {
		x.add("error", "limits", "", "%v", err)
	} else if have < need {
		x.add("warning", "limits", fmt.Sprintf("LimitNOFILE=%d in the unit, or a smaller listen.max_sessions", need),
			"%d open files are allowed; %d sessions may need %d", have, cfg.Listen.MaxSessions, need)
	}
}

// wire looks at the network that the box is to be put into.
func (x *examination) wire(ctx context.Context, cfg config.Config) {
	if cfg.Network.Mode == "proxy" {
		return
	}
	s, err := box.WireSite(cfg)
	if err != nil {
		x.add("error", "network", "see [network] in `understudy config describe`", "%v", err)
		return
	}
	if _, err := inline.Remember(box.WireMemory(cfg), &s); err != nil {
		x.add("error", "network", "", "%v", err)
	}
	for _, f := range inline.Examine(ctx, s) {
		x.add(f.Level, "network", f.Remedy, "%s", f.Text)
	}
	x.strays(ctx, s)
}

// strays looks for mail ports of production that are not diverted.
func (x *examination) strays(ctx context.Context, s inline.Site) {
	for _, p := range []struct {
		port   uint16
		remedy string
	}{
		{143, "listen.imap"}, {993, "listen.imaps"}, {25, "listen.smtp"}, {587, "listen.submission"}, {465,
			"listen.submissions"},
		{110, ""}, {995, ""}, {4190, ""},
	} {
		if slices.ContainsFunc(s.Ports, func(have inline.Port) bool { return have.Port == p.port }) {
			continue
		}
		addr := netip.AddrPortFrom(s.Addrs[0], p.port).String()
		conn, err := (&net.Dialer{Timeout: 300 * time.Millisecond}).DialContext(ctx, "tcp", addr)
		if err != nil {
			continue
		}
		_ = conn.Close()
		if p.remedy == "" {
			x.add("note", "network", "",
				"production answers at %s, which passes untouched, and is not served in an outage", addr)
			continue
		}
		x.add("warning", "network", fmt.Sprintf("set %s = \":%d\"", p.remedy, p.port),
			"production answers at %s, which is not diverted: it would not be served in an outage", addr)
	}
}

func (x *examination) disk(cfg config.Config) {
	dir := cfg.Data
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		x.add("error", "disk", "make the directory, or set data", "%s: %v", cfg.Data, err)
		return
	}
	free := int64(fs.Bavail) * fs.Bsize
	level, remedy := "ok", ""
	if free < 5<<30 {
		level, remedy = "warning", "give the replica about the size of the mail store"
	}
	x.add(level, "disk", remedy, "%d GiB free for %s", free>>30, cfg.Data)
	f, err := os.CreateTemp(dir, ".understudy-doctor-")
	if err != nil {
		x.add("error", "disk", "let the user of the service write there", "%s is not writable: %v", dir, err)
		return
	}
	defer func() { _ = f.Close(); _ = os.Remove(f.Name()) }()
	start := time.Now()
	for range 20 {
		_, _ = f.Write(make([]byte, 4096))
		if err := f.Sync(); err != nil {
			x.add("error", "disk", "", "sync: %v", err)
			return
		}
	}
	x.add("ok", "disk", "", "a sync takes %s; every change waits for one or two",
		(time.Since(start) / 20).Round(time.Microsecond))
}

func (x *examination) certificates(cfg config.Config) {
	if len(cfg.Certificates) == 0 {
		x.add("warning", "certificate", "add a [[certificate]] with the files that production uses",
			"no certificate: clients get no TLS")
		return
	}
	certs, err := box.Certificates(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		x.add("error", "certificate", "name readable PEM files that belong together", "%v", err)
		return
	}
	for _, leaf := range certs.Leaves() {
		left := time.Until(leaf.NotAfter)
		level := "ok"
		switch {
		case left < 0:
			level = "error"
		case left < 30*24*time.Hour:
			level = "warning"
		}
		x.add(level, "certificate", "", "%s for %s, valid for %d days", leaf.Subject.CommonName,
			strings.Join(leaf.DNSNames, " "), int(left.Hours()/24))
	}
}

func (x *examination) production(ctx context.Context, cfg config.Config, account string) {
	p, err := box.NewProduction(cfg, slog.New(slog.DiscardHandler), nil)
	switch {
	case errors.Is(err, box.ErrMaster):
		x.add("error", "master", "write the file, readable for the service only", "%v", err)
		return
	case err != nil:
		x.add("error", "production", "", "%v", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, err := p.DialIMAP(ctx)
	if err != nil {
		x.add("error", "IMAP", "is production.imap right, and imap_security?", "%v", err)
		return
	}
	c.Logout()
	x.add("ok", "IMAP", "", "production answers at %s", cfg.Production.IMAP)
	if cfg.Production.SMTP != "" {
		if err := p.ProbeSMTP(ctx); err != nil {
			x.add("error", "SMTP", "is production.smtp right?", "%v", err)
		} else {
			x.add("ok", "SMTP", "", "production answers at %s", cfg.Production.SMTP)
		}
	}
	if account == "" {
		list, _ := p.Accounts(ctx)
		if len(list) == 0 {
			x.add("warning", "master", "name an account with --account",
				"the master login was not tried: no account is known")
			return
		}
		account = list[0]
	}
	x.asMaster(ctx, cfg, p, account)
}

func (x *examination) asMaster(ctx context.Context, cfg config.Config, p *box.Production, account string) {
	c, err := p.DialMaster(ctx, account)
	if err != nil {
		x.add("error", "master",
			"check the [master] table; Dovecot needs a master passdb, "+
				"and either auth_master_user_separator or SASL authorization", "%v", err)
		return
	}
	defer c.Logout()
	start := time.Now()
	list, err := c.List()
	if err != nil {
		x.add("error", "master", "", "list mailboxes of %s: %v", account, err)
		return
	}
	x.add("ok", "master", "", "%s has %d mailboxes; listing took %s", account, len(list),
		time.Since(start).Round(time.Millisecond))
	var hidden []string
	for _, cp := range c.Caps() {
		if !slices.Contains(imapd.Caps(), cp) && !strings.HasPrefix(cp, "AUTH=") {
			hidden = append(hidden, cp)
		}
	}
	x.add("note", "capabilities", "", "hidden from clients, since the standby does not have them: %s",
		strings.Join(hidden, " "))
	for _, need := range []string{"UIDPLUS", "CONDSTORE"} {
		if !c.Has(need) {
			x.add("warning", "capabilities", "", "production lacks %s: %s", need, map[string]string{
				"UIDPLUS": "copy-back is not possible", "CONDSTORE": "every sweep reads all flags"}[need])
		}
	}
	x.clock(cfg)
}

// clock compares with production's idea of the time, by the Date of nothing
// better than its host: only a name that does not resolve is told here.
func (x *examination) clock(cfg config.Config) {
	host, _, _ := net.SplitHostPort(cfg.Production.IMAP)
	if _, err := net.LookupHost(host); err != nil {
		x.add("error", "production", "use an address, or a name that resolves without production", "%v", err)
	}
	if y := time.Now().Year(); y < 2026 {
		x.add("error", "clock", "set the clock", "the clock says %d", y)
	}
}
