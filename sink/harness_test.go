package sink

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

func TestMain(m *testing.M) {
	redis.SetLogger(silent{}) // the pool logs each refused connection to stderr
	servertest.VerifyMain(m)
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

var testSource = Source{SystemID: "7300000000000000001", Timeline: 1, Epoch: "started at noon"}

// open returns a sink that is not attached.
func open(t testing.TB, url string, change ...func(*Options)) *Redis {
	t.Helper()
	o := Options{Config: load(t, url).Redis, Slot: "shop", Region: "eu-west-1"}
	o.Config.ScanRate = 10_000_000
	for _, f := range change {
		f(&o)
	}
	r, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close the sink: %v", err)
		}
	})
	return r
}

// attached returns a sink that is ready for batches, in state ok.
func attached(t testing.TB, url string, change ...func(*Options)) *Redis {
	t.Helper()
	r := open(t, url, change...)
	mustAttach(t, r)
	if err := r.StartGeneration(t.Context(), testSource); err != nil {
		t.Fatal(err)
	}
	if err := r.SetState(t.Context(), StateOK, "test"); err != nil {
		t.Fatal(err)
	}
	return r
}

func mustAttach(t testing.TB, r *Redis) Control {
	t.Helper()
	c, err := r.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// stored is the control hash as it is in Redis, whatever the sink remembers.
func stored(t testing.TB, r *Redis) Control {
	t.Helper()
	c, err := r.load(t.Context(), r.backend.Load())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// checked has the sink look at its nodes now, as it does once a second.
func checked(t testing.TB, r *Redis) error {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.verified = time.Time{}
	_, err := r.ready(t.Context())
	return err
}

// position is a transaction boundary at a commit LSN.
func position(at lsn.LSN) ordering.Position {
	return ordering.Position{Timeline: 1, CommitLSN: at, EndLSN: at + 48, CommitTime: time.Unix(1_700_000_000, 0).Add(time.Duration(at))}
}

// batch is one transaction with these invalidations.
func batch(t testing.TB, at lsn.LSN, invs ...mapping.Invalidation) *ordering.Batch {
	t.Helper()
	q := ordering.NewQueue(ordering.Position{})
	q.Lock()
	p := position(at)
	q.Begin(ordering.Txn{XID: uint32(at), CommitLSN: at, CommitTime: p.CommitTime})
	for i := range invs {
		q.Add(&invs[i])
	}
	q.Commit(p, time.Time{})
	q.Unlock()
	b := q.TryTake()
	if b == nil {
		t.Fatal("an empty batch")
	}
	return b
}

func deletes(f *mapping.Family, keys ...string) []mapping.Invalidation {
	invs := make([]mapping.Invalidation, 0, len(keys))
	for _, k := range keys {
		invs = append(invs, mapping.Invalidation{Op: mapping.OpDelete, Family: f, Key: []byte(k)})
	}
	return invs
}

func numbered(format string, n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf(format, i)
	}
	return keys
}

// fill stores a value under each key.
func fill(t testing.TB, c redis.UniversalClient, keys ...string) {
	t.Helper()
	for len(keys) > 0 {
		n := min(len(keys), 2000)
		p := c.Pipeline()
		for _, k := range keys[:n] {
			p.Set(t.Context(), k, "value", 0)
		}
		if _, err := p.Exec(t.Context()); err != nil {
			t.Fatal(err)
		}
		keys = keys[n:]
	}
}

// present counts the keys that exist.
func present(t testing.TB, c redis.UniversalClient, keys ...string) int {
	t.Helper()
	if len(keys) == 0 {
		return 0
	}
	p := c.Pipeline()
	cmds := make([]*redis.IntCmd, len(keys))
	for i, k := range keys {
		cmds[i] = p.Exists(t.Context(), k)
	}
	if _, err := p.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, c := range cmds {
		n += int(c.Val())
	}
	return n
}

func server(t testing.TB, args ...string) (*localserver.Redis, *redis.Client) {
	t.Helper()
	args = append([]string{"--repl-diskless-sync-delay", "0"}, args...) // a replica is in step at once
	s := servertest.PrivateRedis(t, localserver.RedisOptions{Args: args})
	return s, servertest.RedisClient(t, s.URL())
}

// eventually polls, since servers tell nobody when they have noticed each other.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited too long for: %s", what)
		}
	}
}

// proxy forwards TCP, to a target that can change: the address in a URL that
// leads to another server after a failover.
type proxy struct {
	l  net.Listener
	wg sync.WaitGroup

	mu     sync.Mutex
	target string
	conns  map[net.Conn]bool
	limit  int  // bytes to the server after which everything is cut; 0: none
	silent bool // what the server says is lost
}

func newProxy(t testing.TB, l net.Listener, target string) *proxy {
	t.Helper()
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	p := &proxy{l: l, target: target, conns: make(map[net.Conn]bool)}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) url() string { return "redis://" + p.l.Addr().String() + "/0" }

// lead sends new connections to another server; those there are stay.
func (p *proxy) lead(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// cutAfter closes all connections once so many bytes went to the server.
func (p *proxy) cutAfter(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = n
}

// swallow loses what the server says, but nothing that is said to it.
func (p *proxy) swallow(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = on
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

func (p *proxy) accept() {
	for {
		in, err := p.l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		out, err := net.Dial("tcp", p.target)
		if err != nil {
			p.mu.Unlock()
			in.Close()
			continue
		}
		p.conns[in], p.conns[out] = true, true
		p.mu.Unlock()
		p.wg.Go(func() { p.copy(out, in, true) })
		p.wg.Go(func() { p.copy(in, out, false) })
	}
}

func (p *proxy) copy(dst, src net.Conn, up bool) {
	defer dst.Close()
	buf := make([]byte, 4096)
	for {
		n, err := src.Read(buf)
		if up {
			p.mu.Lock()
			cut := p.limit > 0 && n >= p.limit
			if cut {
				n, p.limit = p.limit, 0
			} else if p.limit > 0 {
				p.limit -= n
			}
			p.mu.Unlock()
			if cut {
				_, _ = dst.Write(buf[:n])
				src.Close()
				return
			}
		}
		if !up {
			p.mu.Lock()
			if p.silent {
				n = 0
			}
			p.mu.Unlock()
		}
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if err != io.EOF {
				return
			}
			return
		}
	}
}

func contains(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("the error lacks %q: %v", p, err)
		}
	}
}
