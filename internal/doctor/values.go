package doctor

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/charset"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// encoding says whether text of the database can be turned into what readers get.
func (x *examination) encoding(ctx context.Context, conn *pgx.Conn) error {
	const op = "look up the database's encoding"
	var name string
	if err := conn.QueryRow(ctx, "SELECT pg_encoding_to_char(encoding)::text FROM pg_database WHERE datname = current_database()").Scan(&name); err != nil {
		return replication.ServerError(op, err)
	}
	e, err := charset.Server(name)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", op, err)
	case e == nil:
		x.source.ok("encoding", "the database's encoding is UTF8")
	case e.Converts():
		x.source.ok("encoding", "the database's encoding is %s; keys are converted to UTF-8", name)
	default:
		why := "from which Postgres converts nothing to UTF-8"
		if name == "SQL_ASCII" {
			why = "which does not say what bytes beyond ASCII mean, so readers get an error, or what their own encoding makes of them"
		}
		x.source.add(Check{Code: "encoding", Severity: Widens, FixKind: Person,
			Message: "the database's encoding is " + name + ", " + why + ": text beyond ASCII that a key needs invalidates the whole family (or tenant)",
			Fix:     "move the data into a database of encoding UTF8: pg_dump --encoding=<what the bytes are>, createdb --encoding=UTF8 --template=template0, pg_restore"})
	}
	return nil
}

const (
	// largeTOAST: a table that keeps less than this out of line has no row whose text
	// passes the gigabyte that a message may have, compression aside. A bytea is twice
	// as long as text.
	largeTOAST = 512 << 20
	// largeRow: on average, so that there may well be one that is too large.
	largeRow = 32 << 20
)

// largeTable is a table of which the server may not be able to send every row.
type largeTable struct {
	schema, name  string
	toast, perRow int64
	wide          []string // published columns that no mapping uses and that may be that large
	rest          []string // the other published ones
	full          bool     // the replica identity is the whole row
	listable      bool     // it may have a column list in the publication
}

func readLargeTables(ctx context.Context, conn *pgx.Conn, publication string, uses []mapping.TableUse, atLeast int64) ([]largeTable, error) {
	const op = "look at the size of large values"
	used := map[[2]string][]string{}
	var schemas, names []string
	for _, u := range uses {
		used[[2]string{u.Schema, u.Table}] = u.Columns
		schemas, names = append(schemas, u.Schema), append(names, u.Table)
	}
	// What lies in TOAST, of all partitions of a partitioned table. A column of the
	// replica identity has to be published.
	rows, err := conn.Query(ctx, `
		SELECT convert_to(m.schema, getdatabaseencoding()), convert_to(m.name, getdatabaseencoding()), s.toast, (s.toast / greatest(s.rows, 1))::bigint, s.replident = 'f',
		       c.relkind = 'r' AND s.replident IN ('d', 'i')
		         AND EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $3::text AND r.prrelid = c.oid AND r.prqual IS NULL),
		       coalesce((SELECT array_agg(convert_to(a.attname::text, getdatabaseencoding()) ORDER BY a.attnum) FROM pg_attribute a
		         WHERE a.attrelid = c.oid AND a.attname = ANY (p.attnames) AND a.attstorage <> 'p' AND a.attlen = -1 AND a.atttypid <> 'numeric'::regtype
		           AND NOT coalesce(a.attnum = ANY (i.indkey), false)), '{}'),
		       ARRAY(SELECT convert_to(a::text, getdatabaseencoding()) FROM unnest(p.attnames) a)
		FROM unnest($1::text[], $2::text[]) AS m(schema, name)
		JOIN pg_namespace n ON n.nspname = m.schema
		JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = m.name
		JOIN pg_publication_tables p ON p.pubname = $3::text AND p.schemaname = n.nspname AND p.tablename = c.relname
		CROSS JOIN LATERAL (
		  SELECT sum(pg_relation_size(l.reltoastrelid))::bigint AS toast, sum(greatest(l.reltuples, 0))::float8 AS rows, max(CASE l.relreplident WHEN 'f' THEN 'f' WHEN 'n' THEN 'b' ELSE l.relreplident::text END) AS replident
		  FROM pg_class l WHERE l.reltoastrelid <> 0 AND (l.oid = c.oid OR c.relkind = 'p' AND l.oid IN (SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf))) s
		LEFT JOIN pg_index i ON i.indrelid = c.oid AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
		WHERE s.toast >= $4 ORDER BY 1, 2`, schemas, names, publication, atLeast)
	if err != nil {
		return nil, replication.ServerError(op, err)
	}
	defer rows.Close()
	text := replication.NamesOf(conn)
	var large []largeTable
	for rows.Next() {
		var t largeTable
		var wide, published []string
		if err := text.Scan(rows, &t.schema, &t.name, &t.toast, &t.perRow, &t.full, &t.listable, &wide, &published); err != nil {
			return nil, replication.ServerError(op, err)
		}
		keep := map[string]bool{}
		for _, c := range used[[2]string{t.schema, t.name}] {
			keep[c] = true
		}
		may := map[string]bool{}
		for _, c := range wide {
			if may[c] = !keep[c]; may[c] {
				t.wide = append(t.wide, c)
			}
		}
		for _, c := range published {
			if !may[c] {
				t.rest = append(t.rest, c)
			}
		}
		if len(t.wide) > 0 {
			large = append(large, t)
		}
	}
	return large, replication.ServerError(op, rows.Err())
}

// check is what there is to say of it. A column list is never recommended where it
// would make the application's own writes fail.
func (t *largeTable) check(publication string) Check {
	table := replication.Qualified(t.schema, t.name)
	c := Check{Code: "large_rows", Severity: Notice, Subject: "table " + table, FixKind: Person,
		Message: fmt.Sprintf("it has %s of large values, and the server cannot send a row whose text passes 1 GiB (a bytea is twice as long as text): the daemon would be stuck at it. Nothing maps %s, which need not be sent",
			size(t.toast), identifiers(t.wide))}
	if t.perRow >= largeRow {
		c.Severity = Warning
		c.Message = strings.Replace(c.Message, "large values", "large values, "+size(t.perRow)+" a row", 1)
	}
	switch {
	case t.listable && len(t.rest) > 0:
		pub := replication.Identifier(publication)
		c.FixKind, c.Fix = SQL, "BEGIN;\nALTER PUBLICATION "+pub+" DROP TABLE "+table+";\nALTER PUBLICATION "+pub+" ADD TABLE "+table+" ("+identifiers(t.rest)+");\nCOMMIT;"+
			"\n-- a column that is added later is not published by itself, and REPLICA IDENTITY FULL must not be set any more: the application's writes would fail"
	case t.full:
		c.Fix = "keep such values below 512 MiB, or elsewhere. A column list is no way out here: with REPLICA IDENTITY FULL it makes the application's updates and deletes fail"
	default:
		c.Fix = "keep such values below 512 MiB, or elsewhere"
	}
	return c
}

func identifiers(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = replication.Identifier(n)
	}
	return strings.Join(quoted, ", ")
}

// largeRows names the tables of which the server may not be able to send every row.
func (x *examination) largeRows(ctx context.Context, conn *pgx.Conn, uses []mapping.TableUse) error {
	publication := x.File.Source.Publication.Name
	large, err := readLargeTables(ctx, conn, publication, uses, largeTOAST)
	for i := range large {
		x.tables.add(large[i].check(publication))
	}
	return err
}
