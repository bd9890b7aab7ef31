package consistency

import (
	"fmt"
	"sync"
	"time"
)

// history is what is known of the rows' pasts: which states each has had, in which
// order, and between which two moments each came. One writer at a time changes a row, so
// the order of its states is the order of its commits.
//
// All times are of this process's monotonic clock, since began.
type history struct {
	began time.Time
	rows  []rowHistory
}

type rowHistory struct {
	mu     sync.Mutex
	writes []write // writes[n-1] is state n
}

// write is the commit that brought a state.
type write struct {
	sent     time.Duration // before the statement was sent: nobody has seen it earlier
	returned time.Duration // after the commit returned: everybody sees it; unset while it has not
}

const unset = time.Duration(-1)

// newHistory starts with every row in its first state.
func newHistory(rows int) *history {
	h := &history{began: time.Now(), rows: make([]rowHistory, rows)}
	for i := range h.rows {
		h.rows[i].writes = []write{{}}
	}
	return h
}

func (h *history) now() time.Duration { return time.Since(h.began) }

// begin notes that the row's next state is about to be written, and returns its number.
// The caller is the row's only writer until it calls end.
func (h *history) begin(row int64) int64 {
	r := &h.rows[row]
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writes = append(r.writes, write{sent: h.now(), returned: unset})
	return int64(len(r.writes))
}

// end notes that the commit has returned. A statement that was sent again because its
// first answer was lost ends with the last one: later than it was, which excuses more
// than it should and accuses nobody.
func (h *history) end(row, n int64) {
	r := &h.rows[row]
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writes[n-1].returned = h.now()
}

// latest is the newest state whose commit has returned.
func (h *history) latest(row int64) int64 {
	r := &h.rows[row]
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := len(r.writes); n > 0; n-- {
		if r.writes[n-1].returned != unset {
			return int64(n)
		}
	}
	panic("a row has no first state")
}

// judgement of one read.
type judgement struct {
	stale  bool
	behind time.Duration // how long before the read began the value had been replaced, if it had
	reason string        // of a stale one, or of an impossible one
	never  bool          // the value was never the row's: the reader made it up
}

// judge compares what a read between two moments showed of a row with the row's past.
//
// A read is stale if, and only if, the state that follows what it showed had committed, and
// its commit had RETURNED, more than the budget before the read BEGAN.
//
// It accuses no correct read: a reader may take what it shows at any moment between its
// beginning and its end, and a state may be replaced at any moment between the sending of
// the next commit and its return; the moments compared are the ones most in favour of
// the reader. A wrong read escapes only if it was late by less than its own duration
// and that of the commit together, which the scenarios keep far below the budgets.
//
// Where a row was in the same state several times (it is away, or it has a name again), the
// last time counts that had begun before the read ended.
func (h *history) judge(p part, shown int64, from, to, budget time.Duration) judgement {
	r := &h.rows[p.row]
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for i := len(r.writes); i > 0; i-- {
		if p.shows(int64(i)) == shown && r.writes[i-1].sent <= to {
			n = i
			break
		}
	}
	switch {
	case n == 0:
		return judgement{stale: true, never: true, reason: fmt.Sprintf("row %d never was %s", p.row, stateName(shown))}
	case n == len(r.writes):
		return judgement{} // it is so still
	}
	next := r.writes[n] // brought state n+1, which shows something else
	if next.returned == unset || next.returned >= from {
		return judgement{}
	}
	j := judgement{behind: from - next.returned}
	if j.behind > budget {
		j.stale = true
		j.reason = fmt.Sprintf("row %d was read as %s, replaced %s before the read began (budget %s)", p.row, stateName(shown), j.behind, budget)
	}
	return j
}

func stateName(shown int64) string {
	if shown == 0 {
		return "absent"
	}
	return fmt.Sprint(shown)
}
