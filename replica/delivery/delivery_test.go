package delivery_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"understudy/replica"
	"understudy/replica/delivery"
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
	got, msg, ok := s.MatchHeld(delivery.Arrival{Header: head, Size: int64(len(head) + 6)})
	if !ok || got.ID != h.ID || string(msg) != string(head)+"body\r\n" {
		t.Fatalf("no match: %v %q", ok, msg)
	}
	if _, _, ok := s.MatchHeld(delivery.Arrival{Header: []byte("X-Subject: hello there\r\n\r\n"), Size: 32}); ok {
		t.Error("a header that only ends alike is matched")
	}
	in := delivery.Landed{"Ada", "INBOX", []row.Held{got}}
	if err := s.Land(ctx, store.ByMirror, in, func(*store.Tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if r, ok := s.RouteOf("alias@D.test"); !ok || r.Account != "Ada" || s.HeldCount() != 0 {
		t.Errorf("route %+v, held %d", r, s.HeldCount())
	}
	h, _ = s.Take(ctx, row.Held{From: "x@y", Rcpts: []string{"alias@d.test", "ada@d.test"}, Ref: ref,
		Arrived: time.Now()})
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
	if s.Delivered(e, sent, began.Add(48*time.Hour)) ||
		s.Delivered(row.Envelope{Rcpts: []string{"ada@d.test", "nobody@d.test"}}, sent, began) {
		t.Error("an older one, or not all recipients")
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
