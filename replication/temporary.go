package replication

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// OpenTemporaryStream streams from now on, through a slot that is made for this
// connection and gone with it: the slot of a daemon is not touched. o.Slot names
// the new one (TemporarySlotName). The publication must exist already.
//
// It waits until every transaction that was open has ended, as each new logical
// slot does; WaitingFor says which those are. Whoever reads the stream must
// confirm as it goes, or the server keeps its log for as long as the connection lives.
func OpenTemporaryStream(ctx context.Context, o StreamOptions) (*Stream, error) {
	o.begin = startTemporary
	s, err := OpenStream(ctx, o)
	var config *ConfigError
	var away *UnavailableError
	if errors.As(err, &config) || errors.As(err, &away) {
		return s, err // says itself what it asks for
	}
	return s, serverError("open a temporary slot", err, "")
}

// TemporarySlotName is a name that no other slot has.
func TemporarySlotName(purpose string) string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails: the runtime would sooner end the process
	return temporaryPrefix + purpose + "_" + hex.EncodeToString(b[:])
}

const temporaryPrefix = "cdc_invalidator_"

// UnfinishedTaps are the slots with a TemporarySlotName that are still being created, in the
// database of the connection.
func UnfinishedTaps(ctx context.Context, conn *pgx.Conn) ([]Slot, error) {
	const op = "look for slots of a tap"
	rows, err := conn.Query(ctx, `
		SELECT slot_name::text, active_pid FROM pg_replication_slots
		WHERE starts_with(slot_name, $1) AND temporary AND slot_type = 'logical' AND database = current_database() AND active AND confirmed_flush_lsn IS NULL
		ORDER BY 1`, temporaryPrefix)
	if err != nil {
		return nil, serverError(op, err, "")
	}
	slots, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (s Slot, err error) {
		return s, row.Scan(&s.Name, &s.ActivePID)
	})
	return slots, serverError(op, err, "")
}

// startTemporary is startReplication of a slot that it makes first.
func startTemporary(ctx context.Context, conn *pgconn.PgConn, slot, publication string) (net.Conn, error) {
	// A walsender of a database takes SQL too. The name tells this one from a
	// daemon's in pg_stat_replication.
	if _, err := conn.Exec(ctx, "SET application_name = "+quoteLiteral(tapName)).ReadAll(); err != nil {
		return nil, temporarySlotError(slot, err)
	}
	if err := watchClient(ctx, conn); err != nil {
		return nil, temporarySlotError(slot, err)
	}
	err := cancelOnServer(ctx, conn, func(ctx context.Context) error {
		// NOEXPORT_SNAPSHOT: an exported snapshot would stay open and hold up vacuum.
		_, err := conn.Exec(ctx, "CREATE_REPLICATION_SLOT "+quoteIdentifier(slot)+" TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT").ReadAll()
		return err
	})
	if ctx.Err() != nil {
		return nil, fmt.Errorf("create temporary slot %s: %w", slot, context.Cause(ctx)) // it goes with the connection
	}
	if err != nil {
		return nil, temporarySlotError(slot, err)
	}
	return startReplication(ctx, conn, slot, publication)
}

func temporarySlotError(slot string, err error) error {
	op := "create temporary slot " + slot
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "53400" { // configuration_limit_exceeded
		return slotsTaken(op, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

// WaitingFor names the oldest open transactions, for which a new slot has to wait,
// by pid or global id only; "" when there are none or they cannot be asked for.
func WaitingFor(ctx context.Context, conn *pgx.Conn) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return openTransactions(ctx, conn)
}

// StreamError says what an error of a Stream asks for: an UnavailableError when
// opening another one is enough.
func StreamError(err error) error { return serverError("read the log", err, "") }

// CheckTap looks at what a stream of the publication will show of the tables,
// without changing anything. The error is a ConfigError where nothing can be shown.
func CheckTap(ctx context.Context, conn *pgx.Conn, o SetupOptions) (Server, []Finding, error) {
	server, err := ReadServer(ctx, conn)
	if err != nil {
		return server, nil, err
	}
	if err := server.Check(); err != nil {
		return server, nil, err
	}
	_, found, err := ReadPublication(ctx, conn, o.Publication)
	if err != nil {
		return server, nil, err
	}
	if !found {
		return server, nil, &ConfigError{Op: "look up publication " + o.Publication, Problem: "nothing can be shown without it", Err: ErrPublicationMissing,
			Fix: createPublicationSQL(o.Publication, o.Tables) + "\nor start the daemon once with source.publication.create_if_not_exists: true"}
	}
	findings, err := checkTables(ctx, conn, o.Publication, o.Tables, o.Tables)
	return server, findings, err
}

// StatusInterval is how often the server should hear from a client: often enough for
// its own view of the slot to be current, and well within the silence that it tolerates.
func StatusInterval(walSenderTimeout time.Duration) time.Duration {
	if walSenderTimeout <= 0 {
		return time.Second
	}
	return min(time.Second, walSenderTimeout/4)
}

// Bounds of Silence. The server's own subscribers give it 60 s (wal_receiver_timeout).
const (
	minSilence = 10 * time.Second
	maxSilence = 60 * time.Second
)

// Silence is for how long a server that is asked may say nothing: as long as it waits for us.
// While it is busy with a transaction of which nothing is sent it does not answer, but says
// something by itself after half of that time.
func Silence(walSenderTimeout time.Duration) time.Duration {
	if walSenderTimeout <= 0 {
		return maxSilence
	}
	return min(max(walSenderTimeout, minSilence), maxSilence)
}
