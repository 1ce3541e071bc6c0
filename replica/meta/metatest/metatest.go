// Package metatest holds the contract of metadata stores; every driver passes it.
package metatest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"understudy/replica/meta"
)

// Run checks a driver. open opens the same store again and again.
func Run(t *testing.T, open func(t *testing.T) meta.Store) {
	t.Run("batches are whole", func(t *testing.T) { whole(t, open(t)) })
	t.Run("conditions", func(t *testing.T) { conditions(t, open(t)) })
	t.Run("conditions of what changes", func(t *testing.T) { changing(t, open(t)) })
	t.Run("conditions among writers", func(t *testing.T) { among(t, open(t)) })
	t.Run("ranges", func(t *testing.T) { ranges(t, open(t)) })
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
	_, err := s.Commit(context.Background(), meta.Batch{If: []meta.Cond{{Key: key}},
		Do: []meta.Op{{Key: key, Val: []byte("2")}}})
	if !errors.Is(err, meta.ErrConflict) {
		t.Errorf("absent: %v", err)
	}
	if v, _ := get(t, s, "c"); v != "1" {
		t.Errorf("refused batch was applied: %q", v)
	}
}

// changing: a condition sees what batches before it did, and never what its own does;
// each change of a row gives it a higher revision, and its deletion 0.
func changing(t *testing.T, s meta.Store) {
	defer func() { _ = s.Close() }()
	ctx, key := context.Background(), []byte("c")
	put := func(rev meta.Rev, more ...meta.Op) (meta.Rev, error) {
		return s.Commit(ctx, meta.Batch{If: []meta.Cond{{Key: key, Rev: rev}, {Key: []byte("absent")}},
			Do: append([]meta.Op{{Key: key, Val: []byte("v")}}, more...)})
	}
	first, err := put(0)
	if err != nil {
		t.Fatal(err)
	}
	second, err := put(first)
	if err != nil || second <= first {
		t.Errorf("revision %d after %d, %v", second, first, err)
	}
	_, err = put(first, meta.Op{Key: []byte("more"), Val: []byte("v")}, meta.Op{Key: key, End: []byte("d"), Del: true})
	if !errors.Is(err, meta.ErrConflict) {
		t.Errorf("an old revision: %v", err)
	}
	if v, _ := get(t, s, "more"); v != "" {
		t.Error("part of a refused batch was applied")
	}
	if _, rev := get(t, s, "c"); rev != second {
		t.Errorf("revision %d, want %d", rev, second)
	}
	commit(t, s, meta.Batch{Do: []meta.Op{{Key: []byte("other"), Val: []byte("v")}}})
	if _, rev := get(t, s, "c"); rev != second {
		t.Error("another row's change changed the revision")
	}
	commit(t, s, meta.Batch{Do: []meta.Op{{Key: key, End: []byte("d"), Del: true}}})
	if _, err := put(second); !errors.Is(err, meta.ErrConflict) {
		t.Errorf("the revision of a row that is deleted: %v", err)
	}
	if again, err := put(0); err != nil || again <= second {
		t.Errorf("revision %d after %d, %v", again, second, err)
	}
}

// among: of all batches that know the same revision one is applied, also if they come
// at once.
func among(t *testing.T, s meta.Store) {
	defer func() { _ = s.Close() }()
	var wg sync.WaitGroup
	var mu sync.Mutex
	done := map[meta.Rev]bool{}
	for w := range 10 {
		wg.Go(func() {
			for n := 0; n < 10; {
				_, known := get(t, s, "c")
				rev, err := s.Commit(context.Background(), meta.Batch{If: []meta.Cond{{Key: []byte("c"), Rev: known}},
					Do: []meta.Op{{Key: []byte("c"), Val: []byte("v")}, {Key: fmt.Appendf(nil, "n/%d/%d", w, n),
						Val: []byte("v")}}})
				if errors.Is(err, meta.ErrConflict) {
					continue
				}
				mu.Lock()
				twice := done[rev]
				done[rev] = true
				mu.Unlock()
				if err != nil || rev <= known || twice {
					t.Errorf("revision %d after %d, %v", rev, known, err)
				}
				n++
			}
		})
	}
	wg.Wait()
	if n := len(scan(t, s, []byte("n/"))); n != 100 {
		t.Errorf("%d of 100 batches", n)
	}
}

// ranges: a scan yields all rows of its range in the order of their bytes, and no
// other; a deletion takes just those.
func ranges(t *testing.T, s meta.Store) {
	defer func() { _ = s.Close() }()
	var b meta.Batch
	for _, k := range []string{"a", "a/", "a/1", "a/\x00", "a/\xff", "a/\xff\xff", "a0", "b", "\xff", "\xff\xff"} {
		b.Put([]byte(k), []byte("v"))
	}
	commit(t, s, b)
	check := func(prefix string, want ...string) {
		t.Helper()
		if got := scan(t, s, []byte(prefix)); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", prefix, got, want)
		}
	}
	check("a/", "a/", "a/\x00", "a/1", "a/\xff", "a/\xff\xff")
	check("\xff", "\xff", "\xff\xff")
	b = meta.Batch{}
	b.DeleteRange(meta.Range([]byte("a/\xff")))
	b.Put([]byte("a/2"), []byte("v"))
	commit(t, s, b)
	check("a", "a", "a/", "a/\x00", "a/1", "a/2", "a0")
	b = meta.Batch{}
	b.Put([]byte("a/3"), []byte("v"))
	b.DeleteRange(meta.Range([]byte("a/"))) // ops are done in their order
	b.Put([]byte("a/4"), []byte("v"))
	commit(t, s, b)
	check("a", "a", "a/4", "a0")
	check("c")
}

func scan(t *testing.T, s meta.Store, prefix []byte) (keys []string) {
	t.Helper()
	if err := s.View(func(sn meta.Snap) error {
		for k := range sn.Scan(meta.Range(prefix)) {
			keys = append(keys, string(k))
		}
		return sn.Err()
	}); err != nil {
		t.Fatal(err)
	}
	return keys
}

func concurrent(t *testing.T, s meta.Store) {
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for i := range 20 {
				b := meta.Batch{Do: []meta.Op{{Key: fmt.Appendf(nil, "w/%d/%d", w, i), Val: []byte("x")}}}
				if _, err := s.Commit(context.Background(), b); err != nil {
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
