package protocol

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/keytype"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

func TestMain(m *testing.M) { servertest.VerifyMain(m) }

// lease is longer than any case; those in which one runs out let it run out.
const lease = time.Minute

// world is a source and a Redis, in which the test plays the daemon.
type world struct {
	db      *servertest.Database
	rdb     *redis.Client
	url     string
	file    *mapping.File
	plan    *mapping.Plan
	control string
	stamps  atomic.Pointer[mapping.Stamps] // whose families are followed
	scripts map[string]string              // by file name without .lua
	said    atomic.Pointer[published]      // nil for nothing
}

func newWorld(t *testing.T) *world {
	t.Helper()
	redisDB := servertest.Redis(t)
	w := &world{db: servertest.Postgres(t), rdb: redisDB.Client(t), url: redisDB.URL, scripts: make(map[string]string)}
	w.db.Exec(t, `CREATE TABLE items (id int PRIMARY KEY, v text, ok boolean)`, `CREATE TABLE sellers (id text PRIMARY KEY)`,
		`CREATE EXTENSION IF NOT EXISTS citext`, `CREATE DOMAIN code AS char(6)`, `CREATE TYPE mood AS ENUM ('new', 'so so')`,
		`CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`,
		typedTable())
	yaml, err := os.ReadFile(filepath.Join("testdata", "mappings.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if w.file, err = mapping.Parse("mappings.yaml", []byte(typedMappings(string(yaml))), mapping.Env{AllowUnset: true}); err != nil {
		t.Fatal(err)
	}
	if w.plan, err = mapping.Compile(w.file); err != nil {
		t.Fatal(err)
	}
	w.control = w.file.Redis.Prefix + "source:{" + w.file.Source.Slot.Name + "}"
	for _, dir := range []string{"cache", "sink"} {
		files, err := filepath.Glob(filepath.Join("..", "..", dir, "lua", "*.lua"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no scripts in %s: %v", dir, err)
		}
		for _, name := range files {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			w.scripts[strings.TrimSuffix(filepath.Base(name), ".lua")] = string(text)
		}
	}
	plan, err := mapping.Compile(w.file)
	if err != nil {
		t.Fatal(err)
	}
	w.follow(t, plan)
	w.publish(t, "ok", 0)
	w.heartbeat(t)
	return w
}

// follow begins to follow all families of a plan: what was cached before is not to be
// believed any more.
func (w *world) follow(t *testing.T, plan *mapping.Plan) {
	t.Helper()
	conn := w.db.Conn(t)
	read, err := keytype.Read(t.Context(), conn, plan)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	types := read.KeyTypes()
	s := &mapping.Stamps{Revision: mapping.NewStamp(), Families: map[string]mapping.Stamp{}, Entities: plan.EntityTerms(types)}
	for _, f := range plan.Families() {
		s.Families[f.Name] = mapping.Stamp{Stamp: mapping.NewStamp(), Terms: f.Terms(types)}
	}
	w.stamps.Store(s)
	if err := w.say(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// published is what the daemon says of itself.
type published struct {
	state  string
	behind time.Duration
}

// publish has the control hash say so: at once, and all the time.
func (w *world) publish(t *testing.T, state string, behind time.Duration) {
	t.Helper()
	w.said.Store(&published{state, behind})
	if err := w.say(context.WithoutCancel(t.Context())); err != nil { // also after a case, whose context has ended
		t.Fatal(err)
	}
}

func (w *world) say(ctx context.Context) error {
	said := w.said.Load()
	if said == nil {
		return nil
	}
	low := strings.Repeat("0", 15) + "1"
	stamps := w.stamps.Load()
	text, err := stamps.Encode()
	if err != nil {
		return err
	}
	p := w.rdb.TxPipeline()
	p.Set(ctx, mapping.StampsKey(w.file.Redis.Prefix, w.file.Source.Slot.Name), text, 0)
	p.HSet(ctx, w.control, "stamps", stamps.Revision, "state", said.state, "fresh_as_of", fmt.Sprintf("%016x", time.Now().Add(-said.behind).UnixMicro()),
		"applied", low, "end", low, "sent", low)
	_, err = p.Exec(ctx)
	return err
}

// heartbeat is the daemon's: what it says stays fresh, until the end of the test.
func (w *world) heartbeat(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
				if err := w.say(ctx); err != nil && ctx.Err() == nil {
					t.Errorf("the daemon's heartbeat: %v", err)
				}
			}
		}
	}()
	t.Cleanup(func() { stop(); <-ended })
}

// write commits a row; it does not invalidate.
func (w *world) write(t *testing.T, id int, v string) {
	t.Helper()
	conn := w.db.Conn(t)
	if _, err := conn.Exec(t.Context(), `INSERT INTO items VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET v = excluded.v`, id, v); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (w *world) unlink(t *testing.T, key string) {
	t.Helper()
	if err := w.rdb.Unlink(t.Context(), key).Err(); err != nil {
		t.Fatal(err)
	}
}

// run calls a script on one key.
func (w *world) run(t *testing.T, script, key string, args ...any) any {
	t.Helper()
	answer, err := w.rdb.Eval(t.Context(), w.scripts[script], []string{key}, args...).Result()
	if err != nil {
		t.Fatalf("%s.lua: %v", script, err)
	}
	return answer
}

// soften marks a value as stale, as the daemon does: it may be served so much longer.
func (w *world) soften(t *testing.T, key string, serve time.Duration) {
	t.Helper()
	w.run(t, "soft", key, 0, serve.Milliseconds())
}

// raw is what lies at the key; "" for nothing.
func (w *world) raw(t *testing.T, key string) string {
	t.Helper()
	raw, err := w.rdb.Get(t.Context(), key).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		t.Fatal(err)
	}
	return raw
}

// entry is an entry in parts, by the offsets of docs/protocol.md.
type entry struct {
	Magic, Kind, Holder, Deadline, Fresh, Stale, Stamp string
	Fields, Payload                                    string
}

func (w *world) entry(t *testing.T, key string) entry {
	t.Helper()
	raw := w.raw(t, key)
	if raw == "" {
		return entry{}
	}
	if len(raw) < 73 {
		t.Fatalf("%q is no entry", raw)
	}
	e := entry{Magic: raw[:4], Kind: raw[4:5], Holder: raw[5:21], Deadline: raw[21:33], Fresh: raw[33:45], Stale: raw[45:57], Stamp: raw[57:73]}
	e.Fields, e.Payload, _ = strings.Cut(raw[73:], "\n")
	return e
}

// kind is L, V or N; "" where there is nothing.
func (w *world) kind(t *testing.T, key, want string) {
	t.Helper()
	if got := w.entry(t, key).Kind; got != want {
		t.Fatalf("at %s lies %q, want %q", key, got, want)
	}
}

const nobody = "0000000000000000"

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}
