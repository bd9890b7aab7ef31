package keytype

import "github.com/cdc-invalidator/cdc-invalidator/mapping"

// ambiguous says why a value's text need not be that of the row which has the value: there
// is more than one, and the row has one of them.
func (t *Type) ambiguous() refusal {
	return refusal(t.Ambiguous())
}

// Ambiguous says why one row can be found under several texts of this type; empty when it
// cannot. The sentence goes on from the name of a column.
func (t *Type) Ambiguous() string {
	switch {
	case t.Nondeterministic && t.takesText():
		return "has the collation " + t.Collation + ", under which different texts are equal"
	case t.Form == Citext && t.Normal != mapping.NormalLower:
		return "takes texts that differ in case for equal"
	case t.Form == NumericFree && t.Normal != mapping.NormalNumber:
		return "has no scale, so that 1 and 1.0 are equal and print differently"
	case t.Form == Blank && t.Domain && t.Mod < 0 && t.Normal != mapping.NormalRTrim:
		return "takes texts that differ in blanks at their end for equal"
	}
	switch t.Form {
	case Float:
		return "is a float, of which 0 and -0 are equal and print differently"
	case Interval:
		return "is an interval, of which 1 mon and 30 days are equal and print differently"
	case JSON:
		return "is JSON, in which 1 and 1.0 print differently"
	case Session:
		return "has a text that follows settings of the session (lc_monetary, search_path)"
	case Array, Range, Composite, Other:
		return "has a text that no Go value can be known to print like"
	}
	return ""
}

// remedy is the normal form that would bring the texts of one row together; none where that
// takes another column.
func (t *Type) remedy() mapping.Normal {
	switch {
	case t.Nondeterministic:
		return mapping.NormalNone
	case t.Form == Citext:
		return mapping.NormalLower
	case t.Form == NumericFree:
		return mapping.NormalNumber
	case t.Form == Blank:
		return mapping.NormalRTrim
	}
	return mapping.NormalNone
}

// fix says what to do about an ambiguous column.
func (t *Type) fix(variable string) string {
	const rowText = "pass cache.RowText with the text that was read from the row"
	switch n := t.remedy(); {
	case n != mapping.NormalNone:
		return "write {" + variable + "|" + string(n) + "} in the template, or " + rowText
	case t.Nondeterministic:
		return "make keys of another column, such as the primary key, or " + rowText
	case t.Form == Session:
		return "make keys of another column"
	case t.Form == Float:
		return "make keys of a numeric(p,s) column, or " + rowText
	}
	return "make keys of another column, or " + rowText
}
