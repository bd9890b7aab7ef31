package consistency

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

// library is one process's client of package cache, as an application has it: connections
// and memory of its own.
type library struct {
	s         *stage
	c         *cache.Client
	pool      *pgxpool.Pool
	rdb       *redis.Client
	views     map[string]*cache.View[[]int64]
	pauses    *redisPauses
	onStandby atomic.Int64 // loads that ran there
}

// newLibrary opens a client.
func (s *stage) newLibrary(opts ...cache.Option) *library {
	s.t.Helper()
	o, err := redis.ParseURL(s.redisURL)
	if err != nil {
		s.t.Fatal(err)
	}
	// What docs/ tells applications: a Redis that hangs is found out soon.
	o.ContextTimeoutEnabled, o.DialTimeout, o.ReadTimeout, o.WriteTimeout = true, 500*time.Millisecond, 500*time.Millisecond, 500*time.Millisecond
	hook := newRedisPauses()
	o.Dialer = hook.dial(o)
	rdb := redis.NewClient(o)
	l := &library{s: s, pauses: hook, pool: s.newPool(), rdb: rdb, views: map[string]*cache.View[[]int64]{}}
	l.c, err = cache.Open(context.Background(), rdb, l.pool, append([]cache.Option{cache.WithMappings(s.config)}, opts...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		close(hook.over)
		if err := l.c.Close(); err != nil {
			s.t.Error(err)
		}
		_ = rdb.Close()
	})
	for _, family := range []string{item, byName, listed, soft, lingering, page} {
		if l.views[family], err = cache.Family[[]int64](l.c, family); err != nil {
			s.t.Fatal(err)
		}
	}
	return l
}

// fleet is several processes.
func (s *stage) fleet(n int, opts ...cache.Option) []reader {
	s.t.Helper()
	out := make([]reader, n)
	for i := range out {
		out[i] = s.newLibrary(opts...)
	}
	return out
}

func (l *library) read(ctx context.Context, c cell) ([]int64, error) { return l.readAt(ctx, c) }

// readAt is read with options, a token for example.
func (l *library) readAt(ctx context.Context, c cell, opts ...cache.GetOption) ([]int64, error) {
	shown, err := l.views[c.view.family].Get(ctx, c.vars(), l.loader(c), opts...)
	if errors.Is(err, cache.ErrNotFound) {
		return make([]int64, len(c.parts(l.s.rows))), nil
	}
	return shown, err
}

// loader is the application's: it reads the rows, and tells what a page depends on when
// it has seen that.
func (l *library) loader(c cell) func(context.Context, pgx.Tx) ([]int64, error) {
	return func(ctx context.Context, tx pgx.Tx) ([]int64, error) {
		var standby bool
		if err := tx.QueryRow(ctx, "SELECT pg_is_in_recovery()").Scan(&standby); err != nil {
			return nil, err
		}
		if standby {
			l.onStandby.Add(1)
		}
		shown, err := l.s.load(ctx, c, tx)
		if err != nil {
			return nil, err
		}
		if c.view.pair {
			for _, p := range c.parts(l.s.rows) {
				cache.DependsOn(ctx, "item", p.row)
			}
		}
		if absent(shown) {
			return nil, cache.ErrNotFound
		}
		return shown, nil
	}
}

// wantSettled ends a scenario: nothing is written any more, and all that was is applied.
// Every cached value is compared with its row; then each reader reads each cell, and what
// that has cached is compared again. From here on only what may be served stale on
// purpose, or lies in a reader's own memory, is allowed its budget.
func (s *stage) wantSettled(d *process, views []*view, readers ...reader) {
	s.t.Helper()
	s.settle(d)
	s.compareCached()
	s.readAll(views, readers...)
	s.compareCached()
	if s.result.compared < s.rows/4 {
		s.t.Errorf("only %d cached values were compared: that says nothing", s.result.compared)
	}
}

// readAll reads every cell by every reader. A read that fails fails the scenario: the
// servers are all there.
func (s *stage) readAll(views []*view, readers ...reader) {
	s.t.Helper()
	for _, r := range readers {
		for _, v := range views {
			for _, c := range v.cells(s.rows) {
				s.see(r, c)
			}
		}
	}
}

// wantNow reads a cell that must be as its rows are, for everything has been applied. What
// may be served stale on purpose has its budget.
func (s *stage) wantNow(r reader, c cell) {
	s.t.Helper()
	budget := time.Duration(0)
	if c.view.family == soft {
		budget = c.view.budget
	}
	if _, err := s.lookWithin(context.Background(), r, c, budget); err != nil {
		s.t.Fatalf("read %s: %v", c, err)
	}
}
