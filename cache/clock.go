package cache

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// sourceClock bounds what the source's clock says now, from above: what is proved by it
// to be younger than a budget is.
type sourceClock struct {
	reading atomic.Pointer[clockReading]
}

// clockReading: at some moment after asked, the source's clock said theirs.
type clockReading struct {
	asked  time.Time
	theirs int64 // us since 1970
}

// clockDrift is how much faster than ours the source's clock may run.
const clockDrift = 1.001

// measure asks the source.
func (c *sourceClock) measure(ctx context.Context, q querier) error {
	r := clockReading{asked: time.Now()}
	var theirs time.Time
	if err := q.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&theirs); err != nil {
		return fmt.Errorf("ask the source for its time: %w", err)
	}
	r.theirs = theirs.UnixMicro()
	c.observe(&r, time.Now())
	return nil
}

// observe takes a reading that arrived now. A slow answer bounds less well than an older
// one that was quick, which then stays for a while, unless the answer disproves it: the
// source's clock was set forward.
func (c *sourceClock) observe(r *clockReading, now time.Time) {
	for {
		old := c.reading.Load()
		if old != nil && r.theirs <= old.at(now) && old.at(now) < r.at(now) && now.Sub(old.asked) < time.Minute {
			return
		}
		if c.reading.CompareAndSwap(old, r) {
			return
		}
	}
}

// at takes the longer of the times that have passed by our two clocks: the monotonic one
// stands still while a machine is suspended, and the other one may be set back.
func (r *clockReading) at(t time.Time) int64 {
	passed := max(t.Sub(r.asked), time.Duration(t.UnixNano()-r.asked.UnixNano()))
	return r.theirs + int64(float64(passed.Microseconds())*clockDrift) + 1
}

// now is the latest that the source's clock can say at t, in us since 1970; ok is false
// before the first measurement.
func (c *sourceClock) now(t time.Time) (micros int64, ok bool) {
	r := c.reading.Load()
	if r == nil {
		return 0, false
	}
	return r.at(t), true
}
