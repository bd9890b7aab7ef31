package daemon

import (
	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

// A mapped table whose changes come under a name that nothing maps has been renamed, or is in
// another schema, or that has another name, perhaps within one transaction only: readers see
// those rows under the mapped name before and after. It is known by its oid, from the
// catalogs, and each of its changes counts as one of all its rows. Once a look has found
// another table under the name, its changes are that one's.

// stray notes which mapped tables a relation is that no mapping names. before is how it was
// described last, nil for not at all.
func (r *receiver) stray(rel, before *decoder.Relation) {
	if before != nil {
		r.watcher.Look() // the DDL is visible, since a later transaction has come
		if !r.skipping {
			r.out.Reset()
			r.plan.InvalidateTable(before.Namespace, before.Name, &r.out)
			r.add()
		}
	}
	for _, u := range r.plan.Tables() {
		if r.watcher.KnownOID(u.Schema, u.Table) == rel.ID {
			r.strays[rel] = append(r.strays[rel], u)
			r.watcher.Look()
			r.d.log.Warn("changes of a mapped table come under another name; each invalidates all that the table maps to",
				"table", u.Schema+"."+u.Table, "name", rel.Namespace+"."+rel.Name)
		}
	}
}

// straying is a change of a relation that no mapping names.
func (r *receiver) straying(rel *decoder.Relation) {
	if len(r.strays[rel]) == 0 {
		return
	}
	r.out.Reset()
	r.invalidateStray(rel)
	r.add()
}

func (r *receiver) invalidateStray(rel *decoder.Relation) {
	for _, u := range r.strays[rel] {
		if r.watcher.KnownOID(u.Schema, u.Table) == rel.ID {
			r.plan.InvalidateTable(u.Schema, u.Table, &r.out)
		}
	}
}
