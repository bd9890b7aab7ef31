package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

const (
	// stateInterval is how often it is looked whether the state still holds. It is
	// written only where it does not.
	stateInterval = 50 * time.Millisecond
	// stateRetry is the pause after a state could not be written: Redis is away, and
	// the applier is trying already.
	stateRetry = time.Second
	// abandonedAfter is for how long, beside some heartbeats, a control hash stands still
	// before it counts as nobody's.
	abandonedAfter = 3 * time.Second
)

// unproved forgets, at the begin of an attachment, what was known under another one.
func (d *daemon) unproved() {
	d.fresh.begin()
	d.published = ""
}

// trust publishes, at the begin of an attachment, that nothing is missing but what is
// still to come through the slot.
func (d *daemon) trust(ctx context.Context) error {
	if err := d.setState(ctx); err != nil {
		return err
	}
	d.checks.ok(conditionGap)
	return nil
}

// setState publishes whether the cache is within the strictest budget.
func (d *daemon) setState(ctx context.Context) error {
	state, reason := sink.StateOK, d.fresh.behind()
	if o := d.obstacle.Load(); o != nil { // with heartbeats or without
		reason = o.String()
	}
	if reason != "" {
		state = sink.StateCatchingUp
	}
	if state == d.published {
		return nil
	}
	d.published = "" // after an error Redis may have it or not: whatever holds then is written
	if err := d.sink.SetState(ctx, state, reason); err != nil {
		return err
	}
	d.published = state
	return nil
}

// tellAbsence publishes that nothing is followed, where the state would go on saying ok: with
// a session that has ended what it proved ages, and who looks at the state alone must see it
// too. Another daemon that has attached meanwhile has written the state since, and is not
// overruled: the revision of ours is refused then, and where err says that there is one, it is
// for that one to say.
//
// While the session still applies what is queued, Redis is not attached to anew for it: the
// batches would go to a server that may have lost those before.
func (d *daemon) tellAbsence(ctx context.Context, err error, applying bool) {
	reason := "the daemon was stopped"
	if ctx.Err() == nil {
		if errors.Is(err, replication.ErrSlotInUse) || errors.Is(err, sink.ErrSuperseded) {
			return
		}
		reason = "the daemon is not attached to the source; its log says why"
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), publishTimeout)
	defer cancel()
	known, _ := d.sink.Known()
	if !d.owner || !d.sink.Attached() { // the state may be one that another process keeps
		if applying || !d.abandoned(ctx, &known) {
			return
		}
	}
	if known.State != sink.StateOK {
		return
	}
	if err := d.sink.SetState(ctx, sink.StateCatchingUp, reason); err != nil {
		d.log.Debug("the state was not published", "error", err)
		return
	}
	d.log.Debug("the state is not ok any more", "reason", reason)
}

// abandoned says whether nobody moves the control hash any more. A daemon that streams
// does so with every heartbeat.
func (d *daemon) abandoned(ctx context.Context, known *sink.Control) bool {
	beat := d.file.Source.Heartbeat
	if beat <= 0 {
		return false // it cannot be told from an idle source
	}
	d.owner = false
	found, err := d.sink.Attach(ctx)
	if err != nil || !found.Found || found.Damaged != "" {
		return false
	}
	seen := sighting{found.FreshAsOf, found.StateSince, found.Updated}
	if seen != d.sighted {
		d.sighted, d.sightedAt = seen, time.Now()
		return false
	}
	*known = found
	return time.Since(d.sightedAt) > abandonedAfter+3*beat
}

// sighting is what moves in the control hash while somebody keeps it.
type sighting struct{ freshAsOf, stateSince, updated time.Time }

// keepState publishes the state whenever it changes, until ctx ends. It must have ended
// before anybody publishes a gap, which it would take back. One who finds that another
// process has written the state leaves the session: to insist would overwrite what that
// one says.
func (d *daemon) keepState(ctx context.Context, c *checks, leave context.CancelCauseFunc) error {
	tick := time.NewTicker(stateInterval)
	defer tick.Stop()
	var notBefore time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if now.Before(notBefore) || d.settling.Load() {
				continue
			}
		}
		err := d.setState(ctx)
		switch {
		case err == nil:
			d.chore(c, choreState, nil)
			d.untellStuck(ctx, c)
		case ctx.Err() != nil:
		case endsAttachment(err):
			leave(err)
			return nil
		default:
			d.chore(c, choreState, err)
			notBefore = time.Now().Add(stateRetry)
		}
	}
}
