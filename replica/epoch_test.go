package replica_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"understudy/replica"
	"understudy/replica/delivery"
	"understudy/replica/meta"
	"understudy/replica/row"
	"understudy/replica/store"
	"understudy/replica/vault"
)

// M13: whatever a replica writes, in whichever of its ledgers, is refused once another
// one over the same rows has advanced the epoch, and nothing of it is there.
func TestM13_OldReplicaIsRefused(t *testing.T) {
	rows, err := meta.OpenBolt(filepath.Join(t.TempDir(), "rows.db"))
	if err != nil {
		t.Fatal(err)
	}
	over := func() *replica.Replica {
		r, err := replica.Open(replica.Options{Dir: t.TempDir(), Meta: rows, FoldCase: true,
			Domains: []string{"d.test"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r
	}
	old, ctx := over(), t.Context()
	if _, err := old.EnsureAccount(ctx, "ada", row.Standby); err != nil {
		t.Fatal(err)
	}
	if err := old.Create(ctx, "ada", "INBOX", nil); err != nil {
		t.Fatal(err)
	}
	ref, _ := old.PutMessage([]byte("Subject: x\r\n\r\nbody\r\n"))
	held := row.Held{From: "x@y", Rcpts: []string{"ada@d.test"}, Ref: ref, Arrived: time.Now()}
	h, err := old.Hold(ctx, held)
	if err != nil {
		t.Fatal(err)
	}
	old.Confirm(h.ID)
	if err := over().SaveState(ctx, "failover", "serving", 1); err != nil {
		t.Fatal(err)
	}
	before := dump(t, rows)
	v := vault.New(old.Meta, 0)
	for what, write := range map[string]func() error{
		"append":  func() error { _, _, err := old.Append(ctx, "ada", "INBOX", []row.New{{Ref: ref}}); return err },
		"base":    func() error { return old.Rebase(ctx, "ada", func(tx *store.Tx) { tx.DropBase() }) },
		"acting":  func() error { return old.EndActing(ctx, "ada") },
		"hold":    func() error { _, err := old.Hold(ctx, held); return err },
		"owe":     func() error { return old.Owe(ctx, h.ID) },
		"forget":  func() error { return old.Found(ctx, h.ID) },
		"expire":  func() error { return old.Expire(ctx, h.ID) },
		"deliver": func() error { return old.Deliver(ctx, h, "ada@d.test", []byte("Subject: x\r\n\r\nbody\r\n")) },
		"land": func() error {
			return old.Land(ctx, store.ByKeeper, delivery.Landed{Account: "ada", Mailbox: "INBOX",
				Held: []row.Held{h}}, func(*store.Tx) error { return nil })
		},
		"doubt":    func() error { return old.NoteDoubt(ctx, "ada", row.MoveDoubt("INBOX", "X", nil, 0)) },
		"copying":  func() error { _, err := old.BeginCopy(ctx, "ada", row.AppendDoubt(1)); return err },
		"queue":    func() error { _, err := old.Enqueue(ctx, row.Queued{From: "x@y"}); return err },
		"dequeue":  func() error { return old.Dequeue(ctx, 1) },
		"task":     func() error { return old.SaveTask(ctx, row.Task{Job: "x"}) },
		"tasks":    func() error { return old.PlanTasks(ctx, "x", []row.Task{{Job: "x"}}) },
		"verifier": func() error { return v.Learn(ctx, "ada", "secret", "ada") },
		"value":    func() error { return old.SaveJSON(ctx, "greeting", 1) },
	} {
		if err := write(); !errors.Is(err, meta.ErrEpoch) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for k, v := range dump(t, rows) {
		if before[k] != v {
			t.Errorf("%q was changed", k)
		}
		delete(before, k)
	}
	if len(before) > 0 {
		t.Errorf("%d rows are gone", len(before))
	}
	if old.HeldCount() != 1 {
		t.Error("what was refused is shown")
	}
}

func dump(t *testing.T, m meta.Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	if err := m.View(func(sn meta.Snap) error {
		for k, v := range sn.Scan(nil, nil) {
			all[string(k)] = string(v)
		}
		return sn.Err()
	}); err != nil {
		t.Fatal(err)
	}
	return all
}
