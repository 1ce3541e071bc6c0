package understudy

import (
	"fmt"
	"go/ast"
	"go/types"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

// Under a sync.Mutex no other package is called and nothing is waited for. What
// is held while something is waited for is a turn (a channel), which tests under
// virtual time see. Both are taken in one order. See arch_flow_test.go for how it
// is found out.
//
// The only way out is a comment `//lock: reason` at the end of the line; the test
// prints these.

// silent are the packages of the standard library that neither wait nor speak with
// the system. The clock may be read.
var silent = []string{
	"sync/atomic", "slices", "maps", "strings", "bytes", "sort", "errors", "math", "math/bits", "math/rand",
	"math/rand/v2", "strconv", "unicode",
	"unicode/utf8", "unicode/utf16", "cmp", "iter", "container/heap", "container/list", "container/ring",
	"encoding/binary", "encoding/base64",
	"encoding/hex", "encoding/json", "hash/crc32", "hash/fnv", "crypto/sha256", "crypto/subtle", "path", "net/netip",
	"regexp", "unsafe", "time",
}

// quiet are single functions of packages that otherwise do more.
var quiet = []string{
	"fmt.Sprintf", "fmt.Sprint", "fmt.Sprintln", "fmt.Errorf", "fmt.Appendf", "fmt.Append", "fmt.Sscanf",
	"context.WithCancel", "context.WithCancelCause", "context.WithoutCancel", "context.Background", "context.Cause",
	"context.AfterFunc",
	"(sync.WaitGroup).Add", "(sync.WaitGroup).Done", "(sync.WaitGroup).Go", "(sync.Once).Do", "(sync.Cond).Broadcast",
	"(sync.Cond).Signal",
	"path/filepath.Join", "path/filepath.Base", "path/filepath.Dir",
	"net.CIDRMask", "(net.IPMask).Size", "(net.IP).String", "(net.IP).Equal", "(net.IP).To4",
	"(net.HardwareAddr).String", "(error).Error",
	"(context.Context).Err", "(context.Context).Done", "(context.Context).Value",
}

// starts are functions that run what they are given beside the caller.
var starts = []string{"(sync.WaitGroup).Go", "time.AfterFunc", "context.AfterFunc",
	"(golang.org/x/sync/errgroup.Group).Go", "(golang.org/x/sync/errgroup.Group).TryGo"}

// noisy are exceptions within the silent packages.
var noisy = []string{"time.Sleep", "time.LoadLocation"}

func isSilent(fn *types.Func, name string) bool {
	if slices.Contains(quiet, name) {
		return true
	}
	if fn.Pkg() == nil || slices.Contains(noisy, name) {
		return fn.Pkg() == nil
	}
	if sig := fn.Signature(); sig.Recv() != nil && types.IsInterface(sig.Recv().Type()) {
		return false
	}
	p := fn.Pkg().Path()
	return slices.Contains(silent, p) || slices.Contains(pure, strings.TrimPrefix(p, module))
}

// analyse finds what is done under locks in one package.
func analyse(c *checked) *flow {
	w := newFlow(c)
	for _, f := range c.files {
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil || w.within(fn) {
				continue
			}
			w.function(fn, nil, nil)
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				if l, ok := n.(*ast.FuncLit); ok {
					w.literal(l, nil, nil)
				}
				return true
			})
		}
	}
	return w
}

func TestLocks(t *testing.T) {
	var report []string
	fields := map[string]bool{}
	order := map[string]int{}
	for i, l := range locks {
		if _, ok := order[l]; ok {
			t.Errorf("%s is listed twice in locks", l)
		}
		order[l] = i
	}
	for _, c := range packages(t) {
		w := analyse(c)
		for _, name := range lockFields(c) {
			fields[name] = true
			if _, ok := order[name]; !ok {
				t.Errorf("%s is not in the list of locks: put it before those that are taken while it is held", name)
			}
		}
		found := slices.Sorted(maps.Values(w.found))
		report = append(report, found...)
		if may := lockAllowances[c.path]; len(found) > may {
			t.Errorf(
				"%d calls under a mutex in %s, %d allowed. Do it before or after, make the lock a turn (a channel), "+
					"or say why in a comment `//lock: reason`:\n%s",
				len(found), c.path, may, strings.Join(found, "\n"))
		} else if len(found) < may {
			t.Logf("%s has %d calls under a mutex left: lower its allowance of %d", c.path, len(found), may)
		}
		for _, reason := range slices.Sorted(maps.Values(w.excused)) {
			t.Log("excused: " + reason)
		}
		for pair := range w.taken {
			if pair[0] == pair[1] || order[pair[0]] > order[pair[1]] {
				t.Errorf("%s: %s is taken while %s is held, which comes behind it in the list of locks", w.taken[pair],
					pair[1], pair[0])
			}
		}
	}
	for _, l := range locks {
		if !fields[l] {
			t.Errorf("%s is in the list of locks, but there is none", l)
		}
	}
	if name := os.Getenv("UNDERSTUDY_LOCKS"); name != "" {
		if err := os.WriteFile(name, []byte(strings.Join(report, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// lockFields are the names of all locks that are fields of a type of the package.
func lockFields(c *checked) []string {
	var out []string
	for _, name := range c.pkg.Scope().Names() {
		st, ok := c.pkg.Scope().Lookup(name).Type().Underlying().(*types.Struct)
		if _, is := c.pkg.Scope().Lookup(name).(*types.TypeName); !ok || !is {
			continue
		}
		for i := range st.NumFields() {
			if f := st.Field(i); kindOf(f.Type(), f.Name()) != noLock {
				out = append(out, fmt.Sprintf("%s.%s.%s", c.path, name, f.Name()))
			}
		}
	}
	return out
}

// TestLocksPlanted has the analysis look at a package where each line that is
// wrong says so.
func TestLocksPlanted(t *testing.T) {
	h, err := house()
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.loader.check(module+"planted", "testdata/locks", []string{"planted.go"})
	if err != nil {
		t.Fatal(err)
	}
	w := analyse(c)
	want, excused := map[int]bool{}, 0
	for _, f := range c.files {
		for _, g := range f.Comments {
			for _, m := range g.List {
				if strings.HasPrefix(m.Text, "// wrong") {
					want[c.fset.Position(m.Pos()).Line] = true
				}
				if strings.HasPrefix(m.Text, "//lock:") {
					excused++
				}
			}
		}
	}
	for p, text := range w.found {
		line := c.fset.Position(p).Line
		if !want[line] {
			t.Errorf("found what is right: %s", text)
		}
		delete(want, line)
	}
	for line := range want {
		t.Errorf("not found: line %d", line)
	}
	if len(w.excused) != excused {
		t.Errorf("excused %d calls, want %d", len(w.excused), excused)
	}
	pairs := [][2]string{{"planted.Thing.turn", "planted.Thing.b"}, {"planted.Thing.turn", "planted.Thing.a"},
		{"planted.Thing.a", "planted.Thing.b"}, {"planted.Thing.b", "planted.Thing.a"}}
	for _, p := range pairs {
		if w.taken[p] == "" {
			t.Errorf("not seen that %s is taken while %s is held", p[1], p[0])
		}
	}
	if len(w.taken) != len(pairs) {
		t.Errorf("orders %v, want %v", w.taken, pairs)
	}
}
