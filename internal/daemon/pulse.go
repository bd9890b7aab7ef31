package daemon

import (
	"fmt"
	"sync/atomic"
	"time"
)

// How long a loop may give no sign of life. Each is well above the longest time-out of
// what the loop may be waiting for: the receiver reports to Postgres every second,
// whatever else it does; the applier's longest single step is a for_each query; what
// an attachment does is bounded step by step, and a purge gives signs while it goes on.
const (
	receiverSilence = 30 * time.Second
	applierSilence  = 2 * time.Minute
	attachSilence   = 10 * time.Minute
)

// pulse knows when each loop of the pipeline last gave a sign of life. A loop that waits
// for a server gives them too, with each attempt: that a server is away is no reason to
// restart. A loop that has nothing to do is not looked at.
type pulse struct{ receiver, applier, drainer, attach beat }

// beat is the time of a loop's last sign, in Unix nanoseconds; 0 while it has nothing
// to do.
type beat struct{ at atomic.Int64 }

func (b *beat) now()  { b.at.Store(time.Now().UnixNano()) }
func (b *beat) rest() { b.at.Store(0) }

// again is now for a loop that is not at rest: for signs that others may bring too.
func (b *beat) again() {
	if at := b.at.Load(); at != 0 {
		b.at.CompareAndSwap(at, time.Now().UnixNano())
	}
}

// stuck says which loop has given no sign for too long, or nil.
func (p *pulse) stuck(now time.Time) error {
	for _, l := range []struct {
		name    string
		beat    *beat
		silence time.Duration
	}{
		{"reading the log", &p.receiver, receiverSilence},
		{"applying", &p.applier, applierSilence},
		{"applying what was held back", &p.drainer, applierSilence},
		{"attaching to the servers", &p.attach, attachSilence},
	} {
		if at := l.beat.at.Load(); at != 0 {
			if silent := now.Sub(time.Unix(0, at)); silent > l.silence {
				return fmt.Errorf("stuck while %s: no sign of life for %s", l.name, silent.Round(time.Second))
			}
		}
	}
	return nil
}

// Live implements admin.Liveness.
func (h *health) Live() error { return h.d.pulse.stuck(time.Now()) }
