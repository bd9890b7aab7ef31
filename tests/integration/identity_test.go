package integration

import (
	"fmt"
	"strings"
	"testing"
)

// hostileSettings are what a role or database may have that would change how
// Postgres writes values.
const hostileSettings = `
	DO $$ DECLARE s text; BEGIN
	FOREACH s IN ARRAY ARRAY['datestyle TO ''SQL, DMY''', 'timezone TO ''Asia/Kathmandu''', 'bytea_output TO ''escape''',
		'extra_float_digits TO -15', 'intervalstyle TO ''sql_standard''', 'client_encoding TO ''LATIN1''', 'lc_monetary TO ''C''',
		'search_path TO ''nowhere''', 'default_transaction_read_only TO ''on'''] LOOP
		EXECUTE format('ALTER ROLE CURRENT_USER IN DATABASE %I SET %s', current_database(), s);
	END LOOP; END $$`

const typesSchema = `
	CREATE TYPE mood AS ENUM ('so so', 'happy');
	CREATE DOMAIN code AS varchar(10);
	CREATE TABLE vals (
		id int PRIMARY KEY, u uuid, at timestamptz, local timestamp, day date, raw bytea, amount numeric(12,4), fixed char(6),
		ok boolean, m mood, f float8, span interval, doc jsonb, list text[], c code, net inet);
	ALTER TABLE vals REPLICA IDENTITY FULL;
	CREATE TABLE watchers (id int PRIMARY KEY, fixed char(6), at timestamptz)`

const typesMappings = `
classes:
  critical: {staleness: 1s}
keys:
  u:      {key: "u:{u}", class: critical}
  at:     {key: "at:{at}", class: critical}
  local:  {key: "local:{local}", class: critical}
  day:    {key: "day:{day}", class: critical}
  raw:    {key: "raw:{raw}", class: critical}
  amount: {key: "amount:{amount}", class: critical}
  fixed:  {key: "fixed:{fixed}", class: critical}
  ok:     {key: "ok:{ok}", class: critical}
  m:      {key: "m:{m}", class: critical}
  f:      {key: "f:{f}", class: critical}
  span:   {key: "span:{span}", class: critical}
  doc:    {key: "doc:{doc}", class: critical}
  list:   {key: "list:{list}", class: critical}
  c:      {key: "c:{c}", class: critical}
  net:    {key: "net:{net}", class: critical}
  pair:   {key: "pair:{fixed}:{at}", class: critical}
mappings:
  - table: public.vals
    keys:
      - u
      - at
      - local
      - day
      - raw
      - amount
      - fixed
      - ok
      - m
      - f
      - span
      - doc
      - list
      - c
      - net
      - {pair: {fixed: fixed, at: at}, for_each: "SELECT fixed, at FROM public.watchers WHERE id = {id} AND at = {at}"}
`

func TestKeysAreTheTextThatPostgresWritesWhateverTheSettings(t *testing.T) {
	w := newWorld(t, typesSchema, typesMappings)
	w.exec(`INSERT INTO watchers VALUES (1, 'ab', '2024-03-01 12:34:56.789+00')`, hostileSettings)
	p := w.start()
	w.step(p, "insert", keys(
		"u:6b1d0c3e-0000-4000-8000-00000000abcd",
		"at:2024-03-01%2012%3A34%3A56.789+00",
		"local:2024-03-01%2012%3A34%3A56",
		"day:2024-03-01",
		"raw:%5Cx0041ff",
		"amount:12.5000",
		"fixed:ab",
		"ok:t",
		"m:so%20so",
		"f:0.30000000000000004",
		"span:1%20day%2002%3A03%3A04",
		"doc:%7B\"a\"%3A%201%7D",
		"list:%7Bx,\"y%20z\"%7D",
		"c:A1",
		"net:10.0.0.0/8",
		"pair:ab:2024-03-01%2012%3A34%3A56.789+00",
	), keys(
		"u:6B1D0C3E-0000-4000-8000-00000000ABCD",
		"at:2024-03-01%2018%3A19%3A56.789+0545",
		"at:01/03/2024%2018%3A19%3A56.789%20+0545",
		"day:01/03/2024",
		"raw:%5C000A%5C377",
		"amount:12.5",
		"fixed:ab%20%20%20%20",
		"ok:true",
		"ok:f",
		"m:happy",
		"f:0.3",
		"span:1%202%3A03%3A04",
		"c:a1",
		"pair:ab%20%20%20%20:2024-03-01%2012%3A34%3A56.789+00",
	), `INSERT INTO vals VALUES (1, '6B1D0C3E-0000-4000-8000-00000000ABCD', '2024-03-01 12:34:56.789+00', '2024-03-01 12:34:56', '2024-03-01',
		'\x0041ff', 12.5, 'ab', true, 'so so', 0.1::float8 + 0.2::float8, '1 day 02:03:04', '{"a":1}', '{x,"y z"}', 'A1', '10.0.0.0/8')`)
	w.step(p, "both images of each type", keys("u:%-", "u:6b1d0c3e-0000-4000-8000-00000000abcd", "ok:t", "ok:f", "fixed:ab", "fixed:abc",
		"at:2024-03-01%2012%3A34%3A56.789+00", "at:0044-03-15%2000%3A00%3A00+00%20BC", "amount:12.5000", "amount:NaN", "f:-0", "f:0.30000000000000004"),
		keys("u:", "ok:%-", "fixed:", "f:0", "amount:%-"),
		`UPDATE vals SET u = NULL, ok = false, fixed = 'abc', at = '0044-03-15 00:00:00+00 BC', amount = 'NaN', f = '-0' WHERE id = 1`)
	p.stop()
}

func TestCompositeKeys(t *testing.T) {
	w := newWorld(t, `CREATE TYPE zone AS ENUM ('eu', 'us');
		CREATE TABLE places (zone zone, code char(4), id uuid, at timestamptz, raw bytea, name text, PRIMARY KEY (raw, id, zone, code, at))`, `
classes:
  critical: {staleness: 1s}
keys:
  place: {key: "{zone}:place:{code}:{id}:{at}:{raw}", tenant: zone, class: critical}
mappings:
  - table: public.places
    keys: [place]
`)
	const id = "6b1d0c3e-0000-4000-8000-00000000abcd"
	key := func(zone, code, raw string) string {
		return zone + ":place:" + code + ":" + id + ":2024-03-01%2000%3A00%3A00+00:%5Cx" + raw
	}
	w.exec(fmt.Sprintf(`INSERT INTO places SELECT z::zone, c, '%s', '2024-03-01', r::bytea, 'n'
		FROM unnest('{eu,us}'::text[]) z, unnest('{a,b}'::text[]) c, unnest('{00,01}'::text[]) r`, id))
	p := w.start()
	w.step(p, "no old image: the key cannot have changed", keys(key("eu", "a", "3030")),
		keys(key("eu", "a", "3031"), key("eu", "b", "3030"), key("us", "a", "3030")),
		`UPDATE places SET name = 'x' WHERE (zone, code, raw) = ('eu', 'a', '00')`)
	w.step(p, "one column of the key changes", keys(key("eu", "a", "3030"), key("us", "a", "ff")),
		keys(key("us", "a", "3030"), key("eu", "a", "ff"), key("eu", "a", "3031")),
		`UPDATE places SET zone = 'us', raw = '\xff' WHERE (zone, code, raw) = ('eu', 'a', '00')`)
	w.step(p, "delete", keys(key("us", "b", "3031")), keys(key("us", "b", "3030"), key("eu", "b", "3031"), key("us", "a", "3031")),
		`DELETE FROM places WHERE (zone, code, raw) = ('us', 'b', '01')`)
	p.stop()
}

// hostileValues and how each stands in a key.
var hostileValues = [][2]string{
	{"plain", "plain"},
	{"a:b", "a%3Ab"},
	{"a%3Ab", "a%253Ab"},
	{"{b}", "%7Bb%7D"},
	{"*", "%2A"},
	{"a*", "a%2A"},
	{"?", "%3F"},
	{"[a-z]", "%5Ba-z%5D"},
	{`\`, "%5C"},
	{`\*`, "%5C%2A"},
	{"line\nbreak", "line%0Abreak"},
	{"line\r\nbreak", "line%0D%0Abreak"},
	{"tab\t", "tab%09"},
	{" ", "%20"},
	{"🔑", "🔑"},
	{"é", "é"}, // one code point
	{"é", "é"}, // e and an accent
	{`it's "quoted"`, `it's%20"quoted"`},
	{"$1", "$1"},
	{"", ""},
	{"%-", "%25-"},
	{"NULL", "NULL"},
	{"\x7f", "%7F"},
}

func TestHostileValuesStayInTheirPlaceAndTenant(t *testing.T) {
	w := newWorld(t, `CREATE TABLE names (tenant text, id int, name text, PRIMARY KEY (tenant, id));
		CREATE TABLE loose (tenant text, id int, name text, PRIMARY KEY (tenant, id));
		ALTER TABLE names REPLICA IDENTITY FULL`, `
classes:
  critical: {staleness: 1s}
keys:
  name:  {key: "t:{tenant}:name:{name}", tenant: tenant, class: critical}
  loose: {key: "t:{tenant}:loose:{name}", tenant: tenant, class: critical}
mappings:
  - table: public.names
    keys: [name]
  - table: public.loose
    keys: [loose]
`)
	p := w.start()
	all := keys("t:a:name:%-", "t:%-:name:plain")
	for _, v := range hostileValues {
		all = append(all, "t:a:name:"+v[1], "t:"+v[1]+":name:plain", "t:"+v[1]+":loose:plain", "t:"+v[1]+":loose:"+v[1])
	}
	without := func(gone ...string) (kept []string) {
		seen := map[string]bool{}
		for _, k := range gone {
			seen[k] = true
		}
		for _, k := range all {
			if !seen[k] {
				seen[k] = true
				kept = append(kept, k)
			}
		}
		return kept
	}
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
	for i, v := range hostileValues {
		gone := keys("t:a:name:" + v[1])
		w.step(p, fmt.Sprintf("%q as a name", v[0]), gone, without(gone...),
			fmt.Sprintf(`INSERT INTO names VALUES ('a', %d, %s)`, i, quote(v[0])))
		gone = keys("t:" + v[1] + ":name:plain")
		w.step(p, fmt.Sprintf("%q as a tenant", v[0]), gone, without(gone...),
			fmt.Sprintf(`INSERT INTO names VALUES (%s, -1, 'plain') ON CONFLICT (tenant, id) DO UPDATE SET name = 'plain'`, quote(v[0])))
		// The old name is not in the log: all of the tenant goes, and nothing of another.
		gone = keys("t:"+v[1]+":loose:plain", "t:"+v[1]+":loose:"+v[1])
		w.exec(fmt.Sprintf(`INSERT INTO loose VALUES (%s, -1, 'x')`, quote(v[0])))
		w.settle(p)
		w.step(p, fmt.Sprintf("all of tenant %q", v[0]), gone, without(gone...),
			fmt.Sprintf(`DELETE FROM loose WHERE tenant = %s`, quote(v[0])))
	}
	gone := keys("t:a:name:%-")
	w.step(p, "NULL", gone, without(gone...), `INSERT INTO names VALUES ('a', 1000, NULL)`)
	p.stop()
}

const identityMappings = `
classes:
  critical: {staleness: 1s}
keys:
  by_id:   {key: "t:{tenant}:id:{id}", tenant: tenant, class: critical}
  by_name: {key: "t:{tenant}:name:{name}", tenant: tenant, class: critical}
mappings:
  - table: public.items
    keys: [by_id, by_name]
`

// With the columns of an identity known and name not, ids go one by one and names
// by tenant, or all where even the tenant is not known.
func TestEveryReplicaIdentity(t *testing.T) {
	rows := `; INSERT INTO items SELECT t, i, 'n' || i, repeat('x', 10) FROM generate_series(1, 3) i, unnest('{a,b}'::text[]) t`
	t.Run("default, tenant in the key", func(t *testing.T) {
		w := newWorld(t, `CREATE TABLE items (tenant text, id int, name text, note text, PRIMARY KEY (tenant, id))`+rows, identityMappings)
		p := w.start()
		w.step(p, "insert knows all", keys("t:a:id:4", "t:a:name:n4"), keys("t:a:id:1", "t:a:name:n1", "t:b:id:4", "t:b:name:n4"),
			`INSERT INTO items VALUES ('a', 4, 'n4')`)
		w.step(p, "update without an old image", keys("t:a:id:1", "t:a:name:n1", "t:a:name:n2"), keys("t:a:id:2", "t:b:id:1", "t:b:name:n1"),
			`UPDATE items SET note = 'y' WHERE tenant = 'a' AND id = 1`)
		w.step(p, "the key changes", keys("t:a:id:2", "t:b:id:20", "t:a:name:n3", "t:b:name:n2", "t:a:name:n2"), keys("t:a:id:1", "t:b:id:2", "t:b:name:n3"),
			`UPDATE items SET tenant = 'b', id = 20 WHERE tenant = 'a' AND id = 2`)
		w.step(p, "delete", keys("t:b:id:1", "t:b:name:n1", "t:b:name:n2"), keys("t:b:id:2", "t:a:id:1", "t:a:name:n1"),
			`DELETE FROM items WHERE tenant = 'b' AND id = 1`)
		p.stop()
	})
	t.Run("default, tenant outside the key", func(t *testing.T) {
		w := newWorld(t, `CREATE TABLE items (tenant text, id int, name text, note text);
			CREATE TABLE other (id int)`+strings.ReplaceAll(rows, "SELECT t, i", "SELECT t, i + CASE t WHEN 'b' THEN 10 ELSE 0 END")+`; ALTER TABLE items ADD PRIMARY KEY (id)`, identityMappings)
		p := w.start()
		w.step(p, "update: the old tenant is unknown", keys("t:a:id:1", "t:b:id:1", "t:a:name:n1", "t:b:name:n2"), keys("t:a:other:1"),
			`UPDATE items SET note = 'y' WHERE id = 1`)
		w.step(p, "delete: no tenant at all", keys("t:a:id:1", "t:b:id:1", "t:a:name:n1"), keys("t:a:other:1"),
			`DELETE FROM items WHERE id = 1`)
		p.stop()
	})
	t.Run("full", func(t *testing.T) {
		w := newWorld(t, `CREATE TABLE items (tenant text, id int, name text, note text)`+rows+`; ALTER TABLE items REPLICA IDENTITY FULL`, identityMappings)
		p := w.start()
		w.step(p, "update", keys("t:a:id:1", "t:a:name:n1"), keys("t:a:id:2", "t:a:name:n2", "t:b:id:1", "t:b:name:n1"),
			`UPDATE items SET note = 'y' WHERE tenant = 'a' AND id = 1`)
		w.step(p, "rename", keys("t:a:id:1", "t:a:name:n1", "t:a:name:m1"), keys("t:a:name:n2", "t:b:name:n1", "t:b:name:m1"),
			`UPDATE items SET name = 'm1' WHERE tenant = 'a' AND id = 1`)
		w.step(p, "delete", keys("t:a:id:1", "t:a:name:m1"), keys("t:a:id:2", "t:a:name:n1", "t:b:id:1"),
			`DELETE FROM items WHERE tenant = 'a' AND id = 1`)
		p.stop()
	})
	t.Run("index", func(t *testing.T) {
		w := newWorld(t, `CREATE TABLE items (tenant text NOT NULL, id int PRIMARY KEY, name text NOT NULL, note text);
			CREATE UNIQUE INDEX items_name ON items (tenant, name); ALTER TABLE items REPLICA IDENTITY USING INDEX items_name;
			INSERT INTO items SELECT t, i + CASE t WHEN 'b' THEN 10 ELSE 0 END, 'n' || i FROM generate_series(1, 3) i, unnest('{a,b}'::text[]) t`, identityMappings)
		p := w.start()
		w.step(p, "update: the name is known, the id is not", keys("t:a:name:n1", "t:a:id:1", "t:a:id:2"), keys("t:a:name:n2", "t:b:id:11", "t:b:name:n1"),
			`UPDATE items SET note = 'y' WHERE id = 1`)
		w.step(p, "the primary key changes and no old image has it", keys("t:a:id:1", "t:a:id:100", "t:a:name:n1"), keys("t:b:id:1", "t:b:id:100", "t:a:name:n2"),
			`UPDATE items SET id = 100 WHERE id = 1`)
		w.step(p, "the index column changes", keys("t:a:name:n2", "t:a:name:m2", "t:a:id:2"), keys("t:a:name:n1", "t:b:name:n2", "t:b:name:m2"),
			`UPDATE items SET name = 'm2' WHERE id = 2`)
		w.step(p, "delete", keys("t:b:name:n1", "t:b:id:11", "t:b:id:12"), keys("t:b:name:n2", "t:a:name:n1", "t:a:id:2"),
			`DELETE FROM items WHERE id = 11`)
		p.stop()
	})
	t.Run("nothing, and no primary key", func(t *testing.T) {
		w := newWorld(t, `CREATE TABLE items (tenant text, id int, name text, note text)`, identityMappings)
		w.refuses("public.items has no replica identity", `ALTER TABLE public.items REPLICA IDENTITY FULL;`)
		w.exec(`ALTER TABLE items REPLICA IDENTITY FULL`)
		p := w.start()
		w.step(p, "insert", keys("t:a:id:1", "t:a:name:n1"), keys("t:a:id:2", "t:b:id:1"), `INSERT INTO items VALUES ('a', 1, 'n1')`)
		// From now on the application may insert and truncate only, and that still counts.
		w.silently(p, keys("t:a:id:1", "t:a:name:n1"), `ALTER TABLE items REPLICA IDENTITY NOTHING`)
		w.exec(`INSERT INTO items VALUES ('a', 3, 'n3')`) // describes the table anew, which widens
		w.settle(p)
		w.step(p, "insert with identity nothing", keys("t:a:id:2", "t:a:name:n2"), keys("t:a:id:1", "t:b:id:2"), `INSERT INTO items VALUES ('a', 2, 'n2')`)
		w.step(p, "truncate with identity nothing", keys("t:a:id:1", "t:b:id:9", "t:b:name:x"), nil, `TRUNCATE items`)
		p.stop()
	})
}

// A value that is stored out of line and was not touched is not in the new image.
func TestUnchangedToast(t *testing.T) {
	const schema = `CREATE TABLE docs (tenant text, id int, title text, body text, n int, PRIMARY KEY (tenant, id));
		ALTER TABLE docs ALTER title SET STORAGE EXTERNAL, ALTER body SET STORAGE EXTERNAL;
		INSERT INTO docs SELECT 'a', i, i || repeat('t', 3000), i || repeat('b', 9000), 0 FROM generate_series(1, 3) i`
	const mappings = `
classes:
  critical: {staleness: 1s}
keys:
  doc:      {key: "t:{tenant}:doc:{id}", tenant: tenant, class: critical}
  by_title: {key: "t:{tenant}:title:{title}", tenant: tenant, class: critical}
  body:     {key: "t:{tenant}:body:{id}", tenant: tenant, class: critical}
  long:     {key: "t:{tenant}:long:{id}", tenant: tenant, class: critical}
mappings:
  - table: public.docs
    keys: [doc, by_title]
  - table: public.docs
    columns: [body]
    keys: [body]
  - table: public.docs
    when: new.body != '1' && new.body.size() > 5000
    keys: [long]
`
	title := func(n int) string { return fmt.Sprintf("t:a:title:%d%s", n, strings.Repeat("t", 3000)) }
	t.Run("full", func(t *testing.T) {
		w := newWorld(t, schema+`; ALTER TABLE docs REPLICA IDENTITY FULL`, mappings)
		p := w.start()
		w.step(p, "another column", keys("t:a:doc:1", title(1), "t:a:long:1"), keys("t:a:doc:2", title(2), "t:a:body:1", "t:a:long:2"),
			`UPDATE docs SET n = 1 WHERE id = 1`)
		w.step(p, "the body becomes short", keys("t:a:doc:1", title(1), "t:a:body:1"), keys(title(2), "t:a:long:1", "t:a:body:2"),
			`UPDATE docs SET body = 'short' WHERE id = 1`)
		w.step(p, "the title changes", keys("t:a:doc:2", title(2), title(20), "t:a:long:2"), keys(title(1), title(3), "t:a:body:2"),
			`UPDATE docs SET title = '20' || repeat('t', 3000) WHERE id = 2`)
		w.step(p, "delete", keys("t:a:doc:3", title(3), "t:a:body:3", "t:a:long:3"), keys("t:a:doc:2", title(2)),
			`DELETE FROM docs WHERE id = 3`)
		p.stop()
	})
	t.Run("default", func(t *testing.T) {
		w := newWorld(t, schema, mappings)
		p := w.start()
		// The log itself says that body did not change; title's value nobody knows.
		w.step(p, "another column", keys("t:a:doc:1", title(1), title(2), "t:a:long:1"), keys("t:a:doc:2", "t:a:body:1", "t:b:title:x", "t:a:long:2"),
			`UPDATE docs SET n = 1 WHERE id = 1`)
		w.step(p, "the body changes to the same length", keys("t:a:doc:1", title(1), title(3), "t:a:body:1", "t:a:long:1"), keys("t:a:doc:2", "t:a:body:2", "t:a:long:2"),
			`UPDATE docs SET body = '1' || repeat('c', 9000) WHERE id = 1`)
		p.stop()
	})
}
