package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// publishTimeout bounds an attempt to publish a state when a session ends.
const publishTimeout = 2 * time.Second

// announceGap attaches to Redis and publishes a gap there, before a slot is made. Where
// Redis has no generation nothing was promised, and there is no gap.
func (d *daemon) announceGap(ctx context.Context, control *pgx.Conn, reason string) error {
	stored, err := d.attachRedis(ctx)
	if err != nil {
		return err
	}
	if !stored.Found || stored.Generation == 0 {
		return nil
	}
	// Another daemon may have made the slot before Redis was read, and then the state
	// is its own. One that makes it later begins a generation, which refuses ours.
	slot, found, err := replication.ReadSlot(ctx, control, d.file.Source.Slot.Name)
	if err != nil {
		return err
	}
	if found && !slot.Lost() {
		return fmt.Errorf("slot %s has just been made by another process", slot.Name)
	}
	return d.publish(ctx, stored, reason)
}

// publishGap is announceGap for a slot that is there, and that this daemon knows to be
// of no use.
func (d *daemon) publishGap(ctx context.Context, reason string) error {
	stored, err := d.attachRedis(ctx)
	if err != nil || !stored.Found || stored.Generation == 0 {
		return err
	}
	return d.publish(ctx, stored, reason)
}

func (d *daemon) publish(ctx context.Context, stored sink.Control, reason string) error {
	d.checks.failed(conditionGap, reason, fixFor(conditionGap))
	if stored.State == sink.StateGap {
		return nil
	}
	d.log.Warn("publishing a gap", "reason", reason)
	return d.sink.SetState(ctx, sink.StateGap, reason)
}

// skipped notes that the server has gone past changes without sending them. A new
// daemon must know it too, so it is published at once. Where that fails because Redis is
// away, one that starts anew meets the same notice: nothing behind it is confirmed.
//
// For the same reason the slot has to be made anew: it would skip the same changes again.
func (d *daemon) skipped(ctx context.Context, err error) {
	d.spoilt = true
	d.log.Error("the server skipped changes: a gap", "error", err)
	d.owe(ctx, "the server skipped changes")
}

// owe publishes a gap that a session has found, for the next one to settle.
func (d *daemon) owe(ctx context.Context, reason string) {
	d.owed = reason
	d.checks.failed(conditionGap, d.owed, fixFor(conditionGap))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishTimeout)
	defer cancel()
	if err := d.sink.SetState(ctx, sink.StateGap, d.owed); err != nil {
		d.log.Warn("the gap is not published yet", "error", err)
	}
}

// resume decides whether the stored checkpoint proves that the slot still holds
// everything which Redis has not got. If so, it returns the position up to which
// transactions can be skipped. If not, that is a gap: it is published first, then counting
// begins anew. resumed says which; if not, the state stays a gap until all families have new
// stamps (stamper).
func (d *daemon) resume(ctx context.Context, control *pgx.Conn, setup replication.SetupResult, stored sink.Control) (skip lsn.LSN, resumed bool, err error) {
	source := sink.Source{SystemID: setup.Epoch.SystemID, Timeline: setup.Epoch.Timeline, Epoch: setup.Epoch.Encode()}
	gap, err := d.gap(ctx, control, setup, stored)
	if err != nil {
		return 0, false, err
	}
	switch {
	case gap == "" && stored.Found:
		d.log.Info("resuming", "slot", setup.Slot.Name, "confirmed", setup.Slot.ConfirmedLSN, "applied", stored.Have)
		// A restart that can have lost nothing is not to be judged again by what is set later.
		if source.Epoch != stored.Source.Epoch {
			if err := d.sink.SetEpoch(ctx, source.Epoch); err != nil {
				return 0, false, err
			}
		}
		return stored.Have, true, nil
	case gap == "":
		if err := d.sink.StartGeneration(ctx, source); err != nil {
			return 0, false, err
		}
		d.log.Warn("first attachment: changes are followed from here on; what was cached before is not known to be fresh",
			"slot", setup.Slot.Name, "from", setup.Slot.ConfirmedLSN)
	default:
		if stored.Damaged != "" {
			if err := d.sink.Discard(ctx); err != nil {
				return 0, false, err
			}
		}
		if err := d.beginAnew(ctx, source, gap, gap == neverRun && setup.SlotUnused && d.streamed == 0); err != nil {
			return 0, false, err
		}
	}
	// Persisted before anything is acknowledged: a slot that was later replaced shows by
	// a confirmed position above this.
	at := setup.Slot.ConfirmedLSN
	return 0, false, d.sink.Checkpoint(ctx, sink.Checkpoint{
		Position: ordering.Position{Timeline: setup.Epoch.Timeline, CommitLSN: 0, EndLSN: at}, SystemID: setup.Epoch.SystemID,
	})
}

// gap says why it cannot be proved that nothing was lost, or "" when it can.
func (d *daemon) gap(ctx context.Context, control *pgx.Conn, setup replication.SetupResult, stored sink.Control) (string, error) {
	if d.owed != "" {
		return d.owed, nil
	}
	if stored.Damaged != "" {
		return "the control hash in Redis was damaged: " + stored.Damaged, nil
	}
	if !stored.Found || stored.Generation == 0 {
		if setup.SlotCreated {
			return "", nil // nothing was promised before
		}
		return neverRun, nil
	}
	switch {
	case setup.SlotCreated:
		return "the slot was created anew", nil
	case stored.State == sink.StateGap:
		return "the last gap was not settled: " + stored.Reason, nil
	case stored.Source.SystemID != setup.Epoch.SystemID:
		return fmt.Sprintf("another cluster: system id %s, was %s", setup.Epoch.SystemID, stored.Source.SystemID), nil
	case stored.Source.Timeline != setup.Epoch.Timeline:
		return fmt.Sprintf("timeline %d, was %d", setup.Epoch.Timeline, stored.Source.Timeline), nil
	case stored.Unproved != "":
		return stored.Unproved, nil
	case stored.NodesChanged && d.plan.Load().HasDependents():
		// Replay cannot bring back what readers registered, nor what was forgotten of it
		// on one node while another lost the removal.
		return "Redis is another process or history, which may have lost what depends on which rows", nil
	case setup.Slot.ConfirmedLSN > max(stored.Have, stored.HaveEnd):
		return fmt.Sprintf("the slot is confirmed up to %s and Redis has applied up to %s only", setup.Slot.ConfirmedLSN, max(stored.Have, stored.HaveEnd)), nil
	}
	// What is written after a restore from a copy gets positions that were used before, and
	// would be taken for applied. Once the log has grown past the old end, history finds it.
	end, err := replication.LogEnd(ctx, control)
	if err != nil {
		return "", err
	}
	if reached := max(stored.Applied, stored.End, stored.Sent); end < reached {
		return fmt.Sprintf("the source was taken back, or the control hash was damaged: the source's log ends at %s, and Redis has applied up to %s", end, reached), nil
	}
	// A crash under synchronous_commit = off takes back commits that readers saw,
	// and sends nothing.
	if changed, why := epochChanged(stored.Source.Epoch, setup.Epoch); changed {
		cause, err := replication.LosesCommits(ctx, control)
		if err != nil {
			return "", err
		}
		if cause != "" {
			return "the source may have lost commits: " + cause + ", and " + why, nil
		}
	}
	return "", nil
}

// neverRun is the gap of a slot of which nothing is known.
const neverRun = "Redis has no checkpoint for the slot: the daemon has not run on it before, or Redis has lost what it held"

// beginAnew tells of a gap, and begins a generation without any stamps. At a first attachment
// to a slot that was made beforehand nothing went wrong: what is cached is not known to be
// fresh, and that is all.
func (d *daemon) beginAnew(ctx context.Context, source sink.Source, reason string, first bool) error {
	d.checks.failed(conditionGap, reason, fixFor(conditionGap))
	if first {
		reason = "first attachment: what was cached before is not known to be fresh"
		d.log.Warn("first attachment to a slot that was made beforehand: changes are followed from here on; what was cached before is given up, since it is not known to be fresh")
	} else {
		d.metrics.gaps.Inc()
		d.log.Error("gap: invalidations may have been missed; all that is cached is given up", "reason", reason)
	}
	if err := d.sink.SetState(ctx, sink.StateGap, reason); err != nil {
		return err
	}
	failpoint.Hit(failpoint.Purging)
	if err := d.sink.StartGeneration(ctx, source); err != nil {
		return err
	}
	d.owed = "" // from here on Redis says it
	return nil
}
