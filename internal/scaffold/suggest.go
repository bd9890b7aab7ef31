package scaffold

import (
	"fmt"
	"slices"
	"strings"
)

// suggestion is an entry of keys that a person may want, for a foreign key.
type suggestion struct {
	about   string   // prose
	entry   []string // lines of YAML; nil when it cannot be written
	missing []string // columns whose old values the log would have to carry, and does not
	table   *table   // the changed one
}

// suggestions are those for a family's table, as the one that refers to others
// and as the one that is referred to.
func (p *plan) suggestions(f *family) (list []suggestion) {
	for _, k := range p.db.foreignKeys {
		if k.from == f.table {
			if to := p.family(k.to); to != nil {
				list = append(list, p.upwards(k, to))
			}
		}
	}
	for _, k := range p.db.foreignKeys {
		if k.to == f.table {
			if from := p.family(k.from); from != nil {
				list = append(list, p.downwards(k, from))
			}
		}
	}
	return list
}

// upwards: values of the row that is referred to may hold the rows that refer to
// it, as an order holds its items.
func (p *plan) upwards(k foreignKey, to *family) suggestion {
	s := suggestion{table: k.from,
		about: fmt.Sprintf("Cached %s that hold their %s (%s refers to %s).", to.name, k.from.name, list(k.fromColumns), k.to)}
	var direct, found, selected []string // by columns of the row; by columns of a query
	need := slices.Clone(k.fromColumns)
	byKey := true
	for _, v := range to.vars {
		i := slices.Index(k.toColumns, v.column)
		isTenant := to.tenant && v == to.vars[0]
		own := ""
		switch {
		case i >= 0:
			own = k.fromColumns[i]
		case isTenant:
			if own = p.tenantOf(k.from); own == "" {
				s.about += p.noTenant(to, k.from)
				return s
			}
			need = append(need, own)
		default:
			byKey = false // the foreign key refers to something else, and the source knows both
		}
		direct = append(direct, v.name+": "+yamlText(own))
		if isTenant {
			found = append(found, v.name+": "+yamlText(own))
		} else {
			found, selected = append(found, v.name+": "+v.name), append(selected, as(k.to, v))
		}
	}
	s.need(need)
	if byKey {
		s.entry = []string{entryOf(to, direct)}
		return s
	}
	where, ok := conditions(k.to, k.toColumns, k.fromColumns)
	if !ok {
		return notInBraces(s)
	}
	s.entry = lookup(entryOf(to, found), "SELECT "+strings.Join(selected, ", ")+" FROM "+k.to.sql+" WHERE "+where)
	return s
}

// downwards: values of the rows that refer to a row may hold some of it, as a
// product's page holds its seller's name.
func (p *plan) downwards(k foreignKey, from *family) suggestion {
	s := suggestion{table: k.to,
		about: fmt.Sprintf("Cached %s that hold something of their %s (%s refers here with %s), found by a query.", from.name, k.to.name, k.from, list(k.fromColumns))}
	need := slices.Clone(k.toColumns)
	var vars, selected []string
	for _, v := range from.vars {
		if from.tenant && v == from.vars[0] {
			own := p.tenantOf(k.to)
			if i := slices.Index(k.fromColumns, v.column); i >= 0 {
				own = k.toColumns[i]
			}
			if own == "" {
				s.about += p.noTenant(from, k.to)
				return s
			}
			vars = append(vars, v.name+": "+yamlText(own))
			need = append(need, own)
			continue
		}
		vars = append(vars, v.name+": "+v.name)
		selected = append(selected, as(k.from, v))
	}
	if len(selected) == 0 {
		selected = []string{"1 AS found"} // the key is the tenant alone, which the query does not tell
	}
	where, ok := conditions(k.from, k.fromColumns, k.toColumns)
	if !ok {
		return notInBraces(s)
	}
	if !k.from.indexed(k.fromColumns) {
		s.about += fmt.Sprintf(" There is no index on %s %s, so it reads all of that table each time.", k.from, list(k.fromColumns))
	}
	s.entry = lookup(entryOf(from, vars), "SELECT "+strings.Join(selected, ", ")+" FROM "+k.from.sql+" WHERE "+where)
	s.need(need)
	return s
}

// noTenant is why a family cannot be reached: the tenant is always taken from the
// changed row, so that no query leads into another tenant's keys.
func (p *plan) noTenant(f *family, changed *table) string {
	return fmt.Sprintf(" Not possible: %s is by tenant, and %s has no column %s.", f.name, changed, p.tenant)
}

func entryOf(f *family, vars []string) string {
	return "- " + yamlName(f.name) + ": {" + strings.Join(vars, ", ") + "}"
}

func lookup(entry, sql string) []string { return []string{entry, "  for_each: " + yamlText(sql)} }

// as selects a variable's column under the variable's name.
func as(t *table, v variable) string {
	if sql := t.column(v.column); sql != v.name {
		return sql + ` AS "` + v.name + `"`
	}
	return v.name
}

// conditions compares columns of the table that is asked with columns of the
// changed row. ok is false when one of those cannot stand in braces.
func conditions(t *table, columns, changed []string) (sql string, ok bool) {
	parts := make([]string, len(columns))
	for i, c := range columns {
		if identifier(changed[i]) != changed[i] {
			return "", false
		}
		parts[i] = t.column(c) + " = {" + changed[i] + "}"
	}
	return strings.Join(parts, " AND "), true
}

func notInBraces(s suggestion) suggestion {
	s.about += " Not possible: a column with such a name cannot stand in a query's braces."
	s.entry = nil
	return s
}

func (s *suggestion) need(columns []string) {
	for _, c := range columns {
		if !s.table.logs([]string{c}) && !slices.Contains(s.missing, c) {
			s.missing = append(s.missing, c)
		}
	}
}

// list is columns in parentheses.
func list(columns []string) string { return "(" + strings.Join(columns, ", ") + ")" }
