package localserver_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

func TestMain(m *testing.M) { servertest.VerifyMain(m) }

func TestPostgresStopsAndStartsOnTheSamePortAndData(t *testing.T) {
	p := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: map[string]string{"application_name": "it's"}})
	execSQL(t, p.URL(), "CREATE TABLE t (n int)")
	port := p.Port()
	for name, stop := range map[string]func() error{
		"fast":      func() error { return p.Stop(t.Context(), localserver.Fast) },
		"immediate": func() error { return p.Stop(t.Context(), localserver.Immediate) },
		"smart":     func() error { return p.Stop(t.Context(), localserver.Smart) },
		"kill":      func() error { p.Kill(); return nil },
	} {
		execSQL(t, p.SocketURL(), "INSERT INTO t VALUES (1)")
		if err := stop(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if p.Running() || p.PID() != 0 {
			t.Errorf("%s: still running", name)
		}
		if _, err := pgx.Connect(t.Context(), p.URL()); err == nil {
			t.Fatalf("%s: it still answers", name)
		}
		if err := p.Start(t.Context()); err != nil {
			t.Fatalf("start after %s: %v", name, err)
		}
	}
	if p.Port() != port {
		t.Errorf("the port changed from %d to %d", port, p.Port())
	}
	conn := servertest.Connect(t, p.URL())
	var rows int
	var level, user string
	err := conn.QueryRow(t.Context(), "SELECT count(*), current_setting('wal_level'), current_user FROM t").Scan(&rows, &level, &user)
	if err != nil || rows != 4 || level != "logical" || user != "postgres" {
		t.Errorf("rows %d, wal_level %s, user %s, error %v", rows, level, user, err)
	}
}

func TestSmartStopCanBeCutShortByKill(t *testing.T) {
	p := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	servertest.Connect(t, p.URL()) // keeps a smart shutdown waiting
	stopped := make(chan error)
	go func() { stopped <- p.Stop(t.Context(), localserver.Smart) }()
	p.Kill()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestCrashedBackendKeepsTheServersProcess(t *testing.T) {
	p := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	conn := servertest.Connect(t, p.URL())
	pid := p.PID()
	if err := p.CrashBackend(int(conn.PgConn().PID())); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "SELECT 1"); err == nil {
		t.Error("the session survived")
	}
	if p.PID() != pid {
		t.Errorf("the server's process changed from %d to %d", pid, p.PID())
	}
}

func TestPostgresWantsThePasswordOnTCP(t *testing.T) {
	db := servertest.Postgres(t)
	url := strings.Replace(db.URL, "postgres:", "postgres:not", 2)
	if conn, err := pgx.Connect(t.Context(), strings.Replace(url, "postgres:not//", "postgres://", 1)); err == nil {
		conn.Close(t.Context())
		t.Error("a wrong password was taken")
	}
}

func TestStandbyFollowsAndRefusesWrites(t *testing.T) {
	p := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	s := servertest.Standby(t, p, localserver.PostgresOptions{})
	execSQL(t, p.URL(), "CREATE TABLE t AS SELECT 7 AS n")
	conn := servertest.Connect(t, s.URL())
	deadline := time.Now().Add(30 * time.Second)
	for {
		var n int
		err := conn.QueryRow(t.Context(), "SELECT n FROM t").Scan(&n)
		if err == nil && n == 7 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the standby does not follow: %d, %v", n, err)
		}
	}
	if _, err := conn.Exec(t.Context(), "INSERT INTO t VALUES (1)"); err == nil {
		t.Error("the standby takes writes")
	}
}

func TestRedisStopsAndStartsOnTheSamePort(t *testing.T) {
	r := servertest.PrivateRedis(t, localserver.RedisOptions{Password: "secret", Args: []string{"--appendonly", "yes", "--appendfsync", "always"}})
	c := servertest.RedisClient(t, r.URL())
	if err := c.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	for _, stop := range []func() error{func() error { return r.Stop(t.Context()) }, func() error { r.Kill(); return nil }} {
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if err := c.Ping(t.Context()).Err(); err == nil {
			t.Fatal("it still answers")
		}
		if err := r.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if v, err := c.Get(t.Context(), "k").Result(); err != nil || v != "v" {
			t.Errorf("after the restart: %q, %v", v, err)
		}
	}
	if r.SocketURL() != r.URL() {
		if err := servertest.RedisClient(t, r.SocketURL()).Ping(t.Context()).Err(); err != nil {
			t.Errorf("on the socket: %v", err)
		}
	}
}

func TestStoppedProcessHangsAndGoesOn(t *testing.T) {
	r := servertest.PrivateRedis(t, localserver.RedisOptions{})
	o, err := redis.ParseURL(r.URL())
	if err != nil {
		t.Fatal(err)
	}
	o.ReadTimeout, o.MaxRetries = 50*time.Millisecond, -1
	c := redis.NewClient(o)
	defer c.Close()
	if err := c.Ping(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if err := r.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := c.Ping(t.Context()).Err(); err == nil {
		t.Error("a stopped server answered")
	}
	if err := r.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := c.Ping(t.Context()).Err(); err != nil {
		t.Errorf("after SIGCONT: %v", err)
	}
}

func TestEachTestHasItsOwnDatabases(t *testing.T) {
	a, b := servertest.Postgres(t), servertest.Postgres(t)
	a.Exec(t, "CREATE TABLE only_here ()", "SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')",
		"BEGIN; CREATE TABLE prepared (); PREPARE TRANSACTION 'left behind'")
	if _, err := b.Conn(t).Exec(t.Context(), "SELECT FROM only_here"); err == nil {
		t.Error("the databases are the same")
	}
	c, d := servertest.Redis(t), servertest.Redis(t)
	if err := c.Client(t).Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n, err := d.Client(t).DBSize(t.Context()).Result(); err != nil || n != 0 {
		t.Errorf("the second database has %d keys, error %v", n, err)
	}
}

func TestCloseRemovesEverything(t *testing.T) {
	dir, err := localserver.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	p, err := localserver.StartPostgres(t.Context(), localserver.PostgresOptions{Dir: dir.Path()})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r, err := localserver.StartRedis(t.Context(), localserver.RedisOptions{Dir: dir.Path()})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pids := []int{p.PID(), r.PID()}
	for range 2 {
		if err := errors.Join(p.Close(), r.Close()); err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir.Path(), "*/")); len(left) != 1 { // the lock
		t.Errorf("left in the folder: %v", left)
	}
	if err := dir.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is still there: %v", err)
	}
	for _, pid := range pids {
		if syscall.Kill(pid, 0) == nil {
			t.Errorf("process %d is still there", pid)
		}
	}
	if err := p.Start(t.Context()); err == nil {
		t.Error("a closed server was started")
	}
}

func TestFailedStartNamesTheCauseAndLeavesNothing(t *testing.T) {
	dir, err := localserver.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	_, err = localserver.StartPostgres(t.Context(), localserver.PostgresOptions{Dir: dir.Path(),
		Settings: map[string]string{"wal_level": "nonsense"}})
	if err == nil || !strings.Contains(err.Error(), "wal_level") {
		t.Errorf("Postgres: %v", err)
	}
	_, err = localserver.StartRedis(t.Context(), localserver.RedisOptions{Dir: dir.Path(), Args: []string{"--nonsense", "1"}})
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("Redis: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = localserver.StartPostgres(ctx, localserver.PostgresOptions{Dir: dir.Path()}); err == nil {
		t.Error("started with a cancelled context")
	}
	if left, _ := filepath.Glob(filepath.Join(dir.Path(), "*")); len(left) != 1 {
		t.Errorf("left in the folder: %v", left)
	}
}

func execSQL(t *testing.T, url, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}
