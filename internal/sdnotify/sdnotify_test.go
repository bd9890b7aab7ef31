package sdnotify

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// manager is the other end.
func manager(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func receive(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestWhatIsSent(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@cdc-invalidator-notify-test-%d", os.Getpid())} {
		conn := manager(t, name)
		n, err := newNotifier(func(k string) string {
			return map[string]string{"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}[k]
		}, 7)
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		if n.Watchdog() != 30*time.Second {
			t.Errorf("watchdog %v", n.Watchdog())
		}
		for want, send := range map[string]func() error{
			"READY=1\nSTATUS=streaming":        func() error { return n.Ready("streaming") },
			"STOPPING=1\nSTATUS=stopping":      n.Stopping,
			"WATCHDOG=1":                       n.Alive,
			"STATUS=two lines MAINPID=1 READY": func() error { return n.Status("two lines\nMAINPID=1\nREADY") },
		} {
			if err := send(); err != nil {
				t.Fatal(err)
			}
			if got := receive(t, conn); got != want {
				t.Errorf("sent %q, want %q", got, want)
			}
		}
		before, err := monotonic()
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Reloading(); err != nil {
			t.Fatal(err)
		}
		got := receive(t, conn)
		us, ok := strings.CutPrefix(got, "RELOADING=1\nMONOTONIC_USEC=")
		at, err := strconv.ParseInt(us, 10, 64)
		if !ok || err != nil || at < before.Microseconds() || at > before.Microseconds()+10e6 {
			t.Errorf("sent %q; the clock was %v", got, before)
		}
	}
}

func TestWithoutAManagerNothingIsSent(t *testing.T) {
	n, err := newNotifier(func(string) string { return "" }, 1)
	if n != nil || err != nil {
		t.Fatalf("%v, %v", n, err)
	}
	for _, send := range []func() error{func() error { return n.Ready("") }, n.Reloading, n.Stopping, n.Alive, n.Close} {
		if err := send(); err != nil {
			t.Error(err)
		}
	}
	if n.Watchdog() != 0 {
		t.Errorf("watchdog %v", n.Watchdog())
	}
}

func TestAnotherProcessIsWatched(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	manager(t, name)
	n, err := newNotifier(func(k string) string {
		return map[string]string{"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}[k]
	}, 7)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if n.Watchdog() != 0 {
		t.Errorf("watchdog %v", n.Watchdog())
	}
}

func TestASocketThatIsNotThere(t *testing.T) {
	_, err := newNotifier(func(k string) string {
		return map[string]string{"NOTIFY_SOCKET": filepath.Join(t.TempDir(), "none")}[k]
	}, 1)
	if err == nil || !strings.Contains(err.Error(), "NOTIFY_SOCKET") {
		t.Error(err)
	}
}
