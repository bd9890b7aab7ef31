package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// With this variable the test binary is the program itself: signals need a process.
const asProgram = "CDC_INVALIDATOR_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	servertest.VerifyMain(m)
}

// program is a running daemon with its log.
type program struct {
	cmd   *exec.Cmd
	lines chan string
}

func startProgram(t *testing.T, postgres, redis string) *program {
	t.Helper()
	return startCommand(t, mappingsFor(t, postgres, redis), nil, "run", "--http", "off", "--config")
}

func mappingsFor(t *testing.T, postgres, redis string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "mappings.yaml")
	config := fmt.Sprintf(`version: 1
source:
  url: %s
  slot: {name: signals, create_if_not_exists: true}
  publication: {name: signals, create_if_not_exists: true}
redis: {url: "%s"}
classes: {critical: {staleness: 1s}}
keys: {user: {key: "user:{id}", class: critical}}
mappings: [{table: public.users, keys: [user]}]
`, postgres, redis)
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// startCommand runs a command on a file, by way of another program where before names one. Its
// lines are those of stdout and stderr.
func startCommand(t *testing.T, path string, before []string, command ...string) *program {
	t.Helper()
	args := slices.Concat(before, []string{os.Args[0]}, command, []string{path})
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = cmd.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &program{cmd: cmd, lines: make(chan string, 1000)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(p.lines)
		for s := bufio.NewScanner(stderr); s.Scan(); {
			p.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it is gone unless the test failed
		<-read
		_ = cmd.Wait()
	})
	return p
}

// logs waits for a line of the log.
func (p *program) logs(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	var seen []string
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				t.Fatalf("the program ended without logging %q: %q", want, seen)
			}
			if strings.Contains(line, want) {
				return
			}
			seen = append(seen, line)
		case <-deadline:
			t.Fatalf("%q was not logged: %q", want, seen)
		}
	}
}

func (p *program) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// ended waits for the end and returns how it came.
func (p *program) ended(t *testing.T) syscall.WaitStatus {
	t.Helper()
	timeout := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer timeout.Stop()
	for range p.lines { // until it has closed its end
	}
	err := p.cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.cmd.ProcessState.Sys().(syscall.WaitStatus)
}

func TestSignals(t *testing.T) {
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	redis := servertest.PrivateRedis(t, localserver.RedisOptions{})
	db := servertest.NewDatabase(t, pg, "signals")
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY, name text)", "INSERT INTO users VALUES (1)")

	p := startProgram(t, db.URL, redis.URL())
	p.logs(t, "msg=streaming")
	p.signal(t, syscall.SIGHUP)
	p.logs(t, "mappings reloaded")
	p.signal(t, syscall.SIGTERM)
	if s := p.ended(t); !s.Exited() || s.ExitStatus() != 0 {
		t.Errorf("after SIGTERM: %v", s)
	}

	// A Redis that hangs holds up the orderly end; a second signal does not wait.
	p = startProgram(t, db.URL, redis.URL())
	p.logs(t, "msg=streaming")
	if err := redis.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = redis.Signal(syscall.SIGCONT) }()
	db.Exec(t, "UPDATE users SET name = 'x'")
	p.logs(t, "waiting for redis")
	// The first takes effect at some moment; whatever comes after it is the second.
	stop := make(chan struct{})
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			_ = p.cmd.Process.Signal(syscall.SIGINT) // it may have ended
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	defer close(stop)
	if s := p.ended(t); !s.Signaled() || s.Signal() != syscall.SIGINT {
		t.Errorf("after the second SIGINT: %v", s)
	}
}

// A terminal that is lost ends what ran on it, with all that it has made on the server; what was
// told to survive that goes on.
func TestHangup(t *testing.T) {
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	db := servertest.NewDatabase(t, pg, "hangup")
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY, name text)", "CREATE PUBLICATION signals FOR TABLE users WITH (publish_via_partition_root = true)")
	tap := func(before ...string) *program {
		p := startCommand(t, mappingsFor(t, db.URL, "redis://127.0.0.1:1"), before, "tap", "--config")
		p.logs(t, "following publication")
		return p
	}
	p := tap()
	p.signal(t, syscall.SIGHUP)
	_ = p.cmd.Process.Signal(syscall.SIGHUP) // the shell sends another one; it may have ended
	if s := p.ended(t); !s.Exited() || s.ExitStatus() != 0 {
		t.Errorf("after SIGHUP: %v", s)
	}
	// The server needs a moment to see that the connection is gone.
	conn := servertest.Connect(t, db.URL)
	for left, deadline := 1, time.Now().Add(20*time.Second); left > 0; {
		if err := conn.QueryRow(t.Context(), "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_stat_replication)").Scan(&left); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatal("a slot or a walsender is left")
		}
	}

	p = tap("nohup")
	p.signal(t, syscall.SIGHUP)
	db.Exec(t, "INSERT INTO users VALUES (1)")
	p.logs(t, "user:")
	p.signal(t, syscall.SIGINT)
	if s := p.ended(t); !s.Exited() || s.ExitStatus() != 0 {
		t.Errorf("after SIGINT: %v", s)
	}
}
