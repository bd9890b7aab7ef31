package sink

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

// # Held invalidations
//
// An invalidation of a class with linger or max_rate is not applied with its batch. The
// batch puts it into a sorted set in Redis, after the visibility gate and before the
// checkpoint, and counts as applied then: neither the log nor memory is held up by it.
//
//	<prefix>held:{slot}:<class>         '<op> <family> <key>'         score: deadline, ms
//	<prefix>held:{slot}:<class>:taken   '<take> <op> <family> <key>'  score: the same
//
// The deadline is the commit time plus the class's hold, by the source's clock. ZADD NX
// keeps the oldest, so a key that changes a thousand times is one member, and its first
// change decides. What is past its deadline when its batch is applied is not put in.
//
// Drain takes what is due (held -> taken, at most 200 a call), applies it as a batch, and
// removes it from the taken set. Why nothing is lost:
//
//   - A crash before the take leaves it in the held set; after it, in the taken set, which
//     comes first at every next take, whoever makes it. Applying twice is harmless.
//   - A key that changes between take and removal is put into the held set anew: what is
//     removed is the member of the taken set, which carries the number of its take.
//   - Late commands of a process that was superseded: a late ZADD invalidates once more, a
//     late take leaves its members to the next, a late removal names members that were
//     applied before it was sent.
//   - A restart or failover of the one node leaves a prefix of its history: an UNLINK that
//     is lost is lost with the removal that came after it, a ZADD with its checkpoint. In a
//     cluster the keys lie on other nodes, whose failover can take back an UNLINK long after
//     the log has been let go. There what was applied is kept in the taken set for the
//     replay window, and applied again when the primaries are others than at the last
//     checkpoint.
//   - An eviction takes a whole set and tells nobody. Each set has a sentinel with a nonce
//     that the control hash names (field held:<class>, with the families that may be in the
//     set). Where it is missing, the class's families are purged. See lua/hold.lua.
//   - Where Redis takes no ZADD (above maxmemory), the batch applies its entries at once:
//     earlier is always allowed.
//
// A version key is moved in the own stream up to the highest commit that was sent, and then
// counted up: whatever it is by then, it gets a value that it never had.
//
// When a class's hold gets shorter, or the class is gone, all that it holds is due. The set
// goes out of use once it is empty.
//
// fresh_as_of is not newer than the begin of the last pass over all sets that was completed,
// for which the drainer sees. The begin is read while no batch is under way: so what is due by then is either
// in a set before the pass looks, or its batch finds it due and applies it itself.

// HeldClass is a class whose invalidations are held.
type HeldClass struct {
	Name     string
	Hold     time.Duration // from the commit to the deadline
	Families []string      // of the class
}

// heldSet is a pair of sets in use.
type heldSet struct {
	class    string
	nonce    string
	hold     time.Duration // at least that of every entry: whole milliseconds
	families []string
	leaving  bool // nothing more is put in, and all of it is due
	drained  bool // the last take left nothing

	// Nothing of what ended at or below settled is in the set any more. marks are positions
	// behind it, and what has to have left the set for each; see settle.go.
	settled lsn.LSN
	marks   []heldMark
}

func (s *heldSet) mark() string {
	return strings.Join(append([]string{s.nonce, strconv.FormatInt(s.hold.Milliseconds(), 10)}, s.families...), " ")
}

const heldField = "held:"

// replayMargin is how far the clocks of two processes may be apart for one to know what
// the other has applied.
const replayMargin = time.Second

// parseMark reads a field of the control hash.
func parseMark(class, mark string) (*heldSet, error) {
	f := strings.Fields(mark)
	if len(f) >= 2 && len(f[0]) == 16 {
		if ms, err := strconv.ParseInt(f[1], 10, 64); err == nil && ms >= 0 {
			return &heldSet{class: class, nonce: f[0], hold: time.Duration(ms) * time.Millisecond, families: f[2:]}, nil
		}
	}
	return nil, fmt.Errorf("field %s%s is %q, want a nonce, milliseconds and families", heldField, class, mark)
}

func (r *Redis) heldKey(class string) string  { return heldKey(r.prefix, r.slot, class) }
func (r *Redis) takenKey(class string) string { return r.heldKey(class) + ":taken" }

func heldKey(prefix, slot, class string) string { return prefix + "held:{" + slot + "}:" + class }

// KeepHeld takes the sets of these classes into use, and those of others out of it as they
// get empty. It costs nothing while nothing changes. Before it was called for a class,
// that one's invalidations are applied at once.
func (r *Redis) KeepHeld(ctx context.Context, classes []HeldClass) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	const op = "take held sets into use"
	if len(classes) == 0 && len(r.sets) == 0 {
		return nil
	}
	be, err := r.ready(ctx)
	if err != nil {
		return r.fail(op, "", err)
	}
	if _, err := r.generation(); err != nil {
		return r.fail(op, "", err)
	}
	for _, c := range classes {
		if err := r.keepClass(ctx, be, c); err != nil {
			return r.fail(op, "", err)
		}
	}
	for name, s := range r.sets {
		if slices.ContainsFunc(classes, func(c HeldClass) bool { return c.Name == name }) {
			continue
		}
		s.leaving = true
		if !s.drained {
			continue
		}
		if err := r.markHeld(ctx, be, s, "", true); err != nil && !errors.Is(err, errBusy) {
			return r.fail(op, "", err)
		}
	}
	return nil
}

func (r *Redis) keepClass(ctx context.Context, be *backend, c HeldClass) error {
	hold := c.Hold.Truncate(time.Millisecond)
	s := r.sets[c.Name]
	next := &heldSet{class: c.Name, nonce: nonce(), hold: hold, families: slices.Sorted(slices.Values(c.Families))}
	switch {
	case s == nil:
		return r.markHeld(ctx, be, next, next.mark(), false)
	case s.hold > hold:
		// What was put in under the longer hold would be late under this one.
		s.leaving = true
		if !s.drained {
			return nil
		}
		if err := r.markHeld(ctx, be, next, next.mark(), true); err != nil && !errors.Is(err, errBusy) {
			return err
		}
		return nil
	}
	s.leaving = false
	for _, f := range s.families { // that it may still hold something of
		if !slices.Contains(next.families, f) {
			next.families = append(next.families, f)
		}
	}
	if s.hold == hold && len(next.families) == len(s.families) {
		return nil
	}
	return r.markHeld(ctx, be, next, next.mark(), false)
}

// errBusy: there is something in a set that was to be empty.
var errBusy = errors.New("the held set is not empty")

// markHeld writes a mark and the sentinels, or, with an empty mark, removes them.
func (r *Redis) markHeld(ctx context.Context, be *backend, s *heldSet, mark string, empty bool) error {
	condition := ""
	if empty {
		condition = "empty"
	}
	if err := r.callControl(ctx, be, func(replID string) *redis.Cmd {
		r.shadowMu.Lock()
		generation := r.shadow.Generation
		r.shadowMu.Unlock()
		return r.scripts.hold.command(ctx, []any{r.controlKey, r.heldKey(s.class), r.takenKey(s.class)},
			[]any{hex32(generation), replID, heldField + s.class, mark, s.nonce, condition})
	}); err != nil {
		return err
	}
	if mark == "" {
		delete(r.sets, s.class)
		delete(r.replayHeld, s.class)
		r.metrics.held.forget(s.class)
	} else {
		r.sets[s.class] = s
		r.metrics.held.know(s.class)
	}
	r.shadowMu.Lock()
	defer r.shadowMu.Unlock()
	held := maps.Clone(r.shadow.held) // copies of the shadow share it
	if held == nil {
		held = map[string]string{}
	}
	if held[s.class] = mark; mark == "" {
		delete(held, s.class)
	}
	r.shadow.held = held
	return nil
}

func nonce() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// adoptHeld takes the sets that a control hash names for those in use.
func (r *Redis) adoptHeld(held map[string]string) error {
	sets := make(map[string]*heldSet, len(held))
	for class, mark := range held {
		s, err := parseMark(class, mark)
		if err != nil {
			return err
		}
		sets[class] = s
		r.metrics.held.know(class)
	}
	for class := range r.sets {
		if sets[class] == nil {
			r.metrics.held.forget(class)
		}
	}
	r.sets = sets
	maps.DeleteFunc(r.replayHeld, func(class string, _ bool) bool { return sets[class] == nil })
	return nil
}

// HeldSets are the classes whose sets are in use, also of classes that are gone.
func (r *Redis) HeldSets() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.sets))
}

// BeginPass returns the time up to which nothing that was held back is missing once Drain
// has left nothing in any of the HeldSets that was due by then.
func (r *Redis) BeginPass() time.Time {
	r.mu.Lock() // no batch is under way
	defer r.mu.Unlock()
	return r.sourceNow()
}

// holds returns the set that an entry of a batch goes into, nil when it is to be applied
// now, and its deadline in ms.
func (r *Redis) holds(e *ordering.Entry, now int64) (*heldSet, int64) {
	if opLetter(e.Op) == 0 {
		return nil, 0
	}
	s := r.sets[e.Family.Class.Name]
	// A family that the mark does not name would not be purged if the set were lost.
	if s == nil || s.leaving || !slices.Contains(s.families, e.Family.Name) {
		return nil, 0
	}
	deadline := e.CommitTime.Add(s.hold).UnixMilli()
	if deadline <= now {
		return nil, 0
	}
	return s, deadline
}

// The letters of members. Purges are not held, and what looks keys up was resolved before.
const (
	letterDelete  = 'd'
	letterSoft    = 's'
	letterAdvance = 'a'
)

func opLetter(op mapping.Op) byte {
	switch op {
	case mapping.OpDelete:
		return letterDelete
	case mapping.OpSoft:
		return letterSoft
	case mapping.OpAdvance:
		return letterAdvance
	}
	return 0
}

func heldMember(e *ordering.Entry) []byte {
	m := make([]byte, 0, 3+len(e.Family.Name)+len(e.Key))
	m = append(m, opLetter(e.Op), ' ')
	m = append(m, e.Family.Name...)
	m = append(m, ' ')
	return append(m, e.Key...)
}

// takenMember splits a member of a taken set.
func takenMember(m []byte) (op byte, family string, key []byte, ok bool) {
	_, m, ok1 := bytes.Cut(m, []byte{' '})
	letter, m, ok2 := bytes.Cut(m, []byte{' '})
	name, key, ok3 := bytes.Cut(m, []byte{' '})
	if !ok1 || !ok2 || !ok3 || len(letter) != 1 {
		return 0, "", nil, false
	}
	return letter[0], string(name), key, true
}

// putMembers is the number of members of one ZADD.
const putMembers = 100

// puts collects what a pipeline puts into held sets.
type puts struct {
	open map[*heldSet]*put
	all  []*put
}

type put struct {
	set  *heldSet
	args []any
	n    int
	cmd  *redis.Cmd
}

func (p *puts) reset() { p.open, p.all = nil, nil }

func (p *puts) add(key string, s *heldSet, deadline int64, e *ordering.Entry) {
	g := p.open[s]
	if g == nil {
		if p.open == nil {
			p.open = make(map[*heldSet]*put)
		}
		g = &put{set: s, args: []any{"zadd", key, "nx"}}
		p.open[s] = g
		p.all = append(p.all, g)
	}
	g.args = append(g.args, deadline, heldMember(e))
	if g.n++; g.n == putMembers {
		delete(p.open, s)
	}
}

// commands makes the commands of what was added since the last call. They are no IntCmds,
// which settle takes for UNLINKs.
func (p *puts) commands(ctx context.Context) []*put {
	p.open = nil
	first := len(p.all)
	for i, g := range slices.Backward(p.all) {
		if g.cmd != nil {
			break
		}
		g.cmd, first = redis.NewCmd(ctx, g.args...), i
	}
	return p.all[first:]
}

// errNotHeld: Redis did not take what was to be held. It is applied at once instead.
var errNotHeld = errors.New("what was to be held was refused")

// settle looks at the replies.
func (p *puts) settle(m *heldMetrics) (refused bool) {
	for _, g := range p.all {
		switch {
		case g.cmd == nil:
		case g.cmd.Err() == nil:
			added, _ := g.cmd.Int64()
			m.put.WithLabelValues(g.set.class).Add(float64(g.n))
			m.coalesced.WithLabelValues(g.set.class).Add(float64(g.n) - float64(added))
			g.set.drained = false
		default:
			refused = refused || refusesHolding(g.cmd)
		}
	}
	p.reset()
	return refused
}

func refusesHolding(cmd redis.Cmder) bool {
	if cmd.Name() != "zadd" {
		return false
	}
	code := replyCode(cmd.Err())
	return code == "OOM" || code == "WRONGTYPE"
}
