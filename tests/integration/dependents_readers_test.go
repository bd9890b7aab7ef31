package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

const cardsMappings = `
classes:
  critical: {staleness: 1s}
keys:
  card:  {key: "card:{id}", class: critical, ttl: 10m}
mappings:
  - table: public.cards
    keys: [card]
  - table: public.sellers
    dependents: ["seller:{id}"]
`

// Cards show their seller's version, and a card's seller changes too. Readers come
// across new sellers while they load, sellers change meanwhile, and the daemon
// is killed again and again. In the end each card that is cached is right.
func TestDependentsOfReaders(t *testing.T) {
	const cards, sellers, kills = 60, 6, 6
	w := newWorld(t, fmt.Sprintf(`
		CREATE TABLE sellers (id int PRIMARY KEY, v int NOT NULL DEFAULT 0);
		CREATE TABLE cards (id int PRIMARY KEY, seller int NOT NULL);
		INSERT INTO sellers SELECT generate_series(0, %d);
		INSERT INTO cards SELECT i, i %% %d FROM generate_series(0, %d) i`, sellers-1, sellers, cards-1), cardsMappings)
	w.replayWindow("1ms")
	w.start().stop()
	pool, err := pgxpool.New(t.Context(), w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	c, err := cache.Open(t.Context(), w.rdb, pool, cache.WithMappings(w.config), cache.WithCodec(cache.Raw))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	view, err := cache.Family[string](c, "card")
	if err != nil {
		t.Fatal(err)
	}
	var loads atomic.Int64
	get := func(ctx context.Context, id int) (string, error) {
		return view.Get(ctx, cache.Vars{"id": id}, func(ctx context.Context, tx pgx.Tx) (string, error) {
			loads.Add(1)
			var seller, v int
			if err := tx.QueryRow(ctx, `SELECT seller FROM cards WHERE id = $1`, id).Scan(&seller); err != nil {
				return "", err
			}
			if err := cache.DependsOn(ctx, "seller", seller); err != nil {
				return "", err
			}
			err := tx.QueryRow(ctx, `SELECT v FROM sellers WHERE id = $1`, seller).Scan(&v)
			return fmt.Sprintf("%d/%d", seller, v), err
		})
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer func() { stop(); wg.Wait() }()
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := get(ctx, rand.IntN(cards)); err != nil && ctx.Err() == nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var writes atomic.Int64
	wg.Go(func() {
		for ctx.Err() == nil {
			sql := fmt.Sprintf(`UPDATE sellers SET v = v + 1 WHERE id = %d`, rand.IntN(sellers))
			if rand.IntN(10) == 0 {
				sql = fmt.Sprintf(`UPDATE cards SET seller = %d WHERE id = %d`, rand.IntN(sellers), rand.IntN(cards))
			}
			if _, err := pool.Exec(ctx, sql); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
			writes.Add(1)
			pause(ctx, 2*time.Millisecond)
		}
	})
	more := func(n *atomic.Int64, what string, by int64) {
		t.Helper()
		want := n.Load() + by
		w.eventually(fmt.Sprintf("there are %d more %s", by, what), func() bool { return n.Load() >= want || t.Failed() })
	}
	for range kills {
		p := w.launch()
		w.eventually("it follows the source", func() bool { return p.logged("msg=streaming") > 0 })
		more(&writes, "writes", 100)
		more(&loads, "loads", 100)
		p.kill()
	}
	p := w.start()
	more(&writes, "writes", 300)
	stop()
	wg.Wait()
	w.settle(p)

	// A card whose registration was lost once is not removed any more: it is still
	// cached, and old.
	for id := range cards {
		want := query[string](w, `SELECT c.seller || '/' || s.v FROM cards c JOIN sellers s ON s.id = c.seller WHERE c.id = $1`, id)
		if got, err := get(t.Context(), id); err != nil || got != want {
			t.Errorf("card %d is %q, %v, want %q", id, got, err, want)
		}
	}
	t.Logf("%d writes, %d loads", writes.Load(), loads.Load())
	p.stop()
}
