package replication

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// NudgePrefix is the prefix of the logical message that somebody commits who waits for
// everything before it.
const NudgePrefix = "cdc_invalidator.wait"

// Nudge commits a small logical message and returns its position. Whatever was visible
// before the call lies below, and since the message comes through the slot, a daemon that
// follows gets past it, however idle the source is. A daemon that has received it looks at
// the catalogs again, for what the log is silent about.
func Nudge(ctx context.Context, conn *pgx.Conn) (lsn.LSN, error) {
	const op = "mark the present end of the source's log"
	tx, err := conn.Begin(ctx)
	if err != nil {
		return 0, serverError(op, err, "")
	}
	defer func() { _ = tx.Rollback(ctx) }() // after a commit it does nothing
	// The order in the log is what counts, for which our own flush is enough: it must not
	// hang on a standby that is missing.
	if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = local`); err != nil {
		return 0, serverError(op, err, "")
	}
	var text string
	if err := tx.QueryRow(ctx, `SELECT pg_logical_emit_message(true, $1, '')::text`, NudgePrefix).Scan(&text); err != nil {
		_ = tx.Rollback(ctx) // a failed transaction answers no further question
		return 0, messageError(ctx, conn, op, err)
	}
	if err := tx.Commit(ctx); err != nil {
		return 0, serverError(op, err, "")
	}
	return lsn.Parse(text)
}

// NextXID gives out a transaction id, which is higher than that of every transaction that has
// one by now. A snapshot does not say that: its xmax is one above the highest that has ended, and
// those that were begun after that one, and run, are at or above it and in no list.
func NextXID(ctx context.Context, conn *pgx.Conn) (uint64, error) {
	const op = "ask which transactions have begun"
	var text string
	if err := conn.QueryRow(ctx, `SELECT pg_catalog.pg_current_xact_id()::text`).Scan(&text); err != nil {
		return 0, serverError(op, err, "GRANT EXECUTE ON FUNCTION pg_current_xact_id() TO <the role>;")
	}
	xid, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", op, err)
	}
	return xid, nil
}
