package site

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Cyrus IMAP in Dovecot's place, delivered to by the same Postfix. Debian does not
// let both be installed, so that make unpacks it.

const cyrusConf = `configdirectory: %[1]s/conf
proc_path: %[1]s/run/proc
mboxname_lockpath: %[1]s/run/lock
defaultpartition: default
partition-default: %[1]s/spool
sievedir: %[1]s/sieve
idlesocket: %[1]s/sock/idle
cyrus_user: mail
cyrus_group: mail
altnamespace: yes
unixhierarchysep: yes
virtdomains: userid
defaultdomain: mail.example.test
admins: cyrus
proxyservers: %[2]s
autocreate_quota: 0
autocreate_post: yes
duplicatesuppression: no
allowplaintext: yes
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: %[1]s/sasldb2
sasl_mech_list: PLAIN LOGIN
maxmessagesize: 0
`

const cyrusServices = `START {
	recover cmd="%[1]s/ctl_cyrusdb -r -C %[2]s/imapd.conf"
	idled cmd="%[1]s/idled -C %[2]s/imapd.conf"
}
SERVICES {
	imap cmd="%[1]s/imapd -C %[2]s/imapd.conf" listen="127.0.0.1:%[3]d" prefork=4 maxchild=500
	lmtp cmd="%[1]s/lmtpd -a -C %[2]s/imapd.conf" listen="127.0.0.1:%[4]d" prefork=1 maxchild=50
}
EVENTS {
	checkpoint cmd="%[1]s/ctl_cyrusdb -c -C %[2]s/imapd.conf" period=30
}
`

// UseCyrus has Cyrus IMAP, unpacked below root, serve in place of Dovecot; call it
// before Start. Clients' addresses are not told to it, and there is no submission.
func (s *Site) UseCyrus(root string) error {
	if _, err := os.Stat(filepath.Join(root, "usr/lib/cyrus/bin/master")); err != nil {
		return fmt.Errorf("%w (make deps unpacks it)", err)
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return err
	}
	s.cyrus = root
	dir := filepath.Join(s.Dir, "cyrus")
	for _, d := range []string{"conf/db", "conf/user", "conf/quota", "conf/proc", "conf/msg", "conf/socket",
		"conf/lock", "conf/log", "conf/ptclient", "run/proc", "run/lock", "spool", "sieve", "sock"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	bin := filepath.Join(root, "usr/lib/cyrus/bin")
	for name, text := range map[string]string{"imapd.conf": fmt.Sprintf(cyrusConf, dir, MasterUser),
		"cyrus.conf": fmt.Sprintf(cyrusServices, bin, dir, s.IMAPPort, s.LMTPPort)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	add := func(user, password string) error {
		name, domain, _ := strings.Cut(user, "@")
		c := exec.Command("saslpasswd2", "-p", "-c", "-f", filepath.Join(dir, "sasldb2"), "-u", domain, name)
		c.Stdin = strings.NewReader(password)
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("saslpasswd2: %w: %s", err, bytes.TrimSpace(out))
		}
		return nil
	}
	for _, u := range s.Users {
		if err := add(u, Password(u)); err != nil {
			return err
		}
	}
	host, err := os.Hostname() // the realm of a name without one
	for _, realm := range []string{"mail.example.test", host} {
		if err == nil {
			err = add(MasterUser+"@"+realm, MasterPassword)
		}
	}
	if err != nil {
		return err
	}
	return chown(dir, "mail:mail")
}

// startCyrus is StartDovecot for Cyrus.
func (s *Site) startCyrus(ctx context.Context) error {
	dir := filepath.Join(s.Dir, "cyrus")
	_ = os.Remove(filepath.Join(dir, "pid"))
	libs, err := filepath.Glob(filepath.Join(s.cyrus, "usr/lib/*-linux-gnu*"))
	if err != nil {
		return err
	}
	c := exec.Command(filepath.Join(s.cyrus, "usr/lib/cyrus/bin/master"), "-D", "-C", filepath.Join(dir, "imapd.conf"),
		"-M", filepath.Join(dir, "cyrus.conf"), "-p", filepath.Join(dir, "pid"))
	c.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libs, ":"))
	return s.serveIMAP(ctx, c)
}
