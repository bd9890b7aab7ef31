// Package consistency is the harness that holds the project to its promise: real
// Postgres, real Redis, the built daemon as a process of its own, many readers and
// writers, stopped at the worst moments. It checks that
//
//  1. no read returns a state that was replaced longer ago than its class allows
//     (history_test.go says exactly when a read is called stale),
//  2. once everything is applied, every cached value equals its row (settled_test.go),
//  3. with read-after-write tokens, each session's history of a row is linearizable
//     (session_test.go),
//  4. a key is loaded once at a time, in the whole fleet of readers (stampede_test.go).
//
// The same harness runs ways of caching that are known to be wrong (naive_test.go), each
// at the moment where it fails, and the project with one bug planted in it at a time
// (planted_test.go). All of them must be caught, or the harness proves nothing.
//
// In `go test ./...` it runs for seconds; `make consistency` sets CDC_CONSISTENCY=long, and
// `make planted` CDC_CONSISTENCY=planted.
package consistency

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

func TestMain(m *testing.M) {
	servertest.VerifyMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(binaryDir) // empty when no test has built it
		os.Exit(code)
	}))
}

// patience is how long a condition may take on a slow machine before the test gives up.
const patience = 60 * time.Second

// longForm says that there are minutes, not seconds.
func longForm() bool { return os.Getenv("CDC_CONSISTENCY") == "long" }

// binaryDir is the folder of what binary built, for TestMain to remove.
var binaryDir string

// binary builds the daemon once, with failpoints.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cdc-consistency-")
	if err != nil {
		return "", err
	}
	binaryDir = dir
	path := filepath.Join(dir, "cdc-invalidator")
	out, err := exec.Command("go", "build", "-tags", "failpoint", "-o", path, "../../cmd/cdc-invalidator").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the daemon: %w\n%s", err, out)
	}
	return path, nil
})

// world is a source, a Redis and a mappings file for one scenario, and what is
// known of its rows.
type world struct {
	t        testing.TB
	url      string // of the source
	redisURL string
	pg       *localserver.Postgres
	rd       *localserver.Redis // nil when it is shared
	slot     string
	config   string
	conn     *pgx.Conn
	rdb      *redis.Client
	rows     int64
	history  *history
}

// worldOptions say what a scenario breaks: what it breaks it has of its own.
type worldOptions struct {
	rows          int
	ownSource     bool
	ownRedis      bool
	sourceOptions localserver.PostgresOptions
	redisOptions  localserver.RedisOptions
	mappings      string // mappingsYAML unless given
}

func newWorld(t testing.TB, o worldOptions) *world {
	t.Helper()
	w := &world{t: t, rows: int64(o.rows)}
	if o.ownSource {
		if o.sourceOptions.Settings == nil {
			o.sourceOptions.Settings = map[string]string{"wal_sender_timeout": "2s", "max_connections": "200"}
		}
		w.pg = servertest.PrivatePostgres(t, o.sourceOptions)
		w.url = servertest.NewDatabase(t, w.pg, "shop").URL
	} else {
		db := servertest.Postgres(t)
		w.pg, w.url = db.Server, db.URL
	}
	if o.ownRedis {
		w.rd = servertest.PrivateRedis(t, o.redisOptions)
		w.redisURL = w.rd.URL()
	} else {
		w.redisURL = servertest.Redis(t).URL
	}
	w.slot = fmt.Sprintf("inv_%d", time.Now().UnixNano()%1e12)
	w.conn, w.rdb = servertest.Connect(t, w.url), servertest.RedisClient(t, w.redisURL)
	w.exec(schemaOf(o.rows))
	w.history = newHistory(o.rows)
	if o.mappings == "" {
		o.mappings = mappingsYAML
	}
	w.config = filepath.Join(t.TempDir(), "mappings.yaml")
	head := fmt.Sprintf("version: 1\nsource:\n  url: %q\n  slot: {name: %s, create_if_not_exists: true}\n  publication: {name: %s_pub, create_if_not_exists: true}\n  heartbeat: 100ms\nredis:\n  url: %q\n  replay_window: 2s\n  stream_max_length: 4096\n",
		w.url, w.slot, w.slot, w.redisURL)
	if err := os.WriteFile(w.config, []byte(head+o.mappings), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) exec(sql ...string) {
	w.t.Helper()
	for _, s := range sql {
		if _, err := w.conn.Exec(context.Background(), s); err != nil {
			w.t.Fatalf("%s: %v", s, err)
		}
	}
}

// query reads one value.
func query[T any](w *world, sql string, args ...any) T {
	w.t.Helper()
	var v T
	if err := w.conn.QueryRow(context.Background(), sql, args...).Scan(&v); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// reconnect replaces the test's own connection, after the source was away.
func (w *world) reconnect() {
	w.t.Helper()
	closeNow(w.conn)
	w.eventually("the source answers", func() bool {
		conn, err := pgx.Connect(context.Background(), w.url)
		if err != nil {
			return false
		}
		w.conn = conn
		return true
	})
	conn := w.conn
	w.t.Cleanup(func() { closeNow(conn) })
}

func closeNow(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // it is lost already, or was only read from
}

// eventually waits for a condition.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			w.t.Fatalf("gave up waiting until %s", what)
		}
		<-tick.C
	}
}

// elapsed is a condition that is true after a time. It is for what is defined by how long
// it lasts: an outage, a budget, a scenario's length. Nothing else may be waited for like this.
func elapsed(d time.Duration) func() bool {
	end := time.Now().Add(d)
	return func() bool { return time.Now().After(end) }
}

// process is one run of the daemon.
type process struct {
	w    *world
	cmd  *exec.Cmd
	log  lockedBuffer
	done chan struct{} // closed when it has ended
	err  error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// launch starts the daemon without waiting for anything. env adds to its environment.
func (w *world) launch(env ...string) *process {
	w.t.Helper()
	path, err := binary()
	if err != nil {
		w.t.Fatal(err)
	}
	p := &process{w: w, cmd: exec.Command(path, "run", "--config", w.config, "--http", "off", "--log-level", "info"), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The parent death signal belongs to the thread that starts the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		p.kill()
		if w.t.Failed() {
			text := p.log.String()
			w.t.Logf("daemon's log, its end:\n%s", text[max(0, len(text)-6000):])
		}
	})
	return p
}

// start launches the daemon and waits until it has applied everything, and says so:
// until then readers do not trust the cache, and nothing can go wrong there.
func (w *world) start(env ...string) *process {
	w.t.Helper()
	p := w.launch(env...)
	now := w.sourceNow()
	w.settle(p)
	w.eventually("the cache is fresh as of the daemon's start", func() bool { return w.freshAsOf() > now })
	return p
}

// kill sends SIGKILL.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *process) logged(text string) int { return strings.Count(p.log.String(), text) }

// control is the control hash; nil when Redis is away.
func (w *world) control() map[string]string {
	m, err := w.rdb.HGetAll(context.Background(), "inv:source:{"+w.slot+"}").Result()
	if err != nil {
		return nil
	}
	return m
}

// settle waits until everything that was committed before is applied, what a class holds
// back included, and the state is ok.
func (w *world) settle(p *process) {
	w.t.Helper()
	now, err := replication.Nudge(w.t.Context(), w.conn)
	if err != nil {
		w.t.Fatal(err)
	}
	w.eventually("all changes up to "+now.String()+" are applied", func() bool {
		if p.ended() {
			w.t.Fatalf("the daemon ended: %v\n%s", p.err, p.log.String())
		}
		control := w.control()
		// Stamps are named only while there are any, and a purge that goes on removes what is
		// right, too.
		return control["state"] == "ok" && control["stamps"] != "" && control["purging"] == "" && w.reached(now)
	})
}

// reached says whether everything up to a position is applied.
func (w *world) reached(position lsn.LSN) bool {
	at, err := lsn.ParseHex(w.control()["settled"])
	return err == nil && at >= position
}

// appliedAll says whether everything that was committed before the call is applied.
func (w *world) appliedAll() bool { return w.reached(w.position()) }

// position of the source's log: everything that has committed lies below.
func (w *world) position() lsn.LSN {
	w.t.Helper()
	now, err := lsn.Parse(query[string](w, "SELECT pg_current_wal_insert_lsn()::text"))
	if err != nil {
		w.t.Fatal(err)
	}
	return now
}

// write brings a row into its next state, and returns the number of that. A lost answer
// is asked for again until ctx ends, on a new connection.
func (w *world) write(ctx context.Context, conn *pgx.Conn, row int64) (int64, error) {
	n := w.history.begin(row)
	sql, args := writeSQL(row, n)
	if _, err := conn.Exec(ctx, sql, args...); err != nil {
		return n, err
	}
	w.history.end(row, n)
	return n, nil
}

// change is write on the test's own connection.
func (w *world) change(rows ...int64) {
	w.t.Helper()
	for _, row := range rows {
		if _, err := w.write(context.Background(), w.conn, row); err != nil {
			w.t.Fatal(err)
		}
	}
}
