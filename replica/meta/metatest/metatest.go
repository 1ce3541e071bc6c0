// Package metatest holds the contract of metadata stores; every driver passes it.
package metatest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"understudy/replica/meta"
)

// Run checks a driver. open opens the same store again and again.
func Run(t *testing.T, open func(t *testing.T) meta.Store) {
	t.Run("batches are whole", func(t *testing.T) { whole(t, open(t)) })
	t.Run("conditions", func(t *testing.T) { conditions(t, open(t)) })
	t.Run("writers share", func(t *testing.T) { concurrent(t, open(t)) })
}

func get(t *testing.T, s meta.Store, key string) (string, meta.Rev) {
	t.Helper()
	var v string
	var rev meta.Rev
	if err := s.View(func(sn meta.Snap) error {
		b, r, err := sn.Get([]byte(key))
		v, rev = string(b), r
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return v, rev
}

func commit(t *testing.T, s meta.Store, b meta.Batch) meta.Rev {
	t.Helper()
	r, err := s.Commit(context.Background(), b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func whole(t *testing.T, s meta.Store) {
	defer func() { _ = s.Close() }()
	var b meta.Batch
	for i := range 10 {
		b.Put(fmt.Appendf(nil, "k/%d", i), []byte("v"))
	}
	commit(t, s, b)
	b = meta.Batch{}
	b.DeleteRange([]byte("k/3"), []byte("k/6"))
	b.Delete([]byte("k/9"))
	commit(t, s, b)
	n := 0
	_ = s.View(func(sn meta.Snap) error {
		for range sn.Scan([]byte("k/"), meta.PrefixEnd([]byte("k/"))) {
			n++
		}
		return sn.Err()
	})
	if n != 6 {
		t.Errorf("%d rows, want 6", n)
	}
}

func conditions(t *testing.T, s meta.Store) {
	defer func() { _ = s.Close() }()
	key := []byte("c")
	rev := commit(t, s, meta.Batch{If: []meta.Cond{{Key: key}}, Do: []meta.Op{{Key: key, Val: []byte("1")}}})
	if _, got := get(t, s, "c"); got != rev {
		t.Errorf("revision %d, want %d", got, rev)
	}
	_, err := s.Commit(context.Background(), meta.Batch{If: []meta.Cond{{Key: key}}, Do: []meta.Op{{Key: key, Val: []byte("2")}}})
	if !errors.Is(err, meta.ErrConflict) {
		t.Errorf("absent: %v", err)
	}
	if v, _ := get(t, s, "c"); v != "1" {
		t.Errorf("refused batch was applied: %q", v)
	}
}

func concurrent(t *testing.T, s meta.Store) {
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for i := range 20 {
				if _, err := s.Commit(context.Background(), meta.Batch{Do: []meta.Op{{Key: fmt.Appendf(nil, "w/%d/%d", w, i), Val: []byte("x")}}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	n := 0
	_ = s.View(func(sn meta.Snap) error {
		for range sn.Scan([]byte("w/"), nil) {
			n++
		}
		return sn.Err()
	})
	if n != 400 {
		t.Errorf("%d rows, want 400", n)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Commit(context.Background(), meta.Batch{}); !errors.Is(err, meta.ErrClosed) {
		t.Errorf("commit after Close: %v", err)
	}
}
