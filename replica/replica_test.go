package replica

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	if err := s.Land(ctx, store.ByMirror, Landed{"Ada", "INBOX", []row.Held{got}}, func(*store.Tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if r, ok := s.RouteOf("alias@D.test"); !ok || r.Account != "Ada" || s.HeldCount() != 0 {
		t.Errorf("route %+v, held %d", r, s.HeldCount())
	}
	h, _ = s.Take(ctx, row.Held{From: "x@y", Rcpts: []string{"alias@d.test", "ada@d.test"}, Ref: ref, Arrived: time.Now()})
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

// N18: a message that was about to be taken when the process was ended is known
// when its sender comes again, once; one whose sender was answered is not.
func TestN18_SenderComesAgain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	ctx := t.Context()
	if _, err := s.EnsureAccount(ctx, "ada@d.test", row.Production); err != nil {
		t.Fatal(err)
	}
	e := row.Envelope{From: "x@y", Rcpts: []string{"ada@d.test", "Bob@d.test"}}
	ref := func(text string) row.Ref { return row.RefOf([]byte("Subject: x\r\n\r\n" + text)) }
	lost, answered, left := ref("not answered"), ref("answered"), ref("its session ended")
	s.Await(e, lost)
	s.Replied(s.Await(e, answered))
	if s.Unanswered() {
		t.Error("a session that is at work is no sender that comes again")
	}
	s.Unreplied(s.Await(e, left))
	again := func(e row.Envelope, r row.Ref, want bool, why string) {
		t.Helper()
		if _, before, ok := s.Again(e, r); ok != want || ok && before != (r == lost) {
			t.Errorf("%s: %v, before %v", why, ok, before)
		}
	}
	again(e, left, true, "the session ended")
	again(e, left, false, "twice")
	f, err := os.OpenFile(filepath.Join(dir, "unanswered.journal"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(`{"ID":9,"Item":{"From":"cut of`)
		_ = f.Close()
	}
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time from the file begun anew
		s = open(t, dir)
		again(row.Envelope{From: "x@y", Rcpts: []string{"ada@d.test"}}, lost, false, "other recipients")
		again(e, answered, false, "answered")
		again(e, left, false, "a third time")
		if !s.Unanswered() {
			t.Error("forgotten by a restart")
		}
		_ = s.Close()
	}
	s = open(t, dir)
	for i := range maxLeft - 1 { // more would push it out
		s.Unreplied(s.Await(e, ref(fmt.Sprint(i))))
	}
	again(row.Envelope{From: "x@y", Rcpts: []string{"bob@d.test", "ada@D.test"}}, lost, true, "not answered")
	again(e, lost, false, "not answered, a second time")
}

// N18: the message of a sender that comes again is found in a mailbox.
func TestN18_Delivered(t *testing.T) {
	s := seeded(t, t.TempDir())
	orig := []byte("Subject: hello\r\n\r\nbody\r\n")
	sent, _ := s.PutMessage(orig)
	e := row.Envelope{From: "x@y", Rcpts: []string{"ada@d.test"}}
	began := time.Now()
	if s.Delivered(e, sent, began) {
		t.Error("found before it was delivered")
	}
	ref, _ := s.PutMessage(append([]byte("Received: by z\r\n"), orig...))
	err := s.Update(t.Context(), "ada", store.ByMirror, func(tx *store.Tx) error {
		tx.PutRow(tx.Box("INBOX").ID, &row.Message{UID: 9, Date: time.Now(), Size: ref.Size, Ref: ref})
		return nil
	})
	if err != nil || !s.Delivered(e, sent, began) {
		t.Errorf("not found: %v", err)
	}
	if s.Delivered(e, sent, began.Add(48*time.Hour)) || s.Delivered(row.Envelope{Rcpts: []string{"ada@d.test", "nobody@d.test"}}, sent, began) {
		t.Error("an older one, or not all recipients")
	}
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
		d, err := s.Doubts("ada")
		if err != nil || len(d) != 1 || !slices.Equal(d[0].UIDs, []uint32{1, 2}) || len(d[0].Refs) != 2 {
			t.Fatalf("doubts %+v %v", d, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// N18: who looks for held messages waits for those that are about to be held, and
// for no others.
func TestN18_AwaitHolds(t *testing.T) {
	s := open(t, t.TempDir())
	before := s.BeginHold()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.AwaitHolds(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("a hold is under way, and nobody waits for it: %v", err)
	}
	waited := make(chan error)
	go func() { waited <- s.AwaitHolds(t.Context()) }()
	before()
	if err := <-waited; err != nil {
		t.Error(err)
	}
	s.BeginHold()()
	if err := s.AwaitHolds(gone); err != nil {
		t.Errorf("no hold is under way: %v", err)
	}
}

// N18: a held message is delivered by the standby or given to production, by
// whoever is first; of what production may have the standby knows a twin when it
// delivers it.
func TestN18_DeliveredOrGiven(t *testing.T) {
	s := seeded(t, t.TempDir())
	ctx := t.Context()
	if err := s.BeginActing(ctx, "ada", 0); err != nil {
		t.Fatal(err)
	}
	orig := []byte("Subject: hello there\r\n\r\nbody\r\n")
	ref, _ := s.PutMessage(orig)
	for _, first := range []string{"delivered", "given"} {
		listed, err := s.Take(ctx, row.Held{From: "x@y", Rcpts: []string{"ada@d.test"}, Ref: ref, Arrived: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		give := func() bool {
			_, ok, err := s.Giving(ctx, listed.ID, time.Now(), row.Held.OnlyOurs)
			return ok && err == nil
		}
		if first == "given" && (!give() || give()) {
			t.Error("it is not given, or twice")
		}
		if err := s.Deliver(ctx, listed, "ada@d.test", orig); err != nil {
			t.Fatal(err)
		}
		if twins := len(s.Twins("Ada")); give() || (twins == 1) != (first == "given") {
			t.Errorf("%s first: given afterwards, or %d twins", first, twins)
		}
	}
}
