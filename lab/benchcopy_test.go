package lab

import (
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"understudy/lab/site"
)

func plain(u string) string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + u + "\x00" + site.Password(u)))
}

// firstCopy compares the first copy of one server's mail with doveadm backup and
// mbsync, in messages a second.
func firstCopy(t *testing.T) {
	const accounts, each = 4, 2500
	s, far := newSite(t, accounts), newSite(t, accounts)
	for i, u := range s.Users {
		fillBench(t, s, u, each)
		_ = i
	}
	figures := map[string][]float64{}
	note := func(name string, start time.Time) {
		figures[name] = append(figures[name], accounts*each/time.Since(start).Seconds())
	}
	for round := range rounds {
		start := time.Now()
		b := newBox(t, s, map[string]string{"log_level": `"warn"`, "mirror.idle": "0"})
		waitPhase(t, b, "protecting")
		note("understudy", start)
		b.Kill()

		start = time.Now()
		for _, u := range s.Users {
			if _, err := s.Doveadm("backup", "-u", u, "sdbox:"+filepath.Join(far.Dir, "mail", fmt.Sprint("backup", round), u)); err != nil {
				t.Log(err)
			}
		}
		note("doveadm backup", start)
		start = time.Now()
		for i, u := range s.Users {
			mbsync(t, s, u, fmt.Sprintf("IMAPAccount b\nHost 127.0.0.1\nPort %d\nUser %s\nPass %s\nSSLType None\nAuthMechs LOGIN\n\nIMAPStore near\nAccount b\nPath round%d/\n\n",
				far.IMAPPort, far.Users[i], site.Password(far.Users[i]), round))
		}
		note("mbsync to IMAP", start)
		start = time.Now()
		for _, u := range s.Users {
			d := t.TempDir()
			if err := os.Mkdir(filepath.Join(d, "m"), 0o700); err != nil {
				t.Fatal(err)
			}
			mbsync(t, s, u, fmt.Sprintf("MaildirStore near\nPath %s/m/\nInbox %s/inbox\nSubFolders Verbatim\n\n", d, d))
		}
		note("mbsync to Maildir", start)
	}
	line := fmt.Sprintf("%-38s", "first copy, messages/s")
	var base float64
	for _, n := range []string{"understudy", "doveadm backup", "mbsync to IMAP", "mbsync to Maildir"} {
		f := figures[n]
		m := max(min(f[0], f[1]), min(max(f[0], f[1]), f[2]))
		if base == 0 {
			base = m
			line += fmt.Sprintf("  %s %.0f", n, m)
		} else {
			line += fmt.Sprintf("  %s %.2f", n, m/base)
		}
	}
	fmt.Println(line)
}

func mbsync(t *testing.T, s *site.Site, u, near string) {
	t.Helper()
	d := t.TempDir()
	rc := fmt.Sprintf("SyncState %s/\nIMAPAccount a\nHost 127.0.0.1\nPort %d\nUser %s\nPass %s\nSSLType None\nAuthMechs LOGIN\n\nIMAPStore far\nAccount a\n\n%sChannel c\nFar :far:\nNear :near:\nPatterns INBOX\nCreate Near\nSync Pull\nSyncState %s/state-\n",
		d, s.IMAPPort, u, site.Password(u), near, d)
	path := filepath.Join(d, "rc")
	if err := os.WriteFile(path, []byte(rc), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mbsync", "-q", "-c", path, "-a").CombinedOutput(); err != nil {
		t.Fatalf("mbsync: %v\n%s", err, out)
	}
}
