package store

import (
	"testing"

	"understudy/replica/row"
)

// The base holds what a message was before the standby's first change of it, also if
// one Update changes it twice; what the standby made has none.
func TestBase(t *testing.T) {
	s, a, id := acted(t)
	ctx := t.Context()
	if err := s.Update(ctx, "ada", ByStandby, func(tx *Tx) error {
		for _, f := range []string{"once", "twice"} {
			r := tx.Find(id, 1)
			r.Flags = []string{f}
			tx.PutRow(id, r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"x", `\Deleted`} {
		if _, err := a.SetFlags(ctx, "ada", row.FlagChange{Mailbox: id, UIDs: []uint32{1, 2}, Op: row.Add,
			Flags: []string{f}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := a.Append(ctx, "ada", "INBOX", []row.New{{}}); err != nil {
		t.Fatal(err)
	}
	if err := a.Expunge(ctx, "ada", id, nil); err != nil {
		t.Fatal(err)
	}
	base, err := s.BaseRows("ADA", id)
	if err != nil || len(base) != 2 {
		t.Fatalf("%v %v", base, err)
	}
	for uid, m := range base {
		if len(m.Flags) != 1 || m.Flags[0] != `\Seen` {
			t.Errorf("the base of %d has %v", uid, m.Flags)
		}
	}
	// A mailbox that is deleted leaves its messages in the base.
	if err := a.Rename(ctx, "ada", "INBOX", "Old"); err != nil {
		t.Fatal(err)
	}
	if base, _ := s.BaseRows("ada", id); len(base) != 3 {
		t.Errorf("%d messages in the base", len(base))
	}
	if err := s.Rebase(ctx, "ada", func(tx *Tx) {
		tx.SetBaseBox(row.Mailbox{ID: id, Name: "INBOX"})
		tx.SetBaseBox(row.Mailbox{ID: 77, Name: "Else"})
		tx.SetBaseRow(77, &row.Message{UID: 5})
		tx.DropBaseRow(id, 1)
		tx.DropBaseBox(77)
	}); err != nil {
		t.Fatal(err)
	}
	boxes, _ := s.BaseBoxes("ada")
	base, _ = s.BaseRows("ada", id)
	other, _ := s.BaseRows("ada", 77)
	if len(boxes) != 1 || len(base) != 2 || len(other) != 0 {
		t.Errorf("%d mailboxes, %d and %d messages", len(boxes), len(base), len(other))
	}
	if err := s.Rebase(ctx, "ada", func(tx *Tx) { tx.DropBase() }); err != nil {
		t.Fatal(err)
	}
	boxes, _ = s.BaseBoxes("ada")
	if base, _ = s.BaseRows("ada", id); len(boxes)+len(base) != 0 {
		t.Error("the base is left")
	}
}
