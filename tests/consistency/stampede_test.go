package consistency

import (
	"context"
	"sync"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

// burst has everybody read one cell at once, and returns when all have it.
func (s *stage) burst(c cell, each int, readers ...reader) {
	s.t.Helper()
	start := make(chan struct{})
	var wg sync.WaitGroup
	for _, r := range readers {
		for range each {
			wg.Go(func() {
				<-start
				if _, err := s.look(context.Background(), r, c); err != nil {
					s.t.Errorf("read %s: %v", c, err)
				}
			})
		}
	}
	close(start)
	wg.Wait()
}

func (r *result) loadsSoFar() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.loads
}

// Check 4: a key is cold, or has just been invalidated, and everybody wants it at once.
// Its row is asked for once, in all processes together. (A page whose loader declares what it
// depends on is loaded twice by who does not know that yet, by design.)
func stampede(s *stage) {
	d := s.world.start()
	fleet := s.fleet(4)
	for round := range 3 {
		for i, v := range viewsOf(item, listed, lingering) {
			c := cell{view: v, row: int64(4 * (i + 1))}
			if round > 0 {
				s.change(c.row)
				s.settle(d)
			}
			before := s.result.loadsSoFar()
			s.burst(c, 25, fleet...)
			if n := s.result.loadsSoFar() - before; n != 1 {
				s.t.Errorf("100 readers of %s in 4 processes asked the source %d times, want once", c, n)
			}
			s.burst(c, 5, fleet...)
			if n := s.result.loadsSoFar() - before; n != 1 {
				s.t.Errorf("%s was loaded again although nothing had changed", c)
			}
		}
	}
	s.compareCached()
}

// The one that loads takes longer than the others wait. They load for themselves, not
// before their wait is over, once in each process, and store nothing.
func stampedeWaitBound(s *stage) {
	const wait = 150 * time.Millisecond
	d := s.world.start()
	first, others := s.newLibrary(), s.fleet(2, cache.WithWait(wait))
	c := cell{view: viewsOf(item)[0], row: 4}
	p := s.pauses.next(c)
	slow := s.start(first, c)
	p.await(s)
	before, began := s.result.loadsSoFar(), time.Now()
	s.burst(c, 10, others...)
	if took := time.Since(began); took < wait {
		s.t.Errorf("they loaded after %s, before their wait of %s was over", took, wait)
	}
	if n := s.result.loadsSoFar() - before; n != int64(len(others)) {
		s.t.Errorf("two processes that waited in vain asked the source %d times, want once each", n)
	}
	close(p.resume)
	s.finish(slow)
	before = s.result.loadsSoFar()
	s.burst(c, 10, others...)
	if n := s.result.loadsSoFar() - before; n != 0 {
		s.t.Errorf("the first one's value was not stored: %d loads more", n)
	}
	s.settle(d)
	s.compareCached()
}
