package sim

import (
	"bufio"
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"understudy/failover"
	"understudy/replica/imapc"
	"understudy/replica/row"
	"understudy/snoop/smtpwire"
)

// T28: a flag that a copy-back left on production when it was cut off, where it
// raised HIGHESTMODSEQ, is taken away; one that a client has set stays.
func TestT28_FlagLeftByACutCopyBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, options{}, 5)
		defer w.end()
		w.start()
		user := w.users[0]
		do := func(c *imapc.Conn, cmd string) {
			t.Helper()
			if _, err := c.Do(cmd, nil); err != nil {
				t.Error(err)
			}
		}
		prod, err := w.dial(user, w.direct)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := add(prod, "a"); err != nil {
				t.Fatal(err)
			}
		}
		do(prod, "SELECT INBOX")
		do(prod, `UID STORE 2 +FLAGS (\Flagged)`)
		w.startBox()
		w.wait(failover.Protecting)
		w.tell(failover.Happened{Event: failover.Takeover})
		w.wait(failover.Serving)
		sn, err := w.living().Store().Snapshot(user, "INBOX")
		if err != nil {
			t.Fatal(err)
		}
		do(prod, `UID STORE 1 +FLAGS (\Flagged)`)
		for uid := uint32(1); uid <= 2; uid++ {
			if _, err := w.living().Store().BeginCopy(context.Background(), user,
				row.FlagDoubt(sn.ID, uid, `\Flagged`)); err != nil {
				t.Error(err)
			}
		}
		w.wait(failover.Protecting)
		do(prod, "NOOP")
		got := map[uint32][]string{}
		err = prod.Fetch("1:*", "(UID FLAGS)", func(m imapc.Message) error { got[m.UID] = m.Flags; return nil })
		if err != nil {
			t.Error(err)
		}
		prod.Close()
		if slices.Contains(got[1], `\Flagged`) || !slices.Contains(got[2], `\Flagged`) {
			t.Errorf("flags on production: %v", got)
		}
	})
}

// B5: production goes on with a command after its connection broke, and after it
// was given it again: what it stores is there once, as the client was told.
func TestB5_LateCommand(t *testing.T) {
	for verb, command := range map[string]func(*imapc.Conn) error{
		"APPEND": func(c *imapc.Conn) error { return add(c, "a") },
		"COPY":   func(c *imapc.Conn) error { _, err := c.Do("UID COPY 1:3 Filed", nil); return err },
		"MOVE":   func(c *imapc.Conn) error { _, err := c.Do("UID MOVE 1:3 Filed", nil); return err },
	} {
		t.Run(verb, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { lateCommand(t, verb, command) }) })
	}
}

func add(c *imapc.Conn, subject string) error {
	body := []byte("Subject: " + subject + "\r\n\r\nb\r\n")
	_, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Flags: []string{}, Body: body})
	return err
}

func lateCommand(t *testing.T, verb string, command func(*imapc.Conn) error) {
	w := newWorld(t, options{}, 6)
	defer w.end()
	w.start()
	w.startBox()
	w.wait(failover.Protecting)
	c, err := w.dial(w.users[0], w.toBox)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Do("CREATE Filed", nil)
	for _, subject := range []string{"1", "2", "3"} {
		err = errors.Join(err, add(c, subject))
	}
	_, serr := c.Select("INBOX", false)
	go w.cutLate(time.Second)
	time.Sleep(10 * time.Millisecond)
	if err := errors.Join(err, serr, command(c)); err != nil {
		t.Error(err)
	}
	time.Sleep(20 * time.Second)
	prod, err := w.dial(w.users[0], w.direct)
	if err != nil {
		t.Fatal(err)
	}
	inbox, err := prod.Select("INBOX", true)
	filed, ferr := prod.Select("Filed", true)
	if err := errors.Join(err, ferr); err != nil {
		t.Error(err)
	}
	want := map[string][2]int{"APPEND": {4, 0}, "COPY": {3, 3}, "MOVE": {0, 3}}[verb]
	if inbox.Exists != want[0] || filed.Exists != want[1] {
		t.Errorf("%d in INBOX, %d in Filed, want %d", inbox.Exists, filed.Exists, want)
	}
	if (verb == "APPEND" && inbox.UIDNext < 6) || (verb == "COPY" && filed.UIDNext < 7) {
		t.Errorf("nothing came late: the next UIDs are %d and %d", inbox.UIDNext, filed.UIDNext)
	}
	prod.Close()
	c.Close()
}

// N18: a message that is owed, and that production has delivered by itself before
// the hand-back, is not given to it again.
func TestN18_OwedAndLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, options{}, 8)
		defer w.end()
		w.start()
		user := w.users[0]
		w.startBox()
		w.wait(failover.Protecting)
		w.tell(failover.Happened{Event: failover.Takeover})
		w.wait(failover.Serving)
		msg := []byte("Message-ID: <owed@other.test>\r\n\r\nhello\r\n")
		store := w.living().Store()
		ref, err := store.PutMessage(msg)
		if err != nil {
			t.Fatal(err)
		}
		h := row.Held{From: "x@other.test", Rcpts: []string{user}, Ref: ref, Arrived: time.Now()}
		h, err = store.Hold(context.Background(), h)
		if err == nil {
			err = store.Owe(context.Background(), h.ID)
		}
		if err != nil {
			t.Fatal(err)
		}
		prod, err := w.dial(user, w.direct)
		if err != nil {
			t.Fatal(err)
		}
		theirs := append([]byte("Received: by production\r\n"), msg...)
		if _, _, err := prod.Append(imapc.Appending{Mailbox: "INBOX", Body: theirs}); err != nil {
			t.Fatal(err)
		}
		w.wait(failover.Protecting)
		time.Sleep(time.Minute) // longer than it is owed
		if sel, err := prod.Select("INBOX", true); err != nil || sel.Exists != 1 || store.HeldCount() != 0 {
			t.Errorf("%d messages, %d held, %v", sel.Exists, store.HeldCount(), err)
		}
		prod.Close()
	})
}

// N18: a sender that is not answered comes again, as often as that happens, and the
// message is there once.
func TestN18_TriedOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, options{}, 9)
		defer w.end()
		w.start()
		w.startBox()
		w.wait(failover.Protecting)
		for try := range 4 {
			conn, err := w.toBox(t.Context(), "smtp")
			if err != nil {
				t.Fatal(err)
			}
			br := bufio.NewReader(conn)
			lines := []string{"", "EHLO a.test", "MAIL FROM:<a@other.test>", "RCPT TO:<anna@sim.test>", "DATA"}
			for _, line := range lines {
				if line != "" {
					_, _ = io.WriteString(conn, line+"\r\n")
				}
				if r, err := smtpwire.ReadReply(br); err != nil || r.Code >= 400 {
					t.Errorf("%q: %s %v", line, r, err)
				}
			}
			_, _ = io.WriteString(conn, "Message-ID: <often@other.test>\r\n\r\nhello\r\n.\r\n")
			time.Sleep(10 * time.Second)
			if try == 3 {
				if r, err := smtpwire.ReadReply(br); err != nil || r.Code != 250 {
					t.Errorf("the last try: %s %v", r, err)
				}
			}
			_ = conn.Close()
			time.Sleep(time.Second)
		}
		prod, err := w.dial("anna@sim.test", w.direct)
		if err != nil {
			t.Fatal(err)
		}
		if sel, err := prod.Select("INBOX", true); err != nil || sel.Exists != 1 {
			t.Errorf("it is there %d times, %v", sel.Exists, err)
		}
		prod.Close()
	})
}
