package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

func TestMain(m *testing.M) { servertest.VerifyMain(m) }

const testFile = `version: 1
source:
  url: %q
  slot: {name: %s, create_if_not_exists: %t}
  publication: {name: pub, create_if_not_exists: %t}
redis: {url: %q}
classes: {critical: {staleness: 1s}}
keys:
  user:   {key: "user:{id}", class: critical, ttl: 10m}
  search: {key: "search:{version}:{q}", version: search, class: critical, ttl: 10m}
mappings:
  - table: public.users
    keys: [user, search]
`

type world struct {
	t             *testing.T
	source, redis string
	slot          string
	create        bool
	change        func(string) string
}

func newWorld(t *testing.T) (*world, *servertest.Database) {
	t.Helper()
	db := servertest.Postgres(t)
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY)", "CREATE PUBLICATION pub FOR TABLE users", "SELECT pg_create_logical_replication_slot('"+db.Name+"_slot', 'pgoutput')")
	return &world{t: t, source: db.URL, redis: servertest.Redis(t).URL, slot: db.Name + "_slot"}, db
}

func (w *world) load() (*mapping.File, *mapping.Plan) {
	w.t.Helper()
	content := fmt.Sprintf(testFile, w.source, w.slot, w.create, w.create, w.redis)
	if w.change != nil {
		content = w.change(content)
	}
	path := filepath.Join(w.t.TempDir(), "mappings.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
	file, err := mapping.Load(path)
	if err != nil {
		w.t.Fatal(err)
	}
	plan, err := mapping.Compile(file)
	if err != nil {
		w.t.Fatal(err)
	}
	return file, plan
}

func (w *world) examine() *Report {
	w.t.Helper()
	file, plan := w.load()
	return Run(w.t.Context(), Options{File: file, Plan: plan})
}

// find returns the check with the code, in whatever group it is.
func find(r *Report, code string) Check {
	for _, g := range r.Groups {
		for _, c := range g.Checks {
			if c.Code == code {
				return c
			}
		}
	}
	return Check{Code: "none of " + code}
}

func findings(r *Report) []string {
	list := []string{}
	for _, g := range r.Groups {
		for _, c := range g.Checks {
			if c.Severity.Finding() {
				list = append(list, g.Name+" "+c.Code+" "+string(c.Severity))
			}
		}
	}
	return list
}

// wantFindings expects exactly these, each as "group code severity".
func wantFindings(t *testing.T, r *Report, want ...string) {
	t.Helper()
	if got := findings(r); !slices.Equal(got, slices.Concat([]string{}, want)) || r.OK != (len(want) == 0) || r.Findings != len(want) {
		t.Errorf("findings are %q (%d, ok %t), want %q", got, r.Findings, r.OK, want)
	}
}

func TestNothingIsFoundAndNothingIsChanged(t *testing.T) {
	w, db := newWorld(t)
	client := servertest.RedisClient(t, w.redis)
	conn := db.Conn(t)
	var before, after string
	// Everything that a look could have changed in the catalogs gets a new xmin.
	const catalogs = `SELECT concat((SELECT max(xmin::text::bigint) FROM pg_class), (SELECT max(xmin::text::bigint) FROM pg_publication), (SELECT max(xmin::text::bigint) FROM pg_authid),
		(SELECT count(*) FROM pg_replication_slots), (SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1), (SELECT count(*) FROM pg_proc))`
	if err := conn.QueryRow(t.Context(), catalogs, w.slot).Scan(&before); err != nil {
		t.Fatal(err)
	}
	r := w.examine()
	wantFindings(t, r)
	var names []string
	for _, g := range r.Groups {
		names = append(names, g.Name)
		if !g.Reachable || len(g.Checks) == 0 {
			t.Errorf("%+v", g)
		}
	}
	if !slices.Equal(names, []string{"source", "publication", "tables", "slot", "redis", "time"}) {
		t.Errorf("groups are %q", names)
	}
	if err := conn.QueryRow(t.Context(), catalogs, w.slot).Scan(&after); err != nil || before != after {
		t.Errorf("the catalogs are other ones: %v, %s, %s", err, before, after)
	}
	if n, err := client.DBSize(t.Context()).Result(); err != nil || n != 0 {
		t.Errorf("%d keys, %v", n, err)
	}
}

func TestWhatIsMissing(t *testing.T) {
	w, db := newWorld(t)
	db.Exec(t, "SELECT pg_drop_replication_slot('"+w.slot+"')", "DROP PUBLICATION pub")
	wantFindings(t, w.examine(), "publication publication_missing fatal", "slot slot_missing fatal")
	w.create = true
	wantFindings(t, w.examine())
	db.Exec(t, "SELECT pg_create_logical_replication_slot('"+w.slot+"', 'pgoutput')")
	r := w.examine()
	wantFindings(t, r, "slot slot fatal")
	if c := find(r, "slot"); !strings.Contains(c.Fix, "pg_drop_replication_slot") {
		t.Errorf("%+v", c)
	}
	db.Exec(t, "SELECT pg_drop_replication_slot('"+w.slot+"')", "CREATE PUBLICATION pub FOR TABLE users", "SELECT pg_create_logical_replication_slot('"+w.slot+"', 'pgoutput', false, true)")
	r = w.examine()
	wantFindings(t, r, "slot slot fatal")
	if c := find(r, "slot"); !strings.Contains(c.Message, "two_phase") {
		t.Errorf("%+v", c)
	}
}

func TestTablesAndPublication(t *testing.T) {
	w, db := newWorld(t)
	w.change = func(s string) string { return strings.ReplaceAll(s, "user:{id}", "user:{id}:{email}") }
	wantFindings(t, w.examine(), "tables column_missing fatal")
	db.Exec(t, "ALTER TABLE users ADD email text")
	r := w.examine()
	wantFindings(t, r, "tables replica_identity widens")
	if c := find(r, "replica_identity"); c.Fix != "ALTER TABLE public.users REPLICA IDENTITY FULL;" || c.FixKind != SQL || c.Subject != "table public.users" {
		t.Errorf("%+v", c)
	}
	db.Exec(t, find(r, "replica_identity").Fix)
	wantFindings(t, w.examine())
	db.Exec(t, "ALTER PUBLICATION pub SET TABLE users (id)")
	wantFindings(t, w.examine(), "publication publication_columns fatal", "tables writes_refused fatal")
	db.Exec(t, "ALTER PUBLICATION pub SET TABLE users WHERE (id > 1)")
	wantFindings(t, w.examine(), "publication publication_row_filter fatal")
	db.Exec(t, "ALTER PUBLICATION pub DROP TABLE users", "ALTER PUBLICATION pub SET (publish = 'insert')")
	wantFindings(t, w.examine(), "publication publication_actions fatal", "publication publication_member fatal")
}

func TestColumnsWithSeveralTexts(t *testing.T) {
	w, db := newWorld(t)
	db.Exec(t, "CREATE EXTENSION IF NOT EXISTS citext", "ALTER TABLE users ADD mail citext, ADD amount numeric, ADD word text", "ALTER TABLE users REPLICA IDENTITY FULL",
		"CREATE TABLE orders (who numeric(10,2))", "ALTER TABLE orders REPLICA IDENTITY FULL", "ALTER PUBLICATION pub ADD TABLE orders")
	w.change = func(s string) string {
		return strings.Replace(s, "user:{id}\"", "user:{id}:{mail}:{amount}\"", 1)
	}
	r := w.examine()
	wantFindings(t, r, "tables key_several_texts warning", "tables key_several_texts warning")
	c := find(r, "key_several_texts")
	if c.Subject != "family user" || !strings.Contains(c.Message, "public.users.mail (citext)") || !strings.HasPrefix(c.Fix, "write {mail|lower} in the template") {
		t.Errorf("%+v", c)
	}
	w.change = func(s string) string {
		s = strings.Replace(s, "user:{id}\"", "user:{mail|lower}:{amount|number}:{word|lower}\"", 1)
		return strings.Replace(s, "keys: [user, search]", "keys: [user, search]\n    dependents: [\"who:{id}\"]\n  - {table: public.orders, dependents: [\"who:{who}\"]}", 1)
	}
	r = w.examine()
	wantFindings(t, r, "tables key_types_differ warning", "tables key_lower_differs warning", "tables key_lower_differs warning") // the database has the locale C
	if c := find(r, "key_lower_differs"); !strings.Contains(c.Message, "public.users.mail that are looked up") || !strings.Contains(c.Message, "À") {
		t.Errorf("%+v", c)
	}
	if c := find(r, "key_types_differ"); c.Subject != "dependents of who" || !strings.Contains(c.Message, "public.orders.who is numeric(10,2)") {
		t.Errorf("%+v", c)
	}
	if c := find(r, "key_merges_rows"); c.Severity != Notice || !strings.Contains(c.Message, "public.users.word") {
		t.Errorf("%+v", c)
	}
}

func TestSettingsOfTheSource(t *testing.T) {
	w, db := newWorld(t)
	db.Exec(t, "ALTER DATABASE "+db.Name+" SET synchronous_commit = off")
	r := w.examine()
	wantFindings(t, r, "source synchronous_commit warning")
	if c := find(r, "synchronous_commit"); c.Fix != "ALTER DATABASE "+db.Name+" RESET synchronous_commit;" {
		t.Errorf("%+v", c)
	}
	db.Exec(t, find(r, "synchronous_commit").Fix)
	wantFindings(t, w.examine())
	if c := find(w.examine(), "event_trigger"); c.Severity != Notice || !strings.Contains(c.Fix, "plan --config") {
		t.Errorf("%+v", c)
	}

	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: map[string]string{"wal_level": "replica", "synchronous_commit": "off"}})
	w.source, w.create = pg.URL(), true
	r = w.examine()
	if got := findings(r); !slices.Contains(got, "source wal_level fatal") || !slices.Contains(got, "source synchronous_commit warning") {
		t.Errorf("findings are %q", got)
	}
	if c := find(r, "wal_level"); !strings.HasPrefix(c.Fix, "ALTER SYSTEM SET wal_level = 'logical';") || c.FixKind != SQL {
		t.Errorf("%+v", c)
	}
	if c := find(r, "synchronous_commit"); c.Fix != "ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf();" {
		t.Errorf("%+v", c)
	}
}

func TestSlotThatKeepsMuchOrHasLostItsWAL(t *testing.T) {
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: map[string]string{"max_slot_wal_keep_size": "32MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}})
	db := servertest.NewDatabase(t, pg, "shop")
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY)", "CREATE PUBLICATION pub FOR TABLE users", "SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
	w := &world{t: t, source: db.URL, redis: servertest.Redis(t).URL, slot: "s"}
	if c := find(w.examine(), "max_slot_wal_keep_size"); c.Severity != OK || !strings.Contains(c.Message, "32 MiB") {
		t.Errorf("%+v", c)
	}
	fill := func() {
		db.Exec(t, "SELECT pg_switch_wal()", "INSERT INTO users VALUES (1); DELETE FROM users", "CHECKPOINT")
	}
	fill()
	fill()
	r := w.examine()
	wantFindings(t, r, "slot slot_retained warning")
	if c := find(r, "slot_retained"); !strings.Contains(c.Message, "is lost after") {
		t.Errorf("%+v", c)
	}
	for range 4 {
		fill()
	}
	wantFindings(t, w.examine(), "slot slot_lost warning")
}

func TestRedisThatIsFull(t *testing.T) {
	w, _ := newWorld(t)
	server := servertest.PrivateRedis(t, localserver.RedisOptions{})
	w.redis = server.URL()
	client := servertest.RedisClient(t, w.redis)
	set := func(name, value string) {
		t.Helper()
		if err := client.ConfigSet(t.Context(), name, value).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if c := find(w.examine(), "maxmemory"); c.Severity != Notice {
		t.Errorf("%+v", c)
	}
	set("maxmemory", "64mb")
	noVersions := func(s string) string {
		s = strings.Replace(s, "  search: {key: \"search:{version}:{q}\", version: search, class: critical, ttl: 10m}\n", "", 1)
		return strings.Replace(s, "[user, search]", "[user]", 1)
	}
	dependents := func(s string) string {
		return strings.Replace(s, "[user, search]", "[user, search]\n    dependents: [\"user:{id}\"]", 1)
	}
	forever := func(s string) string { return strings.ReplaceAll(s, ", ttl: 10m", "") }
	for _, c := range []struct {
		policy   string
		change   func(string) string
		severity Severity
		fix      string
	}{
		{"noeviction", nil, Warning, "CONFIG SET maxmemory-policy volatile-lru"},
		{"noeviction", noVersions, Warning, "CONFIG SET maxmemory-policy volatile-lru"},
		{"allkeys-lru", noVersions, Warning, "CONFIG SET maxmemory-policy volatile-lru"},
		{"allkeys-random", noVersions, Warning, "CONFIG SET maxmemory-policy volatile-lru"},
		{"allkeys-lru", nil, Warning, "CONFIG SET maxmemory-policy volatile-lru"},
		{"volatile-lru", nil, OK, ""},
		{"volatile-lru", forever, Notice, "give every family a ttl"},
		{"volatile-lru", dependents, Warning, "CONFIG SET maxmemory-policy noeviction"},
		{"allkeys-lfu", dependents, Warning, "CONFIG SET maxmemory-policy noeviction"},
		{"noeviction", dependents, Notice, "CONFIG SET maxmemory <more bytes>"},
	} {
		set("maxmemory-policy", c.policy)
		w.change = c.change
		if got := find(w.examine(), "maxmemory"); got.Severity != c.severity || got.Fix != c.fix {
			t.Errorf("%s: %+v, want %s with %q", c.policy, got, c.severity, c.fix)
		}
	}
}

func TestServersThatAreNotThere(t *testing.T) {
	w, _ := newWorld(t)
	source, redisURL := w.source, w.redis
	w.redis = "redis://127.0.0.1:1"
	r := w.examine()
	if !slices.Equal(r.Unreachable, []string{"redis"}) || r.OK || find(r, "server").Severity != OK {
		t.Errorf("%+v", r)
	}
	w.source, w.redis = "postgres://x@127.0.0.1:1/x", redisURL
	r = w.examine()
	if !slices.Equal(r.Unreachable, []string{"source"}) || r.OK || find(r, "redis_acl").Severity != OK {
		t.Errorf("%+v", r)
	}
	// A server that refuses the account is there.
	w.source = strings.Replace(source, "postgres://postgres:", "postgres://nobody:", 1)
	r = w.examine()
	wantFindings(t, r, "source source_connection fatal")
	w.source = source
	w.redis = strings.Replace(redisURL, "redis://", "redis://nobody:x@", 1)
	r = w.examine()
	if len(r.Unreachable) != 0 || find(r, "redis_connection").Severity != Fatal {
		t.Errorf("%+v", findings(r))
	}
}

func TestClocks(t *testing.T) {
	w, _ := newWorld(t)
	file, plan := w.load()
	for _, c := range []struct {
		offset, trip time.Duration
		want         Severity
	}{
		{0, time.Millisecond, OK},
		{249 * time.Millisecond, time.Millisecond, OK},
		{251 * time.Millisecond, time.Millisecond, Warning},
		{-time.Second, time.Millisecond, Warning},
		{time.Second, 3 * time.Second, OK}, // the answer took longer than that
	} {
		x := &examination{Options: Options{File: file, Plan: plan}, clock: &Group{}}
		x.skew("Postgres", c.offset, c.trip)
		if got := x.clock.Checks[0]; got.Severity != c.want {
			t.Errorf("%s within %s: %+v", c.offset, c.trip, got)
		}
	}
}

// Tables that nobody mapped, and of which our publication has the server refuse writes, are each
// named; what mends it mends it while a daemon reads.
func TestOurPublicationRefusesOthersWrites(t *testing.T) {
	for _, tc := range []struct{ publication, code string }{
		{"TABLES IN SCHEMA public", "publication_schema"}, {"ALL TABLES", "publication_all_tables"},
	} {
		w, db := newWorld(t)
		db.Exec(t, "CREATE TABLE audit_log (id int)", "BEGIN; DROP PUBLICATION pub; CREATE PUBLICATION pub FOR "+tc.publication+" WITH (publish_via_partition_root); COMMIT")
		r := w.examine()
		wantFindings(t, r, "publication publication_refuses fatal")
		notice, c := find(r, tc.code), find(r, "publication_refuses")
		if notice.Severity != Notice || c.Subject != "table public.audit_log" || c.FixKind != SQL || !strings.HasPrefix(c.Fix, notice.Fix) {
			t.Errorf("%+v\n%+v", notice, c)
		}
		db.Exec(t, c.Fix, "INSERT INTO audit_log VALUES (1); UPDATE audit_log SET id = 2")
		wantFindings(t, w.examine())
	}
}
