package daemon

import (
	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// ddl acts on a message of the event trigger: what the DDL touched is invalidated
// at the DDL's own commit, and not only when the catalogs are compared next.
//
// Any role may send such a message, so it can only add: the comparison goes on as
// if there were none, and is asked for now, for whatever the message left out.
func (r *receiver) ddl(m *decoder.Logical) {
	if !m.Transactional {
		r.watcher.Look()
		return // never sent by the trigger
	}
	r.watcher.Announce(r.tx.XID)
	r.out.Reset()
	result := "ignored"
	ddl, err := replication.ParseDDL(m.Content)
	uses := r.plan.Tables()
	if err != nil {
		result = "unreadable"
		r.d.log.Warn("a message about DDL cannot be read; invalidating all that any table maps to", "error", err)
	}
	for _, u := range uses {
		if err == nil && !r.touched(u, &ddl) {
			continue
		}
		if err == nil {
			result = "invalidated"
			r.d.log.Info("DDL that the log says no more of; invalidating all that the table maps to", "table", u.Schema+"."+u.Table)
		}
		r.plan.InvalidateTable(u.Schema, u.Table, &r.out)
	}
	r.d.metrics.ddl.WithLabelValues(result).Inc()
	r.add()
}

// touched says whether readers may see something else of a mapped table after DDL.
func (r *receiver) touched(u mapping.TableUse, ddl *replication.DDL) bool {
	known := r.watcher.KnownOID(u.Schema, u.Table)
	return ddl.Touches(u, r.d.file.Source.Publication.Name, func(oid uint32) bool { return oid == known || r.described(oid, u) })
}

// described says whether the stream has described the relation under the table's name.
func (r *receiver) described(oid uint32, u mapping.TableUse) bool {
	rel := r.byID[oid]
	return rel != nil && rel.Namespace == u.Schema && rel.Name == u.Table
}
