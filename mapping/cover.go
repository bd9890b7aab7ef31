package mapping

import (
	"fmt"
	"slices"
	"strings"
)

// LeavesOut says what u maps to and a table that inherits from it does not: reading u shows
// that table's rows, and their changes come under its own name. There is nothing for uses
// that do not come from a plan.
//
// A mapping of the child covers one of u's for an action when it makes the same keys of the
// same columns and is no narrower. What several of its mappings cover together is not put
// together: predicates are compared as text, and not understood.
func (u TableUse) LeavesOut(child TableUse) (list []string) {
	for _, r := range u.rules {
		for _, t := range r.targets {
			var actions []string
			for _, action := range r.spec.actions() {
				covered := slices.ContainsFunc(child.rules, func(c *rule) bool {
					return c.asWide(r, action) && slices.ContainsFunc(c.targets, t.same)
				})
				if !covered {
					actions = append(actions, action)
				}
			}
			if len(actions) == 0 {
				continue
			}
			what := "family " + t.family.Name
			if t.family.Entity != nil {
				what = "the " + t.family.Name
			}
			if text := what + " at " + strings.Join(actions, ", "); !slices.Contains(list, text) {
				list = append(list, text)
			}
		}
	}
	return list
}

// actions are those at which the mapping holds.
func (m *MappingSpec) actions() (list []string) {
	for _, a := range []struct {
		name string
		on   bool
	}{{"insert", m.Insert}, {"update", m.Update}, {"delete", m.Delete}, {"truncate", m.Truncate}} {
		if a.on {
			list = append(list, a.name)
		}
	}
	return list
}

// asWide says whether c holds for every row for which r does, at an action of r's.
func (c *rule) asWide(r *rule, action string) bool {
	if !slices.Contains(c.spec.actions(), action) {
		return false
	}
	if action == "truncate" {
		return true // it is of all rows, whatever they are
	}
	if c.spec.When != "" && c.spec.When != r.spec.When {
		return false
	}
	if action != "update" || len(c.spec.Columns) == 0 {
		return true
	}
	// No columns are any column.
	return len(r.spec.Columns) > 0 && !slices.ContainsFunc(r.spec.Columns, func(name string) bool { return !slices.Contains(c.spec.Columns, name) })
}

// same says whether both make the same keys of the same row.
func (t *target) same(o *target) bool {
	query := func(l *Lookup) string {
		if l == nil {
			return ""
		}
		return fmt.Sprintf("%q %q", l.sql, l.params)
	}
	return t.family == o.family && slices.Equal(t.vars, o.vars) && t.tenant == o.tenant && query(t.lookup) == query(o.lookup)
}
