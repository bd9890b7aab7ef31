package cache

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// BenchmarkHit compares a hit with the bare GET of the same bytes.
//
//	go test ./cache -run - -bench Hit -benchmem
func BenchmarkHit(b *testing.B) {
	t := newBench(b)
	value := strings.Repeat("x", 500)
	load := func(context.Context, pgx.Tx) (string, error) { return value, nil }
	v := view(t, "item")
	get := func(b *testing.B) {
		if s, err := v.Get(b.Context(), Vars{"id": 1}, load); err != nil || len(s) != len(value) {
			b.Fatal(s, err)
		}
	}
	get(b)
	b.Run("bare GET", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if s, err := t.rdb.Get(b.Context(), "item:1").Result(); err != nil || s == "" {
				b.Fatal(s, err)
			}
		}
	})
	b.Run("Get", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			get(b)
		}
	})
}

// A hit allocates no more than three times more than the GET that it is made of.
func TestAllocationsOfAHit(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	b.get(v, 1, "one")
	ctx, vars, load := t.Context(), Vars{"id": 1}, item(1)
	// The process's other goroutines are counted as well, and so is a read that goes past the
	// cache since the machine is busy: of several runs the least is that of the hit alone.
	least := func(f func()) float64 {
		n := testing.AllocsPerRun(100, f)
		for range 20 {
			n = min(n, testing.AllocsPerRun(100, f))
		}
		return n
	}
	bare := least(func() { _, _ = b.rdb.Get(ctx, "item:1").Result() })
	hit := least(func() { _, _ = v.Get(ctx, vars, load) })
	if hit > bare+3 {
		t.Errorf("a hit makes %v allocations, a bare GET %v: want at most 3 more", hit, bare)
	}
}
