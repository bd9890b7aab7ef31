package integration

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// A commit that waits for its synchronous standby is in the log, and nobody sees
// it. Careless readers go on filling the cache meanwhile. When the standby is given
// up and the commits become visible, nothing may be stale.
//
// A consumer that deletes on receipt runs beside, on a Redis of its own: it must be
// caught, or the test proves nothing.
func TestWaitingForAStandbyLeavesNothingStale(t *testing.T) {
	const rows = 20
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: map[string]string{"wal_sender_timeout": "1s"}})
	db := servertest.NewDatabase(t, server, "shop")
	w := newWorldOn(t, db.URL, servertest.Redis(t).URL, itemsSchema(rows), itemsMappings)
	p := w.start()
	naive := startNaive(t, w)

	w.exec("ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
	waits := func() bool {
		return query[int](w, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") > 0
	}
	// The first commits may still pass: the setting takes effect some time later.
	var commits sync.WaitGroup
	errs := make(chan error, rows)
	commit := func(id int64, done chan<- struct{}) {
		defer close(done)
		conn, err := pgx.Connect(context.Background(), w.url)
		if err == nil {
			_, err = conn.Exec(context.Background(), "UPDATE items SET v = v + 1 WHERE id = $1", id)
			closeNow(conn)
		}
		if err != nil {
			errs <- err
		}
	}
	t.Cleanup(commits.Wait)
	for waiting := false; !waiting; {
		done := make(chan struct{})
		commits.Go(func() { commit(0, done) })
		w.eventually("a commit passes or waits", func() bool {
			select {
			case <-done:
				return true
			default:
				waiting = waits()
				return waiting
			}
		})
	}
	before := w.versions()
	for id := range int64(rows - 1) {
		commits.Go(func() { commit(id+1, make(chan struct{})) })
	}
	w.eventually("all commits wait", func() bool {
		return query[int](w, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == rows
	})
	for id, v := range w.versions() {
		if v != before[id] {
			t.Fatal("a commit is visible although its standby never answered")
		}
	}

	// Both have the commits, and careless readers come after that.
	w.received()
	w.eventually("the naive consumer has deleted the keys", func() bool { return naive.deleted(rows) })
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var readers sync.WaitGroup
	var rounds atomic.Int64
	for range 2 {
		readers.Go(func() { careless(ctx, t, w, rows, &rounds, w.rdb, naive.rdb) })
	}
	w.eventually("the readers have gone round", func() bool { return rounds.Load() > 20 })
	// The readers end first: a fill of theirs that straddles the moment of visibility
	// would be their own fault.
	stop()
	readers.Wait()

	w.exec("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
	commits.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
	w.settle(p)
	w.wantGone(0, rows)
	if stale, compared := w.stale(naive.rdb); len(stale) == 0 {
		t.Errorf("a consumer without a gate left none of %d keys stale: the test proves nothing", compared)
	}
	p.stop()
}

// careless fills every miss with a plain SET of what it reads.
func careless(ctx context.Context, t *testing.T, w *world, rows int64, rounds *atomic.Int64, caches ...*redis.Client) {
	conn, err := pgx.Connect(context.Background(), w.url)
	if err != nil {
		t.Error(err)
		return
	}
	defer closeNow(conn)
	for ctx.Err() == nil {
		for id := range rows {
			for _, rdb := range caches {
				if err := carelessRead(conn, rdb, id); err != nil {
					t.Error(err)
					return
				}
			}
		}
		rounds.Add(1)
	}
}

func carelessRead(conn *pgx.Conn, rdb *redis.Client, id int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := rdb.Get(ctx, itemKey(id)).Err()
	if !errors.Is(err, redis.Nil) {
		return err
	}
	var v int64
	if err := conn.QueryRow(ctx, "SELECT v FROM items WHERE id = $1", id).Scan(&v); err != nil {
		return err
	}
	return rdb.Set(ctx, itemKey(id), v, 0).Err()
}

// naive deletes on receipt of a commit.
type naive struct {
	rdb *redis.Client

	mu   sync.Mutex
	gone map[string]bool
}

func (n *naive) deleted(want int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.gone) == want
}

func startNaive(t *testing.T, w *world) *naive {
	t.Helper()
	slot := w.slot + "_naive"
	w.exec(fmt.Sprintf("SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", slot))
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := replication.OpenStream(ctx, replication.StreamOptions{
		URL: w.url, Slot: slot, Publication: w.slot + "_pub", StatusInterval: 200 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	n := &naive{rdb: servertest.Redis(t).Client(t), gone: map[string]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.run(ctx, stream); !errors.Is(err, context.Canceled) {
			t.Errorf("the naive consumer: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		_ = stream.Close()
	})
	return n
}

func (n *naive) run(ctx context.Context, stream *replication.Stream) error {
	dec := decoder.New()
	var keys []string
	for {
		if err := stream.Fill(ctx); err != nil {
			return err
		}
		for {
			data, ok, err := stream.Next()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			m, err := dec.Decode(data)
			if err != nil {
				return err
			}
			switch m.Kind {
			case decoder.KindChange:
				keys = append(keys, "item:"+string(m.Change.New[0].Data))
			case decoder.KindCommit:
				if err := n.delete(ctx, keys); err != nil {
					return err
				}
				keys = keys[:0]
			}
		}
	}
}

func (n *naive) delete(ctx context.Context, keys []string) error {
	for _, k := range keys {
		if err := n.rdb.Unlink(ctx, k).Err(); err != nil {
			return err
		}
		n.mu.Lock()
		n.gone[k] = true
		n.mu.Unlock()
	}
	return nil
}

// Without a standby too, a commit is in the log a moment before it is visible. Each
// row changes twice only, under the eyes of readers that fill it at once.
func TestReadersBetweenLogAndVisibilityLeaveNothingStale(t *testing.T) {
	const rows = 1500
	w := itemsWorld(t, rows)
	p := w.start()
	l := w.load(rows, 12)
	l.until(2 * rows)
	l.end()
	w.settle(p)
	w.wantFresh(rows / 5)
	t.Logf("%d updates, %d fills", l.updates.Load(), l.fills.Load())
	p.stop()
}
