package ordering

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func fam(id int) *mapping.Family { return &mapping.Family{ID: id, Name: fmt.Sprint("f", id)} }

func del(f *mapping.Family, key string) *mapping.Invalidation {
	return &mapping.Invalidation{Op: mapping.OpDelete, Family: f, Key: []byte(key)}
}

func txn(xid uint32, commit uint64, second int64) Txn {
	return Txn{XID: xid, CommitLSN: lsn.LSN(commit), CommitTime: time.Unix(second, 0)}
}

func TestEqualInvalidationsMerge(t *testing.T) {
	b := NewBatch()
	f, g := fam(1), fam(2)
	for i, tx := range []Txn{txn(1, 10, 100), txn(2, 20, 90), txn(3, 30, 110)} {
		b.Add(&tx, del(f, "a"))
		if i == 1 {
			b.Add(&tx, del(g, "a"))
			b.Add(&tx, &mapping.Invalidation{Op: mapping.OpAdvance, Family: f, Key: []byte("a")})
			b.Add(&tx, &mapping.Invalidation{Op: mapping.OpPurge, Family: f})
			b.Add(&tx, &mapping.Invalidation{Op: mapping.OpPurge, Family: f, Tenant: []byte{}})
			b.Add(&tx, &mapping.Invalidation{Op: mapping.OpPurge, Family: f, Tenant: []byte("7")})
		}
	}
	if b.Len() != 6 {
		t.Fatalf("%d entries, want 6: another op, family or tenant is another invalidation, and no tenant is not an empty one", b.Len())
	}
	e := b.Entry(0)
	if e.CommitLSN != 30 || !e.CommitTime.Equal(time.Unix(90, 0)) {
		t.Errorf("merged to %v, %v; want the newest position and the oldest commit", e.CommitLSN, e.CommitTime)
	}
	if b.Entry(3).Tenant != nil || b.Entry(4).Tenant == nil {
		t.Error("no tenant and the empty tenant are the same")
	}
	if s := b.Stats(); s.Invalidations != 8 || b.Highest() != 30 {
		t.Errorf("stats %+v, highest %v", s, b.Highest())
	}
}

func TestABatchGrowsBeyondItsBoundsAndShrinksAgain(t *testing.T) {
	b := NewBatch()
	f, tx := fam(1), txn(1, 10, 1)
	const n = 5 * maxEntries
	for i := range n {
		b.Add(&tx, del(f, fmt.Sprint("key:", i)))
		b.Add(&tx, del(f, fmt.Sprint("key:", i/2)))
	}
	if !b.Full() || b.Len() != n {
		t.Fatalf("%d entries, want %d, full: %v", b.Len(), n, b.Full())
	}
	seen := map[string]bool{}
	for i := range b.Len() {
		seen[string(b.Entry(i).Key)] = true
	}
	if len(seen) != n {
		t.Errorf("%d distinct keys, want %d", len(seen), n)
	}
	b.Reset()
	if b.Len() != 0 || cap(b.entries) > 2*maxEntries || cap(b.arena) > 2*maxArena {
		t.Errorf("after reset: %d entries, capacity %d and %d", b.Len(), cap(b.entries), cap(b.arena))
	}
	b.Add(&tx, del(f, "key:1"))
	if b.Len() != 1 || string(b.Entry(0).Key) != "key:1" {
		t.Error("a reused batch does not work")
	}
}

func TestAddingAllocatesNothing(t *testing.T) {
	b := NewBatch()
	f, tx, inv := fam(1), txn(1, 10, 1), del(fam(1), "user:123456")
	inv.Family = f
	b.Add(&tx, inv)
	if n := testing.AllocsPerRun(100, func() { b.Reset(); b.Add(&tx, inv) }); n != 0 {
		t.Errorf("%v allocations an invalidation", n)
	}
}

// Whatever the schedule: everything that was added is taken, and a position never
// claims a transaction that has not been taken wholly.
func TestQueueClaimsNothingEarly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := NewQueue(Position{})
		f := fam(1)
		added := map[lsn.LSN]int{} // invalidations of each transaction
		taken := map[lsn.LSN]int{}
		committed := map[lsn.LSN]bool{}
		at, open, key := uint64(0), false, 0
		takeOne := func() {
			b := q.TryTake()
			if b == nil {
				return
			}
			for i := range b.Len() {
				taken[b.Entry(i).CommitLSN]++
			}
			if p, ok := b.Position(); ok {
				for l, n := range added {
					if l <= p.CommitLSN && (!committed[l] || taken[l] != n) {
						t.Fatalf("position %v claims transaction %v, of which %d of %d were taken (committed: %v)", p.CommitLSN, l, taken[l], n, committed[l])
					}
				}
			}
			q.Release(b)
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			q.Lock()
			switch rapid.SampledFrom([]string{"begin", "add", "add", "commit", "mark", "take"}).Draw(t, "step") {
			case "begin":
				if !open {
					at, open = at+10, true
					q.Begin(txn(uint32(at), at, 1))
					added[lsn.LSN(at)] = 0
				}
			case "add":
				if open {
					key++
					q.Add(del(f, fmt.Sprint(key)))
					added[lsn.LSN(at)]++
				}
			case "commit":
				if open {
					open, committed[lsn.LSN(at)] = false, true
					q.Commit(Position{CommitLSN: lsn.LSN(at), EndLSN: lsn.LSN(at + 5)}, time.Time{})
				}
			case "mark":
				q.Mark(lsn.LSN(at + 7))
			case "take":
				q.Unlock()
				takeOne()
				q.Lock()
			}
			q.Unlock()
		}
		if open {
			q.Lock()
			committed[lsn.LSN(at)] = true
			q.Commit(Position{CommitLSN: lsn.LSN(at), EndLSN: lsn.LSN(at + 5)}, time.Time{})
			q.Unlock()
		}
		takeOne()
		for l, n := range added {
			if taken[l] != n {
				t.Fatalf("transaction %v: %d of %d taken", l, taken[l], n)
			}
		}
	})
}

func TestMarkMovesTheEndOnly(t *testing.T) {
	q := NewQueue(Position{CommitLSN: 10, EndLSN: 15})
	q.Lock()
	q.Begin(txn(1, 20, 1))
	q.Mark(99)
	q.Unlock()
	if b := q.TryTake(); b != nil {
		t.Fatal("a mark inside of a transaction counts")
	}
	q.Lock()
	q.Commit(Position{CommitLSN: 20, EndLSN: 25}, time.Time{})
	q.Mark(99)
	q.Mark(50)
	q.Unlock()
	p, ok := q.TryTake().Position()
	if !ok || p.CommitLSN != 20 || p.EndLSN != 99 {
		t.Errorf("position %+v", p)
	}
}

// A receiver and an applier on their own goroutines, with a queue that fills up.
func TestQueueHandsOverEverything(t *testing.T) {
	q := NewQueue(Position{})
	f := fam(1)
	const transactions, rows = 200, 100
	go func() {
		key := 0
		for i := range uint64(transactions) {
			q.Lock()
			q.CatchingUp(i%2 == 0)
			q.Begin(txn(uint32(i+1), 10*(i+1), 1))
			for range rows {
				key++
				q.Add(del(f, fmt.Sprint(key)))
				for q.Full() {
					q.Unlock()
					<-q.Space()
					q.Lock()
				}
			}
			q.Commit(Position{CommitLSN: lsn.LSN(10 * (i + 1)), EndLSN: lsn.LSN(10*(i+1) + 5)}, time.Time{})
			q.Unlock()
		}
		q.Close()
	}()
	keys, last := 0, lsn.LSN(0)
	for {
		b, err := q.Take(t.Context())
		if errors.Is(err, ErrClosed) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		keys += b.Len()
		if p, ok := b.Position(); ok {
			if p.CommitLSN < last {
				t.Fatalf("position went back from %v to %v", last, p.CommitLSN)
			}
			last = p.CommitLSN
		}
		q.Release(b)
	}
	if keys != transactions*rows || last != 10*transactions {
		t.Errorf("%d keys up to %v", keys, last)
	}
}

func TestUngatedInvalidations(t *testing.T) {
	q := NewQueue(Position{CommitLSN: 1000, EndLSN: 1040})
	q.Lock()
	first := q.AddUngated(0, time.Unix(1, 0), []mapping.Invalidation{*del(fam(1), "a")})
	second := q.AddUngated(0, time.Unix(1, 0), []mapping.Invalidation{*del(fam(1), "b")})
	none := q.AddUngated(0, time.Unix(1, 0), nil)
	q.Unlock()
	<-none
	b := q.TryTake()
	if b.Entry(0).CommitLSN <= 1000 || b.Entry(1).CommitLSN <= b.Entry(0).CommitLSN || b.Entry(1).CommitLSN >= 1040 {
		t.Errorf("positions %v, %v: version keys would not move", b.Entry(0).CommitLSN, b.Entry(1).CommitLSN)
	}
	if _, ok := b.Position(); ok {
		t.Error("they claim a position")
	}
	select {
	case <-first:
		t.Fatal("told to be applied before it is")
	default:
	}
	b.Applied()
	<-first
	<-second
}

func TestSnapshotVisibility(t *testing.T) {
	for _, tt := range []struct {
		snapshot string
		xid      uint32
		want     bool
	}{
		{"100:100:", 99, true}, {"100:100:", 100, false}, {"100:105:100,103", 100, false}, {"100:105:100,103", 101, true},
		{"100:105:100,103", 103, false}, {"100:105:100,103", 104, true}, {"100:105:100,103", 105, false},
		{"12884902615:12884902616:12884902615", 727, false}, {"12884902616:12884902616:", 727, true}, // epoch 3
		{"4294967300:4294967300:", 4294967290, true}, // just before the wraparound
		{"4294967290:4294967295:", 3, false},         // just after it
	} {
		s, err := ParseSnapshot(tt.snapshot)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Visible(tt.xid); got != tt.want {
			t.Errorf("xid %d in %s: visible %v", tt.xid, tt.snapshot, got)
		}
	}
	for _, bad := range []string{"", "1", "1:2", "a:2:", "2:1:", "1:2:x", "1:2:1,"} {
		if _, err := ParseSnapshot(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// snapshots answers with one snapshot after the other, and the last for ever.
type snapshots struct {
	list  []string
	asked int
	err   error
}

func (s *snapshots) ReadSnapshot(context.Context) (Snapshot, error) {
	if s.err != nil {
		return Snapshot{}, s.err
	}
	text := s.list[min(s.asked, len(s.list)-1)]
	s.asked++
	return ParseSnapshot(text)
}

func TestGate(t *testing.T) {
	batch := func(xids ...uint32) *Batch {
		b := NewBatch()
		for i, x := range xids {
			tx := txn(x, uint64(10*(i+1)), 1)
			b.Add(&tx, del(fam(1), fmt.Sprint(x)))
		}
		return b
	}
	src := &snapshots{list: []string{"5:8:5,7", "5:8:5", "8:8:"}}
	g := NewGate(src)
	if _, err := g.Wait(t.Context(), batch(6, 7, 5)); err != nil || src.asked != 3 {
		t.Errorf("asked %d times, %v; want 3: until 5 and 7 are visible", src.asked, err)
	}
	if _, err := g.Wait(t.Context(), batch(1, 2, 3)); err != nil || src.asked != 3 {
		t.Errorf("asked again for what the snapshot shows already")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.Wait(ctx, batch(9)); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	src.err = errors.New("away")
	if _, err := g.Wait(t.Context(), batch(9)); !errors.Is(err, src.err) {
		t.Errorf("error %v: an unanswered question must not pass", err)
	}
}

func TestWindow(t *testing.T) {
	at := func(s float64) time.Time { return time.Unix(0, int64(s*1e9)) }
	filled := func() *Window {
		w := NewWindow(32 * time.Second)
		for i := range 100 {
			w.Add(at(float64(i)), lsn.LSN(i))
		}
		return w
	}
	for now, want := range map[float64]lsn.LSN{31: 0, 40: 8, 40.9: 8, 130: 98, 131: 99} {
		if got := filled().Confirmable(at(now)); got != want {
			t.Errorf("at %v s: %v, want %v", now, got, want)
		}
	}
	w := filled()
	if got := w.Confirmable(at(131)); got != 99 {
		t.Errorf("the last position is confirmed as %v although nothing follows it", got)
	}
	if got := w.Confirmable(at(10)); got != 99 {
		t.Errorf("went back to %v", got)
	}
	z := NewWindow(0)
	z.Add(at(1), 7)
	if got := z.Confirmable(at(1)); got != 7 {
		t.Errorf("without a window: %v", got)
	}
}
