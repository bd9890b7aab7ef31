package cache

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestGetStoresAndServes(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	b.get(v, 1, "one")
	b.write(1, "two")
	b.get(v, 1, "one") // nobody has invalidated it
	b.invalidate("item:1")
	b.get(v, 1, "two")
	b.get(v, 1, "two")
	b.count("cache_loads_total", 2)
	b.count("cache_reads_total", 2, "hit")
	b.count("cache_reads_total", 2, "miss")
	b.count("cache_fills_total", 2)
}

// The one race that all of this is about.
func TestLateFillIsRefused(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	g := newGated()
	got := make(chan string, 1)
	go func() {
		s, _ := v.Get(t.Context(), Vars{"id": 1}, g.load(1))
		got <- s
	}()
	if s := <-g.read; s != "one" {
		t.Fatalf("read %q", s)
	}
	b.write(1, "two")
	b.invalidate("item:1")
	close(g.done)
	if s := <-got; s != "one" {
		t.Errorf("the slow reader got %q", s)
	}
	if n := b.rdb.Exists(t.Context(), "item:1").Val(); n != 0 {
		t.Error("the old value was put back")
	}
	b.get(v, 1, "two")
	b.count("cache_fills_refused_total", 1, "revoked")
}

func TestNegativeAnswersAreRemembered(t *testing.T) {
	b := newBench(t)
	for name, loads := range map[string]float64{"item": 1, "never": 2} {
		v := view(b, name)
		for range 2 {
			if _, err := v.Get(t.Context(), Vars{"id": 99}, item(99)); !errors.Is(err, ErrNotFound) {
				t.Errorf("%v", err)
			}
		}
		b.count("cache_loads_total", loads, name)
	}
	b.write(99, "there")
	b.invalidate("item:99")
	b.get(view(b, "item"), 99, "there")
}

func TestOneLoadForACrowd(t *testing.T) {
	b := newBench(t)
	other, others := b.open()
	var loads atomic.Int64
	g := newGated()
	load := func(ctx context.Context, tx pgx.Tx) (string, error) {
		loads.Add(1)
		return g.load(1)(ctx, tx)
	}
	var wg sync.WaitGroup
	for _, v := range []*View[string]{view(b, "item"), viewOf(b, other, "item")} {
		for range 100 {
			wg.Go(func() {
				if s, err := v.Get(t.Context(), Vars{"id": 1}, load); err != nil || s != "one" {
					t.Errorf("%q, %v", s, err)
				}
			})
		}
	}
	<-g.read
	eventually(t, "the other process waits", func() bool {
		return counted(t, b.registry, "cache_waits_total") > 0 || counted(t, others, "cache_waits_total") > 0
	})
	close(g.done)
	wg.Wait()
	if n := loads.Load(); n != 1 {
		t.Errorf("%d loads", n)
	}
}

func TestWaitIsBounded(t *testing.T) {
	b := newBench(t, WithWait(20*time.Millisecond))
	other, _ := b.open()
	g := newGated()
	go func() { _, _ = viewOf(b, other, "item").Get(t.Context(), Vars{"id": 1}, g.load(1)) }()
	<-g.read
	b.get(view(b, "item"), 1, "one") // the other one is still at it
	b.count("cache_reads_total", 1, "bypass")
	close(g.done)
}

func TestLeaseOfADeadReaderRunsOut(t *testing.T) {
	b := newBench(t, WithLease(50*time.Millisecond), WithWait(time.Minute))
	var tok token
	if a, err := b.c.scripts.callRead(t.Context(), b.rdb, "item:1", 50*time.Millisecond, modeRead, b.daemon.stamps.Families["item"].Stamp); err != nil || a.verdict != verdictLease {
		t.Fatalf("%v %v %v", a, err, tok)
	}
	b.get(view(b, "item"), 1, "one")
	b.get(view(b, "item"), 1, "one")
	b.count("cache_reads_total", 1, "hit")
}

func TestSoftlyInvalidatedIsServedWhileOneRefreshes(t *testing.T) {
	b := newBench(t)
	v := view(b, "page")
	b.get(v, 1, "one")
	b.write(1, "two")
	b.soften("page:1", time.Minute)
	g := newGated()
	if s, err := v.Get(t.Context(), Vars{"id": 1}, g.load(1)); err != nil || s != "one" {
		t.Fatalf("%q, %v", s, err)
	}
	if s := <-g.read; s != "two" {
		t.Fatalf("the refresh has read %q", s)
	}
	b.get(v, 1, "one") // served, and not loaded once more
	b.count("cache_loads_total", 2)
	close(g.done)
	eventually(t, "the refreshed value", func() bool {
		s, err := v.Get(t.Context(), Vars{"id": 1}, item(1))
		return err == nil && s == "two"
	})
	// Past its time it is not served any more.
	b.write(1, "three")
	b.soften("page:1", -time.Second)
	b.get(v, 1, "three")
}

// soften marks a value as the daemon does, servable for so much longer.
func (b *bench) soften(key string, serve time.Duration) {
	b.Helper()
	until := appendMillis(nil, time.Now().Add(serve).UnixMilli())
	if err := b.rdb.SetRange(b.Context(), key, 5, strings.Repeat("0", 40)+string(until)).Err(); err != nil {
		b.Fatal(err)
	}
}

func TestVersionedFamily(t *testing.T) {
	b := newBench(t)
	v := view(b, "list")
	get := func(want string) {
		t.Helper()
		s, err := v.Get(t.Context(), Vars{"shop": 1, "q": "a b"}, item(1))
		if err != nil || s != want {
			t.Fatalf("%q, %v, want %q", s, err, want)
		}
	}
	get("one")
	version := b.rdb.Get(t.Context(), "list:1").Val()
	if len(version) != 40 || !strings.HasPrefix(version, strings.Repeat("0", 16)) {
		t.Errorf("version %q", version)
	}
	b.write(1, "two")
	get("one")
	if err := b.rdb.Set(t.Context(), "list:1", strings.Repeat("1", 40), 0).Err(); err != nil { // the daemon moves it
		t.Fatal(err)
	}
	get("two")
	// A version that is lost does not bring back what was cached without one.
	b.write(1, "three")
	b.invalidate("list:1")
	get("three")
	b.write(1, "four")
	b.invalidate("list:1")
	get("four")
}

func TestForeignValuesAreReplaced(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	if err := b.rdb.Set(t.Context(), "item:1", "somebody's", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := b.rdb.RPush(t.Context(), "item:2", "a list").Err(); err != nil {
		t.Fatal(err)
	}
	b.get(v, 1, "one")
	b.get(v, 2, "one")
	b.get(v, 1, "one")
	b.get(v, 2, "one")
	b.count("cache_loads_total", 2)
}

func TestLoadersCannotWrite(t *testing.T) {
	b := newBench(t)
	_, err := view(b, "item").Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, tx pgx.Tx) (string, error) {
		_, err := tx.Exec(ctx, `UPDATE items SET v = 'mine' WHERE id = 1`)
		return "mine", err
	})
	if err == nil || !strings.Contains(err.Error(), "25006") {
		t.Errorf("%v", err)
	}
	// One that leaves the transaction, or passes its failure over, proves nothing.
	for _, sql := range []string{"commit", "select 1/0"} {
		s, err := view(b, "item").Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, tx pgx.Tx) (string, error) {
			_, _ = tx.Exec(ctx, sql)
			return "unproved", nil
		})
		if err != nil || s != "unproved" {
			t.Errorf("%s: %q, %v", sql, s, err)
		}
	}
	// Nor does one that goes on in a transaction of its own, which could write; and what it
	// writes there is not committed for it.
	s, err := view(b, "item").Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, tx pgx.Tx) (string, error) {
		for _, sql := range []string{"commit", "begin", `UPDATE items SET v = 'mine' WHERE id = 1`} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return "", err
			}
		}
		return item(1)(ctx, tx)
	})
	if err != nil || s != "mine" {
		t.Errorf("%q, %v", s, err)
	}
	b.count("cache_fills_total", 0)
	b.get(view(b, "item"), 1, "one")
}

func TestLoadersErrorIsReturnedAndTheLeaseGivenUp(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	mine := errors.New("mine")
	if _, err := v.Get(t.Context(), Vars{"id": 1}, func(context.Context, pgx.Tx) (string, error) { return "", mine }); !errors.Is(err, mine) || errors.Is(err, ErrUnavailable) {
		t.Errorf("%v", err)
	}
	if n := b.rdb.Exists(t.Context(), "item:1").Val(); n != 0 {
		t.Error("the lease is still there")
	}
	_, err := v.Get(t.Context(), Vars{"id": 1}, func(context.Context, pgx.Tx) (string, error) { panic("at the disco") })
	if err == nil || !strings.Contains(err.Error(), "panicked: at the disco") {
		t.Errorf("%v", err)
	}
	b.get(v, 1, "one")
}

// A reader that gives up does not take the others' load with it.
func TestCancelledReaderDoesNotFailTheOthers(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	g := newGated()
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := v.Get(ctx, Vars{"id": 1}, func(ctx context.Context, tx pgx.Tx) (string, error) {
			s, err := g.load(1)(ctx, tx)
			return s, errors.Join(err, ctx.Err())
		})
		first <- err
	}()
	<-g.read
	second := make(chan string, 1)
	go func() {
		s, _ := v.Get(t.Context(), Vars{"id": 1}, func(context.Context, pgx.Tx) (string, error) { return "a load of its own", nil })
		second <- s
	}()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	close(g.done)
	if s := <-second; s != "one" {
		t.Errorf("%q", s)
	}
}

func TestTooSlowIsLoadedAgainAndThenRefused(t *testing.T) {
	b := newBench(t)
	v := view(b, "quick")
	loads := 0
	_, err := v.Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, tx pgx.Tx) (string, error) {
		loads++
		if _, err := tx.Exec(ctx, `SELECT pg_sleep(0.5)`); err != nil { // longer than the class allows
			return "", err
		}
		b.invalidate("quick:1")
		return item(1)(ctx, tx)
	})
	if !errors.Is(err, ErrTooSlow) || loads != attempts+1 {
		t.Errorf("%v after %d loads", err, loads)
	}
	// As long as nothing makes it stale, the lease proves it right however slow it was.
	s, err := v.Get(t.Context(), Vars{"id": 2}, func(ctx context.Context, tx pgx.Tx) (string, error) {
		if _, err := tx.Exec(ctx, `SELECT pg_sleep(0.5)`); err != nil {
			return "", err
		}
		return item(2)(ctx, tx)
	})
	if err != nil || s != "one" {
		t.Errorf("%q, %v", s, err)
	}
}

func TestDoubtGoesToTheSource(t *testing.T) {
	b := newBench(t)
	v, kept := view(b, "item"), view(b, "kept")
	b.get(v, 1, "one")
	b.get(kept, 1, "one")
	b.write(1, "two")
	for _, state := range []string{"gap", "paused", "unheard-of"} {
		b.daemon.set(state, 0)
		why := state
		if state == "unheard-of" {
			why = doubtUnknown
		}
		eventually(t, "state "+state+" is seen", func() bool { return b.doubt(v) == why })
		b.get(v, 1, "two")
		b.get(kept, 1, "one") // on_doubt: serve
		b.count("cache_bypasses_total", 1, why)
	}
	b.daemon.set("ok", 2*time.Minute)
	eventually(t, "that it is late is seen", func() bool { return b.doubt(v) == doubtLate })
	b.get(v, 1, "two")
	b.daemon.set("ok", 0)
	eventually(t, "that it is fresh is seen", func() bool { return b.doubt(v) == "" })
	b.get(v, 1, "one")
}

func TestOpenRefuses(t *testing.T) {
	b := newBench(t)
	if _, err := Open(t.Context(), b.rdb, b.pool); err == nil || !strings.Contains(err.Error(), "WithMappings") {
		t.Errorf("%v", err)
	}
	if _, err := Open(t.Context(), b.rdb, b.pool, WithMappings("nowhere.yaml")); err == nil || !strings.Contains(err.Error(), "nowhere.yaml") {
		t.Errorf("%v", err)
	}
	silent := *b.c.o.file
	silent.Source.Heartbeat = 0
	if _, err := Open(t.Context(), b.rdb, b.pool, WithMappingFile(&silent)); err == nil || !strings.Contains(err.Error(), "source.heartbeat") {
		t.Errorf("%v", err)
	}
	if _, err := Family[string](b.c, "itm"); err == nil || !strings.Contains(err.Error(), `no family "itm"`) {
		t.Errorf("%v", err)
	}
	if _, err := view(b, "item").Get(t.Context(), Vars{"idd": 1}, item(1)); err == nil || !strings.Contains(err.Error(), "no value for {id}") {
		t.Errorf("%v", err)
	}
	if err := b.c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := view(b, "item").Get(t.Context(), Vars{"id": 1}, item(1)); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}
