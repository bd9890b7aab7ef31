package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

func use(table string, columns ...string) mapping.TableUse {
	return mapping.TableUse{Schema: "public", Table: table, Columns: columns, OldColumns: columns, Truncate: true}
}

func setupOptions(db *servertest.Database, tables ...mapping.TableUse) SetupOptions {
	return SetupOptions{Slot: db.Name + "_slot", Publication: "pub", CreateSlot: true, CreatePublication: true, Tables: tables}
}

func TestSetupCreatesPublicationThenSlot(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, `CREATE TABLE users (id int PRIMARY KEY, email text); ALTER TABLE users REPLICA IDENTITY FULL;
		CREATE TABLE "Odd Name" ("Id" int PRIMARY KEY);
		CREATE TABLE parts (id int, t int, PRIMARY KEY (id, t)) PARTITION BY LIST (t); CREATE TABLE parts1 PARTITION OF parts FOR VALUES IN (1);`)
	conn := controlConn(t, db.URL)
	o := setupOptions(db, use("users", "id", "email"), use("Odd Name", "Id"), use("parts", "id"))
	o.Logger = controlLogger(t)
	r, err := Setup(t.Context(), conn, o)
	if err != nil {
		t.Fatal(err)
	}
	if !r.PublicationCreated || !r.SlotCreated || len(r.Findings) != 0 || r.Epoch.SystemID == "" {
		t.Errorf("%+v", r)
	}
	p := r.Publication
	if !p.Insert || !p.Update || !p.Delete || !p.Truncate || !p.ViaRoot || p.AllTables || p.OID == 0 {
		t.Errorf("%+v", p)
	}
	s := r.Slot
	if s.Name != o.Slot || s.Plugin != "pgoutput" || s.Database != db.Name || !s.Logical || s.Temporary || s.TwoPhase ||
		s.Active || s.ConfirmedLSN == 0 || s.RestartLSN == 0 || s.Lost() || s.SafeWALSize != -1 {
		t.Errorf("%+v", s)
	}

	// Again: everything is there and good.
	again, err := Setup(t.Context(), conn, o)
	if err != nil {
		t.Fatal(err)
	}
	if again.PublicationCreated || again.SlotCreated || again.Slot.ConfirmedLSN != s.ConfirmedLSN || again.Publication != p {
		t.Errorf("%+v", again)
	}
}

func TestSetupCreatesNothingUnasked(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY)")
	conn := controlConn(t, db.URL)
	o := setupOptions(db, use("users", "id"))
	o.CreatePublication, o.CreateSlot = false, false
	_, err := Setup(t.Context(), conn, o)
	wantConfigError(t, err, "CREATE PUBLICATION pub FOR TABLE public.users WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true);", "create_if_not_exists")
	if !errors.Is(err, ErrPublicationMissing) {
		t.Errorf("%v is not ErrPublicationMissing", err)
	}
	// Its fix mends it, up to the slot.
	db.Exec(t, createPublicationSQL("pub", o.Tables))
	_, err = Setup(t.Context(), conn, o)
	wantConfigError(t, err, "SELECT pg_create_logical_replication_slot('"+o.Slot+"', 'pgoutput');")
	if !errors.Is(err, ErrSlotMissing) {
		t.Errorf("%v is not ErrSlotMissing", err)
	}
	db.Exec(t, createSlotSQL(o.Slot))
	if _, err = Setup(t.Context(), conn, o); err != nil {
		t.Error(err)
	}
}

// A slot older than the publication cannot be read on 15 to 17, and is read with
// holes on 18. The test shows the first, so that it is known why this is refused.
func TestSetupRefusesASlotOlderThanThePublication(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY)", createSlotSQL(db.Name+"_slot"), "INSERT INTO users VALUES (1)")
	conn := controlConn(t, db.URL)
	o := setupOptions(db, use("users", "id"))
	_, err := Setup(t.Context(), conn, o)
	wantConfigError(t, err, "SELECT pg_drop_replication_slot('"+o.Slot+"');", "start again")
	if _, found, _ := ReadPublication(t.Context(), conn, "pub"); found {
		t.Error("the publication was created all the same")
	}

	db.Exec(t, createPublicationSQL("pub", o.Tables))
	_, err = conn.Exec(t.Context(), "SELECT count(*) FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'pub')", o.Slot)
	if conn.PgConn().ParameterStatus("server_version") < "18" && err == nil {
		t.Error("the slot can be read; refusing it is needless")
	}

	db.Exec(t, "DROP PUBLICATION pub", dropSlotSQL(o.Slot)) // what the fix says
	if _, err = Setup(t.Context(), conn, o); err != nil {
		t.Errorf("the fix does not mend it: %v", err)
	}
}

// Publishing a table without an identity would make the application's own
// updates fail, so nothing may be created for it.
func TestSetupDoesNotBreakTheApplicationsWrites(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, `CREATE TABLE log (id int); INSERT INTO log VALUES (1);
		CREATE TABLE p (id int, t int) PARTITION BY LIST (t); CREATE TABLE p1 PARTITION OF p (PRIMARY KEY (id)) FOR VALUES IN (1);
		CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2);`)
	conn := controlConn(t, db.URL)
	for _, tc := range []struct{ table, holder string }{{"log", "public.log"}, {"p", "public.p2"}} {
		_, err := Setup(t.Context(), conn, setupOptions(db, use(tc.table, "id")))
		wantConfigError(t, err, tc.holder+" has no replica identity", "ALTER TABLE "+tc.holder+" REPLICA IDENTITY FULL;")
	}
	if _, found, _ := ReadPublication(t.Context(), conn, "pub"); found {
		t.Error("a publication was created")
	}
	db.Exec(t, "UPDATE log SET id = 2")
}

func TestPublicationChecks(t *testing.T) {
	const schema = `
		CREATE TABLE users (id int PRIMARY KEY, email text, note text); ALTER TABLE users REPLICA IDENTITY FULL;
		CREATE TABLE items (id int PRIMARY KEY);
		CREATE TABLE parts (id int, t int, PRIMARY KEY (id, t)) PARTITION BY LIST (t); CREATE TABLE parts1 PARTITION OF parts FOR VALUES IN (1);`
	all := []mapping.TableUse{use("users", "id", "email"), use("items", "id"), use("parts", "id")}
	for _, tc := range []struct {
		name, sql string
		want      []string // of the error; none when it is good
	}{
		{"all tables", "CREATE PUBLICATION pub FOR ALL TABLES WITH (publish_via_partition_root)", nil},
		{"schema", "CREATE PUBLICATION pub FOR TABLES IN SCHEMA public WITH (publish_via_partition_root)", nil},
		{"single tables", "CREATE PUBLICATION pub FOR TABLE users, items, parts WITH (publish_via_partition_root)", nil},
		{"column list with all that is used", "CREATE PUBLICATION pub FOR TABLE users (id, email, note), items, parts WITH (publish_via_partition_root)", nil},
		{"a member missing", "CREATE PUBLICATION pub FOR TABLE users, parts WITH (publish_via_partition_root)",
			[]string{"table public.items", "does not have it", "ALTER PUBLICATION pub ADD TABLE public.items;"}},
		{"schema of others", "CREATE SCHEMA other; CREATE PUBLICATION pub FOR TABLES IN SCHEMA other WITH (publish_via_partition_root)",
			[]string{"ALTER PUBLICATION pub ADD TABLE public.items, public.parts, public.users;"}},
		{"partitions under their own names", "CREATE PUBLICATION pub FOR TABLE users, items, parts",
			[]string{"table public.parts", "partitions' names", "ALTER PUBLICATION pub SET (publish_via_partition_root = true);"}},
		{"all tables, partitions under their own names", "CREATE PUBLICATION pub FOR ALL TABLES",
			[]string{"table public.parts", "ALTER PUBLICATION pub SET (publish_via_partition_root = true);"}},
		{"only a partition", "CREATE PUBLICATION pub FOR TABLE users, items, parts1 WITH (publish_via_partition_root)",
			[]string{"ALTER PUBLICATION pub ADD TABLE public.parts;"}},
		{"no truncate", "CREATE PUBLICATION pub FOR ALL TABLES WITH (publish = 'insert, update, delete', publish_via_partition_root)",
			[]string{"does not publish truncate", "ALTER PUBLICATION pub SET (publish = 'insert, update, delete, truncate');"}},
		{"insert only", "CREATE PUBLICATION pub FOR ALL TABLES WITH (publish = 'insert', publish_via_partition_root)",
			[]string{"does not publish update, delete, truncate"}},
		{"row filter", "CREATE PUBLICATION pub FOR TABLE users WHERE (id > 5), items, parts WITH (publish_via_partition_root)",
			[]string{"table public.users", "row filter", "BEGIN; ALTER PUBLICATION pub DROP TABLE public.users; ALTER PUBLICATION pub ADD TABLE public.users; COMMIT;"}},
		{"column list without a used one", "CREATE PUBLICATION pub FOR TABLE users (id, note), items, parts WITH (publish_via_partition_root)",
			[]string{"table public.users", "does not send its column email", "ALTER PUBLICATION pub ADD TABLE public.users;"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			db := servertest.Postgres(t)
			db.Exec(t, schema, tc.sql)
			conn := controlConn(t, db.URL)
			err := EnsurePublication(t.Context(), conn, "pub", true, all)
			if tc.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantConfigError(t, err, tc.want...)

			// What it says to run is all that is needed.
			findings, err := CheckPublication(t.Context(), conn, "pub", all)
			if err != nil {
				t.Fatal(err)
			}
			fixes := map[string]bool{}
			for _, f := range findings {
				if f.Severity() == SeverityFatal && !fixes[f.Fix] {
					fixes[f.Fix] = true
					db.Exec(t, f.Fix)
				}
			}
			if err := EnsurePublication(t.Context(), conn, "pub", false, all); err != nil {
				t.Errorf("after its fixes: %v", err)
			}
		})
	}
}

// The set-up does not hang where commits wait for a standby that is not there.
func TestSetupWithoutTheStandbyThatCommitsWaitFor(t *testing.T) {
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	db := servertest.NewDatabase(t, pg, "shop")
	db.Exec(t, "CREATE TABLE items (id int PRIMARY KEY)", "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
	if _, err := Setup(t.Context(), controlConn(t, db.URL), setupOptions(db, use("items", "id"))); err != nil {
		t.Error(err)
	}
	db.Exec(t, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()") // the database is dropped then
}

// What no publication can have is not said to be missing there: the fix would fail.
func TestPublicationOfWhatIsNoTable(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, `CREATE TABLE items (id int PRIMARY KEY); CREATE VIEW v AS SELECT * FROM items; CREATE MATERIALIZED VIEW m AS SELECT * FROM items;
		CREATE UNLOGGED TABLE u (id int PRIMARY KEY); CREATE SEQUENCE s; CREATE FOREIGN DATA WRAPPER w; CREATE SERVER f FOREIGN DATA WRAPPER w;
		CREATE FOREIGN TABLE f (id int) SERVER f; CREATE INDEX i ON items (id); CREATE TYPE c AS (id int)`, "CREATE PUBLICATION pub FOR TABLE items")
	var tables []mapping.TableUse
	for _, name := range []string{"items", "v", "m", "u", "s", "f", "i", "c", "none"} {
		tables = append(tables, use(name, "id"))
	}
	findings, err := CheckPublication(t.Context(), controlConn(t, db.URL), "pub", tables)
	if err != nil || len(findings) > 0 {
		t.Errorf("%v: %+v", err, findings)
	}
}

func TestPublicationNeedsNoTruncateThatNobodyMaps(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, "CREATE TABLE items (id int PRIMARY KEY)", "CREATE PUBLICATION pub FOR TABLE items WITH (publish = 'insert, update, delete')")
	u := use("items", "id")
	u.Truncate = false
	if err := EnsurePublication(t.Context(), controlConn(t, db.URL), "pub", false, []mapping.TableUse{u}); err != nil {
		t.Error(err)
	}
}

// A mapping of messages only has no tables at all.
func TestSetupWithoutTables(t *testing.T) {
	db := servertest.Postgres(t)
	if _, err := Setup(t.Context(), controlConn(t, db.URL), setupOptions(db)); err != nil {
		t.Fatal(err)
	}
}

func TestPermissions(t *testing.T) {
	db := servertest.Postgres(t)
	plainURL := createRole(t, db, "_plain", "")
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY)")
	o := setupOptions(db, use("users", "id"))
	conn := controlConn(t, plainURL)
	_, err := Setup(t.Context(), conn, o)
	wantConfigError(t, err, "lacks a right", "GRANT CREATE ON DATABASE "+db.Name+" TO "+db.Name+"_plain;", "CREATE PUBLICATION pub")

	db.Exec(t, createPublicationSQL("pub", o.Tables))
	_, err = Setup(t.Context(), conn, o)
	wantConfigError(t, err, "lacks a right", `ALTER ROLE "`+db.Name+`_plain" REPLICATION;`)

	db.Exec(t, `ALTER ROLE "`+db.Name+`_plain" REPLICATION`)
	if _, err = Setup(t.Context(), conn, o); err != nil {
		t.Errorf("REPLICATION is not enough: %v", err)
	}
}

func TestSlotChecks(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY)", "CREATE PUBLICATION pub FOR TABLE users WITH (publish_via_partition_root)")
	other := servertest.Postgres(t)
	conn := controlConn(t, db.URL)
	name := func(s string) string { return db.Name + "_" + s }
	db.Exec(t,
		fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'test_decoding')", name("plugin")),
		fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput', false, true)", name("twophase")),
		fmt.Sprintf("SELECT pg_create_physical_replication_slot('%s')", name("physical")))
	t.Cleanup(func() { dropPhysicalSlot(t, db, name("physical")) })
	other.Exec(t, fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", name("other")))
	holder := controlConn(t, db.URL)
	if _, err := holder.Exec(t.Context(), "SELECT pg_create_logical_replication_slot($1, 'pgoutput', true)", name("temporary")); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		slot string
		want []string
	}{
		{name("plugin"), []string{`plugin is "test_decoding"`, "SELECT pg_drop_replication_slot('" + name("plugin") + "');"}},
		{name("twophase"), []string{"two_phase"}},
		{name("physical"), []string{"physical slot"}},
		{name("other"), []string{fmt.Sprintf("belongs to database %q", other.Name)}},
		{name("temporary"), []string{"temporary"}},
		{"No Such Name", []string{"lower-case letters, digits and underscores"}},
	} {
		o := setupOptions(db, use("users", "id"))
		o.Slot = tc.slot
		_, err := Setup(t.Context(), conn, o)
		wantConfigError(t, err, tc.want...)
		_, err = RecreateSlot(t.Context(), conn, tc.slot)
		wantConfigError(t, err, tc.want...)
	}
	if _, found, err := ReadSlot(t.Context(), conn, "nowhere"); found || err != nil {
		t.Errorf("found %v, %v", found, err)
	}
}

func dropPhysicalSlot(t *testing.T, db *servertest.Database, name string) {
	conn, err := pgx.Connect(context.Background(), db.SocketURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), "SELECT pg_drop_replication_slot($1)", name); err != nil {
		t.Error(err)
	}
}

func TestAllSlotsTaken(t *testing.T) {
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: map[string]string{"max_replication_slots": "1"}})
	conn := controlConn(t, server.URL())
	o := SetupOptions{Slot: "a", Publication: "pub", CreateSlot: true, CreatePublication: true}
	if _, err := Setup(t.Context(), conn, o); err != nil {
		t.Fatal(err)
	}
	o.Slot = "b"
	_, err := Setup(t.Context(), conn, o)
	wantConfigError(t, err, "all replication slots of the server are taken", "ALTER SYSTEM SET max_replication_slots")
}

// The server drops WAL that a slot still needs once it retains too much.
func TestLostSlot(t *testing.T) {
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: map[string]string{
		"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB",
	}})
	db := servertest.NewDatabase(t, server, "lostdb")
	conn := controlConn(t, db.URL)
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY)")
	o := SetupOptions{Slot: "s", Publication: "pub", CreateSlot: true, CreatePublication: true, Tables: []mapping.TableUse{use("users", "id")}}
	first, err := Setup(t.Context(), conn, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := RecreateSlot(t.Context(), conn, "s"); err == nil || errors.Is(err, ErrSlotLost) {
		t.Errorf("a good slot was replaced: %v", err)
	}
	for range 4 {
		db.Exec(t, "SELECT pg_switch_wal()", "CHECKPOINT", "INSERT INTO users SELECT coalesce(max(id), 0) + 1 FROM users")
	}
	slot, found, err := ReadSlot(t.Context(), conn, "s")
	if err != nil || !found || slot.WALStatus != "lost" || !slot.Lost() {
		t.Fatalf("the slot is not lost, the test shows nothing: %+v, %v", slot, err)
	}
	_, err = Setup(t.Context(), conn, o)
	if !errors.Is(err, ErrSlotLost) || !strings.Contains(err.Error(), "pg_drop_replication_slot") {
		t.Errorf("Setup: %v, want ErrSlotLost with a fix", err)
	}
	var config *ConfigError
	if errors.As(err, &config) {
		t.Error("a lost slot is no mistake of the configuration")
	}
	fresh, err := RecreateSlot(t.Context(), conn, "s")
	if err != nil {
		t.Fatal(err)
	}
	if fresh.Lost() || fresh.ConfirmedLSN <= first.Slot.ConfirmedLSN {
		t.Errorf("%+v", fresh)
	}
	if _, err = Setup(t.Context(), conn, o); err != nil {
		t.Error(err)
	}

	// Lost together with the publication: both are made anew, in order.
	for range 4 {
		db.Exec(t, "SELECT pg_switch_wal()", "CHECKPOINT", "INSERT INTO users SELECT coalesce(max(id), 0) + 1 FROM users")
	}
	db.Exec(t, "DROP PUBLICATION pub")
	r, err := Setup(t.Context(), conn, o)
	if !errors.Is(err, ErrSlotLost) || !r.PublicationCreated {
		t.Errorf("Setup: %v, publication created %v", err, r.PublicationCreated)
	}
}

// Slot creation waits for every open transaction, prepared ones too; nobody must
// have to guess which.
func TestSlotCreationNamesWhatItWaitsFor(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY)", "CREATE PUBLICATION pub FOR TABLE users WITH (publish_via_partition_root)",
		"BEGIN; INSERT INTO users VALUES (1); PREPARE TRANSACTION 'forgotten-"+db.Name+"'")
	var o SetupOptions
	var conn *pgx.Conn
	for _, limit := range []string{"statement_timeout", "lock_timeout"} {
		conn = controlConn(t, db.URL)
		if _, err := conn.Exec(t.Context(), "SET "+limit+" = '300ms'"); err != nil {
			t.Fatal(err)
		}
		o = setupOptions(db, use("users", "id"))
		_, err := Setup(t.Context(), conn, o)
		var away *UnavailableError
		if !errors.As(err, &away) || !errors.Is(err, ErrBlockedByTransactions) {
			t.Fatalf("%s: %T: %v", limit, err, err)
		}
		if !strings.Contains(err.Error(), "prepared transaction 'forgotten-"+db.Name+"' in database "+db.Name) || strings.Contains(err.Error(), "mapped table") {
			t.Errorf("%s: it does not say what it waits for: %v", limit, err)
		}
		if _, found, _ := ReadSlot(t.Context(), conn, o.Slot); found {
			t.Error("half a slot is left")
		}
	}
	db.Exec(t, "COMMIT PREPARED 'forgotten-"+db.Name+"'")
	if _, err := Setup(t.Context(), conn, o); err != nil {
		t.Error(err)
	}
}

// It waits for longer than a control connection otherwise waits for a lock, or a source
// that is never without a transaction of some seconds would never get its slot.
func TestSlotCreationOutlastsTheLockTimeout(t *testing.T) {
	t.Parallel() // it waits more than it works
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	db := servertest.NewDatabase(t, server, "patient")
	older := db.Conn(t)
	if _, err := older.Exec(t.Context(), "BEGIN; SELECT pg_current_xact_id()"); err != nil {
		t.Fatal(err)
	}
	conn := controlConn(t, db.URL)
	made := make(chan error, 1)
	go func() {
		_, _, err := EnsureSlot(t.Context(), conn, "s", true)
		made <- err
	}()
	watch := db.Conn(t)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for long := false; !long; {
		select {
		case err := <-made:
			t.Fatalf("it did not wait for the older transaction: %v", err)
		case <-tick.C:
		}
		if err := watch.QueryRow(t.Context(), `SELECT coalesce(max(clock_timestamp() - query_start) > '5.5s', false) FROM pg_stat_activity
			WHERE wait_event_type = 'Lock' AND query LIKE '%pg_create_logical_replication_slot%'`).Scan(&long); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := older.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := <-made; err != nil {
		t.Error(err)
	}
}

func TestCatalogFindings(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, `
		CREATE TABLE good (id int PRIMARY KEY, email text); ALTER TABLE good REPLICA IDENTITY FULL;
		CREATE TABLE narrow (id int PRIMARY KEY, tenant int NOT NULL, email text);
		CREATE TABLE byindex (id int PRIMARY KEY, tenant int NOT NULL, email text NOT NULL);
		CREATE UNIQUE INDEX byindex_i ON byindex (tenant) INCLUDE (email); ALTER TABLE byindex REPLICA IDENTITY USING INDEX byindex_i;
		CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
		CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE);
		CREATE TABLE generated (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id + 1) STORED);
		CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
		CREATE VIEW view AS SELECT 1 AS id; CREATE MATERIALIZED VIEW matview AS SELECT 1 AS id; CREATE SEQUENCE seq;
		CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
		CREATE TABLE parts (id int, t int, email text, PRIMARY KEY (id, t)) PARTITION BY LIST (t); CREATE TABLE parts1 PARTITION OF parts FOR VALUES IN (1);
		CREATE TABLE mixed (id int, t int, email text, PRIMARY KEY (id, t)) PARTITION BY LIST (t); ALTER TABLE mixed REPLICA IDENTITY FULL;
		CREATE TABLE mixed1 PARTITION OF mixed FOR VALUES IN (1) PARTITION BY LIST (id); CREATE TABLE mixed11 PARTITION OF mixed1 FOR VALUES IN (1);
		CREATE TABLE fullparts (id int, t int, PRIMARY KEY (id, t)) PARTITION BY LIST (t); ALTER TABLE fullparts REPLICA IDENTITY FULL;
		CREATE TABLE fullparts1 PARTITION OF fullparts FOR VALUES IN (1); ALTER TABLE fullparts1 REPLICA IDENTITY FULL;`)
	conn := controlConn(t, db.URL)
	for _, tc := range []struct {
		name     string
		use      []mapping.TableUse
		severity Severity
		want     []string
	}{
		{"full identity", []mapping.TableUse{use("good", "id", "email")}, "", nil},
		{"key only", []mapping.TableUse{use("narrow", "id")}, "", nil},
		{"full on every level", []mapping.TableUse{use("fullparts", "id", "t")}, "", nil},
		{"child mapped as well", []mapping.TableUse{use("parent", "id"), use("child", "id")}, "", nil},
		{"missing table", []mapping.TableUse{use("absent", "id")}, SeverityFatal, []string{"does not exist"}},
		{"missing column", []mapping.TableUse{use("good", "emial")}, SeverityFatal, []string{`no column "emial"`, "id, email"}},
		{"old values not logged", []mapping.TableUse{use("narrow", "id", "email", "tenant")}, SeverityWidens, []string{"old value of email, tenant", "ALTER TABLE public.narrow REPLICA IDENTITY FULL;"}},
		{"index identity, included column", []mapping.TableUse{use("byindex", "tenant", "email")}, SeverityWidens, []string{"old value of email (replica identity tenant)"}},
		{"identity nothing", []mapping.TableUse{use("nothing", "id")}, SeverityFatal, []string{"no replica identity"}},
		{"deferrable key", []mapping.TableUse{use("deferred", "id")}, SeverityFatal, []string{"no replica identity"}},
		{"generated column", []mapping.TableUse{use("generated", "g")}, SeverityFatal, []string{`"g" is generated`}},
		{"unlogged", []mapping.TableUse{use("unlogged", "id")}, SeverityFatal, []string{"SET LOGGED"}},
		{"view", []mapping.TableUse{use("view", "id")}, SeverityFatal, []string{"view"}},
		{"materialized view", []mapping.TableUse{use("matview", "id")}, SeverityFatal, []string{"view"}},
		{"sequence", []mapping.TableUse{use("seq", "id")}, SeverityFatal, []string{"no table"}},
		{"inheritance", []mapping.TableUse{use("parent", "id")}, SeverityFatal, []string{"public.child inherits from it"}},
		{"partition", []mapping.TableUse{use("parts1", "id")}, SeverityFatal, []string{"it is a partition"}},
		{"partitions log keys only", []mapping.TableUse{use("parts", "email")}, SeverityWidens,
			[]string{"ALTER TABLE public.parts REPLICA IDENTITY FULL;\nALTER TABLE public.parts1 REPLICA IDENTITY FULL;"}},
		{"full above, default below", []mapping.TableUse{use("mixed", "id")}, SeverityFatal, []string{"partition public.mixed11 logs less", "ALTER TABLE public.mixed11 REPLICA IDENTITY FULL;"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			findings, err := CheckCatalog(t.Context(), conn, "pub", tc.use)
			if err != nil {
				t.Fatal(err)
			}
			if tc.severity == "" {
				if len(findings) > 0 {
					t.Errorf("%v", findings)
				}
				return
			}
			findings = slices.DeleteFunc(findings, func(f Finding) bool { return f.Code == IdentityIndex })
			if len(findings) != 1 || findings[0].Severity() != tc.severity {
				t.Fatalf("%+v, want one that is %s", findings, tc.severity)
			}
			text := findings[0].String() + "\n" + findings[0].Fix
			for _, w := range tc.want {
				if !strings.Contains(text, w) {
					t.Errorf("%q is not in %q", w, text)
				}
			}
			if (FatalError(findings) != nil) != (tc.severity == SeverityFatal) {
				t.Errorf("FatalError: %v", FatalError(findings))
			}
			if sql := findings[0].Fix; strings.Contains(sql, "REPLICA IDENTITY FULL") && !strings.Contains(sql, "or:") {
				db.Exec(t, sql)
				if after, err := CheckCatalog(t.Context(), conn, "pub", tc.use); err != nil || len(after) > 0 {
					t.Errorf("after its fix: %v, %v", after, err)
				}
			}
		})
	}
}

// This is why a partition that logs less than its root is refused: the server
// sends NULLs as if they were the old row's values.
func TestPartitionWithALesserIdentityForgesNulls(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, `CREATE TABLE mixed (id int, t int, email text, PRIMARY KEY (id, t)) PARTITION BY LIST (t);
		ALTER TABLE mixed REPLICA IDENTITY FULL; CREATE TABLE mixed1 PARTITION OF mixed FOR VALUES IN (1);
		INSERT INTO mixed VALUES (7, 1, 'old@example.com');`, createPublicationSQL("pub", []mapping.TableUse{use("mixed")}), createSlotSQL(db.Name+"_slot"),
		"UPDATE mixed SET id = 8, email = 'new@example.com'")
	rows, err := controlConn(t, db.URL).Query(t.Context(),
		"SELECT data FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'pub')", db.Name+"_slot")
	if err != nil {
		t.Fatal(err)
	}
	messages, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(messages, func(m []byte) bool { return m[0] == 'U' })
	if i < 0 || messages[i][5] != 'O' || strings.Contains(string(messages[i]), "old@") {
		t.Errorf("the server behaves better than expected: %q", messages)
	}
}

// A lock that somebody holds for long must be an error that says so, and not a
// daemon that hangs.
func TestSetupDoesNotHangOnALock(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY)")
	holder := db.Conn(t)
	if _, err := holder.Exec(t.Context(), "BEGIN; LOCK TABLE users"); err != nil {
		t.Fatal(err)
	}
	conn := controlConn(t, db.URL)
	if _, err := conn.Exec(t.Context(), "SET lock_timeout = '100ms'"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := Setup(ctx, conn, setupOptions(db, use("users", "id")))
	var away *UnavailableError
	if !errors.As(err, &away) || !strings.Contains(err.Error(), "pg_locks") {
		t.Errorf("%T: %v", err, err)
	}
}

// A table that is gone is in no publication, and to add it there is no way to mend that.
func TestMissingTableIsReportedOnce(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, "CREATE TABLE here (id int PRIMARY KEY)", "CREATE PUBLICATION pub FOR TABLE here")
	tables := []mapping.TableUse{{Schema: "public", Table: "here"}, {Schema: "public", Table: "gone"}}
	findings, err := checkTables(t.Context(), controlConn(t, db.URL), "pub", tables, tables)
	if err != nil {
		t.Fatal(err)
	}
	if len(findings) != 1 || findings[0].Code != TableMissing || findings[0].Table != "gone" {
		t.Errorf("findings: %+v", findings)
	}
}
