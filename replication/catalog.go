package replication

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

//go:embed catalog.sql
var catalogSQL string

// Severity says what follows from a Finding.
type Severity string

// SeverityFatal: invalidations would be missed, or the application's own writes
// would fail; nothing may start. SeverityWidens: correct, but whole families go
// where single keys could. SeverityNotice: worth knowing.
const (
	SeverityFatal  Severity = "fatal"
	SeverityWidens Severity = "widens"
	SeverityNotice Severity = "notice"
)

// Finding is what a check of the live source has found about one mapped table,
// or about the publication when Table is empty.
type Finding struct {
	// Code names the kind of finding, and is stable.
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	Schema   string   `json:"schema,omitempty"`
	Table    string   `json:"table,omitempty"`
	Problem  string   `json:"problem"`
	Fix      string   `json:"fix,omitempty"` // for people; the exact SQL where SQL mends it
	// SQL are the statements that mend it, for a program to run one by one. There are
	// none where somebody has to decide first: what to map, what to take away.
	SQL []string `json:"sql,omitempty"`
	// Misleads: what the log says of the table is not all, and does not show it.
	Misleads bool `json:"misleads,omitempty"`
}

func (f Finding) subject() string {
	if f.Table == "" {
		return "publication"
	}
	return "table " + qualified(f.Schema, f.Table)
}

func (f Finding) String() string { return f.subject() + ": " + f.Problem }

// FatalError is the fatal ones among the findings as one ConfigError, or nil.
func FatalError(findings []Finding) error {
	var errs []error
	for _, f := range findings {
		if f.Severity == SeverityFatal {
			errs = append(errs, &ConfigError{Op: f.subject(), Problem: f.Problem, Fix: f.Fix})
		}
	}
	return errors.Join(errs...)
}

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
func CheckCatalog(ctx context.Context, conn *pgx.Conn, tables []mapping.TableUse) ([]Finding, error) {
	found, err := readCatalog(ctx, conn, tables)
	if err != nil {
		return nil, err
	}
	mapped := make(map[string]bool, len(tables))
	for _, u := range tables {
		mapped[qualified(u.Schema, u.Table)] = true
	}
	var findings []Finding
	for i, u := range tables {
		add := func(code string, s Severity, problem, fix string) *Finding {
			findings = append(findings, Finding{Code: code, Severity: s, Schema: u.Schema, Table: u.Table, Problem: problem, Fix: fix})
			return &findings[len(findings)-1]
		}
		t := found[i]
		if t == nil {
			add("table_missing", SeverityFatal, "it does not exist", "create it, or correct mappings: the schema is part of the name, and names are case-sensitive here")
			continue
		}
		if !checkKind(t, add) {
			continue
		}
		checkColumns(t, u, add)
		checkBelow(t, mapped, add)
		checkIdentity(t, u, add)
	}
	return findings, nil
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
	for rows.Next() {
		var n int
		var root bool
		t := &catalogTable{}
		if err := rows.Scan(&n, &root, &t.schema, &t.name, &t.kind, &t.persistence, &t.isPartition, &t.identity,
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

type addFinding func(code string, s Severity, problem, fix string) *Finding

// checkKind says whether row changes of the relation can be in the log at all.
func checkKind(t *catalogTable, add addFinding) bool {
	switch {
	case t.kind == "v" || t.kind == "m":
		add("view", SeverityFatal, "it is a view, and a view has no changes of its own", "map the tables that it reads")
	case t.kind == "f":
		add("foreign_table", SeverityFatal, "it is a foreign table: its changes are in another server's log", "attach a daemon to that server")
	case t.kind != "r" && t.kind != "p":
		add("no_table", SeverityFatal, "it is no table", "map a table")
	case t.persistence != "p":
		add("unlogged", SeverityFatal, "it is unlogged or temporary: its changes are not in the log", "ALTER TABLE "+t.sql()+" SET LOGGED;")
	case t.isPartition:
		add("partition", SeverityFatal, "it is a partition: its changes arrive under the name of the partitioned table above it", "map the partitioned table")
	default:
		return true
	}
	return false
}

func checkColumns(t *catalogTable, u mapping.TableUse, add addFinding) {
	for _, c := range u.Columns {
		switch {
		case !slices.Contains(t.columns, c):
			add("column_missing", SeverityFatal, fmt.Sprintf("it has no column %q", c), "correct mappings; its columns are "+strings.Join(t.columns, ", "))
		case slices.Contains(t.unsendable, c):
			add("column_generated", SeverityFatal, fmt.Sprintf("column %q is generated, and the server does not send it", c), "map the columns that it is computed from")
		}
	}
}

// checkBelow looks at what hangs below a mapped table and would slip through.
func checkBelow(t *catalogTable, mapped map[string]bool, add addFinding) {
	for _, b := range t.below {
		switch {
		case b.kind == "f":
			add("foreign_table", SeverityFatal, b.sql()+" below it is a foreign table: its changes are in another server's log", "ALTER TABLE "+t.sql()+" DETACH PARTITION "+b.sql()+";")
		case b.persistence != "p":
			add("unlogged", SeverityFatal, b.sql()+" below it is unlogged or temporary: its changes are not in the log", "ALTER TABLE "+b.sql()+" SET LOGGED;")
		case !b.isPartition && !mapped[b.sql()]:
			add("inherits", SeverityFatal, b.sql()+" inherits from it: reading "+t.sql()+" shows its rows, and their changes arrive under its own name",
				"map "+b.sql()+" to the same keys")
		}
	}
}

// checkIdentity looks at what the tables that hold rows log of old ones.
func checkIdentity(t *catalogTable, u mapping.TableUse, add addFinding) {
	holders := t.below
	if t.kind == "r" {
		holders = append([]*catalogTable{t}, t.below...)
	}
	for _, h := range holders {
		if h.kind == "r" && h.persistence == "p" && h.identity != "f" && len(h.identityColumns) == 0 {
			f := add("no_replica_identity", SeverityFatal, h.sql()+" has no replica identity: once it is published, the application's own UPDATE and DELETE on it fail",
				"ALTER TABLE "+h.sql()+" ADD PRIMARY KEY (...);\nor: "+identityFullStatement(h))
			f.SQL = []string{identityFullStatement(h)}
			if h.isPartition {
				f.SQL = identityFull(t) // what one partition alone logs is of no use
			}
			return // what follows would only say it again
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
			f := add("partition_identity", SeverityFatal, fmt.Sprintf("its partition %s logs less of old rows (%s) than it says itself (%s), so old values would be wrong",
				b.sql(), describeIdentity(b), describeIdentity(t)), identityFullSQL(t))
			f.Misleads, f.SQL = true, identityFull(t)
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
		add("replica_identity", SeverityWidens, fmt.Sprintf("the log does not carry the old value of %s (%s): a change invalidates the whole family where it cannot tell the old key",
			strings.Join(missing, ", "), describeIdentity(t)), identityFullSQL(t)).SQL = identityFull(t)
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

// identityFull mends the table and everything below it, a statement each.
func identityFull(t *catalogTable) []string {
	var sql []string
	if t.identity != "f" {
		sql = append(sql, identityFullStatement(t))
	}
	for _, b := range t.below {
		if b.identity != "f" && b.isPartition {
			sql = append(sql, identityFullStatement(b))
		}
	}
	return sql
}

func identityFullStatement(t *catalogTable) string {
	return "ALTER TABLE " + t.sql() + " REPLICA IDENTITY FULL;"
}

// identityFullSQL is identityFull for people: beyond a few partitions, psql makes
// the statements.
func identityFullSQL(t *catalogTable) string {
	const most = 9
	sql := identityFull(t)
	if len(sql) > most {
		return "SELECT format('ALTER TABLE %s REPLICA IDENTITY FULL', relid) FROM pg_partition_tree(" +
			quoteLiteral(t.sql()) + ") \\gexec"
	}
	return strings.Join(sql, "\n")
}
