package integration

import (
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// Texts that no server would take as a part of a key, wherever the daemon could make one of them, in
// one transaction with what other families have in it: these are widened, and the stream goes on.
func TestLongTextsStopNothing(t *testing.T) {
	rd := servertest.PrivateRedis(t, localserver.RedisOptions{Args: []string{"--proto-max-bulk-len", "1mb"}})
	w := newWorldOn(t, servertest.Postgres(t).URL, rd.URL(), `
		CREATE TABLE items (id int PRIMARY KEY, tenant text, name text);
		CREATE TABLE parents (id int PRIMARY KEY, name text)`, `
  stream_max_length: 100
classes:
  c: {staleness: 1s}
  held: {staleness: 10s, linger: 100ms}
keys:
  item:   {key: "item:{id}", class: c}
  name:   {key: "name:{name}", class: c}
  late:   {key: "late:{name|lower}", class: held}
  mine:   {key: "t:{tenant}:{name}", tenant: tenant, class: c}
  soft:   {key: "soft:{name}", class: c, on_invalidate: soft, stale_for: 500ms}
  page:   {key: "page:{v}", class: c}
  titled: {key: "titled:{name}", class: c}
  city:   {key: "city:{name}", class: c}
  list:   {key: "list:{version}:{name}", version: "lists:{name}", class: c}
mappings:
  - {table: public.items, keys: [item, name, late, mine, soft, list], dependents: ["thing:{name}"]}
  - table: public.parents
    keys:
      - {page: {v: name}, for_each: "SELECT name FROM items WHERE length(name) > {id}"}
      - {titled: {name: name}, for_each: "SELECT name FROM items WHERE name = {name}"}
  - {message: m, keys: [{city: {name: name}}]}
`)
	p := w.start()
	w.step(p, "what stands in a row", keys("item:1", "name:a", "late:a", "t:7:a", "soft:a"), keys("item:2", "t:8:a", "page:a"),
		"INSERT INTO items VALUES (1, '7', repeat(' ', 2000000))")
	w.step(p, "a tenant", keys("item:2", "name:a", "late:a", "t:7:a", "soft:a"), keys("item:1", "page:a"),
		"INSERT INTO items VALUES (2, repeat('x', 2000000), repeat('É', 2000000))")
	w.step(p, "what a query finds", keys("page:a"), keys("item:1", "titled:a"), "INSERT INTO parents VALUES (1, 'x')")
	w.step(p, "what a query is asked with", keys("page:a", "titled:a"), keys("item:1"), "INSERT INTO parents VALUES (2, repeat(' ', 2000000))")
	w.step(p, "a message", keys("city:a"), keys("item:1"), `SELECT pg_logical_emit_message(true, 'm', '{"name":"' || repeat(' ', 2000000) || '"}')`)
	w.step(p, "what comes after", keys("item:3", "name:a", "late:a", "t:7:a", "soft:a"), keys("item:1", "name:b", "lists:a"), "INSERT INTO items VALUES (3, '7', 'a')")
	if n := p.logged("not streaming"); n > 0 {
		t.Errorf("it left the stream %d times", n)
	}
	p.stop()
}
