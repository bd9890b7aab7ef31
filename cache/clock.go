package cache

import (
	"sync/atomic"
	"time"
)

// remoteClock bounds another machine's clock from above: what it said, plus the time
// that has passed since it was asked. It never says too little unless that clock is
// set forward, which the next observation mends.
type remoteClock struct {
	sample atomic.Pointer[clockSample]
}

type clockSample struct {
	asked  time.Time // ours, before the question left
	micros int64     // theirs, since 1970
}

// observe notes an answer. The tighter of two bounds stays, so that one slow answer
// spoils nothing; a bound that the answer disproves does not.
func (c *remoteClock) observe(asked, answered time.Time, micros int64) {
	next := &clockSample{asked, micros}
	old := c.sample.Load()
	if old != nil {
		bound := old.at(answered)
		if bound >= micros && bound <= next.at(answered) && answered.Sub(old.asked) < clockMaxAge {
			return
		}
	}
	c.sample.CompareAndSwap(old, next) // who was quicker has an answer as new as this one
}

// clockMaxAge is after how long a bound is taken anew though it is the tighter one.
const clockMaxAge = 10 * time.Second

// upper is what the clock says at most at the time t of ours, microseconds since 1970;
// ok is false before the first answer.
func (c *remoteClock) upper(t time.Time) (micros int64, ok bool) {
	s := c.sample.Load()
	if s == nil {
		return 0, false
	}
	return s.at(t), true
}

// age is how long ago the clock was asked.
func (c *remoteClock) age(t time.Time) (time.Duration, bool) {
	s := c.sample.Load()
	if s == nil {
		return 0, false
	}
	return t.Sub(s.asked), true
}

// at takes the longer of the two times that have passed by our clocks: the monotonic one
// stands still while the machine is suspended, and the other one may be set. Two clocks
// run apart by less than 1 in 5000.
func (s *clockSample) at(t time.Time) int64 {
	passed := max(t.Sub(s.asked), t.Round(0).Sub(s.asked.Round(0))).Microseconds()
	return s.micros + passed + passed/5000
}
