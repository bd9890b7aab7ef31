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
	for _, f := range published {
		switch f.Code {
		case PublicationMissing:
			sql := publicationSQL(o.Publication, o.Tables, generated)
			f.Fix, f.SQL = sql, []string{sql}
		case PublicationActions, PublicationViaRoot:
			refused, err := refusedMembers(ctx, conn, o.Publication)
			if err != nil {
				return nil, err
			}
			if len(refused) > 0 {
				f.SQL = nil
				f.Problem += "; changing it would make the application's UPDATE and DELETE fail on other tables that it has: " + strings.Join(refused, "; ")
				f.Fix = "name another publication in source.publication.name, for the mapped tables alone"
			}
		}
		list = append(list, f)
	}
	return list, nil
}

// refusedMembers are the tables of our publication whose UPDATE or DELETE the server would
// refuse if it published those.
func refusedMembers(ctx context.Context, conn *pgx.Conn, publication string) ([]string, error) {
	const op = "look at the tables of the publication"
	server, err := ReadServer(ctx, conn)
	if err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, `SELECT convert_to(schemaname::text, getdatabaseencoding()), convert_to(tablename::text, getdatabaseencoding()) FROM pg_publication_tables WHERE pubname = $1 ORDER BY 1, 2`, publication)
	if err != nil {
		return nil, serverError(op, err, "")
	}
	defer rows.Close()
	text := NamesOf(conn)
	var members []mapping.TableUse
	var refused []string
	for rows.Next() {
		var u mapping.TableUse
		if err := text.Scan(rows, &u.Schema, &u.Table); err != nil {
			return nil, serverError(op, err, "")
		}
		if strings.ContainsRune(u.Schema+u.Table, utf8.RuneError) {
			refused = append(refused, qualified(u.Schema, u.Table)+": its name has no form in UTF-8, so it cannot be looked at")
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
	const most = 5
	for _, tables := range written {
		for _, t := range tables {
			planned := slices.Clone(t.publications)
			for i := range planned {
				if planned[i].Name == publication {
					planned[i].Update, planned[i].Delete = true, true
				}
			}
			reasons := t.refusals(t.current(), planned, server.Version)
			if len(reasons) == 0 || len(t.refusals(t.current(), t.publications, server.Version)) > 0 {
				continue // fine, or refused already
			}
			if refused = append(refused, t.sql()+": "+strings.Join(reasons, ", ")); len(refused) > most {
				return append(refused[:most], "..."), nil
			}
		}
	}
	return refused, nil
}
