package replica

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"understudy/replica/row"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir, FoldCase: true, Domains: []string{"d.test"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// seeded is a store with an account whose INBOX is copied.
func seeded(t *testing.T, dir string) *Store {
	t.Helper()
	s := open(t, dir)
	ctx := t.Context()
	if _, err := s.EnsureAccount(ctx, "Ada", row.Production); err != nil {
		t.Fatal(err)
	}
	err := s.Update(ctx, "ada", Mirror, func(tx *Tx) error {
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
	if err := add(); !errors.Is(err, ErrNotHome) {
		t.Errorf("standby writes while production answers: %v", err)
	}
	if err := s.BeginActing(ctx, "ada", 8); err != nil {
		t.Fatal(err)
	}
	if err := s.LearnExpunge(ctx, "ada", "INBOX", []uint32{1}); !errors.Is(err, ErrNotHome) {
		t.Errorf("the mirror writes while the standby answers: %v", err)
	}
	if err := add(); err != nil {
		t.Fatal(err)
	}
	sn, _ := s.Snapshot("ada", "INBOX")
	if !slices.Equal(sn.UIDs, []uint32{1, 2, 3, 12}) {
		t.Errorf("UIDs %v, want a gap of 8", sn.UIDs)
	}
	if _, err := s.SetFlags(ctx, "ada", row.FlagChange{Mailbox: sn.ID, UIDs: []uint32{2}, Op: row.Add, Flags: []string{"x"}}); err != nil {
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

// T8, B10: a held delivery goes with its last recipient, once, and routes are
// learned from where it lands.
func TestB10_HeldAndRoutes(t *testing.T) {
	dir := t.TempDir()
	s := seeded(t, dir)
	ctx := t.Context()
	orig := []byte("Subject: hello there\r\n\r\nbody\r\n")
	ref, _ := s.PutMessage(orig)
	h, err := s.Hold(ctx, row.Held{From: "x@y", Rcpts: []string{"Alias@d.test"}, Ref: ref, Arrived: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	head := []byte("Received: by z\r\nSubject: hello there\r\n\r\n")
	got, msg, ok := s.MatchHeld(Arrival{Header: head, Size: int64(len(head) + 6)})
	if !ok || got.ID != h.ID || string(msg) != string(head)+"body\r\n" {
		t.Fatalf("no match: %v %q", ok, msg)
	}
	if _, _, ok := s.MatchHeld(Arrival{Header: []byte("X-Subject: hello there\r\n\r\n"), Size: 32}); ok {
		t.Error("a header that only ends alike is matched")
	}
	if err := s.Land(ctx, "Ada", "INBOX", []row.Held{got}, func(*Tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if r, ok := s.RouteOf("alias@D.test"); !ok || r.Account != "Ada" || s.HeldCount() != 0 {
		t.Errorf("route %+v, held %d", r, s.HeldCount())
	}
	h, _ = s.Hold(ctx, row.Held{From: "x@y", Rcpts: []string{"alias@d.test", "ada@d.test"}, Ref: ref, Arrived: time.Now(), Standby: true})
	_ = s.Close()
	s = open(t, dir)
	if err := s.BeginActing(ctx, "ada", 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, r := range h.Rcpts {
			if err := s.Deliver(context.Background(), h, r, orig); err != nil {
				t.Fatal(err)
			}
		}
	}
	sn, _ := s.Snapshot("ada", "INBOX")
	if len(sn.Rows) != 5 || s.HeldCount() != 0 {
		t.Errorf("%d messages, %d held; delivering twice must deliver once", len(sn.Rows), s.HeldCount())
	}
}

// N18: a message that was accepted, and whose sender was not answered before the
// process ended, is known when the sender comes again; once, and not after it was
// refused or answered.
func TestN18_SenderComesAgain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx := t.Context()
	if _, err := s.EnsureAccount(ctx, "ada@d.test", row.Production); err != nil {
		t.Fatal(err)
	}
	hold := func(text string) (row.Held, row.Envelope, row.Ref) {
		ref, err := s.PutMessage([]byte("Subject: x\r\n\r\n" + text))
		if err != nil {
			t.Fatal(err)
		}
		h, err := s.Hold(ctx, row.Held{From: "x@y", Rcpts: []string{"ada@d.test", "Bob@d.test"}, Ref: ref, Arrived: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		return h, row.Envelope{From: "x@y", Rcpts: []string{"bob@d.test", "ada@d.test"}}, ref
	}
	_, e, lost := hold("not answered")
	seen, _, landed := hold("not answered, and seen in a mailbox")
	if err := s.DropHeld(ctx, seen.ID, func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	refused, _, no := hold("refused")
	if err := s.Forget(ctx, refused.ID); err != nil {
		t.Fatal(err)
	}
	_, _, answered := hold("answered")
	s.Replied(e, answered)
	_, _, last := hold("the next, which strikes the answered one off")
	s.Replied(e, last)
	again := func(ref row.Ref, want bool, why string) {
		t.Helper()
		if ok, err := s.Repeated(ctx, e, ref); err != nil || ok != want {
			t.Errorf("%s: %v, %v", why, ok, err)
		}
	}
	again(lost, false, "while the process lives")
	if err := errors.Join(s.Meta.Close(), s.Blobs.Close()); err != nil { // nothing more is written
		t.Fatal(err)
	}
	s = open(t, dir)
	if ok, _ := s.Repeated(ctx, row.Envelope{From: "x@y", Rcpts: []string{"ada@d.test"}}, lost); ok {
		t.Error("for other recipients")
	}
	again(lost, true, "not answered")
	again(lost, false, "a third time")
	again(landed, true, "seen in a mailbox")
	again(no, false, "refused")
	again(answered, false, "answered")
	owed := s.HeldAll()
	if len(owed) == 0 || !owed[0].Owed {
		t.Errorf("what production may not have is not owed: %+v", owed)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
