package scaffold

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// plan is what will be written.
type plan struct {
	db       *database
	tenant   string // the column, or ""
	families []*family
	disabled []*family // of tables that are left out
	leftOut  map[*table]reason
	wide     map[*table][]replication.Finding
	// identities is what replica identity a table can have for all that the file has of it,
	// suggestions included.
	identities map[*table]replication.Identity
}

// family is the family of a table's rows, each by its key.
type family struct {
	name   string
	table  *table
	vars   []variable // the tenant first, if there is one
	tenant bool
	notes  []string // what there is to say of the columns' types
}

type variable struct {
	name, column string
	normal       mapping.Normal
}

func (v variable) inKey() string {
	if v.normal == mapping.NormalNone {
		return "{" + v.name + "}"
	}
	return "{" + v.name + "|" + string(v.normal) + "}"
}

func newPlan(db *database, tenant string) *plan {
	p := &plan{db: db, tenant: tenant, leftOut: map[*table]reason{}}
	names := p.names()
	for i, t := range db.tables {
		key, why := keyOf(t)
		if why != nil {
			p.leftOut[t] = *why
		}
		switch {
		case why == nil:
			p.families = append(p.families, newFamily(names[i], t, key, p.tenantOf(t)))
		case key != nil:
			p.disabled = append(p.disabled, newFamily(names[i], t, key, p.tenantOf(t)))
		case writable(t.schema) && writable(t.name):
			// Without a key there can still be one cached value of all rows.
			p.disabled = append(p.disabled, &family{name: names[i], table: t})
		}
	}
	return p
}

// tenantOf is the table's tenant column. A generated one cannot be relied upon to
// be in the log.
func (p *plan) tenantOf(t *table) string {
	if p.tenant != "" && slices.Contains(t.columns, p.tenant) && !slices.Contains(t.generated, p.tenant) {
		return p.tenant
	}
	return ""
}

// names are the families' names: the tables', with their schemas where two tables
// have the same.
func (p *plan) names() []string {
	count := map[string]int{}
	for _, t := range p.db.tables {
		count[identifier(t.name)]++
	}
	taken := map[string]bool{"for_each": true, "max_rows": true} // words of the format
	names := make([]string, len(p.db.tables))
	for i, t := range p.db.tables {
		name := identifier(t.name)
		if count[name] > 1 && t.schema != "public" {
			name = identifier(t.schema + "_" + t.name)
		}
		names[i] = unique(name, taken)
	}
	return names
}

// identifier makes a name of the format of any name.
func identifier(s string) string {
	name := strings.Map(func(r rune) rune {
		if r < 0x80 && (r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z') {
			return r
		}
		return '_'
	}, s)
	if name == "" || name[0] >= '0' && name[0] <= '9' {
		name = "_" + name
	}
	return name
}

func unique(name string, taken map[string]bool) string {
	for n, base := 2, name; taken[name]; n++ {
		name = fmt.Sprintf("%s_%d", base, n)
	}
	taken[name] = true
	return name
}

// writable says whether a mappings file can have the name in a table's.
func writable(name string) bool {
	return !strings.ContainsFunc(name, func(r rune) bool { return r == '.' || r == '"' || r < 0x20 || r == 0x7f })
}

// keyOf are the columns that tell a table's rows apart, if there are such, and why
// the table cannot be mapped as it is.
func keyOf(t *table) (key []string, why *reason) {
	if !writable(t.schema) || !writable(t.name) {
		return nil, &reason{"a dot, a quote or a control character in a table's name cannot be written in a mappings file", ""}
	}
	identity, hasIdentity := t.identityIndex()
	i := slices.IndexFunc(t.indexes, func(x index) bool { return x.primary })
	if i >= 0 {
		key = t.indexes[i].columns
	}
	const refused = "once it is published, the application's own UPDATE and DELETE on it fail"
	switch {
	case i >= 0 && (hasIdentity || t.identity == "f"):
		return key, nil
	case i >= 0 && t.identity == "d":
		return key, &reason{"its primary key is deferrable, which is no replica identity: " + refused, askSource}
	case i >= 0:
		return key, &reason{"it has no replica identity: " + refused, askSource}
	case hasIdentity:
		return identity.columns, nil
	case t.identity == "f":
		return nil, &reason{"it has no primary key, so nothing says which columns make a key; choose them, for its replica identity is full and the log has all", ""}
	}
	fix := "ALTER TABLE " + t.sql + " ADD PRIMARY KEY (...);"
	if i := slices.IndexFunc(t.indexes, func(x index) bool { return x.unique && x.notNull }); i >= 0 && !t.partitioned {
		fix = askSource
		key = t.indexes[i].columns
	}
	return key, &reason{"it has no primary key, and no other replica identity: " + refused, fix}
}

func newFamily(name string, t *table, key []string, tenant string) *family {
	f := &family{name: name, table: t, tenant: tenant != ""}
	taken := map[string]bool{mapping.VersionVar: true} // reserved for versioned families
	if tenant != "" {
		key = append([]string{tenant}, slices.DeleteFunc(slices.Clone(key), func(c string) bool { return c == tenant })...)
	}
	for _, c := range key {
		name := identifier(c)
		if name == mapping.VersionVar {
			name = "row_" + name
		}
		f.vars = append(f.vars, variable{name: unique(name, taken), column: c})
	}
	return f
}

// template is the key's template. The control keys of the daemon begin with inv:,
// so no family does.
func (f *family) template() string {
	var b strings.Builder
	vars := f.vars
	name := f.name
	if f.tenant {
		b.WriteString("t:" + vars[0].inKey() + ":")
		vars = vars[1:]
	} else if name == "inv" {
		name = "row:inv"
	}
	b.WriteString(name)
	for _, v := range vars {
		b.WriteString(":" + v.inKey())
	}
	if len(f.vars) == 0 {
		b.WriteString(":all")
	}
	return b.String()
}

// columns are the columns that the family's key is made of.
func (f *family) columns() []string {
	var list []string
	for _, v := range f.vars {
		list = append(list, v.column)
	}
	return list
}

// family is the family of a table, nil if it has none.
func (p *plan) family(t *table) *family { return familyOf(p.families, t) }

func familyOf(families []*family, t *table) *family {
	for _, f := range families {
		if f.table == t {
			return f
		}
	}
	return nil
}

func (p *plan) leaveOut(t *table, why reason) {
	p.disabled = append(p.disabled, p.family(t))
	p.families = slices.DeleteFunc(p.families, func(f *family) bool { return f.table == t })
	p.leftOut[t] = why
}

// parents are the families of the tables that a family's table inherits from:
// reading those shows its rows too.
func (p *plan) parents(f *family) (list []*family) {
	for t := f.table; t.parent != 0; {
		i := slices.IndexFunc(p.db.tables, func(x *table) bool { return x.oid == t.parent })
		if i < 0 {
			break
		}
		t = p.db.tables[i]
		if parent := p.family(t); parent != nil {
			list = append(list, parent)
		}
	}
	return list
}

// rowColumns are the columns that the mapping of the family's table uses.
func (p *plan) rowColumns(f *family) []string {
	columns := f.columns()
	for _, parent := range p.parents(f) {
		columns = append(columns, parent.columns()...)
	}
	slices.Sort(columns)
	return slices.Compact(columns)
}
