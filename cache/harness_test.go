package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/keytype"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

const testMappings = `version: 1
source:
  url: ${DATABASE_URL}
  slot: {name: shop}
redis: {url: "${REDIS_URL}", stream_max_length: 1000}
classes:
  critical: {staleness: 1m}
  tight: {staleness: 400ms}
  slow: {staleness: 1m, linger: 10s}
  kept: {staleness: 1m, fail_safe: 1h, on_doubt: serve}
  safe: {staleness: 400ms, fail_safe: 1h}
keys:
  item: {key: "item:{id}", class: critical, ttl: 10m}
  quick: {key: "quick:{id}", class: tight, ttl: 10m}
  page: {key: "page:{id}", class: slow, ttl: 10m, on_invalidate: soft, stale_for: 30s}
  kept: {key: "kept:{id}", class: kept, ttl: 10m}
  safe: {key: "safe:{id}", class: safe, ttl: 10m}
  soft: {key: "soft:{id}", class: critical, ttl: 10m, on_invalidate: soft, stale_for: 30s}
  fast: {key: "fast:{shop}:{version}:{q}", version: "fast:{shop}", class: tight, ttl: 10m}
  never: {key: "never:{id}", class: critical, negative_ttl: 0s}
  list: {key: "list:{shop}:{version}:{q}", version: "list:{shop}", class: critical, ttl: 10m}
mappings:
  - {table: public.items, keys: [item, quick, page, kept, never, safe, soft, {list: {shop: id}}, {fast: {shop: id}}]}
  - {table: public.sellers, dependents: ["seller:{id}"]}
`

// bench is a source, a Redis, and a client of both. The test plays the daemon.
type bench struct {
	testing.TB
	db       *servertest.Database
	pool     *pgxpool.Pool
	rdb      *redis.Client
	mappings string
	registry *prometheus.Registry
	c        *Client
	daemon   *daemon
}

// daemon publishes the control hash all the time, as the real one does.
type daemon struct {
	rdb *redis.Client

	mu           sync.Mutex
	state        string
	age          time.Duration // of what is applied
	applied, end lsn.LSN
	hold         bool // it publishes nothing
	stamps       mapping.Stamps
}

func startDaemon(t testing.TB, db *servertest.Database, rdb *redis.Client, mappings string) *daemon {
	t.Helper()
	file, err := mapping.LoadOffline(mappings)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := mapping.Compile(file)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{rdb: rdb, applied: 16, end: 24, stamps: mapping.Stamps{Revision: mapping.NewStamp(), Families: map[string]mapping.Stamp{}}}
	follow(t, &d.stamps, db, plan)
	d.set("ok", 0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				d.publish()
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
	return d
}

// follow begins to follow all families of a plan, with the types of now.
func follow(t testing.TB, s *mapping.Stamps, db *servertest.Database, plan *mapping.Plan) {
	t.Helper()
	types := keyTypesOf(t, db, plan)
	for _, f := range plan.Families() {
		s.Families[f.Name] = mapping.Stamp{Stamp: mapping.NewStamp(), Terms: f.Terms(types)}
	}
	s.Entities = plan.EntityTerms(types)
}

func keyTypesOf(t testing.TB, db *servertest.Database, plan *mapping.Plan) mapping.KeyTypes {
	t.Helper()
	types, err := keytype.Read(t.Context(), db.Conn(t), plan)
	if err != nil {
		t.Fatal(err)
	}
	return types.KeyTypes()
}

// set says what is published from now on. It is in Redis when set returns.
func (d *daemon) set(state string, age time.Duration) {
	d.change(func() { d.state, d.age = state, age })
}

// restamp changes what is followed.
func (d *daemon) restamp(change func(*mapping.Stamps)) {
	d.change(func() {
		d.stamps.Revision = mapping.NewStamp()
		change(&d.stamps)
	})
}

// stampAnew begins to follow families again.
func (d *daemon) stampAnew(families ...string) {
	d.restamp(func(s *mapping.Stamps) {
		for _, name := range families {
			stamp := s.Families[name]
			stamp.Stamp = mapping.NewStamp()
			s.Families[name] = stamp
		}
	})
}

// reach says that everything up to there is applied.
func (d *daemon) reach(end lsn.LSN) { d.change(func() { d.applied, d.end = end, end }) }

// away stops publishing, or begins again.
func (d *daemon) away(hold bool) { d.change(func() { d.hold = hold }) }

func (d *daemon) change(f func()) {
	d.mu.Lock()
	f()
	d.mu.Unlock()
	d.publish()
}

func (d *daemon) publish() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hold {
		return
	}
	text, err := d.stamps.Encode()
	if err != nil {
		panic(err)
	}
	pipe := d.rdb.TxPipeline()
	pipe.Set(context.Background(), testStampsKey, text, 0)
	pipe.HSet(context.Background(), testControlKey, "stamps", d.stamps.Revision, "state", d.state, "fresh_as_of", fmt.Sprintf("%016x", time.Now().Add(-d.age).UnixMicro()),
		"applied", d.applied.Hex(), "end", d.end.Hex(), "sent", d.applied.Hex())
	_, _ = pipe.Exec(context.Background()) // Redis may be away: then nothing is published
}

// doubt is why what is cached of the family is not proved now; empty when it is.
func (b *bench) doubt(v *View[string]) string {
	_, why := b.c.control.look().proves(b.c.clock, v.f.Class, time.Now(), 0)
	return why
}

func newBench(t testing.TB, options ...Option) *bench {
	t.Helper()
	return newBenchOn(t, servertest.Postgres(t), options...)
}

func newBenchOn(t testing.TB, db *servertest.Database, options ...Option) *bench {
	t.Helper()
	return newBenchWith(t, db, servertest.Redis(t).Client(t), options...)
}

func newBenchWith(t testing.TB, db *servertest.Database, rdb *redis.Client, options ...Option) *bench {
	t.Helper()
	b := &bench{TB: t, db: db, rdb: rdb}
	b.db.Exec(t, `CREATE TABLE items (id int PRIMARY KEY, v text)`, `CREATE TABLE sellers (id text PRIMARY KEY)`, `INSERT INTO items SELECT n, 'one' FROM generate_series(1, 20) n`)
	b.pool = b.connect()
	b.mappings = filepath.Join(t.TempDir(), "mappings.yaml")
	if err := os.WriteFile(b.mappings, []byte(testMappings), 0o600); err != nil {
		t.Fatal(err)
	}
	b.daemon = startDaemon(t, b.db, b.rdb, b.mappings)
	b.c, b.registry = b.open(options...)
	return b
}

func (b *bench) connect() *pgxpool.Pool {
	b.Helper()
	pool, err := pgxpool.New(b.Context(), b.db.URL)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	return pool
}

// open makes one more client, as in another process.
func (b *bench) open(options ...Option) (*Client, *prometheus.Registry) {
	b.Helper()
	registry := prometheus.NewRegistry()
	c, err := Open(b.Context(), b.rdb, b.pool, append([]Option{WithMappings(b.mappings), WithRegisterer(registry), WithCodec(Raw)}, options...)...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.Close(); err != nil {
			b.Error(err)
		}
	})
	return c, registry
}

func (b *bench) write(id int, value string) {
	b.Helper()
	b.db.Exec(b.TB, fmt.Sprintf(`INSERT INTO items VALUES (%d, '%s') ON CONFLICT (id) DO UPDATE SET v = excluded.v`, id, value))
}

// invalidate is what the daemon does for a key.
func (b *bench) invalidate(key string) {
	b.Helper()
	if err := b.rdb.Unlink(b.Context(), key).Err(); err != nil {
		b.Fatal(err)
	}
}

func view(b *bench, family string) *View[string] {
	b.Helper()
	return viewOf(b, b.c, family)
}

func viewOf(b *bench, c *Client, family string) *View[string] {
	b.Helper()
	v, err := Family[string](c, family)
	if err != nil {
		b.Fatal(err)
	}
	return v
}

// item is an ordinary loader.
func item(id int) func(context.Context, pgx.Tx) (string, error) {
	return func(ctx context.Context, tx pgx.Tx) (v string, err error) {
		err = tx.QueryRow(ctx, `SELECT v FROM items WHERE id = $1`, id).Scan(&v)
		if errors.Is(err, pgx.ErrNoRows) {
			err = ErrNotFound
		}
		return v, err
	}
}

func (b *bench) get(v *View[string], id int, want string, options ...GetOption) {
	b.Helper()
	got, err := v.Get(b.Context(), Vars{"id": id}, item(id), options...)
	if err != nil || got != want {
		b.Fatalf("%s %d: %q, %v, want %q", v.f.Name, id, got, err, want)
	}
}

// counted is the sum of a metric's children that have all these label values.
func counted(t testing.TB, registry *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if has(m, labels) {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func has(m *dto.Metric, labels []string) bool {
	var values []string
	for _, l := range m.GetLabel() {
		values = append(values, l.GetValue())
	}
	for _, l := range labels {
		if !strings.Contains("\x00"+strings.Join(values, "\x00")+"\x00", "\x00"+l+"\x00") {
			return false
		}
	}
	return true
}

func (b *bench) count(name string, want float64, labels ...string) {
	b.Helper()
	if got := counted(b, b.registry, name, labels...); got != want {
		b.Errorf("%s%v is %v, want %v", name, labels, got, want)
	}
}

// tap sees what a Redis client is answered before its caller does.
type tap struct {
	answered atomic.Pointer[func(redis.Cmder)]
}

func (h *tap) set(f func(redis.Cmder)) { h.answered.Store(&f) }

// once waits for a command on a key, does something, and lets the caller go on.
func (h *tap) once(name, key string, do func()) {
	var done atomic.Bool
	h.set(func(cmd redis.Cmder) {
		args := cmd.Args()
		for _, arg := range args[1:] {
			if cmd.Name() == name && arg == key && done.CompareAndSwap(false, true) {
				do()
				return
			}
		}
	})
}

func (h *tap) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *tap) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if f := h.answered.Load(); f != nil {
			(*f)(cmd)
		}
		return err
	}
}

func (h *tap) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		if f := h.answered.Load(); f != nil {
			for _, cmd := range cmds {
				(*f)(cmd)
			}
		}
		return err
	}
}

// tapped is another client, whose answers from Redis the test holds up.
func (b *bench) tapped(options ...Option) (*Client, *tap) {
	b.Helper()
	h := &tap{}
	c, registry := b.open(append(options, WithRedisTimeout(0))...)
	c.rdb.AddHook(h)
	b.c, b.registry = c, registry
	return c, h
}

// seen waits until a client knows what the daemon publishes from now on.
func (b *bench) seen() {
	b.Helper()
	before := time.Now()
	eventually(b, "the client looks at the control hash", func() bool { s := b.c.control.look(); return s != nil && s.asked.After(before) })
}

// gated is a loader that tells when it has read, and returns when it is let go.
type gated struct {
	read chan string
	done chan struct{}
}

func newGated() *gated { return &gated{make(chan string), make(chan struct{})} }

func (g *gated) load(id int) func(context.Context, pgx.Tx) (string, error) {
	return func(ctx context.Context, tx pgx.Tx) (string, error) {
		v, err := item(id)(ctx, tx)
		g.read <- v
		<-g.done
		return v, err
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond) // a condition is polled, nothing depends on the time
	}
}
