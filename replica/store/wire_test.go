package store

import (
	"errors"
	"slices"
	"testing"

	"understudy/replica/row"
)

func touched(t *testing.T, s *Store, mailbox string, uid uint32, mark uint64) (yes bool) {
	t.Helper()
	if err := s.Update(t.Context(), "ada", ByKeeper, func(tx *Tx) error {
		yes = tx.TouchedSince(tx.Box(mailbox).ID, uid, mark)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return yes
}

// What the wire told stands against a sync that began before, and is settled by one
// that begins after.
func TestWireAppend(t *testing.T) {
	s := open(t, t.TempDir())
	seed(t, s, "Ada")
	before := s.Clock("ada")
	for range 2 { // told twice it is there once
		if err := s.Wire().LearnAppend(t.Context(), "ada", row.AppendOf{Mailbox: "INBOX", UIDValidity: 9, UID: 7,
			New: row.New{Flags: []string{"x"}}}); err != nil {
			t.Fatal(err)
		}
	}
	after := s.Clock("ada")
	sn := snapshot(t, s, "INBOX")
	if m := sn.Find(7); !slices.Equal(sn.UIDs, []uint32{1, 2, 3, 7}) || !m.Unsettled || sn.UIDNext != 8 {
		t.Errorf("%v %+v", sn.UIDs, m)
	}
	if !touched(t, s, "INBOX", 7, before) || touched(t, s, "INBOX", 7, after) || touched(t, s, "INBOX", 1, before) {
		t.Error("what was touched since when")
	}
	if err := s.Wire().LearnAppend(t.Context(), "ada", row.AppendOf{Mailbox: "INBOX", UIDValidity: 8,
		UID: 9}); !errors.Is(err, ErrNoMailbox) {
		t.Errorf("another mailbox of that name: %v", err)
	}
}

// Of a STORE what production told counts, and for the rest what was asked; a message
// that is not there is no fault of a set, and is one when it was told of.
func TestWireFlags(t *testing.T) {
	s := open(t, t.TempDir())
	seed(t, s, "Ada")
	change := row.FlagChange{UIDs: []uint32{1, 2, 9}, Op: row.Add, Flags: []string{"x"}}
	if err := s.Wire().LearnFlags(t.Context(), "ada", "INBOX", change, []row.FlagsOf{{UID: 1,
		Flags: []string{"y"}}}); err != nil {
		t.Fatal(err)
	}
	sn := snapshot(t, s, "INBOX")
	if !slices.Equal(sn.Find(1).Flags, []string{"y"}) || !slices.Equal(sn.Find(2).Flags, []string{`\Seen`, "x"}) ||
		!sn.Find(2).Unsettled || sn.Find(3).Unsettled {
		t.Errorf("%v %v", sn.Find(1), sn.Find(2))
	}
	if err := s.Wire().LearnFlags(t.Context(), "ada", "INBOX", row.FlagChange{},
		[]row.FlagsOf{{UID: 9}}); !errors.Is(err, ErrNoMailbox) {
		t.Error(err)
	}
}

// Of a mailbox that is still being copied a message may be missing: the copy then reads
// it anew.
func TestWireCopying(t *testing.T) {
	s := open(t, t.TempDir())
	seed(t, s, "Ada")
	if err := put(t, s, "ada", "Half", 1); err != nil {
		t.Fatal(err)
	}
	mark := s.Clock("ada")
	if err := s.Wire().LearnFlags(t.Context(), "ada", "Half", row.FlagChange{UIDs: []uint32{5}, Op: row.Add},
		nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Wire().LearnCopy(t.Context(), "ada", row.CopyOf{From: "Half", To: "INBOX",
		Copied: row.Copied{Src: []uint32{6}, Dst: []uint32{20}}}); err != nil {
		t.Fatal(err)
	}
	if !touched(t, s, "Half", 5, mark) || !touched(t, s, "INBOX", 20, mark) || snapshot(t, s, "INBOX").Find(20) != nil {
		t.Error("the copy is not told")
	}
}

func TestWireCopy(t *testing.T) {
	s := open(t, t.TempDir())
	seed(t, s, "Ada")
	if err := put(t, s, "ada", "To", 1); err != nil {
		t.Fatal(err)
	}
	w, ctx := s.Wire(), t.Context()
	err := w.LearnCopy(ctx, "ada", row.CopyOf{From: "INBOX", To: "To", Move: true,
		Copied: row.Copied{UIDValidity: 9, Src: []uint32{2, 3}, Dst: []uint32{4, 5}}})
	in, to := snapshot(t, s, "INBOX"), snapshot(t, s, "To")
	if err != nil || !slices.Equal(in.UIDs, []uint32{1}) || !slices.Equal(to.UIDs, []uint32{1, 4, 5}) ||
		to.UIDNext != 6 || !to.Find(4).Unsettled {
		t.Errorf("%v %v %v", in.UIDs, to.UIDs, err)
	}
	if err := w.LearnCopy(ctx, "ada", row.CopyOf{From: "INBOX", To: "To",
		Copied: row.Copied{Src: []uint32{1}}}); !errors.Is(err, ErrNoMailbox) {
		t.Errorf("sets of unequal size: %v", err)
	}
	if err := w.LearnExpunge(ctx, "ada", "To", []uint32{4, 77}); err != nil || !slices.Equal(snapshot(t, s,
		"To").UIDs, []uint32{1, 5}) {
		t.Error("not expunged", err)
	}
}
