// Package understudy holds the tests of the house itself: which package may
// import which, how large files and functions may get, and that every package
// says what it is for.
package understudy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pure packages know no socket, file, clock, goroutine or log.
var pure = []string{"snoop/imapwire", "snoop/smtpwire", "snoop/imapsession", "snoop/smtpsession", "replica/row",
	"replica/match", "replica/copyback/plan", "proxy/seam", "failover", "console/config"}

// allowed lists what each package may import of this module. The pure packages
// of any house may be imported from anywhere above them.
var allowed = map[string][]string{
	"snoop/imapwire":    {},
	"snoop/smtpwire":    {},
	"snoop/imapsession": {"snoop/imapwire", "replica/row"},
	"snoop/smtpsession": {"snoop/smtpwire", "replica/row", "proxy/seam"},
	"snoop":             {"snoop/imapwire", "snoop/imapsession", "replica/row"},
	"snoop/capture":     {"snoop/imapwire", "snoop/imapsession", "snoop/smtpwire", "replica/row"},
	"replica/row":       {},
	"replica/match":     {},
	"replica/meta":      {"replica/row"},
	"replica/store":     {"replica/row", "replica/meta", "replica/turn"},
	"replica/blob":      {"replica/row", "replica/turn"},
	"replica/vault":     {"replica/meta"},
	"replica/turn":      {},
	"replica/journal":   {"replica/turn"},
	"replica/route":     {"replica/row", "replica/meta"},
	"replica/queue":     {"replica/row", "replica/meta"},
	"replica/task":      {"replica/row", "replica/meta"},
	"replica/doubt":     {"replica/row", "replica/meta", "replica/store", "replica/journal"},
	"replica/delivery": {"replica/row", "replica/match", "replica/meta", "replica/store", "replica/route",
		"replica/journal", "replica/turn"},
	"replica": {"replica/row", "replica/meta", "replica/blob", "replica/store", "replica/delivery",
		"replica/doubt", "replica/queue", "replica/route", "replica/task"},
	"replica/meta/metatest": {"replica/meta"},
	"replica/imapc":         {"snoop/imapwire"},
	"replica/replicatest":   {"replica", "replica/row", "replica/vault"},
	"replica/mirror":        {"replica/delivery", "replica/store", "replica/row", "replica/imapc", "snoop/imapwire"},
	"replica/copyback": {"replica/copyback/plan", "replica/delivery", "replica/doubt", "replica/match", "replica/store",
		"replica/row", "replica/imapc", "snoop/imapwire"},
	"replica/copyback/plan": {"replica/row"},
	"proxy":                 {"replica/row", "proxy/seam", "proxy/upstream", "proxy/imap", "proxy/smtp"},
	"proxy/seam":            {},
	"proxy/upstream":        {"proxy/seam", "snoop/imapwire", "snoop/smtpwire"},
	"proxy/login":           {"proxy/seam", "snoop/imapwire", "snoop/smtpwire"},
	"proxy/imap": {"proxy/seam", "proxy/upstream", "proxy/login", "replica/row", "snoop/imapwire",
		"snoop/smtpwire", "snoop/imapsession"},
	"proxy/smtp": {"proxy/seam", "proxy/upstream", "proxy/login", "replica/row", "snoop/imapwire",
		"snoop/smtpwire", "snoop/smtpsession"},
	"proxy/inline":    {"proxy/seam"},
	"failover":        {},
	"failover/keeper": {"failover"},
	"failover/health": {},
	"failover/imapd":  {"replica/row", "snoop/imapwire"},
	"failover/smtpd":  {"replica/row", "snoop/smtpwire"},
	"console/config":  {},
	"console/api":     {"replica/row"},
	"lab/check":       {"snoop/imapwire"},
	"lab/hosts":       {},
	"lab/load":        {"lab/check", "replica/imapc", "snoop/smtpwire"},
	"lab/maild": {"cmd/box", "failover/imapd", "failover/smtpd", "proxy", "proxy/imap", "proxy/seam",
		"proxy/smtp", "replica", "replica/store", "replica/row"},
	"lab/sim":        {"*"},
	"lab/site":       {"console/api", "replica/imapc", "replica/row"},
	"lab":            {"*"},
	"cmd/box":        {"*"},
	"cmd/understudy": {"*"},
}

const module = "understudy/"

// eachGoFile calls f for every Go file of the module.
func eachGoFile(t *testing.T, f func(name string)) {
	t.Helper()
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && (d.Name() == "testdata" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if err == nil && !d.IsDir() && strings.HasSuffix(name, ".go") {
			f(name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// eachFile calls f for every Go file but those of this package.
func eachFile(t *testing.T, f func(name, pkg string, file *ast.File, fset *token.FileSet)) {
	t.Helper()
	eachGoFile(t, func(name string) {
		if pkg := path.Dir(filepath.ToSlash(name)); pkg != "." {
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			f(name, pkg, file, fset)
		}
	})
}

func TestImports(t *testing.T) {
	forbidden := []string{"net", "os", "log", "log/slog", "sync", "net/http", "os/exec"}
	eachFile(t, func(name, pkg string, file *ast.File, _ *token.FileSet) {
		may, ok := allowed[pkg]
		if !ok {
			t.Errorf("%s: package %s is not in the table", name, pkg)
			return
		}
		for _, im := range file.Imports {
			p := strings.Trim(im.Path.Value, `"`)
			if in, ok := strings.CutPrefix(p, module); ok && !slices.Contains(may, in) && !slices.Contains(may, "*") &&
				!strings.HasSuffix(name, "_test.go") {
				t.Errorf("%s imports %s", name, p)
			}
			if slices.Contains(pure, pkg) && slices.Contains(forbidden, p) && !strings.HasSuffix(name, "_test.go") &&
				(pkg != "console/config" || p != "net") {
				t.Errorf("%s is of a pure package and imports %s", name, p)
			}
		}
		if slices.Contains(pure, pkg) && !strings.HasSuffix(name, "_test.go") {
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.GoStmt:
					t.Errorf("%s is of a pure package and starts a goroutine", name)
				case *ast.SelectorExpr:
					if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" &&
						(n.Sel.Name == "Now" || n.Sel.Name == "Since") {
						t.Errorf("%s is of a pure package and reads the clock", name)
					}
				}
				return true
			})
		}
	})
}

func TestSizes(t *testing.T) {
	eachFile(t, func(name, _ string, file *ast.File, fset *token.FileSet) {
		lines, most := fset.File(file.Pos()).LineCount(), 600
		if strings.HasSuffix(name, "_test.go") {
			most = 1000
		}
		if lines > most {
			t.Errorf("%s has %d lines, more than %d", name, lines, most)
		}
		for _, d := range file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || strings.HasSuffix(name, "_test.go") {
				continue
			}
			if n := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line; n > 80 {
				t.Errorf("%s: %s has %d lines, more than 80", name, fn.Name.Name, n)
			}
			// Those without a name are what somebody else's interface asks for.
			n := fn.Type.Params.NumFields()
			for _, f := range fn.Type.Params.List {
				for _, id := range f.Names {
					if id.Name == "_" {
						n--
					}
				}
			}
			if n > 5 {
				t.Errorf("%s: %s has %d parameters, more than 5", name, fn.Name.Name, n)
			}
		}
	})
}

func TestPackageDocs(t *testing.T) {
	docs := map[string]bool{}
	eachFile(t, func(_, pkg string, file *ast.File, _ *token.FileSet) {
		docs[pkg] = docs[pkg] || file.Doc != nil
	})
	for pkg, ok := range docs {
		if !ok {
			t.Errorf("package %s does not say what it is for", pkg)
		}
	}
}
