package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// The tests of failures cache the version v of each row of items under its id. A
// cached version that differs from the row's, once everything is applied, is stale.
const itemsMappings = `
classes:
  critical: {staleness: 1s}
keys:
  item: {key: "item:{id}", class: critical}
mappings:
  - table: public.items
    keys: [item]
`

func itemsSchema(rows int) string {
	return fmt.Sprintf(`CREATE TABLE items (id bigint PRIMARY KEY, v bigint NOT NULL DEFAULT 0);
		INSERT INTO items SELECT generate_series(0, %d)`, rows-1)
}

func itemKey(id int64) string { return "item:" + strconv.FormatInt(id, 10) }

// fillScript stores a value only if the reader's own lease still stands in the key.
const fillScript = `if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) return 1 end return 0`

// load is writers at work, each with a reader on its heels. Writers go round the rows
// one after the other, so that what one change left stale is not mended by the next at
// once.
//
// Readers read through: on a miss they put a lease into the key, read the row, and
// store it only if the lease is still there. That fill is safe if, and only if, each
// change's deletion comes after the change is visible; so whatever is stale at the end
// is the daemon's doing, exactly.
type load struct {
	w    *world
	rows int64

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	front, updates, fills, tokens atomic.Int64
}

// load starts pairs of a writer and a reader, which go on through any failure of the
// servers until end is called.
func (w *world) load(rows int64, pairs int) *load {
	w.t.Helper()
	l := &load{w: w, rows: rows}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	w.t.Cleanup(l.end)
	for range pairs {
		p := &pair{load: l, reads: make(chan struct{}), fresh: make(chan struct{})}
		l.wg.Go(p.write)
		l.wg.Go(p.read)
	}
	return l
}

// pair is a writer and a reader of the same row.
type pair struct {
	*load
	row   atomic.Int64
	reads chan struct{} // receives after each read, if somebody waits for it
	fresh chan struct{} // the same after each fill
}

// await waits for n of the reader's events, but not for long: when Redis or the
// daemon is away, writes go on.
func await(events <-chan struct{}, n int) {
	timer := time.NewTimer(20 * time.Millisecond)
	defer timer.Stop()
	for range n {
		select {
		case <-events:
		case <-timer.C:
			return
		}
	}
}

func tell(events chan<- struct{}) {
	select {
	case events <- struct{}{}:
	default:
	}
}

// end stops the load and waits for it. What is under way is finished or fails.
func (l *load) end() {
	l.cancel()
	l.wg.Wait()
}

// until waits for so many more updates.
func (l *load) until(more int64) {
	l.w.t.Helper()
	n := l.updates.Load() + more
	l.w.eventually(fmt.Sprintf("there are %d updates", n), func() bool { return l.updates.Load() >= n })
}

// filled waits for so many more fills: on a busy machine readers fall behind writers.
func (l *load) filled(more int64) {
	l.w.t.Helper()
	n := l.fills.Load() + more
	l.w.eventually(fmt.Sprintf("there are %d fills", n), func() bool { return l.fills.Load() >= n })
}

// source gives a connection, a new one whenever the last was lost, to f, until the
// load ends.
func (l *load) source(f func(*pgx.Conn) error) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			closeNow(conn)
		}
	}()
	for l.ctx.Err() == nil {
		err := func() error {
			// Each step has its own end, not the load's: a reader that is cut off in
			// the middle of a fill is a case of its own.
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if conn == nil {
				var err error
				if conn, err = pgx.Connect(ctx, l.w.url); err != nil {
					return err
				}
			}
			return f(conn)
		}()
		if err != nil {
			if conn != nil {
				closeNow(conn)
				conn = nil
			}
			pause(l.ctx, 20*time.Millisecond)
		}
	}
}

func closeNow(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // it is lost already, or was only read from
}

// pause keeps one who was refused from trying again without end.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (p *pair) write() {
	p.source(func(conn *pgx.Conn) error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		id := p.front.Add(1) % p.rows
		p.row.Store(id)
		await(p.reads, 2) // the second one began after the row was set: it is cached now
		_, err := conn.Exec(ctx, "UPDATE items SET v = v + 1 WHERE id = $1", id)
		if err != nil {
			return err
		}
		p.updates.Add(1)
		await(p.fresh, 2) // the key is removed twice, so the first fill does not last
		return nil
	})
}

// read reads the row that is being written: before, so that there is something to
// make stale, and again and again, since a fill is dangerous right then.
func (p *pair) read() {
	o, err := redis.ParseURL(p.w.redisURL)
	if err != nil {
		p.w.t.Error(err)
		return
	}
	o.MaxRetries, o.ReadTimeout, o.DialTimeout = -1, 500*time.Millisecond, 500*time.Millisecond
	rdb := redis.NewClient(o)
	defer rdb.Close()
	p.source(func(conn *pgx.Conn) error {
		filled, err := readThrough(conn, rdb, p.row.Load(), strconv.FormatInt(p.tokens.Add(1), 10))
		if filled {
			p.fills.Add(1)
			tell(p.fresh)
		}
		if err != nil {
			if conn.IsClosed() {
				return err
			}
			pause(p.ctx, 5*time.Millisecond) // Redis is away; the connection is still good
			return nil
		}
		tell(p.reads)
		return nil
	})
}

// readThrough is one read with a lease.
func readThrough(conn *pgx.Conn, rdb *redis.Client, id int64, token string) (filled bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	key, lease := itemKey(id), "lease:"+token
	if err := rdb.Get(ctx, key).Err(); !errors.Is(err, redis.Nil) {
		return false, err
	}
	if got, err := rdb.SetNX(ctx, key, lease, 2*time.Second).Result(); err != nil || !got {
		return false, err
	}
	var v int64
	if err := conn.QueryRow(ctx, "SELECT v FROM items WHERE id = $1", id).Scan(&v); err != nil {
		return false, err
	}
	n, err := rdb.Eval(ctx, fillScript, []string{key}, lease, v).Int()
	return n == 1, err
}

// reconnect replaces the test's own connection, after the source was away.
func (w *world) reconnect() {
	w.t.Helper()
	closeNow(w.conn)
	w.eventually("the source answers", func() bool {
		conn, err := pgx.Connect(w.t.Context(), w.url)
		if err != nil {
			return false
		}
		w.conn = conn
		return true
	})
	conn := w.conn
	w.t.Cleanup(func() { closeNow(conn) })
}

// versions are the rows as they are.
func (w *world) versions() map[int64]int64 {
	w.t.Helper()
	rows, err := w.conn.Query(w.t.Context(), "SELECT id, v FROM items")
	if err != nil {
		w.t.Fatal(err)
	}
	m := map[int64]int64{}
	var id, v int64
	if _, err := pgx.ForEachRow(rows, []any{&id, &v}, func() error { m[id] = v; return nil }); err != nil {
		w.t.Fatal(err)
	}
	return m
}

// stale compares every cached version with its row, and says how many it compared.
func (w *world) stale(rdb *redis.Client) (stale []string, compared int) {
	w.t.Helper()
	rows := w.versions()
	for _, key := range scan(w.t, rdb) {
		value, err := rdb.Get(w.t.Context(), key).Result()
		if errors.Is(err, redis.Nil) || strings.HasPrefix(value, "lease:") {
			continue // it ran out, or will
		}
		if err != nil {
			w.t.Fatal(err)
		}
		id, err := strconv.ParseInt(strings.TrimPrefix(key, "item:"), 10, 64)
		if err != nil {
			w.t.Fatalf("key %q: %v", key, err)
		}
		compared++
		if want := strconv.FormatInt(rows[id], 10); value != want {
			stale = append(stale, fmt.Sprintf("%s is cached as %s, the row has %s", key, value, want))
		}
	}
	return stale, compared
}

func scan(t testing.TB, rdb *redis.Client) []string {
	t.Helper()
	seen := map[string]bool{}
	var keys []string
	it := rdb.Scan(t.Context(), 0, "item:*", 1000).Iterator()
	for it.Next(t.Context()) {
		if !seen[it.Val()] {
			seen[it.Val()] = true
			keys = append(keys, it.Val())
		}
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return keys
}

// wantFresh fails if a cached version is stale, or if so few are cached that this
// says nothing.
func (w *world) wantFresh(atLeast int) {
	w.t.Helper()
	stale, compared := w.stale(w.rdb)
	if len(stale) > 0 {
		w.t.Errorf("%d of %d cached versions are stale: %q", len(stale), compared, stale[:min(5, len(stale))])
	}
	if compared < atLeast {
		w.t.Errorf("only %d versions were cached, want %d at least: the comparison says nothing", compared, atLeast)
	}
}

// cacheRows caches the rows from to to-1 as they are now, as every reader would find
// them.
func (w *world) cacheRows(from, to int64) {
	w.t.Helper()
	rows := w.versions()
	p := w.rdb.Pipeline()
	for id := from; id < to; id++ {
		p.Set(w.t.Context(), itemKey(id), rows[id], 0)
	}
	if _, err := p.Exec(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// update changes the rows from to to-1, each in a transaction of its own.
func (w *world) update(from, to int64) {
	w.t.Helper()
	for id := from; id < to; id++ {
		if _, err := w.conn.Exec(w.t.Context(), "UPDATE items SET v = v + 1 WHERE id = $1", id); err != nil {
			w.t.Fatal(err)
		}
	}
}

// wantGone fails unless the rows from to to-1 are not cached.
func (w *world) wantGone(from, to int64) {
	w.t.Helper()
	left := 0
	for id := from; id < to; id++ {
		n, err := w.rdb.Exists(w.t.Context(), itemKey(id)).Result()
		if err != nil {
			w.t.Fatal(err)
		}
		left += int(n)
	}
	if left > 0 {
		w.t.Errorf("%d of the rows %d to %d are still cached", left, from, to-1)
	}
}

// wantKept fails unless the rows from to to-1 are cached.
func (w *world) wantKept(from, to int64) {
	w.t.Helper()
	for id := from; id < to; id++ {
		if n, err := w.rdb.Exists(w.t.Context(), itemKey(id)).Result(); err != nil || n != 1 {
			w.t.Errorf("row %d is not cached any more, and nothing had changed it (%v)", id, err)
			return
		}
	}
}

// query reads one value.
func query[T any](w *world, sql string, args ...any) T {
	w.t.Helper()
	var v T
	if err := w.conn.QueryRow(w.t.Context(), sql, args...).Scan(&v); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// elapsed is a condition that is true after a time. It is for outages, which are
// defined by how long they last; nothing else may be waited for like this.
func elapsed(d time.Duration) func() bool {
	end := time.Now().Add(d)
	return func() bool { return time.Now().After(end) }
}

// itemsWorld is a world with items on shared servers.
func itemsWorld(t testing.TB, rows int) *world {
	t.Helper()
	db, rdb := servertest.Postgres(t), servertest.Redis(t)
	return newWorldOn(t, db.URL, rdb.URL, itemsSchema(rows), itemsMappings)
}

// replayWindow changes for how long the source keeps what is applied.
func (w *world) replayWindow(d string) { w.reconfigure("replay_window: 2s", "replay_window: "+d) }

// reconfigure edits the mappings file.
func (w *world) reconfigure(from, to string) {
	w.t.Helper()
	b, err := os.ReadFile(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	s := strings.Replace(string(b), from, to, 1)
	if s == string(b) {
		w.t.Fatalf("the file has no %q", from)
	}
	if err := os.WriteFile(w.config, []byte(s), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// appliedAll says whether everything that was committed before the call is applied.
func (w *world) appliedAll() bool {
	w.t.Helper()
	now, err := lsn.Parse(query[string](w, "SELECT pg_current_wal_insert_lsn()::text"))
	if err != nil {
		w.t.Fatal(err)
	}
	at, err := lsn.ParseHex(w.control()["settled"])
	return err == nil && at >= now
}

// received waits until the daemon has received everything that was committed before.
func (w *world) received() {
	w.t.Helper()
	now := query[string](w, "SELECT pg_current_wal_insert_lsn()::text")
	w.eventually("the daemon has received everything up to "+now, func() bool {
		return query[bool](w, `SELECT coalesce(bool_and(r.write_lsn >= $1::text::pg_lsn), false)
			FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE s.slot_name = $2`, now, w.slot)
	})
}
