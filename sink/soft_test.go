package sink

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

const nobody = "0000000000000000" + "000000000000" // no holder, and no deadline

const stamp = "00000000000000c1"

// entry is one as readers store it. holder is 28 digits: a token and its deadline.
func entry(kind, holder string, fresh, stale time.Time) string {
	ms := func(t time.Time) string { return fmt.Sprintf("%012x", t.UnixMilli()) }
	return "cdc2" + kind + holder + ms(fresh) + ms(stale) + stamp + " fields\npayload"
}

func set(t testing.TB, c redis.UniversalClient, key, value string, ttl time.Duration) {
	t.Helper()
	if err := c.Set(t.Context(), key, value, ttl).Err(); err != nil {
		t.Fatal(err)
	}
}

func get(t testing.TB, c redis.UniversalClient, key string) string {
	t.Helper()
	v, err := c.Get(t.Context(), key).Result()
	if err != nil && err != redis.Nil {
		t.Fatal(err)
	}
	return v
}

// softBatch is a change of now that makes the keys stale.
func softBatch(f *mapping.Family, ago time.Duration, keys ...string) *ordering.Batch {
	b := ordering.NewBatch()
	tx := ordering.Txn{XID: 1, CommitLSN: 1000, CommitTime: time.Now().Add(-ago)}
	for _, k := range keys {
		b.Add(&tx, &mapping.Invalidation{Op: mapping.OpSoft, Family: f, Key: []byte(k)})
	}
	return b
}

func apply(t testing.TB, r *Redis, b *ordering.Batch) {
	t.Helper()
	if err := r.Apply(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func TestSoftMarksValues(t *testing.T) {
	s, c := server(t)
	r := attached(t, s.URL())
	now := time.Now()
	const holder = "00000000000000aa" + "ffffffffffff"
	set(t, c, "page:1", entry("V", holder, now.Add(time.Hour), now.Add(2*time.Hour)), 2*time.Hour)
	set(t, c, "page:soon", entry("V", nobody, now.Add(time.Hour), now.Add(time.Second)), time.Hour)
	set(t, c, "page:lease", "cdc2L"+holder+strings.Repeat("0", 24)+stamp, time.Minute)
	set(t, c, "page:none", entry("N", nobody, now.Add(time.Hour), now.Add(time.Hour)), time.Hour)
	set(t, c, "page:plain", "somebody's", time.Hour)
	set(t, c, "kept:1", entry("V", nobody, now.Add(time.Hour), now.Add(2*time.Hour)), 3*time.Hour)
	if err := c.RPush(t.Context(), "page:list", "x").Err(); err != nil {
		t.Fatal(err)
	}
	apply(t, r, softBatch(family(t, "page"), time.Second, "page:1", "page:soon", "page:lease", "page:none", "page:plain", "page:list", "page:absent"))
	apply(t, r, softBatch(family(t, "kept"), time.Second, "kept:1"))
	for _, key := range []string{"page:lease", "page:none", "page:plain", "page:list", "page:absent"} {
		if present(t, c, key) != 0 {
			t.Errorf("%s is still there", key)
		}
	}
	header := func(key string) (v string, stale time.Time, ttl time.Duration) {
		t.Helper()
		v = get(t, c, key)
		if !strings.HasPrefix(v, "cdc2V"+nobody+"000000000000") || !strings.HasSuffix(v, " fields\npayload") {
			t.Fatalf("%s is %q", key, v)
		}
		var ms int64
		if _, err := fmt.Sscanf(v[45:57], "%x", &ms); err != nil {
			t.Fatal(err)
		}
		return v, time.UnixMilli(ms), c.PTTL(t.Context(), key).Val()
	}
	first, stale, ttl := header("page:1")
	if left := stale.Sub(now); left < 8*time.Second || left > 9100*time.Millisecond || ttl <= 0 || ttl > 9100*time.Millisecond {
		t.Errorf("a change of a second ago may be served for %v more, and is kept for %v", left, ttl)
	}
	if _, stale, _ := header("page:soon"); !stale.Before(now.Add(1100 * time.Millisecond)) {
		t.Errorf("the mark has made it be served for longer, until %v", stale)
	}
	if _, stale, ttl := header("kept:1"); stale.Sub(now) > 9100*time.Millisecond || ttl < 59*time.Minute || ttl > time.Hour+10*time.Second {
		t.Errorf("kept until %v, for %v", stale, ttl)
	}
	// A second mark of a later change serves nothing for longer.
	apply(t, r, softBatch(family(t, "page"), 0, "page:1"))
	if again, _, after := header("page:1"); again != first || after > ttl {
		t.Errorf("marked again: %q, kept for %v", again, after)
	}
	// What was changed long ago may not be served any more, which is the same as gone.
	apply(t, r, softBatch(family(t, "page"), time.Minute, "page:1"))
	apply(t, r, softBatch(family(t, "kept"), time.Minute, "kept:1"))
	if present(t, c, "page:1") != 0 {
		t.Error("served beyond stale_for")
	}
	if _, stale, ttl := header("kept:1"); stale.After(time.Now()) || ttl < 59*time.Minute {
		t.Errorf("fail-safe: until %v, kept for %v", stale, ttl)
	}
}

func TestSoftRemovesWhatItCannotMark(t *testing.T) {
	s, c := server(t)
	r := attached(t, s.URL())
	now := time.Now()
	set(t, c, "page:1", entry("V", nobody, now.Add(time.Hour), now.Add(time.Hour)), time.Hour)
	if err := c.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
			t.Error(err)
		}
	}()
	apply(t, r, softBatch(family(t, "page"), 0, "page:1"))
	if v := get(t, c, "page:1"); v != "" {
		t.Errorf("%q", v)
	}
}

func TestSoftInACluster(t *testing.T) {
	c := newCluster(t)
	r := attached(t, c.url())
	f := family(t, "page")
	keys := numbered("page:%d", 300)
	now := time.Now()
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: strings.Split(strings.TrimPrefix(c.url(), "redis+cluster://"), ",")})
	defer client.Close()
	for _, k := range keys {
		set(t, client, k, entry("V", nobody, now.Add(time.Hour), now.Add(time.Hour)), time.Hour)
	}
	apply(t, r, softBatch(f, 0, keys...))
	for _, k := range keys {
		if v := get(t, client, k); !strings.HasPrefix(v, "cdc2V"+nobody+"000000000000") {
			t.Fatalf("%s is %q", k, v)
		}
	}
}
