package integration

import "testing"

const usersSchema = `CREATE TABLE users (id bigint PRIMARY KEY, tenant_id int NOT NULL, email text);
	ALTER TABLE users REPLICA IDENTITY FULL`

const usersMappings = `
classes:
  critical: {staleness: 1s}
keys:
  user:          {key: "t:{tenant_id}:user:{id}", tenant: tenant_id, class: critical}
  user_by_email: {key: "t:{tenant_id}:user-by-email:{email}", tenant: tenant_id, class: critical}
mappings:
  - table: public.users
    keys: [user, user_by_email]
`

func TestOldAndNewImageAreInvalidatedAndNothingElse(t *testing.T) {
	w := newWorld(t, usersSchema, usersMappings)
	w.exec(`INSERT INTO users SELECT i, 7, i || '@x' FROM generate_series(1, 5) i`)
	p := w.start()
	w.put("t:7:user:1", "t:7:user:2", "t:8:user:1", "t:7:user-by-email:1@x", "t:7:user-by-email:new@x", "t:7:user-by-email:2@x")
	w.exec(`UPDATE users SET email = 'new@x' WHERE id = 1`)
	w.settle(p)
	w.want("t:7:user:2", "t:8:user:1", "t:7:user-by-email:2@x")
	p.stop()
}
