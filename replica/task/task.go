// Package task keeps the tasks of copying in and back as rows, so that a restart knows
// what is done, and the admin what is going on.
//
// Implementation notes. Nothing is in memory.
package task

import (
	"context"
	"encoding/json"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// Tasks are the tasks of all jobs.
type Tasks struct{ rows meta.Store }

// New returns the tasks of a store.
func New(rows meta.Store) *Tasks { return &Tasks{rows} }

// SaveTask stores a task.
func (t *Tasks) SaveTask(ctx context.Context, x row.Task) error {
	var b meta.Batch
	b.PutJSON(meta.TaskKey(x.Job, x.Seq), x)
	_, err := t.rows.Commit(ctx, b)
	return err
}

// PlanTasks replaces all tasks of a job, in one batch.
func (t *Tasks) PlanTasks(ctx context.Context, job string, tasks []row.Task) error {
	var b meta.Batch
	b.DeleteRange(meta.Range(meta.TasksOf(job)))
	for _, x := range tasks {
		b.PutJSON(meta.TaskKey(job, x.Seq), x)
	}
	_, err := t.rows.Commit(ctx, b)
	return err
}

// TasksOf lists the tasks of a job, or with "" of all jobs.
func (t *Tasks) TasksOf(job string) (out []row.Task, err error) {
	p := meta.Tasks()
	if job != "" {
		p = meta.TasksOf(job)
	}
	err = t.rows.View(func(sn meta.Snap) error {
		for _, v := range sn.Scan(meta.Range(p)) {
			var x row.Task
			if err := json.Unmarshal(v, &x); err != nil {
				return err
			}
			out = append(out, x)
		}
		return sn.Err()
	})
	return out, err
}
