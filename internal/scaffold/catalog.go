package scaffold

import (
	"context"
	_ "embed"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

var (
	//go:embed tables.sql
	tablesSQL string
	//go:embed indexes.sql
	indexesSQL string
	//go:embed foreign_keys.sql
	foreignKeysSQL string
)

// table is a table as the catalogs have it.
type table struct {
	oid          uint32
	schema, name string
	sql          string // schema and name, as SQL takes them
	partitioned  bool
	identity     string // pg_class.relreplident
	partitions   int
	rows, bytes  int64 // estimates
	analyzed     bool  // the estimates are of an ANALYZE
	columns      []string
	columnSQL    []string // the same, as SQL takes them
	generated    []string
	parent       uint32 // by inheritance, 0 for none
	indexes      []index
}

type index struct {
	name, sql string
	columns   []string
	unique    bool // and not deferrable
	primary   bool
	identity  bool // the one of REPLICA IDENTITY USING INDEX
	notNull   bool // all columns
}

// foreignKey refers from some columns of a table to those of another, or the same.
type foreignKey struct {
	from, to               *table
	fromColumns, toColumns []string
}

func (t *table) String() string { return t.schema + "." + t.name }

// column is a column's name as SQL takes it.
func (t *table) column(name string) string {
	if i := slices.Index(t.columns, name); i >= 0 {
		return t.columnSQL[i]
	}
	return name
}

// identityIndex is the index that the replica identity is, if it is one.
func (t *table) identityIndex() (index, bool) {
	i := slices.IndexFunc(t.indexes, func(x index) bool {
		return x.unique && x.notNull && (t.identity == "d" && x.primary || t.identity == "i" && x.identity)
	})
	if i < 0 {
		return index{}, false
	}
	return t.indexes[i], true
}

// logs says whether the log has the old values of all the columns.
func (t *table) logs(columns []string) bool {
	if t.identity == "f" {
		return true
	}
	x, _ := t.identityIndex()
	return !slices.ContainsFunc(columns, func(c string) bool { return !slices.Contains(x.columns, c) })
}

// indexed says whether an index finds rows by the columns.
func (t *table) indexed(columns []string) bool {
	return slices.ContainsFunc(t.indexes, func(x index) bool {
		return len(x.columns) >= len(columns) && sameSet(x.columns[:len(columns)], columns)
	})
}

func sameSet(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

// database is what there is to write about.
type database struct {
	tables      []*table
	foreignKeys []foreignKey
	excluded    int
}

// readDatabase reads the catalogs in one snapshot, and nothing else: no row of any
// table.
func readDatabase(ctx context.Context, conn *pgx.Conn, o Options) (*database, error) {
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, fmt.Errorf("read the catalogs: %w", err)
	}
	defer func() { _ = tx.Rollback(ctx) }() // it has read only
	db := &database{}
	if err := db.readTables(ctx, tx, o); err != nil {
		return nil, fmt.Errorf("read the tables: %w", err)
	}
	byOID := map[uint32]*table{}
	var oids []uint32
	for _, t := range db.tables {
		byOID[t.oid], oids = t, append(oids, t.oid)
	}
	if err := readIndexes(ctx, tx, oids, byOID); err != nil {
		return nil, fmt.Errorf("read the indexes: %w", err)
	}
	if err := db.readForeignKeys(ctx, tx, oids, byOID); err != nil {
		return nil, fmt.Errorf("read the foreign keys: %w", err)
	}
	return db, nil
}

func (db *database) readTables(ctx context.Context, tx pgx.Tx, o Options) error {
	rows, err := tx.Query(ctx, tablesSQL, append([]string{}, o.Schemas...))
	if err != nil {
		return err
	}
	defer rows.Close()
	text := replication.NamesOf(tx.Conn())
	for rows.Next() {
		t := &table{}
		var parent int64
		if err := text.Scan(rows, &t.oid, &t.schema, &t.name, &t.sql, &t.partitioned, &t.identity, &t.partitions, &t.rows, &t.bytes, &t.analyzed,
			&t.columns, &t.columnSQL, &t.generated, &parent); err != nil {
			return err
		}
		t.parent = uint32(parent)
		if o.excludes(t) || unreadable(t.schema, t.name) {
			db.excluded++
			continue
		}
		db.tables = append(db.tables, t)
	}
	return rows.Err()
}

// unreadable says whether a name has no form in UTF-8: no file can have it.
func unreadable(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		return !utf8.ValidString(name) || strings.ContainsRune(name, utf8.RuneError)
	})
}

// excludes matches schema.table, and the table alone.
func (o Options) excludes(t *table) bool {
	return slices.ContainsFunc(o.Exclude, func(pattern string) bool {
		qualified, _ := path.Match(pattern, t.String()) // the patterns were checked
		alone, _ := path.Match(pattern, t.name)
		return qualified || alone
	})
}

func readIndexes(ctx context.Context, tx pgx.Tx, oids []uint32, byOID map[uint32]*table) error {
	rows, err := tx.Query(ctx, indexesSQL, oids)
	if err != nil {
		return err
	}
	defer rows.Close()
	text := replication.NamesOf(tx.Conn())
	for rows.Next() {
		var of uint32
		var x index
		if err := text.Scan(rows, &of, &x.name, &x.sql, &x.columns, &x.unique, &x.primary, &x.identity, &x.notNull); err != nil {
			return err
		}
		if !unreadable(append([]string{x.name}, x.columns...)...) {
			byOID[of].indexes = append(byOID[of].indexes, x)
		}
	}
	return rows.Err()
}

func (db *database) readForeignKeys(ctx context.Context, tx pgx.Tx, oids []uint32, byOID map[uint32]*table) error {
	rows, err := tx.Query(ctx, foreignKeysSQL, oids)
	if err != nil {
		return err
	}
	defer rows.Close()
	text := replication.NamesOf(tx.Conn())
	for rows.Next() {
		var from, to uint32
		var k foreignKey
		if err := text.Scan(rows, &from, &to, &k.fromColumns, &k.toColumns); err != nil {
			return err
		}
		if unreadable(append(k.fromColumns, k.toColumns...)...) {
			continue
		}
		k.from, k.to = byOID[from], byOID[to]
		same := func(o foreignKey) bool {
			return o.from == k.from && o.to == k.to && slices.Equal(o.fromColumns, k.fromColumns) && slices.Equal(o.toColumns, k.toColumns)
		}
		if !slices.ContainsFunc(db.foreignKeys, same) {
			db.foreignKeys = append(db.foreignKeys, k)
		}
	}
	return rows.Err()
}
