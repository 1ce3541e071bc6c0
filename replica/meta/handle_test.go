package meta_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"understudy/replica/meta"
	"understudy/replica/meta/metatest"
)

func driver(t *testing.T) meta.Store {
	t.Helper()
	s, err := meta.OpenBolt(filepath.Join(t.TempDir(), "m.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func handle(t *testing.T, s meta.Store) *meta.Handle {
	t.Helper()
	h := meta.NewHandle(s)
	if err := s.View(h.Load); err != nil {
		t.Fatal(err)
	}
	return h
}

// A handle is a metadata store.
func TestHandle(t *testing.T) {
	metatest.Run(t, func(t *testing.T) meta.Store { return handle(t, driver(t)) })
}

func putting(key string) meta.Batch {
	return meta.Batch{Do: []meta.Op{{Key: []byte(key), Val: []byte("v")}}}
}

func has(t *testing.T, s meta.Store, key string) (ok bool) {
	t.Helper()
	if err := s.View(func(sn meta.Snap) error {
		b, _, err := sn.Get([]byte(key))
		ok = b != nil
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return ok
}

// M13: once one handle has advanced, nothing of another one is committed, for good; a
// new Load begins again.
func TestM13_OldEpochIsRefused(t *testing.T) {
	d, ctx := driver(t), t.Context()
	old, next := handle(t, d), handle(t, d)
	for _, h := range []*meta.Handle{old, next} { // nobody has advanced
		if _, err := h.Commit(ctx, putting("before")); err != nil || h.Epoch() != 0 {
			t.Fatal(err)
		}
	}
	if err := next.Advance(ctx, 3, putting("with it")); err != nil || next.Epoch() != 3 || !has(t, d, "with it") {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := old.Commit(ctx, putting("old")); !errors.Is(err, meta.ErrEpoch) {
			t.Errorf("an old handle's batch: %v", err)
		}
		if err := old.Advance(ctx, 4, putting("old")); !errors.Is(err, meta.ErrEpoch) {
			t.Errorf("an old handle advances: %v", err)
		}
	}
	if has(t, d, "old") {
		t.Error("part of it is there")
	}
	if err := next.Advance(ctx, 3, putting("same epoch")); err != nil || !has(t, d, "same epoch") {
		t.Error(err)
	}
	if err := next.Advance(ctx, 2, putting("older epoch")); !errors.Is(err, meta.ErrEpoch) || has(t, d, "older epoch") {
		t.Error("the epoch falls")
	}
	if _, err := meta.NewHandle(d).Commit(ctx, putting("not loaded")); !errors.Is(err, meta.ErrEpoch) {
		t.Error("a handle that was not loaded writes")
	}
	if err := d.View(old.Load); err != nil || old.Epoch() != 3 {
		t.Fatal(err)
	}
	if err := old.Advance(ctx, 4, putting("again")); err != nil {
		t.Error(err)
	}
	if _, err := next.Commit(ctx, putting("old")); !errors.Is(err, meta.ErrEpoch) || has(t, d, "old") {
		t.Error(err)
	}
}

// stopped lets a batch wait before it gets to the driver.
type stopped struct {
	meta.Store
	at, go_ chan struct{}
	fail    error // of batches, after they are durable
}

func (s *stopped) Commit(ctx context.Context, b meta.Batch) (meta.Rev, error) {
	if string(b.Do[0].Key) == "slow" {
		s.at <- struct{}{}
		<-s.go_
	}
	rev, err := s.Store.Commit(ctx, b)
	return rev, errors.Join(err, s.fail)
}

// A batch that was under way when its own handle advanced is committed, once; if the
// handle was loaded again meanwhile, it is of another reign.
func TestAdvanceUnderWay(t *testing.T) {
	for _, reload := range []bool{false, true} {
		d, ctx := driver(t), t.Context()
		s := &stopped{Store: d, at: make(chan struct{}, 9), go_: make(chan struct{})}
		h := handle(t, s)
		done := make(chan error)
		go func() {
			_, err := h.Commit(ctx, putting("slow"))
			done <- err
		}()
		<-s.at
		if reload {
			if err := d.View(h.Load); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.Advance(ctx, 1, putting("a")); err != nil {
			t.Fatal(err)
		}
		close(s.go_)
		if err := <-done; errors.Is(err, meta.ErrEpoch) != reload || has(t, d, "slow") == reload {
			t.Errorf("loaded again %v: %v", reload, err)
		}
	}
}

// An Advance that failed, and is durable all the same, is this handle's own.
func TestAdvanceUnsure(t *testing.T) {
	s := &stopped{Store: driver(t), fail: errors.New("no answer")}
	h := handle(t, s)
	if err := h.Advance(t.Context(), 1, putting("a")); !errors.Is(err, s.fail) {
		t.Fatal(err)
	}
	s.fail = nil
	if _, err := h.Commit(t.Context(), putting("b")); err != nil || h.Epoch() != 1 {
		t.Errorf("%v, epoch %d", err, h.Epoch())
	}
}

// Writers go on while their own handle advances again and again; none is refused, and
// each batch is there; a condition that fails is told as such.
func TestAdvanceAmongWriters(t *testing.T) {
	d := driver(t)
	h := handle(t, d)
	var wg sync.WaitGroup
	for w := range 5 {
		wg.Go(func() {
			for i := range 40 {
				if _, err := h.Commit(t.Context(), putting(fmt.Sprintf("w/%d/%d", w, i))); err != nil {
					t.Error(err)
				}
				b := putting("w/0/no")
				b.If = []meta.Cond{{Key: []byte("absent"), Rev: 1}}
				_, err := h.Commit(t.Context(), b)
				if !errors.Is(err, meta.ErrConflict) || errors.Is(err, meta.ErrEpoch) {
					t.Errorf("a condition that does not hold: %v", err)
				}
			}
		})
	}
	for range 2 { // of two that advance at once, one may come late; the epoch never falls
		wg.Go(func() {
			for e := range uint64(30) {
				before := h.Epoch()
				err := h.Advance(t.Context(), e+1, putting("e"))
				if err != nil && !errors.Is(err, meta.ErrEpoch) || h.Epoch() < max(before, e+1) {
					t.Errorf("epoch %d after %d and %d: %v", h.Epoch(), before, e+1, err)
				}
			}
		})
	}
	wg.Wait()
	n := 0
	_ = d.View(func(sn meta.Snap) error {
		for range sn.Scan(meta.Range([]byte("w/"))) {
			n++
		}
		return nil
	})
	if n != 200 || h.Epoch() != 30 {
		t.Errorf("%d batches, epoch %d", n, h.Epoch())
	}
}
