package understudy

import (
	"go/ast"
	"go/types"
	"maps"
	"slices"
)

// This file is the half of the walk that follows calls.

// callee is the function or method that is called, or nil for a value.
func (f *walk) callee(c *ast.CallExpr) *types.Func { return f.funcOf(c.Fun) }

func (f *walk) funcOf(e ast.Expr) *types.Func {
	switch e := ast.Unparen(e).(type) {
	case *ast.IndexExpr:
		return f.funcOf(e.X)
	case *ast.IndexListExpr:
		return f.funcOf(e.X)
	case *ast.Ident:
		fn, _ := f.info.Uses[e].(*types.Func)
		return fn
	case *ast.SelectorExpr:
		fn, _ := f.info.Uses[e.Sel].(*types.Func)
		return fn
	}
	return nil
}

// nameOf is "path.Func" or "(path.Type).Method", with pointers left out.
func nameOf(fn *types.Func) string {
	path := ""
	if fn.Pkg() != nil {
		path = fn.Pkg().Path() + "."
	}
	if r := fn.Signature().Recv(); r != nil {
		t := r.Type()
		if p, ok := t.(*types.Pointer); ok {
			t = p.Elem()
		}
		if n, ok := t.(*types.Named); ok {
			if n.Obj().Pkg() == nil {
				return "(" + n.Obj().Name() + ")." + fn.Name()
			}
			return "(" + n.Obj().Pkg().Path() + "." + n.Obj().Name() + ")." + fn.Name()
		}
		return "(" + path + "?)." + fn.Name()
	}
	return path + fn.Name()
}

// bind notes the function that a variable stands for.
func (f *walk) bind(o types.Object, e ast.Expr) {
	if o == nil {
		return
	}
	if n := f.node(e); n != nil {
		f.bound[o] = n
	}
}

// node is the body that an expression of function type stands for, if it is of this package.
func (f *walk) node(e ast.Expr) ast.Node {
	switch e := ast.Unparen(e).(type) {
	case *ast.FuncLit:
		return e
	case *ast.Ident:
		if n, ok := f.bound[f.object(e)]; ok {
			return n
		}
	}
	if fn := f.funcOf(e); fn != nil {
		if d := f.decls[fn.Origin()]; d != nil && d.Body != nil {
			return d
		}
	}
	return nil
}

// run follows a body of this package with what is held now.
func (f *walk) run(n ast.Node, b bound) {
	switch n := n.(type) {
	case *ast.FuncLit:
		f.held = f.literal(n, f.held.join(nil), b).join(nil)
	case *ast.FuncDecl:
		f.held = f.function(n, f.held.join(nil), b).join(nil)
	}
}

func (f *walk) call(c *ast.CallExpr) {
	if tv := f.info.Types[c.Fun]; tv.IsType() || tv.IsBuiltin() {
		for _, a := range c.Args {
			f.expr(a)
		}
		return
	}
	if s, ok := ast.Unparen(c.Fun).(*ast.SelectorExpr); ok {
		f.expr(s.X)
	}
	for _, a := range c.Args {
		f.expr(a)
	}
	fn := f.callee(c)
	if fn == nil {
		f.callValue(c)
		return
	}
	name := nameOf(fn)
	switch {
	case f.locks(c, fn, name):
	case fn.Pkg() == f.pkg && f.decls[fn.Origin()] != nil && f.decls[fn.Origin()].Body != nil:
		d := f.decls[fn.Origin()]
		f.run(d, f.arguments(c, d.Type))
	case f.ofOurs(fn):
	default:
		if !isSilent(fn, name) && !f.toMemory(c, name) {
			f.flag(c.Pos(), "calls "+name)
		}
		f.callbacks(c, name)
	}
}

// callValue is the call of a function value.
func (f *walk) callValue(c *ast.CallExpr) {
	if id, ok := ast.Unparen(c.Fun).(*ast.Ident); ok && id.Name == "unlock" {
		for name := range f.unlock[f.object(id)] {
			delete(f.held, name)
		}
		return
	}
	if l, ok := ast.Unparen(c.Fun).(*ast.FuncLit); ok {
		b := maps.Clone(f.bound)
		maps.Copy(b, f.arguments(c, l.Type))
		f.run(l, b)
		return
	}
	if n := f.node(c.Fun); n != nil {
		var b bound
		if l, ok := n.(*ast.FuncLit); ok {
			b = maps.Clone(f.bound)
			for o, m := range b { // a function that calls itself
				if m == ast.Node(l) {
					delete(b, o)
				}
			}
		}
		f.run(n, b)
		return
	}
	if n, ok := f.info.Types[c.Fun].Type.(*types.Named); ok && n.Obj().Pkg() != nil &&
		n.Obj().Pkg().Path() == "context" {
		return // cancel: what hears of it runs beside
	}
	f.flag(c.Pos(), "calls the function "+types.ExprString(c.Fun))
}

// arguments binds parameters to the functions that are passed.
func (f *walk) arguments(c *ast.CallExpr, t *ast.FuncType) bound {
	b, i := bound{}, 0
	for _, p := range t.Params.List {
		for _, id := range p.Names {
			if i < len(c.Args) {
				if n := f.node(c.Args[i]); n != nil {
					b[f.info.Defs[id]] = n
				}
			}
			i++
		}
		if len(p.Names) == 0 {
			i++
		}
	}
	return b
}

// callbacks follows what is handed to a function of another package.
func (f *walk) callbacks(c *ast.CallExpr, name string) {
	if slices.Contains(starts, name) {
		return
	}
	before := f.held
	for _, a := range c.Args {
		if _, ok := f.info.Types[a].Type.Underlying().(*types.Signature); !ok {
			continue
		}
		if n := f.node(a); n != nil {
			f.held = before.join(nil)
			f.run(n, maps.Clone(f.bound))
		} else if fn := f.funcOf(a); fn == nil || !isSilent(fn, nameOf(fn)) {
			if c, ok := ast.Unparen(a).(*ast.CallExpr); !ok || !f.known(c) {
				f.flag(a.Pos(), "hands on the function "+types.ExprString(a))
			}
		}
	}
	f.held = before
}

// locks handles the methods of locks themselves.
func (f *walk) locks(c *ast.CallExpr, fn *types.Func, name string) bool {
	s, ok := ast.Unparen(c.Fun).(*ast.SelectorExpr)
	if !ok {
		return false
	}
	k, lock := f.lockOf(s.X)
	if k == noLock {
		// An embedded lock.
		sel := f.info.Selections[s]
		if sel == nil || len(sel.Index()) < 2 || fn.Signature().Recv() == nil {
			return false
		}
		t := fn.Signature().Recv().Type()
		if k = kindOf(t, ""); k == noLock {
			return false
		}
		lock = typeName(sel.Recv()) + "." + deref(t).(*types.Named).Obj().Name()
	}
	switch fn.Name() {
	case "Lock", "RLock", "TryLock", "TryRLock", "take", "Take":
		f.take(c.Pos(), lock, k)
	case "Do":
		f.take(c.Pos(), lock, k)
		f.callbacks(c, fn.Name())
		delete(f.held, lock)
	case "Unlock", "RUnlock", "leave", "Leave":
		delete(f.held, lock)
	default:
		return false
	}
	return true
}

// ofOurs follows a method of an interface that only this package knows, into each type of the package that
// has it.
func (f *walk) ofOurs(fn *types.Func) bool {
	r := fn.Signature().Recv()
	if fn.Pkg() != f.pkg || r == nil || !types.IsInterface(r.Type()) {
		return false
	}
	n, ok := r.Type().(*types.Named)
	if !ok || n.Obj().Exported() {
		return false
	}
	before, any := f.held.join(nil), false
	for _, name := range f.pkg.Scope().Names() {
		o, ok := f.pkg.Scope().Lookup(name).(*types.TypeName)
		if !ok || types.IsInterface(o.Type()) ||
			!types.Implements(types.NewPointer(o.Type()), n.Underlying().(*types.Interface)) {
			continue
		}
		m, _, _ := types.LookupFieldOrMethod(o.Type(), true, f.pkg, fn.Name())
		if d := f.decls[m.(*types.Func)]; d != nil {
			any = true
			f.held = before.join(nil)
			f.run(d, nil)
		}
	}
	f.held = before
	return any
}

// toMemory reports a Fprint to a buffer.
func (f *walk) toMemory(c *ast.CallExpr, name string) bool {
	if !slices.Contains([]string{"fmt.Fprintf", "fmt.Fprint", "fmt.Fprintln"}, name) {
		return false
	}
	to := f.info.Types[c.Args[0]].Type.String()
	return to == "*strings.Builder" || to == "*bytes.Buffer"
}
