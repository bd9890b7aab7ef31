package integration

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// privateWorld is a world on servers of its own, with the settings of the tests of
// outages: the walsender gives a silent client up within two seconds.
func privateWorld(t *testing.T, rows int, settings map[string]string) (*world, *localserver.Postgres, *localserver.Redis) {
	t.Helper()
	all := map[string]string{"wal_sender_timeout": "2s"}
	for k, v := range settings {
		all[k] = v
	}
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: all})
	rd := servertest.PrivateRedis(t, localserver.RedisOptions{})
	db := servertest.NewDatabase(t, pg, "shop")
	return newWorldOn(t, db.URL, rd.URL(), itemsSchema(rows), itemsMappings), pg, rd
}

// Redis crashes under load and comes back, in every state that it can come back in.
// The daemon must find out by itself what it has to do again.
func TestRedisCrashes(t *testing.T) {
	const rows, window = 3000, 300
	w, _, rd := privateWorld(t, rows, nil)
	p := w.start()
	from := int64(0)
	for _, c := range []struct {
		name        string
		save, wait  bool // a copy is on disk; it is older than the replay window
		gap, replay string
	}{
		{name: "empty", gap: "Redis has no checkpoint"},
		{name: "with data of a moment ago", save: true, replay: "msg=resuming"},
		{name: "with data from before the replay window", save: true, wait: true, gap: "the slot is confirmed up to"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w.cacheRows(from, from+window)
			if c.save {
				if err := w.rdb.Save(t.Context()).Err(); err != nil {
					t.Fatal(err)
				}
			}
			w.update(from, from+window)
			w.settle(p)
			w.wantGone(from, from+window)
			if c.wait {
				end := query[string](w, "SELECT pg_current_wal_lsn()::text")
				w.eventually("the source has let go of the changes", func() bool {
					return query[bool](w, "SELECT confirmed_flush_lsn > $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2", end, w.slot)
				})
			}
			gaps, replays := p.logged("gap: "), p.logged("msg=resuming")
			rd.Kill()
			w.update(from+window, from+2*window) // while it is down
			if err := rd.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if c.save && w.exists(from) == 0 && p.logged("gap: ")+p.logged("msg=resuming") == gaps+replays {
				t.Fatal("the old data is not back: the test proves nothing")
			}
			w.settle(p)
			w.wantGone(from, from+window)
			w.wantFresh(0)
			if got := p.logged("gap: ") > gaps; got != (c.gap != "") {
				t.Errorf("a gap: %v", got)
			}
			if c.gap != "" && p.logged(c.gap) == 0 {
				t.Errorf("the log lacks %q", c.gap)
			}
			if c.replay != "" && p.logged(c.replay) == replays {
				t.Errorf("the log lacks another %q", c.replay)
			}
			if err := rd.RemoveSaved(t.Context()); err != nil {
				t.Error(err)
			}
		})
		from += 2 * window
	}
	l := w.load(rows, 3)
	l.until(200)
	rd.Kill()
	l.until(50)
	if err := rd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.until(400)
	l.filled(100)
	l.end()
	w.settle(p)
	w.wantFresh(50)
	p.stop()
}

func (w *world) exists(row int64) int64 {
	w.t.Helper()
	n, err := w.rdb.Exists(w.t.Context(), itemKey(row)).Result()
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// Redis hangs for longer than the walsender waits for a silent client, while more
// is written than the daemon may hold. It must keep its connection, within its memory.
func TestRedisHangs(t *testing.T) {
	const rows = 100_000
	w, _, rd := privateWorld(t, rows, nil)
	p := w.launchBinary(plainBinary(t)) // the race detector takes memory of its own
	w.settle(p)
	w.cacheRows(0, 1000)
	pid := query[int](w, "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1", w.slot)
	if err := rd.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.update(0, 500)
	w.exec("UPDATE items SET v = v + 1")
	peak := 0
	over := elapsed(5 * time.Second)
	w.eventually("the outage is long enough", func() bool {
		peak = max(peak, residentKiB(t, p.cmd.Process.Pid))
		return over()
	})
	if now := query[int](w, "SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots WHERE slot_name = $1", w.slot); now != pid {
		t.Errorf("the walsender was %d and is %d: it was not answered", pid, now)
	}
	if err := rd.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.settle(p)
	peak = max(peak, residentKiB(t, p.cmd.Process.Pid))
	w.wantGone(0, 1000)
	if peak > 64<<10 {
		t.Errorf("the daemon took %d KiB", peak)
	}
	t.Logf("peak %d KiB", peak)
	p.stop()
}

var highWater = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// residentKiB is the most memory that a process has had.
func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := highWater.FindSubmatch(b)
	if m == nil {
		t.Fatalf("no VmHWM in %s", strings.TrimSpace(string(b)))
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Postgres goes away under load, in every way that it can.
func TestPostgresGoesAway(t *testing.T) {
	t.Parallel()
	const rows = 2000
	w, pg, rd := privateWorld(t, rows, nil)
	p := w.start()
	for _, c := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"restarted fast", func(t *testing.T) {
			// From then on the server waits at its end for more to be confirmed.
			now := query[string](w, "SELECT pg_current_wal_lsn()::text")
			w.eventually("something is confirmed", func() bool {
				return query[bool](w, "SELECT confirmed_flush_lsn > $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2", now, w.slot)
			})
			restart(t, pg, localserver.Fast)
		}},
		{"restarted immediately", func(t *testing.T) { restart(t, pg, localserver.Immediate) }},
		{"killed", func(t *testing.T) {
			pg.Kill()
			if err := pg.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
		{"a backend crashes", func(t *testing.T) {
			const started = "SELECT backend_start FROM pg_stat_activity WHERE backend_type = 'checkpointer'"
			before := query[time.Time](w, started)
			if err := pg.CrashBackend(query[int](w, "SELECT pg_backend_pid()")); err != nil {
				t.Fatal(err)
			}
			// The server still takes connections until it has noticed.
			w.eventually("the server has started all of its processes anew", func() bool {
				conn, err := pgx.Connect(t.Context(), w.url)
				if err != nil {
					return false
				}
				defer closeNow(conn)
				var now time.Time
				return conn.QueryRow(t.Context(), started).Scan(&now) == nil && !now.Equal(before)
			})
		}},
		{"the walsender is terminated in the middle of a transaction", func(t *testing.T) {
			if err := rd.Signal(syscall.SIGSTOP); err != nil { // so that it is in the middle
				t.Fatal(err)
			}
			w.exec("UPDATE items SET v = v + 1 FROM generate_series(1, 1)",
				"DO $$BEGIN FOR i IN 1..20 LOOP UPDATE items SET v = v + 1; END LOOP; END$$")
			w.endSession()
			if err := rd.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			sessions := p.logged("msg=streaming")
			l := w.load(rows, 3)
			l.until(300)
			c.do(t)
			w.reconnect()
			w.eventually("the daemon follows the source again", func() bool { return p.logged("msg=streaming") > sessions })
			w.settle(p) // so that what is read from now on stays cached
			l.until(300)
			l.filled(150)
			l.end()
			w.settle(p)
			w.wantFresh(100)
			if p.logged("gap: ") > 0 {
				t.Error("a gap, although nothing was lost")
			}
		})
	}
	p.stop()
}

func restart(t *testing.T, pg *localserver.Postgres, mode localserver.StopMode) {
	t.Helper()
	began := time.Now()
	if err := pg.Stop(t.Context(), mode); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the server took %v to stop: the daemon held it up", took.Round(time.Second))
	}
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A fast shutdown ends all sessions but the walsender's, which waits until what it
// has sent is confirmed. What the daemon can no longer see to be visible it can not
// confirm; it has to let go, or the server would never end.
func TestFastShutdownIsNotHeldUp(t *testing.T) {
	w, pg, rd := privateWorld(t, 1000, nil)
	w.replayWindow("1ms")
	p := w.start()
	start := query[string](w, "SELECT pg_current_wal_lsn()::text")
	w.eventually("something is confirmed", func() bool {
		return query[bool](w, "SELECT confirmed_flush_lsn > $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2", start, w.slot)
	})
	w.cacheRows(0, 300)
	w.update(0, 1)
	w.settle(p) // the gate's connection is there
	if err := rd.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The first batch passes the gate and waits for Redis; the second is to ask later.
	w.update(1, 2)
	w.received()
	w.update(2, 200)
	w.received()
	backends := query[[]int](w, "SELECT array_agg(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'")
	stopped := make(chan error, 1)
	began := time.Now()
	go func() { stopped <- pg.Stop(t.Context(), localserver.Fast) }()
	w.eventually("all sessions but the walsender's have ended", func() bool {
		return !slices.ContainsFunc(backends, pg.BackendAlive)
	})
	if err := rd.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the server took %v to stop", took.Round(time.Second))
	}
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.reconnect()
	w.settle(p)
	w.wantGone(0, 200)
	w.wantKept(200, 300)
	p.stop()
}
