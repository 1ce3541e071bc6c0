package understudy

import (
	"fmt"
	"go/ast"
	"go/scanner"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const (
	maxMethods    = 30
	maxFields     = 16  // an embedded one counts as one
	maxAsked      = 16  // methods of an interface, with those that it embeds
	maxDepth      = 7   // imports behind each other
	maxColumns    = 120 // a tab counts as four
	maxPhases     = 5
	largeSentence = "Large: "
)

// TestTypes bounds what one type may know and do. A doc comment with a line that begins with
// "Large: " says why one is larger; the test lists those.
func TestTypes(t *testing.T) {
	for _, c := range packages(t) {
		docs := typeDocs(c)
		for _, name := range c.pkg.Scope().Names() {
			o, ok := c.pkg.Scope().Lookup(name).(*types.TypeName)
			if !ok || o.IsAlias() {
				continue
			}
			n := o.Type().(*types.Named)
			var over []string
			if m := n.NumMethods(); m > maxMethods {
				over = append(over, fmt.Sprintf("%d methods, more than %d", m, maxMethods))
			}
			switch u := n.Underlying().(type) {
			case *types.Struct:
				if f := u.NumFields(); f > maxFields {
					over = append(over, fmt.Sprintf("%d fields, more than %d", f, maxFields))
				}
			case *types.Interface:
				if m := u.NumMethods(); m > maxAsked {
					over = append(over, fmt.Sprintf("%d methods to be implemented, more than %d", m, maxAsked))
				}
			}
			if len(over) == 0 {
				continue
			}
			what := fmt.Sprintf("%s: %s.%s has %s", c.at(o.Pos()), c.path, name, strings.Join(over, " and "))
			if slices.Contains(typeAllowances, c.path+"."+name) {
				continue
			}
			if i := strings.Index("\n"+docs[name], "\n"+largeSentence); i >= 0 {
				t.Log(what + ": " + strings.SplitN(docs[name][i:], "\n", 2)[0])
				continue
			}
			t.Errorf(
				"%s: split it by the states that it holds, or say why not in its comment, in a line that "+
					"begins with %q", what, largeSentence)
		}
	}
}

func typeDocs(c *checked) map[string]string {
	docs := map[string]string{}
	for _, f := range c.files {
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.TYPE {
				for _, s := range g.Specs {
					ts := s.(*ast.TypeSpec)
					docs[ts.Name.Name] = ts.Doc.Text()
					if ts.Doc == nil {
						docs[ts.Name.Name] = g.Doc.Text()
					}
				}
			}
		}
	}
	return docs
}

// TestPhases keeps the meaning of the phases in failover: others ask State.Duties. The lab's
// harness, which waits for phases, is not the appliance.
func TestPhases(t *testing.T) {
	values, names := map[string]bool{}, map[string]bool{}
	for _, c := range packages(t) {
		if c.path != "failover" {
			continue
		}
		for _, name := range c.pkg.Scope().Names() {
			if k, ok := c.pkg.Scope().Lookup(name).(*types.Const); ok &&
				strings.HasSuffix(k.Type().String(), "failover.Phase") {
				names[name], values[k.Val().ExactString()] = true, true
			}
		}
	}
	if len(names) < 9 {
		t.Fatalf("only %d phases found in failover", len(names))
	}
	var found []string
	for _, c := range packages(t) {
		if c.path == "failover" || c.path == "lab" || strings.HasPrefix(c.path, "lab/") {
			continue
		}
		for _, f := range c.files {
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.Ident:
					if o := c.info.Uses[n]; o != nil && o.Pkg() != nil && o.Pkg().Path() == module+"failover" &&
						names[o.Name()] {
						found = append(found, c.at(n.Pos())+" "+n.Name)
					}
				case *ast.BasicLit:
					if n.Kind == token.STRING && values[n.Value] {
						found = append(found, c.at(n.Pos())+" "+n.Value)
					}
				}
				return true
			})
		}
	}
	if len(found) > maxPhases {
		t.Errorf("phases are named %d times outside failover, more than %d: ask State.Duties\n%s", len(found),
			maxPhases, strings.Join(found, "\n"))
	}
}

// TestDepth bounds the longest way of imports within the module.
func TestDepth(t *testing.T) {
	h, err := house()
	if err != nil {
		t.Fatal(err)
	}
	imports := map[string][]string{}
	for _, l := range h.all {
		for _, im := range l.Imports {
			if strings.HasPrefix(l.ImportPath, module) && strings.HasPrefix(im, module) {
				imports[l.ImportPath] = append(imports[l.ImportPath], im)
			}
		}
	}
	longest := map[string][]string{}
	var chain func(p string) []string
	chain = func(p string) []string {
		if l, ok := longest[p]; ok {
			return l
		}
		var most []string
		for _, im := range imports[p] {
			if strings.HasPrefix(im, module+"lab") {
				continue // the demonstration's server is no part of the appliance
			}
			if l := chain(im); len(l) > len(most) {
				most = l
			}
		}
		longest[p] = append([]string{strings.TrimPrefix(p, module)}, most...)
		return longest[p]
	}
	if l := chain(module + "cmd/understudy"); len(l)-1 > maxDepth {
		t.Errorf("imports go %d deep, more than %d: %s", len(l)-1, maxDepth, strings.Join(l, " → "))
	} else {
		t.Log(strings.Join(l, " → "))
	}
}

// besides are packages without tests of their own, and why.
var besides = map[string]string{
	"replica/meta/metatest": "a suite, run by the tests of its drivers",
}

// TestTestsBeside has each package's tests in its own folder, at least one of them not skipped.
func TestTestsBeside(t *testing.T) {
	has := map[string]bool{}
	eachFile(t, func(name, pkg string, file *ast.File, _ *token.FileSet) {
		has[pkg] = has[pkg] || false
		if !strings.HasSuffix(name, "_test.go") {
			return
		}
		for _, d := range file.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && strings.HasPrefix(fn.Name.Name, "Test") &&
				fn.Name.Name != "TestMain" && !skips(fn) {
				has[pkg] = true
			}
		}
	})
	for _, pkg := range slices.Sorted(maps.Keys(has)) {
		_, excused := besides[pkg]
		excused = excused || slices.Contains(besideAllowances, pkg)
		switch {
		case !has[pkg] && !excused:
			t.Errorf("package %s has no test beside it", pkg)
		case has[pkg] && excused:
			t.Logf("package %s has tests: take it out of the exceptions", pkg)
		}
	}
}

// skips reports a test that begins with a skip, whatever the circumstances.
func skips(fn *ast.FuncDecl) bool {
	for _, s := range fn.Body.List {
		if e, ok := s.(*ast.ExprStmt); ok {
			if c, ok := e.X.(*ast.CallExpr); ok {
				if sel, ok := c.Fun.(*ast.SelectorExpr); ok && strings.HasPrefix(sel.Sel.Name, "Skip") {
					return true
				}
			}
		}
	}
	return false
}

// TestColumns bounds the lines of Go files. What stands in back quotes is left as it is.
func TestColumns(t *testing.T) {
	long := map[string][]string{}
	eachGoFile(t, func(name string) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		n, raw := 0, rawLines(b)
		for l := range strings.Lines(string(b)) {
			n++
			if w := utf8.RuneCountInString(strings.TrimRight(l, "\n")) + 3*strings.Count(l, "\t"); w > maxColumns &&
				!raw[n] {
				pkg := filepath.ToSlash(filepath.Dir(name))
				long[pkg] = append(long[pkg], fmt.Sprintf("%s:%d: %d columns", name, n, w))
			}
		}
	})
	for _, pkg := range slices.Sorted(maps.Keys(long)) {
		if may := columnAllowances[pkg]; len(long[pkg]) > may {
			t.Errorf("%d lines of %s are longer than %d columns (a tab counts as four), %d allowed:\n%s",
				len(long[pkg]), pkg, maxColumns, may, strings.Join(long[pkg], "\n"))
		}
	}
	for pkg, may := range columnAllowances {
		if n := len(long[pkg]); n < may {
			t.Logf("%s has %d long lines left: lower its allowance of %d", pkg, n, may)
		}
	}
}

// rawLines are the lines that hold a part of a raw string.
func rawLines(src []byte) map[int]bool {
	fset := token.NewFileSet()
	file := fset.AddFile("", -1, len(src))
	var s scanner.Scanner
	s.Init(file, src, nil, 0)
	lines := map[int]bool{}
	for {
		pos, tok, lit := s.Scan()
		if tok == token.EOF {
			return lines
		}
		if tok == token.STRING && lit[0] == '`' {
			for i := range 1 + strings.Count(lit, "\n") {
				lines[file.Line(pos)+i] = true
			}
		}
	}
}

// TestDocs has every exported name of a package that others import say what it is.
func TestDocs(t *testing.T) {
	eachFile(t, func(name, pkg string, file *ast.File, fset *token.FileSet) {
		if strings.HasSuffix(name, "_test.go") || file.Name.Name == "main" {
			return
		}
		for _, d := range file.Decls {
			for _, id := range undocumented(d) {
				if slices.Contains(docAllowances, pkg) {
					continue
				}
				t.Errorf("%s: %s.%s is exported and has no comment", fset.Position(id.Pos()), pkg, id.Name)
			}
		}
	})
}

// plain methods have the meaning that the standard library gives them.
var plain = []string{"Error", "String", "Unwrap"}

// undocumented lists the exported names of a declaration that no comment is about. In a group, the
// group's comment or one on the line counts.
func undocumented(d ast.Decl) []*ast.Ident {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && !slices.Contains(plain, d.Name.Name) &&
			(d.Recv == nil || ast.IsExported(receiver(d))) {
			return []*ast.Ident{d.Name}
		}
	case *ast.GenDecl:
		var out []*ast.Ident
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && s.Doc == nil && d.Doc == nil {
					out = append(out, s.Name)
				}
			case *ast.ValueSpec:
				for _, id := range s.Names {
					if id.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
						out = append(out, id)
					}
				}
			}
		}
		return out
	}
	return nil
}

func receiver(d *ast.FuncDecl) string {
	e := d.Recv.List[0].Type
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

// TestRequirements has each test that docs/requirements.md names be there.
func TestRequirements(t *testing.T) {
	b, err := os.ReadFile("docs/requirements.md")
	if err != nil {
		t.Fatal(err)
	}
	funcs, subs := map[string]bool{}, ""
	eachFile(t, func(name, _ string, file *ast.File, _ *token.FileSet) {
		if !strings.HasSuffix(name, "_test.go") {
			return
		}
		for _, d := range file.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				funcs[fn.Name.Name] = true
			}
		}
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		subs += string(src)
	})
	named := regexp.MustCompile("`(Test[A-Za-z0-9_]+)(?:/([^`]+))?`").FindAllStringSubmatch(string(b), -1)
	if len(named) < 50 {
		t.Fatalf("only %d tests found in docs/requirements.md", len(named))
	}
	for _, m := range named {
		if !funcs[m[1]] {
			t.Errorf("docs/requirements.md names %s, which is nowhere", m[1])
		}
		if m[2] != "" && !strings.Contains(subs, `"`+m[2]+`"`) {
			t.Errorf("docs/requirements.md names %s of %s, which is nowhere", m[2], m[1])
		}
	}
}
