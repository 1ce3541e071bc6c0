package store

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// open returns a store over the rows in a directory.
func open(t *testing.T, dir string) *Store {
	t.Helper()
	m, err := meta.OpenBolt(filepath.Join(dir, "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return over(t, m)
}

func over(t *testing.T, m meta.Store) *Store {
	t.Helper()
	h := meta.NewHandle(m)
	s := New(Options{Meta: h, FoldCase: true})
	if err := errors.Join(m.View(h.Load), m.View(s.Load)); err != nil {
		t.Fatal(err)
	}
	return s
}

// seed makes an account whose INBOX is copied.
func seed(t *testing.T, s *Store, name string) row.MailboxID {
	t.Helper()
	if _, err := s.EnsureAccount(t.Context(), name, row.Production); err != nil {
		t.Fatal(err)
	}
	var id row.MailboxID
	err := s.Update(t.Context(), name, ByMirror, func(tx *Tx) error {
		m := tx.Add(row.Mailbox{Name: "INBOX", Sep: '/', UIDValidity: 9, UIDNext: 4, Synced: true, SyncedNext: 4})
		for uid := uint32(1); uid < 4; uid++ {
			tx.PutRow(m.ID, &row.Message{UID: uid, Flags: []string{`\Seen`}, Date: time.Unix(1, 0)})
		}
		id = m.ID
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// What a ledger stages is durable with the account's change, and shown in order once
// the account shows its own; nothing of it is if the change fails.
func TestStage(t *testing.T) {
	s := open(t, t.TempDir())
	seed(t, s, "Ada")
	var shown []string
	change := func(fail error) error {
		return s.Update(t.Context(), "ada", ByMirror, func(tx *Tx) error {
			tx.PutRow(tx.Box("INBOX").ID, &row.Message{UID: 7})
			tx.Stage(func(b *meta.Batch) { b.Put(meta.HeldKey(1), []byte("{}")) })
			tx.OnCommit(func() { shown = append(shown, "first") })
			tx.OnCommit(func() { shown = append(shown, "second") })
			return fail
		})
	}
	staged := func() (n int) {
		_ = s.opt.Meta.View(func(sn meta.Snap) error {
			for range sn.Scan(meta.Range(meta.Held())) {
				n++
			}
			return nil
		})
		return n
	}
	broken := errors.New("broken")
	if err := change(broken); !errors.Is(err, broken) || staged() != 0 || len(shown) != 0 {
		t.Errorf("a change that failed: %v, %d staged, %v shown", err, staged(), shown)
	}
	if err := change(nil); err != nil || staged() != 1 || !slices.Equal(shown, []string{"first", "second"}) {
		t.Errorf("%v, %d staged, %v shown", err, staged(), shown)
	}
	// With nothing to store there is nothing to wait for.
	err := s.Update(context.Background(), "ada", ByMirror, func(tx *Tx) error {
		tx.OnCommit(func() { shown = nil })
		return nil
	})
	if err != nil || shown != nil {
		t.Error("an empty change is not told of")
	}
}
