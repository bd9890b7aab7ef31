package cache

import (
	"sync/atomic"
	"time"
)

// breaker keeps callers from a server that does not answer: after some failures in a
// row nobody is let through for a while, then one at a time, until one comes back.
// It costs the callers of a healthy server one atomic load.
type breaker struct {
	threshold int32
	pause     time.Duration
	start     time.Time

	failures atomic.Int32
	nextTry  atomic.Int64 // nanoseconds since start; while failures >= threshold
	onChange func(open bool)
}

func newBreaker(threshold int32, pause time.Duration, onChange func(open bool)) *breaker {
	return &breaker{threshold: threshold, pause: pause, start: time.Now(), onChange: onChange}
}

// allow says whether the caller may try. Each that it lets through while the server
// is down moves the next try further away, so that one at a time waits for a timeout.
func (b *breaker) allow() bool {
	if b.failures.Load() < b.threshold {
		return true
	}
	now := int64(time.Since(b.start))
	next := b.nextTry.Load()
	return now >= next && b.nextTry.CompareAndSwap(next, now+int64(b.pause))
}

func (b *breaker) open() bool { return b.failures.Load() >= b.threshold }

func (b *breaker) success() {
	if b.failures.Load() == 0 {
		return
	}
	if b.failures.Swap(0) >= b.threshold {
		b.onChange(false)
	}
}

func (b *breaker) failure() {
	b.nextTry.Store(int64(time.Since(b.start) + b.pause))
	if b.failures.Add(1) == b.threshold {
		b.onChange(true)
	}
}
