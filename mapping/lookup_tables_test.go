package mapping

import (
	"slices"
	"testing"
)

func TestTablesOfAForEachQuery(t *testing.T) {
	for sql, want := range map[string][]string{
		`SELECT id FROM products WHERE seller_id = {id}`:                                                            {"products"},
		`select id from Public.Products p where seller_id = {id} order by a, b`:                                     {"public.products"},
		`SELECT a.id FROM a, b AS bb, ONLY "C d" WHERE a.x = {id} AND b.y IN (1, 2)`:                                {`"C d"`, "a", "b"},
		`SELECT 1 FROM a JOIN s.b ON (a.x = b.x) LEFT JOIN LATERAL (SELECT y FROM c WHERE z = {id}) q ON true, d`:   {"a", "c", "d", "s.b"},
		`SELECT 1 FROM (a CROSS JOIN b) WHERE a.x = {id}`:                                                           {"a", "b"},
		`WITH w AS (SELECT * FROM a WHERE x = {id}), v (p, q) AS NOT MATERIALIZED (TABLE b) SELECT * FROM w, v, c`:  {"a", "c"},
		`SELECT x FROM generate_series(1, {id}) AS g(x), unnest('{1,2}'::int[]) u, t`:                               {"t"},
		`SELECT extract(year FROM created) FROM t WHERE x IS DISTINCT FROM {id} AND trim(both from y) = 'from z'`:   {"t"},
		`SELECT id FROM t /* from a */ WHERE x = {id} -- from b`:                                                    {"t"},
		`SELECT id FROM t WHERE EXISTS (SELECT FROM u WHERE u.i = t.i AND u.x = {id}) UNION ALL SELECT id FROM "V"`: {`"V"`, "t", "u"},
		`SELECT {id} AS product_id`: nil,
		`TABLE t LIMIT {id}`:        {"t"},
	} {
		q, err := parseForEach(sql)
		if err != nil {
			t.Errorf("%s: %v", sql, err)
			continue
		}
		if got := tablesOf(q.sql); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
	}
}
