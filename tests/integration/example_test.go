package integration

import (
	"os"
	"strings"
	"testing"
)

// The worked example is run as it is: only the names of slot and publication
// differ, since those belong to the server.
func TestTheExampleFileRuns(t *testing.T) {
	w := newWorld(t, `
		CREATE TABLE users (id bigint PRIMARY KEY, tenant_id int NOT NULL, email text, version int NOT NULL DEFAULT 1);
		CREATE TABLE sellers (id bigint PRIMARY KEY, name text);
		CREATE TABLE products (id bigint PRIMARY KEY, tenant_id int, seller_id bigint, name text, price_cents int, views int, version int);
		CREATE TABLE stock (product_id bigint PRIMARY KEY, left_over int);
		ALTER TABLE users REPLICA IDENTITY FULL; ALTER TABLE products REPLICA IDENTITY FULL;
		INSERT INTO users VALUES (1, 7, 'a@x'); INSERT INTO sellers VALUES (5, 's');
		INSERT INTO products VALUES (10, 7, 5, 'p', 100, 0, 1), (11, 7, 6, 'p', 100, 0, 1); INSERT INTO stock VALUES (10, 1)`, "")
	example, err := os.ReadFile("../../mappings.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const names = "{name: cdc_invalidator, "
	if strings.Count(string(example), names) != 2 {
		t.Fatalf("want %q for the slot and for the publication", names)
	}
	writeFile(t, w.config, strings.ReplaceAll(string(example), names, "{name: "+w.slot+", "))
	p := w.start("DATABASE_URL="+w.url, "REDIS_URL="+w.redisURL)
	w.step(p, "user", keys("t:7:user:1", "t:7:user-by-email:a@x", "t:7:user-by-email:b@x"), keys("t:7:user:2", "t:8:user:1"),
		`UPDATE users SET email = 'b@x', version = version + 1 WHERE id = 1`)
	w.step(p, "a write that leaves the version", nil, keys("t:7:user:1", "t:7:user-by-email:b@x"), `UPDATE users SET email = email WHERE id = 1`)
	w.step(p, "a page view", nil, keys("page:10"), `UPDATE products SET views = 1 WHERE id = 10`)
	w.exec(`UPDATE products SET price_cents = 99 WHERE id = 10`)
	w.put("page:10", "page:11")
	w.exec(`UPDATE products SET price_cents = 98, version = 2 WHERE id = 10`)
	w.drained(p)
	if w.cachedNow("page:10") || !w.cachedNow("page:11") || w.get("t:7:search") == "" {
		t.Errorf("after a price change there are %q", w.cached())
	}
	w.step(p, "seller", keys("page:10"), keys("page:11", "page:5"), `UPDATE sellers SET name = 'n' WHERE id = 5`)
	w.step(p, "stock", keys("stock:10"), keys("stock:11", "page:10"), `UPDATE stock SET left_over = 0`)
	w.step(p, "stock truncated", keys("stock:10", "stock:11"), keys("page:10"), `TRUNCATE stock`)
	w.step(p, "message", keys("cart:7"), keys("cart:8"), `SELECT pg_logical_emit_message(true, 'cart.changed', '{"cart_id": 7}')`)
	p.stop()
}
