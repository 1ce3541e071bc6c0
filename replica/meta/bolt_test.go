package meta_test

import (
	"path/filepath"
	"strings"
	"testing"

	"understudy/replica/meta"
	"understudy/replica/meta/metatest"
)

func TestBolt(t *testing.T) {
	metatest.Run(t, func(t *testing.T) meta.Store {
		s, err := meta.OpenBolt(filepath.Join(t.TempDir(), "m.db"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// A second process is told what is wrong.
func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.db")
	s, err := meta.OpenBolt(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, err := meta.OpenBolt(path); err == nil || !strings.Contains(err.Error(), "already running") {
		t.Error(err)
	}
}
