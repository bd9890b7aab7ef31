package sink

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

func entityFamily(t testing.TB) *mapping.Family {
	t.Helper()
	plan, err := mapping.Compile(load(t, "redis://127.0.0.1:6379/0"))
	if err != nil {
		t.Fatal(err)
	}
	var out mapping.Output
	plan.InvalidateTable("public", "products", &out)
	for _, inv := range out.Invalidations {
		if inv.Family.Entity != nil {
			return inv.Family
		}
	}
	t.Fatal("no entity")
	return nil
}

func register(t testing.TB, c redis.UniversalClient, entity string, score float64, members ...string) {
	t.Helper()
	var zs []redis.Z
	for i, m := range members {
		zs = append(zs, redis.Z{Score: score + float64(i/3), Member: m}) // some have the same one
	}
	if err := c.ZAdd(t.Context(), "inv:dep:"+entity, zs...).Err(); err != nil {
		t.Fatal(err)
	}
}

func changed(f *mapping.Family, op mapping.Op, entity string) *ordering.Batch {
	b := ordering.NewBatch()
	b.Add(&ordering.Txn{XID: 1, CommitLSN: 1000, CommitTime: time.Now()}, &mapping.Invalidation{Op: op, Family: f, Key: []byte(entity)})
	return b
}

func TestDependents(t *testing.T) {
	s, c := server(t)
	cl := newCluster(t)
	clusterClient := redis.NewClusterClient(&redis.ClusterOptions{Addrs: strings.Split(strings.TrimPrefix(cl.url(), "redis+cluster://"), ",")})
	defer clusterClient.Close()
	for _, tc := range []struct {
		name, url string
		c         redis.UniversalClient
	}{{"single", s.URL(), c}, {"cluster", cl.url(), clusterClient}} {
		t.Run(tc.name, func(t *testing.T) {
			c := tc.c
			r := attached(t, tc.url)
			f := entityFamily(t)
			keys := numbered("t:1:user:%d", 1001)
			fill(t, c, keys...)
			fill(t, c, "other:7", "t:1:user:left")
			now := time.Now()
			set(t, c, "page:7", entry("V", nobody, now.Add(time.Hour), now.Add(time.Hour)), time.Hour)
			var members []string
			for _, k := range keys {
				members = append(members, "user "+k)
			}
			// A family that the mappings no longer have; a soft one; what no reader writes.
			register(t, c, "product:7", 1e12, append(members, "gone other:7", "page page:7", "nonsense")...)
			register(t, c, "product:77", 1e12, "user t:1:user:left")
			apply(t, r, changed(f, mapping.OpDependents, "product:7"))
			if n := present(t, c, append(keys, "other:7", "inv:dep:product:7")...); n != 0 {
				t.Errorf("%d are still there", n)
			}
			if v := get(t, c, "page:7"); !strings.HasPrefix(v, "cdc1V"+nobody+"000000000000") {
				t.Errorf("a dependent of a soft family is %q", v)
			}
			if present(t, c, "t:1:user:left", "inv:dep:product:77") != 2 {
				t.Error("another entity's dependents are gone")
			}
			apply(t, r, changed(f, mapping.OpDependents, "product:none"))
			apply(t, r, changed(f, mapping.OpPurge, "")) // which product is not known: all of them
			if present(t, c, "t:1:user:left", "inv:dep:product:77") != 0 {
				t.Error("not every product's dependents are gone")
			}
			set(t, c, "inv:dep:product:7", "of another type", 0)
			apply(t, r, changed(f, mapping.OpDependents, "product:7"))
			if present(t, c, "inv:dep:product:7") != 0 {
				t.Error("a key that is in the way stays")
			}
		})
	}
}

// A member that is registered again while its key is being removed has to stay: the value
// that its reader is about to store depends on the entity.
func TestDependentRegisteredMeanwhileStays(t *testing.T) {
	s, c := server(t)
	r := attached(t, s.URL())
	f := entityFamily(t)
	be := r.backend.Load()
	register(t, c, "product:7", 5, "user t:1:user:1", "user t:1:user:2")
	chunk, err := r.setCommand(t.Context(), be, "inv:dep:product:7", "zrangebyscore", "-inf", "+inf", "withscores")
	if err != nil {
		t.Fatal(err)
	}
	register(t, c, "product:7", 6, "user t:1:user:1")
	if err := r.forget(t.Context(), be, "inv:dep:product:7", chunk); err != nil {
		t.Fatal(err)
	}
	if left, err := c.ZRange(t.Context(), "inv:dep:product:7", 0, -1).Result(); err != nil || fmt.Sprint(left) != "[user t:1:user:1]" {
		t.Errorf("left %v, %v", left, err)
	}
	apply(t, r, changed(f, mapping.OpDependents, "product:7"))
	if present(t, c, "inv:dep:product:7") != 0 {
		t.Error("the next change has not found it")
	}
}

// Whatever is registered, evicted or applied in whichever order, and wherever an
// attempt breaks off: after a change that went through, no key of what was registered
// before it is left.
func TestDependentsProperty(t *testing.T) {
	s, c := server(t)
	r := attached(t, s.URL())
	f := entityFamily(t)
	entities := []string{"product:1", "product:2"}
	rapid.Check(t, func(rt *rapid.T) {
		if err := c.Del(t.Context(), "inv:dep:product:1", "inv:dep:product:2").Err(); err != nil {
			rt.Fatal(err)
		}
		score := 1e12
		registered := map[string]map[string]bool{"product:1": {}, "product:2": {}}
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			entity := rapid.SampledFrom(entities).Draw(rt, "entity")
			switch rapid.SampledFrom([]string{"register", "register", "apply", "break off"}).Draw(rt, "step") {
			case "register":
				key := fmt.Sprintf("t:1:user:%d", rapid.IntRange(0, 5).Draw(rt, "key"))
				score++
				register(t, c, entity, score, "user "+key)
				set(t, c, key, "value", 0)
				registered[entity][key] = true
			case "break off":
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rapid.IntRange(0, 300).Draw(rt, "us"))*time.Microsecond)
				_ = r.Apply(ctx, changed(f, mapping.OpDependents, entity)) // may fail at any point: nothing is claimed
				cancel()
			case "apply":
				apply(t, r, changed(f, mapping.OpDependents, entity))
				for key := range registered[entity] {
					// What the other entity's readers have stored since is there rightly.
					if present(t, c, key) != 0 {
						rt.Fatalf("%s is there after %s changed", key, entity)
					}
				}
				clear(registered[entity])
			}
		}
	})
}
