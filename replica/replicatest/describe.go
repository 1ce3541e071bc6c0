// Package replicatest says in words what a data directory holds, and unpacks the
// directories that earlier revisions left (replica/testdata), so that tests of the
// store and of the whole appliance can open them.
//
// Implementation notes. Describe is the one place that knows how the store is read:
// what is renamed there is renamed here, and the lines stay, since earlier revisions
// wrote them. A new kind of state gets a new kind of line.
package replicatest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"understudy/replica"
	"understudy/replica/row"
	"understudy/replica/vault"
)

// words collects lines, and the first error.
type words struct {
	s     *replica.Replica
	lines []string
	err   error
}

func (w *words) say(format string, a ...any) { w.lines = append(w.lines, fmt.Sprintf(format, a...)) }

func (w *words) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

// Describe says all that a replica holds, a line each: accounts with mailboxes,
// messages, base and doubts, what is held and queued, what was learned, and what is
// saved of the failover. passwords are of logins whose verifiers are tried.
func Describe(s *replica.Replica, passwords map[string]string) ([]string, error) {
	w := &words{s: s}
	for _, a := range s.Accounts() {
		w.say("account %s home %d next id %d synced %s %q", a.Name, a.Home, a.NextID, clock(a.LastSync), a.LastErr)
		w.mailboxes(a)
		w.base(a)
		w.doubts(a.Name)
		for _, t := range s.Twins(a.Name) {
			w.say("twin %d %s %s key %s %s", t.ID, t.Account, w.ref(t.Ref), t.Key, clock(t.Delivered))
		}
	}
	w.flight()
	w.saved()
	w.passwords(passwords)
	return w.lines, w.err
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05") }

func (w *words) mailboxes(a row.Account) {
	boxes, err := w.s.Mailboxes(a.Name)
	w.fail(err)
	for _, m := range boxes {
		w.say("mailbox %s %s", a.Name, mailbox(m))
		sn, err := w.s.SnapshotByID(a.Name, m.ID)
		if w.fail(err); err != nil {
			return
		}
		for _, r := range sn.Rows {
			w.say("message %s %q %s", a.Name, m.Name, w.message(r))
		}
	}
}

// base says what was at the takeover, also of mailboxes that are gone.
func (w *words) base(a row.Account) {
	boxes, err := w.s.BaseBoxes(a.Name)
	w.fail(err)
	slices.SortFunc(boxes, func(a, b row.Mailbox) int { return int(a.ID) - int(b.ID) })
	for _, m := range boxes {
		w.say("base mailbox %s %s", a.Name, mailbox(m))
	}
	for id := row.MailboxID(1); id < a.NextID; id++ {
		rows, err := w.s.BaseRows(a.Name, id)
		w.fail(err)
		for _, uid := range slices.Sorted(maps.Keys(rows)) {
			w.say("base message %s %d %s", a.Name, id, w.message(rows[uid]))
		}
	}
}

// doubts come in the order of their words: their keys are random.
func (w *words) doubts(account string) {
	all, err := w.s.DoubtsOf(account)
	w.fail(err)
	var lines []string
	for _, d := range all {
		refs := ""
		for _, r := range d.Refs {
			refs += " " + w.ref(r)
		}
		lines = append(lines,
			fmt.Sprintf("doubt %s from %q to %q uids %d at %d mark %d box %d moving %t flag %q refs%s",
				account, d.From, d.To, d.UIDs, d.Dst, d.Mark, d.Box, d.Kind == row.DoubtBehind, d.Flag, refs))
	}
	slices.Sort(lines)
	w.lines = append(w.lines, lines...)
}

// flight says what is on its way, and what was learned of ways.
func (w *words) flight() {
	for _, h := range w.s.HeldAll() {
		w.say("held %d from %s to %s params %q seen %s standby %t owed %t open %t %s key %s %s",
			h.ID, h.From, h.Rcpts, h.Params, h.Seen, h.OnlyOurs(), h.OwedSince(h.Arrived), !h.MayDeliver(),
			w.ref(h.Ref), h.Key, clock(h.Arrived))
	}
	queue, err := w.s.Queued()
	w.fail(err)
	for _, q := range queue {
		w.say("queued %d from %s to %s %s tries %d %s %q", q.ID, q.From, q.Rcpts, w.ref(q.Ref), q.Tries,
			clock(q.Arrived), q.LastErr)
	}
	for _, r := range w.s.AllRoutes() {
		w.say("route %s to %s %s", r.Recipient, r.Account, r.Mailbox)
	}
	tasks, err := w.s.TasksOf("")
	w.fail(err)
	for _, t := range tasks {
		w.say("task %s %d %s %s %s %d %s attempt %d done %d of %d %q",
			t.Job, t.Seq, t.Kind, t.Account, t.Mailbox, t.UID, t.State, t.Attempt, t.Done, t.Total, t.Err)
	}
}

func (w *words) saved() {
	for _, key := range []string{"failover", "loss", "greeting"} {
		var v any
		ok, err := w.s.LoadJSON(key, &v)
		if w.fail(err); !ok {
			continue
		}
		b, err := json.Marshal(v)
		w.fail(err)
		w.say("saved %s %s", key, b)
	}
	w.say("a sender may come again: %t", w.s.Unanswered())
}

func (w *words) passwords(of map[string]string) {
	v := vault.New(w.s.Meta, 0)
	for _, login := range slices.Sorted(maps.Keys(of)) {
		account, err := v.Check(login, of[login])
		_, wrong := v.Check(login, of[login]+"x")
		w.say("password of %s opens %q (%v), another one is wrong: %t", login, account, err,
			errors.Is(wrong, vault.ErrWrong))
	}
}

func mailbox(m row.Mailbox) string {
	return fmt.Sprintf(
		"%d %q sep %q attrs %s subscribed %t noselect %t validity %d next %d modseq %d prod %d synced %t %d %d born "+
			"%t gap %d permanent %s",
		m.ID, m.Name, m.Sep, m.Attrs, m.Subscribed, m.NoSelect, m.UIDValidity, m.UIDNext, m.ModSeq, m.ProdUIDValidity,
		m.Synced, m.SyncedModSeq, m.SyncedNext, m.Born, m.Gap, m.Permanent)
}

func (w *words) message(r *row.Message) string {
	return fmt.Sprintf("%d %s modseq %d %s size %d %s unsettled %t fresh %t tail %d", r.UID, r.Flags, r.ModSeq,
		r.Date.Format("2006-01-02 15:04:05 -0700"), r.Size, w.ref(r.Ref), r.Unsettled, r.Fresh, r.Tail)
}

// ref names a message, and reads it.
func (w *words) ref(r row.Ref) string {
	b, err := w.s.Message(r)
	if err != nil {
		return fmt.Sprintf("%.12s (%v)", r, err)
	}
	if row.RefOf(b) != r {
		return fmt.Sprintf("%.12s (other bytes)", r)
	}
	return fmt.Sprintf("%.12s", r)
}
