package mapping

import (
	"math"
	"slices"
	"strconv"
	"strings"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// CEL says that values of different types are not equal, and says it without an
// error: a column that reaches it as text never equals 5, whatever it holds, and
// such a predicate would keep every change from invalidating. The types of the
// columns are known when a relation is bound, so comparisons are looked at then;
// a column that cannot be compared as it is written is unknown to the predicate.

// form is what a column is in CEL.
type form uint8

const (
	formText form = iota
	formInt
	formFloat
	formNumeric
	formNumber // formInt for a whole number, else formNumeric
	formBool
	formUnknown // not to be told, or compared with what it never equals
)

// firstUserOID is where the types begin that somebody has made: domains, whose
// values are those of a type that the log does not name, enums, extensions.
const firstUserOID = 16384

func formOf(typeOID uint32) form {
	switch typeOID {
	case 16: // bool
		return formBool
	case 20, 21, 23, 26: // int8, int2, int4, oid
		return formInt
	case 700, 701: // float4, float8
		return formFloat
	case 1700: // numeric
		return formNumeric
	}
	if typeOID >= firstUserOID {
		return formUnknown
	}
	return formText
}

// columnRef is a column of one of the two rows.
type columnRef struct{ row, name string }

// columnUse is what an expression says of a column's type.
type columnUse struct {
	count  int         // how often it stands there
	paired int         // of these, compared for equality with another column
	equals []form      // compared for equality with this
	suits  []form      // anything else that takes only this
	others []columnRef // the other columns of paired
}

// expression walks over an AST and notes the use of columns.
type expression struct {
	tree *ast.AST
	uses map[columnRef]*columnUse
}

func newExpression(tree *ast.AST) *expression {
	x := &expression{tree: tree, uses: map[columnRef]*columnUse{}}
	ast.PreOrderVisit(tree.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if ref, ok := refOf(e); ok {
			x.use(ref).count++
			if e.Kind() == ast.SelectKind && e.AsSelect().IsTestOnly() {
				x.use(ref).paired++ // has(old.x) is right for any type
			}
		}
		if e.Kind() == ast.CallKind {
			x.call(e.AsCall())
		}
	}))
	return x
}

// refOf is the column that an expression names: old.x or old["x"].
func refOf(e ast.Expr) (columnRef, bool) {
	var row ast.Expr
	var name string
	switch e.Kind() {
	case ast.SelectKind:
		row, name = e.AsSelect().Operand(), e.AsSelect().FieldName()
	case ast.CallKind:
		args := e.AsCall().Args()
		if e.AsCall().FunctionName() != operators.Index || args[1].Kind() != ast.LiteralKind {
			return columnRef{}, false
		}
		s, ok := args[1].AsLiteral().(types.String)
		if !ok {
			return columnRef{}, false
		}
		row, name = args[0], string(s)
	default:
		return columnRef{}, false
	}
	if row.Kind() != ast.IdentKind || row.AsIdent() != "old" && row.AsIdent() != "new" {
		return columnRef{}, false
	}
	return columnRef{row.AsIdent(), name}, true
}

func (x *expression) use(ref columnRef) *columnUse {
	u := x.uses[ref]
	if u == nil {
		u = &columnUse{}
		x.uses[ref] = u
	}
	return u
}

func (x *expression) call(c ast.CallExpr) {
	args := c.Args()
	switch c.FunctionName() {
	case operators.Equals, operators.NotEquals:
		x.compare(args[0], args[1])
		x.compare(args[1], args[0])
	case operators.In:
		ref, ok := refOf(args[0])
		if t := x.tree.GetType(args[1].ID()); ok && len(t.Parameters()) > 0 {
			x.equalTo(ref, t.Parameters()[0])
		}
	case operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals,
		operators.Add, operators.Subtract, operators.Multiply, operators.Divide, operators.Modulo:
		// What does not suit fails, and a failure invalidates.
		for i, a := range args {
			if ref, ok := refOf(a); ok && len(args) == 2 {
				if f, ok := formOfType(x.tree.GetType(args[1-i].ID())); ok {
					x.use(ref).suits = append(x.use(ref).suits, f)
				}
			}
		}
	default:
		name := c.FunctionName()
		if strings.ContainsRune("_!-@", rune(name[0])) || name == "dyn" || name == "type" {
			return // an operator, or what takes everything
		}
		if c.IsMemberFunction() {
			args = append([]ast.Expr{c.Target()}, args...)
		}
		for _, a := range args {
			if ref, ok := refOf(a); ok {
				x.use(ref).suits = append(x.use(ref).suits, formText) // size(), matches(), int() take text
			}
		}
	}
}

// compare notes that a, if it is a column, is compared with b.
func (x *expression) compare(a, b ast.Expr) {
	ref, ok := refOf(a)
	if !ok {
		return
	}
	if other, ok := refOf(b); ok {
		x.use(ref).paired++
		x.use(ref).others = append(x.use(ref).others, other)
		return
	}
	x.equalTo(ref, x.tree.GetType(b.ID()))
}

func (x *expression) equalTo(ref columnRef, t *types.Type) {
	if t.Kind() == types.NullTypeKind {
		x.use(ref).paired++ // anything can be null
		return
	}
	if f, ok := formOfType(t); ok {
		x.use(ref).equals = append(x.use(ref).equals, f)
	}
}

// formOfType is the form that a CEL type compares with; ok is false for one that
// is known at run time only.
func formOfType(t *types.Type) (f form, ok bool) {
	switch t.Kind() {
	case types.DynKind, types.AnyKind, types.TypeParamKind, types.ErrorKind, types.NullTypeKind:
		return formUnknown, false
	case types.IntKind, types.UintKind:
		return formInt, true
	case types.DoubleKind:
		return formFloat, true
	case types.BoolKind:
		return formBool, true
	case types.StringKind:
		return formText, true
	}
	return formUnknown, true // a timestamp, bytes, a list: no column is one
}

// comparable says whether values of the two forms can be equal.
func comparable(a, b form) bool {
	number := func(f form) bool { return f == formInt || f == formFloat || f == formNumeric }
	return a != formUnknown && b != formUnknown && (a == b || number(a) && number(b))
}

// formOf is the form in which the expression gets a column, given the types of
// all; formUnknown when no form is right.
func (x *expression) formOf(ref columnRef, typeOID func(columnRef) uint32) form {
	u, oid := x.uses[ref], typeOID(ref)
	own := formOf(oid)
	for _, other := range u.others {
		if o := typeOID(other); o != oid && !comparable(own, formOf(o)) {
			return formUnknown
		}
	}
	if own != formUnknown {
		for _, f := range u.equals {
			if !comparable(own, f) {
				return formUnknown
			}
		}
		return own
	}
	// A type that somebody has made is what the expression takes it for, if that is
	// one thing only.
	wanted := append(append([]form{}, u.equals...), u.suits...)
	if len(wanted) == 0 {
		if u.count == u.paired {
			return formText // equal texts are equal values of the same type
		}
		return formUnknown
	}
	for _, f := range wanted[1:] {
		if !comparable(f, wanted[0]) {
			return formUnknown
		}
	}
	switch f := wanted[0]; {
	case len(u.others) > 0 && f != formText:
		return formUnknown // the other column is taken for something of its own
	case slices.Contains(wanted, formFloat):
		return formNumeric
	case f == formInt:
		return formNumber
	default:
		return f
	}
}

// as gives a value its form in CEL; ok is false when the form cannot hold it.
func (v value) as(f form) (any, bool) {
	if v.null {
		return nil, true
	}
	text := string(v.data)
	switch f {
	case formText:
		return text, true
	case formBool:
		return text == "t", text == "t" || text == "f"
	case formInt:
		n, err := strconv.ParseInt(text, 10, 64)
		return n, err == nil
	case formNumber:
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return n, true
		}
		return exactDouble(text)
	case formFloat:
		n, err := strconv.ParseFloat(text, 64)
		return n, err == nil && !math.IsNaN(n) // NaN equals itself in Postgres, in CEL it does not
	case formNumeric:
		return exactDouble(text)
	}
	return nil, false
}

// exactDouble reads a numeric that a double tells from all its neighbours: one of
// 15 digits at most, or one that a double is written as. With more, a change from
// one number to the next would look like none.
func exactDouble(text string) (float64, bool) {
	n, err := strconv.ParseFloat(text, 64)
	switch {
	case err != nil || math.IsNaN(n):
		return 0, false
	case math.IsInf(n, 0) || strconv.FormatFloat(n, 'f', -1, 64) == text:
		return n, true
	case math.Abs(n) < 1e-290 && strings.ContainsAny(text, "123456789"): // doubles lose digits down there
		return 0, false
	}
	digits := strings.TrimLeft(strings.TrimLeft(text, "+-0"), ".0")
	if strings.IndexByte(text, '.') >= 0 {
		digits = strings.TrimRight(digits, "0")
	}
	return n, strings.IndexByte(text, 'e') < 0 && len(strings.Replace(digits, ".", "", 1)) <= 15
}
