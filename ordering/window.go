package ordering

import (
	"sync"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// Window decides how far the log may be confirmed: up to what was checkpointed
// at least its length ago. A Redis failover loses writes that were acknowledged;
// what the slot still holds can be applied again. Safe for concurrent use.
type Window struct {
	mu     sync.Mutex
	length time.Duration
	step   time.Duration
	marks  []mark // oldest first, at most one per step
	last   mark   // the newest, for when nothing follows it
	done   lsn.LSN
}

type mark struct {
	at  time.Time
	end lsn.LSN // Position.Confirmable
}

// windowSteps bounds the marks that are kept, and so how much later than its
// length a position is confirmed (one step).
const windowSteps = 64

// NewWindow returns a window; a length of 0 confirms at once.
func NewWindow(length time.Duration) *Window {
	return &Window{length: length, step: length / windowSteps}
}

// Add says that a boundary was checkpointed at the time at, and that the log may be confirmed
// up to end for it (Position.Confirmable).
func (w *Window) Add(at time.Time, end lsn.LSN) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.length == 0 {
		w.done = max(w.done, end)
		return
	}
	w.last = mark{at, end}
	if n := len(w.marks); n > 0 && at.Sub(w.marks[n-1].at) < w.step {
		return
	}
	w.marks = append(w.marks, mark{at, end})
}

// Seen is the time of the newest checkpoint. The window is measured by it: while
// Redis is away nothing proves that it still has what it acknowledged, and the
// slot must not let go of it.
func (w *Window) Seen() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last.at
}

// Confirmable is the position that may be confirmed now.
func (w *Window) Confirmable(now time.Time) lsn.LSN {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for n < len(w.marks) && now.Sub(w.marks[n].at) >= w.length {
		w.done = max(w.done, w.marks[n].end)
		n++
	}
	w.marks = append(w.marks[:0], w.marks[n:]...)
	if !w.last.at.IsZero() && now.Sub(w.last.at) >= w.length {
		w.done = max(w.done, w.last.end)
	}
	return w.done
}
