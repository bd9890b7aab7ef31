package keytype

import "fmt"

// FormInfo is what people are told of a form.
type FormInfo struct {
	Form  Form
	Types string // of Postgres
	Takes string // Go values
	Text  string // an example of what stands in the key, before it is encoded
}

// Forms are all forms of columns, as docs/reader.md lists them.
func Forms() []FormInfo {
	const ints = "integers of any type, also named ones"
	const rowText = "`cache.RowText` only"
	return []FormInfo{
		{Integer, "smallint, integer, bigint, oid, xid, cid, xid8", ints + "; strings of just these digits", "42"},
		{Bool, "boolean", "bools; `\"t\"`, `\"f\"`", "t"},
		{Text, "text, varchar", "strings, `[]byte`, " + ints + ". Not what has a text of its own (`String()`, `MarshalText`): convert it", "as it is"},
		{Name, "name", "as text, at most 63 bytes", "as it is"},
		{Blank, "char(n)", "as text; blanks at the end mean nothing", "without the padding; of a domain with it"},
		{Char, `"char"`, "a string of one ASCII character", "x"},
		{Enum, "enums", "strings, also named ones without a text of their own", "the label"},
		{Citext, "citext", "as text, where the template says `{x|lower}`; else " + rowText, "in lower case"},
		{UUID, "uuid", "`[16]byte` and types based on it; strings of 36 characters in lower case", "6b1d0c3e-0000-4000-8000-00000000abcd"},
		{Bytea, "bytea", "`[]byte`, also named; strings like the text", `\x00ff`},
		{Numeric, "numeric(p,s)", ints + "; `json.Number`, `pgtype.Numeric`, `*big.Int`, decimal types (`driver.Valuer`), of any scale that the column can hold; strings with exactly s digits behind the point", "1.50"},
		{NumericFree, "numeric", "the same as numeric(p,s), where the template says `{x|number}`; else " + rowText, "1.5"},
		{Date, "date", "`pgtype.Date`; `time.Time` at midnight UTC; strings like the text", "2024-03-01"},
		{Time, "time", "`pgtype.Time`; strings like the text", "12:34:56.789"},
		{TimeTZ, "timetz", "strings like the text", "12:34:56+01"},
		{Timestamp, "timestamp", "`time.Time` in UTC, `pgtype.Timestamp`; no finer than the column; strings like the text", "2024-03-01 12:34:56.789"},
		{TimestampTZ, "timestamptz", "`time.Time`, `pgtype.Timestamptz`; no finer than the column; strings like the text", "2024-03-01 12:34:56.789+00"},
		{Inet, "inet", "`netip.Addr`, `netip.Prefix`, `net.IPNet`, `net.IP` of 4 bytes or of IPv6; strings like the text", "10.0.0.1"},
		{CIDR, "cidr", "as inet, of a network without host bits", "10.0.0.1/32"},
		{MAC, "macaddr", "`net.HardwareAddr` of 6 bytes; strings like the text", "08:00:2b:01:02:03"},
		{MAC8, "macaddr8", "`net.HardwareAddr` of 8 bytes; strings like the text", "08:00:2b:01:02:03:04:05"},
		{Bit, "bit(n)", "`pgtype.Bits`, strings of n bits", "0101"},
		{Varbit, "varbit", "`pgtype.Bits`, strings of bits", "0101"},
		{LSN, "pg_lsn", "strings like the text, and types whose `Value` is one", "16/B374D848"},
		{Float, "real, double precision", rowText + ": 0 and -0 are equal", "0.1"},
		{Interval, "interval", rowText + ": 1 mon and 30 days are equal", "1 mon 2 days"},
		{JSON, "json, jsonb", rowText, `{"a": 1}`},
		{Session, "money, regclass and the like", "nothing: the text follows the session's lc_monetary, search_path", ""},
		{Array, "arrays", rowText, `{a,b}`},
		{Range, "ranges, multiranges", rowText, "[1,5)"},
		{Composite, "composite types", rowText, "(1,x)"},
		{Other, "all others", rowText, ""},
	}
}

// Pass says which Go values have a text under the type, for errors.
func (t *Type) Pass() string {
	rowText := "a cache.RowText, which is " + t.passRowText()
	if t.Ambiguous() != "" {
		switch n := t.remedy(); {
		case t.Form == Session:
			return t.passRowText()
		case n != "" && t.Form == Blank:
			return "anything once the template brings the texts together: {variable|" + string(n) + "}"
		case n != "":
			return rowText + "; or let the template bring the texts together: {variable|" + string(n) + "}"
		}
		return rowText
	}
	const same = ", or a string like it"
	switch t.Form {
	case Integer:
		return "an integer, or a string of just its digits (parse what a request brings)"
	case Bool:
		return `a bool, "t" or "f"`
	case Text, Blank, Citext:
		return "a string or []byte that is what the row holds"
	case Name:
		return "a string of at most 63 bytes that is what the row holds"
	case Char:
		return "a string of one ASCII character"
	case Enum:
		return "a string that is the label"
	case UUID:
		return "a [16]byte, or a string of 36 characters in lower case (parse what a request brings)"
	case Bytea:
		return `a []byte, or a string of \x and hexadecimal digits in lower case`
	case Numeric, NumericFree:
		digits := "no zeros at the end"
		if t.Form == Numeric {
			digits = fmt.Sprintf("%d digits behind the point", max(0, numericScale(t.Mod)))
		}
		return "an integer, a decimal type, a json.Number, or a string with " + digits
	case Date:
		return "a pgtype.Date, or a time.Time at midnight UTC" + same + ": 2024-03-01"
	case Time:
		return fmt.Sprintf("a pgtype.Time with at most %d digits of a second%s: 12:34:56.789", t.precision(), same)
	case TimeTZ:
		return "a string like 12:34:56.789+01"
	case Timestamp:
		return fmt.Sprintf("a time.Time in UTC with at most %d digits of a second%s: 2024-03-01 12:34:56.789", t.precision(), same)
	case TimestampTZ:
		return fmt.Sprintf("a time.Time with at most %d digits of a second%s: 2024-03-01 12:34:56.789+00", t.precision(), same)
	case Inet:
		return "a netip.Addr or netip.Prefix" + same + ": 10.0.0.1"
	case CIDR:
		return "a netip.Prefix or netip.Addr" + same + ": 10.0.0.0/8"
	case MAC, MAC8:
		return "a net.HardwareAddr of the column's length, or a string in lower case with colons"
	case Bit, Varbit:
		return "a pgtype.Bits of the column's length, or a string of bits"
	case LSN:
		return "a string like 16/B374D848"
	case Message:
		return "what stands in the message: a string, an integer, a bool or a uuid"
	case Free:
		return "a string, []byte, integer, bool, or what has a text of its own"
	}
	return rowText
}

func (t *Type) passRowText() string {
	switch {
	case t.Form == Session:
		return "another column: no text of this one is sure to be that of the daemon"
	case t.Form == Blank && t.Ambiguous() != "":
		return "nothing of it: let the template bring the texts together, {variable|rtrim}"
	}
	return "what SELECT column::text gives for the row itself (TimeZone UTC, default formats)"
}
