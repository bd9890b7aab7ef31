package cache

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
)

// ones answers for any keys.
func ones(_ context.Context, _ pgx.Tx, missing []Vars) ([]Item[string], error) {
	items := make([]Item[string], len(missing))
	for i := range items {
		items[i] = Item[string]{Value: "one", Found: true}
	}
	return items, nil
}

func TestGetManyReadsEachVersionOnce(t *testing.T) {
	b := newBench(t)
	c, h := b.tapped()
	v := viewOf(b, c, "list")
	var keys []Vars
	for i := range 50 {
		keys = append(keys, Vars{"shop": i % 2, "q": fmt.Sprint(i)})
	}
	if _, err := v.GetMany(t.Context(), keys, ones); err != nil {
		t.Fatal(err)
	}
	var n atomic.Int64
	h.set(func(cmd redis.Cmder) {
		if cmd.Name() == "get" && (cmd.Args()[1] == "list:0" || cmd.Args()[1] == "list:1") {
			n.Add(1)
		}
	})
	if _, err := v.GetMany(t.Context(), keys, ones); err != nil {
		t.Fatal(err)
	}
	if n.Load() != 2 {
		t.Errorf("two versions were read %d times", n.Load())
	}
}

// What cannot be had from the cache is loaded together also while the cache is not trusted.
func TestGetManyPastTheCacheIsOneLoad(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	b.daemon.set("gap", 0)
	b.seen()
	var keys []Vars
	for i := range 20 {
		keys = append(keys, Vars{"id": i + 1})
	}
	before := counted(t, b.registry, "cache_loads_total")
	items, err := v.GetMany(t.Context(), keys, ones)
	if err != nil || len(items) != 20 || items[19].Value != "one" {
		t.Errorf("%v, %v", items, err)
	}
	if n := counted(t, b.registry, "cache_loads_total") - before; n != 1 {
		t.Errorf("%v loads", n)
	}
	b.count("cache_bypasses_total", 20, "gap")
	if n := b.rdb.Exists(t.Context(), "item:1").Val(); n != 0 {
		t.Error("it is stored")
	}
}

// lockItems makes each query of the table hang until the test ends.
func (b *bench) lockItems() {
	b.Helper()
	tx, err := b.db.Conn(b).Begin(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if _, err := tx.Exec(b.Context(), `LOCK TABLE items IN ACCESS EXCLUSIVE MODE`); err != nil {
		b.Fatal(err)
	}
}

func TestGetManyIsBoundedByTheLoadTimeout(t *testing.T) {
	b := newBench(t, WithLoadTimeout(200*time.Millisecond))
	v := view(b, "item")
	b.lockItems()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := v.GetMany(ctx, []Vars{{"id": 1}, {"id": 2}}, func(ctx context.Context, tx pgx.Tx, missing []Vars) ([]Item[string], error) {
		s, err := item(1)(ctx, tx)
		return []Item[string]{{Value: s, Found: true}, {}}, err
	})
	if err == nil || ctx.Err() != nil {
		t.Errorf("%v", err)
	}
}

// A source that hangs is one that is down: loads that run into their timeout open the
// breaker, and then an old value is given without waiting.
func TestSourceThatHangsIsLeftAlone(t *testing.T) {
	b := newBench(t, WithLoadTimeout(100*time.Millisecond))
	v := view(b, "safe")
	b.get(v, 1, "one")
	b.daemon.set("ok", 10*time.Second) // older than the class allows, within fail_safe
	b.seen()
	b.lockItems()
	for range breakerFailures + 3 {
		b.get(v, 1, "one")
	}
	if b.c.source.breaker.allow(time.Now()) && b.c.source.breaker.allow(time.Now()) {
		t.Error("the source is asked all the time")
	}
}
