package lab

import (
	"fmt"
	"testing"
	"time"

	"understudy/lab/site"
	"understudy/replica/imapc"
)

// T6: clients work while the first copy is under way: no command waits for it,
// and at its end the replica is what production is.
func TestT6_WorkWhileSeeding(t *testing.T) {
	s := newSite(t, 1)
	u := s.Users[0]
	fillBench(t, s, u, 8000)
	b := must(site.NewBox(t.TempDir(), binary, s, nil))(t)
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Kill)
	c := dial(t, b.IMAP, u)
	do(t, c, "SELECT INBOX")
	do(t, c, "CREATE Other")
	longest := time.Duration(0)
	n := 0
	for ; n < 400; n++ {
		start := time.Now()
		switch n % 5 {
		case 0:
			do(t, c, `STORE %d +FLAGS (\Flagged)`, 7000-n)
		case 1:
			do(t, c, `UID STORE %d +FLAGS.SILENT (work)`, 6000-n)
		case 2:
			do(t, c, "COPY %d Other", 5000-n)
		case 3:
			if _, _,
				err := c.Append(imapc.Appending{Mailbox: "INBOX",
				Body: message(fmt.Sprint("seeding", n), 300)}); err != nil {
				t.Fatal(err)
			}
		case 4:
			do(t, c, "UID MOVE %d Other", 4000-n)
		}
		longest = max(longest, time.Since(start))
	}
	st := must(b.Status(t.Context()))(t)
	t.Logf("%d changes, the longest took %s; then %d messages were in the replica, phase %s", n,
		longest.Round(time.Millisecond), st.Messages, st.Phase)
	waitPhase(t, b, "protecting")
	same(t, s, b, u, 15*time.Second)
}
