package task

import (
	"path/filepath"
	"testing"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// A job's tasks are replaced as a whole; those of others stay.
func TestTasks(t *testing.T) {
	rows, err := meta.OpenBolt(filepath.Join(t.TempDir(), "rows.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	tasks, ctx := New(rows), t.Context()
	for _, list := range [][]row.Task{{{Job: "a", Seq: 0}, {Job: "a", Seq: 1}, {Job: "a", Seq: 2}},
		{{Job: "a", Seq: 0}, {Job: "a", Seq: 1}}} {
		if err := tasks.PlanTasks(ctx, "a", list); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range []row.Task{{Job: "b"}, {Job: "a", Seq: 1, State: row.TaskDone}} {
		if err := tasks.SaveTask(ctx, x); err != nil {
			t.Fatal(err)
		}
	}
	of, err := tasks.TasksOf("a")
	if err != nil || len(of) != 2 || of[1].State != row.TaskDone {
		t.Errorf("%+v, %v", of, err)
	}
	if all, err := tasks.TasksOf(""); err != nil || len(all) != 3 {
		t.Errorf("%+v, %v", all, err)
	}
}
