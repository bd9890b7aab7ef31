package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/provision"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

func (x *examination) examineSource(ctx context.Context) {
	x.Progress("the source")
	url := x.File.Source.URL.Reveal()
	rest := []*Group{x.publication, x.tables, x.slot}
	conn, err := replication.ConnectControl(ctx, url, "doctor")
	if err == nil {
		defer replication.CloseControl(ctx, conn)
		err = x.examineConnected(ctx, conn, url)
	}
	if err == nil {
		return
	}
	if !x.problem(x.source, "source_connection", Fatal, err) {
		x.away("source", err, append([]*Group{x.source}, rest...)...)
		return
	}
	for _, g := range rest {
		g.add(Check{Code: "not_checked", Severity: Skipped, Message: "not looked at: the source refuses the connection"})
	}
}

func (x *examination) examineConnected(ctx context.Context, conn *pgx.Conn, url string) error {
	st, err := provision.Read(ctx, conn, provision.FromFile(x.File, x.Plan))
	if err != nil {
		return err
	}
	s := &st.Survey
	x.source.ok("server", "Postgres %s, database %s, role %s", s.Server.VersionString(), s.Server.Database, s.Server.Role)
	for _, e := range s.ServerProblems {
		code := "server_version"
		switch {
		case errors.Is(e, replication.ErrStandby):
			code = "standby"
		case strings.HasPrefix(e.Problem, "wal_level"):
			code = "wal_level"
		}
		x.problem(x.source, code, Fatal, e)
	}
	if len(s.ServerProblems) == 0 {
		x.source.ok("wal_level", "wal_level is logical")
	}
	if err := x.replication(ctx, conn, url, st); err != nil {
		return err
	}
	if err := x.settings(ctx, conn); err != nil {
		return err
	}
	if err := x.encoding(ctx, conn); err != nil {
		return err
	}
	if err := x.lookups(ctx, url, st); err != nil {
		return err
	}
	if err := x.silentDDL(ctx, conn, st); err != nil {
		return err
	}
	x.Progress("the publication and the tables")
	x.publications(st)
	x.mappedTables(st)
	if err := x.largeRows(ctx, conn, st.Desired.Tables); err != nil {
		return err
	}
	if err := x.keyTypes(ctx, url); err != nil {
		return err
	}
	x.Progress("the slot")
	if err := x.replicationSlot(ctx, conn, st); err != nil {
		return err
	}
	x.Progress("the clocks")
	return x.sourceClock(ctx, conn)
}

// replication tries what the stream will do.
func (x *examination) replication(ctx context.Context, conn *pgx.Conn, url string, st *provision.State) error {
	role := st.Survey.Server.Role
	if !st.Rights.Replication {
		x.source.add(Check{Code: "role_replication", Severity: Fatal, Message: "role " + role + " may not replicate", FixKind: SQL,
			Fix: "ALTER ROLE " + replication.Identifier(role) + " REPLICATION;\n-- on a managed service grant its role instead, such as rds_replication"})
		return nil
	}
	id, err := replication.ProbeReplication(ctx, url, role)
	var busy *replication.UnavailableError
	switch {
	case errors.As(err, &busy) && ctx.Err() == nil:
		x.source.add(Check{Code: "replication_connection", Severity: Fatal, Message: "ordinary connections work, and one for replication does not: " + busy.Error(), FixKind: Person,
			Fix: "see max_wal_senders (ALTER SYSTEM SET max_wal_senders = <more>; and a restart), and that source.url leads to the server itself and not to a pooler"})
		return nil
	case err != nil:
		x.problem(x.source, "replication_connection", Fatal, err)
		return nil
	}
	epoch, err := replication.ReadEpoch(ctx, conn)
	switch {
	case errors.Is(err, replication.ErrStandby): // said already
	case err != nil:
		if !x.problem(x.source, "role_control_functions", Fatal, err) {
			return err
		}
	case epoch.SystemID != id:
		x.source.add(Check{Code: "several_servers", Severity: Fatal, Message: "source.url leads to different servers: system ids " + epoch.SystemID + " and " + id, FixKind: File,
			Fix: "name one primary in source.url; with several hosts in it, add target_session_attrs=read-write"})
	default:
		x.source.ok("role_replication", "role %s replicates; system id %s, timeline %d", role, id, epoch.Timeline)
		if epoch.CheckpointerStart.IsZero() {
			x.source.add(Check{Code: "role_read_all_stats", Severity: Notice, FixKind: SQL,
				Message: "role " + role + " does not see when the checkpointer started, so a crash of a single backend cannot be ruled out after a disconnect",
				Fix:     "GRANT pg_read_all_stats TO " + replication.Identifier(role) + ";"})
		}
	}
	return nil
}

// settings looks at what takes commits back, and at the heartbeat's right.
func (x *examination) settings(ctx context.Context, conn *pgx.Conn) error {
	const op = "look at the source's settings"
	var server string
	// The server's own value, whatever the role or the database has.
	err := conn.QueryRow(ctx, `
		SELECT coalesce((SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit' AND source IN ('default', 'configuration file', 'command line')), '')`).
		Scan(&server)
	if err != nil {
		return replication.ServerError(op, err)
	}
	standby, err := replication.StandbyProblem(ctx, conn)
	switch {
	case err != nil:
		return err
	case standby != nil:
		x.problem(x.source, "synchronous_standby_names", Fatal, standby)
	default:
		x.source.ok("synchronous_standby_names", "synchronous_standby_names does not name the daemon's connection, so no commit waits for it")
	}
	var fixes []string
	if server == "off" {
		fixes = append(fixes, "ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf();")
	}
	rows, err := conn.Query(ctx, `
		SELECT CASE WHEN s.setrole = 0 THEN format('ALTER DATABASE %I RESET synchronous_commit;', d.datname)
		            WHEN s.setdatabase = 0 THEN format('ALTER ROLE %I RESET synchronous_commit;', r.rolname)
		            ELSE format('ALTER ROLE %I IN DATABASE %I RESET synchronous_commit;', r.rolname, d.datname) END
		FROM pg_db_role_setting s
		LEFT JOIN pg_roles r ON r.oid = s.setrole
		LEFT JOIN pg_database d ON d.oid = s.setdatabase
		WHERE (s.setdatabase = 0 OR d.datname = current_database())
		  AND EXISTS (SELECT FROM unnest(s.setconfig) c
		              WHERE lower(c) IN ('synchronous_commit=off', 'synchronous_commit=false', 'synchronous_commit=no', 'synchronous_commit=0'))
		ORDER BY 1`)
	if err != nil {
		return replication.ServerError(op, err)
	}
	more, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return replication.ServerError(op, err)
	}
	if fixes = append(fixes, more...); len(fixes) > 0 {
		x.source.add(Check{Code: "synchronous_commit", Severity: Warning, FixKind: SQL, Fix: strings.Join(fixes, "\n"),
			Message: "synchronous_commit is off: a crash takes back commits that readers have seen, with no event in the log, so each restart of the source purges the cache"})
	} else {
		x.source.ok("synchronous_commit", "synchronous_commit is not off for the server, the database or a role")
	}
	grant, err := replication.HeartbeatGrant(ctx, conn)
	if err != nil {
		return err
	}
	if grant != "" {
		x.source.add(Check{Code: "role_heartbeat", Severity: Warning, Message: "the role may not send heartbeats, so an idle source cannot be told from a silent one", FixKind: SQL, Fix: grant})
	}
	return nil
}

// lookups explains each for_each query, which asks for every right that running it
// asks for, and runs nothing.
func (x *examination) lookups(ctx context.Context, url string, st *provision.State) error {
	uses := x.Plan.Lookups()
	if len(uses) == 0 {
		return nil
	}
	x.Progress("the for_each queries")
	conn, err := replication.ConnectQuery(ctx, url, "doctor")
	if err != nil {
		return err
	}
	defer replication.CloseControl(ctx, conn)
	bad := 0
	for _, u := range uses {
		err := conn.PgConn().ExecParams(ctx, "EXPLAIN "+u.SQL, make([][]byte, u.Params), nil, nil, nil).Read().Err
		if err == nil {
			continue
		}
		err = replication.ServerError("explain a for_each query", err)
		var away *replication.UnavailableError
		if errors.As(err, &away) {
			return err
		}
		bad++
		c, err := x.refusedLookup(ctx, conn, u, err, st)
		if err != nil {
			return err
		}
		x.source.add(c)
	}
	if bad == 0 {
		x.source.ok("for_each", "role %s may run the %s", st.Survey.Server.Role, count(len(uses), "for_each query", "for_each queries"))
	}
	return nil
}

// refusedLookup finds out which of a query's tables it is that the role may not read.
func (x *examination) refusedLookup(ctx context.Context, conn *pgx.Conn, u mapping.LookupUse, cause error, st *provision.State) (Check, error) {
	role := replication.Identifier(st.Survey.Server.Role)
	c := Check{Code: "for_each", Severity: Widens, Subject: "table " + replication.Qualified(u.Schema, u.Table),
		Message: "a for_each query for its changes does not work, so they invalidate the whole family: " + cause.Error(), FixKind: File, Fix: "correct the query"}
	var config *replication.ConfigError
	if !errors.As(cause, &config) {
		return c, nil
	}
	names := visible(u.Tables)
	schemas, tables := make([]string, len(names)), make([]string, len(names))
	for i, n := range names {
		schemas[i], tables[i] = splitName(n)
	}
	// to_regclass fails for a schema that the role may not use, which may be what is
	// looked for; without a schema, it follows the role's search path.
	rows, err := conn.Query(ctx, `
		SELECT s.nspname::text, c.relname::text, has_schema_privilege(s.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT'), row_security_active(c.oid)
		FROM unnest($1::text[], $2::text[], $3::text[]) AS t(name, schema, rel)
		JOIN pg_catalog.pg_class c ON CASE WHEN t.schema = '' THEN c.oid = to_regclass(t.name) ELSE c.relname = t.rel::name END
		JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace AND t.schema IN ('', s.nspname)
		ORDER BY 1, 2`, names, schemas, tables)
	if err != nil {
		return c, replication.ServerError("look up the tables of a for_each query", err)
	}
	defer rows.Close()
	var fixes []string
	for rows.Next() {
		var schema, table string
		var usage, selects, hidden bool
		if err := rows.Scan(&schema, &table, &usage, &selects, &hidden); err != nil {
			return c, replication.ServerError("look up the tables of a for_each query", err)
		}
		if !usage {
			fixes = append(fixes, "GRANT USAGE ON SCHEMA "+replication.Identifier(schema)+" TO "+role+";")
		}
		if !selects {
			fixes = append(fixes, "GRANT SELECT ON "+replication.Qualified(schema, table)+" TO "+role+";")
		}
		if selects && hidden {
			fixes = append(fixes, "ALTER ROLE "+role+" BYPASSRLS;  -- row security hides rows of "+replication.Qualified(schema, table)+" from it, and with them keys")
		}
	}
	if err := rows.Err(); err != nil {
		return c, replication.ServerError("look up the tables of a for_each query", err)
	}
	c.FixKind, c.Fix = SQL, strings.Join(slices.Compact(fixes), "\n")
	if c.Fix == "" {
		c.Fix = "GRANT SELECT ON " + strings.Join(u.Tables, ", ") + " TO " + role + ";"
	}
	return c, nil
}

// visible is names as to_regclass takes them.
func visible(names []string) []string {
	if names == nil {
		return []string{}
	}
	return names
}

// splitName takes a name of a query apart; schema is empty where it has none.
func splitName(name string) (schema, table string) {
	var parts []string
	var part strings.Builder
	quoted := false
	for _, r := range name {
		switch {
		case r == '"':
			quoted = !quoted // a doubled one is not worth more here
		case r == '.' && !quoted:
			parts = append(parts, part.String())
			part.Reset()
		default:
			part.WriteRune(r)
		}
	}
	if len(parts) > 0 {
		schema = parts[len(parts)-1]
	}
	return schema, part.String()
}

// muchLooking is the share of a core from which on looking at the catalogs asks for something
// to be done about it.
const muchLooking = 0.05

func (x *examination) silentDDL(ctx context.Context, conn *pgx.Conn, st *provision.State) error {
	d := st.Survey.DDL
	fix := "cdc-invalidator plan --config " + x.File.Name + "   # shows the SQL; apply runs it, as a superuser"
	if d.Complete() {
		x.source.ok("event_trigger", "the event trigger announces DDL that the log is silent about")
		return nil
	}
	took, err := replication.MeasureLook(ctx, conn, x.File.Source.Publication.Name, x.Plan.Tables())
	if err != nil {
		return err
	}
	budget := x.Plan.Strictest()
	interval := replication.WideInterval(budget, took)
	share := took.Seconds() / interval.Seconds()
	cost := fmt.Sprintf("found by comparing all catalogs, up to %s later; that takes the source %s each time, %.1f %% of a core",
		interval.Round(time.Millisecond), took.Round(100*time.Microsecond), 100*share)
	c := Check{Code: "event_trigger", Severity: Notice, FixKind: Person, Fix: fix, Message: "no event trigger: DDL that the log is silent about is " + cost +
		". A partition or child of a mapped table that comes and goes between two of them leaves no trace, and what was cached of its rows stays until its TTL"}
	if !d.Absent() {
		c.Severity, c.Message = Warning, "the event trigger is incomplete, disabled or of another version: some DDL is only "+cost
	}
	switch {
	case budget > 0 && interval > budget/2:
		c.Severity = Warning
		c.Message += fmt.Sprintf("; the strictest budget, %s, cannot be kept so, and freshness says so", budget)
	case share >= muchLooking:
		c.Severity = Warning
	}
	x.source.add(c)
	return nil
}

// sourceClock compares the database's clock with ours.
func (x *examination) sourceClock(ctx context.Context, conn *pgx.Conn) error {
	var theirs time.Time
	var before time.Time
	var trip time.Duration
	for range 2 { // the first one warms up
		before = x.now()
		if err := conn.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&theirs); err != nil {
			return replication.ServerError("ask for the source's time", err)
		}
		trip = x.now().Sub(before)
	}
	x.skew("Postgres", theirs.Sub(before.Add(trip/2)), trip)
	return nil
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
