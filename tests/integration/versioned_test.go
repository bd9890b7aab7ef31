package integration

import "testing"

const versionedMappings = `
classes:
  critical: {staleness: 1s}
keys:
  search: {key: "t:{tenant}:search:{version}:{query}", tenant: tenant, class: critical, version: "t:{tenant}:search"}
  top:    {key: "top:{version}:{query}", class: critical, version: "top"}
  shelf:  {key: "t:{tenant}:shelf:{shelf}:{version}:{query}", tenant: tenant, class: critical, version: "t:{tenant}:shelf:{shelf}"}
mappings:
  - table: public.products
    keys: [{search: {tenant: tenant}}, top, shelf]
`

const productsSchema = `CREATE TABLE products (tenant text, id int, shelf text, name text, PRIMARY KEY (tenant, id));
	ALTER TABLE products REPLICA IDENTITY FULL;
	INSERT INTO products SELECT t, i, 's' || i, 'n' FROM generate_series(1, 3) i, unnest('{a,b,*}'::text[]) t`

// versionsOf reads the version keys.
func (w *world) versionsOf(names []string) map[string]string {
	m := map[string]string{}
	for _, n := range names {
		m[n] = w.get(n)
	}
	return m
}

func TestVersionsMoveForwardOnly(t *testing.T) {
	w := newWorld(t, productsSchema, versionedMappings)
	p := w.start()
	all := keys("t:a:search", "t:b:search", "t:%2A:search", "top", "t:a:shelf:s1", "t:a:shelf:s2", "t:a:shelf:s9", "t:b:shelf:s1", "t:b:shelf:s9", "t:%2A:shelf:s1")
	// One entry of each version must be left alone: it is the version that revokes it.
	entries := keys("t:a:search:0:shoes", "top:0:x", "t:a:shelf:s1:0:x")
	w.put(entries...)
	moves := func(name string, moved []string, sql ...string) {
		t.Helper()
		before := w.versionsOf(all)
		w.exec(sql...)
		w.settle(p)
		after := w.versionsOf(all)
		expect := map[string]bool{}
		for _, n := range moved {
			expect[n] = true
		}
		for _, n := range all {
			switch {
			case after[n] < before[n]:
				t.Errorf("%s: %s went back from %q to %q", name, n, before[n], after[n])
			case expect[n] && after[n] == before[n]:
				t.Errorf("%s: %s stays %q, want it moved", name, n, after[n])
			case !expect[n] && after[n] != before[n]:
				t.Errorf("%s: %s moved from %q to %q", name, n, before[n], after[n])
			}
		}
		for _, e := range entries {
			if !w.cachedNow(e) {
				t.Errorf("%s: %s is gone; versioned entries are not deleted one by one", name, e)
			}
		}
	}
	moves("update", keys("t:a:search", "top", "t:a:shelf:s1"), `UPDATE products SET name = 'm' WHERE tenant = 'a' AND id = 1`)
	moves("another tenant", keys("t:b:search", "top", "t:b:shelf:s1"), `UPDATE products SET name = 'm' WHERE tenant = 'b' AND id = 1`)
	moves("a tenant that looks like a glob", keys("t:%2A:search", "top", "t:%2A:shelf:s1"), `UPDATE products SET name = 'm' WHERE tenant = '*' AND id = 1`)
	moves("both tenants and both shelves of a moved row", keys("t:a:search", "t:b:search", "top", "t:a:shelf:s2", "t:b:shelf:s9"),
		`UPDATE products SET tenant = 'b', id = 9, shelf = 's9' WHERE tenant = 'a' AND id = 2`)
	moves("twice in one transaction", keys("t:a:search", "top", "t:a:shelf:s1"),
		`BEGIN; UPDATE products SET name = '1' WHERE tenant = 'a' AND id = 1; UPDATE products SET name = '2' WHERE tenant = 'a' AND id = 1; COMMIT`)
	moves("rolled back", nil, `BEGIN; UPDATE products SET name = 'x'; ROLLBACK`)
	moves("nothing but heartbeats", nil, `SELECT pg_logical_emit_message(true, 'test.after', '')`)

	before := w.versionsOf(all)
	p.stop()
	p = w.start()
	if after := w.versionsOf(all); after["t:a:search"] != before["t:a:search"] {
		t.Errorf("a restart alone moved a version from %q to %q", before["t:a:search"], after["t:a:search"])
	}
	moves("after a restart", keys("t:a:search", "top", "t:a:shelf:s1"), `UPDATE products SET name = 'r' WHERE tenant = 'a' AND id = 1`)
	p.stop()
}

// Readers take 0 for a version that is not there. What they cached so must not
// survive what invalidates whole families.
func TestWhatWasCachedWithoutAVersionIsRevoked(t *testing.T) {
	w := newWorld(t, productsSchema, versionedMappings)
	p := w.start()
	whole := func(name string, sql ...string) {
		t.Helper()
		w.put("t:a:search:0:shoes", "t:b:shelf:s1:0:x", "t:a:other:0:x")
		w.exec(sql...)
		w.eventually(name+": the version of all has moved", func() bool { return w.get("top") != "" })
		w.exec(`SELECT pg_logical_emit_message(true, 'test.after', '')`)
		w.settle(p)
		for _, k := range keys("t:a:search:0:shoes", "t:b:shelf:s1:0:x") {
			if w.cachedNow(k) && w.get("t:"+k[2:3]+":search") == "" {
				t.Errorf("%s: %s is left, and readers find it", name, k)
			}
		}
		if !w.cachedNow("t:a:other:0:x") {
			t.Errorf("%s: a key of no family is gone", name)
		}
		w.forget()
	}
	whole("truncate", `TRUNCATE products`)
	whole("DDL that the log is silent about", `ALTER TABLE products ALTER id TYPE bigint USING id + 1`)
	p.stop()
	w.exec("SELECT pg_drop_replication_slot('" + w.slot + "')")
	w.put("t:a:search:0:shoes", "t:b:shelf:s1:0:x")
	p = w.launch()
	w.eventually("the gap is closed", func() bool { return p.logged("gap closed") > 0 })
	w.settle(p)
	w.want("top")
	p.stop()
}

// Whole families: a version that holds for all moves, versions of tenants go.
func TestTruncateRevokesEveryVersion(t *testing.T) {
	w := newWorld(t, productsSchema, versionedMappings)
	p := w.start()
	w.exec(`UPDATE products SET name = 'm'`)
	w.settle(p)
	top, a, shelf := w.get("top"), w.get("t:a:search"), w.get("t:b:shelf:s1")
	if top == "" || a == "" || shelf == "" {
		t.Fatalf("versions are %q, %q, %q; want all there", top, a, shelf)
	}
	w.put("t:a:other", "t:a:search:0:shoes")
	w.exec(`TRUNCATE products`)
	w.settle(p)
	for name, before := range map[string]string{"top": top, "t:a:search": a, "t:b:shelf:s1": shelf} {
		if now := w.get(name); now == before {
			t.Errorf("%s is still %q", name, now)
		}
	}
	if !w.cachedNow("t:a:other") {
		t.Error("a key of no family is gone")
	}
	// What comes back must be something that was never there.
	w.exec(`INSERT INTO products VALUES ('a', 1, 's1', 'n')`)
	w.settle(p)
	if now := w.get("t:a:search"); now <= a {
		t.Errorf("the version came back as %q, was %q before the truncate", now, a)
	}
	p.stop()
}
