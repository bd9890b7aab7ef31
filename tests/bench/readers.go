package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	goredis "github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

// readersMappings is what the readers' measurements cache. The daemon runs with it, so
// that reads are proved to be within their budget, as in use.
const readersMappings = `version: 1
source:
  url: %s
  slot: {name: %s, create_if_not_exists: true}
  publication: {name: readers, create_if_not_exists: true}
redis: {url: "%s", stream_max_length: 4096, scan_rate: %d}
classes:
  critical: {staleness: 1s}
keys:
  user: {key: "reader:{id}", class: critical, ttl: 1h}
  page: {key: "page:{id}", class: critical, ttl: 1h}
mappings:
  - {table: public.users, keys: [user], dependents: ["user:{id}"]}
  - {table: public.big, keys: [page]}
`

// value is what a reader caches: as large as a small JSON document.
var value = strings.Repeat("v", 200)

// readers is one measurement's daemon and clients.
type readers struct {
	b        *bench
	mappings string
	pool     *pgxpool.Pool
}

// readers measures the reader's library against the calls that an application would make
// by hand.
func (b *bench) readers(ctx context.Context) (err error) {
	r, stop, err := b.startReaders(ctx, 1_000_000)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	fmt.Printf("\nreaders: values of %d bytes\n\n", len(value))
	for _, measure := range []func(context.Context) error{r.hits, r.misses, r.stampede, r.processes} {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) startReaders(ctx context.Context, scanRate int) (r *readers, stop func() error, err error) {
	b.slots++
	slot := fmt.Sprintf("bench_%d", b.slots)
	path := filepath.Join(b.dir, slot+".yaml")
	text := fmt.Sprintf(readersMappings, b.pg.URL(), slot, b.redis.URL(), scanRate)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, nil, err
	}
	p, err := b.startDaemonWith(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	end := func() error { defer b.dropSlot(slot); return p.stop() }
	if err := b.waitApplied(ctx, p, slot, 0); err != nil {
		return nil, nil, errors.Join(err, end())
	}
	pool, err := pgxpool.New(ctx, b.pg.URL())
	if err != nil {
		return nil, nil, errors.Join(err, end())
	}
	return &readers{b, path, pool}, func() error { pool.Close(); return end() }, nil
}

// open is a client of the library as in an application of its own.
func (r *readers) open(ctx context.Context, rdb *goredis.Client, pool *pgxpool.Pool, options ...cache.Option) (*cache.Client, *cache.View[string], error) {
	c, err := cache.Open(ctx, rdb, pool, append(options, cache.WithMappings(r.mappings), cache.WithCodec(cache.Raw))...)
	if err != nil {
		return nil, nil, err
	}
	v, err := cache.Family[string](c, "user")
	return c, v, err
}

func load(ctx context.Context, tx pgx.Tx) (string, error) {
	var name string
	err := tx.QueryRow(ctx, `SELECT name FROM users WHERE id = 1`).Scan(&name)
	return value, err
}

// hits compares a hit with the bare GET of a value of the same size.
func (r *readers) hits(ctx context.Context) error {
	if err := r.b.rdb.Set(ctx, "bare", value, 0).Err(); err != nil {
		return err
	}
	c, view, err := r.open(ctx, r.b.rdb, r.pool)
	if err != nil {
		return err
	}
	defer c.Close()
	l1, l1View, err := r.open(ctx, r.b.rdb, r.pool, cache.WithL1(1000))
	if err != nil {
		return err
	}
	defer l1.Close()
	vars := cache.Vars{"id": 1}
	var failed error
	bench := func(read func() error) testing.BenchmarkResult {
		return testing.Benchmark(func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := read(); err != nil {
					failed = err
				}
			}
		})
	}
	loads := 0
	counted := func(ctx context.Context, tx pgx.Tx) (string, error) { loads++; return load(ctx, tx) }
	get := func(v *cache.View[string]) func() error {
		return func() error { _, err := v.Get(ctx, vars, counted); return err }
	}
	bare := func() error { return r.b.rdb.Get(ctx, "bare").Err() }
	var gets, hits, local []testing.BenchmarkResult
	for range r.b.runs {
		gets = append(gets, bench(bare))
		hits = append(hits, bench(get(view)))
		local = append(local, bench(get(l1View)))
	}
	if failed != nil {
		return failed
	}
	median := func(rs []testing.BenchmarkResult) testing.BenchmarkResult {
		slices.SortFunc(rs, func(a, b testing.BenchmarkResult) int { return int(a.NsPerOp() - b.NsPerOp()) })
		return rs[len(rs)/2]
	}
	g, h, l := median(gets), median(hits), median(local)
	fmt.Println("| a hit | ns | x bare | allocations | more than bare |")
	fmt.Println("|---|---|---|---|---|")
	for _, row := range []struct {
		name string
		r    testing.BenchmarkResult
	}{{"go-redis GET", g}, {"Get, from Redis", h}, {"Get, from the L1", l}} {
		fmt.Printf("| %s | %d | %.3f | %d | %+d |\n", row.name, row.r.NsPerOp(), float64(row.r.NsPerOp())/float64(g.NsPerOp()),
			row.r.AllocsPerOp(), row.r.AllocsPerOp()-g.AllocsPerOp())
	}
	fmt.Printf("loads meanwhile: %d\n", loads)
	return nil
}

// misses counts the round trips of a miss, with servers that are far away.
func (r *readers) misses(ctx context.Context) (err error) {
	const oneWay = 5 * time.Millisecond
	rdb, pool, closeAll, err := r.far(ctx, oneWay)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	c, view, err := r.open(ctx, rdb, pool)
	if err != nil {
		return err
	}
	defer c.Close()
	byHand := func() error {
		if err := rdb.Get(ctx, "cold").Err(); !errors.Is(err, goredis.Nil) {
			return err
		}
		var name string
		if err := pool.QueryRow(ctx, `SELECT name FROM users WHERE id = 1`).Scan(&name); err != nil {
			return err
		}
		return rdb.Set(ctx, "cold", value, time.Hour).Err()
	}
	vars := cache.Vars{"id": 2}
	library := func() error { _, err := view.Get(ctx, vars, load); return err }
	measure := func(key string, miss func() error) (float64, error) {
		var times []time.Duration
		for i := range 12 {
			if err := r.b.rdb.Unlink(ctx, key).Err(); err != nil {
				return 0, err
			}
			began := time.Now()
			if err := miss(); err != nil {
				return 0, err
			}
			if i > 1 { // statements and scripts are known by then
				times = append(times, time.Since(began))
			}
		}
		slices.Sort(times)
		return float64(times[len(times)/2]) / float64(2*oneWay), nil
	}
	hand, err := measure("cold", byHand)
	if err != nil {
		return err
	}
	own, err := measure("reader:2", library)
	if err != nil {
		return err
	}
	fmt.Printf("\na miss, servers %v away: GET, query and SET %.1f round trips, Get %.1f: %.1f more\n", 2*oneWay, hand, own, own-hand)
	return nil
}

// far gives clients whose servers are far away.
func (r *readers) far(ctx context.Context, oneWay time.Duration) (*goredis.Client, *pgxpool.Pool, func() error, error) {
	toRedis, err := delay(net.JoinHostPort("127.0.0.1", strconv.Itoa(r.b.redis.Port())), oneWay)
	if err != nil {
		return nil, nil, nil, err
	}
	toPostgres, err := delay(net.JoinHostPort("127.0.0.1", strconv.Itoa(r.b.pg.Port())), oneWay)
	if err != nil {
		return nil, nil, nil, errors.Join(err, toRedis.close())
	}
	closeAll := func() error { return errors.Join(toRedis.close(), toPostgres.close()) }
	o, err := goredis.ParseURL(r.b.redis.URL())
	if err != nil {
		return nil, nil, nil, errors.Join(err, closeAll())
	}
	o.Addr = toRedis.addr()
	u, err := url.Parse(r.b.pg.URL())
	if err != nil {
		return nil, nil, nil, errors.Join(err, closeAll())
	}
	u.Host = toPostgres.addr()
	pool, err := pgxpool.New(ctx, u.String())
	if err != nil {
		return nil, nil, nil, errors.Join(err, closeAll())
	}
	rdb := goredis.NewClient(o)
	return rdb, pool, func() error { pool.Close(); return errors.Join(rdb.Close(), closeAll()) }, nil
}

const crowd = 500

// stampede lets a crowd read one cold key at once.
func (r *readers) stampede(ctx context.Context) error {
	c, view, err := r.open(ctx, r.b.rdb, r.pool)
	if err != nil {
		return err
	}
	defer c.Close()
	var times []time.Duration
	for range r.b.runs {
		if err := r.b.rdb.Unlink(ctx, "reader:3").Err(); err != nil {
			return err
		}
		loads, took, err := rush(ctx, view)
		if err != nil {
			return err
		}
		fmt.Printf("%d readers of one cold key, one process: %d load(s), all answered after %v\n", crowd, loads, took.Round(100*time.Microsecond))
		times = append(times, took)
	}
	return nil
}

// rush reads the key reader:3 with a crowd, and counts the loads, each of 20 ms.
func rush(ctx context.Context, view *cache.View[string]) (loads int64, took time.Duration, err error) {
	var n atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, crowd)
	start := make(chan struct{})
	for range crowd {
		wg.Go(func() {
			<-start
			_, err := view.Get(ctx, cache.Vars{"id": 3}, func(ctx context.Context, tx pgx.Tx) (string, error) {
				n.Add(1)
				_, err := tx.Exec(ctx, `SELECT pg_sleep(0.02)`)
				return value, err
			})
			errs <- err
		})
	}
	began := time.Now()
	close(start)
	wg.Wait()
	took = time.Since(began)
	for range crowd {
		if err := <-errs; err != nil {
			return 0, 0, err
		}
	}
	return n.Load(), took, nil
}

const crowdCommand = "crowd"

// processes lets two processes' crowds read one cold key at once.
func (r *readers) processes(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := r.b.rdb.Unlink(ctx, "reader:3").Err(); err != nil {
		return err
	}
	at := strconv.FormatInt(time.Now().Add(time.Second).UnixNano(), 10)
	var outs [2]strings.Builder
	var cmds []*exec.Cmd
	for i := range outs {
		cmd := exec.CommandContext(ctx, self, crowdCommand, r.mappings, r.b.pg.URL(), r.b.redis.URL(), at)
		cmd.Stdout, cmd.Stderr = &outs[i], os.Stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		cmds = append(cmds, cmd)
	}
	var total int64
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			return err
		}
		n, err := strconv.ParseInt(strings.TrimSpace(outs[i].String()), 10, 64)
		if err != nil {
			return err
		}
		total += n
	}
	fmt.Printf("%d readers of one cold key in each of two processes: %d load(s)\n", crowd, total)
	return nil
}

// runCrowd is one of these processes.
func runCrowd(args []string) error {
	if len(args) != 4 {
		return errors.New("want: mappings postgres redis start")
	}
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, args[1])
	if err != nil {
		return err
	}
	defer pool.Close()
	o, err := goredis.ParseURL(args[2])
	if err != nil {
		return err
	}
	rdb := goredis.NewClient(o)
	defer rdb.Close()
	at, err := strconv.ParseInt(args[3], 10, 64)
	if err != nil {
		return err
	}
	c, view, err := (&readers{mappings: args[0]}).open(ctx, rdb, pool)
	if err != nil {
		return err
	}
	defer c.Close()
	time.Sleep(time.Until(time.Unix(0, at)))
	loads, _, err := rush(ctx, view)
	fmt.Println(loads)
	return err
}
