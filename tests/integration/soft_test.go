package integration

import (
	"fmt"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
)

const softMappings = `
classes:
  pages: {staleness: 1m}
  safe:  {staleness: 1m, fail_safe: 1h}
keys:
  item:  {key: "item:{id}", class: pages, ttl: 10m, on_invalidate: soft, stale_for: 30s}
  brief: {key: "brief:{id}", class: pages, ttl: 10m, on_invalidate: soft, stale_for: 1s}
  safe:  {key: "safe:{id}", class: safe, ttl: 10m, on_invalidate: soft, stale_for: 1s}
  also:  {key: "also:{other}", class: pages, ttl: 10m, on_invalidate: soft, stale_for: 30s}
mappings:
  - table: public.items
    keys: [item, brief, safe, {also: {other: other}, for_each: "SELECT id + 100 AS other FROM items WHERE id = {id}"}]
`

// A soft family's values are marked with each change, also by the removal that is sent
// ahead of the gate, which must leave them alone.
func TestSoftInvalidation(t *testing.T) {
	w := newWorld(t, itemsSchema(10), softMappings)
	p := w.start()
	for _, key := range keys("item:1", "item:2", "also:101", "also:102") {
		w.putEntry(key, "V", time.Hour)
	}
	w.putEntry("item:3", "L", time.Minute)
	w.putEntry("item:4", "N", time.Minute)
	w.put("item:5")
	w.exec(`UPDATE items SET v = v + 1 WHERE id IN (1, 3, 4, 5)`)
	w.settle(p)
	w.want("item:1", "item:2", "also:101", "also:102")
	w.wantMarked(30*time.Second, "item:1", "also:101")
	first := w.get("item:1")
	w.exec(`UPDATE items SET v = v + 1 WHERE id = 1`)
	w.settle(p)
	if again := w.get("item:1"); again != first {
		t.Errorf("the second change has marked it anew: %q, was %q", again, first)
	}
	// A family that goes as a whole is removed.
	w.exec(`TRUNCATE items`)
	w.settle(p)
	w.want()
	p.stop()
}

// The time that a marked value may still be served for counts from its change, not from
// when the daemon came to mark it.
func TestSoftIsCountedFromTheCommit(t *testing.T) {
	w := newWorld(t, itemsSchema(10), softMappings)
	w.start().stop()
	for _, key := range keys("item:1", "brief:1", "safe:1") {
		w.putEntry(key, "V", 2*time.Hour)
	}
	w.exec(`UPDATE items SET v = v + 1 WHERE id = 1`)
	w.eventually("the daemon was away for longer than stale_for of two families", elapsed(1100*time.Millisecond))
	p := w.start()
	w.want("item:1", "safe:1")
	w.wantMarked(29*time.Second, "item:1")
	// What is kept for the source's failure only is past its time as well.
	if stale := w.get("safe:1")[45:57]; stale > fmt.Sprintf("%012x", time.Now().UnixMilli()) {
		t.Errorf("served until %s", stale)
	}
	p.stop()
}

func TestSoftAndKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, itemsSchema(1000), softMappings)
	w.replayWindow("1ms")
	w.start().stop()
	id := 0
	for _, point := range []failpoint.Point{failpoint.Received, failpoint.Decoded, failpoint.Taken, failpoint.Gated, failpoint.Applied, failpoint.Checkpointed} {
		t.Run(string(point), func(t *testing.T) {
			w.t = t
			id++
			changed, kept := fmt.Sprint("item:", id), fmt.Sprint("item:", 500+id)
			w.putEntry(changed, "V", time.Hour)
			w.putEntry(kept, "V", time.Hour)
			before := w.get(kept)
			w.exec(fmt.Sprintf(`UPDATE items SET v = v + 1 WHERE id = %d`, id))
			p := w.launch(failAt(point, 1))
			p.wait()
			if p.err == nil {
				t.Fatal("it ended by itself")
			}
			next := w.start()
			w.wantMarked(30*time.Second, changed)
			if now := w.get(kept); now != before {
				t.Errorf("another row's value is %q, was %q", now, before)
			}
			next.stop()
		})
	}
}
