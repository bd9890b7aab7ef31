package integration

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

const dependentsMappings = `
classes:
  critical: {staleness: 1s}
  pages:    {staleness: 1m}
keys:
  page:   {key: "page:{id}", class: critical, ttl: 10m}
  soft:   {key: "soft:{id}", class: pages, ttl: 10m, on_invalidate: soft, stale_for: 30s}
  search: {key: "search:{version}:{id}", version: "search", class: pages, ttl: 10m}
mappings:
  - table: public.pages
    keys: [page, soft, search]
  - table: public.sellers
    columns: [name, area]
    dependents: ["seller:{id}", "place:{area}:{id}"]
  - table: public.brands
    dependents: ["brand:{name}"]
`

const dependentsSchema = `
	CREATE TABLE pages (id int PRIMARY KEY);
	CREATE TABLE sellers (id int PRIMARY KEY, area text, name text, seen int);
	ALTER TABLE sellers REPLICA IDENTITY FULL;
	CREATE TABLE brands (id int PRIMARY KEY, name text, note text); -- names are not in the log of an update
	INSERT INTO sellers VALUES (1, 'x', 's1'), (2, NULL, 's2'), (3, '', 's3'), (4, 'a:*', 's4');
	INSERT INTO brands VALUES (1, 'b1'), (2, 'b2')`

// register is what a reader does before it loads what it caches under the keys.
func (w *world) register(entity string, members ...string) {
	w.t.Helper()
	script, err := os.ReadFile("../../cache/lua/register.lua")
	if err != nil {
		w.t.Fatal(err)
	}
	w.secrets.addKeys(entity)
	p := w.rdb.Pipeline()
	for _, m := range members {
		p.Eval(w.t.Context(), string(script), []string{"inv:dep:" + entity}, 600_000, m)
	}
	if _, err := p.Exec(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// registered are the keys under an entity.
func (w *world) registered(entity string) []string {
	w.t.Helper()
	members, err := w.rdb.ZRange(w.t.Context(), "inv:dep:"+entity, 0, -1).Result()
	if err != nil {
		w.t.Fatal(err)
	}
	return members
}

func TestDependents(t *testing.T) {
	w := newWorld(t, dependentsSchema, dependentsMappings)
	p := w.start()
	entities := keys("seller:1", "seller:2", "seller:3", "seller:4", "seller:9", "place:x:1", "place:y:1", "place:%-:2", "place::3", "place:a%3A%2A:4", "place:a:1", "brand:b1", "brand:b2", "brand:b3")
	// Of each entity a page; some also depend on a second one.
	step := func(name string, changed []string, sql ...string) {
		t.Helper()
		for _, e := range entities {
			w.register(e, "page page:"+e, "search search:7:"+e)
		}
		var gone, kept []string
		for _, e := range entities {
			page, search := "page:"+e, "search:7:"+e
			if slices.Contains(changed, e) {
				gone = append(gone, page, search)
			} else {
				kept = append(kept, page, search)
			}
		}
		w.step(p, name, gone, append(kept, "page:none"), sql...)
		for _, e := range entities {
			if n := len(w.registered(e)); n != 0 == slices.Contains(changed, e) {
				t.Errorf("%s: %d are registered under %s", name, n, e)
			}
		}
	}
	step("the row's own", keys("seller:1", "place:x:1"), `UPDATE sellers SET name = 'n' WHERE id = 1`)
	step("a column that does not count", nil, `UPDATE sellers SET seen = 1`)
	step("old and new image", keys("seller:1", "place:x:1", "place:y:1"), `UPDATE sellers SET area = 'y' WHERE id = 1`)
	step("the key itself", keys("seller:1", "seller:9", "place:y:1"), `UPDATE sellers SET id = 9, name = 'n9' WHERE id = 1`)
	step("NULL", keys("seller:2", "place:%-:2"), `UPDATE sellers SET name = 'n' WHERE id = 2`)
	step("the empty text", keys("seller:3", "place::3"), `UPDATE sellers SET name = 'n' WHERE id = 3`)
	step("a value that looks like more than one", keys("seller:4", "place:a%3A%2A:4"), `UPDATE sellers SET name = 'n' WHERE id = 4`)
	step("delete", keys("seller:9"), `DELETE FROM sellers WHERE id = 9`)
	step("insert", keys("seller:1", "place:a:1"), `INSERT INTO sellers VALUES (1, 'a', 's')`)
	step("rolled back", nil, `BEGIN; UPDATE sellers SET name = 'r'; ROLLBACK`)
	brands := keys("brand:b1", "brand:b2", "brand:b3")
	step("insert of a name", keys("brand:b3"), `INSERT INTO brands VALUES (3, 'b3')`)
	step("an old name that the log lacks: every brand's", brands, `UPDATE brands SET note = 'n' WHERE id = 1`)
	all := slices.DeleteFunc(slices.Clone(entities), func(e string) bool { return strings.HasPrefix(e, "brand:") })
	step("truncate", all, `TRUNCATE sellers`)

	w.register("seller:1", "page page:1", "page page:2", "gone elsewhere:3", "none of ours")
	w.register("brand:b1", "page page:2")
	w.step(p, "a family that is not in the mappings any more", keys("page:1", "page:2", "elsewhere:3"), keys("page:4", "elsewhere:5", "none", "of", "ours"),
		`INSERT INTO sellers VALUES (1, 'a', 's')`)

	for _, e := range all {
		w.register(e, "page page:"+e)
	}
	w.forget()
	w.silently(p, keys("page:seller:1", "page:place:x:1", "page:seller:9"), `ALTER TABLE sellers ALTER seen TYPE bigint USING seen + 1`)
	p.stop()
}

// A value of a soft family that depends on something is marked, not removed.
func TestSoftDependentIsMarked(t *testing.T) {
	w := newWorld(t, dependentsSchema, dependentsMappings)
	p := w.start()
	w.forget() // the version key of a family whose purge moved it
	w.putEntry("soft:1", "V", time.Hour)
	w.putEntry("page:1", "V", time.Hour)
	w.register("seller:2", "soft soft:1", "page page:1")
	w.exec(`UPDATE sellers SET name = 'n' WHERE id = 2`)
	w.settle(p)
	w.want("soft:1")
	w.wantMarked(30*time.Second, "soft:1")
	if left := w.registered("seller:2"); len(left) != 0 {
		t.Errorf("%q are still registered", left)
	}
	p.stop()
}

// The daemon is killed at every point while it works off what depends on a row. The
// next one finishes it, and leaves alone what depends on other rows.
func TestKilledAmongDependents(t *testing.T) {
	t.Parallel()
	w := newWorld(t, dependentsSchema, dependentsMappings)
	w.replayWindow("1ms")
	w.start().stop()
	points := []struct {
		point failpoint.Point
		hits  []int
	}{
		{failpoint.Received, []int{1}}, {failpoint.Decoded, []int{1}}, {failpoint.Taken, []int{1}}, {failpoint.Gated, []int{1}},
		{failpoint.Forgetting, []int{1, 2, 3}}, {failpoint.Applied, []int{1}}, {failpoint.Checkpointed, []int{1}},
	}
	for _, at := range points {
		for _, n := range at.hits {
			t.Run(fmt.Sprintf("%s/%d", at.point, n), func(t *testing.T) {
				w.t = t
				w.forget()
				var pages, members []string
				for i := range 120 { // three chunks
					pages = append(pages, fmt.Sprintf("page:%d", i))
					members = append(members, "page "+pages[i])
				}
				w.register("seller:2", members...)
				w.register("seller:3", "page page:other")
				w.put(append(pages, "page:other")...)
				w.exec(`UPDATE sellers SET name = name || 'x' WHERE id = 2`)
				p := w.launch(failAt(at.point, n))
				p.wait()
				if p.err == nil {
					t.Fatal("it ended by itself")
				}
				if left := len(w.registered("seller:2")); at.point == failpoint.Forgetting && left != 120-50*(n-1) {
					t.Errorf("%d are registered, want what was not dealt with yet", left)
				}
				// A reader comes while it is away: what it stores is new, and what it
				// registers counts for the next change.
				w.register("seller:2", "page page:late")
				w.put("page:late")
				next := w.start()
				for _, k := range pages {
					if w.cachedNow(k) {
						t.Errorf("%s is left", k)
						break
					}
				}
				w.exec(`UPDATE sellers SET name = name || 'y' WHERE id = 2`)
				w.settle(next)
				w.want("page:other")
				if left := w.registered("seller:3"); len(left) != 1 {
					t.Errorf("under another row %q are registered", left)
				}
				next.stop()
			})
		}
	}
}

// putEntry caches an entry as readers of the library store it: fresh for as long, and
// held by somebody who refreshes it.
func (w *world) putEntry(key, kind string, fresh time.Duration) {
	w.t.Helper()
	now := time.Now()
	ms := func(d time.Duration) string { return fmt.Sprintf("%012x", now.Add(d).UnixMilli()) }
	entry := "cdc2" + kind + "00000000000000aa" + ms(fresh) + ms(fresh) + ms(fresh) + "00000000000000c1" + " fields\npayload"
	w.secrets.addKeys(key)
	if err := w.rdb.Set(w.t.Context(), key, entry, fresh).Err(); err != nil {
		w.t.Fatal(err)
	}
}

// wantMarked fails unless the value is soft-stale: fresh no more, held by nobody, and to
// be served for as long as that from now at most.
func (w *world) wantMarked(atMost time.Duration, keys ...string) {
	w.t.Helper()
	for _, key := range keys {
		v, err := w.rdb.Get(w.t.Context(), key).Result()
		if err == redis.Nil {
			w.t.Errorf("%s is gone", key)
			continue
		}
		if err != nil {
			w.t.Fatal(err)
		}
		const nobody = "0000000000000000" + "000000000000"
		if len(v) < 73 || v[:5] != "cdc2V" || v[5:33] != nobody || v[33:45] != "000000000000" || !strings.HasSuffix(v, " fields\npayload") {
			w.t.Errorf("%s is not marked: %q", key, v)
			continue
		}
		var stale int64
		if _, err := fmt.Sscanf(v[45:57], "%x", &stale); err != nil {
			w.t.Fatal(err)
		}
		if left := time.Until(time.UnixMilli(stale)); left > atMost {
			w.t.Errorf("%s may be served for %v more, want %v at most", key, left, atMost)
		}
		if ttl := w.rdb.PTTL(w.t.Context(), key).Val(); ttl > atMost {
			w.t.Errorf("%s is kept for %v, want %v at most", key, ttl, atMost)
		}
	}
}

// A Redis that comes back with data of a moment ago may have a reader's lease and not what it
// registered after that: the daemon cannot know, so nothing stays.
func TestLostRegistrationsAreAGap(t *testing.T) {
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	rd := servertest.PrivateRedis(t, localserver.RedisOptions{})
	w := newWorldOn(t, servertest.NewDatabase(t, pg, "shop").URL, rd.URL(), dependentsSchema, dependentsMappings)
	p := w.start()
	w.put("page:1")
	if err := w.rdb.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	w.register("seller:2", "page page:1")
	rd.Kill()
	if err := rd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.eventually("Redis is there", func() bool { return w.rdb.Ping(t.Context()).Err() == nil })
	if err := w.rdb.SetXX(t.Context(), "page:1", "filled", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if left := w.registered("seller:2"); len(left) != 0 {
		t.Fatalf("%q came back: the test proves nothing", left)
	}
	w.exec(`UPDATE sellers SET name = 'n' WHERE id = 2`)
	w.settle(p)
	w.want("search") // the version that a purge moves
	if p.logged("may have lost what depends") == 0 {
		t.Error("the log does not say why")
	}
	p.stop()
}
