package protocol

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // Redis names scripts by their SHA-1
	"encoding/hex"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"
)

// line is the way from a reader to Redis. A case can hold up a script's call on it,
// count calls, and cut it.
type line struct {
	listener net.Listener
	server   string

	mu    sync.Mutex
	conns map[net.Conn]bool
	down  bool
	holds map[string]*hold
	calls map[string]int
	ended sync.WaitGroup
}

// hold is a call that does not reach Redis before it is let go.
type hold struct {
	arrived, letGo chan struct{}
}

// newLine returns a way to the server of a URL, and the URL of it.
func newLine(t *testing.T, server string) (*line, string) {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	l := &line{server: u.Host, conns: make(map[net.Conn]bool), holds: make(map[string]*hold), calls: make(map[string]int)}
	if l.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	u.Host = l.listener.Addr().String()
	l.ended.Go(l.accept)
	t.Cleanup(func() {
		_ = l.listener.Close()
		l.cut(true)
		l.ended.Wait()
	})
	return l, u.String()
}

func (l *line) accept() {
	for {
		client, err := l.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", l.server)
		if err != nil || !l.add(client, server) {
			_ = client.Close()
			if err == nil {
				_ = server.Close()
			}
			continue
		}
		l.ended.Go(func() { l.forward(server, client) })
		l.ended.Go(func() {
			_, _ = io.Copy(client, server)
			l.close(client, server)
		})
	}
}

func (l *line) add(conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		l.conns[c] = true
	}
	return !l.down
}

func (l *line) close(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
		delete(l.conns, c)
	}
}

// forward passes on what the reader says. A request of ours is far smaller than the
// buffer, so a call arrives whole.
func (l *line) forward(server, client net.Conn) {
	defer l.close(client, server)
	buf := make([]byte, 1<<16)
	for {
		n, err := client.Read(buf)
		if h := l.look(buf[:n]); h != nil {
			close(h.arrived)
			<-h.letGo
		}
		if n > 0 {
			if _, err := server.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (l *line) look(request []byte) (found *hold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for sha := range l.calls {
		l.calls[sha] += bytes.Count(request, []byte(sha))
	}
	for sha, h := range l.holds {
		if bytes.Contains(request, []byte(sha)) {
			delete(l.holds, sha)
			found = h
		}
	}
	return found
}

// count begins to count the calls of a script.
func (l *line) count(script string) (calls func() int) {
	sha := shaOf(script)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls[sha] = 0
	return func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.calls[sha]
	}
}

// hold holds up the next call of a script.
func (l *line) hold(t *testing.T, script string) *hold {
	h := &hold{make(chan struct{}), make(chan struct{})}
	l.mu.Lock()
	l.holds[shaOf(script)] = h
	l.mu.Unlock()
	t.Cleanup(h.release)
	return h
}

func (h *hold) waitFor(t *testing.T) {
	t.Helper()
	select {
	case <-h.arrived:
	case <-time.After(patience):
		t.Fatal("the script is not called")
	}
}

// release lets the call go on.
func (h *hold) release() {
	select {
	case <-h.letGo:
	default:
		close(h.letGo)
	}
}

// cut ends all connections, and while down is true takes no others.
func (l *line) cut(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
	for c := range l.conns {
		_ = c.Close()
	}
	for sha, h := range l.holds {
		delete(l.holds, sha)
		h.release()
	}
}

func shaOf(script string) string {
	sum := sha1.Sum([]byte(script)) //nolint:gosec // see above
	return hex.EncodeToString(sum[:])
}
