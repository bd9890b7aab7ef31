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
)

// noticing is a source whose walsender can be made to say that it skipped changes, or
// to say nothing.
type noticing struct {
	l      net.Listener
	target string
	url    string // leads here, and on to the world's source
	wg     sync.WaitGroup
	notice atomic.Bool // put one into the replication stream
	refuse atomic.Bool // take no new connections
	stall  sync.Mutex  // held: nothing of the replication stream is handed on

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
	n.url = u.String()
	w.reconfigure(w.url, n.url)
	n.wg.Go(n.accept)
	t.Cleanup(func() {
		_ = l.Close()
		_ = n.stall.TryLock() // a test that failed may still hold it
		n.stall.Unlock()
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

// wait waits for as long as a test holds the stream up.
func (n *noticing) wait() {
	n.stall.Lock()
	defer n.stall.Unlock()
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
		if streams && head[0] == 'd' {
			n.wait()
		}
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
