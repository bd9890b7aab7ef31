package integration

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

const readingSchema = `
	CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN feeling AS mood; CREATE TYPE pair AS (a text, m mood);
	CREATE TABLE users (id int PRIMARY KEY, name text, note text); INSERT INTO users SELECT i, 'v0', 'n0' FROM generate_series(1, 9) i;
	CREATE TABLE others (LIKE users INCLUDING ALL); INSERT INTO others SELECT i, 'w0', 'n0' FROM generate_series(1, 9) i;
	CREATE TABLE events (id int, t int, name text, PRIMARY KEY (id, t)) PARTITION BY LIST (t); CREATE TABLE events1 PARTITION OF events FOR VALUES IN (1);
	INSERT INTO events VALUES (1, 1, 'e0'); CREATE TABLE empty (id int, name text); ALTER TABLE empty REPLICA IDENTITY FULL`

const readingMappings = `
classes:
  critical: {staleness: 1s}
keys:
  user:  {key: "user:{id}", class: critical, ttl: 10m}
  other: {key: "other:{id}", class: critical}
mappings:
  - {table: public.users, keys: [user]}
  - {table: public.others, keys: [other]}
  - {table: public.events, keys: [user]}
  - {table: public.empty, keys: [user]}
`

// readingChange changes what a loader reads, in a way of which the log says nothing, or less
// than it seems. The statements are run one by one, as fast as they go.
type readingChange struct {
	name    string
	prepare []string // before the daemon starts
	change  []string
	read    string
	as      string // the role that reads
	unseen  bool   // and is not followed from then on
}

const publishedForReading = `ALTER PUBLICATION %s SET TABLE users, others, events, empty`

func readingChanges(version int) []readingChange {
	const name, event = nameOfUser, `SELECT coalesce(max(name), '') FROM events WHERE id = 1`
	const rename = `UPDATE users SET name = 'v1' WHERE id = 1`
	sad := keys(`ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'`)
	column := func(definition string) []string { return keys(`ALTER TABLE users ADD x ` + definition) }
	around := func(before, after string) []string { return keys(before, rename, after) }
	const x = `SELECT x::text FROM users WHERE id = 1`
	all := []readingChange{
		{name: "a value of an enum", prepare: column(`mood DEFAULT 'sad'`), change: sad, read: x},
		{name: "of a domain over one", prepare: column(`feeling DEFAULT 'sad'`), change: sad, read: x},
		{name: "of an array of such", prepare: column(`feeling[] DEFAULT '{sad}'`), change: sad, read: x},
		{name: "inside of a composite", prepare: column(`pair DEFAULT ROW('a', 'sad')`), change: sad, read: x},
		{name: "a field's name", prepare: column(`pair DEFAULT ROW('a', 'sad')`), change: keys(`ALTER TYPE pair RENAME ATTRIBUTE a TO b`), read: `SELECT row_to_json(x)::text FROM users WHERE id = 1`},
		{name: "another field", prepare: column(`pair DEFAULT ROW('a', 'sad')`), change: keys(`ALTER TYPE pair ADD ATTRIBUTE c int`), read: x},
		{name: "row security", change: keys(`ALTER TABLE users ENABLE ROW LEVEL SECURITY`), read: `SELECT coalesce(max(name), '') FROM users WHERE id = 1`, as: "lesser"},
		{name: "a policy", prepare: keys(`ALTER TABLE users ENABLE ROW LEVEL SECURITY`), change: keys(`CREATE POLICY p ON users USING (true)`), read: `SELECT coalesce(max(name), '') FROM users WHERE id = 1`, as: "lesser"},
		{name: "a policy that is altered", prepare: keys(`ALTER TABLE users ENABLE ROW LEVEL SECURITY`, `CREATE POLICY p ON users USING (true)`), change: keys(`ALTER POLICY p ON users USING (id > 5)`),
			read: `SELECT coalesce(max(name), '') FROM users WHERE id = 1`, as: "lesser"},
		{name: "a policy that is dropped", prepare: keys(`ALTER TABLE users ENABLE ROW LEVEL SECURITY`, `CREATE POLICY p ON users USING (true)`), change: keys(`DROP POLICY p ON users`),
			read: `SELECT coalesce(max(name), '') FROM users WHERE id = 1`, as: "lesser"},
		{name: "two tables swapped", change: keys(`BEGIN; ALTER TABLE users RENAME TO t; ALTER TABLE others RENAME TO users; ALTER TABLE t RENAME TO others; COMMIT`), read: name},
		{name: "two tables swapped, and a row", change: keys(`BEGIN; ALTER TABLE users RENAME TO t; ALTER TABLE others RENAME TO users; ALTER TABLE t RENAME TO others; COMMIT`, rename), read: name},
		{name: "no updates for a moment", change: around(`ALTER PUBLICATION %s SET (publish = 'insert')`, `ALTER PUBLICATION %s SET (publish = 'insert, update, delete, truncate')`), read: name},
		{name: "a row filter for a moment", change: around(`ALTER PUBLICATION %s SET TABLE users WHERE (id > 5), others, events, empty`, publishedForReading), read: name},
		{name: "a column list for a moment", change: around(`ALTER PUBLICATION %s SET TABLE users (id), others, events, empty`, publishedForReading), read: name},
		{name: "not published for a moment", change: around(`ALTER PUBLICATION %s DROP TABLE users`, `ALTER PUBLICATION %s ADD TABLE users`), read: name},
		{name: "not published within a transaction", change: keys(`BEGIN; ALTER PUBLICATION %s DROP TABLE users; ` + rename + `; ALTER PUBLICATION %s ADD TABLE users; COMMIT`), read: name},
		{name: "another publication under its name", change: keys(`BEGIN; DROP PUBLICATION %s; CREATE PUBLICATION %s WITH (publish_via_partition_root); COMMIT`, rename, publishedForReading), read: name},
		{name: "under the partitions' names for a moment", change: keys(`ALTER PUBLICATION %s SET (publish_via_partition_root = false)`, `UPDATE events SET name = 'e1'`, `ALTER PUBLICATION %s SET (publish_via_partition_root = true)`), read: event},
		{name: "the publication is another's", change: keys(`ALTER PUBLICATION %s OWNER TO lesser`, rename, `ALTER PUBLICATION %s OWNER TO CURRENT_USER`), read: name},
		{name: "a session without triggers", change: keys(`ALTER TABLE users DISABLE TRIGGER ALL; SET session_replication_role = replica; `+rename, `RESET session_replication_role`), read: name},
		{name: "under an origin", prepare: keys(`SELECT pg_replication_origin_create('%s')`), change: keys(`SELECT pg_replication_origin_session_setup('%s')`, rename, `SELECT pg_replication_origin_session_reset()`), read: name},
		{name: "logged again", prepare: keys(`ALTER PUBLICATION %s SET TABLES IN SCHEMA public`), change: around(`ALTER TABLE users SET UNLOGGED`, `ALTER TABLE users SET LOGGED`), read: name},
		{name: "a partition with rows in it", prepare: keys(`CREATE TABLE events2 (LIKE events INCLUDING ALL); INSERT INTO events2 VALUES (1, 2, 'e2')`), change: keys(`ALTER TABLE events ATTACH PARTITION events2 FOR VALUES IN (2)`), read: event},
		{name: "a new partition, and a row", change: keys(`CREATE TABLE events2 PARTITION OF events FOR VALUES IN (2)`, `INSERT INTO events VALUES (1, 2, 'e2')`), read: event},
		{name: "rows that a partition takes from the default one", prepare: keys(`CREATE TABLE eventsd PARTITION OF events DEFAULT; INSERT INTO events VALUES (1, 2, 'e2')`), read: event,
			change: keys(`BEGIN; ALTER TABLE events DETACH PARTITION eventsd; TRUNCATE eventsd; CREATE TABLE events2 PARTITION OF events FOR VALUES IN (2); ALTER TABLE events ATTACH PARTITION eventsd DEFAULT; INSERT INTO events VALUES (1, 2, 'e3'); COMMIT`)},
		{name: "a child with rows in it", prepare: keys(`CREATE TABLE child (LIKE users); INSERT INTO child VALUES (1, 'x', '')`), change: keys(`ALTER TABLE child INHERIT users`), read: `SELECT max(name) FROM users WHERE id = 1`, unseen: true},
		{name: "a generated column of another expression", prepare: column(`text GENERATED ALWAYS AS (name || 'a') STORED`), change: keys(`BEGIN; ALTER TABLE users DROP x; ALTER TABLE users ADD x text GENERATED ALWAYS AS (name || 'b') STORED; COMMIT`), read: x},
	}
	if version < 160000 {
		all = append(all, readingChange{name: "an empty table that is made a view", change: keys(`CREATE RULE "_RETURN" AS ON SELECT TO empty DO INSTEAD SELECT id, name FROM users`),
			read: `SELECT coalesce(max(name), '') FROM empty WHERE id = 1`, unseen: true})
	}
	if version >= 170000 {
		all = append(all, readingChange{name: "another expression", prepare: column(`text GENERATED ALWAYS AS (name || 'a') STORED`), change: keys(`ALTER TABLE users ALTER x SET EXPRESSION AS (name || 'b')`), read: x})
	}
	if version >= 180000 {
		all = append(all, readingChange{name: "another expression that is not stored", prepare: column(`text GENERATED ALWAYS AS (name || 'a') VIRTUAL`), change: keys(`ALTER TABLE users ALTER x SET EXPRESSION AS (name || 'b')`), read: x})
	}
	return all
}

// Whatever changes what a loader reads of a mapped table, a read of the library does not begin
// later than the class's staleness after it and return what was there before. Where changes are
// not seen from then on, the state does not become ok.
func TestReadingChangesKeepTheBudget(t *testing.T) {
	for _, trigger := range []bool{true, false} {
		mode := "with the catalogs alone"
		if trigger {
			mode = "with the event trigger"
		}
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			for _, c := range readingChanges(newWorld(t, "SELECT", readingMappings).version()) {
				t.Run(c.name, func(t *testing.T) {
					w := newWorld(t, readingSchema, readingMappings)
					lesser := "lesser_" + w.slot
					named := func(sql []string) []string {
						var out []string
						for _, s := range w.withPublication(sql) {
							out = append(out, strings.ReplaceAll(s, "lesser", lesser))
						}
						return out
					}
					w.exec(`CREATE ROLE `+lesser, `GRANT SELECT ON users TO `+lesser, `DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO `+lesser+`', current_database()); END $$`)
					w.exec(w.withPublication(keys(`CREATE PUBLICATION %s FOR TABLE users, others, events, empty WITH (publish_via_partition_root)`))...)
					w.exec(named(c.prepare)...)
					if trigger {
						w.withTrigger()
					}
					p := w.start()
					read := w.loader(c.read, strings.ReplaceAll(c.as, "lesser", lesser))
					old := read()
					w.eventually("it is cached", func() bool { return read() == old && w.cachedNow("user:1") })
					age := w.silence([]func() string{read}, old, named(c.change)...)
					if age > time.Second {
						t.Errorf("a read that began %s afterwards returned what was there before", age)
					}
					t.Logf("the last read of what was there before began %s afterwards", age.Round(time.Millisecond))
					if c.unseen {
						w.eventually("the state is behind", func() bool { return w.control()["state"] == "catching_up" })
						if err := p.cmd.Process.Kill(); err != nil {
							t.Fatal(err)
						}
					} else {
						w.settle(p)
						p.stop()
					}
					w.exec(`DROP OWNED BY ` + lesser + `; DROP ROLE ` + lesser)
				})
			}
		})
	}
}

func (w *world) version() int {
	return query[int](w, `SELECT current_setting('server_version_num')::int`)
}

// loader reads through the library what the statement says, for the user with id 1.
func (w *world) loader(sql, as string) func() string {
	w.t.Helper()
	t := w.t
	pool, err := pgxpool.New(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	c, err := cache.Open(t.Context(), w.rdb, pool, cache.WithMappings(w.config), cache.WithCodec(cache.Raw))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	view, err := cache.Family[string](c, "user")
	if err != nil {
		t.Fatal(err)
	}
	return func() string {
		value, err := view.Get(t.Context(), cache.Vars{"id": 1}, func(ctx context.Context, tx pgx.Tx) (value string, err error) {
			if as != "" {
				if _, err := tx.Exec(ctx, "SET LOCAL ROLE "+as); err != nil {
					return "", err
				}
			}
			err = tx.QueryRow(ctx, sql).Scan(&value)
			return value, err
		})
		if err != nil {
			t.Error(err)
		}
		return value
	}
}
