package delivery_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"understudy/replica/delivery"
	"understudy/replica/row"
	"understudy/replica/store"
)

// restarted is what a held message is for a process that reads it from the disk.
func restarted(h row.Held) row.Held {
	next, _, _ := h.Step(row.HeldHappened{Event: row.HeldRestarted, By: row.ByLoad})
	return next
}

// sameAfterRestart compares what is in memory with what the next process would have.
func (s *site) sameAfterRestart(t *testing.T, seed uint64, trail []string) {
	t.Helper()
	next := newSite(t, s.d, s.m)
	var want []row.Held
	for _, h := range s.l.HeldAll() {
		want = append(want, restarted(h))
	}
	got := next.l.HeldAll()
	same := slices.EqualFunc(want, got, func(a, b row.Held) bool {
		at, bt := a.Arrived.Equal(b.Arrived), a.BeforeArrived.Equal(b.BeforeArrived)
		a.Arrived, b.Arrived, a.BeforeArrived, b.BeforeArrived = time.Time{}, time.Time{}, time.Time{}, time.Time{}
		a.Seen, b.Seen = append([]string{}, a.Seen...), append([]string{}, b.Seen...)
		return at && bt && reflect.DeepEqual(a, b)
	})
	if !same {
		t.Fatalf("seed %d, after %v:\nin memory %+v\non disk    %+v", seed, trail, want, got)
	}
	for _, user := range []string{"ada", "bob"} {
		if a, b := s.l.Twins(user), next.l.Twins(user); len(a) != len(b) {
			t.Fatalf("seed %d, after %v: %d twins of %s in memory, %d on disk", seed, trail, len(a), user, len(b))
		}
	}
}

// N18, B10: whatever happens to held messages, in whatever order, a restart at any
// moment goes on with what was there; also if commits fail, and if nobody knows
// whether they did.
func TestRandomEventsWithRestarts(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 4))
		s := newSite(t, newDisk(), &messages{m: map[row.Ref][]byte{}})
		s.user(t, "ada")
		s.user(t, "bob")
		var trail []string
		got := map[string]int{} // deliveries that were called, by message and recipient
		for i := range 40 {
			if seed%2 == 1 {
				s.d.fail = func() (bool, bool) { return rng.IntN(6) == 0, rng.IntN(6) == 0 }
			}
			what := s.something(t, rng, i, got)
			s.d.fail = nil
			trail = append(trail, what)
			if seed%2 == 1 {
				s.settle(t, i)
			}
			s.sameAfterRestart(t, seed, trail)
			if rng.IntN(8) == 0 {
				s = newSite(t, s.d, s.m)
				trail = append(trail, "restart")
			}
		}
		for k, n := range s.inMailboxes(t) {
			if n > got[k] || n > 1 {
				t.Fatalf("seed %d, after %v: %s is in its mailbox %d times", seed, trail, k, n)
			}
		}
	}
}

// settle has the ledger read again what it is not sure of, as whoever comes next has;
// also of messages that are not in memory.
func (s *site) settle(t *testing.T, last int) {
	t.Helper()
	var all []row.Held
	for i := range last + 1 {
		all = append(all, row.Held{ID: 1 << 60, Ref: row.RefOf(letter(i)), Rcpts: []string{"nobody"}, Key: "none"})
	}
	in := delivery.Landed{Account: "ada", Mailbox: "INBOX", Held: all}
	if err := s.l.Land(t.Context(), store.ByKeeper, in, func(*store.Tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
}

func letter(i int) []byte { return fmt.Appendf(nil, "Subject: %d\r\n\r\nbody %d\r\n", i, i) }

// something does one thing to the ledger, and says what.
func (s *site) something(t *testing.T, rng *rand.Rand, i int, got map[string]int) string {
	ctx := t.Context()
	all := s.l.HeldAll()
	if len(all) == 0 || rng.IntN(4) == 0 {
		ref, _ := s.m.Put(letter(i))
		h := row.Held{From: "x@y", Rcpts: []string{"ada@d.test", "bob@d.test"}, Ref: ref,
			Arrived: time.Unix(int64(i), 0)}
		if rng.IntN(2) == 0 {
			_, err := s.l.Take(ctx, h)
			return fmt.Sprintf("take %d: %v", i, err)
		}
		_, err := s.l.Hold(ctx, h)
		return fmt.Sprintf("hold %d: %v", i, err)
	}
	h := all[rng.IntN(len(all))]
	rcpt := h.Rcpts[rng.IntN(len(h.Rcpts))]
	var what string
	var err error
	switch rng.IntN(11) {
	case 0:
		what, err = "refuse", s.l.Refuse(ctx, h.ID)
	case 1:
		what = "confirm"
		s.l.Confirm(h.ID)
	case 2:
		what, err = "owe", s.l.Owe(ctx, h.ID)
	case 3:
		what = "giving"
		ever := func(h row.Held) bool { return h.MayGive(time.Unix(1<<40, 0)) }
		_, _, err = s.l.Giving(ctx, h.ID, time.Unix(int64(1000+i), 0), ever)
	case 4:
		what, err = "given", s.l.Given(ctx, h.ID)
	case 5:
		what, err = "not given", s.l.NotGiven(ctx, h.ID)
	case 6:
		what, err = "giving lost", s.l.GivingLost(ctx, h.ID)
	case 7:
		what, err = "expire", s.l.Expire(ctx, h.ID)
	case 8:
		what, err = "found", s.l.Found(ctx, h.ID)
	case 9:
		what = "land in ada's"
		in := delivery.Landed{Account: "ada", Mailbox: "INBOX", Held: []row.Held{h}}
		err = s.l.Land(ctx, store.ByKeeper, in, func(*store.Tx) error { return nil })
	case 10:
		what = "deliver to " + rcpt
		msg, _ := s.m.Get(h.Ref)
		got[h.Ref.String()+rcpt]++
		err = s.l.Deliver(ctx, h, rcpt, append([]byte("Delivered-To: "+rcpt+"\r\n"), msg...))
	}
	return fmt.Sprintf("%s %d, which was %s: %v", what, h.ID, h.State, err)
}

// inMailboxes counts messages by content and recipient.
func (s *site) inMailboxes(t *testing.T) map[string]int {
	out := map[string]int{}
	for _, user := range []string{"ada", "bob"} {
		sn, err := s.st.Snapshot(user, "INBOX")
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range sn.Rows {
			b, _ := s.m.Get(m.Ref)
			sent := b[int64(len(b))-m.Tail:]
			out[row.RefOf(sent).String()+user+"@d.test"]++
		}
	}
	return out
}

// H4: one account's slow commit delays neither what is held, landed and delivered of
// other messages, nor readers; another step of the same message waits for it.
func TestSlowCommitDelaysNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, newDisk(), &messages{m: map[row.Ref][]byte{}})
		s.user(t, "ada")
		s.user(t, "bob")
		ctx := t.Context()
		take := func(i int, rcpts ...string) row.Held {
			ref, _ := s.m.Put(letter(i))
			h, err := s.l.Take(ctx, row.Held{From: "x@y", Rcpts: rcpts, Ref: ref, Arrived: time.Now()})
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		nothing := func(*store.Tx) error { return nil }
		slow, other, third := take(0, "ada@d.test", "bob@d.test"), take(1, "bob@d.test"), take(2, "bob@d.test")
		s.d.at, s.d.go_, s.d.slow = make(chan struct{}, 9), make(chan struct{}), "/ada"
		done := make(chan error, 9)
		go func() {
			in := delivery.Landed{Account: "ada", Mailbox: "INBOX", Held: []row.Held{slow}}
			done <- s.l.Land(ctx, store.ByKeeper, in, func(tx *store.Tx) error {
				m := tx.Box("INBOX")
				tx.PutRow(m.ID, &row.Message{UID: 9})
				tx.Put(m)
				return nil
			})
		}()
		<-s.d.at // it waits for the disk, and goes on doing so
		began := time.Now()
		if n := len(s.l.HeldAll()); n != 3 || s.l.HeldCount() != 3 {
			t.Errorf("%d messages, not as before", n)
		}
		in := delivery.Landed{Account: "bob", Mailbox: "INBOX", Held: []row.Held{other}}
		if err := s.l.Land(ctx, store.ByKeeper, in, nothing); err != nil {
			t.Error(err)
		}
		if err := s.l.Deliver(ctx, third, "bob@d.test", letter(2)); err != nil {
			t.Error(err)
		}
		fourth := take(3, "bob@d.test")
		if _, ok, err := s.l.Giving(ctx, fourth.ID, time.Now(), row.Held.OnlyOurs); !ok || err != nil {
			t.Error(ok, err)
		}
		if h, ok := s.l.MatchHeldBody(letter(3)); !ok || h.ID != fourth.ID {
			t.Error("not found")
		}
		if time.Since(began) != 0 {
			t.Errorf("they took %s", time.Since(began))
		}
		// The same message's second recipient is another account's, and the same row.
		short, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := s.l.Deliver(short, slow, "bob@d.test", letter(0)); err == nil {
			t.Error("one message was changed twice at a time")
		}
		close(s.d.go_)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.l.Deliver(ctx, slow, "bob@d.test", letter(0)); err != nil || s.l.HeldCount() != 1 {
			t.Errorf("%v, %d held", err, s.l.HeldCount())
		}
	})
}

// Promise 2: a delivery whose commit failed, and is durable all the same, is not done
// again.
func TestDeliveredThoughTheCommitFailed(t *testing.T) {
	s := newSite(t, newDisk(), &messages{m: map[row.Ref][]byte{}})
	s.user(t, "ada")
	ref, _ := s.m.Put(letter(0))
	h, err := s.l.Take(t.Context(), row.Held{From: "x@y", Rcpts: []string{"ada@d.test"}, Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	s.d.fail = func() (bool, bool) { return false, true }
	if err := s.l.Deliver(t.Context(), h, "ada@d.test", letter(0)); err == nil {
		t.Error("nobody was told")
	}
	s.d.fail = nil
	if err := s.l.Deliver(t.Context(), h, "ada@d.test", letter(0)); err != nil {
		t.Error(err)
	}
	if sn, err := s.st.Snapshot("ada", "INBOX"); err != nil || len(sn.Rows) != 1 || s.l.HeldCount() != 0 {
		t.Errorf("%d messages, %d held, %v", len(sn.Rows), s.l.HeldCount(), err)
	}
}

// A ledger that is loaded again has what is on disk, and nothing else.
func TestLoadAgain(t *testing.T) {
	s := newSite(t, newDisk(), &messages{m: map[row.Ref][]byte{}})
	s.user(t, "ada")
	ref, _ := s.m.Put(letter(0))
	h := row.Held{From: "x@y", Rcpts: []string{"ada@d.test"}, Ref: ref}
	mine, err := s.l.Take(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	other := newSite(t, s.d, s.m)
	if err := other.l.Deliver(t.Context(), mine, "ada@d.test", letter(0)); err != nil {
		t.Fatal(err)
	}
	theirs, err := other.l.Hold(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.d.View(s.l.Load); err != nil {
		t.Fatal(err)
	}
	if all := s.l.HeldAll(); len(all) != 1 || all[0].ID != theirs.ID || all[0].State != row.HeldAccepted {
		t.Errorf("%+v", all)
	}
	if next, err := s.l.Hold(t.Context(), h); err != nil || next.ID <= theirs.ID {
		t.Errorf("number %d after %d, %v", next.ID, theirs.ID, err)
	}
}
