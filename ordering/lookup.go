package ordering

import (
	"context"
	"errors"
	"fmt"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Querier runs one for_each query on the source, on an ordinary connection to
// the primary, and fetches at most maxRows+1 rows. Everything is text; nil is NULL. An
// error for which errors.Is(err, ErrQueryRefused) will come back however often
// the query is run.
type Querier interface {
	Query(ctx context.Context, sql string, params [][]byte, maxRows int) (columns []string, rows [][][]byte, err error)
}

// ErrQueryRefused means that the source understood the query and will not answer
// it: a table is gone, a right is missing, it takes too long.
var ErrQueryRefused = errors.New("the source refuses the query")

// lookupCacheSize bounds the remembered answers, by number and by bytes each: 4 MiB
// together, with what the questions take.
const (
	lookupCacheSize     = 256
	lookupCacheMaxBytes = 16 << 10
)

// Lookups turns the batch's for_each entries into invalidations by asking the
// source which keys a row stands for.
//
// An answer is remembered together with the snapshot that was current before it
// was fetched, and used again only for transactions which that snapshot shows: for
// a later one, rows may have joined that the answer does not have.
type Lookups struct {
	q       Querier
	cache   *lru.Cache[string, answer]
	out     mapping.Output
	refused func(family string, err error)
}

type answer struct {
	snap    Snapshot
	columns []string
	rows    [][][]byte
}

// size is what the rows take in memory.
func (a *answer) size() int {
	const header = 24 // of a slice
	n := 0
	for _, row := range a.rows {
		n += header
		for _, v := range row {
			n += header + len(v)
		}
	}
	return n
}

// NewLookups returns lookups for one attachment. refused is told of each query
// that widened its family because the source refuses it.
func NewLookups(q Querier, refused func(family string, err error)) (*Lookups, error) {
	cache, err := lru.New[string, answer](lookupCacheSize)
	if err != nil {
		return nil, err
	}
	return &Lookups{q: q, cache: cache, refused: refused}, nil
}

// Resolve answers every lookup of b, after the gate. What comes of them is put
// into more, which is given to apply whenever it is full and at the end: one
// row can stand for any number of keys. Lookups stay in b, so that a failed attempt
// can be made again whole.
func (l *Lookups) Resolve(ctx context.Context, b, more *Batch, snap Snapshot, apply func(*Batch) error) error {
	if b.lookups == 0 {
		return nil
	}
	defer func() {
		more.Reset()
		l.out = mapping.Output{} // an answer of any size was rendered in it
	}()
	for i := range b.entries {
		e := &b.entries[i]
		if e.op != mapping.OpLookup {
			continue
		}
		if err := l.answer(ctx, b, e, snap); err != nil {
			return err
		}
		tx := b.txns[e.newest]
		tx.CommitTime = b.txns[e.oldest].CommitTime
		tx.XID = 0 // gated with b
		for j := range l.out.Invalidations {
			more.Add(&tx, &l.out.Invalidations[j])
			if more.Full() {
				if err := apply(more); err != nil {
					return err
				}
				more.Reset()
			}
		}
	}
	if more.Len() == 0 {
		return nil
	}
	return apply(more)
}

// answer leaves what the entry's lookup stands for in l.out.
func (l *Lookups) answer(ctx context.Context, b *Batch, e *entry, snap Snapshot) error {
	call := e.lookup
	l.out.Reset()
	id := call.ID()
	a, ok := l.cache.Get(id)
	if !ok || !a.covers(b, e, snap) {
		limit := call.MaxRows()
		columns, rows, err := l.q.Query(ctx, call.SQL(), call.Params(), limit)
		if errors.Is(err, ErrQueryRefused) {
			l.refused(e.family.Name, err)
			call.Widen(&l.out)
			return nil
		}
		if err != nil {
			return fmt.Errorf("for_each of family %s: %w", e.family.Name, err)
		}
		if len(rows) > limit {
			l.refused(e.family.Name, fmt.Errorf("more than %d rows", limit))
			call.Widen(&l.out)
			return nil
		}
		a = answer{snap: snap, columns: columns, rows: rows}
		if call.Size()+a.size() <= lookupCacheMaxBytes {
			l.cache.Add(id, a)
		}
	}
	if err := call.Render(a.columns, a.rows, &l.out); err != nil {
		l.refused(e.family.Name, err)
		l.out.Reset()
		call.Widen(&l.out)
	}
	return nil
}

// covers says that the answer holds for the entry: its snapshot shows the
// transaction. Transactions do not become visible in the order in which they commit,
// so the newest of several says nothing of the others. The xid is widened by the
// current snapshot, since the answer's own may be too old to tell (snapshotLife).
func (a *answer) covers(b *Batch, e *entry, now Snapshot) bool {
	xid := b.txns[e.newest].XID
	return xid != 0 && !e.merged && a.snap.shows(now.widen(xid))
}
