package doubt_test

import (
	"slices"
	"testing"
	"time"

	"understudy/replica"
	"understudy/replica/row"
	"understudy/replica/store"
)

func open(t *testing.T, dir string) *replica.Replica {
	t.Helper()
	s, err := replica.Open(replica.Options{Dir: dir, FoldCase: true, Domains: []string{"d.test"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// seeded is a replica with an account whose INBOX is copied.
func seeded(t *testing.T, dir string) *replica.Replica {
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

// B5, M16: a MOVE that was sent, and whose answer nobody knows since the process
// was ended, is a doubt of the next one; one that was answered is none.
func TestB5_MoveWithoutAnswer(t *testing.T) {
	dir := t.TempDir()
	s := seeded(t, dir)
	s.Intend("ada", row.MoveDoubt("INBOX", "Filed", []uint32{1, 2}, 0))
	arrived, over := s.Intend("ada", row.MoveDoubt("INBOX", "Filed", []uint32{3}, 0))
	if uids := s.Moving("ada", "INBOX"); len(uids) != 3 || len(s.Moving("ada", "Filed")) != 0 {
		t.Errorf("moved away are %v", uids)
	}
	arrived()
	if uids := s.Moving("ada", "INBOX"); len(uids) != 2 {
		t.Errorf("moved away to where nobody knows are %v", uids)
	}
	over()
	s.Intend("nobody", row.MoveDoubt("INBOX", "Filed", []uint32{3}, 0))
	s.Intend("ada", row.MoveDoubt("Gone", "Filed", []uint32{3}, 0))
	if err := s.Close(); err != nil { // as the kernel closes files of the dead: nothing is struck off
		t.Fatal(err)
	}
	for range 2 { // it is told of once
		s = open(t, dir)
		d, err := s.DoubtsOf("ada")
		if err != nil || len(d) != 1 || !slices.Equal(d[0].UIDs, []uint32{1, 2}) || len(d[0].Refs) != 2 {
			t.Fatalf("doubts %+v %v", d, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
