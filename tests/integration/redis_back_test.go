package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// wayBack is a way in which a Redis goes back to what it held a while ago.
type wayBack struct {
	name string
	// keep is done at the time that it goes back to, back later. In between, what is cached
	// has been invalidated.
	keep, back func(w *world, r *localserver.Redis)
}

func waysBack() []wayBack {
	do := func(w *world, args ...any) {
		w.t.Helper()
		if err := w.rdb.Do(w.t.Context(), args...).Err(); err != nil && err != redis.Nil {
			w.t.Fatalf("%v: %v", args, err)
		}
	}
	save := func(w *world, _ *localserver.Redis) { do(w, "save") }
	return []wayBack{
		{"restored from a snapshot", save, func(w *world, r *localserver.Redis) {
			r.Kill()
			if err := r.Start(w.t.Context()); err != nil {
				w.t.Fatal(err)
			}
		}},
		{"reloaded without what was in memory", save, func(w *world, _ *localserver.Redis) { do(w, "debug", "reload", "nosave", "noflush", "merge") }},
		{"swapped with a copy of the database", func(w *world, _ *localserver.Redis) {
			keys, err := w.rdb.Keys(w.t.Context(), "*").Result()
			if err != nil {
				w.t.Fatal(err)
			}
			for _, k := range keys {
				do(w, "copy", k, k, "db", 1, "replace")
			}
		}, func(w *world, _ *localserver.Redis) { do(w, "swapdb", 0, 1) }},
		{"another database is emptied", func(*world, *localserver.Redis) {}, func(w *world, _ *localserver.Redis) {
			do(w, "copy", "sum:11", "sum:11", "db", 1)
			other := strings.TrimSuffix(w.redisURL, "/0") + "/1"
			if err := servertest.RedisClient(w.t, other).FlushDB(w.t.Context()).Err(); err != nil {
				w.t.Fatal(err)
			}
		}},
		{"made a replica of one that has a copy", func(*world, *localserver.Redis) {}, func(w *world, _ *localserver.Redis) {
			// What an operator does who takes the wrong one for the primary: our primary follows one that
			// has older data, and is made a primary again.
			old := servertest.PrivateRedis(w.t, localserver.RedisOptions{})
			oc := servertest.RedisClient(w.t, old.URL())
			for k, v := range w.kept {
				if err := oc.RestoreReplace(w.t.Context(), k, 0, v).Err(); err != nil {
					w.t.Fatal(err)
				}
			}
			do(w, "replicaof", "127.0.0.1", old.Port())
			w.eventually("it has the older data", func() bool {
				return strings.Contains(w.rdb.Info(w.t.Context(), "replication").Val(), "master_link_status:up")
			})
			do(w, "replicaof", "no", "one")
		}},
	}
}

// However Redis goes back, while the daemon runs or while it is down, nothing that was replaced
// since is returned, or left.
func TestEveryWayInWhichRedisGoesBack(t *testing.T) {
	for _, c := range waysBack() {
		for _, up := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, daemon up: %t", c.name, up), func(t *testing.T) {
				r := servertest.PrivateRedis(t, localserver.RedisOptions{Args: []string{"--enable-debug-command", "yes", "--repl-diskless-sync-delay", "0", "--save", ""}})
				w := newWorldOn(t, servertest.Postgres(t).URL, r.URL(), stampsSchema, both())
				p := w.start()
				lib := w.reader()
				for id := 1; id <= 20; id++ {
					w.eventually("it is cached", func() bool { return sumOf(w, lib, id) == "0" && w.entryStamp(fmt.Sprint("sum:", id)) == w.stamp("sum") })
				}
				w.put("other:1", "other:2")
				w.keepAll()
				c.keep(w, r)
				w.exec(`UPDATE a SET v = 1 WHERE id <= 10`, `UPDATE c SET v = 1 WHERE id = 1`)
				w.settle(p)
				w.exec(`UPDATE a SET v = 2 WHERE id <= 5`)
				w.settle(p)
				end := w.nudge()
				w.eventually("no replay reaches back to it", func() bool {
					return query[bool](w, "SELECT confirmed_flush_lsn > '"+end.String()+"' FROM pg_replication_slots WHERE slot_name = '"+w.slot+"'")
				})
				if !up {
					p.stop()
				}
				c.back(w, r)
				if !up {
					p = w.launch()
				}
				w.eventually("Redis is trusted again", func() bool { return w.control()["state"] == "ok" })
				w.settle(p)
				now := w.reader()
				for id := 1; id <= 20; id++ {
					want := "0"
					if id <= 10 {
						want = "1"
					}
					if id <= 5 {
						want = "2"
					}
					if got := sumOf(w, now, id); got != want {
						t.Errorf("sum:%d is %s, want %s", id, got, want)
					}
				}
				for _, k := range w.cached() {
					if k == "other:1" {
						t.Error("a plain value that was replaced is left")
					}
				}
				p.stop()
			})
		}
	}
}

// keepAll keeps all that Redis holds, as DUMP has it.
func (w *world) keepAll() {
	w.t.Helper()
	keys, err := w.rdb.Keys(w.t.Context(), "*").Result()
	if err != nil {
		w.t.Fatal(err)
	}
	w.kept = map[string]string{}
	for _, k := range keys {
		if v, err := w.rdb.Dump(w.t.Context(), k).Result(); err == nil {
			w.kept[k] = v
		}
	}
}
