package ordering

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// What a snapshot shows, by its definition over whole xids, on both sides of an
// epoch's end.
func TestSnapshotAgainstItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		xmax := rapid.SampledFrom([]uint64{1 << 31, 1 << 32, 3 << 32, 3<<32 + 1<<31}).Draw(t, "around") + rapid.Uint64Range(0, 200).Draw(t, "xmax")
		xmin := xmax - rapid.Uint64Range(0, 100).Draw(t, "open")
		var xip []uint64
		text := fmt.Sprintf("%d:%d:", xmin, xmax)
		for x := xmin; x < xmax; x++ {
			if x == xmin || rapid.IntRange(0, 3).Draw(t, "running") == 0 {
				if len(xip) > 0 {
					text += ","
				}
				xip = append(xip, x)
				text += fmt.Sprint(x)
			}
		}
		s, err := ParseSnapshot(text)
		if err != nil {
			t.Fatal(err)
		}
		x := xmax - 300 + rapid.Uint64Range(0, 600).Draw(t, "xid")
		want := x < xmax && !slices.Contains(xip, x)
		if got := s.Visible(uint32(x)); got != want {
			t.Fatalf("xid %d (%d in the log) in %s: visible %v", x, uint32(x), text, got)
		}
	})
}

func TestSnapshotAtTheFarEndsOfTheCircle(t *testing.T) {
	s, err := ParseSnapshot("12884901888:12884901888:") // 3 << 32
	if err != nil {
		t.Fatal(err)
	}
	if !s.Visible(1 << 31) {
		t.Error("the oldest xid that can matter is not visible")
	}
	if s.Visible(1<<31 - 1) {
		t.Error("the newest xid that can be is visible")
	}
}

// On a server that is busy with other tables, the next xid of a quiet slot may be
// from the far half of the circle.
func TestGateDoesNotTrustAnOldSnapshot(t *testing.T) {
	src := &snapshots{list: []string{"4294968296:4294968296:", "6494968296:6494968297:6494968296", "6494968297:6494968297:"}}
	g := NewGate(src)
	early, late := txn(999, 10, 1), txn(2_200_001_000, 20, 1)
	b := NewBatch()
	b.Add(&early, del(fam(1), "a"))
	if _, err := g.Wait(t.Context(), b); err != nil || src.asked != 1 {
		t.Fatalf("asked %d times, %v", src.asked, err)
	}
	g.at = g.at.Add(-snapshotLife)
	b = NewBatch()
	b.Add(&late, del(fam(1), "a"))
	if _, err := g.Wait(t.Context(), b); err != nil || src.asked != 3 {
		t.Errorf("asked %d times, %v; want 3: the transaction is still running", src.asked, err)
	}
}

func TestGatePassesABacklogWithOneQuestion(t *testing.T) {
	src := &snapshots{list: []string{"5000:5000:"}}
	b := NewBatch()
	for i := range uint32(1000) {
		tx := txn(i+3, uint64(i+1), 1)
		b.Add(&tx, del(fam(1), fmt.Sprint(i)))
	}
	if n, err := NewGate(src).Wait(t.Context(), b); err != nil || n != 0 || src.asked != 1 {
		t.Errorf("%d repeats, %v, asked %d times", n, err, src.asked)
	}
}

// Keys are chosen by those who write rows. Should they find equal hashes all the same,
// entries stay apart.
func TestEqualHashesAreNotEqualInvalidations(t *testing.T) {
	b := NewBatch()
	f, tx := fam(1), txn(1, 10, 1)
	hash := b.hash(del(f, "b"), "")
	b.Add(&tx, del(f, "a"))
	b.entries[0].hash = hash
	clear(b.index)
	b.index[hash&uint32(len(b.index)-1)] = 1
	for range 2 {
		b.Add(&tx, del(f, "b"))
		b.rehash()
	}
	if b.Len() != 2 || string(b.Entry(0).Key) != "a" || string(b.Entry(1).Key) != "b" {
		t.Errorf("%d entries", b.Len())
	}
}

// A Batch against a map, with few enough keys that most of them merge.
func TestBatchAgainstAModel(t *testing.T) {
	type id struct {
		op          mapping.Op
		family      int
		hasTenant   bool
		tenant, key string
	}
	type value struct {
		newest lsn.LSN
		oldest int64
	}
	families := []*mapping.Family{fam(0), fam(1)}
	b := NewBatch()
	rapid.Check(t, func(t *rapid.T) {
		b.Reset()
		model := map[id]value{}
		for at := range rapid.IntRange(1, 100).Draw(t, "transactions") {
			tx := txn(uint32(at+1), uint64(at+1), rapid.Int64Range(1, 50).Draw(t, "time"))
			for range rapid.IntRange(0, 4).Draw(t, "rows") {
				k := id{
					op:     rapid.SampledFrom([]mapping.Op{mapping.OpDelete, mapping.OpAdvance, mapping.OpPurge}).Draw(t, "op"),
					family: rapid.IntRange(0, 1).Draw(t, "family"),
				}
				inv := mapping.Invalidation{Op: k.op, Family: families[k.family]}
				if k.hasTenant = rapid.Bool().Draw(t, "has tenant"); k.hasTenant {
					k.tenant = rapid.SampledFrom([]string{"", "a", "ab"}).Draw(t, "tenant")
					inv.Tenant = []byte(k.tenant)
				}
				if k.op != mapping.OpPurge {
					k.key = rapid.SampledFrom([]string{"b", "bb", "abb", "c"}).Draw(t, "key")
					inv.Key = []byte(k.key)
				}
				b.Add(&tx, &inv)
				v, ok := model[k]
				if !ok || tx.CommitTime.Unix() < v.oldest {
					v.oldest = tx.CommitTime.Unix()
				}
				v.newest = tx.CommitLSN
				model[k] = v
			}
		}
		if b.Len() != len(model) {
			t.Fatalf("%d entries, want %d", b.Len(), len(model))
		}
		var highest lsn.LSN
		for i := range b.Len() {
			e := b.Entry(i)
			k := id{e.Op, e.Family.ID, e.Tenant != nil, string(e.Tenant), string(e.Key)}
			if v, ok := model[k]; !ok || v != (value{e.CommitLSN, e.CommitTime.Unix()}) {
				t.Fatalf("entry %+v, model %+v", e, v)
			}
			highest = max(highest, e.CommitLSN)
		}
		if b.Highest() != highest {
			t.Fatalf("highest %v, want %v", b.Highest(), highest)
		}
	})
}

// Two goroutines that both take their time at random points: nothing is lost, nothing
// comes twice, and no position claims what has not come.
func TestQueueUnderConcurrency(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int{0, 1, 2, 50, maxEntries + 100}), 1, 12).Draw(t, "rows of each transaction")
		runs := rapid.SliceOfN(rapid.IntRange(1, 500), 1, 8).Draw(t, "rows under one lock")
		f := fam(1)
		q := NewQueue(Position{})
		var wg sync.WaitGroup
		wg.Go(func() {
			defer q.Close()
			run := 0
			for i, n := range sizes {
				at := lsn.LSN(10 * (i + 1))
				q.Lock()
				q.CatchingUp(i%3 == 0)
				q.Begin(Txn{XID: uint32(i + 3), CommitLSN: at})
				for row := range n {
					if q.Full() {
						q.Unlock()
						for <-q.Space(); ; <-q.Space() {
							q.Lock()
							if !q.Full() {
								break
							}
							q.Unlock()
						}
					}
					q.Row()
					q.Add(del(f, fmt.Sprint(i, " ", row)))
					if run++; run%runs[run%len(runs)] == 0 {
						q.Unlock()
						q.Lock()
					}
				}
				q.Commit(Position{CommitLSN: at, EndLSN: at + 5}, time.Time{})
				q.Mark(at + 7)
				q.Unlock()
			}
		})
		came := map[lsn.LSN]int{}
		stats, end := Stats{}, Position{}
		for {
			b, err := q.Take(context.Background())
			if errors.Is(err, ErrClosed) {
				break
			}
			for i := range b.Len() {
				came[b.Entry(i).CommitLSN]++
			}
			stats.Rows += b.Stats().Rows
			stats.Transactions += b.Stats().Transactions
			if p, ok := b.Position(); ok {
				for i, n := range sizes {
					if at := lsn.LSN(10 * (i + 1)); at <= p.CommitLSN && came[at] != n {
						t.Fatalf("position %v claims transaction %v, of which %d of %d rows came", p.CommitLSN, at, came[at], n)
					}
				}
				if p.CommitLSN < end.CommitLSN || p.EndLSN <= end.EndLSN {
					t.Fatalf("position went from %+v to %+v", end, p)
				}
				end = p
			}
			q.Release(b)
		}
		wg.Wait()
		total := 0
		for i, n := range sizes {
			total += n
			if at := lsn.LSN(10 * (i + 1)); came[at] != n {
				t.Fatalf("transaction %v: %d of %d rows came", at, came[at], n)
			}
		}
		last := lsn.LSN(10 * len(sizes))
		if end.CommitLSN != last || end.EndLSN != last+7 || stats.Rows != total || stats.Transactions != len(sizes) {
			t.Fatalf("ended at %+v with %+v", end, stats)
		}
		if !q.Empty() {
			t.Fatal("something is left")
		}
	})
}

func TestTakeStops(t *testing.T) {
	q := NewQueue(Position{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if b, err := q.Take(ctx); b != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v", b, err)
	}
	if q.TryTake() != nil {
		t.Error("an empty queue gives a batch")
	}
	q.Close()
	for range 2 {
		if b, err := q.Take(t.Context()); b != nil || !errors.Is(err, ErrClosed) {
			t.Errorf("%v, %v", b, err)
		}
	}
}

func TestABatchKnowsItsNewestHeartbeat(t *testing.T) {
	q := NewQueue(Position{})
	q.Lock()
	for i, beat := range []time.Time{time.Unix(50, 0), time.Unix(60, 0), {}} {
		at := lsn.LSN(10 * (i + 1))
		q.Begin(Txn{XID: 3, CommitLSN: at})
		q.Commit(Position{CommitLSN: at, EndLSN: at + 5}, beat)
	}
	q.Unlock()
	b, err := q.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !b.Beat().Equal(time.Unix(60, 0)) || b.Len() != 0 {
		t.Errorf("fresh as of %v, %d entries", b.Beat(), b.Len())
	}
	q.Release(b)
	if !b.Beat().IsZero() {
		t.Error("a reused batch is as fresh as the one before")
	}
}
