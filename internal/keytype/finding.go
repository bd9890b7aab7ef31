package keytype

import (
	"fmt"
	"slices"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Finding is something about the columns of keys that a person should know: readers are refused
// some values, or all.
type Finding struct {
	Code    string
	Where   string // family user, or dependents of seller
	Problem string
	Fix     string
	// Notice: it is right where the one who wrote it knows that rows do not differ in it.
	Notice bool
}

// The kinds of findings.
const (
	CodeUnknown = "key_type_unknown"
	codeSeveral = "key_several_texts"
	codeMerges  = "key_merges_rows"
	codeDiffer  = "key_types_differ"
	codeMessage = "key_message_text"
)

// Findings are what there is to say of all families and entities of the plan.
func (t *Types) Findings(plan *mapping.Plan) []Finding {
	var all []Finding
	for _, f := range plan.Families() {
		for _, v := range t.families[f.Name] {
			all = append(all, v.findings("family "+f.Name)...)
		}
	}
	for _, e := range plan.Entities() {
		for _, v := range t.entities[e.Kind] {
			all = append(all, v.findings("dependents of "+e.Kind)...)
		}
	}
	return all
}

func (v *Var) findings(where string) (all []Finding) {
	add := func(code, fix, format string, args ...any) {
		f := Finding{Code: code, Where: where, Problem: "variable {" + v.Name + "}: " + fmt.Sprintf(format, args...), Fix: fix}
		if !slices.Contains(all, f) {
			all = append(all, f)
		}
	}
	for i := range v.Columns {
		c := &v.Columns[i]
		switch {
		case c.Source.Message != "":
			continue
		case c.Err != nil:
			add(CodeUnknown, "let the role of the readers see the table and its schema (GRANT USAGE ON SCHEMA, SELECT)",
				"the type of %s cannot be known, so readers go past the cache: %v", c.Source, c.Err)
			continue
		}
		if why := c.Type.Ambiguous(); why != "" {
			add(codeSeveral, c.Type.fix(v.Name), "%s (%s) %s: readers can find one row under several keys, and only one is invalidated. The library refuses what is not known to be the row's own text",
				c.Source, c.Type.Name, why)
			continue
		}
		if why := c.Type.merges(); why != "" {
			add(codeMerges, "give the column a unique index on what the template makes of it, or leave the normal form out", "%s (%s) %s", c.Source, c.Type.Name, why)
			all[len(all)-1].Notice = true
		}
	}
	for i := 1; i < len(v.types); i++ {
		a, b := v.column(&v.types[0]), v.column(&v.types[i])
		if a == nil || b == nil || v.types[0].Ambiguous() != "" || v.types[i].Ambiguous() != "" {
			continue
		}
		if how := differ(&v.types[0], &v.types[i]); how != "" {
			add(codeDiffer, "map the family from columns of one type, or use two families", "%s is %s and %s is %s: %s", a.Source, a.Type.Name, b.Source, b.Type.Name, how)
		}
	}
	for i := range v.Columns {
		if c := &v.Columns[i]; c.Source.Message != "" && len(v.types) > 0 && v.types[0].Form != Message {
			switch v.types[0].Form {
			case Integer, Bool, Text, Name, Char, Enum, UUID, Blank:
			default:
				add(codeMessage, "put column::text into the message, made in a session with TimeZone UTC and the default formats",
					"%s has to bring the text that Postgres prints for %s, which is not what JSON makes of it", c.Source, v.types[0].Name)
				all[len(all)-1].Notice = true
			}
		}
	}
	return all
}

// Suggest is the normal form under which one row has one key; where none does, why it has several, and
// what to do about it.
func (v *Var) Suggest() (form mapping.Normal, why, fix string) {
	for i := range v.types {
		t := &v.types[i]
		if why = t.Ambiguous(); why == "" {
			continue
		}
		if form = t.remedy(); form != mapping.NormalNone {
			return form, "", ""
		}
		return mapping.NormalNone, "(" + t.Name + ") " + why, t.fix(v.Name)
	}
	return mapping.NormalNone, "", ""
}

// differ says how the texts of one value differ in columns of two types; empty when they do
// not.
func differ(a, b *Type) string {
	digits := func(t *Type) bool { return t.Form == Integer || t.Form == Numeric && numericScale(t.Mod) <= 0 }
	number := func(t *Type) bool { return t.Form == Integer || t.isNumeric() }
	text := func(t *Type) bool {
		return t.takesText() && !(t.Form == Blank && t.Domain && t.Normal != mapping.NormalRTrim)
	}
	switch {
	case digits(a) && digits(b), text(a) && text(b), number(a) && number(b) && a.Normal == mapping.NormalNumber:
		return ""
	case text(a) || text(b):
		return "they make one key only where the text is written just as the other column prints it (7, not 007)"
	case number(a) && number(b):
		return "they print one number in different ways, so a key of one is never invalidated by the other"
	case a.Form == b.Form:
		return "they print one value in different ways, so a key of one is never invalidated by the other"
	}
	return "one value has no text that is the same in both"
}

// merges says that a normal form gives rows one key that the column tells apart; empty when it
// does not.
func (t *Type) merges() string {
	switch {
	case t.Normal == mapping.NormalLower && (t.Form == Text || t.Form == Name || t.Form == Blank || t.Form == Char || t.Form == Enum):
		return "tells texts that differ in case apart, and {|lower} gives them one key: that is right only where no two rows differ in nothing else"
	case t.Normal == mapping.NormalRTrim && t.takesText() && t.Form != Blank:
		return "tells texts that differ in blanks at their end apart, and {|rtrim} gives them one key: that is right only where no two rows differ in nothing else"
	case t.Normal == mapping.NormalNumber && t.takesText():
		return "tells 1 and 1.0 apart, and {|number} gives them one key: that is right only where no two rows differ in nothing else"
	}
	return ""
}
