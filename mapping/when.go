package mapping

import (
	"errors"
	"fmt"
	"slices"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

// predicateCost bounds one evaluation. A predicate that reaches it is undecided
// and invalidates.
const predicateCost = 10_000

// predicate is a compiled `when`.
type predicate struct {
	source                 string
	program                cel.Program
	oldColumns, newColumns []string
	types                  *expression // how it uses them
}

// compilePredicate compiles a CEL expression over old and new, whose fields are
// the row's columns.
func compilePredicate(expr string) (*predicate, error) {
	row := cel.MapType(cel.StringType, cel.DynType)
	env, err := cel.NewEnv(cel.Variable("old", row), cel.Variable("new", row), cel.CrossTypeNumericComparisons(true))
	if err != nil {
		return nil, err
	}
	checked, issues := env.Compile(expr)
	if issues.Err() != nil {
		return nil, issues.Err()
	}
	if t := checked.OutputType(); !t.IsExactType(cel.BoolType) && !t.IsExactType(cel.DynType) {
		return nil, fmt.Errorf("the expression is a %s; want a bool", t)
	}
	p := &predicate{source: expr}
	if err := p.findColumns(checked.NativeRep()); err != nil {
		return nil, err
	}
	p.types = newExpression(checked.NativeRep())
	p.program, err = env.Program(checked, cel.EvalOptions(cel.OptOptimize, cel.OptPartialEval), cel.CostLimit(predicateCost))
	return p, err
}

// compileWhen checks an expression and says which columns it needs.
func compileWhen(expr string) (columns []string, err error) {
	p, err := compilePredicate(expr)
	if err != nil {
		return nil, err
	}
	return sortedSet(append(slices.Clone(p.oldColumns), p.newColumns...)), nil
}

// findColumns notes every old.x, old["x"], new.x and new["x"]. Any other use of a
// row would need columns that cannot be named beforehand.
func (p *predicate) findColumns(a *ast.AST) error {
	named := map[int64]bool{} // identifiers that stand before a column's name
	var err error
	note := func(row ast.Expr, column string) {
		if row.Kind() != ast.IdentKind {
			return
		}
		switch row.AsIdent() {
		case "old":
			p.oldColumns = append(p.oldColumns, column)
		case "new":
			p.newColumns = append(p.newColumns, column)
		default:
			return
		}
		named[row.ID()] = true
	}
	ast.PreOrderVisit(a.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.SelectKind:
			note(e.AsSelect().Operand(), e.AsSelect().FieldName())
		case ast.CallKind:
			args := e.AsCall().Args()
			if e.AsCall().FunctionName() == operators.Index && args[1].Kind() == ast.LiteralKind {
				if s, ok := args[1].AsLiteral().(types.String); ok {
					note(args[0], string(s))
				}
			}
		case ast.IdentKind:
			if n := e.AsIdent(); (n == "old" || n == "new") && !named[e.ID()] && err == nil {
				err = fmt.Errorf("%s is used as a whole; name a column: %s.status", n, n)
			}
		}
	}))
	if err == nil && len(p.oldColumns)+len(p.newColumns) == 0 {
		err = errors.New("the expression looks at no column of old or new")
	}
	p.oldColumns, p.newColumns = sortedSet(p.oldColumns), sortedSet(p.newColumns)
	return err
}

// boundPredicate is a predicate over one relation's columns.
type boundPredicate struct {
	*predicate
	old, new           []column // in the order of oldColumns, newColumns
	oldForms, newForms []form   // the same
}

func (p *predicate) bind(rel *decoder.Relation) *boundPredicate {
	b := &boundPredicate{predicate: p}
	typeOID := func(ref columnRef) uint32 { return find(rel, ref.name).typeOID }
	for _, name := range p.oldColumns {
		b.old = append(b.old, find(rel, name))
		b.oldForms = append(b.oldForms, p.types.formOf(columnRef{"old", name}, typeOID))
	}
	for _, name := range p.newColumns {
		b.new = append(b.new, find(rel, name))
		b.newForms = append(b.newForms, p.types.formOf(columnRef{"new", name}, typeOID))
	}
	return b
}

// problems names the columns that the predicate compares with what their type
// never equals.
func (b *boundPredicate) problems() []Problem {
	var names []string
	note := func(columns []string, bound []column, forms []form) {
		for i, f := range forms {
			if f == formUnknown && bound[i].index >= 0 {
				names = append(names, columns[i])
			}
		}
	}
	note(b.oldColumns, b.old, b.oldForms)
	note(b.newColumns, b.new, b.newForms)
	var list []Problem
	for _, name := range sortedSet(names) {
		list = append(list, Problem{Column: name, Reason: ReasonPredicate})
	}
	return list
}

// Verdict is what a predicate says of a change.
type Verdict uint8

// The verdicts. Only False keeps a change from invalidating.
const (
	VerdictFalse   Verdict = iota
	VerdictTrue            // it holds
	VerdictUnknown         // it depends on a value that the log does not carry
	VerdictError           // it failed
)

func (v Verdict) String() string {
	return [...]string{"false", "true", "unknown", "error"}[v]
}

// holds says whether the change counts; a doubt counts, and is counted.
func (b *boundPredicate) holds(ch *decoder.Change, out *Output) bool {
	switch v, _ := b.eval(ch); v {
	case VerdictFalse:
		return false
	case VerdictTrue:
	default:
		out.Widened[ReasonPredicate]++
	}
	return true
}

func (b *boundPredicate) eval(ch *decoder.Change) (Verdict, error) {
	var unknown []*cel.AttributePatternType
	row := func(name string, names []string, columns []column, forms []form, present bool, of func(*column, *decoder.Change) value) map[string]any {
		m := make(map[string]any, len(names))
		for i, column := range names {
			switch {
			case !present:
				m[column] = nil // null: old of an insert, new of a delete
			default:
				v := of(&columns[i], ch)
				if v.known {
					m[column], v.known = v.as(forms[i])
				}
				if !v.known {
					delete(m, column)
					unknown = append(unknown, cel.AttributePattern(name).QualString(column))
				}
			}
		}
		return m
	}
	vars := map[string]any{
		"old": row("old", b.oldColumns, b.old, b.oldForms, ch.Action != decoder.Insert, (*column).oldValue),
		"new": row("new", b.newColumns, b.new, b.newForms, ch.Action != decoder.Delete, (*column).newValue),
	}
	activation, err := cel.PartialVars(vars, unknown...)
	if err != nil {
		return VerdictError, err
	}
	result, _, err := b.program.Eval(activation)
	switch {
	case err != nil:
		return VerdictError, err
	case types.IsUnknown(result):
		return VerdictUnknown, nil
	case result == types.False:
		return VerdictFalse, nil
	case result == types.True:
		return VerdictTrue, nil
	}
	return VerdictError, fmt.Errorf("the expression is a %s; want a bool", result.Type())
}
