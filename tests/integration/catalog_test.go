package integration

import (
	"strings"
	"testing"
)

// DDL that emits nothing to the log may come while no daemon runs.
func TestSilentDDLWhileNobodyWatches(t *testing.T) {
	w := newWorld(t, usersSchema, usersMappings)
	w.exec(`INSERT INTO users VALUES (1, 7, 'a@x')`)
	p := w.start()
	p.stop()
	w.put("t:7:user:1", "t:7:user-by-email:a@x", "other")
	w.exec(`ALTER TABLE users ALTER COLUMN email TYPE varchar USING upper(email)`)
	p = w.start()
	w.eventually("the rewritten table's families are gone", func() bool { return len(w.cached()) == 1 })
	w.want("other")
	p.stop()

	// And nothing is invalidated again when nothing changed.
	w.put("t:7:user:1")
	p = w.start()
	w.exec(`INSERT INTO users VALUES (2, 7, 'b@x')`)
	w.settle(p)
	w.want("t:7:user:1", "other")
	p.stop()
}

// A new partition has the default identity, whatever its root has. Its updates
// then come without an old image, and nothing in the stream says so.
func TestPartitionWithoutItsRootsIdentity(t *testing.T) {
	w := newWorld(t, `CREATE TABLE users (id bigint, tenant_id int NOT NULL, email text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
		CREATE TABLE users_1 PARTITION OF users FOR VALUES FROM (0) TO (100);
		ALTER TABLE users REPLICA IDENTITY FULL;
		ALTER TABLE users_1 REPLICA IDENTITY FULL`, usersMappings)
	p := w.start()
	w.exec(`CREATE TABLE users_2 PARTITION OF users FOR VALUES FROM (100) TO (200)`)
	w.eventually("the new partition was noticed", func() bool { return containsAll(p.log.String(), "definition changed") })
	w.exec(`INSERT INTO users VALUES (101, 7, 'a@x')`)
	w.settle(p)
	w.put("t:7:user:101", "t:7:user-by-email:a@x", "other")
	w.exec(`UPDATE users SET email = 'b@x' WHERE id = 101`)
	w.settle(p)
	w.want("other")
	p.stop()
}

func containsAll(s string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}
