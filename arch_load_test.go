package understudy

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// checked is a package of this module with its types, without its tests.
type checked struct {
	path  string // within the module
	name  string
	dir   string
	files []*ast.File
	fset  *token.FileSet
	pkg   *types.Package
	info  *types.Info
}

// listed is what `go list` tells of a package.
type listed struct {
	ImportPath, Dir, Export, Name string
	GoFiles, Imports              []string
}

func goList(args ...string) ([]listed, error) {
	out, err := exec.Command("go",
		append([]string{"list", "-json=ImportPath,Dir,Export,Name,GoFiles,Imports"}, args...)...).Output()
	if err != nil {
		return nil, err
	}
	var all []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		if err := d.Decode(&l); err == io.EOF {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
}

// loader knows the compiled form of all that the module imports.
type loader struct {
	fset    *token.FileSet
	imports types.Importer
}

func newLoader(all []listed) *loader {
	exports := map[string]string{}
	for _, l := range all {
		exports[l.ImportPath] = l.Export
	}
	fset := token.NewFileSet()
	return &loader{fset,
		importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })}
}

// check parses and checks the files of one package.
func (l *loader) check(path, dir string, files []string) (*checked, error) {
	c := &checked{path: strings.TrimPrefix(path, module), dir: dir, fset: l.fset}
	for _, name := range files {
		f, err := parser.ParseFile(l.fset, filepath.Join(dir, name), nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		c.files, c.name = append(c.files, f), f.Name.Name
	}
	c.info = &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{},
		Defs:       map[*ast.Ident]types.Object{},
		Selections: map[*ast.SelectorExpr]*types.Selection{}, Instances: map[*ast.Ident]types.Instance{}}
	var err error
	c.pkg, err = (&types.Config{Importer: l.imports}).Check(path, l.fset, c.files, c.info)
	return c, err
}

// house is the whole module, loaded once for all tests of this package.
var house = sync.OnceValues(func() (h struct {
	all    []listed
	loader *loader
	pkgs   []*checked
}, err error) {
	if h.all, err = goList("-export", "-deps", "./..."); err != nil {
		return h, err
	}
	h.loader = newLoader(h.all)
	for _, l := range h.all {
		if !strings.HasPrefix(l.ImportPath, module) {
			continue
		}
		c, err := h.loader.check(l.ImportPath, l.Dir, l.GoFiles)
		if err != nil {
			return h, err
		}
		h.pkgs = append(h.pkgs, c)
	}
	return h, nil
})

func packages(t *testing.T) []*checked {
	t.Helper()
	h, err := house()
	if err != nil {
		t.Fatal(err)
	}
	return h.pkgs
}

// at is a position as people read it.
func (c *checked) at(p token.Pos) string {
	pos := c.fset.Position(p)
	return strings.TrimPrefix(c.path+"/"+filepath.Base(pos.Filename), "/") + ":" + strconv.Itoa(pos.Line)
}
