package integration

import (
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// With its publication gone the server goes on streaming heartbeats, and fails,
// or skips, at the first change. The error comes as a message in the stream.
func TestErrorThatArrivesAsAMessage(t *testing.T) {
	w := newWorld(t, ddlSchema, ddlMappings)
	p, address := w.startHTTP()
	pub := w.slot + "_pub"
	w.exec(`DROP PUBLICATION `+pub, `UPDATE items SET note = 'lost' WHERE id = 1`)
	w.put("item:1", "name:n1", "other:1")
	w.eventually("the daemon says that it is not streaming", func() bool {
		c := w.condition(address, "streaming")
		return !c.OK && strings.Contains(c.Reason, "publication") && strings.Contains(c.Fix, "pg_drop_replication_slot")
	})
	// The fix: a slot that is younger than its publication, hence a gap.
	w.exec(`SELECT pg_drop_replication_slot('` + w.slot + `')`)
	w.eventually("it streams again", func() bool { return w.condition(address, "streaming").OK })
	w.settle(p)
	w.want()
	w.step(p, "and goes on", keys("item:2", "name:n2"), keys("item:1", "name:n1"), `UPDATE items SET note = 'x' WHERE id = 2`)
	p.stop()
}

func TestAFileThatDoesNotFitTheDatabaseIsRefused(t *testing.T) {
	const mappings = `
classes:
  critical: {staleness: 1s}
keys:
  k: {key: "k:{id}", class: critical}
mappings:
  - {table: public.t, keys: [k]}
`
	for _, c := range []struct {
		name, schema string
		says         []string
	}{
		{"no table", `CREATE TABLE other (id int)`, keys("table public.t: it does not exist")},
		{"no column", `CREATE TABLE t (key int PRIMARY KEY, name text)`, keys(`it has no column "id"`, "its columns are key, name")},
		{"a view", `CREATE VIEW t AS SELECT 1 AS id`, keys("it is a view", "map the tables that it reads")},
		{"unlogged", `CREATE UNLOGGED TABLE t (id int PRIMARY KEY)`, keys("it is unlogged", "ALTER TABLE public.t SET LOGGED;")},
		{"a generated column", `CREATE TABLE t (n int PRIMARY KEY, id int GENERATED ALWAYS AS (n + 1) STORED)`, keys("generated")},
		{"a partition", `CREATE TABLE root (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE t PARTITION OF root DEFAULT`, keys("it is a partition", "map the partitioned table")},
		{"a partition that logs less than its root", `CREATE TABLE t (id int PRIMARY KEY, v int) PARTITION BY RANGE (id); CREATE TABLE p PARTITION OF t DEFAULT;
			ALTER TABLE t REPLICA IDENTITY FULL`, keys("public.p", "ALTER TABLE public.p REPLICA IDENTITY FULL;")},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.schema, mappings)
			w.refuses(c.says...)
		})
	}
}

func TestAServerThatIsNotSetUpIsRefused(t *testing.T) {
	const mappings = `
classes:
  critical: {staleness: 1s}
keys:
  k: {key: "k:{id}", class: critical}
mappings:
  - {table: public.t, keys: [k]}
`
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: map[string]string{"wal_level": "replica"}})
	w := newWorldOn(t, server.URL(), servertest.Redis(t).URL, `CREATE TABLE t (id int PRIMARY KEY)`, mappings)
	w.refuses("wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical';")
}
