package replication

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// RefusesSessions says that the server takes no ordinary connections: it is
// shutting down or has not come up yet. Whoever streams from it must leave: a
// walsender keeps a fast shutdown waiting until what it has sent is confirmed,
// and what can no longer be seen to be visible is never confirmed.
func RefusesSessions(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "57P03" // cannot_connect_now
}

// LogEnd is where the source's log ends now.
func LogEnd(ctx context.Context, conn *pgx.Conn) (lsn.LSN, error) {
	const op = "ask for the end of the log"
	var text string
	if err := conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&text); err != nil {
		return 0, serverError(op, err, "GRANT EXECUTE ON FUNCTION pg_current_wal_insert_lsn() TO <the role>;")
	}
	return lsn.Parse(text)
}

// FlushedEnd is the end of the log that a slot can be moved to.
func FlushedEnd(ctx context.Context, conn *pgx.Conn) (lsn.LSN, error) {
	const op = "ask for the end of the flushed log"
	var text string
	if err := conn.QueryRow(ctx, `SELECT pg_current_wal_flush_lsn()::text`).Scan(&text); err != nil {
		return 0, serverError(op, err, "GRANT EXECUTE ON FUNCTION pg_current_wal_flush_lsn() TO <the role>;")
	}
	return lsn.Parse(text)
}
