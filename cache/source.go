package cache

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	// breakerFailures in a row open the breaker, for breakerPause. Then one call tries.
	breakerFailures = 5
	breakerPause    = time.Second
)

// breaker stops calls to a server that does not answer, so that they fail at once instead
// of each waiting for its timeout.
type breaker struct {
	pause time.Duration

	mu       sync.Mutex
	failures int
	until    time.Time
	trying   bool
}

// allow says whether a call may be made; it is followed by done.
func (b *breaker) allow(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.failures < breakerFailures:
		return true
	case now.Before(b.until) || b.trying:
		return false
	}
	b.trying = true
	return true
}

// done tells how a call went.
func (b *breaker) done(failed bool, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trying = false
	if !failed {
		b.failures = 0
		return
	}
	b.failures++
	b.until = now.Add(b.pause)
}

// gate bounds how many loads run at a time, and stops them while the source is down.
type gate struct {
	slots   chan struct{}
	breaker breaker
}

func newGate(n int) *gate {
	return &gate{slots: make(chan struct{}, n), breaker: breaker{pause: breakerPause}}
}

var errBreaker = errors.New("it has not answered several times in a row; it is tried again within a second")

// enter waits for a slot. The caller leaves when it is done.
func (g *gate) enter(ctx context.Context) error {
	select {
	case g.slots <- struct{}{}:
	case <-ctx.Done():
		return unavailable("wait for one of the loads under way", ctx.Err())
	}
	if !g.breaker.allow(time.Now()) {
		<-g.slots
		return unavailable("load", errBreaker)
	}
	return nil
}

func (g *gate) leave(failed bool) {
	g.breaker.done(failed, time.Now())
	<-g.slots
}
