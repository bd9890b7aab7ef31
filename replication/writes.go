package replication

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

//go:embed writes.sql
var writesSQL string

// generatedPublished is the first version whose publications can send stored generated
// columns, and whose server refuses writes where an identity has columns that are not sent.
const generatedPublished = 180000

// writtenTable is a table to which the application writes, with all that decides whether
// the server takes its UPDATE and DELETE. It is the model of the server's own check
// (CheckCmdReplicaIdentity): the server makes it with every statement, and fails the
// application's, not ours.
type writtenTable struct {
	schema, name string
	kind         string // pg_class.relkind; only one that is r holds rows
	persistence  string
	identity     string // pg_class.relreplident
	columns      []writtenColumn
	indexes      []uniqueIndex
	publications []coveringPublication
}

type writtenColumn struct {
	Name      string `json:"name"`
	NotNull   bool   `json:"not_null"`
	Generated string `json:"generated"` // s for stored, v for virtual
}

// uniqueIndex is a unique index. Its columns are the key's, "" for an expression.
type uniqueIndex struct {
	Name      string   `json:"name"`
	Columns   []string `json:"columns"`
	Primary   bool     `json:"primary"`
	Identity  bool     `json:"identity"`
	Immediate bool     `json:"immediate"`
	Valid     bool     `json:"valid"`
	Partial   bool     `json:"partial"`
	Exclusion bool     `json:"exclusion"`
}

// coveringPublication is a publication as it holds for one table.
type coveringPublication struct {
	Name   string   `json:"name"`
	Update bool     `json:"update"`
	Delete bool     `json:"delete"`
	Stored bool     `json:"stored"` // sends stored generated columns
	List   []string `json:"list"`   // nil for all columns
	Filter []string `json:"filter"` // columns that its row filter reads
}

func (t *writtenTable) sql() string { return qualified(t.schema, t.name) }

func (t *writtenTable) column(name string) writtenColumn {
	i := slices.IndexFunc(t.columns, func(c writtenColumn) bool { return c.Name == name })
	if i < 0 {
		return writtenColumn{Name: name}
	}
	return t.columns[i]
}

// replicaIdentity is an identity that a table has or could have.
type replicaIdentity struct {
	full    bool
	index   string // "" for the primary key by REPLICA IDENTITY DEFAULT
	columns []string
}

func (id replicaIdentity) none() bool { return !id.full && len(id.columns) == 0 }

func (id replicaIdentity) has(column string) bool {
	return id.full || slices.Contains(id.columns, column)
}

func (id replicaIdentity) String() string {
	switch {
	case id.full:
		return "replica identity full"
	case id.none():
		return "no replica identity"
	}
	return "replica identity " + strings.Join(id.columns, ", ")
}

// current is the identity that the table has.
func (t *writtenTable) current() replicaIdentity {
	if t.identity == "f" {
		return replicaIdentity{full: true}
	}
	for _, x := range t.indexes {
		if x.Valid && x.Immediate && !x.Partial && (t.identity == "d" && x.Primary || t.identity == "i" && x.Identity) {
			id := replicaIdentity{columns: x.Columns}
			if t.identity == "i" {
				id.index = x.Name
			}
			return id
		}
	}
	return replicaIdentity{}
}

// unfit says why an index cannot be an identity, "" when it can.
func (t *writtenTable) unfit(x uniqueIndex) string {
	switch {
	case !x.Valid:
		return "is not valid"
	case !x.Immediate:
		return "is deferrable"
	case x.Partial:
		return "is partial"
	case slices.Contains(x.Columns, ""):
		return "has an expression"
	case x.Exclusion && !x.Primary:
		return "is WITHOUT OVERLAPS"
	}
	for _, c := range x.Columns {
		if !t.column(c).NotNull {
			return "has a column that may be NULL: " + c
		}
	}
	return ""
}

// refusals says why the server would refuse the application's UPDATE or DELETE of the
// table if it had the identity and were in the publications; empty when it would not.
func (t *writtenTable) refusals(id replicaIdentity, publications []coveringPublication, version int) (reasons []string) {
	add := func(format string, args ...any) {
		if r := fmt.Sprintf(format, args...); !slices.Contains(reasons, r) {
			reasons = append(reasons, r)
		}
	}
	if t.kind != "r" || t.persistence != "p" {
		return nil // it holds no rows, or is never published
	}
	for _, p := range publications {
		if !p.Update && !p.Delete {
			continue
		}
		switch {
		case id.none():
			add("publication %s has it, and it has no replica identity", sqlName(p.Name))
			continue
		case id.full && p.List != nil:
			add("publication %s has a column list (%s), which is not allowed with replica identity full", sqlName(p.Name), strings.Join(p.List, ", "))
		}
		for _, c := range p.Filter {
			if !id.has(c) {
				add("the row filter of publication %s reads %s, which is not in the %s", sqlName(p.Name), c, id)
			}
		}
		for _, c := range t.columns {
			switch {
			case !id.has(c.Name):
			case p.List != nil:
				if !id.full && !slices.Contains(p.List, c.Name) {
					add("the column list of publication %s lacks %s, which is in the %s", sqlName(p.Name), c.Name, id)
				}
			}
			if !id.has(c.Name) || c.Generated == "" || version < generatedPublished {
				continue
			}
			switch {
			case c.Generated == "v":
				add("its column %s is generated and virtual, and no publication can send that", c.Name)
			case !p.Stored && (p.List == nil || id.full):
				add("its column %s is generated, and publication %s does not send that", c.Name, sqlName(p.Name))
			}
		}
	}
	return reasons
}

// readWritten reads, for each of the tables, itself (nil where there is no such table)
// and the partitions below it.
func readWritten(ctx context.Context, conn *pgx.Conn, tables []mapping.TableUse) ([][]*writtenTable, error) {
	const op = "look up what decides about the application's writes"
	found := make([][]*writtenTable, len(tables))
	schemas, names := tableNames(tables)
	rows, err := conn.Query(ctx, writesSQL, schemas, names)
	if err != nil {
		return nil, serverError(op, err, "")
	}
	defer rows.Close()
	text := NamesOf(conn)
	for rows.Next() {
		var n int
		var root bool
		var columns, indexes, publications string
		t := &writtenTable{}
		if err := text.Scan(rows, &n, &root, &t.schema, &t.name, &t.kind, &t.persistence, &t.identity, &columns, &indexes, &publications); err != nil {
			return nil, serverError(op, err, "")
		}
		for _, part := range []struct {
			json string
			into any
		}{{columns, &t.columns}, {indexes, &t.indexes}, {publications, &t.publications}} {
			if err := json.Unmarshal([]byte(part.json), part.into); err != nil {
				return nil, fmt.Errorf("%s: %w", op, err)
			}
		}
		found[n-1] = append(found[n-1], t) // the root comes first
	}
	return found, serverError(op, rows.Err(), "")
}
