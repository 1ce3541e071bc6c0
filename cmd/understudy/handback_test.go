package main

import (
	"context"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

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

// B5: production goes on with an APPEND after its connection broke, and after it
// was given the message again: it is there once, as the client was told.
func TestB5_LateAppend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 6)
		defer func() { _ = os.RemoveAll(w.dir) }()
		w.start()
		w.startBox()
		w.wait(failover.Protecting)
		c, err := w.dial(w.users[0], w.toBox, "imap")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Select("INBOX", false); err != nil {
			t.Fatal(err)
		}
		go w.cutLate(time.Second)
		time.Sleep(10 * time.Millisecond)
		_, told, err := c.Append(imapc.Appending{Mailbox: "INBOX", Flags: []string{}, Body: []byte("Subject: a\r\n\r\nb\r\n")})
		if err != nil {
			t.Error(err)
		}
		time.Sleep(20 * time.Second)
		prod, err := w.dial(w.users[0], w.direct, "imap")
		if err != nil {
			t.Fatal(err)
		}
		sel, err := prod.Select("INBOX", true)
		uids, serr := prod.SearchAll()
		if err != nil || serr != nil || !slices.Equal(uids, []uint32{told}) || sel.UIDNext < told+2 {
			t.Errorf("told %d, there is %v, next is %d; %v, %v", told, uids, sel.UIDNext, err, serr)
		}
		prod.Close()
		c.Close()
		w.stopBox()
		w.kill()
	})
}

// N18: a message that is owed, and that production has delivered by itself before
// the hand-back, is not given to it again.
func TestN18_OwedAndLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 8)
		defer func() { _ = os.RemoveAll(w.dir) }()
		w.start()
		user := w.users[0]
		w.startBox()
		w.wait(failover.Protecting)
		w.tell(failover.Happened{Event: failover.Takeover})
		w.wait(failover.Serving)
		msg := []byte("Message-ID: <owed@other.test>\r\n\r\nhello\r\n")
		store := w.box.app.store
		ref, err := store.PutMessage(msg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.Hold(context.Background(), row.Held{From: "x@other.test", Rcpts: []string{user}, Ref: ref, Arrived: time.Now(), Owed: true}); err != nil {
			t.Fatal(err)
		}
		prod, err := w.dial(user, w.direct, "imap")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := prod.Append(imapc.Appending{Mailbox: "INBOX", Body: append([]byte("Received: by production\r\n"), msg...)}); err != nil {
			t.Fatal(err)
		}
		w.wait(failover.Protecting)
		time.Sleep(time.Minute) // longer than it is owed
		if sel, err := prod.Select("INBOX", true); err != nil || sel.Exists != 1 || store.HeldCount() != 0 {
			t.Errorf("%d messages, %d held, %v", sel.Exists, store.HeldCount(), err)
		}
		prod.Close()
		w.stopBox()
		w.kill()
	})
}
