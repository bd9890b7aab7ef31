package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/clusternode"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// proxy leads new connections to an address, and leaves the old ones where they are.
type proxy struct {
	l  net.Listener
	to atomic.Pointer[string]
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l}
	p.lead(to)
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", *p.to.Load())
			if err != nil {
				_ = client.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{client, server}, {server, client}} {
				wg.Go(func() {
					_, _ = io.Copy(pair[0], pair[1]) // until one side is closed
					_, _ = pair[0].Close(), pair[1].Close()
				})
			}
		}
	})
	return p
}

func (p *proxy) lead(to string) { p.to.Store(&to) }

// A pool behind a name has connections to the old primary, which still takes writes, and to the
// new one. What it reads is of one of them, and of the one that the daemon writes to.
func TestPoolBehindANameIsOfOnePrimary(t *testing.T) {
	for name, options := range map[string][]Option{"": nil, "without a timeout": {WithRedisTimeout(0)}} {
		t.Run(name, func(t *testing.T) { testPoolBehindAName(t, 10, options) })
	}
	// With few connections at first, most are made when the name leads to the new primary.
	t.Run("a pool that grows", func(t *testing.T) { testPoolBehindAName(t, 2, nil) })
}

func testPoolBehindAName(t *testing.T, idle int, options []Option) {
	inStep := localserver.RedisOptions{Args: []string{"--repl-diskless-sync-delay", "0"}}
	primary, replica := servertest.PrivateRedis(t, inStep), servertest.PrivateRedis(t, inStep)
	pc, rc := servertest.RedisClient(t, primary.URL()), servertest.RedisClient(t, replica.URL())
	if err := rc.Do(t.Context(), "replicaof", "127.0.0.1", primary.Port()).Err(); err != nil {
		t.Fatal(err)
	}
	p := newProxy(t, primary.Address())
	b := newBenchWith(t, servertest.Postgres(t), pc)
	b.rdb = redis.NewClient(&redis.Options{Addr: p.l.Addr().String(), PoolSize: 20, PoolFIFO: true, MinIdleConns: idle})
	t.Cleanup(func() { _ = b.rdb.Close() })
	b.c, b.registry = b.open(options...)
	v := view(b, "quick")
	const ids = 10
	var keys []string
	for id := 1; id <= ids; id++ {
		keys = append(keys, fmt.Sprintf("quick:%d", id))
	}
	eventually(t, "the replica has the values", func() bool {
		for id := 1; id <= ids; id++ {
			b.get(v, id, "one") // past the cache, and not stored, while the daemon of the test is slow
		}
		return rc.Exists(t.Context(), keys...).Val() == ids
	})

	b.daemon.mu.Lock()
	err := rc.Do(t.Context(), "replicaof", "no", "one").Err()
	b.daemon.rdb = rc
	b.daemon.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	p.lead(replica.Address())
	for id := 1; id <= ids; id++ {
		b.write(id, "two")
		if err := rc.Unlink(t.Context(), fmt.Sprintf("quick:%d", id)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	changed := time.Now()
	var stale atomic.Int64
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for n := 0; time.Since(changed) < 4*time.Second; n++ {
				began := time.Now()
				s, err := v.Get(t.Context(), Vars{"id": (n+w)%ids + 1}, func(ctx context.Context, tx pgx.Tx) (string, error) {
					return item((n+w)%ids+1)(ctx, tx)
				})
				if err != nil {
					t.Error(err)
					return
				}
				if s != "two" && began.Sub(changed) > v.f.Class.Staleness {
					stale.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := stale.Load(); n > 0 {
		t.Errorf("%d stale reads", n)
	}
	// Of one reader, since a flight that it shared would look like a hit.
	eventually(t, "reads are back in the cache", func() bool {
		loaded := false
		s, err := v.Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, tx pgx.Tx) (string, error) {
			loaded = true
			return item(1)(ctx, tx)
		})
		return err == nil && s == "two" && !loaded
	})
	if n := rc.Exists(t.Context(), "quick:1").Val(); n != 1 {
		t.Error("nothing is stored on the new primary")
	}
}

func TestWhichServerIsBelieved(t *testing.T) {
	at := func(generation string, fresh int64, reached lsn.LSN) *controlState {
		return &controlState{generation: generation, freshAsOf: fresh, reached: reached}
	}
	for name, c := range map[string]struct {
		id      string
		state   *controlState
		stalled bool
		want    error
		voids   bool
	}{
		"the same server":                            {"a", at("1", 100, 100), false, nil, false},
		"the same server, further":                   {"a", at("1", 101, 101), false, nil, false},
		"the same server, with older data":           {"a", at("1", 99, 100), false, nil, true},
		"the same server, flushed":                   {"a", nil, false, nil, true},
		"another one, behind":                        {"b", at("1", 99, 99), false, errElsewhere, false},
		"another one, level":                         {"b", at("1", 100, 100), false, errElsewhere, false},
		"another one, empty":                         {"b", nil, false, errElsewhere, false},
		"another one, further":                       {"b", at("1", 101, 100), false, errMovedOn, true},
		"another one, a later generation":            {"b", at("2", 0, 5), false, errMovedOn, true},
		"another one, an earlier generation":         {"b", at("0", 500, 500), false, errElsewhere, false},
		"another one, when the first stands still":   {"b", at("1", 99, 99), true, errMovedOn, true},
		"another one, empty, when it does as well":   {"b", nil, true, errMovedOn, true},
		"the same, with older data, when it does so": {"a", at("1", 99, 99), true, nil, true},
	} {
		control := newControl("k", nil, nil, time.Second, slog.New(slog.DiscardHandler))
		s := &servers{c: control, stall: time.Second}
		now := time.Unix(1000, 0)
		if err := s.judge("a", at("1", 100, 100), shown{}, now); err != nil {
			t.Fatal(err)
		}
		if c.stalled {
			now = now.Add(2 * time.Second)
		}
		epoch := control.epoch.Load()
		if err := s.judge(c.id, c.state, s.shown, now); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if voids := control.epoch.Load() != epoch; voids != c.voids {
			t.Errorf("%s: what is known is void: %v", name, voids)
		}
	}
}

// markAll writes the marks of the primaries as the daemon does.
func markAll(t *testing.T, c *servertest.RedisCluster, at lsn.LSN, nodes ...int) {
	t.Helper()
	for _, n := range nodes {
		self, err := clusternode.Parse(c.Nodes[n].ClusterNodes(t.Context()).Val())
		if err != nil {
			t.Fatal(err)
		}
		for tag := range self.Tags() {
			if err := c.Nodes[n].HSet(t.Context(), mapping.MarkKey("inv:", "shop", tag), "node", self.ID, "applied", at.Hex(), "end", at.Hex()).Err(); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
}

// A node of a cluster, on which the hash does not lie, comes back with data from before a
// change. The hash speaks of the change as applied.
func TestClusterNodeThatIsBackWithOldDataIsNotTrusted(t *testing.T) {
	cluster := servertest.Cluster(t)
	control := cluster.Owner(t, testControlKey)
	id, victim := 0, control
	for victim == control {
		id++
		victim = cluster.Owner(t, fmt.Sprintf("item:%d", id))
	}
	key := fmt.Sprintf("item:%d", id)
	markAll(t, cluster, 100, 0, 1, 2)
	b := newBenchWith(t, servertest.Postgres(t), cluster.Nodes[control])
	b.daemon.reach(100)
	c, err := Open(t.Context(), cluster.Client, b.pool, WithMappings(b.mappings), WithCodec(Raw))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	v := viewOf(b, c, "item")
	loads := 0
	get := func(want string) {
		t.Helper()
		s, err := v.Get(t.Context(), Vars{"id": id}, func(ctx context.Context, tx pgx.Tx) (string, error) {
			loads++
			return item(id)(ctx, tx)
		})
		if err != nil || s != want {
			t.Errorf("%q, %v; want %q", s, err, want)
		}
	}
	cached := func(want string) func() bool {
		return func() bool {
			before := loads
			get(want)
			return loads == before
		}
	}
	eventually(t, "reads are served from the cache", cached("one"))
	if err := cluster.Nodes[victim].Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	b.write(id, "two")
	if err := cluster.Client.Unlink(t.Context(), key).Err(); err != nil {
		t.Fatal(err)
	}
	markAll(t, cluster, 200, 0, 1, 2)
	b.daemon.reach(200)
	eventually(t, "the look", func() bool { return c.control.look().reached == 200 })
	eventually(t, "reads are served from the cache", cached("two"))
	cluster.Servers[victim].Kill()
	if err := cluster.Servers[victim].Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node answers, with the old value", func() bool { return cluster.Nodes[victim].Get(t.Context(), key).Val() != "" })
	for began := time.Now(); time.Since(began) < 3*time.Second; {
		get("two")
	}
	// The daemon applies it again.
	if err := cluster.Nodes[victim].Unlink(t.Context(), key).Err(); err != nil {
		t.Fatal(err)
	}
	markAll(t, cluster, 200, victim)
	eventually(t, "reads are served from the cache", cached("two"))
}
