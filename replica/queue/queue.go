// Package queue keeps the outbound mail of the standby until a relay has taken it.
//
// Implementation notes. Only numbers are in memory, the mail is read from its rows. A
// message is on disk before its sender is told 250, and taken off after the relay's.
package queue

import (
	"context"
	"encoding/json"
	"sync/atomic"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// Queue is the outbound mail.
type Queue struct {
	rows meta.Store
	last atomic.Uint64
	came chan struct{}
}

// New returns a queue; Load has to be called.
func New(rows meta.Store) *Queue { return &Queue{rows: rows, came: make(chan struct{}, 1)} }

// Load reads which numbers are in use.
func (q *Queue) Load(sn meta.Snap) error {
	var last uint64
	for k := range sn.Scan(meta.Range(meta.Queue())) {
		last = max(last, meta.QueueID(k))
	}
	q.last.Store(last)
	return sn.Err()
}

// QueueChanged is rung when outbound mail came. It is for one listener.
func (q *Queue) QueueChanged() <-chan struct{} { return q.came }

// Enqueue stores outbound mail, durably.
func (q *Queue) Enqueue(ctx context.Context, m row.Queued) (row.Queued, error) {
	if m.ID == 0 {
		m.ID = q.last.Add(1)
	}
	var b meta.Batch
	b.PutJSON(meta.QueueKey(m.ID), m)
	_, err := q.rows.Commit(ctx, b)
	select {
	case q.came <- struct{}{}:
	default:
	}
	return m, err
}

// Dequeue forgets outbound mail that was handed on.
func (q *Queue) Dequeue(ctx context.Context, id uint64) error {
	var b meta.Batch
	b.Delete(meta.QueueKey(id))
	_, err := q.rows.Commit(ctx, b)
	return err
}

// Queued lists the outbound mail.
func (q *Queue) Queued() (out []row.Queued, err error) {
	err = q.rows.View(func(sn meta.Snap) error {
		for _, v := range sn.Scan(meta.Range(meta.Queue())) {
			var m row.Queued
			if err := json.Unmarshal(v, &m); err != nil {
				return err
			}
			out = append(out, m)
		}
		return sn.Err()
	})
	return out, err
}
