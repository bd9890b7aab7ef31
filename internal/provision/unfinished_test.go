package provision

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// A slot that another session is still creating is neither there nor to be created.
func TestASlotThatIsStillBeingCreated(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, "CREATE TABLE good (id int PRIMARY KEY)", "CREATE PUBLICATION pub FOR TABLE good")
	d := Desired{Slot: db.Name + "_slot", Publication: "pub"}
	older := db.Conn(t)
	run := func(conn *pgx.Conn, sql string) {
		t.Helper()
		if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatal(err)
		}
	}
	run(older, "BEGIN; SELECT pg_current_xact_id()")
	creator, conn := connect(t, db.URL), connect(t, db.URL)
	ended := make(chan error, 1)
	go func() {
		_, _, err := replication.EnsureSlot(t.Context(), creator, d.Slot, true)
		ended <- err
	}()
	waits := false
	for deadline := time.Now().Add(10 * time.Second); !waits; time.Sleep(10 * time.Millisecond) {
		if err := conn.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)", d.Slot).Scan(&waits); err != nil || time.Now().After(deadline) {
			t.Fatalf("the slot is not being created: %v", err)
		}
	}
	plan := planFor(t, conn, d)
	if len(plan.Blocked) != 1 || !strings.Contains(plan.Blocked[0].Problem, "still creating") || !strings.HasPrefix(plan.Blocked[0].Fix, "SELECT pg_cancel_backend(") {
		t.Errorf("%+v", plan)
	}
	run(older, "ROLLBACK")
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if plan := planFor(t, conn, d); !plan.Nothing() {
		t.Errorf("%q", signs(plan))
	}
}
