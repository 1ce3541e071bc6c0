package turn

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Who waits gives up when told so, and leaves nothing behind.
func TestGiveUp(t *testing.T) {
	var s Set[int]
	leave, err := s.Take(t.Context(), cmp.Compare[int], 2)
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Take(gone, cmp.Compare[int], 1, 2, 3); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	leave()
	if len(s.m) != 0 {
		t.Errorf("%d turns are left", len(s.m))
	}
	one := New()
	one.Do(func() {
		if err := one.Take(gone); !errors.Is(err, context.Canceled) {
			t.Errorf("taken twice: %v", err)
		}
	})
}

// Keys are taken in one order, each once; other keys do not wait.
func TestSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s Set[int]
		var wg sync.WaitGroup
		inside := map[int]int{}
		for i := range 40 {
			wg.Go(func() {
				a, b := i%3, (i+1)%3
				leave, err := s.Take(t.Context(), cmp.Compare[int], b, a, b)
				if err != nil {
					t.Error(err)
					return
				}
				defer leave()
				inside[a*10]++ // the race detector sees who is not alone
				inside[a*10]--
				time.Sleep(time.Millisecond)
			})
		}
		wg.Wait()
		if len(s.m) != 0 {
			t.Errorf("%d turns are left", len(s.m))
		}
		leave, _ := s.Take(t.Context(), cmp.Compare[int], 1)
		other, err := s.Take(t.Context(), cmp.Compare[int], 2)
		if err != nil {
			t.Fatal(err)
		}
		other()
		leave()
	})
}
