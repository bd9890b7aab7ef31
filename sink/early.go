package sink

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Bounds of what is removed early. What does not fit is left to the batch, which
// removes it anyway.
const (
	earlyKeys    = 512      // of one command
	earlyBytes   = 16 << 10 // of one command
	earlyWaiting = 32       // commands without an answer
	// earlyWrite bounds a write, which the goroutine that reads the log waits for. With
	// so little under way it only ever waits for a peer that is gone.
	earlyWrite = 5 * time.Millisecond
	earlyPause = time.Second // before another attempt to connect

	// commandHead is room for *<n>\r\n$6\r\nUNLINK\r\n before the keys.
	commandHead = 32
)

// Early removes keys at once, while their batch still waits at the visibility
// gate. It saves the gate's question from every key's latency and proves nothing: a
// reader may fill the old row back until the change is visible, and an error is
// only counted. The batch removes the keys again, after the gate, and that is
// what counts. Removing a key that is not there costs Redis next to nothing.
//
// Deletes only: a version that was moved early would not move again. Not in a
// cluster, where it would cost a round trip to each node.
//
// It has a connection of its own and writes without waiting for the answers, which
// Run reads: handing keys to another goroutine, or waiting for a client library's
// round trip, costs as much as everything else between the log and Redis. Add and
// Flush belong to one goroutine.
type Early struct {
	r    *Redis
	conn atomic.Pointer[earlyConn] // nil while there is none
	told func(error)               // how it goes: nil once it is connected
	buf  []byte                    // commandHead bytes, then the keys
	keys int
}

type earlyConn struct {
	net.Conn
	waiting atomic.Int32
}

// drop closes a connection at once. TLS would say goodbye first, which waits for
// seconds where the peer has stopped reading.
func drop(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	_ = c.Close() // it is given up, whatever that says
}

// NewEarly returns an Early; Run connects it. told hears of each connection, and of what
// ended it or kept it from coming about.
func (r *Redis) NewEarly(told func(error)) *Early {
	return &Early{r: r, told: told, buf: make([]byte, commandHead, commandHead+earlyBytes)}
}

// Add notes a key for the next Flush, and says whether it did.
func (e *Early) Add(key []byte) bool {
	c := e.conn.Load()
	if c == nil || e.keys >= earlyKeys || len(e.buf)+len(key) > earlyBytes || c.waiting.Load() >= earlyWaiting {
		return false
	}
	e.buf = append(e.buf, '$')
	e.buf = strconv.AppendInt(e.buf, int64(len(key)), 10)
	e.buf = append(e.buf, "\r\n"...)
	e.buf = append(e.buf, key...)
	e.buf = append(e.buf, "\r\n"...)
	e.keys++
	return true
}

// Flush sends what was added.
func (e *Early) Flush() {
	if e.keys == 0 {
		return
	}
	keys := e.keys
	var head [commandHead]byte
	h := append(head[:0], '*')
	h = strconv.AppendInt(h, int64(keys+1), 10)
	h = append(h, "\r\n$6\r\nUNLINK\r\n"...)
	command := e.buf[commandHead-len(h):]
	copy(command, h)
	e.buf, e.keys = e.buf[:commandHead], 0
	c := e.conn.Load()
	if c == nil {
		return
	}
	c.waiting.Add(1)
	err := c.SetWriteDeadline(time.Now().Add(earlyWrite))
	if err == nil {
		_, err = c.Write(command)
	}
	if err != nil {
		e.conn.CompareAndSwap(c, nil)
		drop(c.Conn) // Run finds out, and counts it
		return
	}
	e.r.metrics.early.Add(float64(keys))
}

// Run keeps a connection and reads its answers until ctx ends.
func (e *Early) Run(ctx context.Context) error {
	if e.r.endpoint.kind == cluster {
		return nil
	}
	for ctx.Err() == nil {
		if err := e.serve(ctx); err != nil && ctx.Err() == nil {
			e.r.metrics.earlyFailed.Inc()
			e.r.log.Debug("the connection for early removals was lost; batches remove the keys alone until it is back", "error", err)
			e.told(wrap("remove keys early", "", "", err))
		}
		timer := time.NewTimer(earlyPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}

func (e *Early) serve(ctx context.Context) error {
	be := e.r.backend.Load()
	if err := be.guard.node(be.label); err != nil {
		return err // the applier finds out as well, and acts upon it
	}
	conn, err := be.dialPrimary(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { drop(conn) })
	defer func() { stop(); drop(conn) }()
	answers := bufio.NewReaderSize(conn, 512)
	if err := e.greet(be, conn, answers); err != nil {
		return err
	}
	c := &earlyConn{Conn: conn}
	e.conn.Store(c)
	e.told(nil)
	defer e.conn.CompareAndSwap(c, nil)
	for {
		if err := answer(answers); err != nil {
			return err
		}
		c.waiting.Add(-1)
	}
}

// greet does what a connection needs before its first command.
func (e *Early) greet(be *backend, conn net.Conn, answers *bufio.Reader) error {
	var hello [][]string
	if username, password := be.credentials(); password != "" {
		auth := []string{"AUTH", password}
		if username != "" {
			auth = []string{"AUTH", username, password}
		}
		hello = append(hello, auth)
	}
	if db := e.r.endpoint.db; db != 0 {
		hello = append(hello, []string{"SELECT", strconv.Itoa(db)})
	}
	if err := conn.SetDeadline(time.Now().Add(ioTimeout)); err != nil {
		return err
	}
	for _, words := range hello {
		b := fmt.Appendf(nil, "*%d\r\n", len(words))
		for _, w := range words {
			b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(w), w)
		}
		if _, err := conn.Write(b); err != nil {
			return err
		}
		if err := answer(answers); err != nil {
			return fmt.Errorf("%s: %w", words[0], err)
		}
	}
	return conn.SetDeadline(time.Time{})
}

// answer reads one answer, which is a line.
func answer(r *bufio.Reader) error {
	line, err := r.ReadSlice('\n')
	switch {
	case err != nil:
		return err
	case line[0] == '-':
		text, _, _ := strings.Cut(string(bytes.TrimSpace(line[1:])), repeatedArguments)
		return errors.New(text)
	}
	return nil
}

// dialPrimary makes a connection past the pool, to where the pool's own lead.
func (b *backend) dialPrimary(ctx context.Context) (net.Conn, error) {
	addr := b.label
	if b.endpoint.kind == sentinel {
		b.mu.Lock()
		addr = b.dialed
		b.mu.Unlock()
	}
	return b.dial(ctx, b.endpoint.network, addr)
}
