package integration

import "testing"

const partitionSchema = `
	CREATE TABLE events (tenant text NOT NULL, id int NOT NULL, name text, PRIMARY KEY (tenant, id)) PARTITION BY LIST (tenant);
	CREATE TABLE events_a PARTITION OF events FOR VALUES IN ('a');
	CREATE TABLE events_b PARTITION OF events FOR VALUES IN ('b') PARTITION BY RANGE (id);
	CREATE TABLE events_b1 PARTITION OF events_b FOR VALUES FROM (0) TO (100);
	CREATE TABLE events_b2 PARTITION OF events_b FOR VALUES FROM (100) TO (200);
	ALTER TABLE events REPLICA IDENTITY FULL; ALTER TABLE events_a REPLICA IDENTITY FULL; ALTER TABLE events_b REPLICA IDENTITY FULL;
	ALTER TABLE events_b1 REPLICA IDENTITY FULL; ALTER TABLE events_b2 REPLICA IDENTITY FULL;
	CREATE TABLE plain (id int PRIMARY KEY);
	INSERT INTO events SELECT t, i, 'n' || i FROM generate_series(1, 5) i, unnest('{a,b}'::text[]) t`

const partitionMappings = `
classes:
  critical: {staleness: 1s}
keys:
  event: {key: "t:{tenant}:event:{id}", tenant: tenant, class: critical}
  name:  {key: "t:{tenant}:name:{name}", tenant: tenant, class: critical}
  plain: {key: "plain:{id}", class: critical}
mappings:
  - table: public.events
    keys: [event, name]
  - table: public.plain
    keys: [plain]
`

func TestPartitionedTableThroughItsRoot(t *testing.T) {
	w := newWorld(t, partitionSchema, partitionMappings)
	p := w.start()
	w.step(p, "insert through the root, through a partition, two levels down",
		keys("t:a:event:6", "t:a:name:n6", "t:a:event:7", "t:a:name:n7", "t:b:event:106", "t:b:name:m6"),
		keys("t:a:event:1", "t:b:event:6", "t:b:event:7", "t:a:name:m6"),
		`INSERT INTO events VALUES ('a', 6, 'n6'), ('b', 106, 'm6'); INSERT INTO events_a VALUES ('a', 7, 'n7')`)
	w.step(p, "update inside a partition", keys("t:a:event:1", "t:a:name:n1", "t:a:name:x1"), keys("t:b:event:1", "t:b:name:n1", "t:a:event:2"),
		`UPDATE events SET name = 'x1' WHERE tenant = 'a' AND id = 1`)
	w.step(p, "update that moves a row between partitions",
		keys("t:a:event:2", "t:a:name:n2", "t:b:event:102", "t:b:name:n2"),
		keys("t:a:event:102", "t:b:event:2", "t:a:name:n3", "t:b:name:n3"),
		`UPDATE events SET tenant = 'b', id = 102 WHERE tenant = 'a' AND id = 2`)
	w.step(p, "delete", keys("t:b:event:102", "t:b:name:n2"), keys("t:b:event:2", "t:a:name:n2"),
		`DELETE FROM events WHERE id = 102`)
	w.step(p, "COPY into the root is like insert, savepoints are like everywhere", keys("t:b:event:50", "t:b:name:s"), keys("t:b:event:51", "t:b:name:r"),
		`BEGIN; INSERT INTO events VALUES ('b', 50, 's'); SAVEPOINT s; INSERT INTO events VALUES ('b', 51, 'r'); ROLLBACK TO s; COMMIT`)
	w.step(p, "truncate of the root", keys("t:a:event:1", "t:b:event:99", "t:a:name:whatever"), keys("plain:1"), `TRUNCATE events`)
	p.stop()
}

// None of these says a word in the log.
func TestPartitionsThatComeAndGo(t *testing.T) {
	w := newWorld(t, partitionSchema, partitionMappings)
	p := w.start()
	for _, c := range []struct{ name, sql string }{
		{"truncate of one partition", `TRUNCATE events_b1`},
		{"detach", `ALTER TABLE events DETACH PARTITION events_a`},
		{"attach", `ALTER TABLE events ATTACH PARTITION events_a FOR VALUES IN ('a')`},
		{"a new partition with rows in it", `CREATE TABLE events_c (LIKE events INCLUDING ALL); INSERT INTO events_c VALUES ('c', 1, 'n'); ALTER TABLE events_c REPLICA IDENTITY FULL; ALTER TABLE events ATTACH PARTITION events_c FOR VALUES IN ('c')`},
		{"drop of a partition two levels down", `DROP TABLE events_b2`},
		{"rewrite", `ALTER TABLE events ALTER name TYPE text USING upper(name)`},
	} {
		t.Log(c.name)
		w.forget()
		w.put("plain:1")
		w.silently(p, keys("t:a:event:1", "t:b:event:1", "t:a:name:n1", "t:c:event:1"), c.sql)
		w.want("plain:1")
	}
	// Rows of partitions that came later are followed as those of any other.
	w.exec(`INSERT INTO events VALUES ('c', 2, 'n2')`) // describes the table anew, which widens
	w.settle(p)
	w.step(p, "change in an attached partition", keys("t:c:event:2", "t:c:name:n2", "t:c:name:x"), keys("t:c:event:1", "t:a:event:2", "t:c:name:n"),
		`UPDATE events SET name = 'x' WHERE tenant = 'c' AND id = 2`)
	p.stop()
}
