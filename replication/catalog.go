package replication

import (
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

//go:embed catalog.sql
var catalogSQL string

// catalogTable is a mapped table, or one below it, as the catalogs have it.
type catalogTable struct {
	schema, name    string
	kind            string // pg_class.relkind
	persistence     string
	isPartition     bool
	identity        string // pg_class.relreplident
	identityColumns []string
	columns         []string // of the mapped table only
	unsendable      []string // generated columns that are in no change; of the mapped table only
	below           []*catalogTable
}

func (t *catalogTable) sql() string { return qualified(t.schema, t.name) }

// logs says whether t's old images carry the column.
func (t *catalogTable) logs(column string) bool {
	return t.identity == "f" || slices.Contains(t.identityColumns, column)
}

// CheckCatalog compares what the mappings need of the tables with the live
// catalog. An error means that it could not be asked; what it says is in the
// findings.
// publication is ours, which has the tables or is to have them.
func CheckCatalog(ctx context.Context, conn *pgx.Conn, publication string, tables []mapping.TableUse) ([]Finding, error) {
	return checkCatalog(ctx, conn, publication, tables, tables)
}

// checkCatalog is CheckCatalog for some of the mapped tables.
func checkCatalog(ctx context.Context, conn *pgx.Conn, publication string, tables, all []mapping.TableUse) ([]Finding, error) {
	found, err := readCatalog(ctx, conn, tables)
	if err != nil {
		return nil, err
	}
	mapped := make(map[string]mapping.TableUse, len(all))
	for _, u := range all {
		mapped[qualified(u.Schema, u.Table)] = u
	}
	var findings []Finding
	for i, u := range tables {
		add := func(code FindingCode, problem, fix string) *Finding {
			findings = append(findings, Finding{Code: code, Schema: u.Schema, Table: u.Table, Problem: problem, Fix: fix})
			return &findings[len(findings)-1]
		}
		t := found[i]
		if t == nil {
			add(TableMissing, "it does not exist", "create it, or correct mappings: the schema is part of the name, and names are case-sensitive here")
			continue
		}
		if !checkKind(t, add) {
			continue
		}
		checkColumns(t, u, add)
		checkBelow(t, u, mapped, add)
		checkIdentity(t, u, add)
	}
	return findings, settleIdentities(ctx, conn, publication, tables, findings)
}

func readCatalog(ctx context.Context, conn *pgx.Conn, tables []mapping.TableUse) ([]*catalogTable, error) {
	const op = "check the mapped tables"
	found := make([]*catalogTable, len(tables))
	schemas, names := tableNames(tables)
	rows, err := conn.Query(ctx, catalogSQL, schemas, names)
	if err != nil {
		return nil, serverError(op, err, "")
	}
	defer rows.Close()
	text := NamesOf(conn)
	for rows.Next() {
		var n int
		var root bool
		t := &catalogTable{}
		if err := text.Scan(rows, &n, &root, &t.schema, &t.name, &t.kind, &t.persistence, &t.isPartition, &t.identity,
			&t.identityColumns, &t.columns, &t.unsendable); err != nil {
			return nil, serverError(op, err, "")
		}
		if root {
			found[n-1] = t
		} else {
			found[n-1].below = append(found[n-1].below, t)
		}
	}
	return found, serverError(op, rows.Err(), "")
}

func tableNames(tables []mapping.TableUse) (schemas, names []string) {
	schemas, names = make([]string, len(tables)), make([]string, len(tables))
	for i, u := range tables {
		schemas[i], names[i] = u.Schema, u.Table
	}
	return schemas, names
}

type addFinding func(code FindingCode, problem, fix string) *Finding

// checkKind says whether row changes of the relation can be in the log at all.
func checkKind(t *catalogTable, add addFinding) bool {
	switch {
	case t.kind == "v" || t.kind == "m":
		add(TableIsView, "it is a view, and a view has no changes of its own", "map the tables that it reads")
	case t.kind == "f":
		add(TableIsForeign, "it is a foreign table: its changes are in another server's log", "attach a daemon to that server")
	case t.kind != "r" && t.kind != "p":
		add(NoTable, "it is no table", "map a table")
	case t.persistence != "p":
		add(TableUnlogged, "it is unlogged or temporary: its changes are not in the log", "ALTER TABLE "+t.sql()+" SET LOGGED;")
	case t.isPartition:
		add(TableIsPartition, "it is a partition: its changes arrive under the name of the partitioned table above it", "map the partitioned table")
	default:
		return true
	}
	return false
}

func checkColumns(t *catalogTable, u mapping.TableUse, add addFinding) {
	for _, c := range u.Columns {
		switch {
		case !slices.Contains(t.columns, c):
			add(ColumnMissing, fmt.Sprintf("it has no column %q", c), "correct mappings; its columns are "+strings.Join(t.columns, ", "))
		case slices.Contains(t.unsendable, c):
			add(ColumnGenerated, fmt.Sprintf("column %q is generated, and the server does not send it", c), "map the columns that it is computed from")
		}
	}
}

// checkBelow looks at what hangs below a mapped table and would slip through.
func checkBelow(t *catalogTable, u mapping.TableUse, mapped map[string]mapping.TableUse, add addFinding) {
	for _, b := range t.below {
		switch {
		case b.kind == "f":
			add(TableIsForeign, b.sql()+" below it is a foreign table: its changes are in another server's log", "ALTER TABLE "+t.sql()+" DETACH PARTITION "+b.sql()+";")
		case b.persistence != "p":
			add(TableUnlogged, b.sql()+" below it is unlogged or temporary: its changes are not in the log", "ALTER TABLE "+b.sql()+" SET LOGGED;")
		case !b.isPartition:
			checkChild(t, b, u, mapped, add)
		}
	}
}

// checkChild looks at a child by inheritance, which has to be mapped to all that t is.
func checkChild(t, child *catalogTable, u mapping.TableUse, mapped map[string]mapping.TableUse, add addFinding) {
	what := child.sql() + " inherits from it: reading " + t.sql() + " shows its rows, and their changes arrive under its own name"
	own, isMapped := mapped[child.sql()]
	if !isMapped {
		add(TableInherited, what, "map "+child.sql()+" to the same keys")
		return
	}
	if out := u.LeavesOut(own); len(out) > 0 {
		add(TableInherited, what+", which leaves out "+strings.Join(out, "; "),
			"map "+child.sql()+" to the same keys and dependents from the same columns, with actions, columns and when that are no narrower")
	}
}

// checkIdentity looks at what the tables that hold rows log of old ones. What they could
// log instead, settleIdentities says.
func checkIdentity(t *catalogTable, u mapping.TableUse, add addFinding) {
	var holders []*catalogTable
	if t.kind == "r" {
		holders = append(holders, t)
	}
	for _, b := range t.below {
		if b.isPartition { // a child by inheritance is mapped itself, or a finding of its own
			holders = append(holders, b)
		}
	}
	for _, h := range holders {
		if h.kind == "r" && h.persistence == "p" && h.identity != "f" && len(h.identityColumns) == 0 {
			problem := h.sql() + " has no replica identity: once it is published, the application's own UPDATE and DELETE on it fail"
			if h.identity == "i" {
				problem = "the index that is the replica identity of " + h.sql() + " was dropped: the server refuses the application's UPDATE and DELETE on it while it is published"
			}
			add(NoReplicaIdentity, problem, "")
			return // what follows would only say it again
		}
	}
	for _, h := range holders {
		if h.identity == "i" {
			add(IdentityIndex, "the replica identity of "+h.sql()+" is an index ("+strings.Join(h.identityColumns, ", ")+
				"): once that is dropped, which the server lets happen, it refuses every UPDATE and DELETE of the table", "give the table another identity before anybody drops the index")
			break
		}
	}
	// Changes of a partition are described by the identity of the root, and carry
	// what the partition logs: with a root FULL and a partition DEFAULT, the
	// columns that were not logged arrive as NULLs of a full old row. Nothing in
	// the stream shows it, and ALTER TABLE ... REPLICA IDENTITY does not recurse.
	for _, b := range t.below {
		if !b.isPartition || b.kind != "r" || b.identity == "f" {
			continue
		}
		if t.identity == "f" || slices.ContainsFunc(t.identityColumns, func(c string) bool { return !b.logs(c) }) {
			add(PartitionIdentity, fmt.Sprintf("its partition %s logs less of old rows (%s) than it says itself (%s), so old values would be wrong",
				b.sql(), describeIdentity(b), describeIdentity(t)), "")
			return
		}
	}
	var missing []string
	for _, c := range u.OldColumns {
		if slices.Contains(t.columns, c) && !slices.Contains(t.unsendable, c) && !t.logs(c) {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		add(IdentityNarrow, fmt.Sprintf("the log does not carry the old value of %s (%s): a change invalidates the whole family where it cannot tell the old key",
			strings.Join(missing, ", "), describeIdentity(t)), "")
	}
}

func describeIdentity(t *catalogTable) string {
	switch {
	case t.identity == "f":
		return "replica identity full"
	case len(t.identityColumns) == 0:
		return "no replica identity"
	}
	return "replica identity " + strings.Join(t.identityColumns, ", ")
}
