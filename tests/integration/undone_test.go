package integration

import "testing"

const undoneSchema = `
	CREATE SCHEMA side;
	CREATE TABLE users (id int PRIMARY KEY, name text); INSERT INTO users VALUES (1, 'a'), (2, 'b');
	CREATE TABLE users_new (LIKE users INCLUDING ALL); INSERT INTO users_new VALUES (1, 'n');
	CREATE TABLE parts (id int PRIMARY KEY, email text) PARTITION BY RANGE (id); ALTER TABLE parts REPLICA IDENTITY FULL;
	CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (0) TO (100); ALTER TABLE parts1 REPLICA IDENTITY FULL;
	INSERT INTO parts VALUES (1, 'old')`

const undoneMappings = `
classes:
  critical: {staleness: 1s}
keys:
  user: {key: "user:{id}", class: critical}
  mail: {key: "mail:{email}", class: critical}
mappings:
  - {table: public.users, keys: [user]}
  - {table: public.parts, keys: [mail]}
`

// DDL that is undone, in its own transaction or before anybody looks, leaves the catalogs as
// they were. What rows changed meanwhile, or what was read, is gone all the same.
func TestDDLThatIsUndone(t *testing.T) {
	const swap, back = `BEGIN; ALTER TABLE users RENAME TO x; ALTER TABLE users_new RENAME TO users; COMMIT`, `BEGIN; ALTER TABLE users RENAME TO users_new; ALTER TABLE x RENAME TO users; COMMIT`
	for _, trigger := range []bool{false, true} {
		name := "with the catalogs alone"
		if trigger {
			name = "with the event trigger"
		}
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, undoneSchema, undoneMappings)
			w.exec(w.withPublication(keys(`CREATE PUBLICATION %s FOR TABLE users, users_new, parts WITH (publish_via_partition_root)`))...)
			if trigger {
				w.withTrigger()
			}
			p := w.start()
			for _, tc := range []struct {
				name  string
				do    []string // the key is cached after the first of several
				stale string
			}{
				{"a name", keys(`BEGIN; ALTER TABLE users RENAME TO x; UPDATE x SET name = name || 'x' WHERE id = 1; ALTER TABLE x RENAME TO users; COMMIT`), "user:1"},
				{"a name, in three transactions", keys(`ALTER TABLE users RENAME TO x`, `UPDATE x SET name = name || 'x' WHERE id = 1`, `ALTER TABLE x RENAME TO users`), "user:1"},
				{"a TRUNCATE under another name", keys(`BEGIN; ALTER TABLE users RENAME TO x; TRUNCATE x; ALTER TABLE x RENAME TO users; COMMIT`), "user:1"},
				{"a schema's name", keys(`BEGIN; ALTER SCHEMA public RENAME TO y; UPDATE y.users SET name = name || 'x'; INSERT INTO y.users VALUES (1, ''); ALTER SCHEMA y RENAME TO public; COMMIT`), "user:1"},
				{"another schema", keys(`BEGIN; ALTER TABLE users SET SCHEMA side; UPDATE side.users SET name = name || 'x'; ALTER TABLE side.users SET SCHEMA public; COMMIT`), "user:1"},
				{"a swap, with a reader in between", keys(swap, back), "user:1"},
				{"a partition's identity", keys(`BEGIN; ALTER TABLE parts1 REPLICA IDENTITY DEFAULT; UPDATE parts SET email = 'new'; ALTER TABLE parts1 REPLICA IDENTITY FULL; COMMIT`), "mail:old"},
			} {
				w.settle(p)
				for i, sql := range tc.do {
					if i == len(tc.do)-1 {
						w.put(tc.stale) // what a reader stored before this, or in between
					}
					w.exec(sql)
				}
				w.eventually(tc.name+" that is undone removes the key", func() bool { return !w.cachedNow(tc.stale) })
				w.settle(p)
			}
			// Nothing of this is a change of what readers see.
			w.exec(`CREATE ROLE ` + w.slot)
			w.put("user:1", "mail:old")
			w.exec(`GRANT SELECT ON users, parts TO `+w.slot, `CREATE INDEX ON users (name)`, `CREATE INDEX ON parts (email)`, `VACUUM users, parts`, `ANALYZE users, parts, parts1`, `VACUUM FREEZE users, parts`)
			w.settle(p)
			w.wait(0)
			w.want("mail:old", "user:1")
			w.exec(`DROP OWNED BY `+w.slot, `DROP ROLE `+w.slot)
			p.stop()
		})
	}
}
