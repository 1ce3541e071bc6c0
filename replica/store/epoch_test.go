package store

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// dump is all that is on the disk.
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

// M13: whatever a store writes after another one has advanced the epoch is refused, and
// nothing of it is there or shown; not even when it was under way.
func TestM13_OldStoreIsRefused(t *testing.T) {
	d, s := onDisk(t)
	id := seed(t, s, "Ada")
	other := over(t, d.Store)
	ctx := t.Context()
	reached, release := d.hold("Ada", false)
	late := make(chan error)
	go func() { late <- put(t, s, "ada", "INBOX", 50) }()
	<-reached
	if err := other.SaveState(ctx, "failover", "serving", 7); err != nil || other.Epoch() != 7 {
		t.Fatal(err)
	}
	before := dump(t, d)
	release()
	if err := <-late; !errors.Is(err, meta.ErrEpoch) {
		t.Errorf("an update that was under way: %v", err)
	}
	told, stop, _ := s.Watch("ada")
	defer stop()
	committed := false
	for what, write := range map[string]func() error{
		"update":  func() error { return put(t, s, "ada", "INBOX", 51) },
		"mailbox": func() error { return put(t, s, "ada", "New", 1) },
		"base": func() error {
			return s.Rebase(ctx, "ada", func(tx *Tx) {
				tx.SetBaseRow(id,
					&row.Message{UID: 1})
				tx.SetBaseBox(row.Mailbox{ID: id})
			})
		},
		"home": func() error {
			return s.Update(ctx, "ada", ByKeeper, func(tx *Tx) error { tx.SetHome(row.Standby); return nil })
		},
		"staged": func() error {
			return s.Update(ctx, "ada", ByMirror, func(tx *Tx) error {
				tx.Stage(func(b *meta.Batch) { b.Put(meta.HeldKey(1), []byte("{}")) })
				tx.OnCommit(func() { committed = true })
				return nil
			})
		},
		"sync":    func() error { return s.MarkSync(ctx, "ada", time.Now(), "") },
		"wire":    func() error { return s.Wire().LearnExpunge(ctx, "ada", "INBOX", []uint32{1}) },
		"account": func() error { _, err := s.EnsureAccount(ctx, "Bob", row.Production); return err },
		"value":   func() error { return s.SaveJSON(ctx, "greeting", "x") },
		"state":   func() error { return s.SaveState(ctx, "failover", "protecting", 8) },
		"ledger": func() error {
			_, err := s.opt.Meta.Commit(ctx, meta.Batch{Do: []meta.Op{{Key: meta.HeldKey(2), Val: []byte("{}")}}})
			return err
		},
	} {
		if err := write(); !errors.Is(err, meta.ErrEpoch) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for k, v := range dump(t, d) {
		if before[k] != v {
			t.Errorf("%q was changed", k)
		}
		delete(before, k)
	}
	if len(before) > 0 || committed || len(told) > 0 {
		t.Errorf("%d rows are gone, told of staged rows %v, watchers %d", len(before), committed, len(told))
	}
	if sn, err := s.Snapshot("ada", "INBOX"); err != nil || len(sn.Rows) != 3 {
		t.Error("what was refused is shown", err)
	}
	if boxes, _ := s.Mailboxes("ada"); len(boxes) != 1 || len(s.Accounts()) != 1 {
		t.Error("what was refused is shown")
	}
	var state string
	if ok, err := s.LoadJSON("failover", &state); !ok || err != nil || state != "serving" {
		t.Error(state, err)
	}
	// Loaded again it may take over in its turn.
	if err := s.Alone(ctx, func() error {
		return d.View(func(sn meta.Snap) error { return errors.Join(s.opt.Meta.Load(sn), s.Load(sn)) })
	}); err != nil {
		t.Fatal(err)
	}
	if err := s.SaveState(ctx, "failover", "protecting", 8); err != nil {
		t.Error(err)
	}
	if err := put(t, s, "ada", "INBOX", 52); err != nil {
		t.Error(err)
	}
	if err := put(t, other, "ada", "INBOX", 53); !errors.Is(err, meta.ErrEpoch) {
		t.Error(err)
	}
}

// What a store was writing while it advanced the epoch itself is neither refused nor
// lost, nor is what it writes while it advances again and again.
func TestOwnAdvance(t *testing.T) {
	d, s := onDisk(t)
	seed(t, s, "Ada")
	seed(t, s, "Bob")
	reached, release := d.hold("Ada", false)
	late := make(chan error)
	go func() { late <- put(t, s, "ada", "INBOX", 50) }()
	<-reached
	if err := s.SaveState(t.Context(), "failover", "fencing", 1); err != nil {
		t.Fatal(err)
	}
	release()
	if err := <-late; err != nil {
		t.Error(err)
	}
	var wg sync.WaitGroup
	for _, u := range []string{"ada", "bob"} {
		wg.Go(func() {
			for i := range uint32(50) {
				if err := put(t, s, u, "INBOX", 100+i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for e := range uint64(20) {
		if err := s.SaveState(context.Background(), "failover", e, e+2); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	for u, n := range map[string]int{"ada": 54, "bob": 53} {
		x, _ := s.Snapshot(u, "INBOX")
		y, err := over(t, d).Snapshot(u, "INBOX")
		if err != nil || len(x.Rows) != n || len(y.Rows) != n {
			t.Errorf("%s: %d messages, on disk %d, want %d", u, len(x.Rows), len(y.Rows), n)
		}
	}
}
