package lab

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"understudy/lab/site"
	"understudy/replica/imapc"
)

func message(id string, size int) []byte {
	head := fmt.Sprintf(
		"From: a@other.test\r\nTo: b@%s\r\nSubject: message %s\r\nMessage-ID: <%s@other.test>\r\nDate: Mon, 02 Nov "+
			"2026 10:00:00 +0000\r\n\r\n", site.Domain, id, id)
	line := strings.Repeat("x", 70) + "\r\n"
	return []byte(head + strings.Repeat(line, 1+size/72))
}

// The thinnest way through everything.
func TestWalk(t *testing.T) {
	s := newSite(t, 2)
	u := s.Users[0]
	d := dial(t, direct(s), u)
	for i := range 10 {
		if _, _,
			err := d.Append(imapc.Appending{Mailbox: "INBOX", Body: message(fmt.Sprint("old", i), 500)}); err != nil {
			t.Fatal(err)
		}
	}
	b := newBox(t, s, nil)
	waitPhase(t, b, "protecting")
	c := dial(t, b.IMAP, u)
	do(t, c, "SELECT INBOX")
	do(t, c, `STORE 1:3 +FLAGS (\Seen work)`)
	time.Sleep(500 * time.Millisecond)
	want := fingerprint(t, direct(s), u)
	s.Kill()
	waitPhase(t, b, "serving")
	if diff := want.Diff(fingerprint(t, b.IMAP, u)); diff != "" {
		t.Errorf("standby differs from production:\n%s", diff)
	}
	c = dial(t, b.IMAP, u)
	do(t, c, "SELECT INBOX")
	do(t, c, `UID STORE 4 +FLAGS (\Flagged)`)
	do(t, c, `UID STORE 2 +FLAGS (\Deleted)`)
	do(t, c, `EXPUNGE`)
	do(t, c, `CREATE Outage`)
	for i := range 3 {
		if _, _,
			err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: message(fmt.Sprint("new", i), 500)}); err != nil {
			t.Fatal(err)
		}
	}
	do(t, c, `UID MOVE 5 Outage`)
	want = fingerprint(t, b.IMAP, u)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitPhase(t, b, "returning")
	t.Log(order(t, b, "handback"))
	if diff := want.Diff(fingerprint(t, b.IMAP, u)); diff != "" {
		t.Errorf("production differs from the standby:\n%s", diff)
	}
}
