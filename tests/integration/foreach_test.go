package integration

import (
	"fmt"
	"testing"
)

const sellersSchema = `
	CREATE TABLE sellers (id int PRIMARY KEY, tenant text NOT NULL, name text, area text);
	CREATE TABLE products (id int PRIMARY KEY, seller_id int, area text, name text);
	ALTER TABLE sellers REPLICA IDENTITY FULL;
	INSERT INTO sellers VALUES (1, 'a', 's1', 'x'), (2, 'b', 's2', NULL);
	INSERT INTO products VALUES (10, 1, 'x'), (11, 1, 'x'), (20, 2, 'y'), (30, NULL, NULL)`

const sellersMappings = `
classes:
  critical: {staleness: 1s}
keys:
  page:   {key: "t:{tenant}:page:{product_id}", tenant: tenant, class: critical}
  area:   {key: "area-page:{product_id}", class: critical}
  few:    {key: "few:{product_id}", class: critical}
mappings:
  - table: public.sellers
    columns: [name, id]
    keys:
      - {page: {tenant: tenant, product_id: product_id}, for_each: "SELECT id AS product_id, 'b' AS tenant FROM products WHERE seller_id = {id} -- not {this}"}
      - {few: {product_id: product_id}, for_each: "SELECT id AS product_id FROM products WHERE seller_id = {id}", max_rows: 2}
  - table: public.sellers
    columns: [area]
    keys:
      - {area: {product_id: product_id}, for_each: "SELECT id AS product_id FROM products WHERE area IS NOT DISTINCT FROM {area}"}
`

func TestForEach(t *testing.T) {
	w := newWorld(t, sellersSchema, sellersMappings)
	p := w.start()
	w.step(p, "one row, many keys, none of another tenant whatever the query says",
		keys("t:a:page:10", "t:a:page:11", "few:10", "few:11"),
		keys("t:b:page:10", "t:a:page:20", "t:b:page:20", "few:20", "area-page:10"),
		`UPDATE sellers SET name = 'm1' WHERE id = 1`)
	w.step(p, "again, from the cached answer or not", keys("t:a:page:10", "t:a:page:11"), keys("t:a:page:20", "t:b:page:20"),
		`UPDATE sellers SET name = 'm2' WHERE id = 1`)
	w.step(p, "a product moved between two updates of its sellers",
		keys("t:a:page:10", "t:b:page:11", "t:b:page:20"), keys("t:a:page:11", "t:a:page:20", "t:b:page:10"),
		`UPDATE products SET seller_id = 2 WHERE id = 11`, `UPDATE sellers SET name = name || 'x'`)
	w.step(p, "moved in the same transaction", keys("t:a:page:10", "t:a:page:11"), keys("t:a:page:20", "t:b:page:11"),
		`BEGIN; UPDATE sellers SET name = 'm3' WHERE id = 1; UPDATE products SET seller_id = 1 WHERE id = 11; COMMIT`)
	w.step(p, "moved after the first of two updates in one transaction", keys("t:b:page:10", "t:b:page:20"), keys("t:b:page:11", "t:a:page:11"),
		`BEGIN; UPDATE sellers SET name = 'm4' WHERE id = 2; UPDATE products SET seller_id = 2 WHERE id = 10; UPDATE sellers SET name = 'm5' WHERE id = 2; COMMIT`)
	w.step(p, "old and new image: both tenants",
		keys("t:a:page:11", "t:b:page:11"), keys("t:a:page:10", "t:b:page:10"),
		`UPDATE sellers SET tenant = 'b', name = 'm6' WHERE id = 1; UPDATE sellers SET tenant = 'a', name = 'm7' WHERE id = 1`)
	w.step(p, "a column that does not count", nil, keys("t:a:page:11", "few:11"), `UPDATE sellers SET area = area WHERE id = 1`)
	w.step(p, "NULL is an argument like any other", keys("area-page:30", "area-page:20"), keys("area-page:10", "area-page:11"),
		`UPDATE sellers SET area = 'y' WHERE id = 2`)
	w.step(p, "and on the new side", keys("area-page:30", "area-page:20"), keys("area-page:10", "area-page:11"),
		`UPDATE sellers SET area = NULL WHERE id = 2`)
	w.step(p, "hostile values are arguments, not text", nil, keys("area-page:10", "area-page:20", "t:a:page:11"),
		`UPDATE sellers SET area = E'x'' OR true; DROP TABLE products; --\n' WHERE id = 99`)
	w.step(p, "insert and delete", keys("t:a:page:30", "few:30"), keys("t:a:page:11", "t:b:page:30"),
		`UPDATE products SET seller_id = 7 WHERE id = 30; INSERT INTO sellers VALUES (7, 'a', 'n'); DELETE FROM sellers WHERE id = 7`)
	w.exec(`INSERT INTO products SELECT i, 2 FROM generate_series(100, 104) i`)
	w.step(p, "more rows than may be: the whole family", keys("t:b:page:100", "t:b:page:104", "few:10", "few:30", "few:9999"), keys("t:b:page:30", "t:a:page:100"),
		`UPDATE sellers SET name = 'many' WHERE id = 2`)
	var gone []string
	for i := 1000; i < 4000; i++ {
		gone = append(gone, fmt.Sprint("t:a:page:", i))
	}
	w.exec(`INSERT INTO products SELECT i, 1 FROM generate_series(1000, 3999) i`)
	w.step(p, "thousands of rows", gone, keys("t:a:page:999", "t:a:page:4000", "t:b:page:1000"), `UPDATE sellers SET name = 'thousands' WHERE id = 1`)
	w.step(p, "a query that is refused, and of whose columns nobody knows the types: all that it makes keys of", keys("t:a:page:1", "t:a:page:9999", "few:1", "t:b:page:1", "area-page:1"), nil,
		`DROP TABLE products`, `UPDATE sellers SET name = 'dropped' WHERE id = 1`)
	w.exec(`CREATE TABLE products (id int PRIMARY KEY, seller_id int, area text)`, `INSERT INTO products VALUES (5, 1)`)
	w.settle(p) // the families are followed again, and the purge behind that is done
	w.step(p, "with the table back, single keys go again", keys("t:a:page:5"), keys("t:a:page:1", "few:1"), `UPDATE sellers SET name = 'back' WHERE id = 1`)
	p.stop()
}

const predicateMappings = `
classes:
  critical: {staleness: 1s}
keys:
  live:  {key: "live:{id}", class: critical}
  price: {key: "price:{id}", class: critical}
  cheap: {key: "cheap:{id}", class: critical}
  error: {key: "error:{id}", class: critical}
  ins:   {key: "ins:{id}", class: critical}
mappings:
  - table: public.products
    when: new.status == 'live' || old.status == 'live'
    keys: [live]
  - table: public.products
    actions: [insert, update, delete]
    columns: [name, price]
    keys: [price]
  - table: public.products
    when: new.price < 10 && new.stock > 0
    keys: [cheap]
  - table: public.products
    when: new.status.size() > 100
    keys: [error]
  - table: public.products
    actions: [insert]
    keys: [ins]
`

func TestPredicatesAndColumnsOnLiveRows(t *testing.T) {
	const schema = `CREATE TABLE products (id int PRIMARY KEY, status text, name text, price numeric(8,2), stock bigint);
		INSERT INTO products VALUES (1, 'live', 'n', 20, 1), (2, 'draft', 'n', 20, 1), (3, NULL, 'n', 5, 1)`
	of := func(id int) []string {
		var k []string
		for _, family := range keys("live", "price", "cheap", "error", "ins") {
			k = append(k, fmt.Sprint(family, ":", id))
		}
		return k
	}
	// only splits the keys of a row into those that go and those that stay.
	only := func(id int, gone ...string) (g, kept []string) {
		for _, k := range of(id) {
			stays := true
			for _, f := range gone {
				stays = stays && k != fmt.Sprint(f, ":", id)
			}
			if stays {
				kept = append(kept, k)
			} else {
				g = append(g, k)
			}
		}
		return g, append(kept, of(77)...)
	}
	t.Run("full", func(t *testing.T) {
		w := newWorld(t, schema+`; ALTER TABLE products REPLICA IDENTITY FULL`, predicateMappings)
		p := w.start()
		try := func(name string, id int, sql string, gone ...string) {
			t.Helper()
			g, k := only(id, gone...)
			w.step(p, name, g, k, sql)
		}
		try("a live row, a column that does not count", 1, `UPDATE products SET stock = 2 WHERE id = 1`, "live")
		try("a draft", 2, `UPDATE products SET stock = 2 WHERE id = 2`)
		try("a draft's price", 2, `UPDATE products SET price = 21 WHERE id = 2`, "price")
		try("the same price written otherwise", 2, `UPDATE products SET price = 21.00 WHERE id = 2`)
		try("a low price", 2, `UPDATE products SET price = 9.99 WHERE id = 2`, "price", "cheap")
		try("goes live", 2, `UPDATE products SET status = 'live' WHERE id = 2`, "live", "cheap")
		try("leaves live", 2, `UPDATE products SET status = 'gone' WHERE id = 2`, "live", "cheap")
		try("NULL compares unequal; size of it is an error, which invalidates", 3, `UPDATE products SET stock = 5 WHERE id = 3`, "cheap", "error")
		try("a price becomes NULL: an error too", 2, `UPDATE products SET price = NULL WHERE id = 2`, "price", "cheap")
		try("insert", 4, `INSERT INTO products VALUES (4, 'draft', 'n', 50, 0)`, "price", "ins")
		try("insert live", 5, `INSERT INTO products VALUES (5, 'live', 'n', 50, 0)`, "live", "price", "ins")
		try("delete live: new is null", 5, `DELETE FROM products WHERE id = 5`, "live", "price", "cheap", "error")
		p.stop()
	})
	t.Run("default", func(t *testing.T) {
		w := newWorld(t, schema, predicateMappings)
		p := w.start()
		try := func(name string, id int, sql string, gone ...string) {
			t.Helper()
			g, k := only(id, gone...)
			w.step(p, name, g, k, sql)
		}
		try("what the old row was is unknown", 2, `UPDATE products SET stock = 2 WHERE id = 2`, "live", "price")
		try("true whatever it was", 1, `UPDATE products SET stock = 2 WHERE id = 1`, "live", "price")
		try("delete", 2, `DELETE FROM products WHERE id = 2`, "live", "price", "cheap", "error")
		p.stop()
	})
}
