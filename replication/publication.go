package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// ErrPublicationMissing means that there is no such publication and that it was
// not to be made, or could not be without losing changes.
var ErrPublicationMissing = errors.New("the publication does not exist")

// publishAll is every action, in the server's spelling.
const publishAll = "insert, update, delete, truncate"

// Publication is a publication as the catalog shows it.
type Publication struct {
	Name string
	// OID tells a publication from another that was made under its name later,
	// which would have left changes in between unsent.
	OID                              uint32
	AllTables                        bool
	Schemas                          string // all tables of which it has, for people
	Insert, Update, Delete, Truncate bool
	ViaRoot                          bool // changes of a partition arrive under the partitioned table's name
	Generated                        bool // stored generated columns are sent; 18 and later
}

// ReadPublication looks a publication up. found is false when there is none.
func ReadPublication(ctx context.Context, conn *pgx.Conn, name string) (p Publication, found bool, err error) {
	var schemas []byte
	err = conn.QueryRow(ctx, `
		SELECT pubname::text, oid, puballtables,
		       convert_to(coalesce((SELECT string_agg(quote_ident(s.nspname), ', ' ORDER BY s.nspname)
		                            FROM pg_publication_namespace n JOIN pg_namespace s ON s.oid = n.pnnspid WHERE n.pnpubid = p.oid), ''), getdatabaseencoding()), pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot,
		       coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false)
		FROM pg_publication p WHERE pubname = $1`, name).
		Scan(&p.Name, &p.OID, &p.AllTables, &schemas, &p.Insert, &p.Update, &p.Delete, &p.Truncate, &p.ViaRoot, &p.Generated)
	if errors.Is(err, pgx.ErrNoRows) {
		return Publication{}, false, nil
	}
	if err != nil {
		return Publication{}, false, serverError("look up publication "+name, err, "")
	}
	p.Schemas, err = NamesOf(conn).One(schemas)
	return p, true, err
}

// EnsurePublication checks the publication against the tables, or makes it when
// there is none and create is set. Call it before EnsureSlot, and use Setup to
// have the order kept. An existing publication is never altered: the error says
// what to run.
func EnsurePublication(ctx context.Context, conn *pgx.Conn, name string, create bool, tables []mapping.TableUse) error {
	_, found, err := ReadPublication(ctx, conn, name)
	if err != nil {
		return err
	}
	if found {
		findings, err := CheckPublication(ctx, conn, name, tables)
		if err != nil {
			return err
		}
		return FatalError(findings)
	}
	if !create {
		return &ConfigError{Op: "look up publication " + name, Problem: "refused", Err: ErrPublicationMissing,
			Fix: createPublicationSQL(name, tables) + "\nor set source.publication.create_if_not_exists: true"}
	}
	// Publishing a table that has no identity makes the application's own writes
	// fail, so the tables are looked at before and not after.
	findings, err := CheckCatalog(ctx, conn, name, tables)
	if err != nil {
		return err
	}
	writes, err := CheckWrites(ctx, conn, name, tables)
	if err != nil {
		return err
	}
	if err := FatalError(append(findings, writes...)); err != nil {
		return err
	}
	// No identity is changed here, so those that ask for another one keep what they have.
	generated, err := needsGenerated(ctx, conn, name, tables, nil)
	if err != nil {
		return err
	}
	return createPublication(ctx, conn, name, publicationSQL(name, tables, generated))
}

func createPublicationSQL(name string, tables []mapping.TableUse) string {
	return publicationSQL(name, tables, false)
}

// publicationSQL creates it; generated has it send stored generated columns, which only
// 18 and later can.
func publicationSQL(name string, tables []mapping.TableUse, generated bool) string {
	var b strings.Builder
	b.WriteString("CREATE PUBLICATION " + sqlName(name))
	// Without tables it still carries logical messages.
	if len(tables) > 0 {
		b.WriteString(" FOR TABLE " + tableList(tables))
	}
	b.WriteString(" WITH (publish = '" + publishAll + "', publish_via_partition_root = true")
	if generated {
		b.WriteString(", publish_generated_columns = stored")
	}
	b.WriteString(");")
	return b.String()
}

func tableList(tables []mapping.TableUse) string {
	names := make([]string, len(tables))
	for i, u := range tables {
		names[i] = qualified(u.Schema, u.Table)
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}

func createPublication(ctx context.Context, conn *pgx.Conn, name, sql string) error {
	op := "create publication " + name
	// The transaction must not hang on a standby that is missing: nobody would see for what.
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "SET LOCAL synchronous_commit = local;\n"+sql)
		return err
	})
	if err == nil {
		return nil
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42710" { // duplicate_object
		return &UnavailableError{Op: op, Err: err, Hint: "another process has just made it"}
	}
	server, serverErr := ReadServer(ctx, conn)
	if serverErr != nil {
		return serverError(op, err, "have the tables' owner run:\n"+sql)
	}
	return serverError(op, err, "GRANT CREATE ON DATABASE "+sqlName(server.Database)+" TO "+sqlName(server.Role)+
		";  -- and the role must own the tables\nor have their owner run:\n"+sql)
}

// CheckPublication compares an existing publication with what the mappings need.
// It takes the server's own word (pg_publication_tables) for what is published,
// however that came about: single tables, schemas or all tables.
func CheckPublication(ctx context.Context, conn *pgx.Conn, name string, tables []mapping.TableUse) ([]Finding, error) {
	p, found, err := ReadPublication(ctx, conn, name)
	if err != nil {
		return nil, err
	}
	pub := sqlName(name)
	if !found {
		sql := createPublicationSQL(name, tables)
		return []Finding{{Code: PublicationMissing, Problem: ErrPublicationMissing.Error(), Fix: sql, SQL: []string{sql}}}, nil
	}
	members, err := readMembers(ctx, conn, name, tables)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	if missing := p.missingActions(tables); len(missing) > 0 {
		sql := "ALTER PUBLICATION " + pub + " SET (publish = '" + publishAll + "');"
		findings = append(findings, Finding{Code: PublicationActions,
			Problem: fmt.Sprintf("%s does not publish %s, so such changes would invalidate nothing", name, strings.Join(missing, ", ")),
			Fix:     sql, SQL: []string{sql}})
	}
	const more = ": changes of tables that nothing maps are sent as well, and the server refuses the application's UPDATE and DELETE on each that has no replica identity, also on one that is made tomorrow"
	switch {
	case p.AllTables:
		findings = append(findings, Finding{Code: PublicationAll, Problem: name + " is FOR ALL TABLES" + more, Fix: p.narrowSQL(tables, members)})
	case p.Schemas != "":
		findings = append(findings, Finding{Code: PublicationSchemas, Problem: name + " is FOR TABLES IN SCHEMA " + p.Schemas + more, Fix: p.narrowSQL(tables, members)})
	}
	var absent []mapping.TableUse
	for i, u := range tables {
		add := func(code FindingCode, problem, fix string, sql ...string) {
			findings = append(findings, Finding{Code: code, Schema: u.Schema, Table: u.Table, Problem: problem, Fix: fix, SQL: sql})
		}
		m := members[i]
		if !m.addable {
			continue // CheckCatalog's to report
		}
		if m.partitioned && !p.ViaRoot {
			sql := "ALTER PUBLICATION " + pub + " SET (publish_via_partition_root = true);"
			add(PublicationViaRoot, "it is partitioned, and publication "+name+" sends changes under the partitions' names", sql, sql)
		}
		if !m.published {
			absent = append(absent, u)
			continue
		}
		// For people only: whoever set a filter or a list may need it for something else.
		readd := "BEGIN; ALTER PUBLICATION " + pub + " DROP TABLE " + qualified(u.Schema, u.Table) +
			"; ALTER PUBLICATION " + pub + " ADD TABLE " + qualified(u.Schema, u.Table) + "; COMMIT;"
		if m.filtered {
			add(PublicationFiltered, "publication "+name+" has a row filter on it: rows outside of it would change unseen, and updates arrive as inserts or deletes without the old row", readd)
		}
		var lacks []string
		for _, c := range u.Columns {
			// A column that the table itself lacks is CheckCatalog's to report.
			if slices.Contains(m.tableColumns, c) && !slices.Contains(m.columns, c) {
				lacks = append(lacks, c)
			}
		}
		if len(lacks) > 0 {
			add(PublicationColumns, fmt.Sprintf("publication %s does not send its column %s, which mappings use", name, strings.Join(lacks, ", ")), readd)
		}
	}
	for _, u := range absent {
		sql := "ALTER PUBLICATION " + pub + " ADD TABLE " + tableList(absent) + ";"
		findings = append(findings, Finding{Code: PublicationMember, Schema: u.Schema, Table: u.Table,
			Problem: "publication " + name + " does not have it, so its changes would invalidate nothing",
			Fix:     sql, SQL: []string{sql}})
	}
	return findings, nil
}

func (p Publication) missingActions(tables []mapping.TableUse) []string {
	var missing []string
	truncate := slices.ContainsFunc(tables, func(u mapping.TableUse) bool { return u.Truncate })
	for _, a := range []struct {
		name            string
		needed, present bool
	}{
		{"insert", len(tables) > 0, p.Insert},
		{"update", len(tables) > 0, p.Update},
		{"delete", len(tables) > 0, p.Delete},
		{"truncate", truncate, p.Truncate},
	} {
		if a.needed && !a.present {
			missing = append(missing, a.name)
		}
	}
	return missing
}

// narrowSQL makes it one of the mapped tables alone, in one transaction: changes before and after
// it are sent. It is for people, since something else may read the publication.
func (p Publication) narrowSQL(tables []mapping.TableUse, members []publicationMember) string {
	var mapped []mapping.TableUse
	for i, u := range tables {
		if members[i].addable {
			mapped = append(mapped, u)
		}
	}
	if !p.AllTables && len(mapped) > 0 {
		return "ALTER PUBLICATION " + sqlName(p.Name) + " SET TABLE " + tableList(mapped) + ";"
	}
	return "BEGIN;\nDROP PUBLICATION " + sqlName(p.Name) + ";\n" + publicationSQL(p.Name, mapped, p.Generated) + "\nCOMMIT;"
}

// publicationMember is what a publication sends of one mapped table.
type publicationMember struct {
	addable                          bool // there is such a table, and a publication may have it
	partitioned, published, filtered bool
	columns, tableColumns            []string
}

// readMembers takes the server's word for what is published, but for a partitioned table whose
// changes go under the partitions' names, where the server speaks of those only: it has what
// holds once publish_via_partition_root is set. (Until then it can have no filter and no list.)
func readMembers(ctx context.Context, conn *pgx.Conn, name string, tables []mapping.TableUse) ([]publicationMember, error) {
	op := "check publication " + name
	members := make([]publicationMember, len(tables))
	schemas, names := tableNames(tables)
	rows, err := conn.Query(ctx, `
		WITH p AS MATERIALIZED (
		    SELECT schemaname, tablename, attnames, rowfilter FROM pg_publication_tables WHERE pubname = $1
		)
		SELECT u.n::int, coalesce(c.relkind IN ('r', 'p') AND c.relpersistence = 'p', false), coalesce(c.relkind = 'p', false),
		       CASE WHEN c.relkind = 'p' AND NOT b.pubviaroot
		            THEN b.puballtables OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = b.oid AND r.prrelid = c.oid)
		                 OR EXISTS (SELECT FROM pg_publication_namespace n WHERE n.pnpubid = b.oid AND n.pnnspid = c.relnamespace)
		            ELSE p.tablename IS NOT NULL END,
		       p.rowfilter IS NOT NULL,
		       CASE WHEN c.relkind = 'p' AND NOT b.pubviaroot THEN t.columns ELSE ARRAY(SELECT convert_to(a::text, getdatabaseencoding()) FROM unnest(p.attnames) a) END, t.columns
		FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS u(schema, name, n)
		JOIN pg_publication b ON b.pubname = $1
		LEFT JOIN pg_namespace s ON s.nspname = u.schema::name
		LEFT JOIN pg_class c ON c.relnamespace = s.oid AND c.relname = u.name::name
		LEFT JOIN p ON p.schemaname = u.schema::name AND p.tablename = u.name::name,
		LATERAL (SELECT ARRAY(SELECT convert_to(a.attname::text, getdatabaseencoding()) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns) t`,
		name, schemas, names)
	if err != nil {
		return nil, serverError(op, err, "")
	}
	defer rows.Close()
	text := NamesOf(conn)
	for rows.Next() {
		var n int
		var m publicationMember
		if err := text.Scan(rows, &n, &m.addable, &m.partitioned, &m.published, &m.filtered, &m.columns, &m.tableColumns); err != nil {
			return nil, serverError(op, err, "")
		}
		members[n-1] = m
	}
	return members, serverError(op, rows.Err(), "")
}
