package integration

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

const budgetSchema = `
	CREATE TABLE events (p int NOT NULL, id int NOT NULL, name text, PRIMARY KEY (p, id)) PARTITION BY LIST (p); ALTER TABLE events REPLICA IDENTITY FULL;
	CREATE TABLE deep PARTITION OF events FOR VALUES IN (2) PARTITION BY RANGE (id); ALTER TABLE deep REPLICA IDENTITY FULL;
	CREATE TABLE deepest PARTITION OF deep FOR VALUES FROM (0) TO (100); ALTER TABLE deepest REPLICA IDENTITY FULL`

const budgetMappings = `  stream_max_length: 4096
classes:
  critical: {staleness: 1s}
keys:
  event: {key: "event:{p}:{id}", class: critical, ttl: 10m}
mappings:
  - table: public.events
    keys: [event]
`

// What empties one partition leaves no trace in a slot that goes by the root, and some of it
// fires no event trigger. The library keeps to the class's staleness all the same: no read that
// begins later than that after the statement has returned gets what it took away.
func TestSilencedPartitionsKeepTheBudget(t *testing.T) {
	t.Parallel()
	const flat = `CREATE TABLE flat PARTITION OF events FOR VALUES IN (1); ALTER TABLE flat REPLICA IDENTITY FULL`
	variants := []struct {
		name, before, sql, after string
		partition                int
	}{
		{"truncate", "", `TRUNCATE flat`, "", 1},
		{"truncate two levels down", "", `TRUNCATE deepest`, "", 2},
		{"truncate, undone in part", "", `BEGIN; INSERT INTO events VALUES (1, 9, 'x'); SAVEPOINT s; TRUNCATE deepest; ROLLBACK TO s; TRUNCATE flat; COMMIT`, "", 1},
		{"drop", "", `DROP TABLE flat`, flat, 1},
		{"detach", "", `ALTER TABLE events DETACH PARTITION flat`, `DROP TABLE flat; ` + flat, 1},
		{"detach concurrently", "", `ALTER TABLE events DETACH PARTITION flat CONCURRENTLY`, `DROP TABLE flat; ` + flat, 1},
		{"truncate what stands in it", `ALTER TABLE events DETACH PARTITION flat; ALTER TABLE events ATTACH PARTITION flat FOR VALUES IN (1)`, `TRUNCATE ONLY flat`, "", 1},
		{"another in its place", "", `BEGIN; ALTER TABLE events DETACH PARTITION flat; DROP TABLE flat; ` + flat + `; COMMIT`, "", 1},
	}
	for _, trigger := range []bool{true, false} {
		name := "with the catalogs alone"
		if trigger {
			name = "with the event trigger"
		}
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, budgetSchema, budgetMappings)
			w.exec(flat)
			if trigger {
				w.withTrigger()
			}
			p := w.start()
			readers := []*partitionReader{w.partitionReader(), w.partitionReader(cache.WithL1(100))}
			var worst time.Duration
			for round := range 50 {
				v := variants[round%len(variants)]
				w.exec(fmt.Sprintf(`DELETE FROM events WHERE id = 1; INSERT INTO events VALUES (%d, 1, 'v%d')`, v.partition, round))
				if v.before != "" {
					w.exec(v.before)
				}
				w.settle(p)
				old := fmt.Sprintf("v%d", round)
				for _, r := range readers {
					w.eventually("what is read is cached", func() bool {
						loads := r.loads
						return r.read(t, v.partition) == old && r.loads == loads
					})
				}
				var reads []func() string
				for _, r := range readers {
					reads = append(reads, func() string { return r.read(t, v.partition) })
				}
				age := w.silence(reads, old, v.sql)
				worst = max(worst, age)
				if age > time.Second {
					t.Errorf("%s: a read that began %s after it had returned got what it took away", v.name, age)
				}
				if v.after != "" {
					w.exec(v.after)
				}
			}
			t.Logf("50 statements: the last read that got what was taken away began %s after the statement had returned; allowed: 1s", worst.Round(time.Millisecond))
			p.stop()
		})
	}
}

// partitionReader reads through the library, and counts its loads.
type partitionReader struct {
	view  *cache.View[string]
	loads int
}

func (w *world) partitionReader(options ...cache.Option) *partitionReader {
	w.t.Helper()
	pool, err := pgxpool.New(w.t.Context(), w.url)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(pool.Close)
	c, err := cache.Open(w.t.Context(), w.rdb, pool, append(options, cache.WithMappings(w.config), cache.WithCodec(cache.Raw))...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.t.Error(err)
		}
	})
	view, err := cache.Family[string](c, "event")
	if err != nil {
		w.t.Fatal(err)
	}
	return &partitionReader{view: view}
}

// read is the name of the event with id 1 in a partition, "" where there is none.
func (r *partitionReader) read(t *testing.T, partition int) string {
	name, err := r.view.Get(t.Context(), cache.Vars{"p": partition, "id": 1}, func(ctx context.Context, tx pgx.Tx) (name string, err error) {
		r.loads++
		err = tx.QueryRow(ctx, `SELECT coalesce(max(name), '') FROM events WHERE p = $1 AND id = 1`, partition).Scan(&name)
		return name, err
	})
	if err != nil {
		t.Error(err)
	}
	return name
}

// silence runs statements while all readers read, until each has got something else, and
// returns how long after they had returned the last read began that got the old value.
func (w *world) silence(readers []func() string, old string, sql ...string) (worst time.Duration) {
	t := w.t
	t.Helper()
	returned := make(chan struct{})
	var done time.Time // set before returned is closed
	var mu sync.Mutex
	var wg sync.WaitGroup
	deadline := time.Now().Add(patience)
	for _, read := range readers {
		wg.Go(func() {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for ; time.Now().Before(deadline) && !t.Failed(); <-tick.C {
				began := time.Now()
				got := read()
				select {
				case <-returned:
				default:
					continue
				}
				if got != old {
					return
				}
				mu.Lock()
				worst = max(worst, began.Sub(done))
				mu.Unlock()
			}
			t.Errorf("the old value is still there after %s", sql)
		})
	}
	w.exec(sql...)
	done = time.Now()
	close(returned)
	wg.Wait()
	return worst
}
