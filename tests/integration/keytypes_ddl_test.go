package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

// retyped is DDL that changes the text of a key's column, on a table of its own: t0, t1, ...
type retyped struct {
	name   string
	column string // its type, and
	row    string // its value, a literal
	value  any    // by which the library reads
	ddl    string // with %[1]s for the table
	// The key before and after; "" where the value is refused by then, or finds nothing.
	before, after string
}

const retypedUUID = "6b1d0c3e-0000-4000-8000-00000000abcd"

func retypings() []retyped {
	alter := func(to string) string { return "ALTER TABLE %[1]s ALTER v TYPE " + to }
	return []retyped{
		{"int to text", "int", "7", 7, alter("text"), "7", "7"},
		{"bigint to numeric(12,2)", "bigint", "7", 7, alter("numeric(12,2)"), "7", "7.00"},
		{"numeric(10,2) to numeric(10,3)", "numeric(10,2)", "1.5", json.Number("1.5"), alter("numeric(10,3)"), "1.50", "1.500"},
		{"numeric(10,2) to numeric", "numeric(10,2)", "1.5", json.Number("1.5"), alter("numeric"), "1.50", ""},
		{"a domain over char(n) to varchar", "code", "'ab'", "ab", alter("varchar(6)"), "ab%20%20%20%20", "ab"},
		{"char(n) to varchar", "char(6)", "'ab'", "ab", alter("varchar(6)"), "ab", "ab"},
		{"inet to cidr", "inet", "'10.0.0.1'", netip.MustParseAddr("10.0.0.1"), alter("cidr"), "10.0.0.1", "10.0.0.1/32"},
		{"text to citext", "text", "'Bob'", "Bob", alter("citext"), "Bob", ""},
		{"to a nondeterministic collation", "text", "'Bob'", "Bob", alter("text COLLATE nocase"), "Bob", ""},
		{"timestamptz to timestamp", "timestamptz", "'2024-03-01 12:34:56+00'", time.Date(2024, 3, 1, 12, 34, 56, 0, time.UTC), alter("timestamp USING v AT TIME ZONE 'UTC'"), "2024-03-01%2012%3A34%3A56+00", "2024-03-01%2012%3A34%3A56"},
		{"uuid to bytea", "uuid", "'" + retypedUUID + "'", uuid.MustParse(retypedUUID), alter("bytea USING uuid_send(v)"), retypedUUID, ""},
		{"another name for a value of an enum", "mood", "'new'", "new", "ALTER TYPE mood RENAME VALUE 'new' TO 'fresh'", "new", ""},
		{"another column under its name", "int", "7", 7, "ALTER TABLE %[1]s RENAME v TO w; ALTER TABLE %[1]s ADD v numeric(4,1) DEFAULT 7", "7", "7.0"},
		{"a table of a for_each query", "int", "7", 7, "ALTER TABLE for_each ALTER v TYPE numeric(4,1)", "7", "7.0"},
	}
}

// While DDL changes a key column's text, the library reads all the time, and the rows go on changing. No read returns
// what was replaced longer ago than the class allows, on neither side of the DDL.
func TestNothingStaleWhileDDLChangesTheTextOfKeys(t *testing.T) {
	for _, how := range []string{"seen in the catalogs", "announced by the event trigger", "while the daemon is away"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			cases := retypings()
			schema := strings.Builder{}
			schema.WriteString(`CREATE EXTENSION IF NOT EXISTS citext; CREATE DOMAIN code AS char(6); CREATE TYPE mood AS ENUM ('new');
				CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
				CREATE TABLE for_each (id int PRIMARY KEY, v int); INSERT INTO for_each VALUES (1, 7);`)
			families, mappings := strings.Builder{}, strings.Builder{}
			for i, c := range cases {
				fmt.Fprintf(&schema, "CREATE TABLE t%d (id int PRIMARY KEY, v %s, n int NOT NULL DEFAULT 0); ALTER TABLE t%d REPLICA IDENTITY FULL; INSERT INTO t%d VALUES (1, %s);\n", i, c.column, i, i, c.row)
				fmt.Fprintf(&families, "  k%d: {key: \"k%d:{v}\", class: critical, ttl: 10m}\n", i, i)
				if strings.Contains(c.ddl, "for_each") {
					fmt.Fprintf(&mappings, "  - {table: public.t%d, keys: [{k%d: {v: v}, for_each: \"SELECT v FROM for_each WHERE id = {id}\"}]}\n", i, i)
				} else {
					fmt.Fprintf(&mappings, "  - {table: public.t%d, keys: [k%d]}\n", i, i)
				}
			}
			w := newWorld(t, schema.String(), "classes:\n  critical: {staleness: "+retypedBudget.String()+"}\nkeys:\n"+families.String()+"mappings:\n"+mappings.String())
			if how == "announced by the event trigger" {
				w.withTrigger()
			}
			p := w.start()
			c := w.reader()
			readers := make([]*retypedReader, len(cases))
			for i, rc := range cases {
				view, err := cache.Family[string](c, fmt.Sprintf("k%d", i))
				if err != nil {
					t.Fatal(err)
				}
				readers[i] = &retypedReader{w: w, c: rc, n: i, view: view}
			}
			ctx, stop := context.WithCancel(t.Context())
			var running sync.WaitGroup
			for _, r := range readers {
				running.Go(func() { r.read(ctx) })
				w.eventually("the value is cached: "+r.c.name, func() bool { return r.cached(r.c.before) })
			}
			before := w.stamps()
			if how == "while the daemon is away" {
				p.stop()
			}
			for _, r := range readers {
				w.exec(strings.ReplaceAll(r.c.ddl, "%[1]s", fmt.Sprintf("t%d", r.n)))
			}
			writing := func() { // what changes behind the DDL shows what is not invalidated
				for _, r := range readers {
					r.write()
				}
			}
			writing()
			if how == "while the daemon is away" {
				p = w.start()
			}
			for until := time.Now().Add(2 * retypedBudget); time.Now().Before(until); {
				writing()
			}
			for _, r := range readers {
				w.eventually("what is read is stored under the key of now: "+r.c.name, func() bool { return r.c.after == "" || r.cached(r.c.after) })
				now, was := w.stamps().Families[fmt.Sprintf("k%d", r.n)], before.Families[fmt.Sprintf("k%d", r.n)]
				if now.Stamp == was.Stamp {
					t.Errorf("%s: the stamp has not moved; the types are %s", r.c.name, now.Types)
				}
			}
			writing()
			stop()
			running.Wait()
			for _, r := range readers {
				t.Logf("%s: %d reads", r.c.name, r.reads)
			}
			p.kill()
		})
	}
}

const retypedBudget = time.Second

// retypedReader reads one row in a loop.
type retypedReader struct {
	w    *world
	c    retyped
	n    int
	view *cache.View[string]

	reads int
	mu    sync.Mutex
	acked []time.Time // of commits: the n-th is of value n+1
}

func (r *retypedReader) write() {
	r.w.exec(fmt.Sprintf("UPDATE t%d SET n = n + 1", r.n))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acked = append(r.acked, time.Now())
}

// least is the value that was committed before a moment.
func (r *retypedReader) least(at time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(r.acked) && r.acked[n].Before(at) {
		n++
	}
	return n
}

func (r *retypedReader) read(ctx context.Context) {
	for ctx.Err() == nil {
		s, err := r.view.Get(ctx, cache.Vars{"v": r.c.value}, func(ctx context.Context, tx pgx.Tx) (s string, err error) {
			sql := fmt.Sprintf("SELECT n::text FROM t%d", r.n)
			if r.c.column == "mood" {
				sql += " WHERE v::text = 'new'"
			}
			err = tx.QueryRow(ctx, sql).Scan(&s)
			if r.c.column == "mood" && errors.Is(err, pgx.ErrNoRows) {
				err = cache.ErrNotFound
			}
			return s, err
		})
		returned := time.Now()
		n, _ := strconv.Atoi(s)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, pgx.ErrNoRows): // a table that was rewritten is empty for a snapshot of before
		case err != nil:
			if r.c.after != "" || !errors.Is(err, cache.ErrVars) && !errors.Is(err, cache.ErrNotFound) {
				r.w.t.Errorf("%s: %v", r.c.name, err)
				return
			}
		case n < r.least(returned.Add(-retypedBudget)):
			r.w.t.Errorf("%s: a read returns %d, and %d was committed %s before", r.c.name, n, r.least(returned.Add(-retypedBudget)), retypedBudget)
			return
		}
		r.reads++
	}
}

// cached says whether an entry with the family's present stamp lies at the key.
func (r *retypedReader) cached(key string) bool {
	family := fmt.Sprintf("k%d", r.n)
	stamp := r.w.stamp(family)
	return stamp != "" && r.w.entryStamp(family+":"+key) == stamp
}
