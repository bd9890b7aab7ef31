package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// What is cached is made of a row of a and the row of b with its number.
const stampsSchema = `
	CREATE TABLE a (id int PRIMARY KEY, v int NOT NULL DEFAULT 0);
	CREATE TABLE b (id int PRIMARY KEY, v int NOT NULL DEFAULT 0);
	CREATE TABLE c (id int PRIMARY KEY, v int NOT NULL DEFAULT 0);
	INSERT INTO a SELECT n FROM generate_series(1, 20) n;
	INSERT INTO b SELECT n FROM generate_series(1, 20) n;
	INSERT INTO c SELECT n FROM generate_series(1, 20) n;`

func stampsMappings(families, mappings string) string {
	return "classes:\n  critical: {staleness: 1m}\nkeys:\n" + families + "mappings:\n" + mappings
}

const (
	familySum   = "  sum: {key: \"sum:{id}\", class: critical, ttl: 1h}\n"
	familyOther = "  other: {key: \"other:{id}\", class: critical, ttl: 1h}\n"
	mapsSum     = "  - {table: public.a, keys: [sum]}\n  - {table: public.b, keys: [sum]}\n"
	mapsSumOfA  = "  - {table: public.a, keys: [sum]}\n"
	mapsOther   = "  - {table: public.c, keys: [other]}\n"
)

// both are the moments' two families, followed in full.
func both() string { return stampsMappings(familySum+familyOther, mapsSum+mapsOther) }

// sumOf reads through the library: the sum of a row of a, and of b.
func sumOf(w *world, c *cache.Client, id int) string {
	w.t.Helper()
	v, err := cache.Family[string](c, "sum")
	if err != nil {
		w.t.Fatal(err)
	}
	got, err := v.Get(w.t.Context(), cache.Vars{"id": id}, func(ctx context.Context, tx pgx.Tx) (s string, err error) {
		err = tx.QueryRow(ctx, "SELECT (a.v + b.v)::text FROM a JOIN b USING (id) WHERE id = $1", id).Scan(&s)
		return s, err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

// reader opens the library with the file as it is now.
func (w *world) reader() *cache.Client {
	w.t.Helper()
	pool, err := pgxpool.New(w.t.Context(), w.url)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(pool.Close)
	c, err := cache.Open(w.t.Context(), w.rdb, pool, cache.WithMappings(w.config), cache.WithCodec(cache.Raw))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// stamp is a family's; "" for none.
func (w *world) stamp(family string) string {
	if s := w.stamps(); s != nil && w.control()["stamps"] == s.Revision && s.Families[family].Stamp != "" {
		return s.Families[family].Stamp
	}
	return ""
}

// restamped waits until a family has another stamp, and the state is ok.
func (w *world) restamped(family, old string) {
	w.t.Helper()
	w.eventually("the family "+family+" is followed anew", func() bool {
		now := w.stamp(family)
		return now != "" && now != old && w.control()["state"] == "ok"
	})
}

// At each moment from which on the daemon begins to follow a family again, a change has come
// that it did not follow. The library never returns what was cached before, though nothing
// of it is purged here.
func TestWhatWasCachedBeforeIsNeverReturned(t *testing.T) {
	const held = "CDC_FAILPOINT_HOLD=" + string(failpoint.PurgingBehind)
	unseen := func(w *world) { w.exec(`UPDATE a SET v = v + 1 WHERE id <= 10`) }
	moments := []struct {
		name string
		// pass goes through the moment, and returns the daemon that runs after it.
		pass func(w *world, p *process) *process
		all  bool // also of the family that the change does not concern
		sent bool // the change comes through the slot after all
	}{
		{"a gap: the slot was dropped", func(w *world, p *process) *process {
			p.stop()
			w.exec("SELECT pg_drop_replication_slot('" + w.slot + "')")
			unseen(w)
			return w.launch(held)
		}, true, false},
		{"a gap: the checkpoint is lost", func(w *world, p *process) *process {
			p.stop()
			unseen(w)
			w.loseCheckpoint()
			return w.launch(held)
		}, true, true},
		{"taken for a first attachment", func(w *world, p *process) *process {
			p.stop()
			w.exec("SELECT pg_drop_replication_slot('" + w.slot + "')")
			unseen(w)
			keys, err := w.rdb.Keys(w.t.Context(), "inv:*").Result()
			if err != nil || w.rdb.Del(w.t.Context(), keys...).Err() != nil {
				w.t.Fatal(err)
			}
			return w.launch(held)
		}, true, false},
		{"the stamps are lost while it is away", func(w *world, p *process) *process {
			p.stop()
			w.writeConfig(stampsMappings(familyOther, mapsOther))
			q := w.launch(held)
			w.eventually("it streams", func() bool { return q.logged("msg=streaming") > 0 })
			unseen(w)
			w.settled(q)
			q.stop()
			if err := w.rdb.Del(w.t.Context(), "inv:stamps:{"+w.slot+"}").Err(); err != nil {
				w.t.Fatal(err)
			}
			w.writeConfig(both())
			return w.launch(held)
		}, true, false},
		{"a reload gives the family back", func(w *world, p *process) *process {
			w.writeConfig(stampsMappings(familyOther, mapsOther))
			p.reloadSays(reloaded)
			unseen(w)
			w.settled(p)
			w.writeConfig(both())
			p.reloadSays(reloaded)
			return p
		}, false, false},
		{"a restart gives the family back", func(w *world, p *process) *process {
			p.stop()
			w.writeConfig(stampsMappings(familyOther, mapsOther))
			q := w.launch(held)
			w.eventually("it streams", func() bool { return q.logged("msg=streaming") > 0 })
			unseen(w)
			w.settled(q)
			q.stop()
			w.writeConfig(both())
			return w.launch(held)
		}, false, false},
		{"a reload maps a table again", func(w *world, p *process) *process {
			w.writeConfig(stampsMappings(familySum+familyOther, strings.Replace(mapsSum, "public.a", "public.c", 1)+mapsOther))
			p.reloadSays(reloaded)
			unseen(w)
			w.settled(p)
			w.writeConfig(both())
			p.reloadSays(reloaded)
			return p
		}, false, false},
		{"a reload takes a condition away", func(w *world, p *process) *process {
			w.writeConfig(stampsMappings(familySum+familyOther, strings.Replace(mapsSum, "table: public.a,", "table: public.a, when: new.v < 0,", 1)+mapsOther))
			p.reloadSays(reloaded)
			unseen(w)
			w.settled(p)
			w.writeConfig(both())
			p.reloadSays(reloaded)
			return p
		}, false, false},
		{"a restart with a mapping more", func(w *world, p *process) *process {
			w.writeConfig(stampsMappings(familySum+familyOther, "  - {table: public.b, keys: [sum]}\n"+mapsOther))
			p.reloadSays(reloaded)
			unseen(w)
			w.settled(p)
			p.stop()
			w.writeConfig(both())
			return w.launch(held)
		}, false, false},
		{"a takeover by a daemon with another file", func(w *world, p *process) *process {
			w.writeConfig(stampsMappings(familySum+familyOther, "  - {table: public.b, keys: [sum]}\n"+mapsOther))
			p.reloadSays(reloaded)
			unseen(w)
			w.settled(p)
			w.writeConfig(both())
			q := w.launch(held)
			w.eventually("the second one waits", func() bool { return q.logged("slot_in_use") > 0 || q.logged("in use") > 0 })
			p.kill()
			return q
		}, false, false},
		{"an entity is added", func(w *world, p *process) *process {
			w.writeConfig(stampsMappings(familySum+familyOther, mapsSum+mapsOther+"  - {table: public.c, dependents: [\"c:{id}\"]}\n"))
			p.reloadSays(reloaded)
			return p
		}, true, false},
	}
	for _, m := range moments {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, stampsSchema, both())
			w.start().stop() // what the first attachment has to remove is removed
			p := w.launch(held)
			w.eventually("it streams", func() bool { return p.logged("msg=streaming") > 0 })
			c := w.reader()
			for id := 1; id <= 20; id++ {
				if got := sumOf(w, c, id); got != "0" {
					t.Fatalf("%d: %s", id, got)
				}
			}
			cached := w.cached()
			sum, other := w.stamp("sum"), w.stamp("other")
			p = m.pass(w, p)
			w.restamped("sum", sum)
			if now := w.stamp("other"); (now != other) != m.all {
				t.Errorf("the stamp of the other family is %q, was %q", now, other)
			}
			if left := w.cached(); !m.sent && !slices.Equal(left, cached) {
				t.Errorf("the purge is held, and %d of %d keys are left", len(left), len(cached))
			}
			for _, c := range []*cache.Client{w.reader(), c} {
				w.eventually("the reader knows the stamp", func() bool { return sumOf(w, c, 20) != "" && w.entryStamp("sum:20") == w.stamp("sum") })
				for id := 1; id <= 20; id++ {
					want := query[string](w, fmt.Sprintf("SELECT (a.v + b.v)::text FROM a JOIN b USING (id) WHERE id = %d", id))
					if got := sumOf(w, c, id); got != want {
						t.Errorf("sum %d is read as %s, the rows say %s", id, got, want)
					}
				}
			}
			p.kill()
		})
	}
}

// entryStamp is the one that an entry carries.
func (w *world) entryStamp(key string) string {
	raw := w.rdb.Get(w.t.Context(), key).Val()
	if len(raw) < 73 {
		return ""
	}
	return raw[57:73]
}

// settled is settle, whatever is left to be purged.
func (w *world) settled(p *process) {
	w.t.Helper()
	w.applied(p)
	w.eventually("the state is ok", func() bool { return w.control()["state"] == "ok" })
}

// A restart with the same file, and Redis' loss of the stamps while the daemon runs, leave
// every stamp as it is.
func TestStampsStayWhereNothingWasMissed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, stampsSchema, both())
	p := w.start()
	c := w.reader()
	sumOf(w, c, 1)
	before := w.stamps()
	p.stop()
	w.exec(`UPDATE b SET v = 5 WHERE id = 2`)
	p = w.start()
	if now := w.stamps(); now == nil || now.Revision != before.Revision {
		t.Errorf("a restart has changed the stamps: %+v, were %+v", now, before)
	}
	if err := w.rdb.Del(t.Context(), "inv:stamps:{"+w.slot+"}").Err(); err != nil {
		t.Fatal(err)
	}
	w.eventually("the stamps are back", func() bool { s := w.stamps(); return s != nil && s.Revision == before.Revision })
	// A mapping in another place of the file, and what only readers look at, are no other way to follow.
	w.writeConfig(stampsMappings(familyOther+strings.Replace(familySum, "1h", "2h", 1), mapsOther+mapsSum))
	p.reload(reloaded)
	if now := w.stamps(); now == nil || now.Families["sum"] != before.Families["sum"] {
		t.Errorf("the order in the file has changed the stamps: %+v, were %+v", now, before)
	}
	if n := p.logged("families are followed from here on"); n != 0 {
		t.Errorf("families were followed anew %d times", n)
	}
	p.stop()
}

// A commit that the slot has passed, and that nobody sees yet, was mapped by the plan of before. The new
// stamp has to wait for it: a reader would store what was before it, for good.
func TestStampWaitsUntilAllIsVisible(t *testing.T) {
	t.Parallel()
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	db := servertest.NewDatabase(t, server, "shop")
	w := newWorldOn(t, db.URL, servertest.Redis(t).URL, stampsSchema, stampsMappings(familySum+familyOther, mapsSumOfA+mapsOther))
	w.exec("CREATE PUBLICATION " + w.slot + "_pub FOR TABLE a, b, c") // b comes through the slot, and means nothing yet
	p := w.start()
	old := w.stamp("sum")
	conn := servertest.Connect(t, w.url)
	w.exec("ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
	if _, err := conn.Exec(t.Context(), "SELECT pg_reload_conf()"); err != nil {
		t.Fatal(err)
	}
	committed := make(chan error, 1)
	w.eventually("the standby is waited for", func() bool {
		return query[string](w, "SHOW synchronous_standby_names") == "nobody"
	})
	go func() {
		_, err := conn.Exec(context.Background(), "UPDATE b SET v = 7 WHERE id = 1")
		committed <- err
	}()
	w.eventually("the commit waits", func() bool {
		return query[int](w, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") > 0
	})
	w.writeConfig(stampsMappings(familySum+familyOther, mapsSum+mapsOther))
	p.reloadSays(reloaded)
	c := w.reader()
	w.eventually("the old stamp is withdrawn, and that is told", func() bool {
		if now := w.stamp("sum"); now != "" && now != old {
			t.Fatal("a stamp is published, and the commit cannot be seen yet")
		}
		if got := sumOf(w, c, 1); got != "0" {
			t.Fatalf("read %s", got)
		}
		return w.stamp("sum") == "" && p.logged("reads of 1 families go to the source until") > 0
	})
	w.exec("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
	w.restamped("sum", old)
	w.eventually("what is cached is what the rows say", func() bool { return sumOf(w, c, 1) == "7" && w.entryStamp("sum:1") == w.stamp("sum") })
	p.stop()
}

// A purge that goes on behind the stamps is in the control hash until it is done, and the next
// daemon goes on with it.
func TestPurgeBehindIsResumed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, stampsSchema, both())
	w.start().stop()
	w.put("sum:plain", "other:plain", "neither:plain")
	w.loseCheckpoint()
	p := w.launch("CDC_FAILPOINT_HOLD=" + string(failpoint.PurgingBehind))
	w.restamped("sum", "")
	if c := w.control(); c["purging"] != "sum other" {
		t.Errorf("purging %q", c["purging"])
	}
	w.want("neither:plain", "other:plain", "sum:plain")
	stamp := w.stamp("sum")
	p.kill()
	p = w.start()
	w.want("neither:plain")
	if c := w.control(); c["purging"] != "" || w.stamp("sum") != stamp {
		t.Errorf("purging %q, stamp %q, was %q", c["purging"], w.stamp("sum"), stamp)
	}
	p.stop()
}

// However much is cached, a gap is over for the library's readers at once: the purge goes on
// behind it, for memory.
func TestGapWithManyCachedKeysIsOverAtOnce(t *testing.T) {
	t.Parallel()
	const many, ids = 100_000, 20
	w := newWorld(t, stampsSchema, both())
	p := w.start()
	c := w.reader()
	for id := 1; id <= ids; id++ {
		w.eventually("it is cached", func() bool { return sumOf(w, c, id) == "0" && w.entryStamp(fmt.Sprint("sum:", id)) == w.stamp("sum") })
	}
	entry, err := w.rdb.Get(t.Context(), "sum:1").Result()
	if err != nil {
		t.Fatal(err)
	}
	pipe := w.rdb.Pipeline()
	for n := range many {
		pipe.Set(t.Context(), fmt.Sprint("sum:", 1000+n), entry, 0)
		if n%10_000 == 0 || n == many-1 {
			if _, err := pipe.Exec(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	old := w.stamp("sum")
	p.stop()
	w.eventually("the slot is free", func() bool {
		_, err := w.conn.Exec(t.Context(), "SELECT pg_drop_replication_slot($1)", w.slot)
		return err == nil
	})
	w.exec("UPDATE a SET v = v + 1")
	p = w.launch()
	w.restamped("sum", old)
	now := w.reader() // one that has looked at the stamps by now
	for id := 1; id <= ids; id++ {
		if got := sumOf(w, now, id); got != "1" {
			t.Errorf("sum:%d is %s", id, got)
		}
	}
	w.eventually("one that was open looks, too", func() bool { return sumOf(w, c, ids) == "1" })
	// The control hash may say that it is over before the purge has begun, so all that counts is that
	// the purge is not what was waited for.
	if w.control()["purging"] == "" && p.logged("purged: nothing is left") == 0 {
		t.Error("nothing is purged")
	}
	w.settle(p)
	if n := len(w.cached()); n > ids {
		t.Errorf("%d keys are left", n)
	}
	p.stop()
}
