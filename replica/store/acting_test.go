package store

import (
	"errors"
	"slices"
	"testing"
	"time"

	"understudy/replica/row"
)

// acted is a store whose account is the standby's.
func acted(t *testing.T) (*Store, Acting, row.MailboxID) {
	t.Helper()
	s := open(t, t.TempDir())
	id := seed(t, s, "Ada")
	if err := s.Update(t.Context(), "ada", ByKeeper, func(tx *Tx) error {
		m := tx.BoxByID(id)
		m.Gap = 8
		tx.Put(m)
		tx.SetHome(row.Standby)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return s, s.Acting(), id
}

func snapshot(t *testing.T, s *Store, mailbox string) *row.Snapshot {
	t.Helper()
	sn, err := s.Snapshot("ada", mailbox)
	if err != nil {
		t.Fatal(err)
	}
	return sn
}

// M13: each side is refused while the other one answers, and the standby while an
// account is sealed.
func TestOneSide(t *testing.T) {
	s, a, id := acted(t)
	add := func() error {
		_, _, err := a.Append(t.Context(), "ada", "INBOX", []row.New{{Date: time.Now()}})
		return err
	}
	if err := add(); err != nil {
		t.Error(err)
	}
	if err := s.Wire().LearnExpunge(t.Context(), "ada", "INBOX", []uint32{1}); !errors.Is(err, ErrNotHome) {
		t.Errorf("the wire writes while the standby answers: %v", err)
	}
	if err := s.Seal("ada", true); err != nil {
		t.Fatal(err)
	}
	if err := add(); !errors.Is(err, ErrNotHome) {
		t.Errorf("a sealed account is changed: %v", err)
	}
	if err := s.Rebase(t.Context(), "ada", func(tx *Tx) { tx.DropBaseRow(id, 1) }); err != nil {
		t.Errorf("copy-back is kept out: %v", err)
	}
	if err := s.Seal("ada", false); err != nil || add() != nil {
		t.Error("it stays sealed")
	}
}

// N31: the first UID leaves the gap; what the standby makes is fresh, with one MODSEQ a
// change.
func TestAppend(t *testing.T) {
	s, a, _ := acted(t)
	v, uids, err := a.Append(t.Context(), "ada", "INBOX", []row.New{{Flags: []string{`\seen`, `\Recent`}}, {Tail: 5}})
	sn := snapshot(t, s, "INBOX")
	if err != nil || v != 9 || !slices.Equal(uids, []uint32{12, 13}) || sn.UIDNext != 14 {
		t.Errorf("UIDVALIDITY %d, UIDs %v, UIDNEXT %d, %v", v, uids, sn.UIDNext, err)
	}
	if x, y := sn.Find(12), sn.Find(13); !x.Fresh || !slices.Equal(x.Flags, []string{`\Seen`}) || y.Tail != 5 ||
		x.ModSeq != sn.ModSeq || y.ModSeq != sn.ModSeq {
		t.Errorf("%+v, %+v", x, y)
	}
	if _, _, err := a.Append(t.Context(), "ada", "Nowhere", nil); !errors.Is(err, ErrNoMailbox) {
		t.Error(err)
	}
}

// RFC 7162 section 3.1.3: what changed since is left alone and told; what changes
// nothing gets no new MODSEQ.
func TestSetFlags(t *testing.T) {
	s, a, id := acted(t)
	set := func(c row.FlagChange) []uint32 {
		c.Mailbox = id
		modified, err := a.SetFlags(t.Context(), "ada", c)
		if err != nil {
			t.Fatal(err)
		}
		return modified
	}
	set(row.FlagChange{UIDs: []uint32{3}, Op: row.Add, Flags: []string{"x"}})
	set(row.FlagChange{UIDs: []uint32{1, 77}, Op: row.Add, Flags: []string{"x"}})
	high := snapshot(t, s, "INBOX").ModSeq
	if m := set(row.FlagChange{UIDs: []uint32{1, 2}, Op: row.Add, Flags: []string{"y"},
		UnchangedSince: high - 1}); !slices.Equal(m, []uint32{1}) {
		t.Errorf("modified %v", m)
	}
	if sn := snapshot(t, s, "INBOX"); sn.ModSeq != high+1 || sn.Find(1).ModSeq != high || sn.Find(2).ModSeq != high+1 {
		t.Errorf("HIGHESTMODSEQ %d after %d, %+v %+v", sn.ModSeq, high, sn.Find(1), sn.Find(2))
	}
	set(row.FlagChange{UIDs: []uint32{1, 2}, Op: row.Remove, Flags: []string{"z"}})
	if sn := snapshot(t, s, "INBOX"); sn.ModSeq != high+1 {
		t.Errorf("HIGHESTMODSEQ %d though nothing changed", sn.ModSeq)
	}
}

// Only what is marked goes, and of that only what was named.
func TestExpunge(t *testing.T) {
	s, a, id := acted(t)
	if _, err := a.SetFlags(t.Context(), "ada", row.FlagChange{Mailbox: id, UIDs: []uint32{1, 2}, Op: row.Add,
		Flags: []string{`\Deleted`}}); err != nil {
		t.Fatal(err)
	}
	if err := a.Expunge(t.Context(), "ada", id, []uint32{2, 3}); err != nil {
		t.Fatal(err)
	}
	if sn := snapshot(t, s, "INBOX"); !slices.Equal(sn.UIDs, []uint32{1, 3}) {
		t.Errorf("left are %v", sn.UIDs)
	}
	if err := a.Expunge(t.Context(), "ada", id, nil); err != nil {
		t.Fatal(err)
	}
	if sn := snapshot(t, s, "INBOX"); !slices.Equal(sn.UIDs, []uint32{3}) {
		t.Errorf("left are %v", sn.UIDs)
	}
}

// S9: COPY and MOVE go by reference, also within one mailbox.
func TestCopy(t *testing.T) {
	s, a, id := acted(t)
	if err := a.Create(t.Context(), "ada", "To", nil); err != nil {
		t.Fatal(err)
	}
	c, err := a.Copy(t.Context(), "ada", row.CopyCmd{From: id, UIDs: []uint32{1, 9}, To: "To"})
	if err != nil || !slices.Equal(c.Src, []uint32{1}) || !slices.Equal(c.Dst, []uint32{1}) ||
		c.UIDValidity != snapshot(t, s, "To").UIDValidity {
		t.Errorf("%+v %v", c, err)
	}
	if _, err := a.Copy(t.Context(), "ada", row.CopyCmd{From: id, UIDs: []uint32{2}, To: "INBOX",
		Move: true}); err != nil {
		t.Fatal(err)
	}
	in := snapshot(t, s, "INBOX")
	if !slices.Equal(in.UIDs, []uint32{1, 3, 12}) || !in.Find(12).Fresh || in.Find(12).HasFlag(`\Seen`) != true {
		t.Errorf("%v", in.UIDs)
	}
	if _, err := a.Copy(t.Context(), "ada", row.CopyCmd{From: id, UIDs: []uint32{1},
		To: "Nowhere"}); !errors.Is(err, ErrNoMailbox) {
		t.Error(err)
	}
}

// RFC 9051 sections 6.3.4 to 6.3.6: parents are made; a mailbox with children stays as
// a name; renaming takes the children along, and empties INBOX.
func TestFolders(t *testing.T) {
	s, a, _ := acted(t)
	ctx := t.Context()
	names := func() (out []string) {
		boxes, _ := s.Mailboxes("ada")
		for _, m := range boxes {
			if m.NoSelect {
				m.Name += " (no)"
			}
			out = append(out, m.Name)
		}
		return out
	}
	check := func(err error, want ...string) {
		t.Helper()
		if got := names(); err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, want %v: %v", got, want, err)
		}
	}
	check(a.Create(ctx, "ada", "A/B/", []string{`\Sent`}), "A", "A/B", "INBOX")
	if err := a.Create(ctx, "ada", "A/B", nil); !errors.Is(err, ErrExists) || Code(err) != "ALREADYEXISTS" {
		t.Error(err)
	}
	for _, bad := range []string{"", "/a", "a//b", "a*", "a\x01"} {
		if err := a.Create(ctx, "ada", bad, nil); !errors.Is(err, ErrName) || Code(err) != "CANNOT" {
			t.Errorf("%q: %v", bad, err)
		}
	}
	first := snapshot(t, s, "A").UIDValidity
	check(a.Delete(ctx, "ada", "A"), "A (no)", "A/B", "INBOX")
	if err := a.Delete(ctx, "ada", "INBOX"); !errors.Is(err, ErrName) {
		t.Error(err)
	}
	check(a.Create(ctx, "ada", "A", nil), "A", "A/B", "INBOX")
	if v := snapshot(t, s, "A").UIDValidity; v <= first {
		t.Errorf("UIDVALIDITY %d after %d", v, first)
	}
	check(a.Rename(ctx, "ada", "A", "C/D"), "C", "C/D", "C/D/B", "INBOX")
	if err := a.Rename(ctx, "ada", "C", "C/E"); !errors.Is(err, ErrName) {
		t.Error(err)
	}
	check(a.Rename(ctx, "ada", "INBOX", "Old"), "C", "C/D", "C/D/B", "INBOX", "Old")
	if in, old := snapshot(t, s, "INBOX"), snapshot(t, s, "Old"); len(in.Rows) != 0 || len(old.Rows) != 3 ||
		in.ModSeq == 0 {
		t.Errorf("%d in INBOX, %d in Old", len(in.Rows), len(old.Rows))
	}
	if err := a.Subscribe(ctx, "ada", "Old", true); err != nil || !snapshot(t, s, "Old").Subscribed {
		t.Error("not subscribed", err)
	}
	if err := a.Subscribe(ctx, "ada", "Nowhere", true); !errors.Is(err, ErrNoMailbox) || Code(err) != "NONEXISTENT" {
		t.Error(err)
	}
}
