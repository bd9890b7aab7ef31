package mapping

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Staleness is what a change makes stale, each list without order or repetition.
type Staleness struct {
	Keys       []string `json:"keys"`       // deleted, or marked as stale
	Versions   []string `json:"versions"`   // moved forward
	Dependents []string `json:"dependents"` // entities whose dependents become stale
	Purges     []string `json:"purges"`     // "family", or "family of tenant 7"
	Widened    []string `json:"widened"`    // reasons
	Lookups    []string `json:"lookups"`    // for_each queries: "family {column: value}"
}

// Difference is something expected that did not happen, or the reverse.
type Difference struct {
	Kind    string `json:"kind"` // key, version, dependents, purge, widened or lookup
	Value   string `json:"value"`
	Missing bool   `json:"missing"` // expected, and did not happen
}

// TestResult is what a case came to.
type TestResult struct {
	Name    string       `json:"name"`
	Subject string       `json:"subject"`
	Line    int          `json:"line"`
	Col     int          `json:"col"`
	OK      bool         `json:"ok"`
	Diff    []Difference `json:"diff"`
	Notes   []string     `json:"notes"` // of a failed case: why mappings did not count, or counted
	Got     Staleness    `json:"got"`
}

// Run takes the change through the mappings, and the answers of its lookups too.
// It asks no server.
func (f *TestFile) Run(c *TestCase) TestResult {
	r := TestResult{Name: c.Name, Subject: c.Subject(), Line: c.Line, Col: c.Col, Diff: []Difference{}, Notes: []string{}}
	run := testRun{c: c, got: map[string]map[string]bool{}, used: make([]bool, len(c.lookups))}
	var out Output
	var table *Table
	switch {
	case c.table == nil:
		f.Plan.Message([]byte(c.message), c.content, &out)
	case c.truncate:
		f.Plan.Bind(c.rel).Truncate(&out)
	default:
		table = f.Plan.Bind(c.rel)
		c.change.Relation = c.rel
		table.Map(c.change, &out)
	}
	run.take(&out)
	for i, used := range run.used {
		if !used {
			run.diff = append(run.diff, Difference{Kind: "lookup", Value: c.lookups[i].String(), Missing: true})
		}
	}
	r.Got = run.staleness()
	for _, d := range []struct {
		kind      string
		want, got []string
	}{
		{"key", c.want.Keys, r.Got.Keys}, {"version", c.want.Versions, r.Got.Versions}, {"dependents", c.want.Dependents, r.Got.Dependents},
		{"purge", c.want.Purges, r.Got.Purges}, {"widened", c.want.Widened, r.Got.Widened},
	} {
		r.Diff = append(r.Diff, difference(d.kind, d.want, d.got)...)
	}
	r.Diff = append(r.Diff, run.diff...)
	r.OK = len(r.Diff) == 0
	if !r.OK && table != nil {
		for _, x := range table.Explain(c.change) {
			if note := x.note(); note != "" {
				r.Notes = append(r.Notes, note)
			}
		}
	}
	r.Notes = append(r.Notes, run.notes...)
	return r
}

func difference(kind string, want, got []string) (diff []Difference) {
	for _, v := range want {
		if !slices.Contains(got, v) {
			diff = append(diff, Difference{Kind: kind, Value: v, Missing: true})
		}
	}
	for _, v := range got {
		if !slices.Contains(want, v) {
			diff = append(diff, Difference{Kind: kind, Value: v})
		}
	}
	return diff
}

// testRun collects what one case does.
type testRun struct {
	c     *TestCase
	got   map[string]map[string]bool // by kind
	used  []bool                     // of c.lookups
	asked []string                   // IDs of lookups: an equal one is asked once
	diff  []Difference
	notes []string
}

func (r *testRun) add(kind, v string) {
	if r.got[kind] == nil {
		r.got[kind] = map[string]bool{}
	}
	r.got[kind][v] = true
}

func (r *testRun) take(out *Output) {
	for reason, n := range out.Widened {
		if n > 0 {
			r.add("widened", Reason(reason).String())
		}
	}
	for _, inv := range out.Invalidations {
		switch inv.Op {
		case OpDelete, OpSoft:
			r.add("key", string(inv.Key))
		case OpDependents:
			r.add("dependents", string(inv.Key))
		case OpAdvance:
			r.add("version", string(inv.Key))
		case OpPurge:
			r.add("purge", purgeText(inv.Family.Name, inv.Tenant))
		case OpLookup:
			if !slices.Contains(r.asked, inv.Lookup.ID()) {
				r.asked = append(r.asked, inv.Lookup.ID())
				r.lookup(inv.Family.Name, inv.Lookup)
			}
		}
	}
}

// lookup answers as the source would, with what the case has for it.
func (r *testRun) lookup(family string, call *LookupCall) {
	text := lookupText(family, call.lookup.params, call.params)
	r.add("lookup", text)
	// An answer for each query: of two that fit, the one that was not given yet.
	i := -1
	for n, l := range r.c.lookups {
		if l.answers(family, call) && (i < 0 || r.used[i] && !r.used[n]) {
			i = n
		}
	}
	if i < 0 {
		r.diff = append(r.diff, Difference{Kind: "lookup", Value: text})
		return
	}
	r.used[i] = true
	l := r.c.lookups[i]
	out := &Output{}
	switch {
	case l.refused || len(l.rows) > call.MaxRows():
		call.Widen(out)
	case len(l.rows) > 0:
		switch err := call.Render(l.columns, l.rows, out); {
		case errors.Is(err, ErrKeyTooLong):
			out.Reset()
			call.Widen(out)
		case err != nil:
			r.diff = append(r.diff, Difference{Kind: "lookup", Value: text})
			r.notes = append(r.notes, "lookup of "+family+": "+err.Error())
			return
		}
	}
	r.take(out)
}

// answers says whether the answer is meant for the call.
func (l *stubbedLookup) answers(family string, call *LookupCall) bool {
	if l.family != family {
		return false
	}
	for column, v := range l.with {
		i := slices.Index(call.lookup.params, column)
		if i < 0 {
			return false
		}
		data, null := exampleText(v)
		if got := call.params[i]; (got == nil) != null || string(got) != string(data) {
			return false
		}
	}
	return true
}

func (l *stubbedLookup) String() string {
	columns := slices.Sorted(maps.Keys(l.with))
	params := make([][]byte, len(columns))
	for i, c := range columns {
		data, null := exampleText(l.with[c])
		if !null {
			params[i] = append([]byte{}, data...)
		}
	}
	return lookupText(l.family, columns, params)
}

func lookupText(family string, columns []string, params [][]byte) string {
	parts := make([]string, len(columns))
	for i, c := range columns {
		v := "null"
		if params[i] != nil {
			v = string(params[i])
		}
		parts[i] = c + ": " + v
	}
	slices.Sort(parts)
	return family + " {" + strings.Join(parts, ", ") + "}"
}

// purgeText names a family, or a tenant's part of it.
func purgeText(family string, tenant []byte) string {
	if tenant == nil {
		return family
	}
	return family + " of tenant " + string(tenant)
}

func (r *testRun) staleness() Staleness {
	list := func(kind string) []string {
		return slices.AppendSeq([]string{}, slices.Values(slices.SortedFunc(maps.Keys(r.got[kind]), cmp.Compare)))
	}
	return Staleness{Keys: list("key"), Versions: list("version"), Dependents: list("dependents"), Purges: list("purge"), Widened: list("widened"), Lookups: list("lookup")}
}

// note says why a mapping did not count, or counted in doubt.
func (x Explanation) note() string {
	where := fmt.Sprintf("%s (line %d)", x.Mapping, x.Line)
	switch {
	case !x.Counts:
		return where + " does not count: " + x.Because
	case x.Error != "":
		return where + " counts, because " + x.Because + ": " + x.Error
	case x.Because != "":
		return where + " counts: " + x.Because
	}
	return ""
}

// Untested are the mappings that no case of the file reaches with its table or
// message, each as mappings[2] public.products.
func (f *TestFile) Untested() []string {
	reached := map[*rule]bool{}
	for _, c := range f.Cases {
		rules := f.Plan.messages[c.message]
		if c.table != nil {
			rules = f.Plan.tables[tableName{c.table.Schema, c.table.Table}]
		}
		for _, r := range rules {
			reached[r] = true
		}
	}
	untested := []string{}
	add := func(name string, rules []*rule) {
		for _, r := range rules {
			if !reached[r] {
				untested = append(untested, r.where+" "+name)
			}
		}
	}
	for name, rules := range f.Plan.tables {
		add(name.schema+"."+name.table, rules)
	}
	for prefix, rules := range f.Plan.messages {
		add("message "+prefix, rules)
	}
	slices.Sort(untested)
	return untested
}
