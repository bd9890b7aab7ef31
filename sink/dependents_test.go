package sink

import (
	"context"
	"fmt"
	"slices"
	"strconv"
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
			if v := get(t, c, "page:7"); !strings.HasPrefix(v, "cdc2V"+nobody+"000000000000") {
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

// Both the set and keys under it are on the move, some there already.
func TestDependentsWhileSlotsMove(t *testing.T) {
	cl := newCluster(t)
	r := attached(t, cl.url())
	f := entityFamily(t)
	const set = "inv:dep:product:7"
	keys := cl.sameSlot(t, "t:1:user:%d", 3)
	there, gone, soft := keys[0], keys[1], "page:1"
	fill(t, cl.client, there, keys[2])
	entryOf := entry("V", nobody, time.Now().Add(time.Hour), time.Now().Add(time.Hour))
	if err := cl.client.Set(t.Context(), soft, entryOf, time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	register(t, cl.client, "product:7", 1e12, "user "+there, "user "+gone, "user "+keys[2], "page "+soft)
	migrate := func(key string, slot string) {
		t.Helper()
		from := cl.moving(t, slot)
		if err := cl.nodes[from].Migrate(t.Context(), "127.0.0.1", strconv.Itoa(cl.servers[3].Port()), key, 0, 1e9).Err(); err != nil {
			t.Fatal(err)
		}
	}
	migrate(set, set)
	migrate(keys[2], there)
	migrate(soft, soft)
	apply(t, r, changed(f, mapping.OpDependents, "product:7"))
	for _, n := range cl.nodes {
		left := n.Keys(t.Context(), "*").Val()
		left = slices.DeleteFunc(left, func(k string) bool { return k == r.controlKey || k == soft })
		if len(left) > 0 {
			t.Errorf("left are %q", left)
		}
	}
	dump := redis.NewStringCmd(t.Context(), "get", soft)
	p := cl.nodes[3].Pipeline()
	_ = p.Process(t.Context(), redis.NewStatusCmd(t.Context(), "asking"))
	_ = p.Process(t.Context(), dump)
	if _, err := p.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v := dump.Val(); !strings.HasPrefix(v, "cdc2V"+nobody+"000000000000") {
		t.Errorf("the soft one is %q", v)
	}
	// Every product's, when the set itself is on the way.
	fill(t, cl.client, gone)
	z := redis.NewIntCmd(t.Context(), "zadd", set, 1e12, "user "+gone)
	p = cl.nodes[3].Pipeline()
	_ = p.Process(t.Context(), redis.NewStatusCmd(t.Context(), "asking"))
	_ = p.Process(t.Context(), z)
	if _, err := p.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	apply(t, r, changed(f, mapping.OpPurge, ""))
	for _, n := range cl.nodes {
		if left := n.Keys(t.Context(), "*:product:*").Val(); len(left) > 0 {
			t.Errorf("a purge left %q", left)
		}
	}
}

// The connection is cut after any number of bytes, and the batch sent again: what is left
// is the same as if nothing had happened.
func TestDependentsAndSoftResent(t *testing.T) {
	s, c := server(t)
	p := newProxy(t, nil, s.Address())
	r := attached(t, p.url())
	f, page := entityFamily(t), family(t, "page")
	keys := numbered("t:1:user:%d", 450)
	var members []string
	for _, k := range keys {
		members = append(members, "user "+k)
	}
	cuts := 0
	for after := 1; ; after += 997 {
		fill(t, c, append(keys, "t:1:user:other")...)
		now := time.Now()
		for _, k := range []string{"page:1", "page:2"} {
			set(t, c, k, entry("V", nobody, now.Add(time.Hour), now.Add(time.Hour)), time.Hour)
		}
		register(t, c, "product:7", 1e12, append(members, "page page:2")...)
		register(t, c, "product:8", 1e12, "user t:1:user:other")
		b := softBatch(page, time.Second, "page:1")
		b.Add(&ordering.Txn{XID: 1, CommitLSN: 1000, CommitTime: now}, &mapping.Invalidation{Op: mapping.OpDependents, Family: f, Key: []byte("product:7")})
		p.cutAfter(after)
		err := r.Apply(t.Context(), b)
		p.cutAfter(0)
		if err != nil {
			cuts++
			apply(t, r, b)
		}
		if n := present(t, c, append(keys, "inv:dep:product:7")...); n != 0 {
			t.Fatalf("cut after %d bytes: %d are left", after, n)
		}
		if present(t, c, "t:1:user:other", "inv:dep:product:8") != 2 {
			t.Fatalf("cut after %d bytes: another entity's are gone", after)
		}
		for _, k := range []string{"page:1", "page:2"} {
			if v := get(t, c, k); !strings.HasPrefix(v, "cdc2V"+nobody+"000000000000") || !strings.HasSuffix(v, "\npayload") {
				t.Fatalf("cut after %d bytes: %s is %q", after, k, v)
			}
		}
		if err == nil {
			break
		}
	}
	if cuts < 10 {
		t.Errorf("only %d attempts were cut", cuts)
	}
}

// Work on a large set says that it goes on, and keeps to the rate of scans.
func TestDependentsArePaced(t *testing.T) {
	s, c := server(t)
	var pulses int
	r := attached(t, s.URL(), func(o *Options) {
		o.OnScan = func() { pulses++ }
		o.Config.ScanRate = 10000
	})
	f := entityFamily(t)
	var members []string
	for _, k := range numbered("t:1:user:%d", 4000) {
		members = append(members, "user "+k)
	}
	register(t, c, "product:7", 1e12, members...)
	began := time.Now()
	apply(t, r, changed(f, mapping.OpDependents, "product:7"))
	// A tenth of a second's worth may go at once.
	if took := time.Since(began); took < 250*time.Millisecond {
		t.Errorf("4000 keys at 10000 a second took %v", took)
	}
	if pulses < 20 {
		t.Errorf("%d pulses for 20 chunks", pulses)
	}
}
