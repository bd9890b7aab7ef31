package cache

import (
	"context"
	"errors"
	"sync"
	"time"
)

// breakerFailures in a row open a breaker.
const breakerFailures = 5

// breaker stops calls to a server that does not answer, so that they fail at once instead
// of each waiting for its timeout. While it is open, one call at a time may try.
type breaker struct {
	pause    time.Duration
	onChange func(open bool)

	mu       sync.Mutex
	failures int
	until    time.Time
}

// allow says whether a call may be made. One that tries an open breaker moves the next try
// away by itself: should nothing be heard of it again, the next one tries.
func (b *breaker) allow(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.failures < breakerFailures:
		return true
	case now.Before(b.until):
		return false
	}
	b.until = now.Add(b.pause)
	return true
}

// done tells how a call went.
func (b *breaker) done(failed bool, now time.Time) {
	b.mu.Lock()
	before := b.failures
	if failed {
		b.failures++
		b.until = now.Add(b.pause)
	} else {
		b.failures = 0
	}
	after := b.failures
	b.mu.Unlock()
	if open := after >= breakerFailures; open != (before >= breakerFailures) {
		b.onChange(open)
	}
}

// gate bounds how many loads run at a time, and stops them while the source is down.
type gate struct {
	slots   chan struct{}
	breaker breaker
}

// sourcePause is how long the source is left alone after it has failed several times.
const sourcePause = time.Second

func newGate(n int, onChange func(open bool)) *gate {
	return &gate{slots: make(chan struct{}, n), breaker: breaker{pause: sourcePause, onChange: onChange}}
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
