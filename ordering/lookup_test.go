package ordering

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// lookups makes the lookup of a changed owner: one page for each of its products.
func lookups(t *testing.T, maxRows int) func(owner string) *mapping.Invalidation {
	t.Helper()
	page, err := mapping.ParseTemplate("page:{product_id}")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := mapping.Compile(&mapping.File{
		Keys: []*mapping.KeySpec{{Name: "page", Template: page, Class: &mapping.Class{Name: "c", Staleness: time.Second}}},
		Mappings: []*mapping.MappingSpec{{Schema: "public", Table: "owners", Insert: true, Update: true, Delete: true, Keys: []*mapping.KeyUse{{
			Family: "page", Vars: map[string]string{"product_id": "product_id"},
			ForEach: "SELECT product_id FROM products WHERE owner = {id}", MaxRows: maxRows,
		}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	rel := &decoder.Relation{ID: 1, Namespace: "public", Name: "owners", ReplicaIdentity: decoder.IdentityDefault,
		Columns: []decoder.Column{{Name: "id", Key: true, TypeOID: 25}}}
	table := plan.Bind(rel)
	return func(owner string) *mapping.Invalidation {
		var out mapping.Output
		table.Map(&decoder.Change{Relation: rel, Action: decoder.Insert, New: []decoder.Value{{Kind: decoder.Text, Data: []byte(owner)}}}, &out)
		if len(out.Invalidations) != 1 || out.Invalidations[0].Op != mapping.OpLookup {
			t.Fatalf("the row maps to %+v", out.Invalidations)
		}
		return &out.Invalidations[0]
	}
}

// products answers every query with the same rows.
type products struct {
	columns []string
	rows    int
	pad     string // at the end of each value
	err     error
	asked   []string
}

func (p *products) Query(_ context.Context, _ string, params [][]byte, maxRows int) ([]string, [][][]byte, error) {
	p.asked = append(p.asked, string(params[0]))
	if p.err != nil {
		return nil, nil, p.err
	}
	var rows [][][]byte
	for i := range min(p.rows, maxRows+1) {
		rows = append(rows, [][]byte{fmt.Append(nil, string(params[0]), "-", i, p.pad)})
	}
	if p.columns == nil {
		return []string{"product_id"}, rows, nil
	}
	return p.columns, rows, nil
}

// resolver collects what comes of the lookups.
type resolver struct {
	*Lookups
	refusals []error
	applied  []Entry
	sizes    []int
	fail     error
}

func newResolver(t *testing.T, p *products) *resolver {
	t.Helper()
	r := &resolver{}
	var err error
	if r.Lookups, err = NewLookups(p, func(_ string, err error) { r.refusals = append(r.refusals, err) }); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *resolver) run(t *testing.T, b *Batch, snapshot string) error {
	t.Helper()
	snap, err := ParseSnapshot(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	r.applied, r.sizes = nil, nil
	more := NewBatch()
	err = r.Resolve(t.Context(), b, more, snap, func(m *Batch) error {
		if r.fail != nil {
			return r.fail
		}
		r.sizes = append(r.sizes, m.Len())
		for i := range m.Len() {
			e := m.Entry(i)
			e.Key = append([]byte(nil), e.Key...)
			r.applied = append(r.applied, e)
		}
		return nil
	})
	if more.Len() != 0 {
		t.Errorf("%d entries are left in the overflow batch", more.Len())
	}
	return err
}

func asking(inv *mapping.Invalidation, txns ...Txn) *Batch {
	b := NewBatch()
	for _, tx := range txns {
		b.Add(&tx, inv)
	}
	return b
}

func TestLookupsBecomeTheKeysOfTheirRows(t *testing.T) {
	owner := lookups(t, 10)
	p := &products{rows: 3}
	r := newResolver(t, p)
	b := asking(owner("a"), txn(1, 10, 90), txn(2, 20, 80))
	if err := r.run(t, b, "9:9:"); err != nil {
		t.Fatal(err)
	}
	if len(p.asked) != 1 || len(r.applied) != 3 {
		t.Fatalf("%d questions, %d entries; equal lookups of two transactions are one question", len(p.asked), len(r.applied))
	}
	if e := r.applied[1]; e.Op != mapping.OpDelete || string(e.Key) != "page:a-1" || e.CommitLSN != 20 || !e.CommitTime.Equal(time.Unix(80, 0)) {
		t.Errorf("%v %s at %v of %v; want the newest position and the oldest commit", e.Op, e.Key, e.CommitLSN, e.CommitTime)
	}
	if b.Len() != 1 {
		t.Error("the lookup is not in the batch any more: another attempt would leave it out")
	}
	// Nothing to ask, nothing to apply.
	tx := txn(3, 30, 1)
	plain := NewBatch()
	plain.Add(&tx, del(fam(1), "x"))
	if err := r.run(t, plain, "9:9:"); err != nil || len(r.sizes) != 0 {
		t.Errorf("%v, %d batches", err, len(r.sizes))
	}
	p.rows = 0
	if err := r.run(t, asking(owner("nobody"), tx), "9:9:"); err != nil || len(r.sizes) != 0 {
		t.Errorf("%v, %d batches for an owner of nothing", err, len(r.sizes))
	}
}

func TestAnAnswerIsUsedAgainOnlyWhereItHolds(t *testing.T) {
	owner := lookups(t, 10)
	for _, tt := range []struct {
		name       string
		then, now  string // snapshots
		txns       []Txn
		asksAgain  bool
		otherOwner bool
	}{
		{"shown by the answer's snapshot", "100:100:", "100:100:", []Txn{txn(50, 20, 1)}, false, false},
		{"another argument", "100:100:", "100:100:", []Txn{txn(50, 20, 1)}, true, true},
		{"later than the answer", "100:100:", "200:200:", []Txn{txn(100, 20, 1)}, true, false},
		{"running when it was asked", "90:100:90", "200:200:", []Txn{txn(90, 20, 1)}, true, false},
		{"of no transaction", "100:100:", "100:100:", []Txn{txn(0, 20, 1)}, true, false},
		// The older one waited for a standby while the newer one was visible at once.
		{"of two, the newer one shown only", "90:100:90", "200:200:", []Txn{txn(90, 20, 1), txn(95, 30, 1)}, true, false},
		// From the answer's snapshot, this xid looks like one of the past.
		{"half a circle later", "4294968296:4294968296:", "6494968296:6494968296:", []Txn{txn(2200000999, 20, 1)}, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := &products{rows: 1}
			r := newResolver(t, p)
			if err := r.run(t, asking(owner("a"), txn(7, 10, 1)), tt.then); err != nil {
				t.Fatal(err)
			}
			name := "a"
			if tt.otherOwner {
				name = "b"
			}
			if err := r.run(t, asking(owner(name), tt.txns...), tt.now); err != nil {
				t.Fatal(err)
			}
			if again := len(p.asked) == 2; again != tt.asksAgain {
				t.Errorf("asked again: %v, want %v", again, tt.asksAgain)
			}
			if len(r.applied) != 1 || string(r.applied[0].Key) != "page:"+name+"-0" {
				t.Errorf("entries %v", r.applied)
			}
		})
	}
}

func TestLargeAnswersAreNotRemembered(t *testing.T) {
	for _, c := range []struct {
		name  string
		owner string
		p     products
		asks  int
	}{
		{"small", "a", products{rows: 100}, 1},
		{"many rows", "a", products{rows: 1000}, 2},
		{"long rows", "a", products{rows: 200, pad: strings.Repeat("x", 10<<10)}, 2},
		{"a huge question", strings.Repeat("x", 1<<20), products{rows: 0}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newResolver(t, &c.p)
			b := asking(lookups(t, 1000)(c.owner), txn(7, 10, 1))
			for range 2 {
				if err := r.run(t, b, "100:100:"); err != nil || len(r.applied) != c.p.rows {
					t.Fatalf("%v, %d entries", err, len(r.applied))
				}
			}
			if len(c.p.asked) != c.asks {
				t.Errorf("%d questions, want %d", len(c.p.asked), c.asks)
			}
		})
	}
}

// What a lookup asks with stays in memory until it is answered, like a key.
func TestLookupsFillABatchByTheirSize(t *testing.T) {
	lookup := lookups(t, 1000)
	b, tx := NewBatch(), txn(7, 10, 1)
	large := strings.Repeat("x", 32<<10)
	n := 0
	for ; !b.Full() && n < maxEntries; n++ {
		b.Add(&tx, lookup(fmt.Sprint(n, large)))
	}
	if n*len(large) > 2*maxArena {
		t.Errorf("%d lookups of %d bytes fit into a batch", n, len(large))
	}
	if b.Reset(); b.Full() {
		t.Error("an empty batch is full")
	}
	same := lookup(large)
	for range 2 * maxArena / len(large) {
		b.Add(&tx, same)
	}
	if b.Full() {
		t.Error("one lookup that is asked for again and again fills a batch")
	}
}

func TestWhatCannotBeAnsweredWidens(t *testing.T) {
	for name, p := range map[string]*products{
		"refused":        {err: fmt.Errorf("%w: 42501", ErrQueryRefused)},
		"too many rows":  {rows: 11},
		"another column": {rows: 1, columns: []string{"id"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newResolver(t, p)
			if err := r.run(t, asking(lookups(t, 10)("a"), txn(7, 10, 1)), "100:100:"); err != nil {
				t.Fatal(err)
			}
			if len(r.applied) != 1 || r.applied[0].Op != mapping.OpPurge || r.applied[0].Family.Name != "page" || r.applied[0].CommitLSN != 10 {
				t.Errorf("entries %+v, want one purge of the family", r.applied)
			}
			if len(r.refusals) != 1 {
				t.Errorf("told %v", r.refusals)
			}
		})
	}
	// As many rows as are allowed are not too many.
	r := newResolver(t, &products{rows: 10})
	if err := r.run(t, asking(lookups(t, 10)("a"), txn(7, 10, 1)), "100:100:"); err != nil || len(r.applied) != 10 || len(r.refusals) != 0 {
		t.Errorf("%v, %d entries, told %v", err, len(r.applied), r.refusals)
	}
}

func TestOneLookupFillsSeveralBatches(t *testing.T) {
	const rows = 2*maxEntries + 10
	r := newResolver(t, &products{rows: rows})
	if err := r.run(t, asking(lookups(t, rows)("a"), txn(7, 10, 1)), "100:100:"); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, e := range r.applied {
		seen[string(e.Key)] = true
	}
	if len(seen) != rows || len(r.sizes) != 3 {
		t.Errorf("%d keys in batches of %v", len(seen), r.sizes)
	}
}

// A source that is away and a Redis that is away: the attempt fails whole, and the
// next one finds the batch as it was.
func TestLookupsAreTriedAgain(t *testing.T) {
	p := &products{rows: 2, err: errors.New("connection reset")}
	r := newResolver(t, p)
	b := asking(lookups(t, 10)("a"), txn(7, 10, 1))
	if err := r.run(t, b, "100:100:"); !errors.Is(err, p.err) || !strings.Contains(err.Error(), "page") {
		t.Errorf("error %v, want the cause and the family", err)
	}
	p.err, r.fail = nil, errors.New("redis is away")
	if err := r.run(t, b, "100:100:"); !errors.Is(err, r.fail) {
		t.Errorf("error %v", err)
	}
	r.fail = nil
	if err := r.run(t, b, "100:100:"); err != nil || len(r.applied) != 2 || len(r.refusals) != 0 {
		t.Errorf("%v, %d entries, told %v", err, len(r.applied), r.refusals)
	}
}

func TestManyLookupsKeepTheirPositions(t *testing.T) {
	owner := lookups(t, 10)
	b := NewBatch()
	for i := range 20 {
		tx := txn(uint32(i+1), uint64(10*(i+1)), 1)
		b.Add(&tx, owner(fmt.Sprint("o", i)))
	}
	r := newResolver(t, &products{rows: 1})
	if err := r.run(t, b, "100:100:"); err != nil || len(r.applied) != 20 {
		t.Fatalf("%v, %d entries", err, len(r.applied))
	}
	for i, e := range r.applied {
		if want := lsn.LSN(10 * (i + 1)); e.CommitLSN != want {
			t.Errorf("%s is at %v, want %v", e.Key, e.CommitLSN, want)
		}
	}
}
