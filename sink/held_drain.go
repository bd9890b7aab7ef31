package sink

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

// MaxTake is how much one Drain takes: a script holds up every other client.
const MaxTake = 200

// Take says what to take of a class's held set.
type Take struct {
	Class  string
	Due    time.Time     // the latest deadline
	Limit  int           // at most MaxTake; 0 for what was taken before only
	Plan   *mapping.Plan // for the families' policies
	Budget time.Duration // the class's staleness, to count what is late; 0 for none
}

// Drained is what one Drain did.
type Drained struct {
	Applied int
	Again   bool // they had been taken before, by a call that did not finish
	Waiting int  // in the held set, due or not
	Late    int  // of Applied: later than the budget after their commit
	Lost    bool // the set had been evicted: the class's families are purged
}

// Drain applies what is due of a class's held set, one chunk of it. After any error it is
// to be called again, with whatever arguments: what was taken comes first then.
func (r *Redis) Drain(ctx context.Context, t Take) (Drained, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d, err := r.drain(ctx, t)
	return d, r.fail("apply what was held of class "+t.Class, "", err)
}

func (r *Redis) drain(ctx context.Context, t Take) (Drained, error) {
	s := r.sets[t.Class]
	if s == nil {
		return Drained{}, nil // out of use since it was listed
	}
	be, err := r.ready(ctx)
	if err != nil {
		return Drained{}, err
	}
	taken, err := r.take(ctx, be, s, t)
	if errors.Is(err, errLost) {
		return Drained{Lost: true}, r.purgeLost(ctx, be, s, t.Plan)
	}
	if err != nil {
		return Drained{}, err
	}
	d := Drained{Applied: len(taken.members), Again: taken.again, Waiting: taken.waiting}
	s.drained = d.Applied == 0 && d.Waiting == 0
	var since time.Time
	if !taken.oldest.IsZero() {
		since = taken.oldest.Add(-s.hold)
	}
	r.metrics.held.waiting(s.class, d.Waiting, since, r.sourceNow())
	if d.Applied == 0 {
		r.left(s, taken)
		return d, nil
	}
	failpoint.Hit(failpoint.HeldTaken)
	if err := r.apply(ctx, delivery{b: r.heldBatch(s, t, taken), drained: true}); err != nil {
		return Drained{}, err
	}
	failpoint.Hit(failpoint.HeldApplied)
	if err := r.done(ctx, be, s, taken.members); err != nil {
		return Drained{}, err
	}
	failpoint.Hit(failpoint.HeldDone)
	now := r.sourceNow()
	for _, deadline := range taken.deadlines {
		if deadline.UnixMilli() == 0 {
			continue // a replay: it was counted before
		}
		age := now.Sub(deadline.Add(-s.hold))
		r.metrics.held.age(s.class, age)
		if t.Budget > 0 && age > t.Budget {
			d.Late++
		}
	}
	r.metrics.held.done(s.class, d.Applied, d.Late)
	r.left(s, taken)
	return d, nil
}

// taken is the reply of take.lua.
type taken struct {
	members   []any
	deadlines []time.Time
	again     bool
	waiting   int
	oldest    time.Time // deadline of the oldest that waits; zero without any
	newest    time.Time // the same of the newest
}

// errLost: a set was evicted.
var errLost = errors.New("a set of held invalidations is gone: evicted, or removed by somebody")

func (r *Redis) take(ctx context.Context, be *backend, s *heldSet, t Take) (taken, error) {
	due, own := strconv.FormatInt(t.Due.UnixMilli(), 10), nonce()
	if s.leaving {
		due = "(+inf"
	}
	from, old := "0", ""
	now := r.sourceNow().UnixMilli()
	if be.cluster != nil {
		old = strconv.FormatInt(-now+r.replayWindow.Milliseconds(), 10)
		if r.replayHeld[s.class] {
			from, old, t.Limit = strconv.FormatInt(-r.replayFrom, 10), "", 0
		}
	}
	var out taken
	err := r.callScript(ctx, be, func(replID string) *redis.Cmd {
		r.shadowMu.Lock()
		generation := r.shadow.Generation
		r.shadowMu.Unlock()
		return r.scripts.take.command(ctx, []any{r.controlKey, r.heldKey(s.class), r.takenKey(s.class)},
			[]any{hex32(generation), replID, s.nonce, own, from, due, min(t.Limit, MaxTake), old})
	}, func(be *backend, addr string, cmd *redis.Cmd) error {
		reply, err := cmd.Slice()
		if err != nil {
			be.noteReply(addr, err)
			return wrap("", addr, "", err)
		}
		answer, _ := first(reply).(string)
		if answer == "lost" {
			return errLost
		}
		if err := r.controlStatus(be, addr, answer); err != nil {
			return err
		}
		out, err = parseTaken(reply, own)
		return err
	})
	if err == nil && r.replayHeld[s.class] && len(out.members) == 0 {
		delete(r.replayHeld, s.class)
	}
	return out, err
}

func first(reply []any) any {
	if len(reply) == 0 {
		return nil
	}
	return reply[0]
}

func parseTaken(reply []any, own string) (taken, error) {
	var out taken
	malformed := errors.New("malformed answer of take.lua")
	if len(reply) < 4 || len(reply)%2 != 0 {
		return out, malformed
	}
	waiting, ok := reply[1].(int64)
	if !ok {
		return out, malformed
	}
	out.waiting = int(waiting)
	at := func(v any) (time.Time, bool) {
		text, _ := v.(string)
		ms, err := strconv.ParseFloat(text, 64)
		// Negative where it was kept for a replay: the deadline is not known any more.
		return time.UnixMilli(int64(max(0, ms))), err == nil
	}
	if out.waiting > 0 {
		oldest, ok1 := at(reply[2])
		newest, ok2 := at(reply[3])
		if !ok1 || !ok2 {
			return out, malformed
		}
		out.oldest, out.newest = oldest, newest
	}
	for i := 4; i < len(reply); i += 2 {
		m, isText := reply[i].(string)
		deadline, isTime := at(reply[i+1])
		if !isText || !isTime {
			return out, malformed
		}
		out.again = out.again || len(m) < len(own) || m[:len(own)] != own
		out.members, out.deadlines = append(out.members, m), append(out.deadlines, deadline)
	}
	return out, nil
}

// heldBatch makes a batch of what was taken. A family that the plan does not have, or has
// with another policy by now, is settled by removing the key.
func (r *Redis) heldBatch(s *heldSet, t Take, taken taken) *ordering.Batch {
	if r.due == nil {
		r.due = ordering.NewBatch()
	}
	b := r.due
	b.Reset()
	r.shadowMu.Lock()
	sent := r.shadow.Sent // every held entry was covered by it when it was put in
	r.shadowMu.Unlock()
	gone := map[string]*mapping.Family{}
	for i, m := range taken.members {
		letter, name, key, ok := takenMember([]byte(m.(string)))
		if !ok {
			r.log.Warn("a member of a held set is none of ours; it is removed", "class", s.class)
			continue
		}
		family, known := t.Plan.Family(name)
		if !known {
			if family = gone[name]; family == nil {
				family = &mapping.Family{Name: name, Class: &mapping.Class{Name: s.class}}
				gone[name] = family
			}
		}
		inv := mapping.Invalidation{Op: mapping.OpDelete, Family: family, Key: key}
		switch {
		case letter == letterAdvance:
			inv.Op = mapping.OpAdvance
		case letter == letterSoft && family.Soft:
			inv.Op = mapping.OpSoft
		}
		// A transaction of its own each, for each has its own commit time.
		b.Add(&ordering.Txn{XID: uint32(i + 1), CommitLSN: sent, CommitTime: taken.deadlines[i].Add(-s.hold)}, &inv)
	}
	return b
}

// done removes what was applied from the taken set, or, in a cluster, keeps it there for
// the replay window.
func (r *Redis) done(ctx context.Context, be *backend, s *heldSet, members []any) error {
	keep := ""
	if be.cluster != nil {
		// Behind the begin of a replay, or that one would meet them again.
		keep = strconv.FormatInt(-max(r.sourceNow().UnixMilli(), r.replayFrom+1), 10)
	}
	return r.callControl(ctx, be, func(replID string) *redis.Cmd {
		r.shadowMu.Lock()
		generation := r.shadow.Generation
		r.shadowMu.Unlock()
		return r.scripts.done.command(ctx, []any{r.controlKey, r.takenKey(s.class)},
			append([]any{hex32(generation), replID, keep}, members...))
	})
}

// purgeLost settles the loss of a set: all that may have been in it is purged, then the
// class has a set again.
func (r *Redis) purgeLost(ctx context.Context, be *backend, s *heldSet, plan *mapping.Plan) error {
	r.metrics.held.lost.WithLabelValues(s.class).Inc()
	r.log.Warn("invalidations that were held are lost, so the families of their class are purged; "+
		"let Redis evict nothing but keys with an expiry (maxmemory-policy volatile-*), or give it more memory", "class", s.class)
	for _, name := range s.families {
		f, ok := plan.Family(name)
		if !ok {
			continue // nobody knows its keys any more
		}
		// Stream 0 is below any other, so every version found is counted up.
		if _, err := r.purge(ctx, be, f, nil, zeroStream, 0); err != nil {
			return fmt.Errorf("purge of family %s: %w", name, err)
		}
	}
	if err := r.publishPurge(ctx, be); err != nil {
		return err
	}
	next := *s
	next.nonce = nonce()
	return r.markHeld(ctx, be, &next, next.mark(), false)
}

// seatHeld gives each set in use its sentinels again, after everything was purged.
func (r *Redis) seatHeld(ctx context.Context, be *backend) error {
	for _, s := range r.sets {
		next := *s
		next.nonce = nonce()
		if err := r.markHeld(ctx, be, &next, next.mark(), false); err != nil {
			return err
		}
	}
	return nil
}
