package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/lab/site"
	"understudy/replica/imapc"
)

// lateMail leaves messages in Postfix's queue, so that they are delivered when
// production is started again.
func lateMail(t *testing.T, s *site.Site, n int, rcpt string) {
	t.Helper()
	s.KillDovecot()
	for i := range n {
		if r := send(t, fmt.Sprintf("127.0.0.1:%d", s.SMTPPort), "late@other.test",
			string(message(fmt.Sprint("late", i), 300)), rcpt); r.Code != 250 {
			t.Fatal(r)
		}
	}
}

// change does in an outage what ten minutes bring.
func change(t *testing.T, b *site.Box, u, tag string) {
	t.Helper()
	c := dial(t, b.IMAP, u)
	for i := range 60 {
		if r := send(t, b.SMTP, "y@other.test", string(message(fmt.Sprint(tag, "in", i), 2000)), u); r.Code != 250 {
			t.Fatal(r)
		}
	}
	for i := range 40 {
		if _, _,
			err := c.Append(imapc.Appending{Mailbox: "Sent", Flags: []string{`\Seen`},
			Body: message(fmt.Sprint(tag, "sent", i), 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	do(t, c, "SELECT INBOX")
	do(t, c, `STORE 1:20 +FLAGS (\Flagged %s)`, tag)
	do(t, c, `STORE 5:10 -FLAGS (\Seen)`)
	do(t, c, `STORE 3:4,25 +FLAGS (\Deleted)`)
	do(t, c, "EXPUNGE")
	do(t, c, "MOVE 10:14 Sent")
	do(t, c, "CREATE %s/Deep/er", tag)
	do(t, c, "SUBSCRIBE %s/Deep/er", tag)
	do(t, c, "COPY 1:5 %s/Deep/er", tag)
	do(t, c, "CREATE Short")
	do(t, c, "MOVE 1 Short")
	do(t, c, "DELETE Short")
}

// T21, R5, E11, M18: changes of an outage and production's own late mail come
// together: every UID that a client saw is production's, nothing is doubled, a
// copy-back killed at half is finished, a second one does nothing. Two full
// circles, back to back.
func TestR5_TwoCircles(t *testing.T) {
	s := newSite(t, 2)
	u := s.Users[0]
	fill(t, s, u, 120)
	b := newBox(t, s, nil)
	waitPhase(t, b, "protecting")
	dial(t, b.IMAP, u).Logout()
	for circle, tag := range []string{"one", "two"} {
		waitFor(t, "the password is learned", func() bool { return must(b.Status(t.Context()))(t).Verifiers > 0 })
		same(t, s, b, u, 5*time.Second)
		lateMail(t, s, 3, u)
		s.KillPostfix()
		waitPhase(t, b, "serving")
		change(t, b, u, tag)
		c := dial(t, b.IMAP, u)
		if circle == 0 {
			do(t, c, `RENAME "Projekte &APw-ber alles" Renamed`)
			do(t, c, `DELETE "Archive/2025/Q&AOQ-"`)
		}
		c.Logout()
		before := fingerprint(t, b.IMAP, u)
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		waitPhase(t, b, "returning")
		killHalfway(t, b)
		waitPhase(t, b, "protecting")
		after := fingerprint(t, direct(s), u)
		through := fingerprint(t, b.IMAP, u)
		if d := strings.ReplaceAll(after.Diff(through), "\n", ""); strings.Contains(d, "uid=") {
			t.Errorf("circle %s: production and the view through the box differ:\n%s", tag, after.Diff(through))
		}
		compare(t, before, through)
		if d := through.Diff(must(b.Replica(t.Context(), u))(t)); d != "" {
			same(t, s, b, u, 3*time.Second)
		}
		for digest, n := range through.Bodies {
			if n > before.Bodies[digest] && before.Bodies[digest] > 0 {
				t.Errorf("a message is there %d times, was %d times", n, before.Bodies[digest])
			}
		}
	}
	// Nothing happened: taking over and handing back changes nothing.
	want := fingerprint(t, direct(s), u)
	order(t, b, "takeover")
	waitPhase(t, b, "serving", "returning")
	waitPhase(t, b, "returning")
	order(t, b, "handback")
	if d := want.Diff(fingerprint(t, direct(s), u)); d != "" {
		t.Errorf("an idle circle changed production:\n%s", d)
	}
	if out := order(t, b, "status", "--json"); !strings.Contains(out, `"Appended": 0`) ||
		!strings.Contains(out, `"Burned": 0`) {
		t.Errorf("an idle circle did something: %s", out)
	}
}

// killHalfway orders the hand-back, kills Understudy in it with -9, and starts
// it again.
func killHalfway(t *testing.T, b *site.Box) {
	t.Helper()
	order(t, b, "handback", "--wait=false")
	for end := time.Now().Add(20 * time.Second); ; {
		st := must(b.Status(t.Context()))(t)
		if r, ok := st.CopyBack.(map[string]any); ok && r["Appended"].(float64) >= 50 || st.Phase == "protecting" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("copy-back does not get on")
		}
	}
	b.Kill()
	if err := b.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// compare checks that all that clients saw before is there unchanged, and that
// what came in addition stands behind it.
func compare(t *testing.T, before, after site.Fingerprint) {
	t.Helper()
	have, top := map[string]bool{}, map[string]int{}
	for _, l := range after.Lines {
		have[l] = true
	}
	for _, l := range before.Lines {
		if !have[l] {
			t.Errorf("a client saw, and production has not: %s", l)
		}
		box, uid := boxUID(l)
		top[box] = max(top[box], uid)
		delete(have, l)
	}
	extra := 0
	for l := range have {
		box, uid := boxUID(l)
		extra++
		if uid == 0 {
			t.Errorf("a mailbox is new or has changed: %s", l)
		} else if uid <= top[box] {
			t.Errorf("late mail stands before what clients saw (%d): %s", top[box], l)
		}
	}
	if extra != 3 {
		t.Errorf("%d messages are new, want production's 3 late ones", extra)
	}
}

func boxUID(line string) (string, int) {
	box, rest, ok := strings.Cut(line, " uid=")
	if !ok {
		return line, 0
	}
	var uid int
	_, _ = fmt.Sscanf(rest, "%d", &uid)
	return box, uid
}

// B4, N01: production is replaced by an empty server. It gets everything under the
// old UIDs, and through the box even the UIDVALIDITYs are the old ones.
func TestB4_EmptyReplacement(t *testing.T) {
	s := newSite(t, 1)
	u := s.Users[0]
	fill(t, s, u, 120)
	d := dial(t, direct(s), u)
	do(t, d, "SELECT INBOX")
	do(t, d, `STORE 2:6,9 +FLAGS (\Deleted)`)
	do(t, d, "EXPUNGE") // gaps that have to be burned
	do(t, d, "SUBSCRIBE Sent")
	b := newBox(t, s, nil)
	waitPhase(t, b, "protecting")
	dial(t, b.IMAP, u).Logout()
	waitFor(t, "the password is learned", func() bool { return must(b.Status(t.Context()))(t).Verifiers > 0 })
	s.Kill()
	waitPhase(t, b, "serving")
	if r := send(t, b.SMTP, "y@other.test", string(message("outage", 500)), u); r.Code != 250 {
		t.Fatal(r)
	}
	want := fingerprint(t, b.IMAP, u)
	fresh := must(s.Replacement(t.TempDir()))(t)
	if err := fresh.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fresh.Stop)
	waitPhase(t, b, "returning")
	order(t, b, "handback")
	if diff := want.Diff(fingerprint(t, b.IMAP, u)); diff != "" {
		t.Errorf("through the box the new server differs:\n%s", diff)
	}
	c := dial(t, b.IMAP, u)
	v, uid, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: message("after", 300)})
	if sel := must(c.Select("INBOX", true))(t); err != nil || v != sel.UIDValidity || uid < sel.UIDNext-1 {
		t.Errorf("APPENDUID %d %d in a mailbox with UIDVALIDITY %d: %v", v, uid, sel.UIDValidity, err)
	}
	waitFor(t, "the replica follows", func() bool {
		return fingerprint(t, b.IMAP, u).Diff(must(b.Replica(t.Context(), u))(t)) == ""
	})
}

// N18, B5: mail that production had accepted and kept in its queue is delivered
// by the standby; when the queue brings it after the hand-back, it is there once.
func TestN18_QueueAfterHandback(t *testing.T) {
	s := newSite(t, 2)
	u := s.Users[0]
	b := newBox(t, s, nil)
	waitPhase(t, b, "protecting")
	dial(t, b.IMAP, u).Logout()
	waitFor(t, "the password is learned", func() bool { return must(b.Status(t.Context()))(t).Verifiers > 0 })
	// The queue gets stuck, as it does when a delivery failed.
	s.SetPostfix(t, "defer_transports", "lmtp")
	for i := range 3 {
		if r := send(t, b.SMTP, "x@other.test", string(message(fmt.Sprint("stuck", i), 400)), u); r.Code != 250 {
			t.Fatal(r)
		}
	}
	s.Kill()
	waitPhase(t, b, "serving")
	count := func(addr string) (n int) {
		for _, k := range fingerprint(t, addr, u).Bodies {
			n += k
		}
		return n
	}
	// Beside the sessions, which do not wait for it, nor for each other's commits.
	waitFor(t, "the standby has the 3 messages", func() bool { return count(b.IMAP) == 3 })
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitPhase(t, b, "returning")
	order(t, b, "handback")
	want := fingerprint(t, direct(s), u)
	s.SetPostfix(t, "defer_transports", "")
	waitFor(t, "the queue is delivered", func() bool { return strings.Count(s.PostfixLog(), "status=sent") >= 3 })
	waitFor(t, "the doubles are gone", func() bool { return count(direct(s)) == 3 })
	time.Sleep(500 * time.Millisecond)
	if d := want.Diff(fingerprint(t, direct(s), u)); d != "" {
		t.Errorf("production changed by its late queue:\n%s", d)
	}
	same(t, s, b, u, 5*time.Second)
}

// N02, T19: mbsync with a warm cache pulls and pushes no old message again:
// before, during and after an outage.
func TestN02_MbsyncWarmCache(t *testing.T) {
	s := newSite(t, 1)
	u := s.Users[0]
	fill(t, s, u, 100)
	b := newBox(t, s, nil)
	waitPhase(t, b, "protecting")
	dir := t.TempDir()
	host, port, _ := strings.Cut(b.IMAP, ":")
	rc := fmt.Sprintf(`IMAPAccount a
Host %s
Port %s
User %s
Pass %s
SSLType None
AuthMechs LOGIN

IMAPStore far
Account a

MaildirStore near
Path %s/mail/
Inbox %s/mail/INBOX
SubFolders Verbatim

Channel c
Far :far:
Near :near:
Patterns *
Create Near
Sync All
Expunge None
SyncState *
`, host, port, u, site.Password(u), dir, dir)
	if err := os.MkdirAll(filepath.Join(dir, "mail"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rc"), []byte(rc), 0o600); err != nil {
		t.Fatal(err)
	}
	files := map[string]bool{}
	far := 0
	run := func() {
		t.Helper()
		out, err := exec.Command("mbsync", "-c", filepath.Join(dir, "rc"), "-a").CombinedOutput()
		if err != nil {
			t.Fatalf("mbsync: %v\n%s", err, out)
		}
	}
	// none runs mbsync and checks that it pulled just the news and pushed nothing.
	none := func(when string, news int) {
		t.Helper()
		run()
		pulled := 0
		all, _ := filepath.Glob(filepath.Join(dir, "mail/INBOX/*/*"))
		more, _ := filepath.Glob(filepath.Join(dir, "mail/*/*/*"))
		deep, _ := filepath.Glob(filepath.Join(dir, "mail/*/*/*/*/*"))
		for _, f := range append(append(all, more...), deep...) {
			base, _, flagged := strings.Cut(filepath.Base(f), ",U=")
			if flagged && !files[base] {
				files[base] = true
				pulled++
			}
		}
		there := 0
		for _, n := range fingerprint(t, b.IMAP, u).Bodies {
			there += n
		}
		if pulled != news || there != far+news {
			t.Errorf("%s: pulled %d, want %d; messages on the server %d, want %d", when, pulled, news, there, far+news)
		}
		far = there
	}
	none("the first time", 100)
	none("warm", 0)
	s.Kill()
	waitPhase(t, b, "serving")
	none("in the outage", 0)
	if r := send(t, b.SMTP, "y@other.test", string(message("fresh", 500)), u); r.Code != 250 {
		t.Fatal(r)
	}
	c := dial(t, b.IMAP, u)
	do(t, c, "CREATE Outage")
	if _, _, err := c.Append(imapc.Appending{Mailbox: "Outage", Body: message("inoutage", 500)}); err != nil {
		t.Fatal(err)
	}
	none("with two new messages", 2)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitPhase(t, b, "returning")
	order(t, b, "handback")
	none("after the hand-back", 0)
	if r := send(t, b.SMTP, "y@other.test", string(message("later", 500)), u); r.Code != 250 {
		t.Fatal(r)
	}
	time.Sleep(500 * time.Millisecond)
	none("with a new message on production", 1)
}
