package integration

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

const findingsSchema = `
	CREATE SCHEMA side;
	CREATE FOREIGN DATA WRAPPER none; CREATE SERVER nowhere FOREIGN DATA WRAPPER none;
	CREATE TABLE users (id int PRIMARY KEY, name text, note text); ALTER TABLE users REPLICA IDENTITY FULL;
	INSERT INTO users SELECT i, 'v0', 'n' FROM generate_series(1, 9) i;
	CREATE TABLE vips (LIKE users, PRIMARY KEY (id)); ALTER TABLE vips REPLICA IDENTITY FULL;
	CREATE TABLE orders (id int, t int, PRIMARY KEY (id, t)) PARTITION BY LIST (t); ALTER TABLE orders REPLICA IDENTITY FULL;
	CREATE TABLE orders1 PARTITION OF orders FOR VALUES IN (1); ALTER TABLE orders1 REPLICA IDENTITY FULL;
	CREATE TABLE events (id int NOT NULL, t int) PARTITION BY LIST (t); ALTER TABLE events REPLICA IDENTITY FULL;
	CREATE TABLE events1 PARTITION OF events FOR VALUES IN (1); ALTER TABLE events1 REPLICA IDENTITY FULL;
	CREATE TABLE extra (id int PRIMARY KEY)`

const findingsMappings = `
classes:
  critical: {staleness: 1s}
keys:
  user:  {key: "user:{id}", class: critical, ttl: 10m}
  name:  {key: "name:{name}", class: critical}
  order: {key: "order:{id}", class: critical}
  event: {key: "event:{id}", class: critical}
  extra: {key: "extra:{id}", class: critical}
  vip:   {key: "vip:{id}", class: critical}
mappings:
  - table: public.users
    keys: [user, name]
  - table: public.orders
    keys: [order]
  - table: public.events
    keys: [event]
  - table: public.extra
    keys: [extra]
  - table: public.vips
    keys: [vip, name]
`

const allPublished = `ALTER PUBLICATION %s SET TABLE users, orders, events, extra, vips`

// A situation makes one finding happen under a running daemon. write is a change that is
// then made, read is how a loader sees it; "" for none.
type situation struct {
	code        replication.FindingCode
	name        string
	prepare     []string
	make        []string
	write, read string
	mend        []string
	prefix      string // of keys of the table
}

const (
	nameOfUser   = `SELECT name FROM users WHERE id = 1`
	renameUsers  = `UPDATE users SET name = 'v1' WHERE id = 1`
	usersAreBack = `ALTER TABLE accounts RENAME TO users`
)

func situations() []situation {
	instead := func(make, drop string) ([]string, []string) {
		return keys(`BEGIN; ALTER TABLE users RENAME TO accounts; ` + make + `; COMMIT`), keys(`BEGIN; ` + drop + `; ` + usersAreBack + `; COMMIT`)
	}
	view, noView := instead(`CREATE VIEW users AS SELECT * FROM accounts`, `DROP VIEW users`)
	matview, noMatview := instead(`CREATE MATERIALIZED VIEW users AS SELECT * FROM accounts`, `DROP MATERIALIZED VIEW users`)
	foreign, noForeign := instead(`CREATE FOREIGN TABLE users (id int, name text) SERVER nowhere`, `DROP FOREIGN TABLE users`)
	sequence, noSequence := instead(`CREATE SEQUENCE users`, `DROP SEQUENCE users`)
	bySchema := keys(`ALTER PUBLICATION %s SET TABLES IN SCHEMA public`)
	const updateAccounts = `UPDATE accounts SET name = 'v1' WHERE id = 1`
	const nameOfAccount = `SELECT name FROM accounts WHERE id = 1`
	return []situation{
		{code: replication.TableInherited, name: "a child", make: keys(`BEGIN; CREATE TABLE users_2025 () INHERITS (users); DELETE FROM ONLY users WHERE id = 1; INSERT INTO users_2025 VALUES (1, 'v0'); COMMIT`),
			write: renameUsers, read: nameOfUser, mend: keys(`BEGIN; DROP TABLE users_2025; INSERT INTO users VALUES (1, 'v1'); COMMIT`)},
		{code: replication.TableInherited, name: "a child that is mapped to less", make: keys(`BEGIN; ALTER TABLE vips INHERIT users; DELETE FROM ONLY users WHERE id = 1; INSERT INTO vips VALUES (1, 'v0'); COMMIT`),
			write: renameUsers, read: nameOfUser, mend: keys(`BEGIN; ALTER TABLE vips NO INHERIT users; DELETE FROM vips; INSERT INTO users VALUES (1, 'v1'); COMMIT`)},
		{code: replication.TableIsView, name: "a view over it", make: view, write: renameUsers, read: nameOfUser, mend: noView},
		{code: replication.TableIsView, name: "a materialized view", make: matview, write: `BEGIN; ` + updateAccounts + `; REFRESH MATERIALIZED VIEW users; COMMIT`, read: nameOfUser, mend: noMatview},
		{code: replication.TableIsForeign, name: "a foreign table in its place", make: foreign, write: updateAccounts, mend: noForeign},
		{code: replication.TableIsForeign, name: "a foreign child", make: keys(`CREATE FOREIGN TABLE users_f () INHERITS (users) SERVER nowhere`), mend: keys(`DROP FOREIGN TABLE users_f`)},
		{code: replication.TableIsForeign, name: "a foreign partition", make: keys(`CREATE FOREIGN TABLE events_f PARTITION OF events FOR VALUES IN (7) SERVER nowhere`), mend: keys(`DROP FOREIGN TABLE events_f`), prefix: "event:"},
		{code: replication.NoTable, name: "a sequence", make: sequence, write: updateAccounts, mend: noSequence},
		{code: replication.TableMoved, name: "another name", make: keys(`ALTER TABLE users RENAME TO accounts`), write: updateAccounts, read: nameOfAccount, mend: keys(usersAreBack)},
		{code: replication.TableMoved, name: "another schema", make: keys(`ALTER TABLE users SET SCHEMA side`), write: `UPDATE side.users SET name = 'v1' WHERE id = 1`,
			read: `SELECT name FROM side.users WHERE id = 1`, mend: keys(`ALTER TABLE side.users SET SCHEMA public`)},
		{code: replication.TableUnlogged, name: "an unlogged partition", make: keys(`CREATE UNLOGGED TABLE events3 PARTITION OF events FOR VALUES IN (3)`),
			write: `INSERT INTO events VALUES (1, 3)`, mend: keys(`DROP TABLE events3`), prefix: "event:"},
		{code: replication.TableUnlogged, name: "unlogged", prepare: bySchema, make: keys(`ALTER TABLE users SET UNLOGGED`), write: renameUsers, read: nameOfUser,
			mend: keys(`ALTER TABLE users SET LOGGED`, `ALTER PUBLICATION %s DROP TABLES IN SCHEMA public`, allPublished)},
		{code: replication.TableIsPartition, name: "attached", make: keys(`CREATE TABLE above (LIKE users, PRIMARY KEY (id)) PARTITION BY RANGE (id); ALTER TABLE above ATTACH PARTITION users FOR VALUES FROM (0) TO (100000)`),
			write: renameUsers, read: nameOfUser, mend: keys(`ALTER TABLE above DETACH PARTITION users; DROP TABLE above`)},
		{code: replication.TableMissing, name: "dropped", make: keys(`DROP TABLE extra`), mend: keys(`CREATE TABLE extra (id int PRIMARY KEY); ALTER PUBLICATION %s ADD TABLE extra`), prefix: "extra:"},
		{code: replication.ColumnMissing, name: "a column renamed", make: keys(`ALTER TABLE users RENAME name TO title`), write: `UPDATE users SET title = 'v1' WHERE id = 1`, mend: keys(`ALTER TABLE users RENAME title TO name`)},
		{code: replication.ColumnGenerated, name: "a column generated", make: keys(`BEGIN; ALTER TABLE users DROP name; ALTER TABLE users ADD name text GENERATED ALWAYS AS (upper(note)) STORED; COMMIT`),
			write: `UPDATE users SET note = 'x' WHERE id = 1`, mend: keys(`BEGIN; ALTER TABLE users DROP name; ALTER TABLE users ADD name text DEFAULT 'v0'; COMMIT`)},
		{code: replication.NoReplicaIdentity, name: "no identity", make: keys(`ALTER TABLE users REPLICA IDENTITY NOTHING`), mend: keys(`ALTER TABLE users REPLICA IDENTITY FULL`)},
		{code: replication.PartitionIdentity, name: "a partition logs less", make: keys(`ALTER TABLE orders1 REPLICA IDENTITY DEFAULT`), write: `INSERT INTO orders VALUES (1, 1) ON CONFLICT (id, t) DO UPDATE SET t = 1`,
			mend: keys(`ALTER TABLE orders1 REPLICA IDENTITY FULL; DELETE FROM orders`), prefix: "order:"},
		{code: replication.IdentityNarrow, name: "old values are not logged", make: keys(`ALTER TABLE users REPLICA IDENTITY DEFAULT`), write: renameUsers, mend: keys(`ALTER TABLE users REPLICA IDENTITY FULL`)},
		{code: replication.IdentityIndex, name: "an index", make: keys(`ALTER TABLE users REPLICA IDENTITY USING INDEX users_pkey`), write: renameUsers, mend: keys(`ALTER TABLE users REPLICA IDENTITY FULL`)},
		{code: replication.NoReplicaIdentity, name: "its index dropped", prepare: keys(`CREATE UNIQUE INDEX extra_i ON extra (id)`, `ALTER TABLE extra REPLICA IDENTITY USING INDEX extra_i`), make: keys(`DROP INDEX extra_i`),
			mend: keys(`ALTER TABLE extra REPLICA IDENTITY DEFAULT`), prefix: "extra:"},
		// No row may change meanwhile: some versions cannot decode it any more.
		{code: replication.PublicationMissing, name: "renamed", make: keys(`ALTER PUBLICATION %s RENAME TO gone`), mend: keys(`ALTER PUBLICATION gone RENAME TO %s`)},
		{code: replication.PublicationActions, name: "no updates", make: keys(`ALTER PUBLICATION %s SET (publish = 'insert, delete, truncate')`), write: renameUsers, read: nameOfUser,
			mend: keys(`ALTER PUBLICATION %s SET (publish = 'insert, update, delete, truncate')`)},
		{code: replication.PublicationActions, name: "no truncate", make: keys(`ALTER PUBLICATION %s SET (publish = 'insert, update, delete')`), write: `TRUNCATE extra`,
			mend: keys(`ALTER PUBLICATION %s SET (publish = 'insert, update, delete, truncate')`), prefix: "extra:"},
		{code: replication.PublicationViaRoot, name: "under the partitions' names", make: keys(`ALTER PUBLICATION %s SET (publish_via_partition_root = false)`), write: `INSERT INTO orders VALUES (2, 1)`,
			mend: keys(`ALTER PUBLICATION %s SET (publish_via_partition_root = true)`), prefix: "order:"},
		{code: replication.PublicationMember, name: "taken out", make: keys(`ALTER PUBLICATION %s DROP TABLE users`), write: renameUsers, read: nameOfUser, mend: keys(`ALTER PUBLICATION %s ADD TABLE users`)},
		{code: replication.PublicationMember, name: "another list", make: keys(`ALTER PUBLICATION %s SET TABLE orders, events, extra, vips`), write: renameUsers, read: nameOfUser, mend: keys(allPublished)},
		{code: replication.PublicationMember, name: "the schema taken out", prepare: bySchema, make: keys(`ALTER PUBLICATION %s DROP TABLES IN SCHEMA public`), write: renameUsers, read: nameOfUser, mend: keys(allPublished)},
		{code: replication.PublicationMember, name: "another table under its name", make: keys(`BEGIN; ALTER TABLE users RENAME TO old_users; CREATE TABLE users (LIKE old_users INCLUDING ALL); INSERT INTO users SELECT * FROM old_users;
			ALTER TABLE users REPLICA IDENTITY FULL; COMMIT`), write: renameUsers, read: nameOfUser, mend: keys(`DROP TABLE old_users; ALTER PUBLICATION %s ADD TABLE users`)},
		{code: replication.PublicationFiltered, name: "filtered", make: keys(`ALTER PUBLICATION %s SET TABLE users WHERE (id > 5), orders, events, extra, vips`), write: renameUsers, read: nameOfUser, mend: keys(allPublished)},
		{code: replication.PublicationColumns, name: "a list of columns", prepare: keys(`ALTER TABLE users REPLICA IDENTITY DEFAULT`), make: keys(`ALTER PUBLICATION %s SET TABLE users (id), orders, events, extra, vips`),
			write: renameUsers, mend: keys(allPublished, `ALTER TABLE users REPLICA IDENTITY FULL`)},
		{code: replication.PublicationAll, name: "all tables", make: keys(`BEGIN; DROP PUBLICATION %s; CREATE PUBLICATION %s FOR ALL TABLES WITH (publish_via_partition_root); COMMIT`), write: renameUsers,
			mend: keys(`BEGIN; DROP PUBLICATION %s; CREATE PUBLICATION %s FOR TABLE users, orders, events, extra, vips WITH (publish_via_partition_root); COMMIT`)},
		{code: replication.PublicationSchemas, name: "a schema", make: bySchema, write: renameUsers, mend: keys(allPublished)},
	}
}

// Everything that can be found out about a table happens to a daemon that runs. Where it
// means that changes are not seen, the state, readiness and freshness say so, the library
// does not return what was replaced, and what was missed is gone before all is fresh again.
// Where it does not, changes are followed.
func TestEveryFindingWhileRunning(t *testing.T) {
	list := situations()
	for _, code := range replication.FindingCodes() {
		if !code.OfWrites() && !slices.ContainsFunc(list, func(s situation) bool { return s.code == code }) {
			t.Errorf("%s never happens here", code)
		}
	}
	for _, trigger := range []bool{false, true} {
		name := "with the catalogs alone"
		if trigger {
			name = "with the event trigger"
		}
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, findingsSchema, findingsMappings)
			w.exec(w.withPublication(keys(`CREATE PUBLICATION %s FOR TABLE users, orders, events, extra, vips WITH (publish_via_partition_root)`))...)
			if trigger {
				w.withTrigger()
			}
			p, address := w.startHTTP()
			readers := w.users()
			for _, s := range list {
				t.Run(string(s.code)+": "+s.name, func(t *testing.T) {
					outer := w.t
					w.t = t
					defer func() { w.t = outer }()
					w.happens(p, address, readers, s)
				})
				if t.Failed() {
					break // what is not mended would fail the others
				}
			}
			p.stop()
		})
	}
}

func (w *world) happens(p *process, address string, readers func(sql string) (string, error), s situation) {
	t := w.t
	t.Helper()
	const budget = time.Second
	ready := func() bool {
		response, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response.StatusCode == http.StatusOK
	}
	prefix := s.prefix
	if prefix == "" {
		prefix = "user:"
	}
	w.exec(w.withPublication(s.prepare)...)
	w.settle(p)
	said := p.logged("finding=" + string(s.code) + " ")
	w.exec(w.withPublication(s.make)...)
	if s.read != "" {
		if got, err := readers(s.read); err != nil || got != "v0" {
			t.Fatalf("read %q, %v", got, err)
		}
	}
	// By the source's clock, before the change can be seen.
	before := query[int64](w, `SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint`)
	if s.write != "" {
		w.exec(s.write)
	}
	written := time.Now()
	w.eventually("the finding is told of", func() bool { return p.logged("finding="+string(s.code)+" ") > said })
	if s.code.Unseen() {
		w.eventually("the state is behind", func() bool { return w.control()["state"] == "catching_up" && !ready() })
		if fresh := w.freshAsOf(); fresh >= before {
			t.Errorf("fresh as of %d us after the change was not seen", fresh-before)
		}
		w.put(prefix + "76")
		if s.read != "" {
			w.eventually("a reader has the new value", func() bool {
				began := time.Now()
				got, err := readers(s.read)
				if err != nil {
					t.Fatal(err)
				}
				if got != "v1" && began.Sub(written) > budget {
					t.Fatalf("a value was returned %s after it had been replaced", began.Sub(written))
				}
				return got == "v1"
			})
		}
	} else if s.write != "" {
		w.put(prefix + "1")
		w.exec(s.write) // once more, for a key that is there
		w.eventually("the change is seen", func() bool { return !w.cachedNow(prefix + "1") })
		w.settle(p)
	}
	w.exec(w.withPublication(s.mend)...)
	w.settle(p)
	w.eventually("all is well", func() bool { return ready() && w.condition(address, "catalog").OK })
	if w.cachedNow(prefix + "76") {
		t.Error("it is fresh again, and what was missed meanwhile is still there")
	}
	w.exec(`UPDATE users SET name = 'v0' WHERE id = 1`)
	w.settle(p)
}

// users reads the name of a user through the library.
func (w *world) users() func(sql string) (string, error) {
	pool, err := pgxpool.New(w.t.Context(), w.url)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(pool.Close)
	c, err := cache.Open(w.t.Context(), w.rdb, pool, cache.WithMappings(w.config), cache.WithCodec(cache.Raw))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx := w.t.Context()
	w.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.t.Error(err)
		}
	})
	view, err := cache.Family[string](c, "user")
	if err != nil {
		w.t.Fatal(err)
	}
	return func(sql string) (string, error) {
		return view.Get(ctx, cache.Vars{"id": 1}, func(ctx context.Context, tx pgx.Tx) (string, error) {
			var name string
			err := tx.QueryRow(ctx, sql).Scan(&name)
			return name, err
		})
	}
}
