package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// A Redis that comes back with older data than the client's last look at the control hash is
// not trusted on the strength of that look.
func TestRedisThatIsBackWithOldDataIsNotTrusted(t *testing.T) {
	rd := servertest.PrivateRedis(t, localserver.RedisOptions{})
	b := newBenchWith(t, servertest.Postgres(t), servertest.RedisClient(t, rd.URL()))
	v := view(b, "item")
	b.get(v, 1, "one")
	b.daemon.set("ok", 2*v.f.Class.Staleness) // the copy is older than the class allows
	if err := b.rdb.Save(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	b.write(1, "two")
	b.invalidate("item:1")
	b.daemon.set("ok", 0)
	b.seen()
	b.get(v, 1, "two")
	b.daemon.away(true)
	rd.Kill()
	if err := rd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		b.get(v, 1, "two")
	}
	items, err := v.GetMany(t.Context(), []Vars{{"id": 1}}, func(ctx context.Context, tx pgx.Tx, missing []Vars) ([]Item[string], error) {
		s, err := item(1)(ctx, tx)
		return []Item[string]{{Value: s, Found: true}}, err
	})
	if err != nil || items[0].Value != "two" {
		t.Errorf("%v, %v", items, err)
	}
	if raw := b.rdb.Get(t.Context(), "item:1").Val(); raw == "" {
		t.Error("Redis has not come back with the old value")
	}
}

// blackhole is an address at which connecting neither succeeds nor fails.
func blackhole(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for range 10 { // its queue is full soon, for nobody accepts
		conn, err := net.DialTimeout("tcp", addr, 300*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Fatal("connecting does not hang")
	return ""
}

// A Redis whose packets are lost costs a reader a timeout or two, not its whole request; and
// after a few of them nothing.
func TestRedisThatSwallowsPacketsIsLeftAlone(t *testing.T) {
	b := newBench(t)
	rdb := redis.NewClient(&redis.Options{Addr: blackhole(t)})
	t.Cleanup(func() { _ = rdb.Close() })
	c, err := Open(t.Context(), rdb, b.pool, WithMappings(b.mappings), WithCodec(Raw), WithRedisTimeout(100*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	v := viewOf(b, c, "kept") // which trusts the cache without a look at the control hash
	for range 2 * breakerFailures {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // more than some timeouts take, less than go-redis' own
		s, err := v.Get(ctx, Vars{"id": 1}, item(1))
		cancel()
		if s != "one" || err != nil {
			t.Fatalf("%q, %v", s, err)
		}
	}
	eventually(t, "Redis is left alone", func() bool { return !c.redisUp(time.Now()) })
}

// A client that follows Sentinel reads from the new primary after a failover, and no longer from
// the old one, on whatever connection.
func TestFailoverIsFollowed(t *testing.T) {
	primary, replica := servertest.PrivateRedis(t, localserver.RedisOptions{}), servertest.PrivateRedis(t, localserver.RedisOptions{})
	pc, rc := servertest.RedisClient(t, primary.URL()), servertest.RedisClient(t, replica.URL())
	if err := rc.Do(t.Context(), "replicaof", "127.0.0.1", primary.Port()).Err(); err != nil {
		t.Fatal(err)
	}
	b := newBenchWith(t, servertest.Postgres(t), pc)
	addr := servertest.Sentinel(t, primary)
	follows := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: servertest.SentinelGroup, SentinelAddrs: []string{addr}})
	t.Cleanup(func() { _ = follows.Close() })
	b.rdb = follows
	b.c, b.registry = b.open()
	v := view(b, "item")
	b.get(v, 1, "one")
	if pc.Exists(t.Context(), "item:1").Val() != 1 {
		t.Fatal("it is not stored on the primary")
	}
	sentinel := redis.NewSentinelClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { _ = sentinel.Close() })
	eventually(t, "the sentinel fails over", func() bool { return sentinel.Failover(t.Context(), servertest.SentinelGroup).Err() == nil })
	eventually(t, "the replica is the primary", func() bool {
		a := sentinel.GetMasterAddrByName(t.Context(), servertest.SentinelGroup).Val()
		return len(a) == 2 && a[1] == fmt.Sprint(replica.Port()) && rc.Set(t.Context(), "probe", 1, 0).Err() == nil
	})
	b.daemon.mu.Lock()
	b.daemon.rdb = rc
	b.daemon.mu.Unlock()
	eventually(t, "a value is stored on the new primary", func() bool {
		s, err := v.Get(t.Context(), Vars{"id": 2}, item(2))
		return err == nil && s == "one" && rc.Exists(t.Context(), "item:2").Val() == 1
	})
	b.write(2, "two")
	if err := rc.Unlink(t.Context(), "item:2").Err(); err != nil {
		t.Fatal(err)
	}
	b.get(v, 2, "two")
}

func TestTrackedConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var all tracker
	dial := all.dialer(func(ctx context.Context, network, addr string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	})
	to := func() net.Conn {
		conn, err := dial(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, ok := conn.(syscall.Conn); !ok {
			t.Error("the client cannot see when the server has closed it")
		}
		return conn
	}
	old := []net.Conn{to(), to()}
	if err := old[1].Close(); err != nil { // by the client's own will
		t.Error(err)
	}
	if _, err := old[0].Write([]byte("x")); err != nil {
		t.Error(err)
	}
	all.closeAll()
	if _, err := old[0].Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a connection that was dropped: %v", err)
	}
	if _, err := to().Write([]byte("x")); err != nil {
		t.Error(err)
	}
}

// What the client dials by itself, ahead of use, is tracked as well: such connections are made
// before anything could be added to the client.
func TestTrackedConnectionsAheadOfUse(t *testing.T) {
	pc := servertest.RedisClient(t, servertest.Redis(t).URL)
	const ahead = 4
	for range 200 {
		o := *pc.Options()
		o.PoolSize, o.MinIdleConns = 10, ahead
		var dialed atomic.Int64
		dial := o.Dialer
		o.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dialed.Add(1)
			return dial(ctx, network, addr)
		}
		given := redis.NewClient(&o)
		judge := newControl("k", nil, nil, time.Second, slog.New(slog.DiscardHandler)).servers
		_, disconnect := connect(given, time.Second, judge)
		eventually(t, "both clients have dialed", func() bool { return dialed.Load() == 2*ahead })
		eventually(t, "all are tracked", func() bool {
			judge.conns.mu.Lock()
			defer judge.conns.mu.Unlock()
			return len(judge.conns.conns) == ahead
		})
		if err := errors.Join(disconnect(), given.Close()); err != nil {
			t.Fatal(err)
		}
	}
}
