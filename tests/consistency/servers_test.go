package consistency

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
)

// A commit waits for a standby that is not there: the daemon has it, and nobody sees
// the row. Readers go on meanwhile. Once the commit is visible nothing may be old.
func commitWaits(s *stage) {
	d := s.world.start()
	a, b := s.newLibrary(), s.newLibrary()
	views := viewsOf(item, byName, listed, page)
	s.readAll(views, a)
	l := s.limbo()
	for row := range int64(6) {
		l.change(row)
	}
	now := s.position()
	s.eventually("the daemon has received the commits", func() bool {
		return query[bool](s.world, `SELECT coalesce(bool_and(r.write_lsn >= $1::text::pg_lsn), false)
			FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE s.slot_name = $2`, now.String(), s.slot)
	})
	// Long enough for a daemon that does not wait to have applied them, and readers that
	// fill again.
	over := elapsed(300 * time.Millisecond)
	s.eventually("readers have gone round", func() bool { s.readAll(views, a, b); return over() })
	l.release()
	s.wantSettled(d, views, a, b)
}

func shortTTL() worldOptions {
	return worldOptions{mappings: strings.ReplaceAll(mappingsYAML, "ttl: 10m", "ttl: 150ms")}
}

// Somebody else removes keys at random: entries, leases, version keys.
func thirdParty(s *stage) {
	d := s.world.start()
	fleet := s.fleet(2)
	tr := s.traffic(3, everyView(), fleet...)
	rng := rand.New(rand.NewPCG(7, 7))
	goal := tr.writes.Load()
	writes, _ := s.amount()
	s.eventually("there has been traffic", func() bool {
		if key, err := s.rdb.RandomKey(context.Background()).Result(); err == nil && !strings.HasPrefix(key, "inv:") {
			s.unlink(key)
		}
		row := rng.Int64N(s.rows)
		s.unlink(fmt.Sprintf("list:%d", row%groups))
		return tr.writes.Load() >= goal+writes
	})
	s.someTraffic(tr)
	tr.end()
	s.wantSettled(d, everyView(), fleet...)
}

// Redis has too little memory and throws away whatever it likes: entries, leases, sets of
// dependents, version keys, the control hash.
func smallRedis(s *stage) {
	d := s.world.start()
	fleet := s.fleet(2)
	s.readAll(everyView(), fleet...)
	ctx := context.Background()
	must := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	info, err := s.rdb.InfoMap(ctx, "memory").Result()
	must(err)
	used := info["Memory"]["used_memory"]
	var bytes int64
	_, err = fmt.Sscan(used, &bytes)
	must(err)
	must(s.rdb.ConfigSet(ctx, "maxmemory-policy", "allkeys-lru").Err())
	must(s.rdb.ConfigSet(ctx, "maxmemory", fmt.Sprint(bytes+300_000)).Err())
	must(s.rdb.ConfigResetStat(ctx).Err())
	tr := s.traffic(3, everyView(), fleet...)
	goal, n := tr.writes.Load(), 0
	writes, _ := s.amount()
	ballast := strings.Repeat("x", 2000)
	s.eventually("there has been traffic", func() bool {
		for range 20 {
			n++
			_ = s.rdb.Set(ctx, fmt.Sprintf("ballast:%d", n), ballast, time.Minute).Err()
		}
		return tr.writes.Load() >= goal+writes
	})
	stats, err := s.rdb.InfoMap(ctx, "stats").Result()
	must(err)
	if evicted := stats["Stats"]["evicted_keys"]; evicted == "0" {
		s.t.Error("nothing was evicted: the scenario proves nothing")
	}
	must(s.rdb.ConfigSet(ctx, "maxmemory", "0").Err())
	s.someTraffic(tr)
	tr.end()
	s.wantSettled(d, everyView(), fleet...)
}

// The daemon is killed at each point between receiving a change and confirming it, with
// everything cached before. Whatever it had done, the next one makes it right.
func daemonKilledAtPoints(s *stage) {
	a := s.newLibrary()
	views := viewsOf(item, byName, listed, page)
	d := s.world.start()
	points := failpoint.Points()
	if !longForm() {
		points = []failpoint.Point{failpoint.Taken, failpoint.Gated, failpoint.Applied, failpoint.Checkpointed}
	}
	for _, point := range points {
		if point == failpoint.Purging || point == failpoint.Confirming || point == failpoint.Confirmed {
			continue // passed in a gap, and at a session's end: tests/integration
		}
		d.kill()
		s.settleOnce(views, a)
		d = s.launch(fmt.Sprintf("CDC_FAILPOINT=%s:2", point))
		for row := int64(0); !d.ended(); row++ {
			if row == s.rows/2 {
				s.t.Fatalf("the daemon never got to %s twice", point)
			}
			// One change a batch. What the last one left stale, the next does not mend.
			s.change(row)
			s.eventually("it is applied, or the daemon has been killed", func() bool { return d.ended() || s.appliedAll() })
		}
		d = s.world.start()
		s.compareCached()
		for _, v := range views {
			s.wantNow(a, cell{view: v, row: 0})
		}
	}
	s.wantSettled(d, views, a)
}

// The daemon is killed between taking what it has held back and being done with that.
func daemonKilledDraining(s *stage) {
	a := s.newLibrary()
	views := viewsOf(lingering)
	for i, point := range []failpoint.Point{failpoint.HeldTaken, failpoint.HeldApplied, failpoint.HeldDone} {
		s.settleOnce(views, a)
		d := s.launch(fmt.Sprintf("CDC_FAILPOINT=%s:1", point))
		s.eventually("the daemon follows the source, or has been killed", func() bool { return d.ended() || d.logged("msg=streaming") > 0 })
		for row := int64(10 * i); !d.ended(); row++ {
			if row == int64(10*i+10) {
				s.t.Fatalf("the daemon never got to %s", point)
			}
			s.change(row) // one that is applied at once, since the daemon was late, gets it nowhere
			over := elapsed(2 * time.Second)
			s.eventually("it has been applied, or the daemon has been killed", func() bool { return d.ended() || over() })
		}
		d = s.world.start()
		s.settle(d)
		s.compareCached()
		d.kill()
	}
	s.wantSettled(s.world.start(), views, a)
}

// settleOnce lets a daemon catch up, has everything cached, and kills it again.
func (s *stage) settleOnce(views []*view, r reader) {
	s.t.Helper()
	d := s.world.start()
	s.readAll(views, r)
	s.readAll(views, r) // what was read past the cache at first is cached now
	d.kill()
}

// The daemon is killed at random, and started again, under traffic.
func daemonKilledInALoop(s *stage) {
	d := s.world.start()
	fleet := s.fleet(3)
	tr := s.traffic(3, everyView(), fleet...)
	rng := rand.New(rand.NewPCG(3, 3))
	for range 15 {
		d.kill()
		d = s.launch()
		next := elapsed(time.Duration(rng.IntN(1500)) * time.Millisecond)
		s.eventually("its time is over", next)
	}
	s.someTraffic(tr)
	tr.end()
	s.wantSettled(d, everyView(), fleet...)
}

// The daemon hangs for longer than every budget, under traffic: reads must go to the source.
func daemonStopped(s *stage) {
	d := s.world.start()
	fleet := s.fleet(2)
	tr := s.traffic(2, everyView(), fleet...)
	tr.until(50, 500)
	s.signal(d, syscall.SIGSTOP)
	over := elapsed(4500 * time.Millisecond)
	s.eventually("the outage is long enough", over)
	s.signal(d, syscall.SIGCONT)
	s.someTraffic(tr)
	tr.end()
	s.wantSettled(d, everyView(), fleet...)
}

func redisRestartedEmpty(s *stage) { s.redisRestarted(false) }

// Redis comes back with what it had saved a while ago: values, control hash and all.
func redisRestartedOld(s *stage) { s.redisRestarted(true) }

func (s *stage) redisRestarted(save bool) {
	d := s.world.start()
	fleet := s.fleet(3)
	tr := s.traffic(3, everyView(), fleet...)
	rounds := 1
	if longForm() {
		rounds = 4
	}
	for i := range rounds {
		s.someTraffic(tr)
		if save {
			if err := s.rdb.Save(context.Background()).Err(); err != nil {
				s.t.Fatal(err)
			}
			tr.until(20*int64(i+1), 100)
		}
		s.rd.Kill()
		tr.until(10, 0)
		if err := s.rd.Start(context.Background()); err != nil {
			s.t.Fatal(err)
		}
	}
	s.someTraffic(tr)
	tr.end()
	s.wantSettled(d, everyView(), fleet...)
}

// Redis hangs for longer than every budget.
func redisHangs(s *stage) {
	d := s.world.start()
	fleet := s.fleet(3)
	tr := s.traffic(3, everyView(), fleet...)
	for range 2 {
		tr.until(100, 1000)
		if err := s.rd.Signal(syscall.SIGSTOP); err != nil {
			s.t.Fatal(err)
		}
		over := elapsed(4 * time.Second)
		s.eventually("the outage is long enough", over)
		if err := s.rd.Signal(syscall.SIGCONT); err != nil {
			s.t.Fatal(err)
		}
	}
	s.someTraffic(tr)
	tr.end()
	s.wantSettled(d, everyView(), fleet...)
}

// The source is restarted, once in order and once as by a crash.
func sourceRestarted(s *stage) {
	d := s.world.start()
	fleet := s.fleet(3)
	tr := s.traffic(3, everyView(), fleet...)
	for _, mode := range []localserver.StopMode{localserver.Fast, localserver.Immediate} {
		tr.until(100, 1000)
		if err := s.pg.Stop(context.Background(), mode); err != nil {
			s.t.Fatal(err)
		}
		if err := s.pg.Start(context.Background()); err != nil {
			s.t.Fatal(err)
		}
		s.reconnect()
	}
	s.someTraffic(tr)
	tr.end()
	s.wantSettled(d, everyView(), fleet...)
}
