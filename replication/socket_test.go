package replication

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// socketPair returns a socket and its peer.
func socketPair(t *testing.T, network, address string) (*socket, net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSocket(c)
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); peer.Close() })
	return s, peer
}

func TestSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "s") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(dir, "s")} {
		t.Run(network, func(t *testing.T) {
			s, peer := socketPair(t, network, address)
			var wg sync.WaitGroup
			const n = 8 << 20 // more than any buffer holds
			wg.Go(func() {
				if _, err := s.Write(make([]byte, n)); err != nil {
					t.Errorf("write: %v", err)
				}
			})
			wg.Go(func() { _, _ = peer.Write(make([]byte, n)) })
			wg.Go(func() {
				if m, err := io.CopyN(io.Discard, peer, n); err != nil {
					t.Errorf("the peer got %d bytes: %v", m, err)
				}
			})
			if m, err := io.CopyN(io.Discard, s, n); err != nil {
				t.Errorf("read %d bytes: %v", m, err)
			}
			wg.Wait()
			if got := s.ReadNow(make([]byte, 10)); got != 0 {
				t.Errorf("%d bytes out of nothing", got)
			}
			peer.Close()
			if _, err := s.Read(make([]byte, 10)); err != io.EOF {
				t.Errorf("after the peer has closed: %v", err)
			}
			if s.RemoteAddr() == nil || s.LocalAddr() == nil {
				t.Error("no addresses")
			}
		})
	}
}

// waiting starts a Read that finds nothing, and returns when it is under way.
func waiting(s *socket) <-chan error {
	ended := make(chan error, 1)
	go func() {
		_, err := s.Read(make([]byte, 1))
		ended <- err
	}()
	for len(ended) == 0 && s.using.TryLock() { // a Read holds it shared
		s.using.Unlock()
		runtime.Gosched()
	}
	return ended
}

func TestSocketDeadlines(t *testing.T) {
	s, peer := socketPair(t, "tcp", "127.0.0.1:0")
	ends := func(what string, got <-chan error, want error) {
		t.Helper()
		select {
		case err := <-got:
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", what, err, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: the read goes on", what)
		}
	}
	for range 20 { // whether it has come to wait already is chance
		_ = s.SetReadDeadline(time.Time{})
		w := waiting(s)
		_ = s.SetReadDeadline(time.Unix(1, 0))
		ends("a deadline in the past, while it waits", w, os.ErrDeadlineExceeded)
	}
	ends("a deadline in the past, before", waiting(s), os.ErrDeadlineExceeded)
	_ = s.SetReadDeadline(time.Now().Add(time.Millisecond))
	ends("a deadline that comes", waiting(s), os.ErrDeadlineExceeded)

	_ = s.SetReadDeadline(time.Now().Add(time.Hour))
	w := waiting(s)
	_ = s.SetReadDeadline(time.Now().Add(time.Millisecond))
	ends("a deadline that is brought forward", w, os.ErrDeadlineExceeded)

	_ = s.SetReadDeadline(time.Now().Add(time.Millisecond))
	w = waiting(s)
	_ = s.SetReadDeadline(time.Time{})
	if _, err := peer.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := <-w; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // either came first
		t.Errorf("a deadline that was taken away: %v", err)
	}

	_ = s.SetDeadline(time.Now().Add(time.Millisecond))
	if n, err := s.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a write that nobody reads: %d, %v", n, err)
	}
	_ = s.SetDeadline(time.Time{})
	w = waiting(s)
	written := make(chan error, 1)
	go func() {
		_, err := s.Write(make([]byte, 64<<20))
		written <- err
	}()
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	ends("close", w, net.ErrClosed)
	ends("close, writing", written, net.ErrClosed)
	if err := s.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	ends("closed", waiting(s), net.ErrClosed)
	if err := s.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Errorf("a deadline after close: %v", err)
	}
}
