package replicatest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/replica"
	"understudy/replica/row"
)

// What is packed comes out again and says the same; a message whose bytes are gone is
// told of.
func TestPackAndDescribe(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	describe := func(dir string) []string {
		r, err := replica.Open(replica.Options{Dir: dir, Primary: true})
		if err != nil {
			t.Fatal(err)
		}
		lines, err := Describe(r, map[string]string{"ada": "secret"})
		if err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		return lines
	}
	r, err := replica.Open(replica.Options{Dir: dir, Primary: true})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := r.PutMessage([]byte("Subject: a\r\n\r\nb\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.EnsureAccount(t.Context(), "ada", row.Standby); err != nil {
		t.Fatal(err)
	}
	if err := r.Create(t.Context(), "ada", "INBOX", nil); err != nil {
		t.Fatal(err)
	}
	lost := row.RefOf([]byte("never stored"))
	two := []row.New{{Ref: ref, Date: time.Now()}, {Ref: lost, Date: time.Now()}}
	if _, _, err := r.Append(t.Context(), "ada", "INBOX", two); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	want := describe(dir)
	text := strings.Join(want, "\n")
	if !strings.Contains(text, ref.String()[:12]+" unsettled") || !strings.Contains(text, lost.String()[:12]+" (") ||
		!strings.Contains(text, `password of ada opens ""`) {
		t.Errorf("it says:\n%s", text)
	}
	file := filepath.Join(t.TempDir(), "x.tar.gz")
	if err := Pack(dir, file); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(file, out); err != nil {
		t.Fatal(err)
	}
	if got := describe(out); !slices.Equal(got, want) {
		t.Errorf("unpacked it says %q", got)
	}
	if err := os.Truncate(file, 100); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(file, t.TempDir()); err == nil {
		t.Error("a file that was cut is unpacked without an error")
	}
}
