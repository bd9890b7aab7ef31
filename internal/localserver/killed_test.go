package localserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// envOwner makes this test binary be the owner that is killed; its value is what runs
// containers for it, if it comes to that.
const envOwner = "LOCALSERVER_TEST_OWNER"

var containersByName = map[string]localserver.Containers{"docker": localserver.Docker{}, "testcontainers": servertest.Containers{}}

func TestNothingSurvivesAKilledOwner(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Log("only Linux ends the servers of a killed owner")
		return
	}
	t.Run("attached to it", func(t *testing.T) { nothingSurvives(t, "docker") })
	// Containers of testcontainers have a life of their own, until the next owner sweeps.
	if os.Getenv("CDC_SERVERS") == "docker" {
		t.Run("swept by the next one", func(t *testing.T) { nothingSurvives(t, "testcontainers") })
	}
}

func nothingSurvives(t *testing.T, containers string) {
	owner := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOwner$")
	owner.Env = append(os.Environ(), envOwner+"="+containers)
	owner.Stderr = os.Stderr
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	dir, pids := "", []int(nil)
	for lines := bufio.NewScanner(out); dir == "" && lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "started "); ok {
			fields := strings.Fields(text)
			for _, f := range fields[1:] {
				pid, err := strconv.Atoi(f)
				if err != nil {
					t.Fatal(err)
				}
				pids = append(pids, pid)
			}
			dir = fields[0]
		}
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	if len(pids) < 2 { // two servers, and what Postgres starts unless it is in a container
		t.Fatalf("the owner started %v in %q", pids, dir)
	}
	if containers == "testcontainers" {
		servertest.PrivateRedis(t, localserver.RedisOptions{})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, pid := range pids {
		for tick := time.NewTicker(5 * time.Millisecond); running(pid); {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("process %d survived its owner", pid)
			}
		}
	}

	// The next owner removes the folder, once it is old enough to have been locked.
	hourAgo := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "owner.lock"), hourAgo, hourAgo); err != nil {
		t.Fatal(err)
	}
	mine, err := localserver.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of the killed owner is still there: %v", err)
	}

	// A living owner's folder stays, however old it is.
	if err := os.Chtimes(filepath.Join(mine.Path(), "owner.lock"), hourAgo, hourAgo); err != nil {
		t.Fatal(err)
	}
	other, err := localserver.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := os.Stat(mine.Path()); err != nil {
		t.Errorf("the folder of a living owner: %v", err)
	}
}

// TestOwner is the child of the test above; by itself it does nothing.
func TestOwner(t *testing.T) {
	containers := containersByName[os.Getenv(envOwner)]
	if containers == nil {
		return
	}
	dir, err := localserver.NewDir()
	if err != nil {
		t.Fatal(err)
	}
	p, err := localserver.StartPostgres(t.Context(), localserver.PostgresOptions{Dir: dir.Path(), Containers: containers})
	if err != nil {
		t.Fatal(err)
	}
	r, err := localserver.StartRedis(t.Context(), localserver.RedisOptions{Dir: dir.Path(), Containers: containers})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("started %s %d %d", dir.Path(), p.PID(), r.PID())
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("", strings.TrimSpace(string(children)))
	<-t.Context().Done() // killed before
}

// running is false also for a zombie, which a container without an init process
// keeps for ever.
func running(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	state := strings.TrimSpace(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	return !strings.HasPrefix(state, "Z")
}
