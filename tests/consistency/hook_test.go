package consistency

import (
	"bytes"
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisPauses stop a client's commands to Redis: before they are sent, or when they are
// answered and the client does not know it yet. They do it at the connection.
type redisPauses struct {
	over chan struct{} // closed at the scenario's end: nobody is held any more

	mu    sync.Mutex
	armed []*commandPause
	used  bool // no deadline counts any more: who is stopped is not to fail
}

type commandPause struct {
	pause
	name, key []byte // as they are on the wire
	after     bool
}

func newRedisPauses() *redisPauses { return &redisPauses{over: make(chan struct{})} }

// next stops the next such command on a key before it is sent.
func (p *redisPauses) next(command, key string) *pause { return p.arm(command, key, false) }

// answered stops the client when it has the answer, and does not know it yet.
func (p *redisPauses) answered(command, key string) *pause { return p.arm(command, key, true) }

func (p *redisPauses) arm(command, key string, after bool) *pause {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := &commandPause{pause: pause{reached: make(chan struct{}), resume: make(chan struct{})},
		name: []byte("\r\n" + command + "\r\n"), key: []byte("\r\n" + key + "\r\n"), after: after}
	p.armed, p.used = append(p.armed, x), true
	return &x.pause
}

// match takes the pause that is for what is about to be written.
func (p *redisPauses) match(b []byte, after bool) *commandPause {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.armed, func(x *commandPause) bool {
		return x.after == after && bytes.Contains(b, x.key) && bytes.Contains(bytes.ToLower(b), x.name)
	})
	if i < 0 {
		return nil
	}
	x := p.armed[i]
	p.armed = slices.Delete(p.armed, i, i+1)
	return x
}

func (p *redisPauses) hold(x *commandPause) {
	close(x.reached)
	select {
	case <-x.resume:
	case <-p.over:
	}
}

func (p *redisPauses) untimed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used
}

// dial is for redis.Options.
func (p *redisPauses) dial(o *redis.Options) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{Timeout: o.DialTimeout}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &pausedConn{Conn: conn, p: p}, nil
	}
}

// pausedConn carries one command, or one pipeline, at a time.
type pausedConn struct {
	net.Conn
	p        *redisPauses
	answered *commandPause
}

func (c *pausedConn) Write(b []byte) (int, error) {
	if x := c.p.match(b, false); x != nil {
		c.p.hold(x)
	}
	c.answered = c.p.match(b, true)
	return c.Conn.Write(b)
}

func (c *pausedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if x := c.answered; x != nil {
		c.answered = nil
		c.p.hold(x)
	}
	return n, err
}

func (c *pausedConn) SetDeadline(t time.Time) error     { return c.Conn.SetDeadline(c.deadline(t)) }
func (c *pausedConn) SetReadDeadline(t time.Time) error { return c.Conn.SetReadDeadline(c.deadline(t)) }
func (c *pausedConn) SetWriteDeadline(t time.Time) error {
	return c.Conn.SetWriteDeadline(c.deadline(t))
}

func (c *pausedConn) deadline(t time.Time) time.Time {
	if c.p.untimed() {
		return time.Time{}
	}
	return t
}
