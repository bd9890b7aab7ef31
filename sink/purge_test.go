package sink

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

func purgeOf(f *mapping.Family, tenant string) mapping.Invalidation {
	inv := mapping.Invalidation{Op: mapping.OpPurge, Family: f}
	if tenant != "" {
		inv.Tenant = []byte(tenant)
	}
	return inv
}

// Exactly the family, or the tenant of it, among a hundred thousand keys.
func TestPurgeExactly(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	r := attached(t, db.URL)
	var mine, otherTenant, others []string
	for i := range 50000 {
		mine = append(mine, fmt.Sprintf("t:7:user:%d", i))
	}
	for i := range 30000 {
		otherTenant = append(otherTenant, fmt.Sprintf("t:%d:user:%d", 70+i%30, i))
	}
	for i := range 20000 {
		others = append(others, fmt.Sprintf("t:7:usher:%d", i))
	}
	others = append(others, "t:7:user", "xt:7:user:1", "t:7:users:1", "T:7:user:1")
	fill(t, c, mine...)
	fill(t, c, otherTenant...)
	fill(t, c, others...)

	if err := r.Apply(t.Context(), batch(t, 100, purgeOf(plain(t), "7"))); err != nil {
		t.Fatal(err)
	}
	if n := present(t, c, mine...); n != 0 {
		t.Errorf("%d of the tenant's keys are left", n)
	}
	if n := present(t, c, otherTenant...); n != len(otherTenant) {
		t.Errorf("%d of %d keys of other tenants are left", n, len(otherTenant))
	}
	if err := r.Apply(t.Context(), batch(t, 200, purgeOf(plain(t), ""))); err != nil {
		t.Fatal(err)
	}
	if n := present(t, c, otherTenant...); n != 0 {
		t.Errorf("%d of the family's keys are left", n)
	}
	if n := present(t, c, others...); n != len(others) {
		t.Errorf("%d of %d other keys are left", n, len(others))
	}
	if control := stored(t, r); !control.Found || control.Sent != 200 {
		t.Errorf("%+v", control)
	}
}

// SCAN must not miss a key that is there all the time, whatever comes and goes
// and makes the table grow and shrink meanwhile.
func TestPurgeWhileOthersWrite(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	r := attached(t, db.URL)
	keys := numbered("t:7:user:%d", 20000)
	fill(t, c, keys...)
	ctx, cancel := context.WithCancel(t.Context())
	writer := db.Client(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			p := writer.Pipeline()
			for i := range 2000 {
				if n%2 == 0 {
					p.Set(ctx, fmt.Sprintf("noise:%d:%d", n/2%10, i), "x", 0)
				} else {
					p.Del(ctx, fmt.Sprintf("noise:%d:%d", n/2%10, i))
				}
			}
			_, _ = p.Exec(ctx) // ends with the context
		}
	})
	for i := range 3 {
		if i > 0 {
			fill(t, c, keys...)
		}
		if err := r.Apply(t.Context(), batch(t, lsn.LSN(100+i), purgeOf(plain(t), ""))); err != nil {
			t.Error(err)
		}
		if n := present(t, c, keys...); n != 0 {
			t.Errorf("%d keys are left", n)
		}
	}
	cancel()
	wg.Wait()
}

func TestPurgeOfVersionsMovesThem(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	r := attached(t, db.URL)
	f := versioned(t)
	var invs []mapping.Invalidation
	for i := range 300 {
		invs = append(invs, mapping.Invalidation{Op: mapping.OpAdvance, Family: f, Key: fmt.Appendf(nil, "t:%d:search", i)})
	}
	if err := r.Apply(t.Context(), batch(t, 100, invs...)); err != nil {
		t.Fatal(err)
	}
	// Data keys begin like their version key, and other keys may.
	beside := []string{"t:1:search:old-entry", "t:1:search:0a:search", "t:1:2:search", "t:1 :search"}
	fill(t, c, beside...)
	filled := c.MGet(t.Context(), beside...).Val()
	before := c.MGet(t.Context(), numbered("t:%d:search", 300)...).Val()
	check := func(what string) {
		t.Helper()
		after := c.MGet(t.Context(), numbered("t:%d:search", 300)...).Val()
		for i := range after {
			if a, ok := after[i].(string); !ok || a <= before[i].(string) {
				t.Fatalf("%s: version %d went from %v to %v", what, i, before[i], after[i])
			}
		}
		before = after
	}
	if err := r.Apply(t.Context(), batch(t, 200, purgeOf(f, ""))); err != nil {
		t.Fatal(err)
	}
	check("purge in a batch")
	var seen int64
	if n, err := r.PurgeBehind(t.Context(), []*mapping.Family{plain(t), f}, func(removed int64) { seen = removed }); err != nil || n != 300 || seen != 300 {
		t.Fatal(n, seen, err)
	}
	check("purge of all")
	// It ends within the same generation, and what follows still moves versions.
	if err := r.Apply(t.Context(), batch(t, 300, invs...)); err != nil {
		t.Fatal(err)
	}
	check("the commit after the purge")
	if now := c.MGet(t.Context(), beside...).Val(); !slices.Equal(now, filled) {
		t.Errorf("keys that are no version keys hold %q, and held %q", now, filled)
	}
}

// A reader that finds no version key takes 0 for the version. What it caches then is
// as stale as anything else when the family goes, though no version key is there to move.
func TestPurgeReachesWhatWasCachedWithoutAVersion(t *testing.T) {
	search, top, shelf := family(t, "search"), family(t, "top"), family(t, "shelf")
	purges := []struct {
		name   string
		purge  func(*testing.T, *Redis) error
		moved  []string // single version keys: must be there afterwards, and not be 0
		gone   []string
		stays  []string
		repeat bool // moves again when done again
	}{
		{"no variables", func(t *testing.T, r *Redis) error { return r.Apply(t.Context(), batch(t, 100, purgeOf(top, ""))) },
			[]string{"top"}, nil, nil, false},
		{"the tenant alone, known", func(t *testing.T, r *Redis) error { return r.Apply(t.Context(), batch(t, 100, purgeOf(search, "7"))) },
			[]string{"t:7:search"}, nil, []string{"t:8:search:0:shoes"}, false},
		{"the tenant alone, all", func(t *testing.T, r *Redis) error { return r.Apply(t.Context(), batch(t, 100, purgeOf(search, ""))) },
			nil, []string{"t:7:search:0:shoes", "t:8:search:0:shoes"}, []string{"t:7:search:00:shoes", "t:7:search:0", "t:7:shelf:s1:0:shoes"}, false},
		{"other variables, tenant known", func(t *testing.T, r *Redis) error { return r.Apply(t.Context(), batch(t, 100, purgeOf(shelf, "7"))) },
			nil, []string{"t:7:shelf:s1:0:shoes", "t:7:shelf:s2:0:shoes"}, []string{"t:8:shelf:s1:0:shoes", "t:7:shelf:s1:1:shoes"}, false},
		{"other variables, all", func(t *testing.T, r *Redis) error { return r.Apply(t.Context(), batch(t, 100, purgeOf(shelf, ""))) },
			nil, []string{"t:7:shelf:s1:0:shoes", "t:8:shelf:s1:0:shoes"}, []string{"t:7:shelf:s1:1:shoes"}, false},
		{"a gap", func(t *testing.T, r *Redis) error {
			_, err := r.PurgeBehind(t.Context(), []*mapping.Family{search, top, shelf}, nil)
			return err
		}, []string{"top"}, []string{"t:7:search:0:shoes", "t:8:search:0:shoes", "t:7:shelf:s1:0:shoes", "t:8:shelf:s1:0:shoes"}, []string{"t:7:shelf:s1:1:shoes"}, true},
	}
	for _, p := range purges {
		t.Run(p.name, func(t *testing.T) {
			db := servertest.Redis(t)
			c := db.Client(t)
			r := attached(t, db.URL)
			fill(t, c, p.gone...)
			fill(t, c, p.stays...)
			before := make(map[string]string)
			for again := range 2 {
				c.ScriptFlush(t.Context())
				if err := p.purge(t, r); err != nil {
					t.Fatal(err)
				}
				for _, k := range p.moved {
					v := c.Get(t.Context(), k).Val()
					if len(v) != 40 || v < before[k] || (again == 0 || p.repeat) && v == before[k] {
						t.Errorf("version %s is %q, was %q", k, v, before[k])
					}
					before[k] = v
				}
				if n := present(t, c, p.gone...); n != 0 {
					t.Errorf("%d of %q are left", n, p.gone)
				}
				if n := present(t, c, p.stays...); n != len(p.stays) {
					t.Errorf("only %d of %q are left", n, p.stays)
				}
			}
		})
	}
}

func TestDedicatedPurgeKeepsTheState(t *testing.T) {
	s, c := server(t)
	r := attached(t, s.URL(), func(o *Options) { o.Config.Dedicated = true })
	if err := r.Checkpoint(t.Context(), Checkpoint{Position: position(100)}); err != nil {
		t.Fatal(err)
	}
	if err := r.SetState(t.Context(), StateGap, "slot lost"); err != nil {
		t.Fatal(err)
	}
	keys := append(numbered("t:7:user:%d", 1000), "no family's")
	for range 2 {
		fill(t, c, keys...)
		c.ScriptFlush(t.Context())
		if err := r.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := present(t, c, keys...); n != 0 {
			t.Errorf("%d keys are left", n)
		}
		if control := stored(t, r); control.State != StateGap || control.Applied != 100 || control.Source != testSource {
			t.Errorf("%+v", control)
		}
	}
}

func TestPurgeKeepsToItsRate(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	r := attached(t, db.URL, func(o *Options) { o.Config.ScanRate = 10000 })
	fill(t, c, numbered("t:7:user:%d", 5000)...)
	start := time.Now()
	if err := r.Apply(t.Context(), batch(t, 100, purgeOf(plain(t), ""))); err != nil {
		t.Fatal(err)
	}
	// 5000 keys removed and a tenth for those looked at, less the burst of a tenth
	// of a second.
	if took := time.Since(start); took < 350*time.Millisecond {
		t.Errorf("5000 keys at 10000 a second took %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	fill(t, c, numbered("t:7:user:%d", 5000)...)
	if err := r.Apply(ctx, batch(t, 100, purgeOf(plain(t), ""))); err == nil {
		t.Error("a purge that was cut short counts as done")
	}
}
