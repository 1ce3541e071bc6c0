package doubt_test

import (
	"slices"
	"testing"
	"time"

	"understudy/replica"
	"understudy/replica/doubt"
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

// M16: a takeover takes into the base what it has read of doubts, and leaves alone one
// that is noted just then: of what had moved nothing is left, of what had not all.
func TestTakeOverLeavesWhatIsNotedJustThen(t *testing.T) {
	s, ctx := seeded(t, t.TempDir()), t.Context()
	ref, _ := s.PutMessage([]byte("Subject: x\r\n\r\ny"))
	err := s.Update(ctx, "ada", store.ByMirror, func(tx *store.Tx) error {
		to := tx.Add(row.Mailbox{Name: "Filed", Sep: '/', UIDValidity: 10, UIDNext: 8, Synced: true})
		tx.PutRow(to.ID, &row.Message{UID: 7, Ref: ref, Date: time.Unix(1, 0)})
		tx.PutRow(tx.Box("INBOX").ID, &row.Message{UID: 2, Ref: ref, Date: time.Unix(1, 0)})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, uid := range []uint32{2, 3} {
		if err := s.NoteDoubt(ctx, "ada", row.MoveDoubt("INBOX", "Filed", []uint32{uid}, 5)); err != nil {
			t.Fatal(err)
		}
	}
	err = s.Update(ctx, "ada", store.ByKeeper, func(tx *store.Tx) error {
		if err := s.Doubts.TakeOver(tx); err != nil {
			return err
		}
		return s.NoteDoubt(ctx, "ada", row.RepeatedDoubt("Filed", ref))
	})
	if err != nil {
		t.Fatal(err)
	}
	all, err := s.DoubtsOf("ada")
	states := map[row.DoubtKind]row.DoubtState{}
	for _, d := range all {
		states[d.Kind] = d.State
	}
	if err != nil || len(all) != 2 || states[row.DoubtMove] != row.DoubtBased ||
		states[row.DoubtRepeated] != row.DoubtNoted {
		t.Errorf("%+v, %v", all, err)
	}
	if sn, _ := s.Snapshot("ada", "INBOX"); !slices.Equal(sn.UIDs, []uint32{1, 3}) {
		t.Errorf("in INBOX are %v", sn.UIDs)
	}
}

// What copy-back is about to do is known until the base has it, and is what it says.
func TestBeginCopy(t *testing.T) {
	s, ctx := seeded(t, t.TempDir()), t.Context()
	key, err := s.BeginCopy(ctx, "ada", row.AppendDoubt(1, row.Ref{Size: 1}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.BeginCopy(ctx, "ada", row.MoveDoubt("INBOX", "Filed", []uint32{1}, 0)); err == nil {
		t.Error("a client's MOVE is noted as copy-back's")
	}
	if err := s.NoteDoubt(ctx, "ada", row.FlagDoubt(1, 1, "x")); err == nil {
		t.Error("copy-back's flag is noted as a client's")
	}
	if all, err := s.DoubtsOf("ADA"); err != nil || len(all) != 1 || all[0].State != row.DoubtIntended {
		t.Errorf("%+v, %v", all, err)
	}
	err = s.Update(ctx, "ada", store.ByKeeper, func(tx *store.Tx) error { doubt.EndCopy(tx, key); return nil })
	if all, _ := s.DoubtsOf("ada"); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}
