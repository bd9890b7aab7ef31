package cache

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// newBenchOwnRedis has a Redis of its own, which the test may stop.
func newBenchOwnRedis(t *testing.T, args []string, options ...Option) (*bench, *localserver.Redis) {
	t.Helper()
	server := servertest.PrivateRedis(t, localserver.RedisOptions{Args: args})
	return newBenchWith(t, servertest.Postgres(t), servertest.RedisClient(t, server.URL()), options...), server
}

func TestRedisDownGoesToTheSource(t *testing.T) {
	b, server := newBenchOwnRedis(t, nil)
	v, kept, list := view(b, "item"), view(b, "kept"), view(b, "list")
	b.get(v, 1, "one")
	if err := server.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.write(1, "two")
	for range 2 * breakerFailures {
		b.get(v, 1, "two")
		b.get(kept, 1, "two")
		if s, err := list.Get(t.Context(), Vars{"shop": 1, "q": "x"}, item(1)); err != nil || s != "two" {
			t.Fatalf("%q, %v", s, err)
		}
	}
	if err := v.Invalidate(t.Context(), Vars{"id": 1}); err == nil {
		t.Error("an invalidation that reached nobody is no error")
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what is read is stored again", func() bool {
		b.get(v, 1, "two")
		return b.rdb.Exists(t.Context(), "item:1").Val() == 1
	})
}

// A Redis that hangs costs a read its timeout, and soon not even that.
func TestRedisThatHangsIsLeftAlone(t *testing.T) {
	b, server := newBenchOwnRedis(t, nil, WithRedisTimeout(50*time.Millisecond))
	v := view(b, "kept") // which asks Redis whatever the control hash says
	b.get(v, 1, "one")
	if err := server.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	b.get(v, 1, "one")
	if took := time.Since(begin); took >= 3*time.Second { // the timeout of go-redis, once
		t.Errorf("a read took %v, with a timeout of 50 ms and no retries", took)
	}
	for range breakerFailures {
		b.get(v, 1, "one")
	}
	b.c.redis.mu.Lock() // the poll counts as well
	failures := b.c.redis.failures
	b.c.redis.mu.Unlock()
	if !b.c.trouble.Load() || failures < breakerFailures {
		t.Errorf("the breaker is not open after %d failures", failures)
	}
	if err := server.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is read from again", func() bool {
		hits := counted(t, b.registry, "cache_reads_total", "hit")
		b.get(v, 1, "one")
		return counted(t, b.registry, "cache_reads_total", "hit") > hits
	})
}

// The caller of the one try gives up: another one tries then.
func TestBreakerDoesNotWaitForWhoHasGivenUp(t *testing.T) {
	var changes []bool
	b := breaker{pause: time.Second, onChange: func(open bool) { changes = append(changes, open) }}
	now := time.Now()
	for range breakerFailures {
		if !b.allow(now) {
			t.Fatal("it is open too early")
		}
		b.done(true, now)
	}
	if b.allow(now) || b.allow(now.Add(b.pause-1)) {
		t.Error("it lets calls through while it is open")
	}
	now = now.Add(b.pause)
	if !b.allow(now) || b.allow(now) {
		t.Error("it does not let one call through")
	}
	if now = now.Add(b.pause); !b.allow(now) { // of the last one nothing was heard
		t.Error("it stays shut")
	}
	b.done(false, now)
	if !b.allow(now) || len(changes) != 2 || !changes[0] || changes[1] {
		t.Errorf("after a success: %v", changes)
	}
}

func TestRedisWithoutMemoryReadsFromTheSource(t *testing.T) {
	b, _ := newBenchOwnRedis(t, []string{"--maxmemory-policy", "noeviction"})
	v := view(b, "item")
	b.get(v, 1, "one")
	if err := b.rdb.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	b.get(v, 1, "one") // a hit
	b.count("cache_reads_total", 1, "hit")
	for range 2 * breakerFailures {
		b.get(v, 2, "one") // which cannot be stored
	}
	if b.c.trouble.Load() {
		t.Error("an answer of Redis counts as none")
	}
	if err := b.rdb.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	b.get(v, 2, "one")
	b.get(v, 2, "one")
	b.count("cache_reads_total", 2, "hit")
}

// Who waits is told, the lease is given up, and nothing is left running.
func TestCloseEndsWhatRuns(t *testing.T) {
	b := newBench(t)
	v := view(b, "item")
	started := make(chan struct{})
	got := make(chan error)
	go func() {
		_, err := v.Get(t.Context(), Vars{"id": 1}, func(ctx context.Context, _ pgx.Tx) (string, error) {
			close(started)
			<-ctx.Done()
			return "", ctx.Err()
		})
		got <- err
	}()
	<-started
	if err := b.c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if n := b.rdb.Exists(t.Context(), "item:1").Val(); n != 0 {
		t.Error("the lease is still there")
	}
	// Its metrics make room for the next one's.
	c, err := Open(t.Context(), b.rdb, b.pool, WithMappings(b.mappings), WithRegisterer(b.registry), WithCodec(Raw))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), b.rdb, b.pool, WithMappings(b.mappings), WithRegisterer(b.registry)); err == nil || !strings.Contains(err.Error(), "WrapRegistererWith") {
		t.Errorf("%v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestEarlyRefresh(t *testing.T) {
	if early(&entry{freshUntil: 100_000, fields: " 018bcfe56800 10 0 -"}, 0) {
		t.Error("a value that is fresh for 100 s more and took 10 ms is refreshed")
	}
	refreshed := 0
	for range 1000 {
		if early(&entry{freshUntil: 10, fields: " 018bcfe56800 10 0 -"}, 0) {
			refreshed++
		}
	}
	if refreshed < 250 || refreshed > 500 { // 1/e of them
		t.Errorf("%d of 1000 readers refresh a value that is fresh for as long as it took to load", refreshed)
	}

	b := newBench(t)
	v := view(b, "item")
	b.get(v, 1, "one")
	b.write(1, "two")
	// It is about to end, and took long to load: somebody refreshes it while it is served.
	e := b.rdb.Get(t.Context(), "item:1").Val()
	fields := strings.SplitN(e[headerLen:], " ", 4)
	fields[2] = "60000"
	until := string(appendMillis(nil, time.Now().Add(time.Minute).UnixMilli()))
	if err := b.rdb.Set(t.Context(), "item:1", e[:freshAt]+until+until+e[stampAt:headerLen]+strings.Join(fields, " "), time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is refreshed", func() bool {
		s, err := v.Get(t.Context(), Vars{"id": 1}, item(1))
		return err == nil && s == "two"
	})
	b.count("cache_reads_total", 1, "miss")
}
