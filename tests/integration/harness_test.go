// Package integration runs the built daemon, as a process of its own, against
// real servers, and checks what is in Redis afterwards.
//
// A test writes to Postgres, calls settle, and then compares exactly: which keys
// are gone, and which are still there. settle is no pause but a fact: the control
// hash says that everything committed so far is applied.
//
// All that a daemon and the commands print and serve is searched for passwords, keys
// and values of rows, in every test (leaks_test.go).
//
// The longest tests of those that leave the shared servers as they are run in parallel.
package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

func TestMain(m *testing.M) {
	servertest.VerifyMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(binaryDir) // empty when no test has built it
		os.Exit(code)
	}))
}

// patience is how long a condition may take on a slow machine before the test
// gives up. Nothing waits for it when all is well.
const patience = 60 * time.Second

// binaryDir is the folder of what binary built, for TestMain to remove.
var binaryDir string

// binary builds the daemon once, with failpoints and the race detector.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cdc-integration-")
	if err != nil {
		return "", err
	}
	binaryDir = dir
	path := filepath.Join(dir, "cdc-invalidator")
	out, err := exec.Command("go", "build", "-race", "-tags", "failpoint", "-o", path, "../../cmd/cdc-invalidator").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the daemon: %w\n%s", err, out)
	}
	return path, nil
})

// world is a source, a Redis and a mappings file for one test.
type world struct {
	t        testing.TB
	url      string // of the source
	redisURL string
	slot     string
	config   string
	conn     *pgx.Conn
	rdb      *redis.Client
	secrets  *secrets
	kept     map[string]string // see keepAll
	blind    bool              // the daemon does not look at the catalogs, so nothing is proved fresh
}

// newWorld takes fresh databases on the shared servers and runs the schema. The
// mappings are the classes, keys and mappings parts of a file.
func newWorld(t testing.TB, schema, mappings string) *world {
	t.Helper()
	db, rdb := servertest.Postgres(t), servertest.Redis(t)
	return newWorldOn(t, db.URL, rdb.URL, schema, mappings)
}

// newWorldOn is newWorld on servers that the test may stop and break.
func newWorldOn(t testing.TB, url, redisURL, schema, mappings string) *world {
	t.Helper()
	w := &world{t: t, url: url, redisURL: redisURL, slot: "inv_" + strings.ToLower(filepath.Base(t.TempDir())+fmt.Sprint(time.Now().UnixNano()%1e9)),
		conn: servertest.Connect(t, url), rdb: servertest.RedisClient(t, redisURL), secrets: newSecrets(url, redisURL)}
	w.exec(schema)
	w.config = filepath.Join(t.TempDir(), "mappings.yaml")
	w.writeConfig(mappings)
	return w
}

// writeConfig replaces the mappings file.
func (w *world) writeConfig(mappings string) {
	w.t.Helper()
	head := fmt.Sprintf("version: 1\nsource:\n  url: %q\n  slot: {name: %s, create_if_not_exists: true}\n  publication: {name: %s_pub, create_if_not_exists: true}\n  heartbeat: 100ms\nredis:\n  url: %q\n  replay_window: 2s\n",
		w.url, w.slot, w.slot, w.redisURL)
	if err := os.WriteFile(w.config, []byte(head+mappings), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) exec(sql ...string) {
	w.t.Helper()
	for _, s := range sql {
		w.secrets.addValues(s)
		if _, err := w.conn.Exec(w.t.Context(), s); err != nil {
			w.t.Fatalf("%s: %v", s, err)
		}
	}
}

// process is one run of the daemon.
type process struct {
	w    *world
	cmd  *exec.Cmd
	log  lockedBuffer  // stdout and stderr
	done chan struct{} // closed when it has ended
	err  error

	pages lockedBuffer // what it served, see collect
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

// launch starts the daemon without waiting for anything. env adds to its
// environment, for example failAt.
func (w *world) launch(env ...string) *process {
	w.t.Helper()
	path, err := binary()
	if err != nil {
		w.t.Fatal(err)
	}
	return w.launchBinary(path, env...)
}

// launchBinary is launch with another build of the daemon.
func (w *world) launchBinary(path string, env ...string) *process {
	w.t.Helper()
	return w.spawn(path, env, "run", "--config", w.config, "--http", "127.0.0.1:0", "--log-level", "debug")
}

// spawn starts a command of the program in the background. All that it prints is
// searched for secrets when the test ends.
func (w *world) spawn(path string, env []string, args ...string) *process {
	w.t.Helper()
	p := &process{w: w, cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	w.t.Cleanup(func() {
		p.collect()
		_ = p.cmd.Process.Kill()
		<-p.done
		p.checkLeaks()
		if strings.Contains(p.log.String(), "DATA RACE") || w.t.Failed() {
			w.t.Logf("daemon's log:\n%s", p.log.String())
		}
		if strings.Contains(p.log.String(), "DATA RACE") {
			w.t.Error("the daemon has a data race")
		}
	})
	return p
}

// start launches the daemon and waits until it follows the source.
func (w *world) start(env ...string) *process {
	w.t.Helper()
	w.blind = slices.Contains(env, notLooking)
	p := w.launch(env...)
	w.settle(p)
	return p
}

// failAt makes the daemon kill itself with SIGKILL at a point, the n-th time.
func failAt(point failpoint.Point, n int) string {
	return fmt.Sprintf("CDC_FAILPOINT=%s:%d", point, n)
}

// stop sends SIGTERM and expects exit code 0.
func (p *process) stop() {
	p.w.t.Helper()
	p.collect()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.w.t.Fatal(err)
	}
	p.wait()
	if p.err != nil {
		p.w.t.Fatalf("after SIGTERM: %v", p.err)
	}
}

// kill sends SIGKILL.
func (p *process) kill() {
	p.w.t.Helper()
	p.collect()
	_ = p.cmd.Process.Kill()
	p.wait()
}

// wait waits for the end of the process, whatever its reason.
func (p *process) wait() {
	p.w.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.w.t.Fatal("the daemon did not end")
	}
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// eventually waits for a condition.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			w.t.Fatalf("gave up waiting until %s", what)
		}
		<-tick.C
	}
}

// control is the control hash.
func (w *world) control() map[string]string {
	m, err := w.rdb.HGetAll(context.Background(), "inv:source:{"+w.slot+"}").Result()
	if err != nil {
		return nil // Redis is away: whoever waits looks again
	}
	return m
}

// stamps are those that readers know of now; nil where there are none.
func (w *world) stamps() *mapping.Stamps {
	text, err := w.rdb.Get(context.Background(), "inv:stamps:{"+w.slot+"}").Result()
	if err != nil {
		return nil // Redis is away, or there are none: whoever waits looks again
	}
	stamps, err := mapping.ParseStamps(text)
	if err != nil {
		w.t.Fatal(err)
	}
	return stamps
}

// followed says whether all families of the file have a stamp, and nothing of what was
// cached before is left to be removed.
func (w *world) followed() bool {
	stamps, control := w.stamps(), w.control()
	if stamps == nil || control["stamps"] != stamps.Revision || control["purging"] != "" {
		return false
	}
	file, err := mapping.LoadOffline(w.config)
	if err != nil {
		return true // not the file that is in force
	}
	for _, k := range file.Keys {
		if _, ok := stamps.Families[k.Name]; !ok {
			return false
		}
	}
	return true
}

// settle waits until everything that was committed before is applied, what is held back
// included, the state is ok, what was cached before a family was followed is removed, and p, when given, is still running.
func (w *world) settle(p *process) {
	w.t.Helper()
	if w.blind { // what the daemon cannot know is never settled
		w.applied(p)
		w.eventually("nothing is purged behind the stamps", w.followed)
		return
	}
	w.reach(p, "settled")
	w.eventually("the state is ok", func() bool { return w.control()["state"] == "ok" && w.followed() })
}

// applied waits until everything that was committed before is applied, or is held back,
// whatever the state.
func (w *world) applied(p *process) { w.t.Helper(); w.reach(p, "end") }

// reach waits until a position of the control hash is behind all that was committed before.
func (w *world) reach(p *process, field string) {
	w.t.Helper()
	now := w.nudge()
	w.eventually(field+" is at "+now.String(), func() bool {
		if p != nil && p.ended() {
			w.t.Fatalf("the daemon ended: %v\n%s", p.err, p.log.String())
		}
		at, err := lsn.ParseHex(w.control()[field])
		return err == nil && at >= now
	})
}

// nudge commits what a daemon that waits for nothing else goes by, as the command wait does.
func (w *world) nudge() lsn.LSN {
	w.t.Helper()
	at, err := replication.Nudge(w.t.Context(), w.conn)
	if err != nil {
		w.t.Fatal(err)
	}
	return at
}

// put caches a value under each key.
func (w *world) put(keys ...string) {
	w.t.Helper()
	w.secrets.addKeys(keys...)
	for _, k := range keys {
		if err := w.rdb.Set(w.t.Context(), k, "cached", 0).Err(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// cached lists the data keys that are there, sorted.
func (w *world) cached() []string {
	w.t.Helper()
	var keys []string
	it := w.rdb.Scan(w.t.Context(), 0, "*", 1000).Iterator()
	for it.Next(w.t.Context()) {
		if !strings.HasPrefix(it.Val(), "inv:") {
			keys = append(keys, it.Val())
		}
	}
	if err := it.Err(); err != nil {
		w.t.Fatal(err)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// want fails unless exactly these keys are cached.
func (w *world) want(keys ...string) {
	w.t.Helper()
	slices.Sort(keys)
	if got := w.cached(); !slices.Equal(got, keys) {
		w.t.Errorf("cached are\n  %q\nwant\n  %q", got, keys)
	}
}
