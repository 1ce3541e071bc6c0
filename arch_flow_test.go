package understudy

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"maps"
	"slices"
	"strings"
)

// This file follows the statements of a function with the set of locks that may be
// held at each of them, and follows calls within the package with that set. A
// function is looked at once for each set that it is called with. Where ways
// meet, what was held on either counts. Locks are told apart by type and field
// (or variable), not by value. What is deferred is done at the end. A variable called
// unlock gives back what the call took that it came from.

type lockKind int

const (
	noLock lockKind = iota
	mutex
	turn
)

// kindOf tells what kind of lock a field or variable is. A turn is a channel of
// struct{} called turn, or of a type called Turn, turn or lock.
func kindOf(t types.Type, name string) lockKind {
	if p, ok := t.(*types.Pointer); ok {
		t = p.Elem()
	}
	if n, ok := t.(*types.Named); ok {
		if o := n.Obj(); o.Pkg() != nil && o.Pkg().Path() == "sync" && (o.Name() == "Mutex" || o.Name() == "RWMutex") {
			return mutex
		}
		name = n.Obj().Name()
	}
	if c, ok := t.Underlying().(*types.Chan); ok && (name == "turn" || name == "Turn" || name == "lock") {
		if s, ok := c.Elem().Underlying().(*types.Struct); ok && s.NumFields() == 0 {
			return turn
		}
	}
	return noLock
}

// held is the set of locks that may be held, by name.
type held map[string]lockKind

func (h held) key() string { return strings.Join(slices.Sorted(maps.Keys(h)), " ") }

// mutexes are the names of those under which nothing may be done.
func (h held) mutexes() string {
	var out []string
	for n, k := range h {
		if k == mutex {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " and ")
}

func (h held) join(o held) held {
	out := maps.Clone(h)
	if out == nil {
		out = held{}
	}
	maps.Copy(out, o)
	return out
}

// bound are the functions that parameters and variables stand for.
type bound map[types.Object]ast.Node // *ast.FuncLit or *ast.FuncDecl

type flow struct {
	*checked
	decls   map[*types.Func]*ast.FuncDecl
	called  map[*types.Func]bool
	notes   map[string]string // file:line → reason
	done    map[string]held   // function and set → what is held at its end
	found   map[token.Pos]string
	excused map[token.Pos]string
	taken   map[[2]string]string // held, taken → where
}

func newFlow(c *checked) *flow {
	w := &flow{checked: c, decls: map[*types.Func]*ast.FuncDecl{}, called: map[*types.Func]bool{},
		notes: map[string]string{}, done: map[string]held{},
		found: map[token.Pos]string{}, excused: map[token.Pos]string{}, taken: map[[2]string]string{}}
	for _, f := range c.files {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				w.decls[c.info.Defs[fn.Name].(*types.Func)] = fn
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if c, ok := n.(*ast.CallExpr); ok {
				if fn := (&walk{flow: w}).callee(c); fn != nil {
					w.called[fn.Origin()] = true
				}
			}
			return true
		})
		for _, g := range f.Comments {
			for _, m := range g.List {
				if reason, ok := strings.CutPrefix(m.Text, "//lock: "); ok {
					pos := c.fset.Position(m.Pos())
					w.notes[fmt.Sprint(pos.Filename, ":", pos.Line)] = reason
				}
			}
		}
	}
	return w
}

// walk is the way through one function body.
type walk struct {
	*flow
	held   held
	ended  bool // nothing comes here
	exit   held // at the ends so far
	exits  bool
	defers []*ast.CallExpr
	bound  bound
	leave  []*target
	label  string
	unlock map[types.Object]held // what a variable called unlock gives back
}

// target is a statement that break and continue may leave.
type target struct {
	label string
	loop  bool
	again held // at continue
	held  held // at break
	used  bool
}

func (w *flow) function(fn *ast.FuncDecl, h held, b bound) held { return w.body(fn, fn.Body, h, b) }

// within reports a function that is to be looked at only where it is called: it
// calls a function that its callers in this package pass.
func (w *flow) within(fn *ast.FuncDecl) bool {
	if fn.Name.IsExported() || !w.called[w.info.Defs[fn.Name].(*types.Func)] {
		return false
	}
	return slices.ContainsFunc(fn.Type.Params.List, func(p *ast.Field) bool {
		_, ok := w.info.Types[p.Type].Type.Underlying().(*types.Signature)
		return ok
	})
}

func (w *flow) literal(fn *ast.FuncLit, h held, b bound) held { return w.body(fn, fn.Body, h, b) }

func (w *flow) body(fn ast.Node, body *ast.BlockStmt, h held, b bound) held {
	key := fmt.Sprint(fn.Pos(), " ", h.key())
	names := []string{}
	for o, n := range b {
		names = append(names, fmt.Sprint(o.Pos(), "=", n.Pos()))
	}
	slices.Sort(names)
	key += strings.Join(names, ",")
	if out, ok := w.done[key]; ok {
		return out
	}
	w.done[key] = h // as long as it is not known, for recursion
	f := &walk{flow: w, held: h.join(nil), bound: bound{}, unlock: map[types.Object]held{}}
	maps.Copy(f.bound, b)
	f.block(body.List)
	f.end()
	out := f.exit
	if !f.exits {
		out = h
	}
	f.held, f.ended = out.join(nil), false
	for i := len(f.defers) - 1; i >= 0; i-- {
		f.call(f.defers[i])
	}
	w.done[key] = f.held
	return f.held
}

// end notes what is held at an end of the function.
func (f *walk) end() {
	if !f.ended {
		f.exit, f.exits, f.ended = f.exit.join(f.held), true, true
	}
}

func (f *walk) block(list []ast.Stmt) {
	for _, s := range list {
		if f.ended {
			if _, ok := s.(*ast.LabeledStmt); !ok {
				return
			}
			f.ended = false
		}
		f.stmt(s)
	}
}

// branch walks one of several ways from a beginning.
func (f *walk) branch(from held, do func()) (at held, ended bool) {
	f.held, f.ended = from.join(nil), false
	do()
	return f.held, f.ended
}

// meet goes on where several ways meet.
func (f *walk) meet(ways []held) {
	f.ended = len(ways) == 0
	f.held = held{}
	for _, h := range ways {
		f.held = f.held.join(h)
	}
}

func (f *walk) stmt(s ast.Stmt) {
	label := f.label
	f.label = ""
	switch s := s.(type) {
	case *ast.BlockStmt:
		f.block(s.List)
	case *ast.LabeledStmt:
		f.label = s.Label.Name
		f.stmt(s.Stmt)
	case *ast.IfStmt:
		f.ifs(s)
	case *ast.ForStmt:
		f.simple(s.Init)
		f.loop(label, s.Cond == nil, func() {
			f.expr(s.Cond)
			f.block(s.Body.List)
			f.simple(s.Post)
		})
	case *ast.RangeStmt:
		f.rangeOver(s, label)
	case *ast.SwitchStmt:
		f.simple(s.Init)
		f.expr(s.Tag)
		f.clauses(label, s.Body.List)
	case *ast.TypeSwitchStmt:
		f.simple(s.Init)
		f.simple(s.Assign)
		f.clauses(label, s.Body.List)
	case *ast.SelectStmt:
		f.clauses(label, s.Body.List)
	case *ast.ReturnStmt:
		for _, e := range s.Results {
			f.expr(e)
		}
		f.end()
	case *ast.BranchStmt:
		f.jump(s)
	default:
		f.simple(s)
	}
}

// simple walks statements that hold no others.
func (f *walk) simple(s ast.Stmt) {
	switch s := s.(type) {
	case *ast.SendStmt:
		f.expr(s.Value)
		f.send(s)
	case *ast.DeferStmt:
		for _, a := range s.Call.Args {
			f.expr(a)
		}
		f.defers = append(f.defers, s.Call)
	case *ast.GoStmt:
		for _, a := range s.Call.Args {
			f.expr(a)
		}
	case *ast.AssignStmt:
		before := f.held.join(nil)
		for _, e := range s.Rhs {
			f.expr(e)
		}
		for i, e := range s.Lhs {
			f.expr(e)
			if id, ok := e.(*ast.Ident); ok && id.Name == "unlock" {
				f.unlocks(f.object(id), before)
			} else if ok && len(s.Lhs) == len(s.Rhs) {
				f.bind(f.object(id), s.Rhs[i])
			}
		}
	case *ast.DeclStmt:
		for _, sp := range s.Decl.(*ast.GenDecl).Specs {
			if v, ok := sp.(*ast.ValueSpec); ok {
				for i, e := range v.Values {
					f.expr(e)
					if len(v.Names) == len(v.Values) {
						f.bind(f.object(v.Names[i]), e)
					}
				}
			}
		}
	case *ast.ExprStmt:
		f.expr(s.X)
		if c, ok := s.X.(*ast.CallExpr); ok {
			if id, ok := c.Fun.(*ast.Ident); ok && id.Name == "panic" {
				f.ended = true
			}
		}
	case *ast.IncDecStmt:
		f.expr(s.X)
	}
}

// unlocks notes that a function called unlock gives back what was taken by the call
// that returned it.
func (f *walk) unlocks(o types.Object, before held) {
	got := f.held.join(nil)
	maps.DeleteFunc(got, func(name string, _ lockKind) bool { _, ok := before[name]; return ok })
	f.unlock[o] = got
}

func (f *walk) object(id *ast.Ident) types.Object {
	if o := f.info.Defs[id]; o != nil {
		return o
	}
	return f.info.Uses[id]
}

func (f *walk) ifs(s *ast.IfStmt) {
	f.simple(s.Init)
	f.expr(s.Cond)
	from := f.held
	var ways []held
	if at, ended := f.branch(from, func() { f.block(s.Body.List) }); !ended {
		ways = append(ways, at)
	}
	if at, ended := f.branch(from, func() {
		if s.Else != nil {
			f.stmt(s.Else)
		}
	}); !ended {
		ways = append(ways, at)
	}
	f.meet(ways)
}

// loop walks a body until what is held at its beginning is all that may be.
func (f *walk) loop(label string, forever bool, body func()) {
	t := &target{label: label, loop: true}
	f.leave = append(f.leave, t)
	begin := f.held
	for {
		at, ended := f.branch(begin, body)
		next := begin
		if !ended {
			next = next.join(at)
		}
		next = next.join(t.again)
		if next.key() == begin.key() {
			break
		}
		begin = next
	}
	f.leave = f.leave[:len(f.leave)-1]
	if f.held = t.held.join(nil); !forever {
		f.held = f.held.join(begin)
	}
	f.ended = forever && !t.used
}

func (f *walk) rangeOver(s *ast.RangeStmt, label string) {
	f.expr(s.X)
	switch f.info.Types[s.X].Type.Underlying().(type) {
	case *types.Chan:
		f.waits(s.X.Pos(), "receives from a channel")
	case *types.Signature:
		if c, ok := ast.Unparen(s.X).(*ast.CallExpr); !ok || !f.known(c) {
			f.flag(s.X.Pos(), "ranges over the function "+types.ExprString(s.X))
		}
	}
	f.loop(label, false, func() { f.block(s.Body.List) })
}

// known reports a call of a silent function, or of one of this package, whose body was walked.
func (f *walk) known(c *ast.CallExpr) bool {
	fn := f.callee(c)
	return fn != nil && (fn.Pkg() == f.pkg || isSilent(fn, nameOf(fn)))
}

func (f *walk) clauses(label string, list []ast.Stmt) {
	t := &target{label: label}
	f.leave = append(f.leave, t)
	from, ways, all := f.held, []held(nil), false
	waits := !slices.ContainsFunc(list,
		func(s ast.Stmt) bool { c, ok := s.(*ast.CommClause); return ok && c.Comm == nil })
	for _, s := range list {
		at, ended := f.branch(from, func() {
			switch c := s.(type) {
			case *ast.CaseClause:
				all = all || c.List == nil
				for _, e := range c.List {
					f.expr(e)
				}
				f.block(c.Body)
			case *ast.CommClause:
				all = true
				f.comm(c.Comm, waits)
				f.block(c.Body)
			}
		})
		if !ended {
			ways = append(ways, at)
		}
	}
	f.leave = f.leave[:len(f.leave)-1]
	if !all {
		ways = append(ways, from)
	}
	if t.used {
		ways = append(ways, t.held)
	}
	f.meet(ways)
}

// comm is the send or receive of a select.
func (f *walk) comm(s ast.Stmt, waits bool) {
	var from ast.Expr
	switch s := s.(type) {
	case *ast.SendStmt:
		f.expr(s.Value)
		if k, name := f.lockOf(s.Chan); k == turn {
			f.take(s.Pos(), name, k)
		} else if waits {
			f.waits(s.Pos(), "sends to a channel")
		}
	case *ast.ExprStmt:
		from = s.X
	case *ast.AssignStmt:
		from = s.Rhs[0]
	}
	if u, ok := from.(*ast.UnaryExpr); ok {
		f.expr(u.X)
		if k, name := f.lockOf(u.X); k == turn {
			delete(f.held, name)
		} else if waits {
			f.waits(s.Pos(), "receives from a channel")
		}
	}
}

func (f *walk) jump(s *ast.BranchStmt) {
	for i := len(f.leave) - 1; i >= 0; i-- {
		t := f.leave[i]
		if s.Tok == token.FALLTHROUGH || s.Label != nil && t.label != s.Label.Name || s.Tok == token.CONTINUE &&
			!t.loop {
			continue
		}
		if s.Tok == token.CONTINUE {
			t.again = t.again.join(f.held)
		} else {
			t.held, t.used = t.held.join(f.held), true
		}
		break
	}
	f.ended = s.Tok != token.FALLTHROUGH
}

// send is a send statement.
func (f *walk) send(s *ast.SendStmt) {
	if k, name := f.lockOf(s.Chan); k == turn {
		f.take(s.Pos(), name, k)
		return
	}
	f.waits(s.Pos(), "sends to a channel")
}

func (f *walk) expr(e ast.Expr) {
	if e == nil {
		return
	}
	ast.Inspect(e, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false
		case *ast.CallExpr:
			f.call(n)
			return false
		case *ast.UnaryExpr:
			if n.Op == token.ARROW {
				f.expr(n.X)
				if k, name := f.lockOf(n.X); k == turn {
					delete(f.held, name)
				} else {
					f.waits(n.Pos(), "receives from a channel")
				}
				return false
			}
		}
		return true
	})
}

// lockOf tells which lock an expression is.
func (f *walk) lockOf(e ast.Expr) (lockKind, string) {
	e = ast.Unparen(e)
	if u, ok := e.(*ast.UnaryExpr); ok && u.Op == token.AND {
		e = ast.Unparen(u.X)
	}
	switch e := e.(type) {
	case *ast.SelectorExpr:
		sel := f.info.Selections[e]
		if sel == nil || sel.Kind() != types.FieldVal {
			return noLock, ""
		}
		k := kindOf(sel.Type(), e.Sel.Name)
		if k == noLock {
			return noLock, ""
		}
		return k, f.owner(sel) + "." + e.Sel.Name
	case *ast.Ident:
		o := f.object(e)
		if o == nil {
			return noLock, ""
		}
		if kindOf(o.Type(), e.Name) != mutex {
			return noLock, "" // a turn in its own methods
		}
		return mutex, f.path + "." + e.Name
	}
	return noLock, ""
}

// owner is the type that holds the field of a selection.
func (f *walk) owner(sel *types.Selection) string {
	t := sel.Recv()
	for _, i := range sel.Index()[:len(sel.Index())-1] {
		t = deref(t).Underlying().(*types.Struct).Field(i).Type()
	}
	return typeName(t)
}

func deref(t types.Type) types.Type {
	if p, ok := t.Underlying().(*types.Pointer); ok {
		return p.Elem()
	}
	return t
}

func typeName(t types.Type) string {
	if n, ok := deref(t).(*types.Named); ok {
		return strings.TrimPrefix(n.Obj().Pkg().Path(), module) + "." + n.Obj().Name()
	}
	return "struct"
}

func (f *walk) take(p token.Pos, name string, k lockKind) {
	if k == turn {
		f.waits(p, "waits for the turn "+name)
	}
	pos := f.fset.Position(p)
	_, excused := f.notes[fmt.Sprint(pos.Filename, ":", pos.Line)]
	for h := range f.held {
		if pair := [2]string{h, name}; f.taken[pair] == "" && !excused {
			f.taken[pair] = f.at(p)
		}
	}
	f.held[name] = k
}

func (f *walk) waits(p token.Pos, what string) { f.flag(p, what) }

// flag notes something that is not done under a mutex.
func (f *walk) flag(p token.Pos, what string) {
	under := f.held.mutexes()
	if under == "" {
		return
	}
	pos := f.fset.Position(p)
	text := fmt.Sprintf("%s: %s under %s", f.at(p), what, under)
	if reason, ok := f.notes[fmt.Sprint(pos.Filename, ":", pos.Line)]; ok {
		f.excused[p] = text + ": " + reason
		return
	}
	if f.found[p] == "" {
		f.found[p] = text
	}
}
