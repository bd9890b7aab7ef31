package replication

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// How reads are paced. The walsender writes every message to its socket as soon
// as that is writable. A reader that empties the socket at once makes it pay a
// system call, a trip through the network stack and a wake-up per message,
// which is what limits the whole pipeline: on one machine 50k one-row
// transactions a second, and 170k with the pacing below (docs/performance.md).
const (
	// catchUpPause lets WAL gather between reads while there is a backlog. The queue
	// of a Unix socket holds some 280 messages whatever the reader does, and after
	// that the walsender waits: there the pause is about as long as it takes to fill.
	catchUpPause     = time.Millisecond
	catchUpPauseUnix = 250 * time.Microsecond
	// A transaction that is sent later than backlogAge after its commit is a
	// backlog, and so is a window of catchUpWindow with more than catchUpBytes read in
	// it. When neither holds for slowPauses in a row, it has ended: with what a hiccup
	// left behind the pauses must not last longer than the hiccup.
	backlogAge    = 20 * time.Millisecond
	catchUpWindow = 10 * time.Millisecond
	catchUpBytes  = 64 << 10
	slowPauses    = 3
	// loopbackReceiveBuffer keeps the receive window so small that it is shut for
	// nearly all of a pause. What the walsender writes meanwhile stays in *its* send
	// queue, where a message costs a memory copy, and leaves in bulk when the window
	// opens; into an open window each message goes alone. With the kernel's
	// default the same code runs in either mode, by chance, at a 2.5th of the speed
	// in the slow one. It must be set before connecting: a sender shapes its segments
	// by the largest window ever offered. Only for loopback, where a
	// round trip costs nothing; over a network it would throttle.
	loopbackReceiveBuffer = 8 << 10
	// scratchSize is the read size under TLS, whose own reads are small.
	scratchSize = 64 << 10
)

// pacedConn is a connection whose reads are paced while there is a backlog. It
// lies below TLS, so that both kinds of connection are paced alike. Reads belong
// to one goroutine.
type pacedConn struct {
	*socket
	enabled bool // set once the stream has started; before it, reads pass through
	pause   time.Duration

	catchUp  bool
	late     bool      // the last transaction was sent long after its commit
	slow     int       // pauses in a row that brought little
	windowAt time.Time // start of the current window
	window   int       // bytes read in it

	scratch []byte // holds what TLS has not asked for yet
	pending []byte
}

// dialPaced returns a dial function for the client library, and what gives the connection that
// it made last. The library dials once more to cancel a query on a connection that it
// gives up, from a goroutine of its own, so each connection is one of its own.
func dialPaced() (dial func(ctx context.Context, network, addr string) (net.Conn, error), made func() *pacedConn) {
	var last atomic.Pointer[pacedConn]
	d := &net.Dialer{
		KeepAlive: 30 * time.Second,
		Control: func(_, address string, c syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil || !ap.Addr().IsLoopback() {
				return nil // a Unix socket or a remote host
			}
			var set error
			if err := c.Control(func(fd uintptr) {
				set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, loopbackReceiveBuffer)
			}); err != nil {
				return err
			}
			return set
		},
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		paced := &pacedConn{pause: catchUpPause}
		if paced.socket, err = newSocket(c); err != nil {
			return nil, err
		}
		if network == "unix" {
			paced.pause = catchUpPauseUnix
		}
		last.Store(paced)
		return paced, nil
	}, last.Load
}

// Read reads into p when p is large, and through its own buffer when it is not.
func (c *pacedConn) Read(p []byte) (int, error) {
	if len(c.pending) > 0 {
		n := copy(p, c.pending)
		c.pending = c.pending[n:]
		return n, nil
	}
	if !c.enabled {
		return c.socket.Read(p)
	}
	if len(p) >= scratchSize/4 {
		return c.paced(p)
	}
	if c.scratch == nil {
		c.scratch = make([]byte, scratchSize)
	}
	n, err := c.paced(c.scratch)
	c.pending = c.scratch[:n]
	n = copy(p, c.pending)
	c.pending = c.pending[n:]
	return n, err
}

// paced never waits for more than a pause when there is something to read.
func (c *pacedConn) paced(p []byte) (int, error) {
	if c.catchUp {
		pause(c.pause)
		n := c.ReadNow(p)
		if !c.late && n < int(catchUpBytes*c.pause/catchUpWindow) {
			if c.slow++; c.slow >= slowPauses {
				c.catchUp, c.window, c.windowAt = false, 0, time.Time{}
			}
		} else {
			c.slow = 0
		}
		if n > 0 {
			return n, nil
		}
	}
	n, err := c.socket.Read(p)
	now := time.Now()
	if now.Sub(c.windowAt) > catchUpWindow {
		c.window, c.windowAt = 0, now
	}
	if c.window += n; c.window > catchUpBytes {
		c.catchUp, c.slow = true, 0
	}
	return n, err
}

// behind is told for each transaction whether it was sent late.
func (c *pacedConn) behind(late bool) {
	if c.late = late; late {
		c.catchUp, c.slow = true, 0
	}
}
