package sink

import (
	"context"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
)

// dependentsChunk is how many members of a set are read, and forgotten, at a time: few, since Redis
// answers nobody else meanwhile (make bench ARGS="-only dependents").
const dependentsChunk = 50

// dependents makes everything stale that readers have registered under an entity. The
// change is visible by now, so a reader that registers later loads what is new.
//
// Members are worked off by rising score up to the highest one at the start, and each is
// forgotten after its key is gone, unless it was registered again meanwhile. A crash at
// any point leaves too much in the set, never too little. Resend after any error.
func (r *Redis) dependents(ctx context.Context, be *backend, entity *mapping.Entity, set string, at ordering.Entry) (int64, error) {
	top, err := r.setCommand(ctx, be, set, "zrevrange", 0, 0, "withscores")
	if err != nil || len(top) < 2 {
		return 0, err
	}
	last, lowest := top[1], "-inf"
	if r.members == nil {
		r.members = ordering.NewBatch()
	}
	var total int64
	for {
		chunk, err := r.setCommand(ctx, be, set, "zrangebyscore", lowest, last, "withscores", "limit", 0, dependentsChunk)
		if err != nil || len(chunk) == 0 {
			return total, err
		}
		if err := r.limiter.WaitN(ctx, min(len(chunk)/2, r.limiter.Burst())); err != nil {
			return total, err
		}
		r.takeMembers(entity, chunk, at)
		if err := r.applyKeys(ctx, be, delivery{b: r.members, direct: true}); err != nil {
			return total, err
		}
		failpoint.Hit(failpoint.Forgetting)
		if err := r.forget(ctx, be, set, chunk); err != nil {
			return total, err
		}
		if r.onScan != nil {
			r.onScan()
		}
		total += int64(len(chunk) / 2)
		r.metrics.dependents.Add(float64(len(chunk) / 2))
		// Those with the same score that did not fit come with the next chunk; those
		// that were registered again have a higher one.
		lowest = chunk[len(chunk)-1]
	}
}

// takeMembers makes a batch of the members' keys. A member is "<family> <key>"; where the
// family is not known any more, the key is removed.
func (r *Redis) takeMembers(entity *mapping.Entity, chunk []string, at ordering.Entry) {
	tx := ordering.Txn{CommitLSN: at.CommitLSN, CommitTime: at.CommitTime}
	r.members.Reset()
	for i := 0; i+1 < len(chunk); i += 2 {
		name, key, ok := strings.Cut(chunk[i], " ")
		if !ok || key == "" {
			continue // not a reader's; it is forgotten with the others
		}
		inv := mapping.Invalidation{Op: mapping.OpDelete, Family: at.Family, Key: []byte(key)}
		if f, ok := entity.Family(name); ok && f.Soft {
			inv.Op, inv.Family = mapping.OpSoft, f
		}
		r.members.Add(&tx, &inv)
		r.news.add(inv.Key)
	}
}

// forget removes members from the set whose score is still the one that was read.
func (r *Redis) forget(ctx context.Context, be *backend, set string, chunk []string) error {
	args := make([]any, 0, len(chunk))
	for i := 0; i+1 < len(chunk); i += 2 {
		args = append(args, chunk[i+1], chunk[i])
	}
	return r.onKey(ctx, be, set, func() redis.Cmder { return r.scripts.dependents.command(ctx, []any{set}, args) })
}

// setCommand asks for a part of a set of dependents. A key of another type is no set of
// ours: it is removed, so that readers can register.
func (r *Redis) setCommand(ctx context.Context, be *backend, set, name string, args ...any) ([]string, error) {
	var cmd *redis.StringSliceCmd
	err := r.onKey(ctx, be, set, func() redis.Cmder {
		cmd = redis.NewStringSliceCmd(ctx, append([]any{name, set}, args...)...)
		return cmd
	})
	if replyCode(err) == "WRONGTYPE" {
		return nil, r.onKey(ctx, be, set, func() redis.Cmder { return redis.NewIntCmd(ctx, "unlink", set) })
	}
	if err != nil {
		return nil, err
	}
	return cmd.Val(), nil
}

// onKey sends one command to the node of its key, and once more after what is no fault of
// Redis's health was mended.
func (r *Redis) onKey(ctx context.Context, be *backend, key string, command func() redis.Cmder) error {
	for attempt := 1; ; attempt++ {
		c, err := be.nodeFor(ctx, key)
		if err != nil {
			return err
		}
		nb := &nodeBatch{client: c, addr: be.addr(c), cmds: []redis.Cmder{command()}}
		if err := be.guard.node(nb.addr); err != nil {
			return err
		}
		_ = send(ctx, c, nb.cmds...) // the error stands on the command
		if err = be.followAsk(ctx, nb); err == nil {
			err = nb.cmds[0].Err()
		}
		if err == nil {
			return nil
		}
		be.noteReply(nb.addr, err)
		if attempt == attempts || replyCode(err) != "NOSCRIPT" {
			return wrap(nb.cmds[0].Name(), nb.addr, "", err)
		}
		if err := r.mendAll(ctx, be, err); err != nil {
			return err
		}
	}
}

// allDependents makes the dependents of every entity of a kind stale.
func (r *Redis) allDependents(ctx context.Context, be *backend, f *mapping.Family, at ordering.Entry) (int64, error) {
	var total int64
	_, err := r.scanAll(ctx, be, scan{r: r, be: be, pattern: r.dependentsKey(f.Pattern(nil)), each: func(set string) error {
		n, err := r.dependents(ctx, be, f.Entity, set, at)
		total += n
		return err
	}})
	if err == nil {
		r.metrics.purges.Inc()
	}
	return total, err
}

func (r *Redis) dependentsKey(entity string) string { return mapping.DependentsKey(r.prefix, entity) }
