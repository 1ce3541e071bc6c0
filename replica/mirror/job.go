package mirror

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy/replica/imapc"
	"understudy/replica/row"
	"understudy/replica/store"
)

// maxTries is how often a task is tried in one job before it is parked.
const maxTries = 3

// jobRun is one pass over accounts: a task for each mailbox that has work.
// Tasks are rows, so that a restart knows what is done.
type jobRun struct {
	m     *Mirror
	job   string
	start time.Time

	mu      sync.Mutex
	tasks   []row.Task
	busy    map[string]int
	failed  []string
	waiting chan struct{}
}

// plan lists the mailboxes of all accounts and makes the tasks. Mailboxes whose
// status shows no change get none.
func (j *jobRun) plan(ctx context.Context, accounts []string) error {
	j.busy, j.waiting = map[string]int{}, make(chan struct{}, 1)
	var g errgroup.Group
	g.SetLimit(j.m.opt.Streams)
	for _, a := range accounts {
		g.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			tasks, err := j.planAccount(ctx, a)
			if err != nil {
				_ = j.m.opt.Store.MarkSync(ctx, a, j.start, err.Error())
			}
			j.mu.Lock()
			defer j.mu.Unlock()
			if err != nil {
				j.failed = append(j.failed, fmt.Sprintf("%s: %v", a, err))
			}
			j.tasks = append(j.tasks, tasks...)
			return nil
		})
	}
	_ = g.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	order(j.tasks)
	for i := range j.tasks {
		j.tasks[i].Seq = i
	}
	return j.m.opt.Tasks.PlanTasks(ctx, j.job, j.tasks)
}

// order is: never copied first, then large ones, so that the last stream to
// end is not alone with the largest.
func order(tasks []row.Task) {
	slices.SortStableFunc(tasks, func(a, b row.Task) int {
		if c := strings.Compare(a.Kind, b.Kind); c != 0 {
			return c
		}
		return b.Total - a.Total
	})
}

func (j *jobRun) planAccount(ctx context.Context, account string) ([]row.Task, error) {
	var tasks []row.Task
	err := j.m.with(ctx, account, func(c *imapc.Conn) error {
		tasks = nil
		list, err := j.m.folders(ctx, c, account)
		if err != nil {
			return err
		}
		for _, l := range list {
			if l.NoSelect() {
				continue
			}
			sn, err := j.m.opt.Store.Snapshot(account, l.Name)
			if errors.Is(err, store.ErrNoMailbox) {
				continue // renamed meanwhile: the next sweep
			}
			if err != nil {
				return err
			}
			if st := l.Status; st != nil && same(sn, st) {
				continue
			}
			t := row.Task{Job: j.job, Kind: "sync-mailbox", Account: account, Mailbox: l.Name, State: row.TaskQueued}
			if !sn.Synced {
				t.Kind = "copy-mailbox"
			}
			if l.Status != nil {
				t.Total = l.Status.Exists
			}
			tasks = append(tasks, t)
		}
		if len(tasks) == 0 {
			return j.m.opt.Store.MarkSync(ctx, account, j.start, "")
		}
		return nil
	})
	return tasks, err
}

// same reports whether a status shows what the replica holds. Without MODSEQ
// flags may have changed unseen.
func same(sn *row.Snapshot, st *imapc.Selected) bool {
	return sn.Synced && st.ModSeq != 0 && sn.SyncedModSeq == st.ModSeq && sn.SyncedNext == st.UIDNext &&
		sn.OnProduction() == st.UIDValidity && len(sn.Rows) == st.Exists &&
		!slices.ContainsFunc(sn.Rows, func(m *row.Message) bool { return m.Unsettled })
}

// run does the tasks with all streams; an idle stream takes the next task
// whose account has a stream to spare.
func (j *jobRun) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for range j.m.opt.Streams {
		g.Go(func() error {
			for {
				i, err := j.take(ctx)
				if err != nil || i < 0 {
					return err
				}
				j.do(ctx, i)
				if err := ctx.Err(); err != nil {
					return err
				}
			}
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if len(j.failed) > 0 {
		return fmt.Errorf("job %s ended with errors: %s", j.job, strings.Join(j.failed, "; "))
	}
	return nil
}

// take leases a task; -1 when none is left.
func (j *jobRun) take(ctx context.Context) (int, error) {
	for {
		j.mu.Lock()
		open := false
		for i := range j.tasks {
			t := &j.tasks[i]
			if t.State != row.TaskQueued && t.State != row.TaskRetry {
				open = open || t.State == row.TaskLeased
				continue
			}
			open = true
			if j.busy[t.Account] < j.m.opt.PerAccount {
				j.busy[t.Account]++
				t.State, t.Started = row.TaskLeased, time.Now()
				t.Attempt++
				j.mu.Unlock()
				return i, nil
			}
		}
		j.mu.Unlock()
		if !open {
			return -1, nil
		}
		select {
		case <-j.waiting:
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return -1, ctx.Err()
		}
	}
}

func (j *jobRun) do(ctx context.Context, i int) {
	t := j.snapshotTask(i)
	_ = j.m.opt.Tasks.SaveTask(ctx, t)
	unlock, err := j.m.locks.take(ctx, t.Account+"\x00"+t.Mailbox)
	if err == nil {
		err = j.m.with(ctx, t.Account, func(c *imapc.Conn) error {
			s := &boxSync{m: j.m, ctx: ctx, c: c, account: t.Account, mailbox: t.Mailbox, stale: map[uint32]bool{}}
			s.progress = func(done, total int, bytes int64) {
				j.update(ctx, i, row.Task{Done: done, Total: total,
					Bytes: bytes})
			}
			_, err := s.run()
			return err
		})
		unlock()
	}
	j.end(ctx, i, err)
}

func (j *jobRun) snapshotTask(i int) row.Task {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.tasks[i]
}

func (j *jobRun) update(ctx context.Context, i int, now row.Task) {
	j.mu.Lock()
	t := &j.tasks[i]
	t.Done, t.Total, t.Bytes = now.Done, now.Total, now.Bytes
	c := *t
	j.mu.Unlock()
	_ = j.m.opt.Tasks.SaveTask(ctx, c)
}

func (j *jobRun) end(ctx context.Context, i int, err error) {
	j.mu.Lock()
	t := &j.tasks[i]
	j.busy[t.Account]--
	t.Ended, t.Err = time.Now(), ""
	var no *imapc.NoError
	switch {
	case err == nil:
		t.State = row.TaskDone
	case ctx.Err() != nil:
		t.State = row.TaskQueued
	case errors.As(err, &no) && no.Code == "NONEXISTENT", errors.Is(err, store.ErrNoMailbox):
		t.State = row.TaskSkipped
	case t.Attempt < maxTries:
		t.State, t.Err = row.TaskRetry, err.Error()
	default:
		t.State, t.Err = row.TaskParked, err.Error()
		j.failed = append(j.failed, fmt.Sprintf("%s %s: %v", t.Account, t.Mailbox, err))
	}
	c := *t
	last := true
	for _, o := range j.tasks {
		last = last && (o.Account != c.Account || o.Finished() || o.State == row.TaskParked)
	}
	j.mu.Unlock()
	select {
	case j.waiting <- struct{}{}:
	default:
	}
	save := context.WithoutCancel(ctx)
	if serr := j.m.opt.Tasks.SaveTask(save, c); serr != nil {
		j.m.opt.Log.Error("save task", "task", c.Seq, "err", serr)
	}
	if last && ctx.Err() == nil {
		_ = j.m.opt.Store.MarkSync(save, c.Account, j.start, c.Err)
	}
	if c.State == row.TaskRetry {
		j.m.opt.Log.Warn("task is tried again", "job", j.job, "account", c.Account, "mailbox", c.Mailbox, "err", c.Err)
	}
}
