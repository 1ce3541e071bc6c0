package main

import (
	"context"
	"os"
	"slices"
	"testing"
	"testing/synctest"

	"understudy/failover"
	"understudy/replica/imapc"
	"understudy/replica/row"
)

// T28: a flag that a copy-back left on production when it was cut off, where it
// raised HIGHESTMODSEQ, is taken away; one that a client has set stays.
func TestT28_FlagLeftByACutCopyBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 5)
		defer func() { _ = os.RemoveAll(w.dir) }()
		w.start()
		user := w.users[0]
		do := func(c *imapc.Conn, cmd string) {
			t.Helper()
			if _, err := c.Do(cmd, nil); err != nil {
				t.Error(err)
			}
		}
		prod, err := w.dial(user, w.direct, "imap")
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, _, err := prod.Append(imapc.Appending{Mailbox: "INBOX", Flags: []string{}, Body: []byte("Subject: a\r\n\r\nb\r\n")}); err != nil {
				t.Fatal(err)
			}
		}
		do(prod, "SELECT INBOX")
		do(prod, `UID STORE 2 +FLAGS (\Flagged)`)
		w.startBox()
		w.wait(failover.Protecting)
		w.box.app.keeper.Tell(failover.Happened{Event: failover.Takeover})
		w.wait(failover.Serving)
		sn, err := w.box.app.store.Snapshot(user, "INBOX")
		if err != nil {
			t.Fatal(err)
		}
		do(prod, `UID STORE 1 +FLAGS (\Flagged)`)
		for uid := uint32(1); uid <= 2; uid++ {
			if err := w.box.app.store.NoteDoubt(context.Background(), user, row.Doubt{Box: sn.ID, UIDs: []uint32{uid}, Flag: `\Flagged`}); err != nil {
				t.Error(err)
			}
		}
		w.wait(failover.Protecting)
		do(prod, "NOOP")
		got := map[uint32][]string{}
		if err := prod.Fetch("1:*", "(UID FLAGS)", func(m imapc.Message) error { got[m.UID] = m.Flags; return nil }); err != nil {
			t.Error(err)
		}
		prod.Close()
		if slices.Contains(got[1], `\Flagged`) || !slices.Contains(got[2], `\Flagged`) {
			t.Errorf("flags on production: %v", got)
		}
		w.stopBox()
		w.kill()
	})
}
