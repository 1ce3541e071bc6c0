package sim

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"understudy/failover"
	"understudy/replica"
	"understudy/replica/meta"
	"understudy/replica/row"
)

const anna, bert, cleo, ghost = "anna@sim.test", "bert@sim.test", "cleo@sim.test", "ghost@sim.test"

const stranger = "x@other.test"

// fixtureWorld is a site whose disks are to be kept (replica/testdata).
func fixtureWorld(t *testing.T) *world {
	w := newWorld(t, options{}, 5)
	w.users, w.cfg = []string{anna, bert, cleo}, settings{learn: true, owed: 24 * time.Hour}
	return w
}

// alias has production know another address.
func (w *world) alias() {
	rows := meta.Batch{}
	rows.Put([]byte("rt/info@sim.test"),
		[]byte(`{"Recipient":"info@sim.test","Account":"anna@sim.test","Mailbox":"INBOX"}`))
	if _, err := w.server().Mail().Meta.Commit(context.Background(), rows); err != nil {
		w.t.Error(err)
	}
	w.kill()
	w.start()
}

// stuck has production accept a letter and not deliver it before it is started again.
func (w *world) stuck(to, id string) {
	mail := w.server().Mail()
	err := mail.Seal(to, true)
	w.send("smtp", stranger, to, id, "")
	if err := errors.Join(err, mail.Seal(to, false)); err != nil {
		w.t.Error(err)
	}
}

// hold has the box hold a letter, as it would after that kind of trouble.
func (w *world) hold(to, id string, state row.HeldState) {
	r, ctx := w.living().Store(), context.Background()
	ref, err := r.PutMessage(letter(id))
	h := row.Held{From: stranger, Rcpts: []string{to}, Ref: ref, Arrived: time.Now(), Params: []string{"BODY=8BITMIME"}}
	switch {
	case err != nil:
	case state == row.HeldOurs:
		_, err = r.Take(ctx, h)
	default:
		if h, err = r.Hold(ctx, h); err == nil && state == row.HeldOwed {
			err = r.Owe(ctx, h.ID)
		}
		r.Confirm(h.ID)
	}
	if err != nil {
		w.t.Error(err)
	}
}

// populate is a year in the life of a site, up to a hand-back to another, empty
// production.
func (w *world) populate() {
	w.start()
	w.alias()
	time.Sleep(time.Minute)
	w.hand(anna, w.direct).do(`CREATE Sent (USE (\Sent))`, `CREATE Drafts (USE (\Drafts))`,
		`CREATE Trash (USE (\Trash))`, "CREATE Filed", "CREATE Filed/2025",
		"CREATE Filed/2025/Q1", "CREATE Gr&APw-n", "SUBSCRIBE INBOX", "SUBSCRIBE Filed/2025", "SUBSCRIBE Gr&APw-n").
		add("INBOX", "in1", "in2", "in3", "in4", "in5", "in6").
		add("Filed/2025/Q1", "q1", "q2", "q3").add("Trash", "t1", "t2").Close()
	w.hand(bert, w.direct).do("CREATE Filed", `CREATE Sent (USE (\Sent))`, "SUBSCRIBE Filed").add("INBOX", "b1", "b2",
		"b3").add("Filed", "f1").Close()
	w.startBox()
	w.wait(failover.Protecting)
	for _, u := range w.users {
		w.hand(u, w.toBox).do("SELECT INBOX").add("INBOX", "box1."+u, "box2."+u,
			"box3."+u).do(`UID STORE 1 +FLAGS (\Flagged work)`, "UID SEARCH ALL").Close()
		w.send("smtp", stranger, u, "mail1."+u, "")
	}
	w.send("smtp", stranger, "info@sim.test", "info1", "")
	w.hand(anna, w.toBox).do("SELECT INBOX", "UID MOVE 2 Filed", "UID COPY 3:4 Sent",
		`UID STORE 5 +FLAGS.SILENT (\Deleted)`, "UID EXPUNGE 5").Close()
	time.Sleep(20 * time.Second)
	w.tell(failover.Happened{Event: failover.Takeover})
	w.wait(failover.Serving)
	w.kill()
	for _, u := range w.users {
		w.hand(u, w.toBox).do("SELECT INBOX").add("INBOX", "out1."+u,
			"out2."+u).do(`UID STORE 2:3 +FLAGS ($Label1)`).Close()
		w.send("smtp", stranger, u, "mail2."+u, "")
	}
	if err := os.RemoveAll(w.path("prod")); err != nil {
		w.t.Error(err)
	}
	w.start()
	w.wait(failover.Protecting)
	w.alias()
	time.Sleep(20 * time.Second)
	w.wait(failover.Protecting)
	w.hand(anna, w.toBox).do(`CREATE Junk (USE (\Junk))`).Close()
}

// leaveProtecting ends the box with kill -9 out of an outage, with a MOVE and a
// message that production has done and not answered.
func (w *world) leaveProtecting() {
	w.stuck(bert, "stuck1")
	w.tell(failover.Happened{Event: failover.Takeover})
	w.wait(failover.Serving)
	w.wait(failover.Protecting)
	time.Sleep(10 * time.Second)
	for _, u := range w.users {
		w.hand(u, w.toBox).do("SELECT INBOX").add("INBOX", "more1."+u,
			"more2."+u).do(`UID STORE 1:* +FLAGS (read)`).Close()
	}
	w.stuck(cleo, "stuck2")
	w.hold(cleo, "owed1", row.HeldOwed)
	w.hold(ghost, "owed2", row.HeldOwed)
	time.Sleep(10 * time.Second)
	c := w.hand(anna, w.toBox).do("SELECT INBOX")
	m := w.offer("smtp", stranger, anna, "")
	w.freeze(true)
	c.Send("UID MOVE 3 Filed/2025")
	_ = c.Flush()
	m.text("unanswered1")
	time.Sleep(100 * time.Millisecond)
	w.crash()
	time.AfterFunc(10*time.Millisecond, func() { w.freeze(false) })
	w.kill()
}

// leaveServing ends it so in an outage, after a copy-back that was cut off.
func (w *world) leaveServing() {
	w.start()
	w.startBox()
	w.wait(failover.Protecting)
	time.Sleep(30 * time.Second)
	w.stuck(cleo, "stuck3")
	a, a2 := w.hand(anna, w.toBox).do("SELECT INBOX"), w.hand(anna, w.toBox).do("SELECT Filed/2025/Q1")
	b := w.hand(bert, w.toBox).do("SELECT INBOX")
	m := w.offer("smtp", stranger, bert, "")
	w.freeze(true)
	var g meanwhile
	g.Go(func() { a.do("UID MOVE 4 Filed/2025") })
	g.Go(func() { a2.do("UID COPY 1 Sent") })
	g.Go(func() { b.add("INBOX", "unanswered2") })
	m.text("unanswered3")
	w.wait(failover.Serving)
	if code := m.answer(); code != 250 {
		w.t.Errorf("a message in flight: %d", code)
	}
	_ = m.Close()
	time.AfterFunc(10*time.Millisecond, func() { w.freeze(false) })
	w.kill() // it has done what it had read
	g.Wait()
	w.outage(a, b)
	w.interrupt()
	a.do("SELECT INBOX", `UID STORE 9 +FLAGS.SILENT (\Deleted)`, "UID EXPUNGE 9").add("INBOX", "late6")
	b.do("SELECT INBOX").add("INBOX", "late7")
	w.hold(ghost, "ghost1", row.HeldOwed)
	w.hold(ghost, "ghost2", row.HeldOurs)
	w.hold(ghost, "ghost3", row.HeldAccepted)
	w.leaveFlag()
	time.Sleep(10 * time.Second)
	w.offer("smtp", stranger, anna, "").text("unanswered4")
	w.crash()
}

// outage is what clients do while the standby answers.
func (w *world) outage(a, b hand) {
	time.Sleep(time.Second)
	a.do(`UID STORE 6 +FLAGS.SILENT (\Deleted)`, "UID EXPUNGE 6", `UID STORE 7 FLAGS (\Answered)`, "CREATE New/Sub",
		"RENAME Filed/2025 Archive/2025",
		"DELETE Trash", "UNSUBSCRIBE Gr&APw-n", "UID COPY 7 New", "UID MOVE 8 New/Sub", "SUBSCRIBE New/Sub").
		add("INBOX", "late1", "late2", "late3").add("Drafts", "draft1")
	b.do(`UID STORE 1:3 +FLAGS.SILENT (\Deleted)`, "EXPUNGE", `UID STORE 4:* -FLAGS (read)`,
		"CREATE Emptied").add("Emptied", "e1", "e2")
	w.send("smtp", stranger, bert, "late4", "")
	w.send("smtp", stranger, "info@sim.test", "late5", "")
	w.send("submission", anna, "them@other.test", "outbound1", anna)
}

// interrupt has production come back and go away in the middle of a copy-back that
// has noted what it was about to do.
func (w *world) interrupt() {
	copying := func() bool {
		return slices.ContainsFunc(w.users, func(u string) bool {
			all, err := w.living().Store().DoubtsOf(u)
			if err != nil {
				w.t.Error(err)
			}
			return slices.ContainsFunc(all, func(d row.Doubt) bool { return d.Box != 0 })
		})
	}
	for range 10 {
		w.start()
		for range 20_000 {
			if time.Sleep(time.Millisecond); copying() || w.phase() == failover.HandingBack {
				break
			}
		}
		time.Sleep(w.some(4 * time.Millisecond))
		w.kill()
		if w.wait(failover.Serving); copying() {
			return
		}
	}
	w.t.Error("no copy-back was interrupted in the middle of a step")
}

// leaveFlag is what a copy-back leaves that was ended while it raised
// HIGHESTMODSEQ by a flag.
func (w *world) leaveFlag() {
	ctx, mine := context.Background(), w.living().Store()
	prod, err := replica.Open(replica.Options{Dir: w.path("prod"), Primary: true, FoldCase: true})
	if err != nil {
		w.t.Fatal(err)
	}
	theirs, err := prod.Snapshot(cleo, "INBOX")
	if err == nil {
		_, err = prod.SetFlags(ctx, cleo,
			row.FlagChange{Mailbox: theirs.ID, UIDs: theirs.UIDs[1:2], Op: row.Add, Flags: []string{`\Draft`}})
	}
	ours, oerr := mine.Snapshot(cleo, "INBOX")
	if err == nil && oerr == nil {
		_, err = mine.BeginCopy(ctx, cleo, row.FlagDoubt(ours.ID, ours.UIDs[1], `\Draft`))
	}
	if err := errors.Join(err, oerr, prod.Close()); err != nil {
		w.t.Error(err)
	}
}

// makeFixtures leaves both, and calls keep at each.
func makeFixtures(t *testing.T, keep func(w *world, name string)) {
	synctest.Test(t, func(t *testing.T) {
		w := fixtureWorld(t)
		defer w.end()
		w.populate()
		w.leaveProtecting()
		keep(w, "protecting")
		w.leaveServing()
		keep(w, "serving")
	})
}
