package replication

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// advanceTimeout bounds moving a slot: the server reads all of the log that the slot
// still needs, without its output plugin.
const advanceTimeout = "4min"

// AdvanceSlot moves a slot that nobody reads past a transaction that cannot be read: to
// is just above its commit, so everything that commits later is still sent. One that is
// there already stays.
func AdvanceSlot(ctx context.Context, conn *pgx.Conn, name string, to lsn.LSN) error {
	op := fmt.Sprintf("advance slot %s to %s", name, to)
	server, err := ReadServer(ctx, conn)
	if err != nil {
		return err
	}
	if err := server.Check(); err != nil {
		return err
	}
	slot, found, err := ReadSlot(ctx, conn, name)
	switch {
	case err != nil:
		return err
	case !found:
		return fmt.Errorf("%s: %w", op, ErrSlotMissing)
	}
	if err := slot.check(server.Database); err != nil {
		return err
	}
	if slot.ConfirmedLSN >= to {
		return nil
	}
	if _, err := conn.Exec(ctx, "SELECT set_config('statement_timeout', $1, false)", advanceTimeout); err != nil {
		return serverError(op, err, "")
	}
	if _, err := conn.Exec(ctx, "SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)", name, to.String()); err != nil {
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "55006" {
			return fmt.Errorf("%s: %w: %w", op, ErrSlotInUse, err)
		}
		return serverError(op, err, "ALTER ROLE "+quoteIdentifier(server.Role)+" REPLICATION;")
	}
	if slot, _, err = ReadSlot(ctx, conn, name); err == nil && slot.ConfirmedLSN < to {
		err = &UnavailableError{Op: op, Err: fmt.Errorf("it is at %s", slot.ConfirmedLSN)}
	}
	return err
}
