package cache

import (
	"context"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// standbyOf starts a server in recovery, which has replayed what it has and gets no
// more. Its rows differ from the primary's, so that a read tells where it was.
func standbyOf(t *testing.T) (server *localserver.Postgres, pool *pgxpool.Pool, replayed lsn.LSN) {
	t.Helper()
	server = servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	conn := servertest.Connect(t, server.URL())
	var dataDir string
	for _, sql := range []string{`CREATE TABLE items (id int PRIMARY KEY, v text)`, `INSERT INTO items SELECT n, 'of the standby' FROM generate_series(1, 20) n`, `CHECKPOINT`} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.QueryRow(t.Context(), "SHOW data_directory").Scan(&dataDir); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(t.Context(), localserver.Fast); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dataDir+"/standby.signal", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.New(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	var at string
	if err := pool.QueryRow(t.Context(), "SELECT pg_last_wal_replay_lsn()::text").Scan(&at); err != nil {
		t.Fatal(err)
	}
	if replayed, err = lsn.Parse(at); err != nil {
		t.Fatal(err)
	}
	return server, pool, replayed
}

const ofStandby = "of the standby"

func TestStandbyServesLoads(t *testing.T) {
	server, pool, replayed := standbyOf(t)
	b := newBench(t, WithReplica(pool))
	v := view(b, "item")

	b.daemon.reach(replayed - 1)
	b.get(v, 1, ofStandby)
	b.get(v, 1, ofStandby) // it was stored
	b.count("cache_fills_total", 1)

	// An invalidation that the standby may not have replayed has been sent: strictly more is
	// wanted, as the position says where the next record begins.
	b.daemon.reach(replayed)
	b.get(v, 2, "one")

	// A token beyond what it has replayed; one at or below it.
	b.daemon.reach(1)
	b.seen()
	b.get(v, 3, "one", AtLeast(Token{at: replayed + 1, seen: snapshot{xmin: 3, xmax: 3}, text: "3:3:"}))
	b.get(v, 4, ofStandby, AtLeast(Token{at: replayed, seen: snapshot{xmin: 3, xmax: 3}, text: "3:3:"}))
	b.get(v, 4, ofStandby, AtLeast(Token{at: replayed, seen: snapshot{xmin: 3, xmax: 3}, text: "3:3:"}))

	// In doubt, and past the cache, it is the primary.
	b.daemon.set("gap", 0)
	eventually(t, "the gap is seen", func() bool { return b.doubt(v) == doubtGap })
	b.get(v, 5, "one")
	b.daemon.set("ok", 0)
	eventually(t, "that it is well again is seen", func() bool { return b.doubt(v) == "" })

	// A query that the standby had to end is run on the primary.
	load := func(ctx context.Context, tx pgx.Tx) (s string, err error) {
		if s, err = item(6)(ctx, tx); s == ofStandby {
			return "", &pgconn.PgError{Severity: "ERROR", Code: "40001", Message: "canceling statement due to conflict with recovery"}
		}
		return s, err
	}
	if s, err := v.Get(t.Context(), Vars{"id": 6}, load); err != nil || s != "one" {
		t.Errorf("%q, %v", s, err)
	}

	// One that hangs costs a second, not the lease.
	if err := server.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	pool.Reset() // new connections hang, and so do those in use
	begin := time.Now()
	b.get(v, 7, "one")
	if took := time.Since(begin); took > b.c.o.lease/2 {
		t.Errorf("it took %v", took)
	}
	if err := server.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// One that is promoted says nothing any more: its position stands still.
	conn := servertest.Connect(t, server.URL())
	if _, err := conn.Exec(t.Context(), "SELECT pg_promote(true, 30)"); err != nil {
		t.Fatal(err)
	}
	b.get(v, 8, "one")
}

// What a standby brings is as fresh as the daemon's position, however fast it was.
func TestStandbyLoadIsAsOldAsTheProof(t *testing.T) {
	_, pool, replayed := standbyOf(t)
	b := newBench(t, WithReplica(pool))
	v := view(b, "quick")
	b.daemon.reach(replayed - 1)
	b.seen()
	loads := 0
	s, err := v.Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, tx pgx.Tx) (string, error) {
		s, err := item(1)(ctx, tx)
		if loads++; loads == 1 {
			b.daemon.away(true) // and nothing is known to be fresh any more
			b.invalidate("quick:1")
			eventually(t, "it is late", func() bool { return b.doubt(v) == doubtLate })
		}
		return s, err
	})
	if err != nil || s != "one" {
		t.Errorf("%q, %v, want what the primary has", s, err)
	}
}

func TestPoolThatLeadsToAStandbyIsAnError(t *testing.T) {
	_, pool, _ := standbyOf(t)
	b := newBench(t)
	b.pool = pool
	c, _ := b.open()
	_, err := viewOf(b, c, "item").Get(t.Context(), Vars{"id": 1}, item(1))
	wantError(t, err, "standby", "target_session_attrs")
}
