// Package config is the settings file: strict TOML whose every key is
// documented by its own field, so that the reference is printed from the code.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Duration is a time span as text, "1s" or "5m".
type Duration time.Duration

// UnmarshalText reads a Go duration.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil || v < 0 {
		return fmt.Errorf("%q is no time span; write 500ms, 10s, 5m or 24h", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes a Go duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// D is the standard library's form.
func (d Duration) D() time.Duration { return time.Duration(d) }

// Config is the settings file.
type Config struct {
	Data     string `toml:"data" doc:"Directory of the replica. Fast storage; it needs about the size of the mail store."`
	Control  string `toml:"control" doc:"Unix socket for the commands. Empty: control.sock in the data directory."`
	Hostname string `toml:"hostname" doc:"Name in SMTP greetings of the standby. Empty: what production says."`
	LogLevel string `toml:"log_level" doc:"debug, info, warn or error."`

	Listen       Listen        `toml:"listen"`
	Certificates []Certificate `toml:"certificate" doc:"The site's certificates, as production shows them. May be repeated; chosen by SNI name, the first is the default."`
	Production   Production    `toml:"production"`
	Master       Master        `toml:"master"`
	Accounts     Accounts      `toml:"accounts"`
	Mirror       Mirror        `toml:"mirror"`
	Failover     Failover      `toml:"failover"`
	Standby      Standby       `toml:"standby"`
	Network      Network       `toml:"network"`
}

// Listen are the addresses that clients use.
type Listen struct {
	IMAP        string `toml:"imap" doc:"Address for IMAP with STARTTLS, such as :143. Empty: none."`
	IMAPS       string `toml:"imaps" doc:"Address for IMAP over TLS, such as :993."`
	SMTP        string `toml:"smtp" doc:"Address for inbound SMTP, such as :25."`
	Submission  string `toml:"submission" doc:"Address for submission with STARTTLS, such as :587."`
	Submissions string `toml:"submissions" doc:"Address for submission over TLS, such as :465."`
	PlainLogin  bool   `toml:"plain_login" doc:"Allow logins without TLS. Only where the network is trusted, or production allows it, too."`
	MaxSessions int    `toml:"max_sessions" doc:"Open sessions, all listeners together."`
	MaxMessage  int64  `toml:"max_message" doc:"Size of a message in bytes."`
}

// Certificate is a pair of PEM files.
type Certificate struct {
	Cert string `toml:"cert" doc:"Chain file. It is read again when it changes."`
	Key  string `toml:"key" doc:"Key file."`
}

// Production is the mail server.
type Production struct {
	IMAP               string   `toml:"imap" doc:"Address of its IMAP server, host:port."`
	IMAPSecurity       string   `toml:"imap_security" doc:"plain, starttls or tls."`
	SMTP               string   `toml:"smtp" doc:"Address of its SMTP server. Empty: SMTP is not carried."`
	SMTPSecurity       string   `toml:"smtp_security" doc:"plain, starttls or tls."`
	Submission         string   `toml:"submission" doc:"Address of its submission server. Empty: as smtp."`
	SubmissionSecurity string   `toml:"submission_security" doc:"plain, starttls or tls."`
	ServerName         string   `toml:"server_name" doc:"Name that its certificate must have. Empty: the host of the address."`
	CA                 string   `toml:"ca" doc:"PEM file of the authority that signed its certificate. Empty: the system's."`
	Insecure           bool     `toml:"insecure" doc:"Do not verify its certificate. Only on a link that is safe by itself."`
	ProxyProtocol      bool     `toml:"proxy_protocol" doc:"Tell it the client's address by PROXY protocol version 2. It must expect that."`
	XClient            bool     `toml:"xclient" doc:"Tell its SMTP server the client's address by XCLIENT, where it offers that."`
	ClientID           bool     `toml:"client_id" doc:"Tell its IMAP server the client's address by ID (Dovecot: login_trusted_networks)."`
	Timeout            Duration `toml:"timeout" doc:"To connect and log in."`
}

// Master is the login that may open every mailbox.
type Master struct {
	User         string `toml:"user" doc:"Master user of production. Needed for the replica."`
	Password     string `toml:"password" doc:"Its password. Better: password_file."`
	PasswordFile string `toml:"password_file" doc:"File with its password."`
	Separator    string `toml:"separator" doc:"Empty: the account goes into the authorization identity of SASL PLAIN. Else master logins are written account, separator, master user (Dovecot: *)."`
}

// Accounts says whose mail is copied.
type Accounts struct {
	List      []string `toml:"list" doc:"Accounts that are copied from the start. Those that log in are added by themselves."`
	Command   []string `toml:"command" doc:"Program that prints one account a line, such as [\"doveadm\", \"user\", \"*\"]. Run before each sweep."`
	ExactCase bool     `toml:"exact_case" doc:"User names that differ in case only are different accounts."`
	Domains   []string `toml:"domains" doc:"Mail domains of this site. Mail for unknown users of these is refused in an outage; mail for others is relayed for users only."`
}

// Mirror says how production is read.
type Mirror struct {
	Streams    int      `toml:"streams" doc:"Connections that copy at a time."`
	PerAccount int      `toml:"per_account" doc:"How many of them for one account. Leave room below the server's limit for the user's own."`
	Sweep      Duration `toml:"sweep" doc:"Pause between sweeps for what never crossed the wire. 0: none."`
	Idle       int      `toml:"idle" doc:"INBOXes watched by IDLE, one connection each. 0: none."`
}

// Failover says when the standby answers.
type Failover struct {
	Mode         string   `toml:"mode" doc:"advise: only say so; confirm: hold sessions and wait for the takeover command; automatic."`
	Hold         Duration `toml:"hold" doc:"How long sessions wait for production whose ports refuse."`
	HoldSilent   Duration `toml:"hold_silent" doc:"How long they wait for one that does not answer."`
	Probe        Duration `toml:"probe" doc:"Pause between probes."`
	ProbeTimeout Duration `toml:"probe_timeout" doc:"Longest answer to a probe."`
	ReturnProbes int      `toml:"return_probes" doc:"Good probes in a row before production counts as back."`
	AutoHandback bool     `toml:"auto_handback" doc:"Copy back and hand back without the handback command."`
	Cooldown     Duration `toml:"cooldown" doc:"After a hand-back automatic only asks for this long, unless acknowledged."`
	OwedAfter    Duration `toml:"owed_after" doc:"A message that production was lost over before it answered is given to it again if it is in no mailbox by then. Longer than production's queue needs for two runs."`
	FenceCommand []string `toml:"fence_command" doc:"Program that isolates production at a takeover (power, switch port). It must exit 0."`
}

// Standby says how the standby behaves.
type Standby struct {
	HoldFor       Duration `toml:"hold_for" doc:"How long an accepted message that never showed up in a mailbox is kept for delivery."`
	Outbound      string   `toml:"outbound" doc:"Mail to other sites in an outage: hold (until production is back) or smarthost."`
	Smarthost     string   `toml:"smarthost" doc:"Address of the smarthost, host:port."`
	LearnLogins   bool     `toml:"learn_logins" doc:"Keep verifiers (argon2id) of passwords that production accepted. Without, nobody can log in during an outage."`
	VerifierLives Duration `toml:"verifier_lives" doc:"How long a verifier is believed after it was learned. 0: for ever."`
}

// Network says how the box stands in the network.
type Network struct {
	Mode      string   `toml:"mode" doc:"proxy: clients are pointed at the box; inline: the box is in the wire between production and the network, and nobody is reconfigured; one-arm: beside production, whose address it takes over in an outage."`
	LAN       string   `toml:"lan" doc:"Interface towards the network (inline), or the only one (one-arm)."`
	Server    string   `toml:"server" doc:"Interface that production is plugged into (inline)."`
	Bridge    string   `toml:"bridge" doc:"Name of the bridge that is made of the two (inline)."`
	Addresses []string `toml:"addresses" doc:"Addresses of production that clients use, IPv4 and IPv6."`
	MAC       string   `toml:"mac" doc:"Hardware address of production. Empty: it is learned from its traffic, and remembered."`
	Own       []string `toml:"own" doc:"Addresses of the box itself on the bridge, such as 192.0.2.9/24 (inline): by them it copies from production and reaches it while it is fenced."`
	Gateway   string   `toml:"gateway" doc:"Router of the box itself. Empty: none, or as it is."`
	Pass      []int    `toml:"pass" doc:"TCP ports of production that stay reachable while it is fenced (inline)."`
	WhenDead  string   `toml:"when_dead" doc:"If the box's process dies in an outage: fenced (production stays apart until it runs again) or open (clients reach production, if it lives, which then lacks what the standby took)."`
	Tap       string   `toml:"tap" doc:"Interface of a mirror port: what passes there is snooped on, without TLS only. Empty: none."`
}

// Default is the configuration before the file is read.
func Default() Config {
	return Config{
		Data: "/var/lib/understudy", LogLevel: "info",
		Listen: Listen{MaxSessions: 10_000, MaxMessage: 50 << 20},
		Production: Production{IMAPSecurity: "plain", SMTPSecurity: "plain", SubmissionSecurity: "plain",
			Timeout: Duration(10 * time.Second)},
		Mirror: Mirror{Streams: 4, PerAccount: 2, Sweep: Duration(5 * time.Minute), Idle: 100},
		Failover: Failover{Mode: "confirm", Hold: Duration(time.Second), HoldSilent: Duration(45 * time.Second),
			Probe:        Duration(time.Second),
			ProbeTimeout: Duration(2 * time.Second), ReturnProbes: 5, Cooldown: Duration(10 * time.Minute),
			OwedAfter: Duration(11 * time.Minute)},
		Standby: Standby{HoldFor: Duration(24 * time.Hour), Outbound: "hold", LearnLogins: true,
			VerifierLives: Duration(90 * 24 * time.Hour)},
		Network: Network{Mode: "proxy", Bridge: "understudy0", Pass: []int{22}, WhenDead: "fenced"},
	}
}

// Parse reads a settings file. Unknown keys and values out of range are errors
// that name the key.
func Parse(b []byte) (Config, error) {
	c := Default()
	d := toml.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err := d.Decode(&c)
	var strict *toml.StrictMissingError
	var de *toml.DecodeError
	switch {
	case errors.As(err, &strict):
		return c, fmt.Errorf("unknown keys (see `understudy config describe`):\n%s", strict.String())
	case errors.As(err, &de):
		line, col := de.Position()
		return c, fmt.Errorf("line %d, column %d: %w\n%s", line, col, err, de.String())
	case err != nil:
		return c, err
	}
	return c, c.check()
}

func (c Config) check() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	addr := func(key, v string, need bool) {
		if v == "" && !need {
			return
		}
		if _, port, err := net.SplitHostPort(v); err != nil || port == "" {
			bad("%s = %q: write host:port", key, v)
		}
	}
	one := func(key, v string, of ...string) {
		for _, o := range of {
			if v == o {
				return
			}
		}
		bad("%s = %q: must be one of %s", key, v, strings.Join(of, ", "))
	}
	addr("production.imap", c.Production.IMAP, true)
	addr("production.smtp", c.Production.SMTP, c.Listen.SMTP != "")
	addr("production.submission", c.Production.Submission, false)
	for key, v := range map[string]string{"listen.imap": c.Listen.IMAP, "listen.imaps": c.Listen.IMAPS,
		"listen.smtp":       c.Listen.SMTP,
		"listen.submission": c.Listen.Submission, "listen.submissions": c.Listen.Submissions} {
		addr(key, v, false)
	}
	for key, v := range map[string]string{"imap": c.Production.IMAPSecurity, "smtp": c.Production.SMTPSecurity,
		"submission": c.Production.SubmissionSecurity} {
		one("production."+key+"_security", v, "plain", "starttls", "tls")
	}
	one("failover.mode", c.Failover.Mode, "advise", "confirm", "automatic")
	one("standby.outbound", c.Standby.Outbound, "hold", "smarthost")
	one("log_level", c.LogLevel, "debug", "info", "warn", "error")
	if c.Standby.Outbound == "smarthost" {
		addr("standby.smarthost", c.Standby.Smarthost, true)
	}
	if (c.Listen.IMAPS != "" || c.Listen.Submissions != "") && len(c.Certificates) == 0 {
		bad("listen.imaps and listen.submissions need a [[certificate]]")
	}
	if len(c.Certificates) == 0 && !c.Listen.PlainLogin {
		bad("without a [[certificate]] nobody could log in: add one, or set listen.plain_login = true where the " +
			"network is trusted")
	}
	if c.Master.User == "" {
		bad("master.user is missing: without a master user production cannot be copied")
	}
	if c.Master.Password != "" && c.Master.PasswordFile != "" {
		bad("master.password and master.password_file exclude each other")
	}
	one("network.mode", c.Network.Mode, "proxy", "inline", "one-arm")
	one("network.when_dead", c.Network.WhenDead, "fenced", "open")
	if c.Network.Mode != "proxy" {
		c.checkWire(bad)
	}
	if c.Data == "" {
		bad("data is missing")
	}
	if c.Mirror.Streams < 1 || c.Mirror.PerAccount < 1 || c.Failover.ReturnProbes < 1 {
		bad("mirror.streams, mirror.per_account and failover.return_probes must be at least 1")
	}
	return errors.Join(errs...)
}

// checkWire checks what the two ways into the wire need; the network's own
// settings are checked where they are used.
func (c Config) checkWire(bad func(string, ...any)) {
	for key, v := range map[string]string{"listen.imap": c.Listen.IMAP, "listen.imaps": c.Listen.IMAPS,
		"listen.smtp":       c.Listen.SMTP,
		"listen.submission": c.Listen.Submission, "listen.submissions": c.Listen.Submissions} {
		if host, _, err := net.SplitHostPort(v); v != "" && err == nil && host != "" {
			bad("%s = %q: in network.mode %s it names production's port, such as \":143\"; its addresses are in "+
				"network.addresses", key, v, c.Network.Mode)
		}
	}
	for key, v := range map[string]string{"imap": c.Production.IMAP, "smtp": c.Production.SMTP,
		"submission": c.Production.Submission} {
		if _, err := netip.ParseAddrPort(v); v != "" && err != nil {
			bad("production.%s = %q: in network.mode %s write production's address, not a name", key, v, c.Network.Mode)
		}
	}
	if c.Network.Mode == "one-arm" && c.Failover.Mode == "automatic" && len(c.Failover.FenceCommand) == 0 {
		bad("network.mode = \"one-arm\" cannot keep production from answering: set failover.fence_command (power, " +
			"switch port), or failover.mode = \"confirm\"")
	}
}

// Describe prints the reference: every key with its default and meaning.
func Describe() string {
	var b strings.Builder
	b.WriteString("# Understudy settings. Every key with its default.\n\n")
	describe(&b, "", reflect.ValueOf(Default()))
	return b.String()
}

func describe(b *strings.Builder, table string, v reflect.Value) {
	t := v.Type()
	var tables []int
	for i := range t.NumField() {
		f := t.Field(i)
		if isTable(f.Type) {
			tables = append(tables, i)
			continue
		}
		fmt.Fprintf(b, "# %s\n", f.Tag.Get("doc"))
		val, err := toml.Marshal(map[string]any{f.Tag.Get("toml"): v.Field(i).Interface()})
		if err != nil {
			panic(err) // types of this file
		}
		b.Write(val)
	}
	for _, i := range tables {
		f := t.Field(i)
		name := strings.TrimPrefix(table+"."+f.Tag.Get("toml"), ".")
		if f.Type.Kind() == reflect.Slice {
			fmt.Fprintf(b, "\n# %s\n[[%s]]\n", f.Tag.Get("doc"), name)
			describe(b, name, reflect.New(f.Type.Elem()).Elem())
			continue
		}
		fmt.Fprintf(b, "\n[%s]\n", name)
		describe(b, name, v.Field(i))
	}
}

func isTable(t reflect.Type) bool {
	return t.Kind() == reflect.Struct || t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct
}
