package sink

import (
	"context"
	"maps"
	"slices"
	"strings"

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

// Look compares the control hash with what this process knows of it, whether or not anything
// is to be written, and writes again what somebody has spoilt.
func (r *Redis) Look(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err := r.ready(ctx)
	return r.fail("look after the control hash", "", err)
}

// repair looks at the control hash, of which a hand or another program may have spoilt a field:
// a position that is too high would stand for ever, and readers would believe the rest. What
// this process knows is true, and is written again. A hash that another process keeps is not
// ours: the next call finds out.
func (r *Redis) repair(ctx context.Context, be *backend) error {
	hash, err := be.readControl(ctx, r.controlKey)
	if err != nil {
		return err
	}
	found := parseControl(hash)
	r.shadowMu.Lock()
	shadow := r.shadow
	differ, back := shadow.differences(hash, r.asked)
	spoilt := standing(r.differ, differ)
	r.differ = differ
	r.shadowMu.Unlock()
	ours := hash["writer"] == r.writer
	switch {
	case found.Generation != 0 && found.Generation != shadow.Generation && !ours:
		return nil
	case found.revision > shadow.revision && !ours: // it stands there and is not ours: whoever attaches writes it again
		return ErrSuperseded
	case back:
		return nil
	case found.Damaged != "":
		r.log.Warn("the control hash was damaged; it is written again", "damage", found.Damaged)
	case found.Found && len(spoilt) == 0:
		return nil
	case found.Found:
		r.log.Warn("the control hash was damaged; it is written again", "fields_that_were_not_as_written", strings.Join(spoilt, " "))
	}
	return r.rewrite(ctx, be, hash)
}

// rewrite replaces the hash that was found, and no other. It has a state's revision of its own: a copy
// of it that arrives late finds another one than it replaces.
func (r *Redis) rewrite(ctx context.Context, be *backend, found map[string]string) error {
	c, err := be.nodeFor(ctx, r.controlKey)
	if err != nil {
		return err
	}
	if err := be.guard.node(be.addr(c)); err != nil {
		return err
	}
	r.shadowMu.Lock()
	r.shadow.revision++
	r.differ = nil
	r.shadowMu.Unlock()
	r.metrics.restored.Inc()
	return r.install(ctx, be, c, "="+found["state_revision"])
}

// reclaim is for an answer that the hash is another process's. Who has taken it over has
// written itself into it; else its revision, generation or stamps were spoilt, and the hash is written
// again.
func (r *Redis) reclaim(ctx context.Context, be *backend) (ours bool, err error) {
	hash, err := be.readControl(ctx, r.controlKey)
	if err != nil {
		return false, err
	}
	r.shadowMu.Lock()
	shadow := r.shadow
	differ, back := shadow.differences(hash, r.asked)
	r.shadowMu.Unlock()
	if shadow.writer != r.writer || hash["writer"] != r.writer {
		return false, nil
	}
	if back || len(differ) == 0 {
		return !back, nil
	}
	r.log.Warn("the control hash was damaged; it is written again", "fields_that_were_not_as_written", strings.Join(slices.Sorted(maps.Keys(differ)), " "))
	return true, r.rewrite(ctx, be, hash)
}
