package replication

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// slotWorld is a server of its own with a transaction that every new slot waits for.
type slotWorld struct {
	t     *testing.T
	url   string
	watch *pgx.Conn
	older *pgx.Conn
}

func newSlotWorld(t *testing.T) *slotWorld {
	t.Helper()
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	db := servertest.NewDatabase(t, server, "slots")
	db.Exec(t, "CREATE PUBLICATION pub")
	w := &slotWorld{t: t, url: db.URL, watch: db.Conn(t), older: db.Conn(t)}
	w.hold()
	return w
}

func (w *slotWorld) exec(conn *pgx.Conn, sql string) {
	w.t.Helper()
	if _, err := conn.PgConn().Exec(w.t.Context(), sql).ReadAll(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *slotWorld) hold()    { w.t.Helper(); w.exec(w.older, "BEGIN; SELECT pg_current_xact_id()") }
func (w *slotWorld) release() { w.t.Helper(); w.exec(w.older, "ROLLBACK") }

// count is the number that a query gives.
func (w *slotWorld) count(sql string) (n int) {
	w.t.Helper()
	if err := w.watch.QueryRow(w.t.Context(), sql).Scan(&n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *slotWorld) until(what, sql string, want int) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); w.count(sql) != want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: %s is %d, want %d", what, sql, w.count(sql), want)
		}
	}
}

const (
	unfinishedSlots = "SELECT count(*) FROM pg_replication_slots WHERE active AND confirmed_flush_lsn IS NULL"
	allSlots        = "SELECT count(*) FROM pg_replication_slots"
	creators        = "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND (query LIKE '%pg_create_logical%' OR query LIKE 'CREATE_REPLICATION_SLOT%') AND state = 'active'"
)

// Whatever ends the creation of a slot ends it on the server as well. Else the backend
// goes on waiting, and leaves a slot that nobody reads and that keeps WAL.
func TestSlotCreationThatIsGivenUpLeavesNoSlot(t *testing.T) {
	t.Parallel()
	w := newSlotWorld(t)
	create := map[string]func(context.Context, *pgx.Conn) error{
		"EnsureSlot": func(ctx context.Context, conn *pgx.Conn) error {
			_, _, err := EnsureSlot(ctx, conn, "s", true)
			return err
		},
		"RecreateSlot": func(ctx context.Context, conn *pgx.Conn) error {
			_, err := RecreateSlot(ctx, conn, "s")
			return err
		},
		"OpenTemporaryStream": func(ctx context.Context, _ *pgx.Conn) error {
			s, err := OpenTemporaryStream(ctx, StreamOptions{URL: w.url, Slot: "s", Publication: "pub", Logger: controlLogger(t)})
			if err == nil {
				s.Close()
			}
			return err
		},
	}
	for name, do := range create {
		t.Run(name+" cancelled", func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			conn := controlConn(t, w.url)
			ended := make(chan error, 1)
			go func() { ended <- do(ctx, conn) }()
			w.until("it waits", unfinishedSlots, 1)
			began := time.Now()
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("%v", err)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("it took %s", took)
			}
			w.until("its slot", allSlots, 0)
			w.until("its backend", creators, 0)
			if !conn.IsClosed() {
				w.exec(conn, "SELECT 1") // no request to cancel is left under way
			}
		})
	}
	t.Run("killed", func(t *testing.T) {
		conn := controlConn(t, w.url)
		ended := make(chan error, 1)
		go func() { ended <- create["EnsureSlot"](t.Context(), conn) }()
		w.until("it waits", unfinishedSlots, 1)
		conn.PgConn().Conn().Close() // what the server sees of a kill -9
		if err := <-ended; err == nil {
			t.Error("no error")
		}
		w.until("its backend", creators, 0) // while the older transaction is still open
		w.until("its slot", allSlots, 0)
	})
	t.Run("temporary, killed", func(t *testing.T) {
		conn, _, err := dialReplication(t.Context(), w.url)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := startTemporary(t.Context(), conn, "s", "pub")
			ended <- err
		}()
		w.until("it waits", unfinishedSlots, 1)
		conn.Conn().Close()
		<-ended
		w.until("its backend", creators, 0)
		w.until("its slot", allSlots, 0)
	})
	// It may have been finished when it is given up: then it is dropped.
	t.Run("just finished", func(t *testing.T) {
		for range 15 {
			ctx, cancel := context.WithCancel(t.Context())
			conn := controlConn(t, w.url)
			ended := make(chan error, 1)
			go func() { ended <- create["EnsureSlot"](ctx, conn) }()
			w.until("it waits", unfinishedSlots, 1)
			go cancel()
			w.release()
			err := <-ended
			if err == nil {
				w.exec(w.watch, dropSlotSQL("s"))
			} else if n := w.count(allSlots); n != 0 || !errors.Is(err, context.Canceled) {
				t.Fatalf("%d slots: %v", n, err)
			}
			CloseControl(t.Context(), conn)
			w.hold()
		}
	})
}

// Whoever finds a slot that another session is still creating, is told so.
func TestUnfinishedSlotIsNamed(t *testing.T) {
	t.Parallel()
	w := newSlotWorld(t)
	other := controlConn(t, w.url)
	ended := make(chan error, 1)
	go func() {
		_, _, err := EnsureSlot(t.Context(), other, "s", true)
		ended <- err
	}()
	w.until("it waits", unfinishedSlots, 1)
	conn := controlConn(t, w.url)
	_, _, err := EnsureSlot(t.Context(), conn, "s", true)
	var away *UnavailableError
	if !errors.As(err, &away) || !errors.Is(err, ErrSlotUnfinished) || !strings.Contains(err.Error(), "SELECT pg_cancel_backend(") {
		t.Errorf("%v", err)
	}
	slot, _, err := ReadSlot(t.Context(), conn, "s")
	if err != nil || !slot.Unfinished() {
		t.Fatalf("%v %+v", err, slot)
	}
	// A tap's has a name of its own, which nobody can ask for.
	name := TemporarySlotName("tap")
	tap := make(chan error, 1)
	go func() {
		_, err := servertest.Connect(t, w.url).Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput', true)", name)
		tap <- err
	}()
	w.until("it waits, too", unfinishedSlots, 2)
	if taps, err := UnfinishedTaps(t.Context(), conn); err != nil || len(taps) != 1 || taps[0].Name != name {
		t.Errorf("the tap's: %v %+v", err, taps)
	} else {
		w.exec(w.watch, taps[0].CancelCreationSQL())
		if err := <-tap; err == nil {
			t.Error("the statement did not end the tap's")
		}
	}
	w.exec(w.watch, slot.CancelCreationSQL())
	if err := <-ended; err == nil {
		t.Error("the statement did not end it")
	}
	w.until("its slot", allSlots, 0)
}
