package integration

import (
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// manager is a service manager: a socket, and what came through it.
type manager struct {
	path string
	mu   sync.Mutex
	got  []string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{path: filepath.Join(t.TempDir(), "notify")}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 8192)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.got = append(m.got, string(b[:n]))
			m.mu.Unlock()
		}
	}()
	return m
}

// count is how many messages have the line, of those after the first from.
func (m *manager) count(line string, from int) (n, all int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, text := range m.got[from:] {
		for l := range strings.Lines(text) {
			if strings.TrimSpace(l) == line {
				n++
			}
		}
	}
	return n, len(m.got)
}

func (m *manager) eventually(w *world, line string, times, from int) {
	w.t.Helper()
	w.eventually("the manager is told "+line, func() bool { n, _ := m.count(line, from); return n >= times })
}

// What systemd is told through the life of a daemon, and that its watchdog is fed while a
// server is away, which is no reason to restart.
func TestServiceManagerIsTold(t *testing.T) {
	w, pg, rd := privateWorld(t, 10, nil)
	m := newManager(t)
	// Nothing answers yet: it is not ready, and lives.
	rd.Kill()
	p := w.launch("NOTIFY_SOCKET="+m.path, "WATCHDOG_USEC=300000", "WATCHDOG_PID=")
	m.eventually(w, "WATCHDOG=1", 5, 0)
	if n, _ := m.count("READY=1", 0); n != 0 {
		t.Error("ready without Redis")
	}
	if err := rd.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.eventually(w, "READY=1", 1, 0)
	m.eventually(w, "STATUS=streaming", 1, 0)
	w.settle(p)

	// A server hangs, then one is away, for longer than the watchdog waits.
	_, from := m.count("", 0)
	if err := rd.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.update(0, 5)
	m.eventually(w, "STATUS=waiting for redis", 1, from)
	_, from = m.count("", 0)
	m.eventually(w, "WATCHDOG=1", 10, from)
	if err := rd.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.settle(p)
	_, from = m.count("", 0)
	pg.Kill()
	m.eventually(w, "WATCHDOG=1", 10, from)
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.reconnect()
	m.eventually(w, "READY=1", 1, from)

	// Reloads: each is begun and ended, a refused one as well.
	for _, c := range []struct{ file, status string }{
		{itemsMappings, "STATUS=streaming"},
		{"nonsense", "STATUS=the last reload was refused; the mappings from before are in force"},
	} {
		_, from = m.count("", 0)
		w.writeConfig(c.file)
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		m.eventually(w, "RELOADING=1", 1, from)
		m.eventually(w, "READY=1", 1, from)
		m.eventually(w, c.status, 1, from)
	}

	_, from = m.count("", 0)
	p.stop()
	m.eventually(w, "STOPPING=1", 1, from)
	for _, text := range m.got {
		if strings.Contains(text, "postgres://") {
			t.Errorf("told %q", text)
		}
	}
}

// Without a manager, or with one whose socket is gone, it works all the same.
func TestServiceManagerIsGone(t *testing.T) {
	w := itemsWorld(t, 10)
	p := w.start("NOTIFY_SOCKET="+filepath.Join(t.TempDir(), "none"), "WATCHDOG_USEC=300000")
	w.eventually("it is logged", func() bool { return p.logged("running without a service manager") > 0 })
	w.eventually("more than the watchdog's time", elapsed(time.Second))
	p.stop()
}
