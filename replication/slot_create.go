package replication

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrSlotUnfinished means that a backend is still creating the slot, and waits for
// transactions that are older than it.
var ErrSlotUnfinished = errors.New("the slot is still being created")

// Bounds of giving up the creation of a slot.
const (
	// cancelEvery is the pause between two requests to cancel. One that arrives before the
	// statement does is lost, so it is repeated until the statement has ended.
	cancelEvery = 100 * time.Millisecond
	// cancelTimeout is after how long the connection is dropped instead, which the server
	// notices by itself (watchClient).
	cancelTimeout = 5 * time.Second
)

// createSlot blocks until every transaction that was open at its start has
// ended, prepared ones included: until then the server cannot know the catalog
// from which to decode.
//
// A backend whose client has gone goes on waiting, and leaves a slot that nobody reads
// and that keeps WAL until the disk is full. So when ctx ends, the statement is cancelled
// on the server and its answer awaited, and a slot that was finished by then is dropped:
// nothing was promised on it.
func createSlot(ctx context.Context, conn *pgx.Conn, name, role string) (Slot, error) {
	op := "create slot " + name
	if err := allowLongWait(ctx, conn); err != nil {
		return Slot{}, serverError(op, err, "")
	}
	if err := watchClient(ctx, conn.PgConn()); err != nil {
		return Slot{}, serverError(op, err, "")
	}
	err := cancelOnServer(ctx, conn.PgConn(), func(ctx context.Context) error {
		_, err := conn.Exec(ctx, `SELECT pg_create_logical_replication_slot($1, 'pgoutput', false, false)`, name)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return Slot{}, fmt.Errorf("%s: given up: %w", op, errors.Join(context.Cause(ctx), dropUnused(ctx, conn, name, err)))
	case err != nil:
		return Slot{}, createSlotError(ctx, conn, op, err, role)
	}
	slot, found, err := ReadSlot(ctx, conn, name)
	if err != nil {
		return Slot{}, err
	}
	if !found {
		return Slot{}, &UnavailableError{Op: op, Err: fmt.Errorf("it was gone at once: %w", ErrSlotMissing), Hint: "another session drops it"}
	}
	return slot, nil
}

// dropUnused drops a slot that was finished although its creation was given up. Being
// cancelled is no proof that it was not: the request may come after the slot was made
// and before the statement ends. The name was free when the statement began, so the slot
// is ours; one that somebody reads is not dropped in any case.
func dropUnused(ctx context.Context, conn *pgx.Conn, name string, created error) error {
	var pg *pgconn.PgError
	if created != nil && (!errors.As(created, &pg) || pg.Code != "57014") { // query_canceled
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	_, err := conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active`, name)
	if err != nil {
		return fmt.Errorf("it may have been created all the same, keeps WAL then, and could not be dropped: %w\n  fix: %s", err, dropSlotSQL(name))
	}
	return nil
}

// cancelOnServer runs a statement that must not outlive its caller. run gets a context
// that ends only when the server does not answer to being cancelled.
func cancelOnServer(ctx context.Context, conn *pgconn.PgConn, run func(context.Context) error) error {
	detached, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	ended := make(chan struct{})
	cancelled := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(cancelled)
		bounded, done := context.WithTimeout(detached, cancelTimeout)
		defer done()
		tick := time.NewTicker(cancelEvery)
		defer tick.Stop()
		for {
			_ = conn.CancelRequest(bounded) // asked again, and given up below
			select {
			case <-ended:
				return
			case <-bounded.Done():
				abandon()
				return
			case <-tick.C:
			}
		}
	})
	err := run(detached)
	close(ended)
	if !stop() {
		<-cancelled // the connection is the caller's again, and no request under way may hit its next statement
	}
	return err
}

// watchClient has the server notice within a second when this client is gone while a
// statement waits, and end it. Nothing else does: a client that was killed cannot cancel.
// Platforms where the server cannot notice refuse the setting; there the statement's time
// limit is what ends it.
func watchClient(ctx context.Context, conn *pgconn.PgConn) error {
	_, err := conn.Exec(ctx, "SET client_connection_check_interval = '1s'").ReadAll()
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "22023" { // invalid_parameter_value
		return nil
	}
	return err
}

// Unfinished says that a backend is still creating the slot. It may belong to a daemon,
// or be what is left of one that was killed.
func (s Slot) Unfinished() bool { return s.Logical && s.Active && s.ConfirmedLSN == 0 }

// CancelCreationSQL gives the creation of an unfinished slot up, and with it the slot.
func (s Slot) CancelCreationSQL() string {
	return "SELECT pg_cancel_backend(" + strconv.Itoa(s.ActivePID) + ");"
}

func (s Slot) unfinishedError() error {
	return &UnavailableError{Op: "check slot " + s.Name, Err: ErrSlotUnfinished,
		Hint: fmt.Sprintf("pid %d creates it and waits for transactions that are open; to give it up: %s", s.ActivePID, s.CancelCreationSQL())}
}
