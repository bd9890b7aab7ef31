package replication

import (
	"context"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// askOthers completes what CheckPublication would have changed, with what that would do to
// the application's writes: generated columns that have to be sent, and tables that
// the publication has beside the mapped ones.
func askOthers(ctx context.Context, conn *pgx.Conn, ours Publication, o SetupOptions, tables, published []Finding) ([]Finding, error) {
	generated, err := needsGenerated(ctx, conn, o.Publication, o.Tables, tables)
	if err != nil {
		return nil, err
	}
	var list []Finding
	if generated && ours.Name != "" && !ours.Generated {
		sql := "ALTER PUBLICATION " + sqlName(o.Publication) + " SET (publish_generated_columns = stored);"
		list = append(list, Finding{Code: PublicationGenerated,
			Problem: o.Publication + " does not send generated columns, and mapped tables have or will have them in their replica identity: the application's UPDATE and DELETE would fail",
			Fix:     sql, SQL: []string{sql}})
	}
	var beside []besideMapped
	if ours.Name != "" {
		if beside, err = refusedBeside(ctx, conn, ours, o.Tables); err != nil {
			return nil, err
		}
	}
	for _, f := range published {
		switch f.Code {
		case PublicationMissing:
			sql := publicationSQL(o.Publication, o.Tables, generated)
			f.Fix, f.SQL = sql, []string{sql}
		case PublicationActions, PublicationViaRoot:
			f.keepWrites(beside)
		}
		list = append(list, f)
	}
	for _, b := range beside {
		if b.now {
			list = append(list, b.finding(o.Publication))
		}
	}
	return list, nil
}

// keepWrites takes the statements away that would have the publication send updates and
// deletes of tables on which the server would then refuse them.
func (f *Finding) keepWrites(beside []besideMapped) {
	const most = 5
	var refused []string
	for _, b := range beside {
		if !b.now {
			refused = append(refused, b.table.sql()+": "+strings.Join(b.reasons, ", "))
		}
	}
	if len(refused) == 0 {
		return
	}
	if len(refused) > most {
		refused = append(refused[:most], "...")
	}
	f.SQL = nil
	f.Problem += "; changing it would make the application's UPDATE and DELETE fail on other tables that it has: " + strings.Join(refused, "; ")
	f.Fix = "name another publication in source.publication.name, for the mapped tables alone"
}

// besideMapped is a table of our publication that is not mapped, and whose UPDATE and DELETE the
// server refuses: now, or once the publication sends those.
type besideMapped struct {
	table   *writtenTable
	reasons []string
	now     bool
	others  bool   // would refuse them without ours, too
	narrow  string // statements that leave the publication with the mapped tables
	own     string // that leave it, and let the server take the writes; "" when none are known
}

func (b *besideMapped) finding(publication string) Finding {
	f := Finding{Code: PublicationRefuses, Schema: b.table.schema, Table: b.table.name,
		Problem: "nothing maps it, and the server refuses the application's UPDATE and DELETE on it: " + strings.Join(b.reasons, "; "), Fix: b.narrow}
	switch {
	case b.own != "" && b.others:
		f.Fix = b.own // to leave ours would not help
	case b.own != "":
		f.Fix += "\n-- or, where something else reads publication " + publication + " as well:\n-- " + strings.ReplaceAll(b.own, "\n", "\n-- ")
	}
	return f
}

// refusedBeside looks at all tables that the publication has beside the mapped ones.
func refusedBeside(ctx context.Context, conn *pgx.Conn, ours Publication, tables []mapping.TableUse) ([]besideMapped, error) {
	const op = "look at the tables of the publication"
	server, err := ReadServer(ctx, conn)
	if err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, `SELECT convert_to(schemaname::text, getdatabaseencoding()), convert_to(tablename::text, getdatabaseencoding()) FROM pg_publication_tables WHERE pubname = $1 ORDER BY 1, 2`, ours.Name)
	if err != nil {
		return nil, serverError(op, err, "")
	}
	defer rows.Close()
	text := NamesOf(conn)
	var members []mapping.TableUse
	var refused []besideMapped
	for rows.Next() {
		var u mapping.TableUse
		if err := text.Scan(rows, &u.Schema, &u.Table); err != nil {
			return nil, serverError(op, err, "")
		}
		if strings.ContainsRune(u.Schema+u.Table, utf8.RuneError) {
			refused = append(refused, besideMapped{table: &writtenTable{schema: u.Schema, name: u.Table}, reasons: []string{"its name has no form in UTF-8, so it cannot be looked at"}})
			continue
		}
		members = append(members, u)
	}
	err = rows.Err()
	if err != nil {
		return nil, serverError(op, err, "")
	}
	written, err := readWritten(ctx, conn, members)
	if err != nil {
		return nil, err
	}
	// A mapped table's own are CheckWrites' to report.
	mapped := map[string]bool{}
	own, err := readWritten(ctx, conn, tables)
	if err != nil {
		return nil, err
	}
	for _, t := range slices.Concat(own...) {
		mapped[t.sql()] = true
	}
	present, err := readMembers(ctx, conn, ours.Name, tables)
	if err != nil {
		return nil, err
	}
	for _, t := range slices.Concat(written...) {
		if mapped[t.sql()] {
			continue
		}
		b := besideMapped{table: t, reasons: t.refusals(t.current(), t.publications, server.Version)}
		if b.now = len(b.reasons) > 0; !b.now {
			planned := slices.Clone(t.publications)
			for i := range planned {
				if planned[i].Name == ours.Name {
					planned[i].Update, planned[i].Delete = true, true
				}
			}
			b.reasons = t.refusals(t.current(), planned, server.Version)
		}
		if len(b.reasons) == 0 {
			continue
		}
		without := slices.DeleteFunc(slices.Clone(t.publications), func(p coveringPublication) bool { return p.Name == ours.Name })
		b.others = len(t.refusals(t.current(), without, server.Version)) > 0
		b.narrow, b.own = ours.narrowSQL(tables, present), ownIdentity(t, ours.Name, server.Version)
		refused = append(refused, b)
	}
	return refused, nil
}

// ownIdentity is the statement that gives a table of the publication an identity with which the server
// takes the writes, "" when there is none.
func ownIdentity(t *writtenTable, publication string, version int) string {
	c := chooseIdentity([]*writtenTable{t}, nil, publication, version)
	if !c.possible || len(t.refusals(c.identity, t.publications, version)) > 0 {
		return ""
	}
	return c.fix()
}
