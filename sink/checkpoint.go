package sink

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// Checkpoint stores that no transaction at or below c is missing. It must be
// called only after every batch up to c was acknowledged. Positions move forward
// only: a checkpoint behind the stored one changes nothing, and is no error.
func (r *Redis) Checkpoint(ctx context.Context, c Checkpoint) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	op, pos := "checkpoint", c.CommitLSN.String()
	be, err := r.ready(ctx)
	if err != nil {
		return r.fail(op, pos, err)
	}
	if err := r.checkSource(c); err != nil {
		return r.fail(op, pos, err)
	}
	if be.cluster != nil {
		// First: so no primary that has everything has a mark behind the control hash.
		if err := r.writeMarks(ctx, be, &c); err != nil {
			return r.fail(op, pos, err)
		}
	}
	err = r.callControl(ctx, be, func(replID string) *redis.Cmd {
		return r.checkpointCommand(ctx, replID, &c, 0)
	})
	if err != nil {
		return r.fail(op, pos, err)
	}
	r.stored(&c, 0)
	return nil
}

// checkSource keeps the position of one cluster out of the hash of another.
func (r *Redis) checkSource(c Checkpoint) error {
	if _, err := r.generation(); err != nil {
		return err
	}
	r.shadowMu.Lock()
	defer r.shadowMu.Unlock()
	if c.SystemID != "" && c.SystemID != r.shadow.Source.SystemID {
		return &Error{Kind: KindUsage, Err: errors.New("the position is of another system id than the generation"), Hint: "start a new generation"}
	}
	return nil
}

// checkpointCommand makes one call that may carry a checkpoint, the position
// about to be sent, or both.
func (r *Redis) checkpointCommand(ctx context.Context, replID string, c *Checkpoint, sent lsn.LSN) *redis.Cmd {
	args := make([]any, 12)
	for i := range args {
		args[i] = ""
	}
	r.shadowMu.Lock()
	args[0] = hex32(r.shadow.Generation)
	args[11] = r.shadow.Sent.Hex() + r.shadow.Applied.Hex() + r.shadow.End.Hex()
	r.asked = max(r.asked, sent)
	r.shadowMu.Unlock()
	args[1] = replID
	if sent != 0 {
		args[2] = sent.Hex()
	}
	if c != nil {
		args[3], args[4] = c.CommitLSN.Hex(), c.EndLSN.Hex()
		args[5], args[6] = hex32(c.Timeline), hexTime(c.CommitTime)
		if !c.FreshAsOf.IsZero() {
			args[7] = hexTime(c.FreshAsOf)
		}
	}
	args[8] = hexTime(r.now())
	if c != nil {
		args[9] = r.nodesAfter(c)
		args[10] = txnField(c.CommitLSN, c.XID)
	}
	return r.scripts.checkpoint.command(ctx, []any{r.controlKey}, args)
}

// nodesAfter is what a checkpoint may say of the nodes: where the
// primaries changed, those that are there now have everything only when the replay
// has come back to where the old ones were, and what was held is applied again too.
func (r *Redis) nodesAfter(c *Checkpoint) string {
	r.shadowMu.Lock()
	defer r.shadowMu.Unlock()
	if r.shadow.nodes == r.nodes || c.CommitLSN < r.shadow.Applied || len(r.replayHeld) > 0 {
		return ""
	}
	return r.nodes
}

// stored records what Redis has acknowledged.
func (r *Redis) stored(c *Checkpoint, sent lsn.LSN) {
	r.shadowMu.Lock()
	defer r.shadowMu.Unlock()
	s := &r.shadow
	s.Sent = max(s.Sent, sent)
	if c == nil {
		return
	}
	r.metrics.checkpoints.Inc()
	if c.CommitLSN >= s.Applied && len(r.replayHeld) == 0 && s.nodes != r.nodes {
		s.nodes, s.Settled = r.nodes, 0
	}
	if c.CommitLSN > s.Applied || c.CommitLSN == s.Applied && c.EndLSN > s.End {
		s.Applied, s.End, s.Source.Timeline, s.CommitTime, s.XID = c.CommitLSN, c.EndLSN, c.Timeline, c.CommitTime, c.XID
		if !c.FreshAsOf.IsZero() {
			s.FreshAsOf = c.FreshAsOf
		}
	}
	if r.havePend && r.pending.CommitLSN <= s.Applied && r.pending.EndLSN <= s.End {
		r.havePend = false
	}
}

// SetState publishes a state with a reason for people. Later calls win over
// earlier ones, also over those whose reply was lost. Without a control hash it
// makes one (of generation 0), so that a gap can be told before anything else.
func (r *Redis) SetState(ctx context.Context, s State, reason string) error {
	op := "set state " + string(s)
	be := r.backend.Load()
	if !be.guard.sealed() {
		return r.fail(op, "", ErrNotAttached)
	}
	r.shadowMu.Lock()
	// The shadow changes before the reply: whatever restores the hash meanwhile
	// restores the newer intention.
	c := &r.shadow
	c.revision++
	c.writer = r.writer
	c.State, c.Reason, c.StateSince = s, reason, r.now()
	r.shadowMu.Unlock()
	return r.fail(op, "", r.sendState(ctx, be))
}

// sendState publishes the state as it is known.
func (r *Redis) sendState(ctx context.Context, be *backend) error {
	return r.callControl(ctx, be, func(replID string) *redis.Cmd {
		r.shadowMu.Lock()
		defer r.shadowMu.Unlock()
		c := &r.shadow
		return r.scripts.state.command(ctx, []any{r.controlKey},
			[]any{hex32(c.Generation), replID, hex64(c.revision), string(c.State), c.Reason, hexTime(c.StateSince), c.writer})
	})
}

// Claim writes this process into the control hash as the one that keeps it, before it changes
// anything else there. Whoever kept it before finds that, and gives way; what nobody has written
// into the hash is not taken for a new keeper. The caller holds the slot. It also takes sent to where
// it has to be at least, for a loader on a standby relies on it, and the next batch may be long in coming. Without a
// hash that can be read it does nothing: StartGeneration comes next.
func (r *Redis) Claim(ctx context.Context) error {
	be := r.backend.Load()
	r.shadowMu.Lock()
	c := &r.shadow
	kept := c.Found && c.Generation != 0 && c.Damaged == ""
	if kept {
		c.revision++
		c.writer = r.writer
	}
	sent := max(r.asked, c.Applied)
	r.shadowMu.Unlock()
	if !kept {
		return nil
	}
	err := r.sendState(ctx, be)
	if err == nil {
		err = r.callControl(ctx, be, func(replID string) *redis.Cmd { return r.checkpointCommand(ctx, replID, nil, sent) })
	}
	if err == nil {
		r.stored(nil, sent)
	}
	return r.fail("claim the control hash", "", err)
}

// SetEpoch replaces the source's epoch within the generation: the source has begun a
// new life, and lost nothing on the way.
func (r *Redis) SetEpoch(ctx context.Context, epoch string) error {
	const op = "set the source's epoch"
	generation, err := r.generation()
	if err != nil {
		return r.fail(op, "", err)
	}
	err = r.callControl(ctx, r.backend.Load(), func(replID string) *redis.Cmd {
		return r.scripts.epoch.command(ctx, []any{r.controlKey}, []any{hex32(generation), replID, epoch})
	})
	if err == nil {
		r.shadowMu.Lock()
		r.shadow.Source.Epoch, r.shadow.Settled = epoch, 0
		r.shadowMu.Unlock()
	}
	return r.fail(op, "", err)
}

// StartGeneration begins the positions anew after a gap, or at the first attach:
// the only way in which a stored position goes back. A generation is higher than
// all before it, so version values stay ahead even when LSNs start again. The
// state stays gap, or becomes it, until SetState says otherwise: what is in the
// cache is not proved by anything yet.
func (r *Redis) StartGeneration(ctx context.Context, src Source) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	const op = "start a generation"
	be, err := r.ready(ctx)
	if err != nil {
		return r.fail(op, "", err)
	}
	found, err := r.load(ctx, be)
	if err != nil {
		return r.fail(op, "", err)
	}
	now := r.now()
	r.shadowMu.Lock()
	old := r.shadow
	// Not below the clock either: the hash that counted may have been lost, while
	// version keys of its generations live on.
	next := max(r.highest, found.Generation) + 1
	next = max(next, uint32(now.Unix()))
	r.asked = 0
	r.shadow = Control{
		writer: r.writer, Found: true, Generation: next, Source: src, Region: r.region, nodes: r.nodes,
		State: old.State, Reason: old.Reason, StateSince: old.StateSince,
		revision: max(old.revision, found.revision) + 1,
		held:     found.held, // what is held stays held: it is more to invalidate
	}
	if r.shadow.State == "" || r.shadow.State == StateOK {
		r.shadow.State, r.shadow.Reason, r.shadow.StateSince = StateGap, "a new generation: what is cached is not proved yet", now
	}
	r.highest = next
	r.havePend = false
	r.shadowMu.Unlock()
	if err := r.adoptHeld(found.held); err != nil {
		return r.fail(op, "", err)
	}

	c, err := be.nodeFor(ctx, r.controlKey)
	if err == nil {
		if err = be.guard.node(be.addr(c)); err == nil {
			err = r.restore(ctx, be, c)
		}
	}
	if err != nil {
		// Whether it was written is unknown. Not attached to a generation until a
		// later call was acknowledged; that one is higher still.
		r.shadowMu.Lock()
		r.shadow = old
		r.shadowMu.Unlock()
		return r.fail(op, "", err)
	}
	// Before anything is purged: what readers have in their own memory is not proved either.
	r.news.attach()
	r.news.everything()
	if err := r.publish(ctx, be); err != nil {
		return r.fail(op, "", err)
	}
	r.log.Info("new generation", "generation", fmt.Sprintf("%08x", next), "system_id", src.SystemID, "timeline", src.Timeline)
	return nil
}
