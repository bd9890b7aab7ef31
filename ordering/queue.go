package ordering

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Queue hands invalidations from the goroutine that reads the log to the one
// that applies them. There are two batches: one is being filled while the other is
// being applied, so that whatever gathers during one application goes out with
// the next (group commit). The filling side calls Lock, any of the other methods, Unlock.
type Queue struct {
	mu      sync.Mutex
	fill    *Batch
	spare   *Batch
	tx      Txn
	open    bool     // inside a transaction
	end     Position // newest boundary seen
	ungated lsn.LSN  // invalidations added after it that belong to no transaction

	ready   chan struct{} // fill has something to take
	space   chan struct{} // fill was taken
	hurry   chan struct{} // fill should not gather any longer
	closed  chan struct{}
	backlog bool
}

// NewQueue returns an empty queue. start is the position to count from.
func NewQueue(start Position) *Queue {
	return &Queue{
		fill: NewBatch(), spare: NewBatch(), end: start,
		ready: make(chan struct{}, 1), space: make(chan struct{}, 1),
		hurry: make(chan struct{}, 1), closed: make(chan struct{}),
	}
}

// Lock gives the caller the batch that is being filled. It is held over a run of
// messages, never across I/O.
func (q *Queue) Lock() { q.mu.Lock() }

// Unlock ends the run and offers what it brought.
func (q *Queue) Unlock() {
	offer := q.fill.Len() > 0 || q.fill.complete
	hurry := !q.patient()
	q.mu.Unlock()
	if hurry {
		signal(q.hurry)
	}
	if offer {
		signal(q.ready)
	}
}

// CatchingUp says whether there is a backlog, in which batches are worth waiting
// for. It is called with the lock held.
func (q *Queue) CatchingUp(yes bool) { q.backlog = yes }

// gatherTime is how long a batch may gather when nothing in it is in a hurry: all
// that it removes has been removed once. Longer shares the cost of the gate and of the
// checkpoint among more changes; it is also how long a value stays that a reader
// filled in between the first removal and the visibility of the change.
const gatherTime = 5 * time.Millisecond

// patient says that the batch gains by growing: there is a backlog, or all that it
// has to remove has been removed early.
func (q *Queue) patient() bool {
	return !q.fill.Full() && (q.backlog || !q.fill.urgent)
}

// gather gives the next batch time to grow, so that the cost of the gate and of
// applying it is shared by many changes.
func (q *Queue) gather(ctx context.Context) {
	q.mu.Lock()
	patient := q.patient()
	q.mu.Unlock()
	if !patient {
		return
	}
	timer := time.NewTimer(gatherTime)
	defer timer.Stop()
	select {
	case <-q.hurry:
	case <-q.closed:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Begin opens a transaction.
func (q *Queue) Begin(tx Txn) {
	q.tx, q.open = tx, true
}

// Open says whether a transaction is open.
func (q *Queue) Open() bool { return q.open }

// Row counts a row of the open transaction.
func (q *Queue) Row() { q.fill.stats.Rows++ }

// Commit closes the transaction. beat, when set, is the time at which the
// heartbeat that the transaction carried was sent.
func (q *Queue) Commit(end Position, beat time.Time) {
	q.open, q.ungated = false, 0
	if !beat.IsZero() {
		q.fill.beat = beat
	}
	q.end = end
	q.fill.stats.Transactions++
	q.fill.end(end)
}

// Mark moves the boundary without a transaction: the server said that there is
// nothing for this slot below end. Ignored inside a transaction.
func (q *Queue) Mark(end lsn.LSN) {
	if q.open || end <= q.end.EndLSN {
		return
	}
	q.end.EndLSN = end
	q.fill.end(q.end)
}

// Disown gives up that the last transaction comes through the slot again, so that the log
// behind it can be confirmed although none follows.
func (q *Queue) Disown() {
	if !q.open {
		q.end.XID = 0
	}
}

// Add puts an invalidation of the open transaction in.
func (q *Queue) Add(inv *mapping.Invalidation) {
	q.fill.Add(&q.tx, inv)
	q.fill.urgent = true
}

// AddPatient is Add for a key that Redis is already being told to remove, so that
// the batch is in no hurry for it.
func (q *Queue) AddPatient(inv *mapping.Invalidation) { q.fill.Add(&q.tx, inv) }

// AddUngated puts in invalidations that belong to no transaction: of a
// non-transactional message, or of something that is known to be visible
// already. at is where in the log they stand; 0 is "now": after everything seen so
// far. The channel is closed once they are applied, and never if the session fails.
func (q *Queue) AddUngated(at lsn.LSN, when time.Time, invs []mapping.Invalidation) (applied <-chan struct{}) {
	c := make(chan struct{})
	if len(invs) == 0 {
		close(c)
		return c
	}
	if at == 0 {
		// Version keys move for a higher position only, so it must be above the last
		// commit and below the next one, which may begin at EndLSN exactly. Records
		// are longer than eight bytes and begin at multiples of eight.
		q.ungated = min(q.ungated+1, 7)
		at = q.end.EndLSN - 8 + q.ungated
	}
	tx := Txn{CommitLSN: at, CommitTime: when}
	for i := range invs {
		q.fill.Add(&tx, &invs[i])
	}
	q.fill.urgent = true
	q.fill.waiting = append(q.fill.waiting, c)
	return c
}

// Full says that the filling side must wait on Space before it adds more.
func (q *Queue) Full() bool { return q.fill.Full() }

// Space receives when a batch was taken. It may receive once too often.
func (q *Queue) Space() <-chan struct{} { return q.space }

// ErrClosed is what Take returns once the queue is closed and empty.
var ErrClosed = errors.New("the queue is closed")

// Close says that nothing more will be added.
func (q *Queue) Close() { close(q.closed) }

// Take waits for a batch with something in it. The taker owns it until Release.
// Only one batch may be out at a time.
func (q *Queue) Take(ctx context.Context) (*Batch, error) {
	for {
		select {
		case <-q.ready:
		case <-q.closed:
			if b := q.TryTake(); b != nil {
				return b, nil
			}
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		q.gather(ctx)
		if b := q.TryTake(); b != nil {
			return b, nil
		}
	}
}

// Waiting is how many invalidations have not been taken yet, and how long their
// keys are together. Those being applied now are not among them.
func (q *Queue) Waiting() (invalidations, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.fill.Len(), len(q.fill.arena)
}

// Empty says that there is nothing to take.
func (q *Queue) Empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.fill.Len() == 0 && !q.fill.complete
}

// TryTake is Take for one who has something else to do: nil when there is
// nothing.
func (q *Queue) TryTake() *Batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.fill.Len() == 0 && !q.fill.complete {
		return nil
	}
	b := q.fill
	q.fill, q.spare = q.spare, nil
	signal(q.space)
	return b
}

// Release gives a taken batch back for reuse.
func (q *Queue) Release(b *Batch) {
	b.Reset()
	q.mu.Lock()
	q.spare = b
	q.mu.Unlock()
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
