package keytype

import (
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Type is a column's type. What a value of it is in a key depends on what stands here, and
// on nothing else.
type Type struct {
	Name             string // as the source writes it, for people: numeric(10,2)
	Schema, Base     string // the type, or what a domain is a domain over, as pg_type has it
	OID              uint32 // of Base
	Mod              int32  // of Base; -1 for none
	Domain           bool   // it is a domain over Base
	Form             Form
	Collation        string
	Nondeterministic bool // the collation takes different texts for equal
	// Print is all that the text of a value follows from. Names that people see follow the search
	// path, and are left out; so are oids, which differ after a restore, and what changes no text.
	Print  string
	Labels string // of an enum, or of an array of one

	Normal mapping.Normal // that the variable's values have in keys
}

// Form is how values of a type are printed.
type Form uint8

// The forms.
const (
	Other       Form = iota // no Go value can be known to print like it
	Bool                    // t, f
	Integer                 // decimal digits
	Numeric                 // with a scale: so many digits behind the point
	NumericFree             // without one: 1, 1.0
	Float                   // 0, -0
	Text                    // as it is
	Name                    // cut off behind 63 bytes
	Blank                   // char(n), whose padding means nothing
	Char                    // "char": one byte
	Citext                  // any case is equal
	Enum                    // a label
	UUID
	Bytea
	Date
	Time
	TimeTZ
	Timestamp
	TimestampTZ
	Interval // 1 mon, 30 days
	Inet
	CIDR
	MAC
	MAC8
	Bit
	Varbit
	LSN
	JSON
	Session // money, regclass: what is printed follows lc_monetary, search_path
	Array
	Range
	Composite
	Message // of a message: the text of its field
	Free    // no mapping tells the variable, so the daemon never makes such a key
)

// builtin are the types whose oid is the same on every server.
var builtin = map[uint32]Form{
	16: Bool, 17: Bytea, 18: Char, 19: Name, 20: Integer, 21: Integer, 23: Integer, 25: Text, 26: Integer, 28: Integer, 29: Integer,
	114: JSON, 142: Other, 650: CIDR, 700: Float, 701: Float, 774: MAC8, 790: Session, 829: MAC, 869: Inet, 1042: Blank, 1043: Text,
	1082: Date, 1083: Time, 1114: Timestamp, 1184: TimestampTZ, 1186: Interval, 1266: TimeTZ, 1560: Bit, 1562: Varbit, 1700: Numeric,
	24: Session, 2202: Session, 2203: Session, 2204: Session, 2205: Session, 2206: Session, 3734: Session, 3769: Session, 4089: Session, 4096: Session, 4191: Session,
	2950: UUID, 3220: LSN, 3802: JSON, 5069: Integer,
}

// formOf follows from pg_type's typtype and typcategory for types that users make.
func formOf(t *Type, class, category string) Form {
	if form, ok := builtin[t.OID]; ok {
		if form == Numeric && t.Mod < 0 {
			return NumericFree
		}
		return form
	}
	switch {
	case class == "e":
		return Enum
	case class == "r" || class == "m":
		return Range
	case class == "c":
		return Composite
	case category == "A":
		return Array
	case t.Base == "citext":
		return Citext
	}
	return Other
}
