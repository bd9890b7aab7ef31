package integration

import (
	"bytes"
	wire "encoding/binary" // binary is the daemon here
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// Postgres 18 goes past changes whose publication is missing, and says so in a notice
// only. The tests put that notice into the stream of whatever version there is.

// The gap must be known to whoever attaches next, also when the daemon is killed before
// it could itself.
func TestSkippedChangesAreAGapForTheNextDaemon(t *testing.T) {
	w := itemsWorld(t, 200)
	source := newNoticing(t, w)
	p := w.start()
	w.cacheRows(0, 100)
	source.refuse.Store(true) // nobody attaches again
	source.notice.Store(true)
	w.eventually("the gap is published", func() bool { return w.control()["state"] == "gap" })
	p.kill()
	w.wantKept(0, 100)
	source.refuse.Store(false)
	p = w.launch()
	w.eventually("the gap is closed", func() bool { return p.logged("gap closed") > 0 })
	w.settle(p)
	w.wantGone(0, 100)
	if p.logged("the server skipped changes") == 0 {
		t.Error("the log does not say why")
	}
	p.stop()
}

// Redis is away when the notice comes, so the gap can be published only later. The
// slot would skip the same changes again, so it is made anew.
func TestSkippedChangesWithoutRedis(t *testing.T) {
	t.Parallel() // it waits more than it works
	pg, rd := servertest.Postgres(t), servertest.PrivateRedis(t, localserver.RedisOptions{})
	route := newRoute(t, rd.Address())
	w := newWorldOn(t, pg.URL, rd.URL(), itemsSchema(200), itemsMappings)
	w.reconfigure(rd.URL(), "redis://"+route.l.Addr().String()+"/0")
	source := newNoticing(t, w)
	p := w.start()
	w.cacheRows(0, 100)
	created := func() string {
		return query[string](w, "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1", w.slot)
	}
	before := created()
	route.lead("")
	source.notice.Store(true)
	w.eventually("the session has ended", func() bool { return p.logged("not streaming") > 0 })
	route.lead(rd.Address())
	w.eventually("the gap is closed", func() bool { return p.logged("gap closed") > 0 })
	w.settle(p)
	w.wantGone(0, 100)
	if created() == before {
		t.Error("the slot is the same, and would skip the same changes again")
	}
	w.cacheRows(0, 10)
	w.update(0, 5)
	w.settle(p)
	w.wantGone(0, 5)
	w.wantKept(5, 10)
	if n := p.logged("gap closed"); n != 1 {
		t.Errorf("%d gaps, want one", n)
	}
	p.stop()
}

// noticing is a source whose walsender can be made to say that it skipped changes.
type noticing struct {
	l      net.Listener
	target string
	wg     sync.WaitGroup
	notice atomic.Bool // put one into the replication stream
	refuse atomic.Bool // take no new connections

	mu    sync.Mutex
	conns []net.Conn
}

// newNoticing stands in front of the world's source, for the daemon only.
func newNoticing(t *testing.T, w *world) *noticing {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(w.url)
	if err != nil {
		t.Fatal(err)
	}
	n := &noticing{l: l, target: u.Host}
	u.Host = l.Addr().String()
	w.reconfigure(w.url, u.String())
	n.wg.Go(n.accept)
	t.Cleanup(func() {
		_ = l.Close()
		n.mu.Lock()
		for _, c := range n.conns {
			_ = c.Close()
		}
		n.mu.Unlock()
		n.wg.Wait()
	})
	return n
}

func (n *noticing) accept() {
	for {
		in, err := n.l.Accept()
		if err != nil {
			return
		}
		if n.refuse.Load() {
			_ = in.Close()
			continue
		}
		out, err := net.Dial("tcp", n.target)
		if err != nil {
			_ = in.Close()
			continue
		}
		n.mu.Lock()
		n.conns = append(n.conns, in, out)
		n.mu.Unlock()
		n.wg.Go(func() { n.serve(in, out) })
	}
}

// serve hands on one connection. The server's side is read message by message, so that
// a notice can stand between two.
func (n *noticing) serve(in, out net.Conn) {
	defer in.Close()
	defer out.Close()
	var length [4]byte
	if _, err := io.ReadFull(in, length[:]); err != nil {
		return
	}
	startup := make([]byte, wire.BigEndian.Uint32(length[:])-4)
	if _, err := io.ReadFull(in, startup); err != nil {
		return
	}
	if _, err := out.Write(append(length[:], startup...)); err != nil {
		return
	}
	streams := bytes.Contains(startup, []byte("replication\x00database"))
	n.wg.Go(func() { forward(out, in) })
	for {
		var head [5]byte
		if _, err := io.ReadFull(out, head[:]); err != nil {
			return
		}
		body := make([]byte, wire.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(out, body); err != nil {
			return
		}
		message := append(head[:], body...)
		if streams && head[0] == 'd' && n.notice.CompareAndSwap(true, false) {
			fields := "SWARNING\x00VWARNING\x00C55000\x00Mskipped loading publication\x00\x00"
			message = append(message, 'N')
			message = wire.BigEndian.AppendUint32(message, uint32(4+len(fields)))
			message = append(message, fields...)
		}
		if _, err := in.Write(message); err != nil {
			return
		}
	}
}
