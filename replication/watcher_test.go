package replication

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// watcherUnderTest runs a watcher that looks only when it is told to, except for
// looks that follow an error.
type watcherUnderTest struct {
	*CatalogWatcher
	tables  []mapping.TableUse
	changes chan []CatalogChange
}

func startWatcher(t *testing.T, o WatcherOptions) *watcherUnderTest {
	t.Helper()
	w := &watcherUnderTest{tables: o.Tables, changes: make(chan []CatalogChange, 16)}
	if o.Interval == 0 {
		o.Interval = time.Hour
	}
	if o.OnChange == nil {
		o.OnChange = func(_ context.Context, c []CatalogChange) error { w.changes <- c; return nil }
	}
	o.Logger = controlLogger(t)
	w.CatalogWatcher = NewCatalogWatcher(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	w.lookNow(t)
	return w
}

// lookNow returns after a look that began after the call.
func (w *watcherUnderTest) lookNow(t *testing.T) {
	t.Helper()
	select {
	case <-w.Watch(w.tables):
	case <-time.After(20 * time.Second):
		t.Fatal("no look at the catalogs")
	}
}

// expect looks, and wants exactly this change: its kinds sorted and joined.
func (w *watcherUnderTest) expect(t *testing.T, want ...string) []CatalogChange {
	t.Helper()
	w.lookNow(t)
	var got []string
	var changes []CatalogChange
	select {
	case changes = <-w.changes:
		for _, c := range changes {
			kinds := make([]string, len(c.Kinds))
			for i, k := range c.Kinds {
				kinds[i] = string(k)
			}
			slices.Sort(kinds)
			got = append(got, c.Table+": "+strings.Join(kinds, " "))
		}
	default:
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("reported %q, want %q", got, want)
	}
	return changes
}

func connectTo(url string) func(context.Context) (*pgx.Conn, error) {
	return func(ctx context.Context) (*pgx.Conn, error) { return ConnectControl(ctx, url, "test watcher") }
}

const watchedSchema = `
	CREATE TABLE users (id int PRIMARY KEY, email text); ALTER TABLE users REPLICA IDENTITY FULL; INSERT INTO users VALUES (1, 'a');
	CREATE TABLE items (id int PRIMARY KEY);
	CREATE TABLE parts (id int, t int, PRIMARY KEY (id, t)) PARTITION BY LIST (t);
	CREATE TABLE parts1 PARTITION OF parts FOR VALUES IN (1) PARTITION BY LIST (id);
	CREATE TABLE parts11 PARTITION OF parts1 FOR VALUES IN (1); CREATE TABLE parts2 PARTITION OF parts FOR VALUES IN (2);
	CREATE PUBLICATION pub FOR TABLE users, items, parts WITH (publish_via_partition_root);`

func watchedTables() []mapping.TableUse {
	return []mapping.TableUse{use("users", "id", "email"), use("items", "id"), use("parts", "id")}
}

func TestWatcherSeesSilentDDL(t *testing.T) {
	for _, tc := range []struct {
		name, sql string
		want      []string
	}{
		{"rewrite", "ALTER TABLE users ALTER COLUMN email TYPE text USING upper(email)", []string{"users: columns storage"}},
		{"type change", "ALTER TABLE users ALTER COLUMN id TYPE bigint", []string{"users: columns storage"}},
		{"typmod change", "ALTER TABLE users ALTER COLUMN email TYPE varchar(10)", []string{"users: columns storage"}},
		{"column dropped", "ALTER TABLE users DROP COLUMN email", []string{"users: columns"}},
		{"column added", "ALTER TABLE users ADD COLUMN x int", []string{"users: columns"}},
		{"column added and dropped", "ALTER TABLE users ADD COLUMN x int; ALTER TABLE users DROP COLUMN x", []string{"users: columns"}},
		{"column renamed and back", "ALTER TABLE users RENAME email TO e; ALTER TABLE users RENAME e TO email", []string{"users: columns"}},
		{"dropped", "DROP TABLE items", []string{"items: vanished"}},
		{"dropped and created", "DROP TABLE items; CREATE TABLE items (id int PRIMARY KEY); ALTER PUBLICATION pub ADD TABLE items", []string{"items: replaced"}},
		{"renamed away", "ALTER TABLE items RENAME TO old_items", []string{"items: vanished"}},
		{"another in its place", "ALTER TABLE items RENAME TO old_items; CREATE TABLE items (id int PRIMARY KEY)", []string{"items: replaced"}},
		{"schema renamed", "ALTER SCHEMA public RENAME TO gone", []string{"items: vanished", "parts: vanished", "users: vanished"}},
		{"partition attached", "CREATE TABLE parts3 PARTITION OF parts FOR VALUES IN (3)", []string{"parts: identity partitions storage"}},
		{"sub-partition attached", "CREATE TABLE parts12 PARTITION OF parts1 FOR VALUES IN (2)", []string{"parts: identity partitions storage"}},
		{"partition detached", "ALTER TABLE parts DETACH PARTITION parts2", []string{"parts: identity partitions storage"}},
		{"partition detached and attached", "ALTER TABLE parts DETACH PARTITION parts2; ALTER TABLE parts ATTACH PARTITION parts2 FOR VALUES IN (2)", []string{"parts: identity partitions"}},
		{"partition dropped", "DROP TABLE parts11", []string{"parts: identity partitions storage"}},
		{"partition truncated", "TRUNCATE parts11", []string{"parts: identity storage"}},
		{"partition's identity", "ALTER TABLE parts2 REPLICA IDENTITY FULL", []string{"parts: identity"}},
		{"identity", "ALTER TABLE users REPLICA IDENTITY DEFAULT", []string{"users: identity"}},
		{"primary key made anew", "ALTER TABLE items DROP CONSTRAINT items_pkey; ALTER TABLE items ADD PRIMARY KEY (id)", []string{"items: identity"}},
		{"unlogged", "ALTER TABLE items DROP CONSTRAINT items_pkey; ALTER PUBLICATION pub DROP TABLE items; ALTER TABLE items SET UNLOGGED", []string{"items: identity publication storage"}},
		{"unpublished", "ALTER PUBLICATION pub DROP TABLE items", []string{"items: publication"}},
		{"unpublished for a moment", "ALTER PUBLICATION pub DROP TABLE items; ALTER PUBLICATION pub ADD TABLE items", []string{"items: publication"}},
		{"filtered", "ALTER PUBLICATION pub SET TABLE users, items WHERE (id > 1), parts", []string{"items: publication"}},
		{"actions for a moment", "ALTER PUBLICATION pub SET (publish = 'insert'); ALTER PUBLICATION pub SET (publish = 'insert, update, delete, truncate')",
			[]string{"items: publication", "parts: publication", "users: publication"}},
		{"publication made anew", "DROP PUBLICATION pub; CREATE PUBLICATION pub FOR TABLE users, items, parts WITH (publish_via_partition_root)",
			[]string{"items: publication", "parts: publication", "users: publication"}},
		{"publication renamed", "ALTER PUBLICATION pub RENAME TO bup", []string{"items: publication", "parts: publication", "users: publication"}},

		{"rows", "INSERT INTO users VALUES (2, 'b'); UPDATE users SET email = 'c'; DELETE FROM users", nil},
		{"statistics and vacuum", "ANALYZE; VACUUM; VACUUM FREEZE users", nil},
		{"an index and a constraint", "CREATE INDEX ON users (email); ALTER TABLE users ADD CHECK (id > 0)", nil},
		{"a grant", "GRANT SELECT ON users TO public", nil},
		{"another table", "CREATE TABLE more (id int PRIMARY KEY); ALTER PUBLICATION pub ADD TABLE more; DROP TABLE more", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			db := servertest.Postgres(t)
			db.Exec(t, watchedSchema)
			w := startWatcher(t, WatcherOptions{Connect: connectTo(db.URL), Publication: "pub", Tables: watchedTables()})
			for sql := range strings.SplitSeq(tc.sql, ";") {
				db.Exec(t, sql) // each in a transaction of its own, as people do
			}
			w.expect(t, tc.want...)
			w.expect(t) // once
		})
	}
}

// A change and its undoing in one transaction leave traces as well.
func TestWatcherSeesChangesUndoneAtOnce(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, watchedSchema)
	w := startWatcher(t, WatcherOptions{Connect: connectTo(db.URL), Publication: "pub", Tables: watchedTables()})
	db.Exec(t, "BEGIN; ALTER TABLE parts DETACH PARTITION parts2; TRUNCATE parts2; ALTER TABLE parts ATTACH PARTITION parts2 FOR VALUES IN (2); COMMIT")
	w.expect(t, "parts: identity partitions storage")
	db.Exec(t, "BEGIN; ALTER TABLE users RENAME TO u; TRUNCATE u; ALTER TABLE u RENAME TO users; ROLLBACK")
	w.expect(t)
}

func TestWatcherComparesWithAStoredState(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, watchedSchema)
	o := WatcherOptions{Connect: connectTo(db.URL), Publication: "pub", Tables: watchedTables()}
	first := startWatcher(t, o)
	stored := first.State()
	if len(stored) != 3 {
		t.Fatalf("%v", stored)
	}
	again := startWatcher(t, WatcherOptions{Connect: o.Connect, Publication: o.Publication, Tables: o.Tables, Baseline: stored})
	again.expect(t)
	db.Exec(t, "DROP TABLE items")
	late := startWatcher(t, WatcherOptions{Connect: o.Connect, Publication: o.Publication, Tables: o.Tables, Baseline: stored})
	late.expect(t, "items: vanished")
	if maps.Equal(late.State(), stored) || late.State()["public.items"] != "" {
		t.Errorf("the state did not move on: %v", late.State())
	}
	db.Exec(t, "CREATE TABLE items (id int PRIMARY KEY)")
	late.expect(t, "items: replaced")
}

// What a change leaves behind may be unfit to be followed; the report and the
// status say so until it is mended.
func TestWatcherReportsWhatIsUnfitNow(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, watchedSchema, "ALTER TABLE parts REPLICA IDENTITY FULL; ALTER TABLE parts11 REPLICA IDENTITY FULL; ALTER TABLE parts2 REPLICA IDENTITY FULL")
	w := startWatcher(t, WatcherOptions{Connect: connectTo(db.URL), Publication: "pub", Tables: watchedTables()})
	if s := w.Status(); !s.OK {
		t.Fatalf("%+v", s)
	}
	db.Exec(t, "CREATE TABLE parts3 PARTITION OF parts FOR VALUES IN (3)") // identity default under a full root
	changes := w.expect(t, "parts: identity partitions storage")
	if FatalError(changes[0].Findings) == nil {
		t.Errorf("findings %v, want a fatal one", changes[0].Findings)
	}
	s := w.Status()
	if s.OK || !strings.Contains(s.Reason, "parts3 logs less") || !strings.Contains(s.Fix, "ALTER TABLE public.parts3 REPLICA IDENTITY FULL") {
		t.Errorf("%+v", s)
	}
	w.expect(t)
	if w.Status().OK {
		t.Error("the status forgot about it")
	}
	db.Exec(t, s.Fix)
	changes = w.expect(t, "parts: identity")
	if FatalError(changes[0].Findings) != nil || !w.Status().OK {
		t.Errorf("after the fix: %v, %+v", changes, w.Status())
	}
	if s := w.Status(); !s.Since.After(time.Now().Add(-time.Minute)) {
		t.Errorf("%+v", s)
	}
}

func TestWatcherReportsAgainWhatWasNotTaken(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, watchedSchema)
	var calls atomic.Int32
	taken := make(chan []CatalogChange, 1)
	w := startWatcher(t, WatcherOptions{Connect: connectTo(db.URL), Publication: "pub", Tables: watchedTables(),
		OnChange: func(_ context.Context, c []CatalogChange) error {
			if calls.Add(1) < 3 {
				return errors.New("not now")
			}
			taken <- c
			return nil
		}})
	db.Exec(t, "TRUNCATE users")
	w.lookNow(t)
	select {
	case c := <-taken:
		if len(c) != 1 || c[0].Table != "users" || calls.Load() != 3 {
			t.Errorf("%v after %d calls", c, calls.Load())
		}
	default:
		t.Error("the change was dropped")
	}
}

func TestWatcherTakesOtherTables(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, watchedSchema)
	w := startWatcher(t, WatcherOptions{Connect: connectTo(db.URL), Publication: "pub", Tables: watchedTables()[:1]})
	db.Exec(t, "TRUNCATE items")
	w.expect(t)
	w.tables = watchedTables()
	w.expect(t) // what is new to the watcher is no change
	db.Exec(t, "TRUNCATE items, users")
	w.expect(t, "items: storage", "users: storage")
	w.tables = nil
	db.Exec(t, "TRUNCATE items")
	w.expect(t)
}

// Whoever waits for a look must not wait for a watcher that has ended.
func TestWatcherEndsWaits(t *testing.T) {
	w := NewCatalogWatcher(WatcherOptions{Logger: controlLogger(t),
		Connect: func(context.Context) (*pgx.Conn, error) { return nil, errors.New("away") }})
	before := w.Watch(nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Run(ctx); err != nil {
		t.Error(err)
	}
	for _, c := range []<-chan struct{}{before, w.Watch(nil)} {
		select {
		case <-c:
		case <-time.After(10 * time.Second):
			t.Error("still waiting")
		}
	}
}

func TestWatcherSurvivesTheServersAbsence(t *testing.T) {
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	db := servertest.NewDatabase(t, server, "watched")
	db.Exec(t, watchedSchema)
	w := startWatcher(t, WatcherOptions{Connect: connectTo(db.URL), Publication: "pub", Tables: watchedTables(),
		Interval: 10 * time.Millisecond, StaleAfter: 300 * time.Millisecond})
	if err := server.Stop(t.Context(), localserver.Immediate); err != nil {
		t.Fatal(err)
	}
	s := waitForStatus(t, w.Status, false)
	if !strings.Contains(s.Reason, "silent DDL") || s.Fix == "" {
		t.Errorf("%+v", s)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "TRUNCATE items")
	waitForStatus(t, w.Status, true)
	select {
	case c := <-w.changes:
		if len(c) != 1 || c[0].Table != "items" {
			t.Errorf("%v", c)
		}
	case <-time.After(20 * time.Second):
		t.Error("the change was not noticed after the server came back")
	}
	// Its connection is ended under it.
	db.Exec(t, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name LIKE '%watcher'", "TRUNCATE users")
	if c := <-w.changes; len(c) != 1 || c[0].Table != "users" {
		t.Errorf("%v", c)
	}
}

func waitForStatus(t *testing.T, status func() Status, ok bool) Status {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if s := status(); s.OK == ok {
			return s
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("status is %+v", status())
		}
	}
}

// A look must not wait behind the DDL that it is there to notice.
func TestWatcherDoesNotWaitForLocks(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, watchedSchema)
	w := startWatcher(t, WatcherOptions{Connect: connectTo(db.URL), Publication: "pub", Tables: watchedTables()})
	holder := db.Conn(t)
	if _, err := holder.Exec(t.Context(), "BEGIN; TRUNCATE users, parts; ALTER TABLE parts DETACH PARTITION parts2; LOCK TABLE items"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	w.expect(t)
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("the look took %s", d)
	}
	if _, err := holder.Exec(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	w.expect(t, "parts: identity partitions storage", "users: storage")
}

// One question a look, however many partitions there are.
func TestWatcherWithManyPartitions(t *testing.T) {
	db := servertest.Postgres(t)
	var sql strings.Builder
	sql.WriteString("CREATE TABLE many (id int PRIMARY KEY) PARTITION BY LIST (id);")
	for i := range 300 {
		fmt.Fprintf(&sql, "CREATE TABLE many%d PARTITION OF many FOR VALUES IN (%d);", i, i)
	}
	db.Exec(t, sql.String(), "CREATE PUBLICATION pub FOR TABLE many WITH (publish_via_partition_root)")
	conn := controlConn(t, db.URL)
	tables := []mapping.TableUse{use("many", "id")}
	if _, err := ReadCatalogState(t.Context(), conn, "pub", tables); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	const looks = 20
	var state CatalogState
	for range looks {
		var err error
		if state, err = ReadCatalogState(t.Context(), conn, "pub", tables); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s a look", time.Since(began)/looks)
	db.Exec(t, "TRUNCATE many177")
	now, err := ReadCatalogState(t.Context(), conn, "pub", tables)
	if err != nil || now["public.many"] == state["public.many"] {
		t.Errorf("the truncated partition does not show: %v", err)
	}
}

// A transaction that was begun last, with nothing ended since, is in no snapshot's list, and is open.
func TestOpenTransactionsWithTheHighestIDsCount(t *testing.T) {
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: map[string]string{"autovacuum": "off"}})
	conn := controlConn(t, pg.URL())
	other := servertest.Connect(t, pg.URL())
	if _, none, err := runningBelow(t.Context(), conn); err != nil || !none {
		t.Fatalf("nothing is open: %t, %v", none, err)
	}
	tx, err := other.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var xid uint64
	var listed bool
	if err := tx.QueryRow(t.Context(), `SELECT pg_current_xact_id()::text::bigint`).Scan(&xid); err != nil {
		t.Fatal(err)
	}
	if err := conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_snapshot_xip(pg_current_snapshot()))`).Scan(&listed); err != nil || listed {
		t.Fatalf("it is in the list, and shows nothing: %v", err)
	}
	bound, none, err := runningBelow(t.Context(), conn)
	if err != nil || none || bound <= xid {
		t.Errorf("%d is open: below %d, none %t, %v", xid, bound, none, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, none, err := runningBelow(t.Context(), conn); err != nil || !none {
		t.Errorf("nothing is open any more: %t, %v", none, err)
	}
}
