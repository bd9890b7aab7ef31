package main

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// delayed is a proxy that holds everything back by the same time in each direction. With
// a delay that dwarfs all else, the time of an operation counts its round trips.
type delayed struct {
	listener net.Listener
	target   string
	by       time.Duration

	mu    sync.Mutex
	conns []net.Conn
}

func delay(target string, by time.Duration) (*delayed, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &delayed{listener: l, target: target, by: by}
	go d.accept()
	return d, nil
}

func (d *delayed) addr() string { return d.listener.Addr().String() }

func (d *delayed) close() error {
	err := d.listener.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		if closeErr := c.Close(); closeErr != nil && !errors.Is(closeErr, net.ErrClosed) {
			err = errors.Join(err, closeErr)
		}
	}
	return err
}

func (d *delayed) accept() {
	for {
		near, err := d.listener.Accept()
		if err != nil {
			return // closed
		}
		far, err := net.Dial("tcp", d.target)
		if err != nil {
			near.Close()
			continue
		}
		d.mu.Lock()
		d.conns = append(d.conns, near, far)
		d.mu.Unlock()
		go d.pass(near, far)
		go d.pass(far, near)
	}
}

type chunk struct {
	data []byte
	due  time.Time
}

// pass reads on while earlier bytes still wait, so that what was sent together
// arrives together.
func (d *delayed) pass(from io.Reader, to io.WriteCloser) {
	chunks := make(chan chunk, 1024)
	go func() {
		defer to.Close()
		for c := range chunks {
			time.Sleep(time.Until(c.due))
			if _, err := to.Write(c.data); err != nil {
				for range chunks { // let the other end finish
				}
				return
			}
		}
	}()
	defer close(chunks)
	for {
		buf := make([]byte, 16<<10)
		n, err := from.Read(buf)
		if n > 0 {
			chunks <- chunk{buf[:n], time.Now().Add(d.by)}
		}
		if err != nil {
			return
		}
	}
}
