package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy/lab/site"
)

// Section 3.5 of the design's security boundary: a session whose framing, or
// whose server's, left any doubt is closed at a takeover and not continued.
func TestB2_DoubtfulIsNotAdopted(t *testing.T) {
	s := newSite(t, 1)
	u := s.Users[0]
	rawLogin(t, direct(s), u).append("INBOX", message("m", 500))
	b := newBox(t, s, nil)
	waitPhase(t, b, "protecting")
	order(t, b, "sync")
	cases := map[string]string{
		"carriage return inside a command":        "a NOOP\rb LOGIN victim x\r\n",
		"NUL in an atom":                          "a LIST \"\" x\x00y\r\n",
		"empty line":                              "\r\n",
		"blank before the tag":                    " a NOOP\r\n",
		"plus as a tag":                           "+ NOOP\r\n",
		"tag alone":                               "abc\r\n",
		"literal8 where none is allowed":          "a LIST \"\" ~{3+}\r\nabc\r\n",
		"literal in the middle of a word":         "a LIST \"\" x{3+}\r\nabc\r\n",
		"marker with a blank behind it":           "a LIST \"\" {3} \r\n",
		"marker with two pluses":                  "a LIST \"\" {3++}\r\nabc\r\n",
		"IDLE ended by a command":                 "a IDLE\r\nb NOOP\r\n",
		"literal on an unknown command":           "a FOO {3+}\r\nabc\r\n",
		"login as somebody else":                  "a FOO\r\nb LOGIN victim x\rc NOOP\r\n",
		"literal longer than anybody takes":       "a LIST \"\" {99999999+}\r\n",
		"the line is too long for anybody":        "a NOOP " + strings.Repeat("x", 70_000) + "\r\n",
		"marker with a number that has no bounds": "a LIST \"\" {99999999999999999999+}\r\nabc\r\n",
	}
	open := map[string]*raw{}
	for name, text := range cases {
		r := rawLogin(t, b.IMAP, u)
		r.do("s SELECT INBOX")
		r.send("%s", text)
		open[name] = r
	}
	good := rawLogin(t, b.IMAP, u)
	good.do("s SELECT INBOX")
	// Odd, and understood alike by both: no doubt.
	good.send(
		"a LIST \"\" {03+}\r\nabc\r\nd STATUS {3+}\r\na\x00b (UIDNEXT)\r\ne NOOP x{30+}\r\nf LOGIN victim " +
			"victim-password\r\nb NOOP\n")
	good.until("b OK")
	time.Sleep(time.Second)
	s.Kill()
	waitPhase(t, b, "serving")
	good.do("c FETCH 1 (UID)")
	if out := good.do("g LIST \"\" *"); !strings.Contains(strings.Join(out, ""), "INBOX") {
		t.Errorf("whose mailboxes are these? %q", out)
	}
	for name, r := range open {
		_, _ = fmt.Fprint(r.Conn, "DONE\r\nzz NOOP\r\n")
		_ = r.SetReadDeadline(time.Now().Add(3 * time.Second))
		var all bytes.Buffer
		_, err := all.ReadFrom(r.br)
		var late net.Error
		if strings.Contains(all.String(), "zz OK") || !strings.Contains(all.String(), "* BYE") && err != nil &&
			isTimeout(err, &late) {
			t.Errorf("%s: the session went on: %q (%v)", name, all.String(), err)
		}
	}
}

func isTimeout(err error, ne *net.Error) bool {
	n, ok := err.(net.Error)
	*ne = n
	return ok && n.Timeout()
}

// N37: with the settings that everybody starts with, and mode automatic, half a
// minute of silence is no takeover, nor is a server that is fifty times as slow.
func TestN37_BlipAndSlowness(t *testing.T) {
	s := newSite(t, 1)
	u := s.Users[0]
	b := newBox(t, s,
		map[string]string{"failover.hold": `"1s"`, "failover.hold_silent": `"45s"`, "failover.probe": `"1s"`,
			"failover.probe_timeout": `"2s"`,
			"failover.return_probes": "5", "failover.cooldown": `"10m"`})
	waitPhase(t, b, "protecting")
	r := rawLogin(t, b.IMAP, u)
	r.do("a SELECT INBOX")
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); {
		s.Signal(syscall.SIGSTOP)
		time.Sleep(245 * time.Millisecond)
		s.Signal(syscall.SIGCONT)
		time.Sleep(5 * time.Millisecond)
	}
	r.do("b NOOP")
	s.Signal(syscall.SIGSTOP)
	time.Sleep(30 * time.Second)
	s.Signal(syscall.SIGCONT)
	r.do("c NOOP")
	waitPhase(t, b, "protecting")
	if st := must(b.Status(t.Context()))(t); st.Epoch != 0 {
		t.Errorf("a takeover took place: %+v", st.History)
	}
}

// N37: an Understudy that has no file descriptor left cannot know whether production
// lives, and does not take over; as soon as it can ask again, it knows.
func TestN37_OutOfFiles(t *testing.T) {
	s := newSite(t, 1)
	b := newBox(t, s, map[string]string{"failover.hold": `"200ms"`, "failover.probe": `"200ms"`})
	waitPhase(t, b, "protecting")
	open := len(must(os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.Pid())))(t))
	limit := &unix.Rlimit{Cur: uint64(open) + 8, Max: 20_000}
	check(t, unix.Prlimit(b.Pid(), unix.RLIMIT_NOFILE, limit, nil))
	var conns []net.Conn
	for range 30 {
		conns = append(conns, must(net.Dial("tcp", b.IMAP))(t))
	}
	time.Sleep(3 * time.Second)
	for _, c := range conns {
		check(t, c.Close())
	}
	time.Sleep(time.Second)
	if st := must(b.Status(t.Context()))(t); st.Phase != "protecting" || st.Epoch != 0 || !st.Health.OK {
		t.Errorf("%s, epoch %d, %+v", st.Phase, st.Epoch, st.Health)
	}
	if !strings.Contains(b.Log(), "production cannot be asked") {
		t.Error("nothing is said of it")
	}
	s.Kill()
	waitPhase(t, b, "serving")
}

// N02: mbsync, offlineimap, mutt and a sending Postfix run over
// takeovers and hand-backs, planned and not: no error exit, nothing twice, no
// message and no header fetched again.
func TestN02_RealClients(t *testing.T) {
	s := newSite(t, 1)
	u := s.Users[0]
	fill(t, s, u, 60)
	b := newBox(t, s, map[string]string{"failover.auto_handback": "true", "failover.return_probes": "1"})
	waitPhase(t, b, "protecting")
	order(t, b, "sync")
	dir := t.TempDir()
	downloads := map[string]*downloads{}
	clients := realClients(t, func(client string) string {
		d := watchDownloads(t, b.IMAP)
		downloads[client] = d
		return d.l.Addr().String()
	}, u, dir)
	peer := must(site.New(t.TempDir(), nil, nil))(t)
	check(t, peer.StartPostfix(t.Context()))
	t.Cleanup(peer.Stop)
	_, port, _ := strings.Cut(b.SMTP, ":")
	for name, value := range map[string]string{"virtual_mailbox_domains": "", "relayhost": "[127.0.0.1]:" + port,
		"mynetworks": "127.0.0.0/8", "relay_domains": site.Domain, "relay_transport": "smtp"} {
		peer.SetPostfix(t, name, value)
	}
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	runs := map[string]int{}
	var mu sync.Mutex
	for name, args := range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				cmd := exec.Command(args[0], args[1:]...)
				cmd.Env = append(os.Environ(), "HOME="+dir, "TERM=xterm")
				out, err := cmd.CombinedOutput()
				mu.Lock()
				runs[name]++
				mu.Unlock()
				if err != nil {
					t.Errorf("%s: %v\n%.2000s", name, err, out)
					return
				}
			}
		})
	}
	sent := 0
	wg.Go(func() {
		for ; ctx.Err() == nil; sent++ {
			c, err := openSMTP(fmt.Sprintf("127.0.0.1:%d", peer.SMTPPort), "MAIL FROM:<p@other.test>",
				"RCPT TO:<"+u+">", "DATA",
				strings.TrimSuffix(string(message(fmt.Sprintf("peer%d", sent), 600)), "\r\n")+"\r\n.", "QUIT")
			if err != nil {
				t.Errorf("sending peer: %v", err)
				return
			}
			_ = c.conn.Close()
			time.Sleep(50 * time.Millisecond)
		}
	})
	time.Sleep(2 * time.Second)
	for i := range 4 {
		if i%2 == 0 {
			order(t, b, "takeover")
			waitPhase(t, b, "serving", "returning", "copying back", "handing back", "protecting")
		} else {
			s.Kill()
			waitPhase(t, b, "serving")
			time.Sleep(time.Second)
			check(t, s.Start(t.Context()))
		}
		waitPhase(t, b, "protecting")
		time.Sleep(time.Second)
	}
	stop()
	wg.Wait()
	settled(t, b)
	t.Logf("runs: %v; messages sent by the peer: %d", runs, sent)
	for name, d := range downloads {
		d.once(t, name)
	}
	queue := func() string {
		out, _ := exec.Command("postqueue", "-c", filepath.Join(peer.Dir, "pf"), "-p").CombinedOutput()
		return string(out)
	}
	for range 100 {
		if strings.Contains(queue(), "empty") {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	if q := queue(); !strings.Contains(q, "empty") {
		t.Errorf("the peer still holds: %.2000s", q)
	}
	settled(t, b)
	stores := look(t, s.Direct, s.Users)
	for i := range sent {
		if n := stores[u][fmt.Sprintf("peer%d@other.test", i)].Count; n != 1 {
			_, log := mailLog(s, fmt.Sprintf("peer%d@other.test", i))
			t.Errorf("message %d of the peer is there %d times\n%s", i, n, log)
		}
	}
	for name, f := range stores[u] {
		if f.Count != 1 && name != "" && !strings.HasPrefix(name, "peer") {
			t.Errorf("%s is there %d times", name, f.Count)
		}
	}
}

// realClients writes the settings of the clients and returns their commands.
func realClients(t *testing.T, to func(client string) (addr string), u, dir string) map[string][]string {
	t.Helper()
	port := func(client string) string {
		_, p, _ := strings.Cut(to(client), ":")
		return p
	}
	const host = "127.0.0.1"
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		check(t, os.MkdirAll(filepath.Dir(p), 0o700))
		check(t, os.WriteFile(p, []byte(text), 0o600))
		return p
	}
	check(t, os.MkdirAll(filepath.Join(dir, "m"), 0o700))
	mbsync := write("mbsyncrc", fmt.Sprintf("IMAPAccount a\nHost %s\nPort %s\nUser %s\nPass %s\nSSLType None\n"+
		"AuthMechs LOGIN\n\nIMAPStore far\nAccount a\n\nMaildirStore near\nPath %s/m/\nInbox %s/m/INBOX\n"+
		"SubFolders Verbatim\n\nChannel c\nFar :far:\nNear :near:\nPatterns *\nCreate Near\nSync All\n"+
		"Expunge None\nSyncState *\n",
		host, port("mbsync"), u, site.Password(u), dir, dir))
	offline := write("offlinerc", fmt.Sprintf("[general]\naccounts = a\nmetadata = %s/om\nui = quiet\n"+
		"[Account a]\nlocalrepository = l\nremoterepository = r\n[Repository l]\ntype = Maildir\nlocalfolders = %s/o\n"+
		"[Repository r]\ntype = IMAP\nremotehost = %s\nremoteport = %s\nremoteuser = %s\nremotepass = %s\nssl = "+
		"no\nstarttls = no\nauth_mechanisms = LOGIN\n",
		dir, dir, host, port("offlineimap"), u, site.Password(u)))
	mutt := write("muttrc", fmt.Sprintf("set imap_user=\"%s\"\nset imap_pass=\"%s\"\nset ssl_starttls=no\nset "+
		"ssl_force_tls=no\nset folder=\"imap://%s:%s/\"\nset spoolfile=\"+INBOX\"\nset header_cache=\"%s/mh\"\nset "+
		"imap_authenticators=\"login\"\npush \"<sync-mailbox><exit>\"\n",
		u, site.Password(u), host, port("mutt"), dir))
	return map[string][]string{
		"mbsync":      {"mbsync", "-c", mbsync, "-a"},
		"offlineimap": {"offlineimap", "-o", "-c", offline},
		"mutt":        {"script", "-qec", "mutt -n -F " + mutt, "/dev/null"},
	}
}
