package mapping

import (
	"cmp"
	"maps"
	"slices"
)

// KeyVar is a variable of a family's keys, or the n-th one of an entity, with every place
// that its values come from.
type KeyVar struct {
	Name   string
	Normal Normal // that its values have in keys
	// Sources are sorted and different. There are none where no mapping tells the variable: of a
	// versioned family's data keys, which the daemon never makes, and of a family that is
	// invalidated through dependents only.
	Sources []KeySource
}

// KeySource is one place that a variable's values come from: a column of the changed row, of
// a query's result, or a field of a message.
type KeySource struct {
	Schema, Table string // whose row changed; empty of a message
	Query         string // the for_each query, with $1... for its parameters; empty of the row's own column
	Message       string // the message's prefix; empty of a table
	Column        string // or the message's field
}

// KeyVars are the variables that a reader gives values for, in the order of Family.Vars.
func (p *Plan) KeyVars(f *Family) []KeyVar {
	names := f.Vars()
	vars := make([]KeyVar, len(names))
	for i, name := range names {
		vars[i] = KeyVar{Name: name, Normal: f.key.Normal(name), Sources: p.sources(f, func(t *target) int { return slices.Index(t.tmpl.vars, name) })}
	}
	return vars
}

// KeyVars are the values that name an entity, in their order. Each mapping may have another
// name for them; those are of the first one.
func (e *Entity) KeyVars() []KeyVar {
	vars := make([]KeyVar, e.Vars)
	for i := range vars {
		vars[i] = KeyVar{Name: e.family.key.vars[i], Normal: e.family.key.normals[i], Sources: e.plan.sources(e.family, func(*target) int { return i })}
	}
	return vars
}

// Entities are all of them, by kind.
func (p *Plan) Entities() []*Entity {
	var all []*Entity
	for _, kind := range slices.Sorted(maps.Keys(p.entities)) {
		all = append(all, p.entities[kind])
	}
	return all
}

// sources are where the variable comes from in all mappings to the family. index finds
// it among a target's; -1 where it is none of them.
func (p *Plan) sources(f *Family, index func(*target) int) []KeySource {
	var all []KeySource
	add := func(r *rule) {
		for _, t := range r.targets {
			i := index(t)
			if t.family != f || i < 0 {
				continue
			}
			s := KeySource{Schema: r.spec.Schema, Table: r.spec.Table, Message: r.spec.Message, Column: t.vars[i]}
			// The tenant is the changed row's own, also of a query.
			if t.lookup != nil && (f.TenantVar == "" || t.tmpl.vars[i] != f.TenantVar) {
				s.Query = t.lookup.sql
			}
			all = append(all, s)
		}
	}
	for _, rules := range p.tables {
		for _, r := range rules {
			add(r)
		}
	}
	for _, rules := range p.messages {
		for _, r := range rules {
			add(r)
		}
	}
	slices.SortFunc(all, func(a, b KeySource) int {
		return cmp.Or(cmp.Compare(a.Schema, b.Schema), cmp.Compare(a.Table, b.Table), cmp.Compare(a.Query, b.Query),
			cmp.Compare(a.Message, b.Message), cmp.Compare(a.Column, b.Column))
	})
	return slices.Compact(all)
}

// String is the source for messages to people.
func (s KeySource) String() string {
	switch {
	case s.Message != "":
		return "field " + s.Column + " of message " + s.Message
	case s.Query != "":
		return "column " + s.Column + " of the for_each query for " + s.Schema + "." + s.Table
	}
	return "column " + s.Schema + "." + s.Table + "." + s.Column
}
