package replication

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socket is a connection that the Go runtime does not watch. The runtime keeps each
// of its own in an epoll set, and wakes a thread for every segment that arrives, also
// when nobody reads: with one message a segment, that is a wake-up that the
// *sender* pays for, in the middle of what limits the whole pipeline. A socket
// outside of the set costs its sender nothing while its reader pauses.
//
// Read and Write may be called at the same time, by one goroutine each.
type socket struct {
	fd            int
	local, remote net.Addr
	wake          [2]int // a pipe: a byte in it interrupts a waiting Read

	// Deadlines in nanoseconds after began, 0 for none: a clock that is set must neither
	// end a wait nor prolong it.
	readBy, writeBy atomic.Int64
	began           time.Time

	using  sync.RWMutex // held shared while fd is in use, so that its number is not reused
	closed atomic.Bool
	once   sync.Once
}

// interruptWrites is how soon a waiting Write notices a changed deadline. Writes
// are a few bytes and next to never wait.
const interruptWrites = 20 * time.Millisecond

// newSocket takes c over: c is closed, and its connection lives on in the socket.
func newSocket(c net.Conn) (_ *socket, err error) {
	defer c.Close()
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("a %T has no file descriptor", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{fd: -1, local: c.LocalAddr(), remote: c.RemoteAddr(), began: time.Now()}
	if cerr := raw.Control(func(fd uintptr) { s.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	if err := unix.Pipe(s.wake[:]); err != nil {
		unix.Close(s.fd)
		return nil, os.NewSyscallError("pipe", err)
	}
	for _, fd := range s.wake {
		unix.CloseOnExec(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			s.Close()
			return nil, os.NewSyscallError("fcntl", err)
		}
	}
	return s, nil
}

// Read implements net.Conn.
func (s *socket) Read(p []byte) (int, error) {
	s.using.RLock()
	defer s.using.RUnlock()
	for {
		switch {
		case s.closed.Load():
			return 0, net.ErrClosed
		case s.passed(s.readBy.Load()):
			return 0, os.ErrDeadlineExceeded
		}
		n, err := unix.Read(s.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil && err != unix.EAGAIN:
			return 0, os.NewSyscallError("read", err)
		case err == nil && n == 0 && len(p) > 0:
			return 0, io.EOF
		case err == nil:
			return n, nil
		}
		fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.wake[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, s.pollTimeout(s.readBy.Load())); err != nil && err != unix.EINTR {
			return 0, os.NewSyscallError("poll", err)
		}
		if fds[1].Revents != 0 {
			var discard [16]byte
			_, _ = unix.Read(s.wake[0], discard[:])
		}
	}
}

// ReadNow reads what is there without waiting, until p is full: with each read the
// window opens and the kernel moves on what has queued at the sender. End of file and
// errors are left to the next Read.
func (s *socket) ReadNow(p []byte) (n int) {
	s.using.RLock()
	defer s.using.RUnlock()
	for n < len(p) && !s.closed.Load() {
		m, err := unix.Read(s.fd, p[n:])
		if err == unix.EINTR {
			continue
		}
		if m <= 0 || err != nil {
			break
		}
		n += m
	}
	return n
}

// Write implements net.Conn.
func (s *socket) Write(p []byte) (n int, err error) {
	s.using.RLock()
	defer s.using.RUnlock()
	for n < len(p) {
		switch {
		case s.closed.Load():
			return n, net.ErrClosed
		case s.passed(s.writeBy.Load()):
			return n, os.ErrDeadlineExceeded
		}
		m, err := unix.Write(s.fd, p[n:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}
			if _, err := unix.Poll(fds, int(interruptWrites/time.Millisecond)); err != nil && err != unix.EINTR {
				return n, os.NewSyscallError("poll", err)
			}
		case err != nil:
			return n, os.NewSyscallError("write", err)
		default:
			n += m
		}
	}
	return n, nil
}

// Close implements net.Conn. It interrupts a Read and a Write that wait.
func (s *socket) Close() error {
	err := net.ErrClosed
	s.once.Do(func() {
		s.closed.Store(true)
		s.interrupt()
		s.using.Lock()
		defer s.using.Unlock()
		err = errors.Join(unix.Close(s.fd), unix.Close(s.wake[0]), unix.Close(s.wake[1]))
	})
	return err
}

// SetDeadline implements net.Conn.
func (s *socket) SetDeadline(t time.Time) error {
	_ = s.SetWriteDeadline(t)
	return s.SetReadDeadline(t)
}

// SetReadDeadline implements net.Conn. A Read that waits obeys it at once.
func (s *socket) SetReadDeadline(t time.Time) error {
	now := s.deadline(t)
	before := s.readBy.Swap(now)
	if now != 0 && (before == 0 || now < before) { // a later one is noticed when the earlier has passed
		s.using.RLock()
		defer s.using.RUnlock()
		if !s.closed.Load() {
			s.interrupt()
		}
	}
	return nil
}

// SetWriteDeadline implements net.Conn.
func (s *socket) SetWriteDeadline(t time.Time) error {
	s.writeBy.Store(s.deadline(t))
	return nil
}

// LocalAddr implements net.Conn.
func (s *socket) LocalAddr() net.Addr { return s.local }

// RemoteAddr implements net.Conn.
func (s *socket) RemoteAddr() net.Addr { return s.remote }

// interrupt makes a waiting Read look again. A full pipe is as good.
func (s *socket) interrupt() { _, _ = unix.Write(s.wake[1], []byte{0}) }

func (s *socket) deadline(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return max(1, int64(t.Sub(s.began)))
}

func (s *socket) passed(deadline int64) bool {
	return deadline != 0 && int64(time.Since(s.began)) >= deadline
}

// pollTimeout is the time until the deadline in milliseconds, rounded up; -1
// without one.
func (s *socket) pollTimeout(deadline int64) int {
	if deadline == 0 {
		return -1
	}
	left := time.Duration(deadline) - time.Since(s.began)
	return int(max(0, min(left, time.Hour)+time.Millisecond-1) / time.Millisecond)
}
