package keytype

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// newVar decides how values of a variable are rendered.
func newVar(v mapping.KeyVar, column func(mapping.KeySource) *Column) Var {
	n := Var{Name: v.Name, Normal: v.Normal}
	message := false
	for _, s := range v.Sources {
		c := *column(s)
		c.Type.Normal = v.Normal
		n.Columns = append(n.Columns, c)
		switch {
		case s.Message != "":
			message = true
		case c.Err == nil:
			n.addType(c.Type)
		}
	}
	switch {
	case len(n.types) > 0: // a message that feeds it too has to bring the text of the columns
	case message:
		n.types = []Type{{Form: Message, Normal: v.Normal, Mod: -1}}
	case len(v.Sources) == 0:
		n.types = []Type{{Form: Free, Normal: v.Normal, Mod: -1}}
	}
	return n
}

// addType adds a type that prints values in another way than those that are there.
func (v *Var) addType(t Type) {
	for i := range v.types {
		o := &v.types[i]
		if o.printing() != t.printing() {
			continue
		}
		if t.unit() < o.unit() { // the finer one takes what both take
			*o = t
		}
		return
	}
	v.types = append(v.types, t)
}

// printing is what the text of a value follows from; types with the same print what both
// can hold in the same way.
func (t *Type) printing() string {
	switch t.Form {
	case Integer:
		return fmt.Sprint(Integer, t.unsigned())
	case Numeric:
		return fmt.Sprint(Numeric, numericScale(t.Mod))
	case Blank:
		return fmt.Sprint(Blank, t.Domain, t.Domain && t.Normal != mapping.NormalRTrim, t.Mod, t.Nondeterministic)
	case Bit:
		return fmt.Sprint(Bit, t.Mod)
	}
	return fmt.Sprint(t.Form, t.Nondeterministic)
}

// Unknown says why values of the variable cannot be rendered at all: the type of a column that
// they come from is not known.
func (v *Var) Unknown() error {
	for _, c := range v.Columns {
		if c.Err != nil {
			return fmt.Errorf("the type of %s is not known: %w", c.Source, c.Err)
		}
	}
	return nil
}

// Append appends what stands in a key for a Go value.
func (v *Var) Append(dst []byte, value any) ([]byte, error) {
	t := &v.types[0]
	if len(v.types) > 1 {
		return v.appendAll(dst, func(t *Type, dst []byte) ([]byte, bool, error) { return t.Append(dst, value) })
	}
	switch t.Form { // the path of most hits
	case Integer:
		switch n := value.(type) {
		case int:
			if n >= 0 && (n <= math.MaxInt32 || !t.unsigned()) {
				return strconv.AppendInt(dst, int64(n), 10), nil
			}
		case int64:
			if n >= 0 && (n <= math.MaxInt32 || !t.unsigned()) {
				return strconv.AppendInt(dst, n, 10), nil
			}
		}
	case Text:
		if s, ok := value.(string); ok && !t.Nondeterministic && v.Normal == mapping.NormalNone {
			return mapping.AppendEncoded(dst, []byte(s)), nil
		}
	}
	var buf [96]byte
	text, null, err := t.Append(buf[:0], value)
	if err != nil {
		return nil, v.where(t, err)
	}
	return v.encode(dst, text, null), nil
}

// AppendRowText is Append for the text that the row itself has.
func (v *Var) AppendRowText(dst []byte, s string) ([]byte, error) {
	return v.appendAll(dst, func(t *Type, dst []byte) ([]byte, bool, error) {
		text, err := t.AppendRowText(dst, s)
		return text, false, err
	})
}

func (v *Var) encode(dst, text []byte, null bool) []byte {
	if null {
		return mapping.AppendNull(dst)
	}
	return mapping.AppendEncoded(dst, v.Normal.Of(text))
}

// appendAll renders a value for columns that print in different ways. There is one key only
// where all print the same.
func (v *Var) appendAll(dst []byte, render func(*Type, []byte) ([]byte, bool, error)) ([]byte, error) {
	start := len(dst)
	for i := range v.types {
		t := &v.types[i]
		text, null, err := render(t, nil)
		if err != nil {
			return nil, v.where(t, err)
		}
		encoded := v.encode(nil, text, null)
		if i > 0 && string(dst[start:]) != string(encoded) {
			a, b := v.column(&v.types[0]), v.column(t)
			return nil, fmt.Errorf("%s is %s and %s is %s, which print it in different ways: map the family from columns of one type, or use two families",
				a.Source, a.Type.Name, b.Source, b.Type.Name)
		}
		dst = append(dst[:start], encoded...)
	}
	return dst, nil
}

// where says in what column, of what type, a value would stand.
func (v *Var) where(t *Type, err error) error {
	c := v.column(t)
	if c == nil {
		return err
	}
	if why := t.Ambiguous(); why != "" {
		if e := (*ValueError)(nil); errors.As(err, &e) && e.Problem == why {
			e.Problem = "need not be the text of the row, since its type " + why
		}
	}
	return fmt.Errorf("%s is %s: %w", c.Source, t.Name, err)
}

// column is the first one of the type; nil of what is no column.
func (v *Var) column(t *Type) *Column {
	for i := range v.Columns {
		if c := &v.Columns[i]; c.Source.Message == "" && c.Type == *t {
			return c
		}
	}
	return nil
}

// String says what the variable is made of.
func (v *Var) String() string {
	var parts []string
	for _, c := range v.Columns {
		parts = append(parts, c.Source.String()+" ("+c.Type.Name+")")
	}
	return strings.Join(parts, ", ")
}
