package consistency

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// The ways of caching that the project exists to replace. Each is run up to the moment
// in which it fails, which is not left to luck, and must be caught by check 1 and check 2.

// naive is a reader that looks into Redis first, else asks the source and fills.
type naive struct {
	s    *stage
	pool *pgxpool.Pool
	// fill stores what was loaded; position is where the source's log ended before.
	fill func(ctx context.Context, key, value, position string) error
	// lease is asked for before the load where there is one.
	lease func(ctx context.Context, key string) (bool, error)
}

// naiveKey of a cell; these readers know one view only.
func naiveKey(row int64) string { return fmt.Sprintf("item:%d", row) }

// newNaive is a reader that stores whatever it has read.
func (s *stage) newNaive() *naive {
	s.t.Helper()
	n := &naive{s: s, pool: s.newPool()}
	n.fill = func(ctx context.Context, key, value, _ string) error {
		return s.rdb.Set(ctx, key, value, 10*time.Minute).Err()
	}
	return n
}

func (s *stage) newPool() *pgxpool.Pool {
	s.t.Helper()
	return s.poolOf(s.url)
}

func (s *stage) poolOf(url string) *pgxpool.Pool {
	s.t.Helper()
	pool, err := pgxpool.New(context.Background(), url)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(pool.Close)
	return pool
}

func (n *naive) read(ctx context.Context, c cell) ([]int64, error) {
	key := naiveKey(c.row)
	raw, err := n.s.rdb.Get(ctx, key).Result()
	if err == nil {
		if shown, ok := decode(n.s, key, raw, 1); ok {
			return shown, nil
		}
	} else if !errors.Is(err, redis.Nil) {
		return nil, err
	}
	store := true
	if n.lease != nil {
		if store, err = n.lease(ctx, key); err != nil {
			return nil, err
		}
	}
	var position string
	if err := n.pool.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&position); err != nil {
		return nil, err
	}
	shown, err := n.s.load(ctx, c, n.pool)
	if err != nil || !store {
		return shown, err
	}
	value, err := json.Marshal(shown)
	if err != nil {
		return nil, err
	}
	return shown, n.fill(ctx, key, string(value), position)
}

// exposed ends a control: everything that it does has been done. What is cached is
// compared, and after the budget it is read once more.
func (s *stage) exposed(r reader, c cell) {
	s.t.Helper()
	s.compareCached()
	s.eventually("the budget is over", elapsed(c.view.budget+50*time.Millisecond))
	s.see(r, c)
}

// controls are the naive ways.
func controls() []scenario {
	return []scenario{
		{name: "naive/DEL after write", run: delAfterWrite},
		{name: "naive/outbox poller", run: outboxPoller},
		{name: "naive/TTL only", run: ttlOnly},
		{name: "naive/fill without lease", run: fillWithoutLease},
		{name: "naive/fill fenced by LSN", options: fencedByLSNOptions, run: fencedByLSN},
	}
}

// The writer deletes the key after its commit. A reader that has read the old row before
// stores it afterwards.
func delAfterWrite(s *stage) {
	c, r := cell{view: viewsOf(item)[0], row: 1}, s.newNaive()
	p := s.pauses.next(c)
	slow := s.start(r, c)
	p.await(s)
	s.change(c.row)
	s.unlink(naiveKey(c.row))
	close(p.resume)
	s.finish(slow)
	s.exposed(r, c)
}

func (s *stage) unlink(key string) {
	s.t.Helper()
	if err := s.rdb.Unlink(context.Background(), key).Err(); err != nil {
		s.t.Fatal(err)
	}
}

// The writer notes the key in a table, in its own transaction; a poller deletes what it
// finds beyond the last number that it has seen. Numbers are given out before the commit,
// so one that commits late is never seen.
func outboxPoller(s *stage) {
	s.exec("CREATE TABLE outbox (id bigserial PRIMARY KEY, key text NOT NULL)")
	r, last := s.newNaive(), int64(0)
	poll := func() {
		s.t.Helper()
		rows, err := s.conn.Query(context.Background(), "SELECT id, key FROM outbox WHERE id > $1 ORDER BY id", last)
		if err != nil {
			s.t.Fatal(err)
		}
		var key string
		var keys []string
		if _, err := pgx.ForEachRow(rows, []any{&last, &key}, func() error { keys = append(keys, key); return nil }); err != nil {
			s.t.Fatal(err)
		}
		for _, k := range keys {
			s.unlink(k)
		}
	}
	begin := func(row int64) (commit func()) {
		s.t.Helper()
		conn := servertest.Connect(s.t, s.url)
		n := s.history.begin(row)
		sql, args := writeSQL(row, n)
		for _, q := range []struct {
			sql  string
			args []any
		}{{"BEGIN", nil}, {sql, args}, {"INSERT INTO outbox (key) VALUES ($1)", []any{naiveKey(row)}}} {
			if _, err := conn.Exec(context.Background(), q.sql, q.args...); err != nil {
				s.t.Fatal(err)
			}
		}
		return func() {
			s.t.Helper()
			if _, err := conn.Exec(context.Background(), "COMMIT"); err != nil {
				s.t.Fatal(err)
			}
			s.history.end(row, n)
		}
	}
	early, late := cell{view: viewsOf(item)[0], row: 1}, cell{view: viewsOf(item)[0], row: 2}
	s.see(r, early)
	s.see(r, late)
	commitEarly := begin(early.row)
	commitLate := begin(late.row)
	commitLate()
	poll()
	commitEarly()
	poll()
	if s.exists(naiveKey(late.row)) {
		s.t.Error("the poller does not work at all: the control proves nothing")
	}
	s.exposed(r, early)
}

func (s *stage) exists(key string) bool {
	s.t.Helper()
	n, err := s.rdb.Exists(context.Background(), key).Result()
	if err != nil {
		s.t.Fatal(err)
	}
	return n == 1
}

// Nothing invalidates; values run out some time.
func ttlOnly(s *stage) {
	c, r := cell{view: viewsOf(item)[0], row: 1}, s.newNaive()
	s.see(r, c)
	s.change(c.row)
	s.exposed(r, c)
}

// The daemon invalidates, but the reader stores without having asked for the key before.
func fillWithoutLease(s *stage) {
	c, r := cell{view: viewsOf(item)[0], row: 1}, s.newNaive()
	d := s.world.start()
	p := s.pauses.next(c)
	slow := s.start(r, c)
	p.await(s)
	s.change(c.row)
	s.settle(d)
	close(p.resume)
	s.finish(slow)
	s.exposed(r, c)
}
