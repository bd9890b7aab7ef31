package tap

import (
	"context"
	"io"
	"sync/atomic"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

const (
	printerLines = 512
	// printerPatience is how long the stream is held up for a reader that does not
	// read (a pager, a full pipe) before lines are left out for it.
	printerPatience = 5 * time.Second
	// closePatience bounds the wait for such a reader at the end.
	closePatience = time.Second
)

// printer writes lines in a goroutine of its own, so that a reader who stops reading
// stops nothing else, and tells of those that are missing where they are missing.
type printer struct {
	out     io.Writer
	notice  func(missing int64) []byte
	lines   chan []byte
	space   chan struct{} // a line was taken
	done    chan struct{}
	failed  atomic.Pointer[error]
	stalled bool // the last wait was in vain; belongs to print

	missing atomic.Int64 // since the last notice
	total   atomic.Int64
}

func newPrinter(out io.Writer, notice func(int64) []byte) *printer {
	p := &printer{out: out, notice: notice, lines: make(chan []byte, printerLines), space: make(chan struct{}, 1), done: make(chan struct{})}
	go p.run()
	return p
}

func (p *printer) run() {
	defer close(p.done)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.tell()
				return
			}
			p.tell()
			p.write(line)
			select {
			case p.space <- struct{}{}:
			default:
			}
		case <-tick.C:
			p.tell()
		}
	}
}

func (p *printer) tell() {
	if n := p.missing.Swap(0); n > 0 {
		p.write(p.notice(n))
	}
}

func (p *printer) write(line []byte) {
	if p.failed.Load() != nil {
		return
	}
	if _, err := p.out.Write(line); err != nil {
		p.failed.Store(&err)
	}
}

func (p *printer) leaveOut() {
	p.missing.Add(1)
	p.total.Add(1)
}

func (p *printer) leftOutTotal() int64 { return p.total.Load() }

// print hands a line on. While the reader is behind it waits a little, answering the
// server meanwhile; then lines are left out until there is room again.
func (p *printer) print(ctx context.Context, stream *replication.Stream, line []byte) (printed bool, err error) {
	if err := p.failed.Load(); err != nil {
		return false, *err
	}
	if p.offer(line) {
		return true, nil
	}
	if !p.stalled {
		wait, cancel := context.WithTimeout(ctx, printerPatience)
		defer cancel()
		for wait.Err() == nil {
			if err := stream.Hold(wait, p.space); err != nil && (ctx.Err() != nil || wait.Err() == nil) {
				return false, err
			}
			if p.offer(line) {
				return true, nil
			}
		}
		p.stalled = true
	}
	p.leaveOut()
	return false, nil
}

func (p *printer) offer(line []byte) bool {
	select {
	case p.lines <- line:
		p.stalled = false
		return true
	default:
		return false
	}
}

// close waits for what was handed on to be written, unless the reader has gone.
func (p *printer) close() error {
	close(p.lines)
	timer := time.NewTimer(closePatience)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
	}
	if err := p.failed.Load(); err != nil {
		return *err
	}
	return nil
}
