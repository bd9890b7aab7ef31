package cache

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// ofSeller loads an item and says, after it has read it, whose it is.
func ofSeller(id int, sellers ...any) func(context.Context, pgx.Tx) (string, error) {
	return func(ctx context.Context, tx pgx.Tx) (string, error) {
		s, err := item(id)(ctx, tx)
		for _, seller := range sellers {
			if err == nil {
				err = DependsOn(ctx, "seller", seller)
			}
		}
		return s, err
	}
}

func (b *bench) dependents(entity string) []string {
	b.Helper()
	members, err := b.rdb.ZRange(b.Context(), mapping.DependentsKey("inv:", entity), 0, -1).Result()
	if err != nil {
		b.Fatal(err)
	}
	return members
}

func TestDependentsAreRegistered(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	get := func(sellers ...any) {
		t.Helper()
		if s, err := v.Get(t.Context(), Vars{"id": 1}, ofSeller(1, sellers...)); err != nil || s != "one" {
			t.Fatalf("%q, %v", s, err)
		}
	}
	get(7, "a b", nil)
	b.count("cache_loads_total", 2) // they were found only while it ran
	for _, entity := range []string{"seller:7", "seller:a%20b", "seller:%-"} {
		if got := b.dependents(entity); len(got) != 1 || got[0] != "item item:1" {
			t.Errorf("%s has %v", entity, got)
		}
		score, err := b.rdb.ZScore(t.Context(), "inv:dep:"+entity, "item item:1").Result()
		if life := time.Until(time.UnixMilli(int64(score))); err != nil || life < 10*time.Minute || life > 11*time.Minute {
			t.Errorf("%s is kept for %v (%v), want the value's life and the lease's", entity, life, err)
		}
	}
	// The next load knows them.
	b.invalidate("item:1")
	get(7, "a b", nil)
	b.count("cache_loads_total", 3)
	b.count("cache_fills_total", 2)
	// And one that does not need them any more does not register them for ever.
	b.invalidate("item:1")
	get()
	b.invalidate("item:1")
	if err := b.rdb.Del(t.Context(), "inv:dep:seller:7").Err(); err != nil {
		t.Fatal(err)
	}
	get()
	if got := b.dependents("seller:7"); len(got) != 0 {
		t.Errorf("registered for nothing: %v", got)
	}
}

// The entity changes between the first run and its registration: whoever looks at the set
// finds nothing there, so what was read before must not be stored.
func TestDependentsFoundWhileLoading(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	runs := 0
	s, err := v.Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, tx pgx.Tx) (string, error) {
		s, err := ofSeller(1, 7)(ctx, tx)
		if runs++; runs == 1 {
			b.write(1, "two") // the daemon applies it, and sees an empty set
			if got := b.dependents("seller:7"); len(got) != 0 {
				t.Errorf("registered already: %v", got)
			}
		}
		return s, err
	})
	if err != nil || s != "two" || runs != 2 {
		t.Errorf("%q, %v after %d runs, want the second one's", s, err, runs)
	}
	b.get(v, 1, "two")
}

// Registered, then invalidated by way of the set while the load still runs.
func TestDependentsRevokeTheLease(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	if _, err := v.Get(t.Context(), Vars{"id": 1}, ofSeller(1, 7)); err != nil {
		t.Fatal(err)
	}
	b.invalidate("item:1")
	g := newGated()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = v.Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, tx pgx.Tx) (string, error) {
			if err := DependsOn(ctx, "seller", 7); err != nil {
				return "", err
			}
			return g.load(1)(ctx, tx)
		})
	}()
	<-g.read
	b.write(1, "two")
	for _, member := range b.dependents("seller:7") {
		_, key, _ := strings.Cut(member, " ")
		b.invalidate(key)
	}
	close(g.done)
	<-done
	b.get(v, 1, "two")
}

func TestDependsOnMistakes(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	wantError(t, DependsOn(t.Context(), "seller", 1), "loaders")
	for name, declare := range map[string]func(context.Context) error{
		"dependents:":           func(ctx context.Context) error { return DependsOn(ctx, "shop", 1) },
		"by 1 values":           func(ctx context.Context) error { return DependsOn(ctx, "seller", 1, 2) },
		"a time.Time is not":    func(ctx context.Context) error { return DependsOn(ctx, "seller", time.Now()) },
		"a float64 is not what": func(ctx context.Context) error { return DependsOn(ctx, "seller", 1.5) },
		"named by 1 values, ":   func(ctx context.Context) error { return DependsOn(ctx, "seller") },
	} {
		_, err := v.Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, _ pgx.Tx) (string, error) {
			_ = declare(ctx) // passed over, and not forgotten
			return "stored?", nil
		})
		wantError(t, err, name)
	}
	b.count("cache_fills_total", 0)
}

func TestDependentsThatChangeEachTime(t *testing.T) {
	b := newBench(t)
	n := 0
	s, err := view(b, "item").Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, tx pgx.Tx) (string, error) {
		n++
		return ofSeller(1, n)(ctx, tx)
	})
	if err != nil || s != "one" || n != rounds {
		t.Errorf("%q, %v after %d runs", s, err, n)
	}
	b.count("cache_fills_total", 0)
	b.count("cache_fills_refused_total", 1, refusedLoader)
	if n := b.rdb.Exists(t.Context(), "item:1").Val(); n != 0 {
		t.Error("the lease is still there")
	}
}

func TestGetMany(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	var asked [][]Vars
	load := func(ctx context.Context, tx pgx.Tx, missing []Vars) ([]Item[string], error) {
		asked = append(asked, missing)
		items := make([]Item[string], len(missing))
		for i, vars := range missing {
			s, err := item(vars["id"].(int))(ctx, tx)
			items[i] = Item[string]{s, err == nil}
			if err == nil {
				if err := DependsOn(ctx, "seller", 7); err != nil {
					return nil, err
				}
			}
		}
		return items, nil
	}
	want := func(ids []int, values ...string) {
		t.Helper()
		vars := make([]Vars, len(ids))
		for i, id := range ids {
			vars[i] = Vars{"id": id}
		}
		got, err := v.GetMany(t.Context(), vars, load)
		if err != nil || len(got) != len(values) {
			t.Fatalf("%v, %v", got, err)
		}
		for i := range got {
			if got[i].Value != values[i] || got[i].Found != (values[i] != "") {
				t.Errorf("%d: %+v, want %q", ids[i], got[i], values[i])
			}
		}
	}
	b.get(v, 2, "one")
	want([]int{1, 2, 99, 3}, "one", "one", "", "one")
	if len(asked) != 2 || fmt.Sprint(asked[1]) != "[map[id:1] map[id:99] map[id:3]]" {
		t.Errorf("the loader was asked for %v", asked)
	}
	if got := b.dependents("seller:7"); len(got) != 3 {
		t.Errorf("registered: %v", got)
	}
	b.count("cache_fills_total", 4)
	want([]int{3, 99, 1, 2}, "one", "", "one", "one")
	b.count("cache_reads_total", 5, "hit")

	// What another one loads is waited for; the same key twice is loaded once.
	b.invalidate("item:1")
	b.invalidate("item:3")
	g := newGated()
	other, _ := b.open()
	go func() { _, _ = viewOf(b, other, "item").Get(t.Context(), Vars{"id": 1}, g.load(1)) }()
	<-g.read
	waits := counted(t, b.registry, "cache_waits_total")
	go func() {
		eventually(t, "it waits", func() bool { return counted(t, b.registry, "cache_waits_total") > waits })
		close(g.done)
	}()
	asked = nil
	want([]int{1, 3, 3}, "one", "one", "one")
	for _, missing := range asked {
		if fmt.Sprint(missing) != "[map[id:3]]" {
			t.Errorf("the loader was asked for %v", missing)
		}
	}
	// In doubt they come from the source, one by one, and nothing is stored.
	b.invalidate("item:1")
	b.daemon.set("gap", 0)
	eventually(t, "the gap is seen", func() bool { return b.doubt(v) == doubtGap })
	b.write(3, "two")
	want([]int{1, 3}, "one", "two")
	if n := b.rdb.Exists(t.Context(), "item:1").Val(); n != 0 {
		t.Error("something was stored")
	}

	_, err := v.GetMany(t.Context(), []Vars{{"id": 5}}, func(context.Context, pgx.Tx, []Vars) ([]Item[string], error) { return nil, nil })
	wantError(t, err, "0 items for 1 keys")
}

func TestGetManyFillsAreRefused(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	_, err := v.GetMany(t.Context(), []Vars{{"id": 1}, {"id": 2}}, func(ctx context.Context, tx pgx.Tx, missing []Vars) ([]Item[string], error) {
		items := make([]Item[string], len(missing))
		for i, vars := range missing {
			s, err := item(vars["id"].(int))(ctx, tx)
			if err != nil {
				return nil, err
			}
			items[i] = Item[string]{s, true}
		}
		b.write(1, "two")
		b.invalidate("item:1")
		return items, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b.count("cache_fills_refused_total", 1, refusedRevoked)
	b.get(v, 1, "two")
	b.get(v, 2, "one")
	b.count("cache_fills_total", 2)
}

func TestRefreshAndInvalidate(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	b.get(v, 1, "one")
	b.write(1, "two")
	b.get(v, 1, "one")
	if s, err := v.Refresh(t.Context(), Vars{"id": 1}, item(1)); err != nil || s != "two" {
		t.Errorf("%q, %v", s, err)
	}
	b.get(v, 1, "two")
	b.write(1, "three")
	if err := v.Invalidate(t.Context(), Vars{"id": 1}); err != nil {
		t.Fatal(err)
	}
	b.get(v, 1, "three")

	// A refresh that somebody else has begun may have read before this call.
	g := newGated()
	other, _ := b.open()
	go func() { _, _ = viewOf(b, other, "item").Refresh(t.Context(), Vars{"id": 1}, g.load(1)) }()
	<-g.read
	b.get(v, 1, "three") // others are served meanwhile
	b.write(1, "four")
	got := make(chan string)
	go func() {
		s, err := v.Refresh(t.Context(), Vars{"id": 1}, item(1))
		if err != nil {
			s = err.Error()
		}
		got <- s
	}()
	eventually(t, "the second one waits", func() bool { return counted(t, b.registry, "cache_waits_total") > 0 })
	close(g.done)
	if s := <-got; s != "four" {
		t.Errorf("%q", s)
	}
	b.get(v, 1, "four")
	if err := b.c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Refresh(t.Context(), Vars{"id": 1}, item(1)); err == nil {
		t.Error("a closed client refreshes")
	}
}
