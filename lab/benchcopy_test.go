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
// mbsync, in messages a second, or with an older binary's.
func firstCopy(t *testing.T, before string) {
	const accounts, each = 4, 2500
	s, far := newSite(t, accounts), newSite(t, accounts)
	for _, u := range s.Users {
		fillBench(t, s, u, each)
	}
	ways := []way{{name: thisBox}}
	copies := []func(round int) (cpu time.Duration){func(int) time.Duration { return copyBox(t, binary, s) }}
	if before != "" {
		ways = append(ways, way{name: beforeBox})
		copies = append(copies, func(int) time.Duration { return copyBox(t, before, s) })
	} else {
		ways = append(ways, way{name: "doveadm backup"}, way{name: "mbsync to IMAP"}, way{name: "mbsync to Maildir"})
		copies = append(copies, func(round int) time.Duration { return backup(t, s, far, round) },
			func(round int) time.Duration { return toIMAP(t, s, far, round) },
			func(int) time.Duration { return toMaildir(t, s) })
	}
	got := make([]column, len(ways))
	for round := range rounds {
		for i, f := range copies {
			start := time.Now()
			cpu := f(round)
			got[i] = append(got[i], sample{accounts * each, time.Since(start), cpu})
		}
	}
	printRow("first copy, messages/s", ways, got)
}

// copyBox has a binary copy everything. Its end counts, too.
func copyBox(t *testing.T, binary string, s *site.Site) (cpu time.Duration) {
	b := newBoxOf(t, binary, s, map[string]string{"log_level": `"warn"`, "mirror.idle": "0"})
	waitPhase(t, b, "protecting")
	cpu = processorTime(b.Pid())
	b.Kill()
	return cpu
}

func backup(t *testing.T, s, far *site.Site, round int) time.Duration {
	for _, u := range s.Users {
		to := filepath.Join(far.Dir, "mail", fmt.Sprint("backup", round), u)
		if _, err := s.Doveadm("backup", "-u", u, "sdbox:"+to); err != nil {
			t.Log(err)
		}
	}
	return 0
}

func toIMAP(t *testing.T, s, far *site.Site, round int) time.Duration {
	for i, u := range s.Users {
		mbsync(t, s, u, fmt.Sprintf("IMAPAccount b\nHost 127.0.0.1\nPort %d\nUser %s\nPass %s\n"+
			"SSLType None\nAuthMechs LOGIN\n\nIMAPStore near\nAccount b\nPath round%d/\n\n",
			far.IMAPPort, far.Users[i], site.Password(far.Users[i]), round))
	}
	return 0
}

func toMaildir(t *testing.T, s *site.Site) time.Duration {
	for _, u := range s.Users {
		d := t.TempDir()
		if err := os.Mkdir(filepath.Join(d, "m"), 0o700); err != nil {
			t.Fatal(err)
		}
		mbsync(t, s, u, fmt.Sprintf("MaildirStore near\nPath %s/m/\nInbox %s/inbox\nSubFolders Verbatim\n\n", d, d))
	}
	return 0
}

func mbsync(t *testing.T, s *site.Site, u, near string) {
	t.Helper()
	d := t.TempDir()
	rc := fmt.Sprintf("SyncState %s/\nIMAPAccount a\nHost 127.0.0.1\nPort %d\nUser %s\nPass %s\nSSLType None\n"+
		"AuthMechs LOGIN\n\nIMAPStore far\nAccount a\n\n%sChannel c\nFar :far:\n"+
		"Near :near:\nPatterns INBOX\nCreate Near\nSync Pull\nSyncState %s/state-\n",
		d, s.IMAPPort, u, site.Password(u), near, d)
	path := filepath.Join(d, "rc")
	if err := os.WriteFile(path, []byte(rc), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mbsync", "-q", "-c", path, "-a").CombinedOutput(); err != nil {
		t.Fatalf("mbsync: %v\n%s", err, out)
	}
}
