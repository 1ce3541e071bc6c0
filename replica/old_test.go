package replica_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"understudy/replica"
	"understudy/replica/replicatest"
)

// openOld opens the replica of an unpacked fixture; production's is beside it.
func openOld(dir string) (*replica.Replica, error) {
	return replica.Open(replica.Options{Dir: filepath.Join(dir, "box"), FoldCase: true, Domains: []string{"sim.test"}})
}

// What earlier revisions left on disk opens, and says what it said there.
// testdata/README.md tells how the fixtures are made.
func TestDataOfEarlierRevisions(t *testing.T) {
	fixtures, err := filepath.Glob("testdata/*/*.tar.gz")
	if err != nil || len(fixtures) < 2 {
		t.Fatalf("fixtures: %v, %v", fixtures, err)
	}
	for _, file := range fixtures {
		name, _ := strings.CutSuffix(file, ".tar.gz")
		t.Run(strings.TrimPrefix(name, "testdata/"), func(t *testing.T) {
			dir := t.TempDir()
			if err := replicatest.Unpack(file, dir); err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(name + ".txt")
			if err != nil {
				t.Fatal(err)
			}
			// The fixtures were left in the first hour of virtual time.
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Hour)
				for _, turn := range []string{"first", "second"} {
					got := describe(t, dir)
					if d := differences(strings.Split(strings.TrimSuffix(string(want), "\n"), "\n"), got); len(d) > 0 {
						t.Errorf("opened the %s time:\n%s", turn, strings.Join(d, "\n"))
					}
				}
			})
		})
	}
}

func describe(t *testing.T, dir string) []string {
	t.Helper()
	s, err := openOld(dir)
	if err != nil {
		t.Fatal(err)
	}
	passwords := map[string]string{}
	for _, a := range s.Accounts() {
		passwords[a.Name] = "pw-" + a.Name
	}
	lines, err := replicatest.Describe(s, passwords)
	if err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return lines
}

// differences lists the lines that only one has; the order of others is free, for
// what has none.
func differences(want, got []string) (out []string) {
	for _, l := range want {
		if !slices.Contains(got, l) {
			out = append(out, "missing: "+l)
		}
	}
	for _, l := range got {
		if !slices.Contains(want, l) {
			out = append(out, "not there before: "+l)
		}
	}
	return out
}
