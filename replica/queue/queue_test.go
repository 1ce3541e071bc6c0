package queue

import (
	"path/filepath"
	"testing"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// Outbound mail is there after a start, each under a number of its own, and is told of.
func TestQueue(t *testing.T) {
	rows, err := meta.OpenBolt(filepath.Join(t.TempDir(), "rows.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	q, ctx := New(rows), t.Context()
	a, err := q.Enqueue(ctx, row.Queued{From: "a@d.test"})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-q.QueueChanged():
	default:
		t.Error("nobody is told")
	}
	q = New(rows)
	if err := rows.View(q.Load); err != nil {
		t.Fatal(err)
	}
	b, err := q.Enqueue(ctx, row.Queued{From: "b@d.test"})
	if err != nil || b.ID <= a.ID {
		t.Fatalf("%d after %d, %v", b.ID, a.ID, err)
	}
	a.Tries = 2
	if _, err := q.Enqueue(ctx, a); err != nil {
		t.Fatal(err)
	}
	if err := q.Dequeue(ctx, b.ID); err != nil {
		t.Fatal(err)
	}
	if all, err := q.Queued(); err != nil || len(all) != 1 || all[0].From != "a@d.test" || all[0].Tries != 2 {
		t.Errorf("%+v, %v", all, err)
	}
}
