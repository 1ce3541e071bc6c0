// Package copyback brings production, the same or a new one, up to what the
// standby did meanwhile: a three-way merge of base (the state at the takeover),
// standby now and production now.
//
// Implementation notes. A pass reads (gather), decides (plan.Merge, which is pure),
// and does exactly that (execute); what is decided here is only what the server's
// answers tell: a UID that is not the expected one ends the mailbox's plan, and the
// next pass makes another. Steps are done in an order that loses nothing if it is
// cut anywhere, and the base in the replica is moved along with each, so that a
// second run finds less to do and, in the end, nothing. UIDs are reproduced by
// order: gaps are burned, messages appended with APPENDUID checked, production's
// own late arrivals are put behind. While the standby serves, only what cannot
// collide with it is done; the rest is for the short time in which the account is
// blocked (final).
package copyback

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"understudy/replica/copyback/plan"
	"understudy/replica/imapc"
	"understudy/replica/row"
)

// Options of New.
type Options struct {
	Store    Accounts
	Ledgers  Ledgers
	Messages Messages
	Dial     func(ctx context.Context, account string) (*imapc.Conn, error)
	Log      *slog.Logger
	// Lacked is told what production turned out to have that the replica had not.
	Lacked func([]row.Lacked)
}

// Copier runs copy-back.
type Copier struct {
	opt  Options
	turn chan struct{} // of an account in use, to be handed over

	mu     sync.Mutex
	report Report
	alone  map[row.Ref]bool // messages that production has refused
	used   map[string]bool  // accounts that clients were changing at their last pass
}

// Report tells what was done, since the beginning of the copy-back.
type Report struct {
	Appended, Deleted, Flagged, Dropped, Moved, Burned, Restored int
	Created, Renamed, Removed                                    int
	// Notes name what differs from a plain copy: mailboxes whose UIDs could
	// not be reproduced, messages that production had lost.
	Notes []string
}

// New returns a copier.
func New(o Options) *Copier {
	return &Copier{opt: o, turn: make(chan struct{}, 1), alone: map[row.Ref]bool{}, used: map[string]bool{}}
}

func (c *Copier) refused(ref row.Ref) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alone[ref] = true
}

// odd reports whether production has refused a message before.
func (c *Copier) odd(ref row.Ref) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.alone[ref]
}

// Report returns what was done so far.
func (c *Copier) Report() Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.report
	r.Notes = append([]string(nil), r.Notes...)
	return r
}

// Reset begins a new report.
func (c *Copier) Reset() {
	c.mu.Lock()
	c.report = Report{}
	c.mu.Unlock()
}

func (c *Copier) count(f func(*Report)) {
	c.mu.Lock()
	f(&c.report)
	c.mu.Unlock()
}

// tell notes for the report what differs from a plain copy.
func (c *Copier) tell(format string, a ...any) {
	text := fmt.Sprintf(format, a...)
	c.opt.Log.Warn("copy-back", "note", text)
	c.count(func(r *Report) { r.Notes = append(r.Notes, text) })
}

// account is the copy-back of one account.
type account struct {
	*Copier
	level  bool        // raise HIGHESTMODSEQ beside the clients, too
	left   []row.Doubt // of an earlier copy-back; nil after the first pass
	bumped map[row.MailboxID]row.Doubt
	ctx    context.Context
	c      *imapc.Conn
	name   string
	final  bool
	job    string
	seq    int
	steps  int
	tasks  []row.Task
}

// Account brings one account up to date while clients use it. steps is the
// number of changes that were made.
func (c *Copier) Account(ctx context.Context, name string) (steps int, err error) {
	a, done, err := c.open(ctx, name)
	if err != nil {
		return 0, err
	}
	defer done()
	steps, err = a.pass(false)
	c.mu.Lock()
	c.used[name] = steps > 0
	c.mu.Unlock()
	return steps, err
}

// errRestless tells that production keeps getting mail by itself.
var errRestless = errors.New("production and replica do not come to agree")

// HandOver does the last of an account's copy-back: after a pass beside its
// clients it calls block, which must keep them off, and returns when both sides
// are equal. What production delivers by itself while one pass is under way is
// found by the next.
func (c *Copier) HandOver(ctx context.Context, name string, block func() error) error {
	a, done, err := c.open(ctx, name)
	if err != nil {
		return err
	}
	defer done()
	a.level = true
	c.mu.Lock()
	used := c.used[name]
	c.mu.Unlock()
	if used {
		// Accounts in use go one after the other: together they would wait longer.
		select {
		case c.turn <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		defer func() { <-c.turn }()
	}
	for range 6 {
		// Little is left for the time in which clients wait.
		if steps, err := a.pass(false); err != nil {
			return err
		} else if steps < 8 {
			break
		}
	}
	if err := block(); err != nil {
		return err
	}
	for range 10 {
		if steps, err := a.pass(true); err != nil || steps == 0 {
			return err
		}
	}
	return errRestless
}

func (c *Copier) open(ctx context.Context, name string) (*account, func(), error) {
	conn, err := c.opt.Dial(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	if !conn.Has("UIDPLUS") {
		conn.Close()
		return nil, nil, errNoUIDPlus
	}
	left, err := c.opt.Ledgers.DoubtsOf(name)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	for i, d := range left {
		left[i], _, _ = d.Step(row.DoubtHappened{Event: row.DoubtRestarted, By: row.ByCopyBack})
	}
	stop := context.AfterFunc(ctx, conn.Close)
	return &account{Copier: c, ctx: ctx, c: conn, name: name, job: "copy-back/" + name, left: left,
			bumped: map[row.MailboxID]row.Doubt{}},
		func() { stop(); conn.Close() }, nil
}

var errNoUIDPlus = errors.New("production offers no UIDPLUS: UIDs cannot be reproduced; " +
	"see the documentation of migrations")

// pass merges once. With final the account is blocked for clients; when such a
// pass makes no step, both sides are equal.
func (a *account) pass(final bool) (steps int, err error) {
	a.final, a.steps = final, 0
	err = a.run()
	return a.steps, err
}

func (a *account) run() error {
	if err := a.folders(); err != nil {
		return fmt.Errorf("folders of %s: %w", a.name, err)
	}
	in, err := a.gather()
	if err != nil {
		return err
	}
	todo := plan.Merge(in)
	for i, in := range in.Boxes {
		if err := a.box(in, todo.Boxes[i]).execute(); err != nil {
			return fmt.Errorf("mailbox %s of %s: %w", in.Standby.Name, a.name, err)
		}
	}
	a.left = nil
	if a.steps == 0 {
		return nil
	}
	return a.opt.Ledgers.PlanTasks(a.ctx, a.job, a.tasks)
}

// task notes a step for the admin's list.
func (a *account) task(kind, mailbox string, uid uint32, why plan.Why) {
	a.steps++
	if len(a.tasks) >= 100_000 {
		return
	}
	now := time.Now()
	a.tasks = append(a.tasks, row.Task{Job: a.job, Seq: a.seq, Kind: kind, Account: a.name, Mailbox: mailbox,
		UID: uid, Why: string(why),
		State: row.TaskDone, Attempt: 1, Started: now, Ended: now})
	a.seq++
}

// Quiet waits until production has stopped delivering mail by itself, which it
// does after a start while it works off its queue: until no mailbox got a
// message for a while, or limit is over.
func (c *Copier) Quiet(ctx context.Context, accounts []string, quiet, limit time.Duration) error {
	end, since := time.Now().Add(limit), time.Now()
	last := map[string]uint64{}
	for time.Since(since) < quiet && time.Now().Before(end) {
		for _, name := range accounts {
			sum, err := c.uidNexts(ctx, name)
			if err != nil {
				return err
			}
			if old, ok := last[name]; ok && old != sum {
				since = time.Now()
			}
			last[name] = sum
		}
		select {
		case <-time.After(quiet / 4):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (c *Copier) uidNexts(ctx context.Context, name string) (sum uint64, err error) {
	conn, err := c.opt.Dial(ctx, name)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	list, err := conn.List()
	for _, l := range list {
		if l.Status != nil {
			sum += uint64(l.Status.UIDNext)
		}
	}
	return sum, err
}
