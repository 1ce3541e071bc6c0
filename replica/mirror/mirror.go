// Package mirror copies production into the replica and keeps it up to date:
// the first copy with several streams, targeted syncs of single mailboxes, IDLE
// on the INBOXes, and a periodic sweep of everything.
//
// Implementation notes. The unit of work is a mailbox, and a mailbox is in at
// most one stream at a time (locks). A sync compares UIDVALIDITY, UIDNEXT,
// HIGHESTMODSEQ and counts, never dates. Rows are stored in batches as their
// bodies arrive, so an interrupted copy resumes with what is missing. A sync
// never overwrites what the wire told after the sync began (TouchedSince).
// Streams are bounded in total and, in the first copy and sweeps, per account.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy/replica/delivery"
	"understudy/replica/imapc"
	"understudy/replica/row"
	"understudy/replica/store"
)

// Blobs stores messages' bytes: what was added is durable after Sync.
type Blobs interface {
	Add(msg []byte) (row.Ref, error)
	Sync() error
}

// Deliveries are the messages that were accepted and are looked for in mailboxes.
type Deliveries interface {
	HeldCount() int
	// AwaitHolds waits for those that are about to be held.
	AwaitHolds(ctx context.Context) error
	MatchHeld(a delivery.Arrival) (h row.Held, msg []byte, ok bool)
	MatchHeldBody(msg []byte) (row.Held, bool)
	// Land is Store.Update, in which held messages are seen to have arrived.
	Land(ctx context.Context, by store.Writer, in delivery.Landed, f func(*store.Tx) error) error
	Twins(account string) []row.Twin
	MatchTwin(account string, msg []byte) (row.Twin, bool)
	ForgetTwins(ctx context.Context, gone func(row.Twin) bool) error
}

// Moves are the MOVEs under way.
type Moves interface {
	// Moving lists the messages that they take away from a mailbox.
	Moving(account, mailbox string) (uids []uint32)
}

// Tasks keeps what a job has to do.
type Tasks interface {
	SaveTask(ctx context.Context, t row.Task) error
	PlanTasks(ctx context.Context, job string, tasks []row.Task) error
}

// Options of New.
type Options struct {
	Store      *store.Store
	Blobs      Blobs
	Deliveries Deliveries
	Moves      Moves
	Tasks      Tasks
	// Dial opens a connection to production's IMAP server that is logged in
	// as account.
	Dial func(ctx context.Context, account string) (*imapc.Conn, error)
	Log  *slog.Logger
	// Accounts lists those to be copied beside the ones seen on the wire.
	Accounts func(ctx context.Context) ([]string, error)
	// Streams is the number of connections that copy at a time; 0 is 4.
	Streams int
	// PerAccount is how many of them may be one account's; 0 is 2.
	PerAccount int
	// Sweep is the pause between sweeps; 0 is none.
	Sweep time.Duration
	// IdleLimit is how many INBOXes are watched by IDLE; 0 is none.
	IdleLimit int
	// HintDelay gathers hints for a mailbox; 0 is 200 ms.
	HintDelay time.Duration
}

// Mirror keeps one production server in one replica.
type Mirror struct {
	opt    Options
	pool   pool
	hints  chan hint
	locks  locks
	unread unread
	paused atomic.Bool
	seeded chan struct{} // closed when every known account was copied whole once
	stats  Stats
	wake   chan struct{}
}

// Stats counts what the mirror moved since the start.
type Stats struct {
	Fetched  atomic.Int64 // bodies read from production
	Bytes    atomic.Int64
	FromWire atomic.Int64 // bodies that were there already
	Syncs    atomic.Int64
}

type hint struct {
	account, mailbox string
	expect, lazy     bool
}

// lazyDelay is how long a sync waits that only refines what the wire told.
const lazyDelay = 3 * time.Second

// New returns a mirror; Run does the work.
func New(o Options) *Mirror {
	if o.Streams == 0 {
		o.Streams = 4
	}
	if o.PerAccount == 0 {
		o.PerAccount = 2
	}
	if o.HintDelay == 0 {
		o.HintDelay = 200 * time.Millisecond
	}
	m := &Mirror{opt: o, hints: make(chan hint, 10_000), locks: locks{m: map[string]*lock{}},
		wake: make(chan struct{}, 1), seeded: make(chan struct{})}
	m.unread.since = map[string]map[string]uint64{}
	m.pool = pool{dial: o.Dial, idle: map[string][]*pooled{}}
	return m
}

// Stats returns the counters.
func (m *Mirror) Stats() *Stats { return &m.stats }

// Pause stops all work that was not asked for by a client's change: production
// is down, or answers no longer for the accounts.
func (m *Mirror) Pause(on bool) {
	m.paused.Store(on)
	if on {
		m.pool.closeAll()
	} else {
		m.Kick()
	}
}

// Kick begins a sweep now.
func (m *Mirror) Kick() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Seeded is closed when every known account was copied whole once.
func (m *Mirror) Seeded() <-chan struct{} { return m.seeded }

// Run works until ctx ends.
func (m *Mirror) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return m.runHints(ctx) })
	g.Go(func() error { return m.runSweeps(ctx) })
	if m.opt.IdleLimit > 0 {
		g.Go(func() error { return m.runIdle(ctx) })
	}
	err := g.Wait()
	m.pool.closeAll()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// runSweeps does the first copy, then sweeps.
func (m *Mirror) runSweeps(ctx context.Context) error {
	seeded := false
	for pause := time.Duration(0); ; {
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-m.wake:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		pause = 2 * time.Second
		if m.paused.Load() {
			continue
		}
		select {
		case <-m.wake: // this sweep does it, too
		default:
		}
		if err := m.SyncAll(ctx, "sweep", nil); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			m.opt.Log.Warn("sweep", "err", err)
			continue
		}
		if !seeded {
			seeded = true
			close(m.seeded)
		}
		if pause = m.opt.Sweep; pause == 0 {
			pause = 24 * 365 * time.Hour
		}
	}
}

// discover returns all accounts that are to be copied.
func (m *Mirror) discover(ctx context.Context) ([]string, error) {
	if m.opt.Accounts != nil {
		names, err := m.opt.Accounts(ctx)
		if err != nil {
			return nil, fmt.Errorf("list accounts: %w", err)
		}
		for _, n := range names {
			if _, err := m.opt.Store.EnsureAccount(ctx, n, row.Production); err != nil {
				return nil, err
			}
		}
	}
	var out []string
	for _, a := range m.opt.Store.Accounts() {
		if a.Home == row.Production {
			out = append(out, a.Name)
		}
	}
	return out, nil
}

// SyncAll syncs accounts, all if only is nil, as a job of tasks that a restart
// resumes. Accounts that fail do not stop the others; the error tells them.
func (m *Mirror) SyncAll(ctx context.Context, job string, only []string) error {
	accounts := only
	if accounts == nil {
		var err error
		if accounts, err = m.discover(ctx); err != nil {
			return err
		}
	}
	j := &jobRun{m: m, job: job, start: time.Now()}
	if err := j.plan(ctx, accounts); err != nil {
		return err
	}
	return j.run(ctx)
}

// CatchUp syncs every mailbox whose status shows a change, quickly and without
// keeping tasks: sessions wait for it.
func (m *Mirror) CatchUp(ctx context.Context) error {
	j := &jobRun{m: m, start: time.Now()}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2 * m.opt.Streams)
	for _, a := range m.opt.Store.Accounts() {
		g.Go(func() error {
			tasks, err := j.planAccount(ctx, a.Name)
			for _, t := range tasks {
				if err == nil {
					err = m.SyncMailbox(ctx, t.Account, t.Mailbox)
				}
			}
			if err != nil {
				return fmt.Errorf("account %s: %w", a.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// SyncFolders implements snoop.Syncer.
func (m *Mirror) SyncFolders(ctx context.Context, account string) error {
	return m.with(ctx, account, func(c *imapc.Conn) error {
		_, err := m.folders(ctx, c, account)
		return err
	})
}

// SyncMailbox implements snoop.Syncer.
func (m *Mirror) SyncMailbox(ctx context.Context, account, mailbox string) error {
	unlock, err := m.locks.take(ctx, account+"\x00"+mailbox)
	if err != nil {
		return err
	}
	defer unlock()
	return m.with(ctx, account, func(c *imapc.Conn) error {
		for range 5 {
			s := &boxSync{m: m, ctx: ctx, c: c, account: account, mailbox: mailbox, stale: map[uint32]bool{}}
			again, err := s.run()
			if err != nil || !again {
				return err
			}
		}
		return nil
	})
}

// with runs f on a connection of an account; a connection that f found broken
// is not used again, and one that had idled in the pool is replaced once.
func (m *Mirror) with(ctx context.Context, account string, f func(*imapc.Conn) error) error {
	for {
		c, fresh, err := m.pool.get(ctx, account)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, c.Close)
		err = f(c)
		live := stop()
		var no *imapc.NoError
		switch {
		case live && (err == nil || errors.As(err, &no)):
			m.pool.put(account, c)
			return err
		case errors.Is(err, store.ErrNotHome):
			c.Close()
			return err
		}
		c.Close()
		if fresh || ctx.Err() != nil {
			return err
		}
	}
}

// Hint implements snoop.Syncer.
func (m *Mirror) Hint(account, mailbox string) {
	m.unread.add(account, mailbox)
	m.hint(hint{account: account, mailbox: mailbox})
}

// Expect implements snoop.Syncer.
func (m *Mirror) Expect(account, mailbox string) {
	m.hint(hint{account: account, mailbox: mailbox, expect: true})
}

// Later implements snoop.Syncer.
func (m *Mirror) Later(account, mailbox string) {
	m.hint(hint{account: account, mailbox: mailbox, lazy: true})
}

func (m *Mirror) hint(h hint) {
	select {
	case m.hints <- h:
	default: // the sweep will find it
	}
}

// runHints gathers hints for a moment and syncs each mailbox once.
func (m *Mirror) runHints(ctx context.Context) error {
	due := map[hint]time.Time{}
	tries := map[hint]int{}
	var g errgroup.Group
	g.SetLimit(m.opt.Streams)
	defer func() { _ = g.Wait() }()
	tick := time.NewTicker(m.opt.HintDelay / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case h := <-m.hints:
			k := hint{account: h.account, mailbox: h.mailbox}
			if h.expect {
				tries[k] = 4
			}
			at := time.Now().Add(m.opt.HintDelay)
			if h.lazy {
				at = time.Now().Add(lazyDelay)
			}
			if old, ok := due[k]; !ok || at.Before(old) {
				due[k] = at
			}
		case now := <-tick.C:
			for h, at := range due {
				if now.Before(at) || m.paused.Load() {
					continue
				}
				if !g.TryGo(func() error { m.hinted(ctx, h); return nil }) {
					break
				}
				delete(due, h)
				if tries[h]--; tries[h] > 0 && m.opt.Deliveries.HeldCount() > 0 {
					due[h] = now.Add(m.opt.HintDelay * time.Duration(1<<(5-tries[h])))
				} else {
					delete(tries, h)
				}
			}
		}
	}
}

func (m *Mirror) hinted(ctx context.Context, h hint) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := m.SyncMailbox(ctx, h.account, h.mailbox)
	if err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrNotHome) {
		m.opt.Log.Debug("targeted sync", "account", h.account, "mailbox", h.mailbox, "err", err)
	}
}

// locks are one lock a name, made when needed.
type locks struct {
	mu sync.Mutex
	m  map[string]*lock
}

type lock struct {
	c     chan struct{}
	users int
}

func (l *locks) take(ctx context.Context, name string) (unlock func(), err error) {
	l.mu.Lock()
	k := l.m[name]
	if k == nil {
		k = &lock{c: make(chan struct{}, 1)}
		l.m[name] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		if k.users--; k.users == 0 {
			delete(l.m, name)
		}
		l.mu.Unlock()
	}
	select {
	case k.c <- struct{}{}:
		return func() { <-k.c; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
