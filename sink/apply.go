package sink

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

const (
	// unlinkKeys is the number of keys of one UNLINK: fewer cost more per key,
	// more hold up other clients.
	unlinkKeys = 500
	// advanceKeys is the number of keys of one script call, which holds up every
	// other client of the server.
	advanceKeys = 100
	// pipelineKeys bounds what is sent before replies are read: the whole of it has
	// to be answered within ioTimeout.
	pipelineKeys = 16 * unlinkKeys
	attempts     = 3
)

// Apply sends a batch: the checkpoint of the batch before and the position about
// to be sent, then UNLINKs and version advances in one pipeline, then purges, then what
// the invalidation stream says of all that.
// It returns nil only if Redis has acknowledged all of it. After any error the
// whole batch is to be resent, which is harmless however much of it was applied.
//
// It is one attempt, except that what is no fault of Redis's health (a script or
// the control hash that was flushed) is mended and the batch sent again. In a
// cluster the position is acknowledged before the first key goes to another node.
//
// A batch whose connection leads to a changed node fails with ErrNodeChanged and
// nothing of it is sent. If the history changed under a connection that stayed
// up, its deletes may reach the node, where they do no harm; its checkpoint and
// the one before do not.
func (r *Redis) Apply(ctx context.Context, b *ordering.Batch) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	position, complete := b.Position()
	if b.Len() > 0 {
		start := r.now()
		if err := r.apply(ctx, delivery{b: b}); err != nil {
			return r.fail("apply", b.Highest().String(), err)
		}
		r.metrics.seconds.Observe(r.now().Sub(start).Seconds())
	}
	r.metrics.batches.Inc()
	if complete {
		next := Checkpoint{Position: position, FreshAsOf: b.FreshAsOf()}
		if r.havePend && next.FreshAsOf.IsZero() {
			next.FreshAsOf = r.pending.FreshAsOf
		}
		r.pending, r.havePend = next, true
	}
	return nil
}

// delivery is a batch, and how it is sent.
type delivery struct {
	b *ordering.Batch
	// Out of a held set: no position goes with it, nothing of it is held again, and its
	// versions are counted up.
	drained bool
	direct  bool // nothing is held: Redis has refused to
}

func (r *Redis) apply(ctx context.Context, d delivery) error {
	if _, err := r.generation(); err != nil {
		return err
	}
	be, err := r.ready(ctx)
	if err != nil {
		return err
	}
	r.news.reset()
	if err := r.applyKeys(ctx, be, d); err != nil {
		return err
	}
	if err := r.purgeBatch(ctx, be, d.b); err != nil {
		r.news.doubt() // dependents that are forgotten already are not found again
		return err
	}
	return r.publishBatch(ctx, be, d.b)
}

// applyKeys does what a batch asks for of single keys.
func (r *Redis) applyKeys(ctx context.Context, be *backend, d delivery) error {
	for attempt := 1; ; attempt++ {
		var err error
		if be.cluster != nil {
			err = r.applyCluster(ctx, be, d)
		} else {
			err = r.applySingle(ctx, be, d)
		}
		if errors.Is(err, errNotHeld) && !d.direct {
			r.metrics.held.refused.Inc()
			d.direct = true
			continue
		}
		if err == nil || attempt == attempts {
			return err
		}
		if err := r.mendAll(ctx, be, err); err != nil {
			return err
		}
	}
}

// served is for how long a key may still be served, in ms for soft.lua. It is counted from
// its oldest commit, since a value that was marked late is no younger for it.
func (r *Redis) served(e ordering.Entry) string {
	left := e.Family.StaleFor - r.sourceNow().Sub(e.CommitTime)
	return strconv.FormatInt(max(0, left.Milliseconds()), 10)
}

// mendAll is mend for an error of any node.
func (r *Redis) mendAll(ctx context.Context, be *backend, err error) error {
	var nodes []*redis.Client
	switch {
	case errors.Is(err, errAbsent), errors.Is(err, ErrSuperseded):
		c, err := be.nodeFor(ctx, r.controlKey)
		if err != nil {
			return err
		}
		nodes = []*redis.Client{c}
	case replyCode(err) == "NOSCRIPT":
		all, err := be.primaries(ctx)
		if err != nil {
			return err
		}
		nodes = all
	default:
		return err
	}
	for _, c := range nodes {
		if err := be.guard.node(be.addr(c)); err != nil {
			return err
		}
		if err := r.mend(ctx, be, c, err); err != nil {
			return err
		}
	}
	return nil
}

// head is the call that goes ahead of a batch. The checkpoint of the batch before rides
// along, but in a cluster, where marks on other nodes come before it.
func (r *Redis) head(ctx context.Context, be *backend, addr string, b *ordering.Batch) *redis.Cmd {
	return r.checkpointCommand(ctx, be.guard.replID(addr), r.riding(be), b.Highest())
}

func (r *Redis) riding(be *backend) *Checkpoint {
	if !r.havePend || be.cluster != nil {
		return nil
	}
	pending := r.pending
	return &pending
}

func (r *Redis) headAnswer(be *backend, addr string, cmd *redis.Cmd, b *ordering.Batch) error {
	if err := r.controlAnswer(be, addr, cmd); err != nil {
		return err
	}
	r.stored(r.riding(be), b.Highest())
	return nil
}

// applySingle sends the keys of a batch to one server, where commands run in the
// order they were sent.
func (r *Redis) applySingle(ctx context.Context, be *backend, d delivery) error {
	b := d.b
	c, addr := be.single, be.label
	if err := be.guard.node(addr); err != nil {
		return err
	}
	p := &r.plan
	var head *redis.Cmd
	if !d.drained {
		head = r.head(ctx, be, addr, b)
	}
	streams, hold := r.streams(d), r.holder(d)
	for i, first := 0, head != nil; first || i < b.Len(); first = false {
		p.reset()
		if first {
			p.cmds = append(p.cmds, head)
		}
		i = p.fill(ctx, b, i, hold, r.served)
		for _, s := range p.softs {
			p.addMark(r.scripts.soft.command(ctx, s.keys, s.args))
		}
		for keys, lsns := range p.advanceChunks(advanceKeys) {
			for _, stream := range streams {
				p.addAdvance(r.scripts.advance.command(ctx, keys, append([]any{stream}, lsns...)))
			}
		}
		for _, g := range p.puts.commands(ctx) { // last: above maxmemory they fail, and UNLINKs make room
			p.cmds = append(p.cmds, g.cmd)
		}
		if len(p.cmds) == 0 {
			continue
		}
		_ = send(ctx, c, p.cmds...) // returns the first error only, and each is looked at
		if first {
			if err := r.headAnswer(be, addr, head, b); err != nil {
				return err
			}
		}
		if err := r.settle(be, addr, p.cmds); err != nil {
			return err
		}
	}
	return nil
}

// zeroStream is below any other: a version key that is there is counted up.
const zeroStream = "0000000000000000"

// streams are what the version keys of a delivery are moved in.
func (r *Redis) streams(d delivery) []string {
	if d.drained {
		return []string{r.stream(), zeroStream}
	}
	return []string{r.stream()}
}

// holder returns what puts the i-th entry of a delivery into its held set, and says
// whether it is to be there; nil when nothing is.
func (r *Redis) holder(d delivery) func(i int) bool {
	if d.drained || d.direct || len(r.sets) == 0 {
		return nil
	}
	now := r.sourceNow().UnixMilli()
	return func(i int) bool {
		e := d.b.Entry(i)
		s, deadline := r.holds(&e, now)
		if s == nil {
			return false
		}
		r.plan.puts.add(r.heldKey(s.class), s, deadline, &e)
		return true
	}
}

// settle looks at the reply of every command and counts what was done.
func (r *Redis) settle(be *backend, addr string, cmds []redis.Cmder) error {
	var first error
	failed, keys, removed := 0, 0, int64(0)
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil {
			if refusesHolding(cmd) {
				continue
			}
			if failed++; first == nil {
				first = fmt.Errorf("%s: %w", cmd.Name(), err)
			}
			be.noteReply(addr, err)
			continue
		}
		if u, ok := cmd.(*redis.IntCmd); ok {
			keys += len(u.Args()) - 1
			removed += u.Val()
		}
	}
	r.metrics.keys.Add(float64(keys))
	r.metrics.removed.Add(float64(removed))
	for _, a := range r.plan.advances {
		if a.Err() == nil {
			n, _ := a.Int64()
			r.metrics.versions.Add(float64(n))
		}
	}
	for _, m := range r.plan.marks {
		if m.Err() == nil {
			n, _ := m.Int64()
			r.metrics.marked.Add(float64(n))
		}
	}
	r.plan.advances, r.plan.marks = r.plan.advances[:0], r.plan.marks[:0]
	if r.plan.puts.settle(r.metrics.held) && first == nil {
		first = errNotHeld
	}
	if first != nil && failed > 1 {
		first = fmt.Errorf("%d of %d commands failed, first %w", failed, len(cmds), first)
	}
	return wrap("", addr, "", first)
}

// plan holds the commands of one pipeline. Its buffers are made once and reused:
// a batch costs a few allocations, its keys none.
type plan struct {
	cmds     []redis.Cmder
	groups   []*group // standalone and sentinel
	used     int      // of groups
	ones     singles  // cluster
	advKeys  []any
	advLSNs  []any
	advances []*redis.Cmd
	puts     puts
	softs    []*softCall
	marks    []*redis.Cmd
}

// softCall is one call of soft.lua.
type softCall struct {
	failSafe   time.Duration
	keys, args []any
}

// group is a many-key UNLINK. Its arguments point to its keys for good; only
// what the keys point to changes.
type group struct {
	keys [unlinkKeys]keyArg
	args [1 + unlinkKeys]any
	full *redis.IntCmd // of all keys; a shorter command is made when needed
	n    int
}

// keyArg gives a key to go-redis without an allocation: a []byte in an interface
// is copied to the heap, a pointer is not.
type keyArg struct{ b []byte }

// MarshalBinary implements encoding.BinaryMarshaler.
func (k *keyArg) MarshalBinary() ([]byte, error) { return k.b, nil }

func newGroup() *group {
	g := &group{}
	g.args[0] = "unlink"
	for i := range g.keys {
		g.args[1+i] = &g.keys[i]
	}
	g.full = redis.NewIntCmd(context.Background(), g.args[:]...)
	return g
}

func (p *plan) reset() {
	clear(p.cmds)
	p.cmds, p.used = p.cmds[:0], 0
	p.advKeys, p.advLSNs, p.advances = p.advKeys[:0], p.advLSNs[:0], p.advances[:0]
	p.softs, p.marks = p.softs[:0], p.marks[:0]
	p.puts.reset()
}

// fill takes entries from the i-th on until the pipeline is full, and returns
// where it stopped. Purges and dependents are left to purgeBatch, and what hold says yes
// to is held.
func (p *plan) fill(ctx context.Context, b *ordering.Batch, i int, hold func(i int) bool, served func(ordering.Entry) string) int {
	var g *group
	keys := 0
	for ; i < b.Len() && keys < pipelineKeys; i++ {
		e := b.Entry(i)
		held := hold != nil && hold(i)
		b.SetHeld(i, held)
		if held {
			keys++
			continue
		}
		switch e.Op {
		case mapping.OpDelete:
			if g == nil || g.n == unlinkKeys {
				g = p.nextGroup()
			}
			g.keys[g.n].b = e.Key
			g.n++
			keys++
		case mapping.OpAdvance:
			p.addVersion(e.Key, e.CommitLSN)
			keys++
		case mapping.OpSoft:
			p.addSoft(e, served(e))
			keys++
		}
	}
	for _, g := range p.groups[:p.used] {
		cmd := g.full
		if g.n < unlinkKeys {
			cmd = redis.NewIntCmd(ctx, g.args[:1+g.n]...)
		}
		p.cmds = append(p.cmds, cmd)
	}
	return i
}

func (p *plan) nextGroup() *group {
	if p.used == len(p.groups) {
		p.groups = append(p.groups, newGroup())
	}
	g := p.groups[p.used]
	g.n = 0
	p.used++
	return g
}

func (p *plan) addVersion(key []byte, at lsn.LSN) {
	p.advKeys = append(p.advKeys, &keyArg{b: key})
	p.advLSNs = append(p.advLSNs, at.Hex())
}

// addSoft adds to the call with the class's fail-safe that has room, if there is one.
func (p *plan) addSoft(e ordering.Entry, served string) {
	var call *softCall
	for _, s := range p.softs {
		if s.failSafe == e.Family.Class.FailSafe && len(s.keys) < advanceKeys {
			call = s
		}
	}
	if call == nil {
		call = newSoftCall(e.Family.Class.FailSafe)
		p.softs = append(p.softs, call)
	}
	call.keys = append(call.keys, &keyArg{b: e.Key})
	call.args = append(call.args, served)
}

func newSoftCall(failSafe time.Duration) *softCall {
	return &softCall{failSafe: failSafe, args: []any{failSafe.Milliseconds()}}
}

func (p *plan) addMark(cmd *redis.Cmd) {
	p.cmds = append(p.cmds, cmd)
	p.marks = append(p.marks, cmd)
}

func (p *plan) addAdvance(cmd *redis.Cmd) {
	p.cmds = append(p.cmds, cmd)
	p.advances = append(p.advances, cmd)
}

// advanceChunks yields the version keys and their positions, n at a time.
func (p *plan) advanceChunks(n int) func(yield func(keys, lsns []any) bool) {
	return func(yield func(keys, lsns []any) bool) {
		for i := 0; i < len(p.advKeys); i += n {
			end := min(i+n, len(p.advKeys))
			if !yield(p.advKeys[i:end], p.advLSNs[i:end]) {
				return
			}
		}
	}
}
