package servertest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
)

// SentinelGroup is the group's name that Sentinel watches.
const SentinelGroup = "shop-cache"

// Sentinel starts one for a primary, ended with the test, and returns its address. It fails
// over when it is told to. It needs a program that can be told its configuration file.
func Sentinel(t testing.TB, primary *localserver.Redis) string {
	t.Helper()
	var path string
	for _, name := range []string{"redis-server", "valkey-server"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Fatal("a sentinel needs redis-server or valkey-server on the PATH")
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "sentinel.conf")
	text := "sentinel monitor " + SentinelGroup + " 127.0.0.1 " + strconv.Itoa(primary.Port()) + " 1\n" +
		"sentinel down-after-milliseconds " + SentinelGroup + " 60000\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	cmd := exec.Command(path, conf, "--sentinel", "--port", port, "--bind", "127.0.0.1", "--dir", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	addr := "127.0.0.1:" + port
	c := RedisClient(t, "redis://"+addr)
	deadline := time.After(30 * time.Second)
	for tick := time.Tick(20 * time.Millisecond); c.Ping(t.Context()).Err() != nil; {
		select {
		case <-tick:
		case <-deadline:
			t.Fatal("the sentinel does not answer")
		}
	}
	return addr
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}
