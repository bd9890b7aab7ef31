package integration

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// heldMappings holds back the invalidations of items.
func heldMappings(class string) string {
	return fmt.Sprintf(`
classes:
  critical: {staleness: 2s}
  slow: {%s}
keys:
  item: {key: "item:{id}", class: slow}
  other: {key: "other:{id}", class: critical}
mappings:
  - table: public.items
    keys: [item]
  - table: public.others
    keys: [other]
`, class)
}

func heldSchema(rows int) string {
	return itemsSchema(rows) + "; CREATE TABLE others (id bigint PRIMARY KEY); INSERT INTO others VALUES (1)"
}

func heldWorld(t *testing.T, rows int, class string) *world {
	t.Helper()
	db, rdb := servertest.Postgres(t), servertest.Redis(t)
	return newWorldOn(t, db.URL, rdb.URL, heldSchema(rows), heldMappings(class))
}

func (w *world) heldKey() string { return "inv:held:{" + w.slot + "}:slow" }

// held counts what is held back of all classes, also what is taken and not applied.
func (w *world) held() int64 {
	w.t.Helper()
	sets, err := w.rdb.Keys(w.t.Context(), "inv:held:{"+w.slot+"}:*").Result()
	if err != nil {
		return -1 // Redis is away: whoever waits looks again
	}
	n := int64(0)
	for _, key := range sets {
		c, err := w.rdb.ZCount(w.t.Context(), key, "-inf", "(+inf").Result()
		if err != nil {
			return -1
		}
		n += c
	}
	return n
}

// drained waits until all is applied that was committed before. Nothing is held back then.
func (w *world) drained(p *process) {
	w.t.Helper()
	w.settle(p)
	if n := w.held(); n != 0 {
		w.t.Errorf("%d are held back, and all is said to be applied", n)
	}
}

func (w *world) freshAsOf() int64 {
	n, _ := strconv.ParseInt(w.control()["fresh_as_of"], 16, 64)
	return n
}

// A key that changes a thousand times is removed a few times, each within linger of the
// first change, and the daemon is well all the time.
func TestLingerCoalesces(t *testing.T) {
	const linger = 500 * time.Millisecond
	w := heldWorld(t, 10, "staleness: 30s, linger: 500ms")
	p := w.start()
	w.eventually("the class is held back", func() bool { return w.rdb.Exists(t.Context(), w.heldKey()).Val() == 1 })
	w.put("other:1")
	began := time.Now()
	for range 1000 {
		w.update(3, 4)
	}
	w.exec("UPDATE others SET id = id") // of a class that is not held
	w.applied(p)
	w.want()
	w.drained(p)
	took := time.Since(began)
	applied := p.metric(`cdc_invalidator_held_applied_total{class="slow"}`)
	if most := float64(took/linger) + 2; applied < 1 || applied > most {
		t.Errorf("%v removals of one key within %v, want at most %v", applied, took, most)
	}
	if n := p.metric(`cdc_invalidator_held_coalesced_total{class="slow"}`); n < 1 {
		t.Errorf("%v coalesced", n)
	}

	// The bound: never before the linger is over, and not much behind it.
	slack := 2 * time.Second // of a busy machine
	for id := range int64(5) {
		w.put(itemKey(id))
		committed := time.Now()
		w.exec(fmt.Sprintf("UPDATE items SET v = v + 1 WHERE id = %d", id))
		w.eventually("it is removed", func() bool { return w.exists(id) == 0 })
		if age := time.Since(committed); age < linger || age > linger+slack {
			t.Errorf("removed %v after its commit, want %v and not much more", age, linger)
		}
	}
	if n := p.metric(`cdc_invalidator_held_late_total{class="slow"}`); n != 0 {
		t.Errorf("%v were late", n)
	}
	w.want()
	p.stop()
}

// metric reads one sample of the daemon's metrics, 0 where it is not there.
func (p *process) metric(sample string) float64 {
	p.w.t.Helper()
	response, err := http.Get("http://" + p.address() + "/metrics")
	if err != nil {
		p.w.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		p.w.t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if text, ok := strings.CutPrefix(line, sample+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				p.w.t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

// wellMeanwhile fails when the daemon is not ready, or says that it is behind.
func (p *process) wellMeanwhile() {
	p.w.t.Helper()
	response, err := http.Get("http://" + p.address() + "/readyz")
	if err != nil {
		p.w.t.Fatal(err)
	}
	response.Body.Close()
	if state := p.w.control()["state"]; response.StatusCode != http.StatusOK || state != "ok" {
		p.w.t.Errorf("with invalidations held back readiness is %d, the state %s", response.StatusCode, state)
	}
}

func (w *world) cachedOf(from, to int64) int64 {
	w.t.Helper()
	keys := make([]string, 0, to-from)
	for id := from; id < to; id++ {
		keys = append(keys, itemKey(id))
	}
	n, err := w.rdb.Exists(w.t.Context(), keys...).Result()
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// Removals go out at the rate, oldest first, and the log is not held up by those that wait.
func TestMaxRate(t *testing.T) {
	const rows, rate = 1000, 200
	w := heldWorld(t, rows, "staleness: 60s, max_rate: 200/s")
	w.replayWindow("1ms")
	p := w.start()
	w.eventually("the class is held back", func() bool { return w.rdb.Exists(t.Context(), w.heldKey()).Val() == 1 })
	w.cacheRows(0, rows)
	w.exec(fmt.Sprintf("UPDATE items SET v = v + 1 WHERE id < %d", rows/2))
	w.exec(fmt.Sprintf("UPDATE items SET v = v + 1 WHERE id >= %d", rows/2))
	end := query[string](w, "SELECT pg_current_wal_lsn()::text")
	type sample struct {
		at   time.Time
		left int64
	}
	samples := []sample{{time.Now(), rows}}
	confirmed, fresh := false, int64(0)
	w.eventually("all are removed", func() bool {
		second := w.cachedOf(rows/2, rows)
		first := w.cachedOf(0, rows/2)
		if second < rows/2 && first > 0 {
			t.Errorf("%d of the second transaction are removed before %d of the first", rows/2-second, first)
		}
		samples = append(samples, sample{time.Now(), first + second})
		if first > 0 && !confirmed {
			confirmed = query[bool](w, "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2", end, w.slot)
			fresh = w.freshAsOf()
		}
		return first+second == 0
	})
	if !confirmed {
		t.Error("the source keeps its log for what is held back")
	}
	if fresh == 0 || w.freshAsOf() <= fresh {
		t.Error("fresh_as_of does not move while something is held back")
	}
	p.wellMeanwhile()
	// The limiter lets a tenth of a second's worth go at once; the rest is for a sample
	// that was taken a little later than its time says.
	for i, a := range samples {
		for _, b := range samples[i+1:] {
			if most := rate*b.at.Sub(a.at).Seconds() + rate/10 + rate/5; float64(a.left-b.left) > most {
				t.Fatalf("%d removed within %v", a.left-b.left, b.at.Sub(a.at))
			}
		}
	}
	if n := p.metric(`cdc_invalidator_held_over_rate_total{class="slow"}`); n != 0 {
		t.Errorf("%v over the rate, long before their deadline", n)
	}
	p.stop()
}

// The deadline wins over the rate, and that is counted.
func TestDeadlineWinsOverRate(t *testing.T) {
	const rows = 500
	w := heldWorld(t, rows, "staleness: 4s, max_rate: 10/s")
	p := w.start()
	w.eventually("the class is held back", func() bool { return w.rdb.Exists(t.Context(), w.heldKey()).Val() == 1 })
	w.cacheRows(0, rows)
	committed := time.Now()
	w.exec("UPDATE items SET v = v + 1")
	w.applied(p)
	if left := w.cachedOf(0, rows); left < rows/2 && time.Since(committed) < 1500*time.Millisecond {
		t.Errorf("%d are left at once", left)
	}
	w.eventually("all are removed", func() bool { return w.cachedOf(0, rows) == 0 })
	if took := time.Since(committed); took > 4*time.Second {
		t.Errorf("the last one was removed %v after the commit, the budget is 4s", took)
	}
	w.drained(p)
	if n := p.metric(`cdc_invalidator_held_over_rate_total{class="slow"}`); n < rows/2 || n > rows {
		t.Errorf("%v of %d over the rate", n, rows)
	}
	if n := p.metric(`cdc_invalidator_held_late_total{class="slow"}`); n != 0 {
		t.Errorf("%v later than the budget", n)
	}
	p.stop()
}

// What is held back stays in Redis when the daemon stops. The next one goes on, and what
// is overdue by then goes at once, and is counted.
func TestHeldOverRestarts(t *testing.T) {
	const rows = 600
	w := heldWorld(t, rows+1, "staleness: 8s, linger: 6s")
	p := w.start()
	w.eventually("the class is held back", func() bool { return w.rdb.Exists(t.Context(), w.heldKey()).Val() == 1 })
	w.cacheRows(0, rows+1)
	w.exec(fmt.Sprintf("UPDATE items SET v = v + 1 WHERE id < %d", rows))
	w.applied(p)
	p.stop()
	if n := w.held(); n != rows {
		t.Fatalf("%d are held back, want %d", n, rows)
	}
	if n := w.cachedOf(0, rows); n != rows {
		t.Fatalf("%d of %d are cached", n, rows)
	}
	w.eventually("they are past the budget", elapsed(8*time.Second))
	p = w.start()
	w.drained(p)
	w.wantGone(0, rows)
	w.wantKept(rows, rows+1)
	if n := p.metric(`cdc_invalidator_held_late_total{class="slow"}`); n != rows {
		t.Errorf("%v were late, want %d", n, rows)
	}
	p.stop()
}

// The daemon is killed at every point that a held invalidation passes.
func TestKilledWhileDraining(t *testing.T) {
	t.Parallel()
	const window = 300
	points := []failpoint.Point{failpoint.HeldTaken, failpoint.HeldApplied, failpoint.HeldDone}
	w := heldWorld(t, 2*window*len(points), "staleness: 30s, linger: 1s")
	w.replayWindow("1ms")
	w.start().stop()
	from := int64(0)
	for _, point := range points {
		for _, n := range []int{1, 2} { // the first chunk, and a later one
			t.Run(fmt.Sprintf("%s/%d", point, n), func(t *testing.T) {
				w.cacheRows(from, from+window)
				p := w.launch(failAt(point, n))
				w.settle(p) // or they would be overdue when they are read
				w.exec(fmt.Sprintf("UPDATE items SET v = v + 1 WHERE id >= %d AND id < %d", from, from+window-10))
				p.wait()
				if p.err == nil {
					t.Fatal("it ended by itself")
				}
				next := w.start()
				w.eventually("it follows the source", func() bool { return next.logged("msg=streaming") > 0 })
				w.drained(next)
				w.wantGone(from, from+window-10)
				w.wantKept(from+window-10, from+window)
				next.stop()
			})
			from += window
		}
	}
}

// The daemon is killed at random while rows of a class that is held back are written and
// read as fast as they go.
func TestKilledAtRandomWhileHolding(t *testing.T) {
	t.Parallel()
	const rows, kept, kills = 300, 50, 15
	w := heldWorld(t, rows+kept, "staleness: 2s, linger: 50ms, max_rate: 3000/s")
	w.replayWindow("1ms")
	w.start().stop()
	w.cacheRows(0, rows+kept) // each change makes something stale
	l := w.load(rows, 3)
	var seed [32]byte
	copy(seed[:], t.Name())
	rng := rand.New(rand.NewChaCha8(seed))
	held := int64(0)
	for range kills {
		p := w.launch()
		w.eventually("it follows the source", func() bool { return p.logged("msg=streaming") > 0 })
		w.eventually("its time is over", elapsed(time.Duration(50+rng.IntN(300))*time.Millisecond))
		p.kill()
		held += w.held()
	}
	if held == 0 {
		t.Error("nothing was ever held back when it was killed")
	}
	p := w.start()
	l.until(rows)
	l.end()
	w.drained(p)
	w.wantFresh(kept)
	t.Logf("%d updates, %d fills, %d kills, %d held back at them", l.updates.Load(), l.fills.Load(), kills, held)
	p.stop()
}

// Redis is killed with invalidations held back, and comes back with all of its data, with
// an older copy, or with none.
func TestRedisCrashesWithHeld(t *testing.T) {
	const window = 200
	w, _, rd := privateWorld(t, 1, nil)
	w.exec("DROP TABLE items", heldSchema(8*window))
	w.writeConfig(heldMappings("staleness: 30s, linger: 1s"))
	p := w.start()
	from := int64(0)
	for _, name := range []string{"empty", "with what is held back", "with data from before"} {
		t.Run(name, func(t *testing.T) {
			w.cacheRows(from, from+window)
			if name == "with data from before" {
				if err := w.rdb.Save(t.Context()).Err(); err != nil {
					t.Fatal(err)
				}
			}
			w.update(from, from+window)
			w.applied(p)
			if name == "with what is held back" {
				if err := w.rdb.Save(t.Context()).Err(); err != nil {
					t.Fatal(err)
				}
			}
			rd.Kill()
			w.update(from+window, from+2*window) // while it is down
			if err := rd.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.drained(p)
			w.wantGone(from, from+window)
			w.wantFresh(0)
			if err := rd.RemoveSaved(t.Context()); err != nil {
				t.Error(err)
			}
		})
		from += 2 * window
	}
	w.cacheRows(0, window)
	l := w.load(window, 3)
	l.until(200)
	rd.Kill()
	l.until(50)
	if err := rd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.settle(p) // what is purged behind the gap would take what is cached now as well
	w.cacheRows(window, window+50)
	l.until(200)
	l.end()
	w.drained(p)
	w.wantFresh(50)
	p.stop()
}

// A reload that takes linger away, or makes it shorter, lets go of all that is held back;
// a set that somebody has removed is settled by a purge.
func TestHeldClassIsReloaded(t *testing.T) {
	const rows = 50
	w := heldWorld(t, rows, "staleness: 30m, linger: 20m")
	p := w.start()
	inUse := func() bool { return w.rdb.Exists(t.Context(), w.heldKey()).Val() == 1 }
	w.eventually("the class is held back", inUse)
	hold := func() {
		t.Helper()
		w.cacheRows(0, rows)
		w.update(0, rows-1)
		w.applied(p)
		if n := w.cachedOf(0, rows); n != rows || w.held() != rows-1 {
			t.Fatalf("%d are cached, %d held back", n, w.held())
		}
	}
	hold()
	p.wellMeanwhile()
	w.reconfigure("linger: 20m", "linger: 15m")
	p.reload("mappings reloaded")
	w.drained(p)
	w.wantGone(0, rows-1)
	w.eventually("the class is held back anew", func() bool { return strings.Contains(w.control()["held:slow"], " 900000 ") })
	hold()
	if err := w.rdb.Unlink(t.Context(), w.heldKey()).Err(); err != nil {
		t.Fatal(err)
	}
	w.eventually("the family is purged", func() bool { return w.cachedOf(0, rows) == 0 })
	w.eventually("it is counted", func() bool { return p.metric(`cdc_invalidator_held_lost_total{class="slow"}`) == 1 })
	w.eventually("the class is held back again", inUse)
	hold()
	w.reconfigure(", linger: 15m", "")
	p.reload("mappings reloaded")
	w.drained(p)
	w.wantGone(0, rows-1)
	w.eventually("the set is given up", func() bool { _, marked := w.control()["held:slow"]; return !inUse() && !marked })
	w.cacheRows(0, rows)
	w.update(0, 1)
	w.settle(p)
	w.wantGone(0, 1)
	p.stop()
}
