package sink

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"
)

// running returns an Early that is connected, of a sink attached to url.
func running(t *testing.T, url string) (*Redis, *Early) {
	t.Helper()
	r := attached(t, url)
	e := r.NewEarly(func(error) {})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = e.Run(ctx) // nil, always
	}()
	t.Cleanup(func() { cancel(); <-ended })
	eventually(t, "a connection for early removals", func() bool { return e.conn.Load() != nil })
	return r, e
}

func TestEarlyRemovesAtOnce(t *testing.T) {
	s, c := server(t)
	const db = 3
	if err := c.Do(t.Context(), "ACL", "SETUSER", "inv", "on", ">p%ss", "~*", "+@all").Err(); err != nil {
		t.Fatal(err)
	}
	third := redis.NewClient(&redis.Options{Addr: s.Address(), DB: db})
	defer third.Close()
	for name, url := range map[string]string{
		"plain":               s.URL(),
		"a Unix socket":       s.SocketURL(),
		"a user and database": "redis://inv:p%25ss@" + s.Address() + "/3",
	} {
		t.Run(name, func(t *testing.T) {
			client := c
			if strings.HasSuffix(url, "/3") {
				client = third
			}
			r, e := running(t, url)
			keys := numbered("k:%d", 300)
			fill(t, client, append(keys, "kept")...)
			for round := range 3 { // the buffer is used again
				for _, k := range keys[round*100 : round*100+100] {
					if !e.Add([]byte(k)) {
						t.Fatalf("%s is not taken", k)
					}
				}
				e.Flush()
				e.Flush() // nothing to send
			}
			eventually(t, "the keys to go", func() bool { return present(t, client, keys...) == 0 })
			if present(t, client, "kept") != 1 {
				t.Error("a key is gone that nobody named")
			}
			eventually(t, "the answers", func() bool { return e.conn.Load().waiting.Load() == 0 })
			if n := testutil.ToFloat64(r.metrics.early); n != 300 {
				t.Errorf("%v keys counted", n)
			}
		})
	}
}

// A Redis that does not answer costs the goroutine that reads the log nothing:
// what is under way is bounded, and the rest is left to the batches.
func TestEarlyDoesNotWait(t *testing.T) {
	s, c := server(t)
	_, e := running(t, s.URL())
	if err := c.Do(t.Context(), "CLIENT", "PAUSE", 60_000, "ALL").Err(); err != nil {
		t.Fatal(err)
	}
	sent := 0
	for ; e.Add([]byte("k")); sent++ {
		e.Flush()
		if sent > 2*earlyWaiting {
			t.Fatal("it goes on for ever")
		}
	}
	if sent != earlyWaiting {
		t.Errorf("%d commands are under way", sent)
	}
	n := 0
	conn := e.conn.Load()
	conn.waiting.Store(0)
	for ; e.Add(make([]byte, 100)); n++ { // one command is bounded too
	}
	if n == 0 || n*100 > earlyBytes {
		t.Errorf("%d keys of 100 bytes in one command", n)
	}
	e.buf, e.keys = e.buf[:commandHead], 0
}

func TestEarlyComesBack(t *testing.T) {
	s, c := server(t)
	r, e := running(t, s.URL())
	first := e.conn.Load()
	if err := c.Do(t.Context(), "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another connection", func() bool { c := e.conn.Load(); return c != nil && c != first })
	if testutil.ToFloat64(r.metrics.earlyFailed) == 0 {
		t.Error("the lost connection is not counted")
	}
	fill(t, c, "a")
	if !e.Add([]byte("a")) {
		t.Fatal("not taken")
	}
	e.Flush()
	eventually(t, "the key to go", func() bool { return present(t, c, "a") == 0 })
}

// A refusal ends the connection: nothing is taken for removed early by a server
// that does not do it.
func TestEarlyIsRefused(t *testing.T) {
	s, c := server(t)
	rights := func(rules ...any) {
		t.Helper()
		if err := c.Do(t.Context(), append([]any{"ACL", "SETUSER", "inv"}, rules...)...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	rights("on", ">pass", "~*", "+@all")
	r, e := running(t, "redis://inv:pass@"+s.Address())
	first := e.conn.Load()
	rights("-unlink")
	e.Add([]byte("a"))
	e.Flush()
	eventually(t, "the connection to end", func() bool { return e.conn.Load() != first && testutil.ToFloat64(r.metrics.earlyFailed) > 0 })
}

// A peer that has stopped reading while more is under way than the kernel takes is
// given up within the time of one write, goodbyes of TLS included.
func TestEarlyGivesUpAtOnce(t *testing.T) {
	cert, _ := certificate(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	shaken := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil && c.(*tls.Conn).HandshakeContext(t.Context()) == nil {
			shaken <- c // and never reads
		}
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { (<-shaken).Close() }()
	s, _ := server(t)
	e := attached(t, s.URL()).NewEarly(func(error) {})
	e.conn.Store(&earlyConn{Conn: c})
	began := time.Now()
	for n := 0; e.Add(make([]byte, earlyBytes-commandHead-16)); n++ {
		e.conn.Load().waiting.Store(0) // whatever the kernel takes
		began = time.Now()
		e.Flush()
		if n == 10_000 {
			t.Fatal("nothing ever waits")
		}
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %s to give up", took)
	}
}
