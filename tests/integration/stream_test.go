package integration

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

const streamSchema = `
	CREATE TABLE items (id int PRIMARY KEY, name text); ALTER TABLE items REPLICA IDENTITY FULL;
	CREATE TABLE notes (id int PRIMARY KEY, shop int NOT NULL); ALTER TABLE notes REPLICA IDENTITY FULL;
	CREATE TABLE pages (id int PRIMARY KEY, name text);
	CREATE TABLE slow (id int PRIMARY KEY, name text);
	CREATE TABLE sellers (id int PRIMARY KEY, name text);
	INSERT INTO items SELECT n, 'a' FROM generate_series(1, 1000) n;
	INSERT INTO pages VALUES (1, 'a'); INSERT INTO slow VALUES (1, 'a'); INSERT INTO sellers VALUES (1, 'a')`

const streamMappings = `
classes:
  critical: {staleness: 30s}
  patient:  {staleness: 30s, linger: 300ms}
keys:
  item: {key: "item:{id}", class: critical}
  list: {key: "list:{shop}:{version}:{q}", version: "list:{shop}", class: critical}
  page: {key: "page:{id}", class: critical, on_invalidate: soft, stale_for: 10s}
  slow: {key: "slow:{id}", class: patient}
mappings:
  - {table: public.items, keys: [item]}
  - {table: public.notes, keys: [list]}
  - {table: public.pages, keys: [page]}
  - {table: public.slow, keys: [slow]}
  - {table: public.sellers, dependents: ["seller:{id}"]}
`

// told is a message of the invalidation stream.
type told struct {
	id, session string
	n, fresh    uint64
	all         bool
	keys        []string
}

// told are all messages, oldest first; nil while Redis is away. It fails the test where a
// number is missing within a session.
func (w *world) told() []told {
	w.t.Helper()
	entries, err := w.rdb.XRange(context.Background(), "inv:stream:{"+w.slot+"}", "-", "+").Result()
	if err != nil {
		return nil
	}
	list := make([]told, 0, len(entries))
	for i, e := range entries {
		m := told{id: e.ID, session: e.Values["s"].(string), all: e.Values["p"] == "1", n: streamNumber(w.t, e, "n"), fresh: streamNumber(w.t, e, "f")}
		if keys, ok := e.Values["k"].(string); ok {
			m.keys = strings.Split(keys, "\n")
		}
		if i > 0 && (list[i-1].session == m.session && m.n != list[i-1].n+1 || list[i-1].session != m.session && m.n != 1) {
			w.t.Fatalf("message %d of session %s comes after %d of %s", m.n, m.session, list[i-1].n, list[i-1].session)
		}
		list = append(list, m)
	}
	return list
}

func streamNumber(t testing.TB, e redis.XMessage, field string) uint64 {
	t.Helper()
	text, _ := e.Values[field].(string)
	v, err := strconv.ParseUint(text, 16, 64)
	if err != nil || len(text) != 16 {
		t.Fatalf("field %s of a message is %q, want 16 hexadecimal digits", field, text)
	}
	return v
}

// since are the messages after the last of before.
func since(before, now []told) []told {
	if len(before) == 0 {
		return now
	}
	last := before[len(before)-1].id
	for i, m := range now {
		if m.id == last {
			return now[i+1:]
		}
	}
	return now
}

func namesKey(messages []told, key string) bool {
	return slices.ContainsFunc(messages, func(m told) bool { return slices.Contains(m.keys, key) })
}

func dropsAll(messages []told) bool {
	return slices.ContainsFunc(messages, func(m told) bool { return m.all })
}

// What readers with a cache in their own memory are told, in the order in which they have
// to be told it: not before Redis has done it, and before the control hash says so.
func TestInvalidationStream(t *testing.T) {
	rd := servertest.PrivateRedis(t, localserver.RedisOptions{})
	w := newWorldOn(t, servertest.Postgres(t).URL, rd.URL(), streamSchema, streamMappings)
	w.reconfigure("replay_window: 2s\n", "replay_window: 2s\n  stream_max_length: 10000\n")
	p := w.start()

	last := func() told {
		all := w.told()
		if len(all) == 0 {
			return told{}
		}
		return all[len(all)-1]
	}
	// step runs SQL and returns what has been told once the control hash says that it is
	// applied: without waiting any longer.
	step := func(sql ...string) []told {
		t.Helper()
		before := w.told()
		w.exec(sql...)
		w.settle(p)
		return since(before, w.told())
	}
	w.eventually("a heartbeat is told", func() bool { return last().fresh > 0 })
	first := last()
	w.eventually("the proof moves on an idle source", func() bool { m := last(); return m.fresh > first.fresh && len(m.keys) == 0 })
	if session := last().session; session != first.session || len(session) != 16 {
		t.Errorf("session %q became %q without any reason", first.session, session)
	}

	w.put("item:1")
	if got := step(`UPDATE items SET name = 'b' WHERE id = 1`); !namesKey(got, "item:1") || dropsAll(got) {
		t.Errorf("an update is told as %+v", got)
	}
	w.want()
	if got := step(`INSERT INTO notes VALUES (1, 7)`); !namesKey(got, "list:7") {
		t.Errorf("a version that moved is told as %+v", got)
	}
	if got := step(`UPDATE pages SET name = 'b'`); !namesKey(got, "page:1") {
		t.Errorf("a value that was marked as stale is told as %+v", got)
	}
	if err := w.rdb.ZAdd(t.Context(), "inv:dep:seller:1", redis.Z{Score: 1e14, Member: "item item:77"}).Err(); err != nil {
		t.Fatal(err)
	}
	w.put("item:77")
	if got := step(`UPDATE sellers SET name = 'b'`); !namesKey(got, "item:77") {
		t.Errorf("a registered dependent is told as %+v", got)
	}
	got := step(`UPDATE items SET name = 'c'`) // many keys, several messages
	for id := 1; id <= 1000; id++ {
		if key := fmt.Sprintf("item:%d", id); !namesKey(got, key) {
			t.Fatalf("%s was not told", key)
		}
	}

	// What is held back is told when it is done, no earlier.
	before := w.told()
	w.exec(`UPDATE slow SET name = 'b'`)
	w.put("slow:1")
	w.eventually("what was held back is told", func() bool { return namesKey(since(before, w.told()), "slow:1") })
	if w.rdb.Exists(t.Context(), "slow:1").Val() != 0 {
		t.Error("told before it was done")
	}

	// Another process, whether it could say goodbye or not, begins another session.
	for _, end := range []func(){p.stop, func() { p.kill() }} {
		before := last()
		end()
		p = w.start()
		w.eventually("another session", func() bool { m := last(); return m.session != before.session && m.fresh > before.fresh })
		if got := step(`INSERT INTO items VALUES (1, 'd') ON CONFLICT (id) DO UPDATE SET name = 'e'`); !namesKey(got, "item:1") {
			t.Errorf("after a restart an update is told as %+v", got)
		}
	}

	// A Redis that comes back empty is a gap: everything goes, and readers are told so.
	session := last().session
	rd.Kill()
	if err := rd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.eventually("another session, in which everything is dropped and then proved again", func() bool {
		all := w.told()
		return len(all) > 0 && all[0].session != session && all[0].all && last().fresh > 0
	})
	if got := step(`UPDATE items SET name = 'f'`); !namesKey(got, "item:1") {
		t.Errorf("after a restart of Redis an update is told as %+v", got)
	}
	// Last, since it makes itself felt once more: the catalogs show another storage afterwards.
	if got := step(`TRUNCATE items`); !dropsAll(got) {
		t.Errorf("a truncate is told as %+v", got)
	}
	p.stop()
}
