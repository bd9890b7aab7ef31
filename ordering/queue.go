package ordering

import (
	"context"
	"sync"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Queue hands invalidations from the goroutine that reads the log to the one
// that applies them. There are two batches: one is being filled while the other is
// being applied, so that whatever gathers during one application goes out with
// the next (group commit: nothing waits on a timer when there is nothing to wait
// for). The filling side calls Lock, any of the other methods, Unlock.
type Queue struct {
	mu    sync.Mutex
	fill  *Batch
	spare *Batch
	tx    Txn
	open  bool     // inside a transaction
	end   Position // newest boundary seen

	ready chan struct{} // fill has something to take
	space chan struct{} // fill was taken
}

// NewQueue returns an empty queue. start is the position to count from.
func NewQueue(start Position) *Queue {
	return &Queue{
		fill: NewBatch(), spare: NewBatch(), end: start,
		ready: make(chan struct{}, 1), space: make(chan struct{}, 1),
	}
}

// Lock gives the caller the batch that is being filled. It is held over a run of
// messages, never across I/O.
func (q *Queue) Lock() { q.mu.Lock() }

// Unlock ends the run and offers what it brought.
func (q *Queue) Unlock() {
	offer := q.fill.Len() > 0 || q.fill.complete
	q.mu.Unlock()
	if offer {
		signal(q.ready)
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

// Commit closes the transaction.
func (q *Queue) Commit(end Position) {
	q.open = false
	q.end = end
	q.fill.stats.Transactions++
	q.fill.end(end)
}

// Mark moves the boundary without a transaction: the server said that there is
// nothing for this slot below p. Ignored inside a transaction.
func (q *Queue) Mark(p Position) {
	if q.open || p.EndLSN <= q.end.EndLSN {
		return
	}
	q.end.EndLSN = p.EndLSN
	q.fill.end(q.end)
}

// Add puts an invalidation of the open transaction in.
func (q *Queue) Add(inv *mapping.Invalidation) { q.fill.Add(&q.tx, inv) }

// AddUngated puts in an invalidation that belongs to no transaction: of a
// non-transactional message, or of a change that is known to be visible already.
func (q *Queue) AddUngated(tx Txn, inv *mapping.Invalidation) {
	tx.XID = 0
	q.fill.Add(&tx, inv)
}

// Full says that the filling side must wait on Space before it adds more.
func (q *Queue) Full() bool { return q.fill.Full() }

// Space receives when a batch was taken. It may receive once too often.
func (q *Queue) Space() <-chan struct{} { return q.space }

// Take waits for a batch with something in it. The taker owns it until Release.
// Only one batch may be out at a time.
func (q *Queue) Take(ctx context.Context) (*Batch, error) {
	for {
		select {
		case <-q.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if b := q.TryTake(); b != nil {
			return b, nil
		}
	}
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
	b.reset()
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
