package integration

import (
	"strings"
	"testing"
)

const ddlSchema = `
	CREATE TABLE items (id int PRIMARY KEY, name text, note text);
	CREATE TABLE other (id int PRIMARY KEY);
	INSERT INTO items SELECT i, 'n' || i FROM generate_series(1, 5) i;
	ALTER TABLE items REPLICA IDENTITY FULL`

const ddlMappings = `
classes:
  critical: {staleness: 1s}
keys:
  item:  {key: "item:{id}", class: critical}
  name:  {key: "name:{name}", class: critical}
  other: {key: "other:{id}", class: critical}
mappings:
  - table: public.items
    keys: [item, name]
  - table: public.other
    keys: [other]
`

// families has a key of each family that items maps to.
var families = keys("item:2", "name:n2")

// Statements that change what readers see, or what the log will say, and that the
// log itself is silent about.
func TestSilentDDLInvalidatesTheFamiliesOfTheTable(t *testing.T) {
	for _, c := range []struct {
		name   string
		sql    []string
		health string // what the catalog condition says afterwards; "" when all is well
	}{
		{"rewrite", []string{`ALTER TABLE items ALTER name TYPE varchar USING upper(name)`}, ""},
		{"rewrite of a column that nothing maps", []string{`ALTER TABLE items ALTER note TYPE bytea USING NULL`}, ""},
		{"drop a column", []string{`ALTER TABLE items DROP COLUMN name`}, `no column "name"`},
		{"rename a column", []string{`ALTER TABLE items RENAME name TO title`}, `no column "name"`},
		{"rename the table", []string{`ALTER TABLE items RENAME TO things`}, "it is public.things now"},
		{"drop the table", []string{`DROP TABLE items`}, "does not exist"},
		{"take it out of the publication", []string{`ALTER PUBLICATION %s DROP TABLE items`}, "does not have it"},
		{"another table in its place", []string{`BEGIN; ALTER TABLE items RENAME TO old_items; CREATE TABLE items (id int PRIMARY KEY, name text);
			ALTER TABLE items REPLICA IDENTITY FULL; ALTER PUBLICATION %s ADD TABLE items; COMMIT`}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, ddlSchema, ddlMappings)
			p, address := w.startHTTP()
			w.step(p, "as ever", keys("item:1", "name:n1"), keys("item:2", "name:n2", "other:1"), `UPDATE items SET note = 'x' WHERE id = 1`)
			w.silently(p, keys("item:1", "item:2", "name:n2"), w.withPublication(c.sql)...)
			w.want("other:1")
			w.eventually("the catalog condition says "+c.health, func() bool {
				cond := w.condition(address, "catalog")
				return cond.OK == (c.health == "") && strings.Contains(cond.Reason, c.health) && (cond.OK || cond.Fix != "")
			})
			// Whatever became of this table, the others go on.
			w.put("other:5", "other:6")
			w.exec(`INSERT INTO other VALUES (5)`)
			w.eventually("another table's key is gone", func() bool { return !w.cachedNow("other:5") })
			w.want("other:1", "other:6")
			p.stop()
		})
	}
}

func TestChangesOfAReplacedTableAreFollowed(t *testing.T) {
	w := newWorld(t, ddlSchema, ddlMappings)
	p := w.start()
	w.silently(p, families, w.withPublication(keys(`BEGIN; DROP TABLE items; CREATE TABLE items (name text, id bigint PRIMARY KEY, more int);
		ALTER TABLE items REPLICA IDENTITY FULL; ALTER PUBLICATION %s ADD TABLE items; COMMIT`))...)
	w.exec(`INSERT INTO items VALUES ('none', 0)`) // describes the table anew, which widens
	w.settle(p)
	w.step(p, "columns stand elsewhere now", keys("item:1", "name:one"), keys("item:2", "name:1", "item:one"), `INSERT INTO items VALUES ('one', 1, 2)`)
	p.stop()
}

// While a column is gone, every change of the table takes its families; with the
// column back, single keys go again.
func TestLostColumnWidensUntilItIsBack(t *testing.T) {
	w := newWorld(t, ddlSchema, ddlMappings)
	p := w.start()
	w.silently(p, families, `ALTER TABLE items RENAME name TO title`)
	w.settle(p)
	w.exec(`UPDATE items SET note = 'x' WHERE id = 1`)
	w.settle(p)
	w.step(p, "ids are still known, names are not", keys("item:1", "name:n1", "name:n2"), keys("item:2", "other:1"), `UPDATE items SET note = 'y' WHERE id = 1`)
	w.silently(p, families, `ALTER TABLE items RENAME title TO name`)
	w.settle(p)
	w.exec(`UPDATE items SET note = 'x' WHERE id = 1`)
	w.settle(p)
	w.step(p, "and back", keys("item:1", "name:n1"), keys("item:2", "name:n2", "other:1"), `UPDATE items SET note = 'z' WHERE id = 1`)
	p.stop()
}

func TestColumnsAddedInMidStream(t *testing.T) {
	w := newWorld(t, ddlSchema, ddlMappings)
	p := w.start()
	w.step(p, "before", keys("item:1", "name:n1"), keys("item:2", "name:n2"), `UPDATE items SET note = 'x' WHERE id = 1`)
	// The change is described anew at the next row, and the watcher sees it too: both
	// widen, and afterwards single keys go as before.
	w.silently(p, families, `ALTER TABLE items ADD COLUMN extra int DEFAULT 7`)
	w.exec(`UPDATE items SET extra = 1 WHERE id = 1`)
	w.settle(p)
	w.step(p, "between two transactions", keys("item:1", "name:n1", "name:m1"), keys("item:2", "name:n2", "other:1"), `UPDATE items SET name = 'm1' WHERE id = 1`)

	w.put("name:m2", "item:1")
	w.silently(p, families, `BEGIN; UPDATE items SET name = 'm2' WHERE id = 2; ALTER TABLE items ADD COLUMN first_in_line text; ALTER TABLE items DROP COLUMN note;
		UPDATE items SET name = 'k2', extra = 3 WHERE id = 2; INSERT INTO items VALUES (9, 'n9'); COMMIT`)
	w.settle(p)
	w.want("other:1")
	w.step(p, "inside a transaction", keys("item:2", "name:k2", "name:j2", "item:9", "name:n9"), keys("item:1", "name:m1", "other:1"),
		`BEGIN; UPDATE items SET name = 'j2' WHERE id = 2; DELETE FROM items WHERE id = 9; COMMIT`)

	w.silently(p, families, `ALTER TABLE items ADD COLUMN note text`)
	w.settle(p)
	w.exec(`UPDATE items SET note = 'x' WHERE id = 2`)
	w.settle(p)
	w.put("item:2")
	w.exec(`BEGIN; UPDATE items SET name = 'x2' WHERE id = 2; ALTER TABLE items ADD COLUMN undone int; UPDATE items SET name = 'y2' WHERE id = 2; ROLLBACK`,
		`SELECT pg_logical_emit_message(true, 'test.after', '')`)
	w.settle(p)
	if !w.cachedNow("item:2") {
		t.Error("a rolled back ALTER TABLE and its rows invalidated something")
	}
	p.stop()
}
