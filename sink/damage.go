package sink

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// Discard removes a control hash that cannot be read, so that a new generation begins from
// nothing. The caller holds the slot: nobody else writes the hash.
func (r *Redis) Discard(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	be, err := r.ready(ctx)
	if err == nil {
		err = r.discard(ctx, be)
	}
	return r.fail("discard the control hash", "", err)
}

func (r *Redis) discard(ctx context.Context, be *backend) error {
	c, err := be.nodeFor(ctx, r.controlKey)
	if err != nil {
		return err
	}
	if err := be.guard.node(be.addr(c)); err != nil {
		return err
	}
	return send(ctx, c, redis.NewIntCmd(ctx, "unlink", r.controlKey))
}

// positions of the control hash, for comparison.
type positions struct{ applied, end, sent uint64 }

func positionsOf(c *Control) positions {
	return positions{uint64(c.Applied), uint64(c.End), uint64(c.Sent)}
}

func (p positions) beyond(q positions) bool {
	return p.applied > q.applied || p.applied == q.applied && p.end > q.end || p.sent > q.sent
}

// repair looks at the control hash, of which a hand or another program may have spoilt a field:
// the scripts never move a position back, so one that is too high would stand for ever under
// a state that says ok. What this process knows is true, and is written again. A hash of
// another generation, or with a later state, is somebody else's: the next call finds out.
func (r *Redis) repair(ctx context.Context, be *backend) error {
	found, err := r.load(ctx, be)
	if err != nil {
		return err
	}
	r.shadowMu.Lock()
	shadow := r.shadow
	r.shadowMu.Unlock()
	stored, known := positionsOf(&found), positionsOf(&shadow)
	// A reply that was lost leaves the hash ahead of what is known here, until the next one.
	ahead := stored.beyond(known)
	standing := ahead && r.ahead && stored == r.aheadAt && known != r.aheadOf
	r.ahead, r.aheadAt, r.aheadOf = ahead, stored, known
	damage := found.Damaged
	switch {
	case found.Generation != 0 && found.Generation != shadow.Generation:
		return nil
	case damage != "":
	case !found.Found:
		return nil
	case found.revision > shadow.revision: // it stands there and is not ours: whoever attaches writes it again
		return ErrSuperseded
	case found.revision == shadow.revision && found.State != shadow.State:
		damage = "field state is not what was written"
	case standing:
		damage = "a position is above all that was written"
	default:
		return nil
	}
	r.log.Warn("the control hash was damaged; it is written again", "damage", damage)
	r.metrics.restored.Inc()
	c, err := be.nodeFor(ctx, r.controlKey)
	if err != nil {
		return err
	}
	if err := r.discard(ctx, be); err != nil {
		return err
	}
	return r.restore(ctx, be, c)
}
