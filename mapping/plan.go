package mapping

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Plan is a compiled file: what each change makes stale. It is immutable and safe
// for concurrent use.
type Plan struct {
	families []*Family
	byName   map[string]*Family
	tables   map[tableName][]*rule
	messages map[string][]*rule
	entities map[string]*Entity // by kind
}

type tableName struct{ schema, table string }

// rule is one entry of mappings.
type rule struct {
	spec    *MappingSpec
	where   string // for messages: mappings[2]
	when    *predicate
	targets []*target
}

// target is one family that a rule makes stale.
type target struct {
	family *Family
	tmpl   *Template
	vars   []string // column of each of tmpl's variables
	tenant string   // column of the tenant, or ""
	lookup *Lookup  // nil unless for_each
}

// Compile turns a parsed file into a plan.
func Compile(f *File) (*Plan, error) {
	p := &Plan{byName: map[string]*Family{}, tables: map[tableName][]*rule{}, messages: map[string][]*rule{}, entities: map[string]*Entity{}}
	for i, k := range f.Keys {
		fam := &Family{ID: i, Name: k.Name, Class: k.Class, TenantVar: k.Tenant, TTL: k.TTL,
			Versioned: k.Version != nil, key: k.Template, version: k.Version,
			Soft: k.OnInvalidate == "soft", StaleFor: k.StaleFor, NegativeTTL: k.NegativeTTL}
		p.families = append(p.families, fam)
		p.byName[k.Name] = fam
	}
	for i, m := range f.Mappings {
		r := &rule{spec: m, where: fmt.Sprintf("mappings[%d]", i)}
		if m.When != "" {
			var err error
			if r.when, err = compilePredicate(m.When); err != nil {
				return nil, fmt.Errorf("%s:%d: when: %w", f.Name, m.Line, err)
			}
		}
		for _, u := range m.Keys {
			t, err := p.target(u)
			if err != nil {
				return nil, fmt.Errorf("%s:%d: %w", f.Name, u.Line, err)
			}
			r.targets = append(r.targets, t)
		}
		for _, t := range m.Dependents {
			kind, _ := entityKind(t) // the parser has refused what is none
			if p.entities[kind] == nil {
				p.entities[kind] = p.newEntity(kind, t, f.strictestClass())
			}
			r.targets = append(r.targets, &target{family: p.entities[kind].family, tmpl: t, vars: t.vars})
		}
		if m.Message != "" {
			p.messages[m.Message] = append(p.messages[m.Message], r)
		} else {
			name := tableName{m.Schema, m.Table}
			p.tables[name] = append(p.tables[name], r)
		}
	}
	return p, nil
}

func (p *Plan) target(u *KeyUse) (*target, error) {
	fam := p.byName[u.Family]
	if fam == nil {
		return nil, fmt.Errorf("no family %q", u.Family)
	}
	t := &target{family: fam, tmpl: fam.target()}
	for _, v := range t.tmpl.vars {
		t.vars = append(t.vars, u.column(v))
	}
	if fam.TenantVar != "" {
		t.tenant = u.column(fam.TenantVar)
	}
	if u.ForEach != "" {
		var err error
		if t.lookup, err = newLookup(t, u); err != nil {
			return nil, fmt.Errorf("for_each: %w", err)
		}
	}
	return t, nil
}

// column is where a variable's value comes from: the column of the same name
// unless the file says otherwise.
func (u *KeyUse) column(v string) string {
	if c, ok := u.Vars[v]; ok {
		return c
	}
	return v
}

// Families are all families, by ID.
func (p *Plan) Families() []*Family { return p.families }

// Family is the family with the name.
func (p *Plan) Family(name string) (*Family, bool) {
	f, ok := p.byName[name]
	return f, ok
}

// TableUse is what the plan needs of a table.
type TableUse struct {
	Schema, Table string
	Columns       []string // all that are used, sorted
	OldColumns    []string // those whose old value is needed: these must be in the replica identity
	Truncate      bool     // a TRUNCATE counts
	Families      []*Family

	rules []*rule // see LeavesOut; none where it does not come from a plan
}

// Strictest is the shortest staleness of a class in use; 0 without any.
func (p *Plan) Strictest() time.Duration {
	var least time.Duration
	for _, f := range p.Families() {
		if s := f.Class.Staleness; s > 0 && (least == 0 || s < least) {
			least = s
		}
	}
	return least
}

// Tables is what the plan needs of the source's catalog, sorted by name.
func (p *Plan) Tables() []TableUse {
	var uses []TableUse
	for name, rules := range p.tables {
		u := TableUse{Schema: name.schema, Table: name.table, rules: rules}
		for _, r := range rules {
			r.use(&u)
		}
		u.Columns, u.OldColumns = sortedSet(u.Columns), sortedSet(u.OldColumns)
		slices.SortFunc(u.Families, func(a, b *Family) int { return a.ID - b.ID })
		u.Families = slices.Compact(u.Families)
		uses = append(uses, u)
	}
	slices.SortFunc(uses, func(a, b TableUse) int {
		if c := strings.Compare(a.Schema, b.Schema); c != 0 {
			return c
		}
		return strings.Compare(a.Table, b.Table)
	})
	return uses
}

func (r *rule) use(u *TableUse) {
	u.Truncate = u.Truncate || r.spec.Truncate
	needsOld := r.spec.Update || r.spec.Delete
	add := func(old bool, columns ...string) {
		u.Columns = append(u.Columns, columns...)
		if old && needsOld {
			u.OldColumns = append(u.OldColumns, columns...)
		}
	}
	add(r.spec.Update, r.spec.Columns...)
	if r.when != nil {
		add(false, r.when.newColumns...)
		add(true, r.when.oldColumns...)
	}
	for _, t := range r.targets {
		u.Families = append(u.Families, t.family)
		add(true, t.rowColumns()...)
	}
}

// rowColumns are the columns of the changed row that the target needs.
func (t *target) rowColumns() []string {
	if t.lookup == nil {
		return t.vars
	}
	columns := slices.Clone(t.lookup.params)
	if t.tenant != "" {
		columns = append(columns, t.tenant)
	}
	return columns
}

func sortedSet(s []string) []string {
	slices.Sort(s)
	return slices.Compact(s)
}

// InvalidateTable makes everything stale that a table maps to.
func (p *Plan) InvalidateTable(schema, table string, out *Output) {
	for _, r := range p.tables[tableName{schema, table}] {
		r.invalidate(out)
	}
}

func (r *rule) invalidate(out *Output) {
	for _, t := range r.targets {
		out.purge(t.family, nil)
	}
}
