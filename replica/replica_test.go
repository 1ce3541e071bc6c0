package replica

import (
	"errors"
	"slices"
	"testing"
	"time"

	"understudy/replica/row"
	"understudy/replica/store"
)

func open(t *testing.T, dir string) *Replica {
	t.Helper()
	s, err := Open(Options{Dir: dir, FoldCase: true, Domains: []string{"d.test"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// seeded is a store with an account whose INBOX is copied.
func seeded(t *testing.T, dir string) *Replica {
	t.Helper()
	s := open(t, dir)
	ctx := t.Context()
	if _, err := s.EnsureAccount(ctx, "Ada", row.Production); err != nil {
		t.Fatal(err)
	}
	err := s.Update(ctx, "ada", store.ByMirror, func(tx *store.Tx) error {
		m := tx.Add(row.Mailbox{Name: "INBOX", Sep: '/', UIDValidity: 9, UIDNext: 4, Synced: true, SyncedNext: 4})
		for uid := uint32(1); uid < 4; uid++ {
			tx.PutRow(m.ID, &row.Message{UID: uid, Flags: []string{`\Seen`}, Date: time.Unix(1, 0)})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// M13, N31: each side is refused while the other answers; the guard gap is
// left before the standby's first UID; the base is what was before.
func TestM13_OneWriter(t *testing.T) {
	dir := t.TempDir()
	s := seeded(t, dir)
	ctx := t.Context()
	add := func() error {
		_, _, err := s.Append(ctx, "ada", "INBOX", []row.New{{Date: time.Now()}})
		return err
	}
	if err := add(); !errors.Is(err, store.ErrNotHome) {
		t.Errorf("standby writes while production answers: %v", err)
	}
	if err := s.BeginActing(ctx, "ada", 8); err != nil {
		t.Fatal(err)
	}
	if err := s.LearnExpunge(ctx, "ada", "INBOX", []uint32{1}); !errors.Is(err, store.ErrNotHome) {
		t.Errorf("the mirror writes while the standby answers: %v", err)
	}
	if err := add(); err != nil {
		t.Fatal(err)
	}
	sn, _ := s.Snapshot("ada", "INBOX")
	if !slices.Equal(sn.UIDs, []uint32{1, 2, 3, 12}) {
		t.Errorf("UIDs %v, want a gap of 8", sn.UIDs)
	}
	if _, err := s.SetFlags(ctx, "ada",
		row.FlagChange{Mailbox: sn.ID, UIDs: []uint32{2}, Op: row.Add, Flags: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	s = open(t, dir)
	base, err := s.BaseRows("ada", sn.ID)
	if err != nil || len(base) != 1 || len(base[2].Flags) != 1 {
		t.Errorf("base %v, %v", base, err)
	}
	if h, _ := s.Home("ADA"); h != row.Standby {
		t.Error("who answers was forgotten in a restart")
	}
	if err := s.EndActing(ctx, "ada"); err != nil {
		t.Fatal(err)
	}
	if boxes, _ := s.BaseBoxes("ada"); len(boxes) != 0 {
		t.Error("base is left")
	}
}

// S1, S9: COPY and MOVE go by reference.
func TestS9_ByReference(t *testing.T) {
	s := seeded(t, t.TempDir())
	ctx := t.Context()
	if err := s.BeginActing(ctx, "ada", 0); err != nil {
		t.Fatal(err)
	}
	ref, _ := s.PutMessage([]byte("Subject: x\r\n\r\ny"))
	_, uids, err := s.Append(ctx, "ada", "INBOX", []row.New{{Ref: ref, Date: time.Now()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Create(ctx, "ada", "A/B", nil); err != nil {
		t.Fatal(err)
	}
	in, _ := s.Snapshot("ada", "INBOX")
	for range 10 {
		if _, err := s.Copy(ctx, "ada", row.CopyCmd{From: in.ID, UIDs: uids, To: "A/B"}); err != nil {
			t.Fatal(err)
		}
	}
	if n, _ := s.Blobs.Stats(); n != 1 {
		t.Errorf("%d stored messages, want 1", n)
	}
	if _, err := s.Copy(ctx, "ada", row.CopyCmd{From: in.ID, UIDs: uids, To: "A/B", Move: true}); err != nil {
		t.Fatal(err)
	}
	to, _ := s.Snapshot("ada", "A/B")
	if len(to.Rows) != 11 || to.Messages != 11 {
		t.Errorf("%d rows", len(to.Rows))
	}
}
