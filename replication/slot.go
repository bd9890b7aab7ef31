package replication

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// Slot is a replication slot as the catalog shows it.
type Slot struct {
	Name, Plugin, Database string
	Logical                bool
	Temporary              bool
	TwoPhase               bool
	Active                 bool
	ActivePID              int
	RestartLSN             lsn.LSN // the oldest WAL that it retains
	ConfirmedLSN           lsn.LSN // a transaction is sent again iff its commit LSN is at or above it
	WALStatus              string  // reserved, extended, unreserved, lost
	InvalidationReason     string  // Postgres 17 and later; empty while the slot is good
	RetainedBytes          int64   // from RestartLSN to the end of WAL
	SafeWALSize            int64   // bytes until it may be lost; -1 when nothing limits it
}

// Lost says that the slot is of no use any more: WAL that it needs is gone, or
// the server has invalidated it.
func (s Slot) Lost() bool { return s.WALStatus == "lost" || s.InvalidationReason != "" }

// ReadSlot looks a slot up. found is false when there is none of that name.
func ReadSlot(ctx context.Context, conn *pgx.Conn, name string) (slot Slot, found bool, err error) {
	var restart, confirmed string
	// invalidation_reason came with 17, conflicting with 16: asked through JSON,
	// a column that is not there is null. text positions go through the project's
	// own strict parser.
	err = conn.QueryRow(ctx, `
		SELECT slot_name::text, coalesce(plugin::text, ''), coalesce(database::text, ''), slot_type = 'logical',
		       temporary, coalesce(two_phase, false), active, coalesce(active_pid, 0),
		       coalesce(restart_lsn, '0/0')::text, coalesce(confirmed_flush_lsn, '0/0')::text, coalesce(wal_status, ''),
		       coalesce(to_jsonb(s) ->> 'invalidation_reason',
		                CASE WHEN to_jsonb(s) ->> 'conflicting' = 'true' THEN 'conflict with recovery' END, ''),
		       CASE WHEN restart_lsn IS NULL OR pg_is_in_recovery() THEN 0 ELSE (pg_current_wal_lsn() - restart_lsn)::bigint END,
		       coalesce(safe_wal_size, -1)
		FROM pg_replication_slots s WHERE slot_name = $1`, name).
		Scan(&slot.Name, &slot.Plugin, &slot.Database, &slot.Logical, &slot.Temporary, &slot.TwoPhase,
			&slot.Active, &slot.ActivePID, &restart, &confirmed, &slot.WALStatus, &slot.InvalidationReason,
			&slot.RetainedBytes, &slot.SafeWALSize)
	if errors.Is(err, pgx.ErrNoRows) {
		return Slot{}, false, nil
	}
	if err != nil {
		return Slot{}, false, serverError("look up slot "+name, err, "")
	}
	if slot.RestartLSN, err = lsn.Parse(restart); err != nil {
		return Slot{}, false, fmt.Errorf("look up slot %s: restart_lsn: %w", name, err)
	}
	if slot.ConfirmedLSN, err = lsn.Parse(confirmed); err != nil {
		return Slot{}, false, fmt.Errorf("look up slot %s: confirmed_flush_lsn: %w", name, err)
	}
	return slot, true, nil
}

// slotUnused says that nothing has been read from the slot, as far as the server's statistics
// reach: a crash of it empties them.
func slotUnused(ctx context.Context, conn *pgx.Conn, name string) (unused bool, err error) {
	err = conn.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM pg_stat_replication_slots WHERE slot_name = $1 AND total_txns > 0)`, name).Scan(&unused)
	return unused, serverError("look up what was read from slot "+name, err, "")
}

// EnsureSlot returns the slot, made now if there was none and create is set. The
// publication must exist already: a slot reads each change with the catalog as
// it was then, and fails, or on 18 skips, where that has no such publication.
//
// It refuses a slot that cannot serve (ConfigError), and one that is lost
// (ErrSlotLost), which RecreateSlot replaces. A slot in use is returned as it is.
func EnsureSlot(ctx context.Context, conn *pgx.Conn, name string, create bool) (slot Slot, created bool, err error) {
	server, err := ReadServer(ctx, conn)
	if err != nil {
		return Slot{}, false, err
	}
	if err := server.Check(); err != nil {
		return Slot{}, false, err
	}
	slot, found, err := ReadSlot(ctx, conn, name)
	if err != nil {
		return Slot{}, false, err
	}
	if !found {
		if !create {
			return Slot{}, false, &ConfigError{Op: "look up slot " + name, Problem: "refused", Err: ErrSlotMissing,
				Fix: createSlotSQL(name) + "\nor set source.slot.create_if_not_exists: true"}
		}
		slot, err = createSlot(ctx, conn, name, server.Role)
		return slot, err == nil, err
	}
	return slot, false, slot.check(server.Database)
}

func createSlotSQL(name string) string {
	return "SELECT pg_create_logical_replication_slot(" + quoteLiteral(name) + ", 'pgoutput');"
}

func dropSlotSQL(name string) string {
	return "SELECT pg_drop_replication_slot(" + quoteLiteral(name) + ");"
}

// check decides from what the catalog says, since the walsender's errors share a
// SQLSTATE and their texts differ by version.
func (s Slot) check(database string) error {
	op := "check slot " + s.Name
	other := "give source.slot.name another name, or drop this slot if nothing else uses it:\n" + dropSlotSQL(s.Name)
	switch {
	case !s.Logical:
		return &ConfigError{Op: op, Problem: "it is a physical slot", Fix: other}
	case s.Unfinished():
		return s.unfinishedError() // it is known what becomes of it only when it is there
	case s.Plugin != "pgoutput":
		return &ConfigError{Op: op, Problem: "its output plugin is " + strconv.Quote(s.Plugin) + ", not pgoutput", Fix: other}
	case s.Database != database:
		return s.otherDatabase(database)
	case s.Temporary:
		return &ConfigError{Op: op, Problem: "it is temporary and goes with the session that made it", Fix: other}
	case s.TwoPhase:
		return &ConfigError{Op: op, Problem: "it was made with two_phase, so prepared transactions would be sent before they are committed", Fix: other}
	case s.Lost():
		reason := s.InvalidationReason
		if reason == "" {
			reason = "wal_status is " + s.WALStatus
		}
		return fmt.Errorf("%s: %w (%s); everything since %s must count as changed. fix: %s and let it be created again; raise max_slot_wal_keep_size if the daemon was only away for a while",
			op, ErrSlotLost, reason, s.ConfirmedLSN, dropSlotSQL(s.Name))
	}
	return nil
}

func (s Slot) otherDatabase(database string) error {
	return &ConfigError{Op: "check slot " + s.Name, Problem: fmt.Sprintf("it belongs to database %q, and source.url names %q", s.Database, database),
		Fix: "name that database in source.url, or give source.slot.name another name: slot names are shared by all databases of a server"}
}

// CheckSlotDatabase refuses a logical slot of another database than the connection's. One that
// is not there passes, and found says so.
func CheckSlotDatabase(ctx context.Context, conn *pgx.Conn, name string) (found bool, err error) {
	slot, found, err := ReadSlot(ctx, conn, name)
	if err != nil || !found || !slot.Logical {
		return found, err
	}
	var database string
	if err := conn.QueryRow(ctx, "SELECT current_database()::text").Scan(&database); err != nil {
		return true, serverError("ask for the database", err, "")
	}
	if slot.Database != database {
		return true, slot.otherDatabase(database)
	}
	return true, nil
}

// allowLongWait raises the bounds of control connections to a minute, once: with
// the usual ones, a source that is never without a transaction of some seconds
// would never get its slot. To wait for a transaction is to wait for a lock, so both bounds
// count. One that the caller has set stays.
func allowLongWait(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `SELECT set_config(name, '1min', false)
		FROM (VALUES ('statement_timeout', $1), ('lock_timeout', $2)) AS usual (name, bound)
		WHERE current_setting(name) = bound`, controlStatementTimeout, controlLockTimeout)
	return err
}

func createSlotError(ctx context.Context, conn *pgx.Conn, op string, err error, role string) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return serverError(op, err, "")
	}
	switch pg.Code {
	case "57014", "55P03": // query_canceled, lock_not_available: our statement_timeout or lock_timeout
		hint := "the server waits for open transactions"
		if names := openTransactions(ctx, conn); names != "" {
			hint += ": " + names
		}
		return &UnavailableError{Op: op, Err: fmt.Errorf("%w: %w", ErrBlockedByTransactions, err), Hint: hint}
	case "53400": // configuration_limit_exceeded
		return slotsTaken(op, err)
	case "42710": // duplicate_object: another daemon was quicker
		return &UnavailableError{Op: op, Err: err, Hint: "another process has just made it"}
	}
	return serverError(op, err, "ALTER ROLE "+quoteIdentifier(role)+" REPLICATION;\n"+
		"(on a managed service grant its role instead, such as rds_replication)")
}

func slotsTaken(op string, err error) error {
	return &ConfigError{Op: op, Problem: "all replication slots of the server are taken", Err: err,
		Fix: "drop one that nothing needs (SELECT slot_name, active, wal_status FROM pg_replication_slots;)\n" +
			"or: ALTER SYSTEM SET max_replication_slots = <more>;  -- and restart the server"}
}

// openTransactions lists the oldest few, by pid or global id only: their
// statements may hold values.
func openTransactions(ctx context.Context, conn *pgx.Conn) string {
	rows, err := conn.Query(ctx, `
		(SELECT 'prepared transaction ' || quote_literal(gid) || ' in database ' || database || ' since ' || date_trunc('second', prepared)
		 FROM pg_prepared_xacts ORDER BY prepared LIMIT 3)
		UNION ALL
		(SELECT 'pid ' || pid || coalesce(' since ' || date_trunc('second', xact_start), '')
		 FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 3)`)
	if err != nil {
		return ""
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "" // it would only have been a hint
	}
	return strings.Join(names, ", ")
}

// RecreateSlot replaces a slot that is lost, or makes one where there is none.
// It never drops a slot that could still be read. What came before the new
// slot's position must count as changed.
func RecreateSlot(ctx context.Context, conn *pgx.Conn, name string) (Slot, error) {
	return replaceSlot(ctx, conn, name, false)
}

// ReplaceSlot is RecreateSlot for a slot that can be read, but of which the caller
// knows that it does not send everything.
func ReplaceSlot(ctx context.Context, conn *pgx.Conn, name string) (Slot, error) {
	return replaceSlot(ctx, conn, name, true)
}

func replaceSlot(ctx context.Context, conn *pgx.Conn, name string, readable bool) (Slot, error) {
	server, err := ReadServer(ctx, conn)
	if err != nil {
		return Slot{}, err
	}
	if err := server.Check(); err != nil {
		return Slot{}, err
	}
	slot, found, err := ReadSlot(ctx, conn, name)
	if err != nil {
		return Slot{}, err
	}
	if found {
		switch err := slot.check(server.Database); {
		case errors.Is(err, ErrSlotLost):
		case err != nil:
			return Slot{}, err
		case !readable:
			return Slot{}, fmt.Errorf("recreate slot %s: it is not lost, and is left alone", name)
		}
		if _, err := conn.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, name); err != nil {
			var pg *pgconn.PgError
			if errors.As(err, &pg) && pg.Code == "55006" {
				return Slot{}, fmt.Errorf("drop slot %s: %w: %w", name, ErrSlotInUse, err)
			}
			return Slot{}, serverError("drop slot "+name, err, "ALTER ROLE "+quoteIdentifier(server.Role)+" REPLICATION;")
		}
	}
	return createSlot(ctx, conn, name, server.Role)
}
