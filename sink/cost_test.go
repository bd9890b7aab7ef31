package sink

import (
	"fmt"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

func bigBatch(t testing.TB, n int) *ordering.Batch {
	return batch(t, 100, deletes(plain(t), numbered("t:7:user:%d", n)...)...)
}

// A batch costs some allocations, its keys none.
func TestApplyDoesNotAllocatePerKey(t *testing.T) {
	db := servertest.Redis(t)
	r := attached(t, db.URL)
	ctx := t.Context()
	cost := func(n int) float64 {
		b := bigBatch(t, n)
		return testing.AllocsPerRun(50, func() {
			if err := r.Apply(ctx, b); err != nil {
				t.Fatal(err)
			}
		})
	}
	small, large := cost(500), cost(4000)
	t.Logf("%.0f allocations for 500 keys, %.0f for 4000", small, large)
	if perKey := (large - small) / 3500; perKey > 0.01 {
		t.Errorf("%.3f allocations a key", perKey)
	}
	if small > 120 {
		t.Errorf("%.0f allocations for a batch of 500 keys", small)
	}
}

// What a reused buffer must not do: carry a key of the batch before into the next.
func TestBuffersAreNotMixedUp(t *testing.T) {
	db := servertest.Redis(t)
	c := db.Client(t)
	r := attached(t, db.URL)
	var before []string
	for i, n := range []int{1300, 1, 499, 500, 501, 9000, 2, 1000} {
		keys := numbered(fmt.Sprintf("b%d:%%d", i), n)
		fill(t, c, keys...)
		if err := r.Apply(t.Context(), batch(t, lsn.LSN(100+i), deletes(plain(t), keys...)...)); err != nil {
			t.Fatal(err)
		}
		if got := present(t, c, keys...); got != 0 {
			t.Errorf("batch %d left %d keys", i, got)
		}
		if got := present(t, c, before...); got != len(before) {
			t.Errorf("batch %d removed %d keys of the one before", i, len(before)-got)
		}
		fill(t, c, keys...)
		before = keys
	}
	if n := len(r.plan.groups); n > pipelineKeys/unlinkKeys+1 {
		t.Errorf("%d groups of buffers for a pipeline of %d keys", n, pipelineKeys)
	}
}

// BenchmarkApply compares with the plainest use of go-redis that removes the same
// keys, in the same run and on the same server.
func BenchmarkApply(b *testing.B) {
	db := servertest.Redis(b)
	for _, n := range []int{1, 10, 100, 500, 4000} {
		keys := numbered("t:7:user:%d", n)
		b.Run(fmt.Sprintf("keys=%d/sink", n), func(b *testing.B) {
			r := attached(b, db.URL)
			bt := batch(b, 100, deletes(plain(b), keys...)...)
			ctx := b.Context()
			b.ReportAllocs()
			for b.Loop() {
				if err := r.Apply(ctx, bt); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/key")
		})
		for _, per := range []int{1, 500} {
			b.Run(fmt.Sprintf("keys=%d/bare%d", n, per), func(b *testing.B) {
				c := db.Client(b)
				ctx := b.Context()
				b.ReportAllocs()
				for b.Loop() {
					_, err := c.Pipelined(ctx, func(p redis.Pipeliner) error {
						for i := 0; i < n; i += per {
							p.Unlink(ctx, keys[i:min(i+per, n)]...)
						}
						return nil
					})
					if err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/key")
			})
		}
	}
}

func BenchmarkAdvance(b *testing.B) {
	db := servertest.Redis(b)
	r := attached(b, db.URL)
	f := versioned(b)
	var invs []mapping.Invalidation
	for i := range 100 {
		invs = append(invs, mapping.Invalidation{Op: mapping.OpAdvance, Family: f, Key: fmt.Appendf(nil, "t:%d:search", i)})
	}
	n := lsn.LSN(100)
	b.ReportAllocs()
	for b.Loop() {
		n++
		if err := r.Apply(b.Context(), batch(b, n, invs...)); err != nil {
			b.Fatal(err)
		}
	}
}
