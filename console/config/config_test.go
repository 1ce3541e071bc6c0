package config

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// least is the smallest file that is accepted.
const least = `
[listen]
plain_login = true
[production]
imap = "10.0.0.5:143"
[master]
user = "understudy"
`

func TestDefaults(t *testing.T) {
	c, err := Parse([]byte(least))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Listen.PlainLogin, want.Production.IMAP, want.Master.User = true, "10.0.0.5:143", "understudy"
	if !reflect.DeepEqual(c, want) {
		t.Errorf("parsed %+v\nwant   %+v", c, want)
	}
	if c.Failover.Mode != "confirm" || c.Failover.HoldSilent.D() != 45*time.Second || c.Standby.Outbound != "hold" {
		t.Error("defaults that the manual names have changed")
	}
}

// Every key is described, with a meaning and its default, and what is described is read as the default.
func TestDescribe(t *testing.T) {
	text := Describe()
	var walk func(v reflect.Type)
	walk = func(v reflect.Type) {
		for i := range v.NumField() {
			f := v.Field(i)
			name := f.Tag.Get("toml")
			switch {
			case name == "":
				t.Errorf("%s.%s has no key", v.Name(), f.Name)
			case f.Type.Kind() == reflect.Struct && isTable(f.Type):
				walk(f.Type)
			case isTable(f.Type):
				walk(f.Type.Elem())
			case f.Tag.Get("doc") == "":
				t.Errorf("%s is not described", name)
			case !strings.Contains(text, "\n"+name+" = "):
				t.Errorf("%s is not in the reference", name)
			}
		}
	}
	walk(reflect.TypeFor[Config]())

	// As it stands it lacks only what no default can know.
	c, err := Parse([]byte(text))
	for _, part := range []string{"production.imap", "master.user"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("the reference as a file: %v, want %s to be missing", err, part)
		}
	}
	want := Default()
	if c.Certificates = nil; !reflect.DeepEqual(zeroed(c), zeroed(want)) {
		t.Errorf("described %+v\nwant      %+v", c, want)
	}
}

// zeroed has no list be an empty one.
func zeroed(c Config) Config {
	empty := func(l *[]string) {
		if len(*l) == 0 {
			*l = nil
		}
	}
	empty(&c.Accounts.List)
	empty(&c.Accounts.Command)
	empty(&c.Accounts.Domains)
	empty(&c.Failover.FenceCommand)
	empty(&c.Network.Addresses)
	empty(&c.Network.Own)
	return c
}

// A refusal names the key and the value.
func TestCheck(t *testing.T) {
	for _, c := range []struct{ change, want string }{
		{`imap = "10.0.0.5:143"` + "→" + `imap = "10.0.0.5"`, `production.imap = "10.0.0.5": write host:port`},
		{`imap = "10.0.0.5:143"` + "→" + ``, `production.imap = ""`},
		{`plain_login = true` + "→" + `plain_login = true` + "\n" + `smtp = ":25"`, `production.smtp = ""`},
		{`plain_login = true` + "→" + `plain_login = true` + "\n" + `imaps = "993"`, `listen.imaps = "993"`},
		{`plain_login = true` + "→" + `plain_login = true` + "\n" + `imaps = ":993"`, `need a [[certificate]]`},
		{`plain_login = true` + "→" + ``, `without a [[certificate]] nobody could log in`},
		{`user = "understudy"` + "→" + ``, `master.user is missing`},
		{`user = "understudy"` + "→" + `user = "u"` + "\n" + `password = "a"` + "\n" + `password_file = "b"`,
			"master.password and master.password_file exclude each other"},
		{`[master]` + "→" + "imap_security = \"ssl\"\n[master]",
			`production.imap_security = "ssl": must be one of plain, starttls, tls`},
		{`[listen]` + "→" + "log_level = \"loud\"\n[listen]", `log_level = "loud"`},
		{`[listen]` + "→" + "data = \"\"\n[listen]", `data is missing`},
		{`[master]` + "→" + "[failover]\nmode = \"maybe\"\n[master]", `failover.mode = "maybe"`},
		{`[master]` + "→" + "[failover]\nreturn_probes = 0\n[master]", `failover.return_probes must be at least 1`},
		{`[master]` + "→" + "[mirror]\nstreams = 0\n[master]", `mirror.streams`},
		{`[master]` + "→" + "[standby]\noutbound = \"burn\"\n[master]", `standby.outbound = "burn"`},
		{`[master]` + "→" + "[standby]\noutbound = \"smarthost\"\n[master]", `standby.smarthost = ""`},
		{`[master]` + "→" + "[network]\nmode = \"air\"\n[master]", `network.mode = "air"`},
		{`[master]` + "→" + "[network]\nwhen_dead = \"ajar\"\n[master]", `network.when_dead = "ajar"`},
		{`imap = "10.0.0.5:143"` + "→" + "imap = \"mail:143\"\n[network]\nmode = \"inline\"",
			`production.imap = "mail:143": in network.mode inline write production's address`},
		{`plain_login = true` + "→" + "plain_login = true\nimap = \"10.0.0.9:143\"\n[network]\nmode = \"inline\"",
			`listen.imap = "10.0.0.9:143": in network.mode inline it names production's port`},
		{`[master]` + "→" + "[network]\nmode = \"one-arm\"\n[failover]\nmode = \"automatic\"\n[master]",
			`set failover.fence_command`},
		{`[master]` + "→" + "[mirror]\nswep = \"5m\"\n[master]", "swep"},
		{`[master]` + "→" + "[mirror]\nsweep = \"five\"\n[master]", `"five" is no time span`},
		{`[master]` + "→" + "[mirror]\nsweep = \"-5m\"\n[master]", `"-5m" is no time span`},
	} {
		from, to, _ := strings.Cut(c.change, "→")
		if _, err := Parse([]byte(strings.Replace(least, from, to, 1))); err == nil ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("with %q: %v, want %s", to, err, c.want)
		}
	}
}

func TestEveryFaultIsTold(t *testing.T) {
	_, err := Parse([]byte("[failover]\nmode = \"x\"\n[standby]\noutbound = \"y\"\n"))
	for _, want := range []string{`failover.mode = "x"`, `standby.outbound = "y"`, "production.imap", "master.user"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %s", err, want)
		}
	}
}
