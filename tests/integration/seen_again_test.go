package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// ready says whether the daemon says so.
func (w *world) ready(address string) bool {
	w.t.Helper()
	code, _ := w.answered(address, "/readyz")
	return code == http.StatusOK
}

// A table like the ones of TimescaleDB: what is inserted into it makes a child in another schema,
// and goes there. It is empty when the daemon starts, so nothing speaks against it.
const hypertable = `
	CREATE SCHEMA chunks;
	CREATE TABLE users (id int PRIMARY KEY, name text); ALTER TABLE users REPLICA IDENTITY FULL;
	CREATE FUNCTION chunk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		CREATE TABLE IF NOT EXISTS chunks.one (PRIMARY KEY (id)) INHERITS (public.users);
		INSERT INTO chunks.one VALUES (NEW.*);
		RETURN NULL;
	END $$;
	CREATE TRIGGER chunk BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION chunk()`

const hypertableMappings = `
classes:
  critical: {staleness: 1s}
keys:
  user: {key: "user:{id}", class: critical, ttl: 10m}
mappings:
  - {table: public.users, keys: [user]}
`

func TestChildThatTheFirstInsertMakes(t *testing.T) {
	for _, trigger := range []bool{false, true} {
		t.Run(fmt.Sprintf("event trigger %v", trigger), func(t *testing.T) {
			const budget = time.Second
			w := newWorld(t, hypertable, hypertableMappings)
			if trigger {
				w.withTrigger()
			}
			p, address := w.startHTTP()
			read := w.loader(`SELECT coalesce(max(name), '') FROM users WHERE id = 1`, "")
			w.eventually("that there is none is cached", func() bool { return read() == "" && w.cachedNow("user:1") })
			fresh := func(what, old string, sql ...string) {
				t.Helper()
				if age := w.silence([]func() string{read}, old, sql...); age > budget {
					t.Errorf("%s: a read that began %s afterwards returned what was there before", what, age)
				}
			}
			fresh("the first row", "", `INSERT INTO users VALUES (1, 'v1')`)
			w.eventually("the state is behind", func() bool { return w.control()["state"] == "catching_up" && !w.ready(address) })
			if p.logged("finding=inherits") == 0 {
				t.Error("the log does not say why")
			}
			before := query[int64](w, `SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint`)
			fresh("a change of it", "v1", `UPDATE users SET name = 'v2' WHERE id = 1`)
			if at := w.freshAsOf(); at >= before {
				t.Errorf("fresh as of %d us after a change that is not seen", at-before)
			}
			// As the fix says.
			w.exec(w.withPublication(keys(`ALTER TABLE chunks.one REPLICA IDENTITY FULL; ALTER PUBLICATION %s ADD TABLE chunks.one`))...)
			w.writeConfig(hypertableMappings + "  - {table: chunks.one, keys: [user]}\n")
			p.reload(reloaded)
			w.settle(p)
			w.eventually("it is ready", func() bool { return w.ready(address) })
			fresh("a change that is followed", "v2", `UPDATE users SET name = 'v3' WHERE id = 1`)
			w.settle(p)
			p.stop()
		})
	}
}

// What was open while a table's changes were not sent may be sent without its beginning, or not
// at all. So after the repair nothing is fresh until all of it has ended, and what it
// changed is gone by then; whoever was late, and however it was repaired.
func TestSeenAgainOnceOpenTransactionsHaveEnded(t *testing.T) {
	childMapped := findingsMappings + "  - {table: public.users_2025, keys: [user, name]}\n"
	for _, c := range []struct {
		name               string
		spoil, mend        []string
		write              string
		config             string // that repairs it, by a reload
		restart            bool
		stoppedBeforeSpoil bool // nobody has ever looked while it was unseen
	}{
		{name: "by SQL", spoil: keys(`ALTER PUBLICATION %s DROP TABLE users`), mend: keys(`ALTER PUBLICATION %s ADD TABLE users`), write: renameUsers},
		{name: "by a reload", spoil: keys(`BEGIN; CREATE TABLE users_2025 () INHERITS (users); ALTER TABLE users_2025 REPLICA IDENTITY FULL; DELETE FROM ONLY users WHERE id = 1; INSERT INTO users_2025 VALUES (1, 'v0'); COMMIT`),
			mend: keys(`ALTER PUBLICATION %s ADD TABLE users_2025`), write: renameUsers, config: childMapped},
		{name: "before a restart", spoil: keys(`ALTER PUBLICATION %s DROP TABLE users`), mend: keys(`ALTER PUBLICATION %s ADD TABLE users`), write: renameUsers, restart: true},
		{name: "while no daemon ran", spoil: keys(`ALTER PUBLICATION %s DROP TABLE users`), mend: keys(`ALTER PUBLICATION %s ADD TABLE users`), write: renameUsers, restart: true, stoppedBeforeSpoil: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, findingsSchema, findingsMappings)
			w.exec(w.withPublication(keys(`CREATE PUBLICATION %s FOR TABLE users, orders, events, extra, vips WITH (publish_via_partition_root)`))...)
			p, address := w.startHTTP()
			if c.stoppedBeforeSpoil {
				p.stop()
			}
			w.exec(w.withPublication(c.spoil)...)
			if !c.stoppedBeforeSpoil {
				w.eventually("it is unseen", func() bool { return w.control()["state"] == "catching_up" && !w.ready(address) })
			}
			other := servertest.Connect(t, w.url)
			tx, err := other.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), c.write); err != nil {
				t.Fatal(err)
			}
			if c.restart && !c.stoppedBeforeSpoil {
				p.stop()
			}
			w.exec(w.withPublication(c.mend)...)
			switch {
			case c.restart:
				p = w.launch()
				w.eventually("it streams", func() bool { return p.logged("msg=streaming") > 0 })
				w.eventually("it serves its pages", func() bool { address = p.address(); return address != "" })
			case c.config != "":
				w.writeConfig(c.config)
				p.reloadSays(reloaded)
			}
			w.eventually("it waits for the transaction", func() bool {
				return strings.Contains(w.condition(address, "lag").Reason, "transactions from before are still open")
			})
			fresh := w.freshAsOf()
			looks := p.metric(`cdc_invalidator_catalog_looks_total{kind="wide"}`)
			w.eventually("it has looked some more", func() bool { return p.metric(`cdc_invalidator_catalog_looks_total{kind="wide"}`) >= looks+5 })
			if at := w.freshAsOf(); at != fresh || w.control()["state"] != "catching_up" || w.ready(address) {
				t.Errorf("state %s, fresh as of %d us later, while a transaction of that time is open", w.control()["state"], at-fresh)
			}
			w.put("user:1", "user:9")
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.eventually("the state is ok", func() bool { return w.control()["state"] == "ok" })
			if w.cachedNow("user:1") {
				t.Error("the state is ok, and what the transaction replaced is still there")
			}
			w.settle(p)
			w.put("user:1")
			w.exec(`UPDATE users SET name = 'v2' WHERE id = 1`)
			w.settle(p)
			if w.cachedNow("user:1") {
				t.Error("changes are not followed")
			}
			p.stop()
		})
	}
}
