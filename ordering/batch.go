package ordering

import (
	"bytes"
	"hash/maphash"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// A batch is full at either bound. They keep a batch at well under a megabyte
// and an application of it at a few milliseconds.
const (
	maxEntries = 4096
	maxArena   = 256 << 10
)

// Batch is a set of invalidations that are applied together. The same
// invalidation of several transactions is in it once, with the newest position
// and the oldest commit time. A Batch is filled by one goroutine, then read by
// another, and reused; it is not safe for concurrent use.
type Batch struct {
	entries []entry
	arena   []byte   // tenants and keys, back to back
	index   []uint32 // open addressing over entries: number+1, 0 is free
	txns    []Txn    // transactions with entries here, in commit order
	lookups int
	asked   int  // bytes that the lookups hold, which are not in the arena
	urgent  bool // something in it is not being removed early
	waiting []chan struct{}
	highest lsn.LSN

	// seed is drawn per batch: keys are chosen by those who write rows, and they
	// must not be able to choose collisions.
	seed maphash.Seed

	position Position
	complete bool
	beat     time.Time // of the newest heartbeat here
	proved   time.Time
	stats    Stats
}

// Stats counts what went into a batch, before coalescing.
type Stats struct {
	Transactions  int // completed in this batch
	Rows          int
	Invalidations int
}

// Entry is one invalidation. Its bytes belong to the batch.
type Entry struct {
	Op          mapping.Op
	Family      *mapping.Family
	Tenant, Key []byte
	CommitLSN   lsn.LSN   // of the newest transaction that asked for it
	CommitTime  time.Time // of the oldest
	Held        bool      // see SetHeld
}

type entry struct {
	op             mapping.Op
	hasTenant      bool
	merged         bool // of several transactions
	held           bool
	hash           uint32
	off            uint32 // tenant, then key, in the arena
	tenantLen      uint32
	keyLen         uint32
	oldest, newest uint32 // in txns
	family         *mapping.Family
	lookup         *mapping.LookupCall
}

// NewBatch returns an empty batch.
func NewBatch() *Batch {
	return &Batch{
		entries: make([]entry, 0, maxEntries),
		arena:   make([]byte, 0, maxArena/4),
		index:   make([]uint32, 2*maxEntries),
		seed:    maphash.MakeSeed(),
	}
}

// Len is the number of entries.
func (b *Batch) Len() int { return len(b.entries) }

// Entry returns the i-th entry, in no particular order.
func (b *Batch) Entry(i int) Entry {
	e := &b.entries[i]
	return Entry{
		Op:         e.op,
		Family:     e.family,
		Tenant:     b.tenant(e),
		Key:        b.key(e),
		CommitLSN:  b.txns[e.newest].CommitLSN,
		CommitTime: b.txns[e.oldest].CommitTime,
		Held:       e.held,
	}
}

// SetHeld says of the i-th entry whether it was put away to be applied later, which is
// what counts as its application for this batch.
func (b *Batch) SetHeld(i int, held bool) { b.entries[i].held = held }

// Highest is the highest commit LSN that any entry comes from, 0 without
// entries.
func (b *Batch) Highest() lsn.LSN { return b.highest }

// Position is the newest boundary that is reached once this batch and all before
// it are applied; false when the batch ends no transaction.
func (b *Batch) Position() (Position, bool) { return b.position, b.complete }

// Beat is the time of the newest heartbeat in the batch: once it and all before it are
// applied, nothing that the log says of the time until then is missing. Zero without one.
func (b *Batch) Beat() time.Time { return b.beat }

// Prove says up to when nothing at all is missing once the batch and all before it are
// applied: the taker knows more watchers than the log.
func (b *Batch) Prove(freshAsOf time.Time) { b.proved = freshAsOf }

// FreshAsOf is what Prove said; zero for nothing.
func (b *Batch) FreshAsOf() time.Time { return b.proved }

// Txns are the transactions that have entries here, in commit order.
func (b *Batch) Txns() []Txn { return b.txns }

// Stats says what went into the batch.
func (b *Batch) Stats() Stats { return b.stats }

// Add puts an invalidation of tx in. Transactions come in commit order. It
// copies what inv points to, except a lookup.
func (b *Batch) Add(tx *Txn, inv *mapping.Invalidation) {
	b.stats.Invalidations++
	if n := len(b.txns); n == 0 || b.txns[n-1].CommitLSN != tx.CommitLSN || b.txns[n-1].XID != tx.XID {
		b.txns = append(b.txns, *tx)
		b.highest = max(b.highest, tx.CommitLSN)
	}
	t := uint32(len(b.txns) - 1)
	var lookupID string
	if inv.Lookup != nil {
		lookupID = inv.Lookup.ID()
	}
	h := b.hash(inv, lookupID)
	slot := h & uint32(len(b.index)-1)
	for b.index[slot] != 0 {
		e := &b.entries[b.index[slot]-1]
		if e.hash == h && b.same(e, inv, lookupID) {
			e.merged = e.merged || e.newest != t
			if b.txns[t].CommitTime.Before(b.txns[e.oldest].CommitTime) {
				e.oldest = t // commit times are not in commit order
			}
			if b.txns[t].CommitLSN > b.txns[e.newest].CommitLSN {
				e.newest = t
			}
			return
		}
		slot = (slot + 1) & uint32(len(b.index)-1)
	}
	e := entry{
		op: inv.Op, hash: h, family: inv.Family, lookup: inv.Lookup, oldest: t, newest: t,
		off: uint32(len(b.arena)), hasTenant: inv.Tenant != nil,
		tenantLen: uint32(len(inv.Tenant)), keyLen: uint32(len(inv.Key)),
	}
	b.arena = append(b.arena, inv.Tenant...)
	b.arena = append(b.arena, inv.Key...)
	if inv.Lookup != nil {
		b.lookups++
		b.asked += inv.Lookup.Size()
	}
	b.entries = append(b.entries, e)
	b.index[slot] = uint32(len(b.entries))
	if len(b.entries)*2 > len(b.index) {
		b.rehash()
	}
}

// end records that everything up to p has been put in.
func (b *Batch) end(p Position) {
	b.position = p
	b.complete = true
}

// Full says that the batch should be applied before more is added. Adding more
// stays possible: one change may map to many keys.
func (b *Batch) Full() bool {
	return len(b.entries) >= maxEntries || len(b.arena)+b.asked >= maxArena || len(b.txns) >= maxEntries
}

// Applied tells those who wait for it that all of the batch is applied.
func (b *Batch) Applied() {
	for _, c := range b.waiting {
		close(c)
	}
	b.waiting = nil
}

// Reset empties the batch for reuse; one that grew beyond its bounds gives its
// memory back.
func (b *Batch) Reset() {
	if cap(b.arena) > 2*maxArena || cap(b.entries) > 2*maxEntries {
		*b = *NewBatch()
		return
	}
	clear(b.entries) // families of an old plan must not stay reachable
	b.entries, b.arena, b.txns = b.entries[:0], b.arena[:0], b.txns[:0]
	clear(b.index)
	b.lookups, b.asked, b.highest, b.complete, b.position, b.stats = 0, 0, 0, false, Position{}, Stats{}
	b.beat, b.proved, b.urgent, b.waiting = time.Time{}, time.Time{}, false, nil
}

func (b *Batch) hash(inv *mapping.Invalidation, lookupID string) uint32 {
	var h uint64
	switch {
	case inv.Lookup != nil:
		h = maphash.String(b.seed, lookupID)
	case len(inv.Key) > 0:
		h = maphash.Bytes(b.seed, inv.Key)
	default:
		h = maphash.Bytes(b.seed, inv.Tenant)
	}
	h ^= (uint64(inv.Op)<<32 | uint64(inv.Family.ID)) * 0x9e3779b97f4a7c15
	return uint32(h ^ h>>32)
}

func (b *Batch) same(e *entry, inv *mapping.Invalidation, lookupID string) bool {
	if e.op != inv.Op || e.family != inv.Family || e.hasTenant != (inv.Tenant != nil) {
		return false
	}
	if inv.Lookup != nil {
		return e.lookup != nil && e.lookup.ID() == lookupID
	}
	return bytes.Equal(b.key(e), inv.Key) && bytes.Equal(b.tenant(e), inv.Tenant)
}

func (b *Batch) tenant(e *entry) []byte {
	if !e.hasTenant {
		return nil
	}
	end := e.off + e.tenantLen
	return b.arena[e.off:end:end]
}

func (b *Batch) key(e *entry) []byte {
	start := e.off + e.tenantLen
	end := start + e.keyLen
	return b.arena[start:end:end]
}

func (b *Batch) rehash() {
	b.index = make([]uint32, 2*len(b.index))
	for i := range b.entries {
		slot := b.entries[i].hash & uint32(len(b.index)-1)
		for b.index[slot] != 0 {
			slot = (slot + 1) & uint32(len(b.index)-1)
		}
		b.index[slot] = uint32(i + 1)
	}
}
