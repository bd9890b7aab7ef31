package integration

import (
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

const ddlTriggerSchema = ddlSchema + `;
	CREATE TYPE mood AS ENUM ('sad', 'glad');
	CREATE TABLE moods (id int PRIMARY KEY, m mood);
	CREATE TABLE events (tenant text NOT NULL, id int NOT NULL, PRIMARY KEY (tenant, id)) PARTITION BY LIST (tenant);
	CREATE TABLE events_a PARTITION OF events FOR VALUES IN ('a');
	CREATE TABLE events_b PARTITION OF events FOR VALUES IN ('b') PARTITION BY RANGE (id);
	CREATE TABLE events_b1 PARTITION OF events_b FOR VALUES FROM (0) TO (100);
	CREATE SCHEMA side; CREATE TABLE side.notes (id int PRIMARY KEY);
	CREATE TABLE scratch (id int PRIMARY KEY)`

var ddlTriggerMappings = strings.Replace(ddlMappings, "mappings:", `  event: {key: "t:{tenant}:event:{id}", tenant: tenant, class: critical}
  mood:  {key: "mood:{id}", class: critical}
  note:  {key: "note:{id}", class: critical}
mappings:
  - table: public.events
    keys: [event]
  - table: public.moods
    keys: [mood]
  - table: side.notes
    keys: [note]`, 1)

// withTrigger installs the event trigger.
func (w *world) withTrigger() {
	w.t.Helper()
	w.exec(replication.DDLFunctionSQL()...)
	for _, trigger := range replication.DDLTriggers() {
		w.exec(trigger.CreateSQL()...)
	}
}

// notLooking makes the daemon's comparison of the catalogs wait from its first look
// on: what is noticed all the same came through the log.
const notLooking = "CDC_FAILPOINT_HOLD=catalog_look:1"

// With the event trigger, DDL that the log is silent about invalidates at its own
// commit: no comparison of the catalogs is needed.
func TestDDLInvalidatesThroughTheEventTrigger(t *testing.T) {
	items, other := keys("item:2", "name:n2"), keys("other:1", "t:a:event:1", "mood:1", "note:1")
	for _, c := range []struct {
		name       string
		sql        string
		gone, kept []string
	}{
		{"rewrite", `ALTER TABLE items ALTER name TYPE varchar USING upper(name)`, items, other},
		{"rewrite without a USING", `ALTER TABLE items ADD COLUMN extra text DEFAULT random()::text`, items, other},
		{"drop a column", `ALTER TABLE items DROP COLUMN name`, items, other},
		{"drop a column with its type", `DROP TYPE mood CASCADE`, keys("mood:1"), keys("item:2", "other:1", "note:1")},
		{"rename a column", `ALTER TABLE items RENAME name TO title`, items, other},
		{"rename the table", `ALTER TABLE items RENAME TO things`, items, other},
		{"move it to another schema", `ALTER TABLE items SET SCHEMA side`, items, other},
		{"rename its schema", `ALTER SCHEMA side RENAME TO aside`, keys("note:1"), keys("item:2", "other:1", "mood:1")},
		{"drop the table", `DROP TABLE items`, items, other},
		{"drop its schema", `DROP SCHEMA side CASCADE`, keys("note:1"), keys("item:2", "other:1", "mood:1")},
		{"another table in its place", `BEGIN; ALTER TABLE items RENAME TO old_items; CREATE TABLE items (id int PRIMARY KEY, name text); COMMIT`, items, other},
		{"detach a partition", `ALTER TABLE events DETACH PARTITION events_a`, keys("t:a:event:1", "t:b:event:1"), items},
		{"detach it concurrently", `ALTER TABLE events DETACH PARTITION events_a CONCURRENTLY`, keys("t:a:event:1", "t:b:event:1"), items},
		{"detach one two levels down", `ALTER TABLE events_b DETACH PARTITION events_b1`, keys("t:a:event:1", "t:b:event:1"), items},
		{"attach one", `CREATE TABLE events_c (LIKE events); INSERT INTO events_c VALUES ('c', 1); ALTER TABLE events ATTACH PARTITION events_c FOR VALUES IN ('c')`,
			keys("t:a:event:1", "t:c:event:1"), items},
		{"rename a value of an enum", `ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'`, keys("mood:1"), keys("item:2", "other:1", "note:1")},
		{"take it out of the publication", `ALTER PUBLICATION %s DROP TABLE items`, items, other},
		{"alter the publication", `ALTER PUBLICATION %s SET (publish = 'insert, update, delete')`, keys("item:2", "name:n2", "other:1", "t:a:event:1", "mood:1", "note:1"), nil},
		{"a session that replicates", `SET session_replication_role = replica; ALTER TABLE items RENAME name TO title; RESET session_replication_role`, items, other},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, ddlTriggerSchema, ddlTriggerMappings)
			w.withTrigger()
			p := w.start(notLooking)
			w.step(p, "as ever", keys("item:1", "name:n1"), keys("item:2", "other:1"), `UPDATE items SET note = 'x' WHERE id = 1`)
			w.forget()
			w.put(c.gone...)
			w.put(c.kept...)
			w.exec(w.withPublication(strings.Split(c.sql, "; "))...)
			w.settle(p)
			w.want(c.kept...)
			if p.logged(definitionChanged) != 0 {
				t.Error("the catalogs were compared; this shows nothing")
			}
			p.stop()
		})
	}
}

// What changes nothing that readers see costs nothing, and roles that may not do
// much can still run their DDL.
func TestDDLThatTheEventTriggerLetsPass(t *testing.T) {
	w := newWorld(t, ddlTriggerSchema, ddlTriggerMappings)
	w.withTrigger()
	p := w.start(notLooking)
	all := keys("item:2", "name:n2", "other:1", "t:a:event:1", "mood:1", "note:1")
	for _, sql := range []string{
		`ALTER TABLE items SET (fillfactor = 50)`,
		`CREATE INDEX ON items (name)`,
		`COMMENT ON TABLE items IS 'x'`,
		`GRANT SELECT ON items TO PUBLIC`,
		`ALTER TABLE scratch RENAME TO scratched`,
		`DROP TABLE scratched`,
		`CREATE TEMP TABLE items (id int); DROP TABLE pg_temp.items`,
		`CREATE PUBLICATION another_of_` + w.slot + ` FOR TABLE items`,
		`ALTER PUBLICATION another_of_` + w.slot + ` DROP TABLE items`,
		`BEGIN; DROP TABLE items; ROLLBACK`,
		`CREATE ROLE ddl_` + w.slot + `; CREATE SCHEMA AUTHORIZATION ddl_` + w.slot + `; SET ROLE ddl_` + w.slot + `;
		 CREATE TABLE ddl_` + w.slot + `.mine (id int); ALTER TABLE ddl_` + w.slot + `.mine ADD x text DEFAULT random()::text; DROP TABLE ddl_` + w.slot + `.mine; RESET ROLE;
		 DROP SCHEMA ddl_` + w.slot + `; DROP ROLE ddl_` + w.slot,
	} {
		w.put(all...)
		w.exec(sql)
		w.settle(p)
		w.want(all...)
	}
	p.stop()
}

// Anybody may send such a message. It can make the daemon invalidate, and nothing
// else: not believe that something was dealt with, nor stop.
func TestDDLMessagesOfAnybody(t *testing.T) {
	w := newWorld(t, ddlTriggerSchema, ddlTriggerMappings)
	p := w.start(notLooking)
	all := keys("item:2", "name:n2", "other:1", "t:a:event:1", "mood:1", "note:1")
	emit := func(transactional, content string) string {
		return `SELECT pg_logical_emit_message(` + transactional + `, 'cdc_invalidator.ddl', ` + content + `)`
	}
	relation := func(schema, name, change string) string {
		return `'{"version": 1, "relations": [{"oid": 0, "schema": "` + schema + `", "name": "` + name + `", "change": "` + change + `"}]}'`
	}
	w.step(p, "names a mapped table", keys("item:2", "name:n2"), keys("other:1"), emit("true", relation("public", "items", "dropped")))
	w.step(p, "names one that nothing maps", nil, all, emit("true", relation("public", "nobody", "dropped")))
	w.step(p, "the same name in another schema", nil, all, emit("true", relation("side", "items", "dropped")))
	w.step(p, "rolled back", nil, all, `BEGIN; `+emit("true", relation("public", "items", "dropped"))+`; ROLLBACK`)
	w.step(p, "outside of transactions", nil, all, emit("false", relation("public", "items", "dropped")))
	for _, content := range []string{`''`, `'x'`, `'{}'`, `'[]'`, `'{"version": 2}'`, relation("public", "items", "unheard of"), relation("", "items", "dropped"), `'\xff'::bytea`,
		`'{"version": 1, "relations": [{"oid": -1, "schema": "public", "name": "items", "change": "dropped"}]}'`} {
		w.step(p, "cannot be read: "+content, all, keys("unmapped"), emit("true", content))
	}
	p.stop()

	// And with looks, what a message did not say is found all the same.
	w.exec(emit("true", `'{"version": 1, "relations": []}'`))
	p = w.start()
	w.silently(p, keys("item:2", "name:n2"), `ALTER TABLE items ALTER name TYPE varchar USING upper(name)`)
	p.stop()
}
