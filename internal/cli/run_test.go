package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

func TestRunRefusesWrongUsage(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"run"}, "--config is needed"},
		{[]string{"run", "mappings.yaml"}, "mappings.yaml"},
		{[]string{"run", "--config", "m.yaml", "--http", "9464"}, "127.0.0.1:9464"},
		{[]string{"run", "--config", "m.yaml", "--http", "localhost:port"}, `--http "localhost:port"`},
		{[]string{"run", "--config", "m.yaml", "--http", "http://localhost:9464"}, "--http"},
		{[]string{"run", "--config", "m.yaml", "--log-level", "loud"}, "--log-level"},
		{[]string{"run", "--config", "m.yaml", "--log-format", "xml"}, "--log-format"},
	} {
		code, out, errOut := runMain(t, tc.args...)
		if code != exitUsage || out != "" || !strings.Contains(errOut, tc.want) || !strings.Contains(errOut, "Run 'cdc-invalidator run --help'") {
			t.Errorf("%v: exit code %d, stdout %q, stderr %q", tc.args, code, out, errOut)
		}
	}
}

func TestRunWithoutItsFile(t *testing.T) {
	code, _, errOut := runMain(t, "run", "--config", filepath.Join(t.TempDir(), "none.yaml"), "--http", "off")
	if code != exitConfig || !strings.Contains(errOut, "none.yaml") {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
}

func TestRunShowsEveryFault(t *testing.T) {
	content := strings.NewReplacer("keys: [user]", "keys: [user, usr]", "staleness: 1s", "staleness: soon").
		Replace(fmt.Sprintf(runTestFile, "postgres://localhost/db", "s", "redis://localhost:6379"))
	code, out, errOut := runMain(t, "run", "--config", writeRunTestFile(t, content), "--http", "off")
	if code != exitConfig || out != "" {
		t.Errorf("exit code %d, stdout %q", code, out)
	}
	for _, want := range []string{"mappings.yaml:9:", "soon", "mappings.yaml:14:", "usr"} {
		if !strings.Contains(errOut, want) {
			t.Errorf("%q is not in stderr: %q", want, errOut)
		}
	}
}

const runTestFile = `version: 1
source:
  url: %s
  slot: {name: %s, create_if_not_exists: true}
  publication: {name: pub, create_if_not_exists: true}
redis:
  url: %s
classes:
  critical: {staleness: 1s}
keys:
  user: {key: "user:{id}", class: critical}
mappings:
  - table: public.users
    keys: [user]
`

func writeRunTestFile(t *testing.T, content string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "mappings.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What only a change on the server mends ends the command with its own code and
// with the statement that mends it.
func TestRunOnASourceThatMustBeChanged(t *testing.T) {
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: map[string]string{"wal_level": "replica"}})
	path := writeRunTestFile(t, fmt.Sprintf(runTestFile, pg.URL(), "s", servertest.Redis(t).URL))
	code, _, errOut := runMain(t, "run", "--config", path, "--http", "off")
	if code != exitConfig || !strings.Contains(errOut, "ALTER SYSTEM SET wal_level = 'logical'") {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
}

// running is `run` in the background.
type running struct {
	http   string
	reload chan struct{}
	stop   func() int
	log    *lockedBuffer
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

func startRun(t *testing.T, path string) *running {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // an address that is free
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{http: "http://" + addr, reload: make(chan struct{}, 1), log: &lockedBuffer{}}
	done := make(chan int, 1)
	go func() {
		done <- Main(ctx, []string{"run", "--config", path, "--http", addr, "--log-format", "json"}, strings.NewReader(""), io.Discard, r.log, WithReload(func() <-chan struct{} { return r.reload }))
	}()
	r.stop = sync.OnceValue(func() int { cancel(); return <-done })
	t.Cleanup(func() {
		r.stop()
		http.DefaultClient.CloseIdleConnections()
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", r.log)
		}
	})
	return r
}

// page returns a page's status and body; 0 while nobody listens.
func (r *running) page(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := http.Get(r.http + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// eventually asks until ok, and fails t after a while.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func TestRunInvalidatesReloadsAndStops(t *testing.T) {
	db, rdb := servertest.Postgres(t), servertest.Redis(t)
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY, name text)", "INSERT INTO users SELECT i FROM generate_series(1, 10) i")
	content := fmt.Sprintf(runTestFile, db.URL, db.Name+"_slot", rdb.URL)
	path := writeRunTestFile(t, content)
	r := startRun(t, path)
	eventually(t, "ready", func() bool { code, _ := r.page(t, "/readyz"); return code == 200 })

	client := rdb.Client(t)
	if err := client.Set(t.Context(), "user:7", "cached", 0).Err(); err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "UPDATE users SET name = 'x' WHERE id = 7")
	eventually(t, "user:7 invalidated", func() bool { return client.Exists(t.Context(), "user:7").Val() == 0 })

	for _, metric := range []string{"cdc_invalidator_build_info{", "go_goroutines", "process_resident_memory_bytes", `cdc_invalidator_condition{condition="streaming"} 1`} {
		if _, body := r.page(t, "/metrics"); !strings.Contains(body, metric) {
			t.Errorf("%s is not in /metrics", metric)
		}
	}

	// A file with faults is refused, and the old one stays in force.
	if err := os.WriteFile(path, []byte("version: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.reload <- struct{}{}
	eventually(t, "the refused reload is reported", func() bool { _, body := r.page(t, "/healthz"); return strings.Contains(body, `"failed"`) })
	if code, body := r.page(t, "/readyz"); code != 200 {
		t.Errorf("not ready because of a refused reload: %s", body)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	r.reload <- struct{}{}
	eventually(t, "the reload is taken", func() bool { code, _ := r.page(t, "/healthz"); return code == 200 })

	if code := r.stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	for line := range strings.Lines(r.log.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
	if strings.Contains(r.log.String(), "password=") || strings.Contains(r.log.String(), db.URL) {
		t.Error("the source's URL is in the log")
	}
}

func TestHTTPAddress(t *testing.T) {
	for in, want := range map[string]string{
		"off": "", "127.0.0.1:9464": "127.0.0.1:9464", ":0": ":0", "[::1]:9464": "[::1]:9464", "localhost:http": "localhost:http",
	} {
		if got, err := httpAddress(in); got != want || err != nil {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}
