package blob

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"understudy/replica/row"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// S2, S13: what was put is there after a restart; a torn end is cut off.
func TestS13_TornEnd(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	all := [][]byte{nil, []byte("x"), []byte(strings.Repeat("compressible ", 1000)), random(5000)}
	var refs []row.Ref
	for _, b := range all {
		r, err := s.Put(b)
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, r)
	}
	last, err := s.Put(random(3000))
	if err != nil {
		t.Fatal(err)
	}
	seg := filepath.Join(dir, "seg-00000001.pack")
	fi, _ := os.Stat(seg)
	_ = s.Close()
	if err := os.Truncate(seg, fi.Size()-1500); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	for i, r := range refs {
		if got, err := s.Get(r); err != nil || !bytes.Equal(got, all[i]) {
			t.Errorf("message %d: %v", i, err)
		}
	}
	if _, err := s.Get(last); !errors.Is(err, ErrNotFound) {
		t.Errorf("torn message: %v", err)
	}
	if _, err := s.Put([]byte("after")); err != nil {
		t.Error(err)
	}
}

// S14: a flipped byte is found by reading and by the scrub.
func TestS14_FlippedByte(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	r, err := s.Put(random(5000))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(random(10)); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "seg-00000001.pack"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteAt([]byte{0xff, 0xfe, 0xfd}, 2000)
	_ = f.Close()
	if _, err := s.Get(r); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
	bad := 0
	if n := s.Scrub(func(string, error) { bad++ }); n != 2 || bad != 1 {
		t.Errorf("scrub: %d read, %d bad", n, bad)
	}
}

func TestSpoolAndDoubles(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	b := random(3 << 20)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			sp := s.Spool()
			defer sp.Discard()
			for c := b; len(c) > 0; c = c[min(len(c), 100_000):] {
				_, _ = sp.Write(c[:min(len(c), 100_000)])
			}
			sp.Start()
			if ref, err := sp.Commit(); err != nil || ref != row.RefOf(b) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left, _ := filepath.Glob(filepath.Join(dir, "spool-*")); len(left) > 0 {
		t.Errorf("spools are left: %v", left)
	}
	if _, err := s.Put(b); err != nil {
		t.Error(err)
	}
	if n, _ := s.Stats(); n != 1 {
		t.Errorf("%d messages, want 1", n)
	}
}
