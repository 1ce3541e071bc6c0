package journal

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What is under way outlives the process, what is over does not, and a line that was
// cut off is none.
func TestOutlivesTheProcess(t *testing.T) {
	dir := t.TempDir()
	open := func() *Journal[string] {
		t.Helper()
		j, err := Open[string](dir, "x", "test")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = j.Close() })
		return j
	}
	j := open()
	a, b := j.Begin("a"), j.Begin("b")
	j.End(a)
	j.Set(b, "changed")
	j.Set(a, "not there")
	if _, there := j.Item(a); there {
		t.Error("what is over is there")
	}
	path := filepath.Join(dir, "x.journal")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(`{"ID":3,"Item":"cut`)
		_ = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	j = open()
	if item, ok := j.Item(b); !ok || item != "b" || !slices.Equal(j.Open(), []uint64{b}) || j.Last() != b {
		t.Errorf("%q, open %v, last %d", item, j.Open(), j.Last())
	}
	j.Set(b, "changed")
	if err := j.Renew(); err != nil {
		t.Fatal(err)
	}
	if item, _ := open().Item(b); item != "changed" {
		t.Errorf("renewed: %q", item)
	}
	j.Drop(func(s string) bool { return s == "changed" })
	if len(j.Open()) != 0 {
		t.Error("dropped and open")
	}
}

// The file does not grow for ever.
func TestRenewedWhenLarge(t *testing.T) {
	dir := t.TempDir()
	j, err := Open[string](dir, "x", "test")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	kept := j.Begin("kept")
	for range 40 {
		j.End(j.Begin(strings.Repeat("x", maxJournal/20)))
	}
	if i, err := os.Stat(filepath.Join(dir, "x.journal")); err != nil || i.Size() > 2*maxJournal {
		t.Errorf("%d bytes, %v", i.Size(), err)
	}
	if !slices.Equal(j.Open(), []uint64{kept}) {
		t.Errorf("open: %v", j.Open())
	}
}
