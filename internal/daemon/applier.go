package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// checkpointPause is for how long the checkpoint waits for a moment without work
// before it is stored in between.
const checkpointPause = 20 * time.Millisecond

// applier takes batches from the queue, waits for their transactions to become
// visible, applies them to Redis, and stores how far it got. Whatever fails is
// tried again until it succeeds or the session has to begin anew; nothing is passed over.
type applier struct {
	d        *daemon
	checks   *checks
	queue    *ordering.Queue
	epoch    replication.Epoch
	query    *replication.QueryConn
	gate     *ordering.Gate
	lookups  *ordering.Lookups
	resolved *ordering.Batch // what lookups bring
	window   *ordering.Window

	pending ordering.Position // applied, not yet checkpointed
	unsaved bool
	savedAt time.Time
}

// run applies until the queue is closed and empty, and returns nil then.
func (a *applier) run(ctx context.Context) error {
	defer func() {
		a.d.pulse.applier.rest()
		if a.query != nil {
			a.query.Close(ctx)
		}
	}()
	for {
		if a.queue.Empty() { // the moment for the checkpoint
			if err := a.save(ctx); err != nil {
				return err
			}
		}
		a.d.pulse.applier.rest()
		b, err := a.queue.Take(ctx)
		a.d.pulse.applier.now()
		if errors.Is(err, ordering.ErrClosed) {
			return a.save(ctx)
		}
		if err != nil {
			return err
		}
		err = a.apply(ctx, b)
		a.queue.Release(b)
		if err != nil {
			return err
		}
	}
}

func (a *applier) apply(ctx context.Context, b *ordering.Batch) error {
	failpoint.Hit(failpoint.Taken)
	fresh := a.d.fresh.with(b.Beat())
	b.Prove(fresh)
	if b.Len() > 0 {
		if err := a.pass(ctx, b); err != nil {
			return err
		}
		failpoint.Hit(failpoint.Gated)
		if err := a.send(ctx, b); err != nil {
			return err
		}
		failpoint.Hit(failpoint.Applied)
	} else if fresh.After(a.d.fresh.asOf()) {
		if err := a.retry(ctx, conditionRedis, func() error { return a.d.sink.Fresh(ctx, fresh) }); err != nil {
			return err
		}
	}
	a.d.fresh.applied(b.Beat(), fresh)
	b.Applied()
	if p, ok := b.Position(); ok {
		a.pending, a.unsaved = p, true
	}
	a.d.applied(b)
	// Under load it rides along with the next batch; but not for ever, since
	// nothing is confirmed before it is stored.
	if time.Since(a.savedAt) >= checkpointPause {
		return a.save(ctx)
	}
	return nil
}

// pass waits at the visibility gate.
func (a *applier) pass(ctx context.Context, b *ordering.Batch) error {
	return a.retry(ctx, conditionSource, func() error {
		if err := a.connect(ctx); err != nil {
			return err
		}
		began := time.Now()
		repeats, err := a.gate.Wait(ctx, b)
		if repeats > 0 {
			a.d.metrics.gateWait.Observe(time.Since(began).Seconds())
		}
		return a.sourceError(ctx, err)
	})
}

// send applies the batch, lookups first: they only add entries.
func (a *applier) send(ctx context.Context, b *ordering.Batch) error {
	toRedis := func(b *ordering.Batch) error {
		return a.retry(ctx, conditionRedis, func() error { return a.d.sink.Apply(ctx, b) })
	}
	if err := a.retry(ctx, conditionSource, func() error {
		if err := a.connect(ctx); err != nil {
			return err
		}
		var redis error
		err := a.lookups.Resolve(ctx, b, a.resolved, a.gate.Snapshot(), func(b *ordering.Batch) error {
			redis = toRedis(b)
			return redis
		})
		if redis != nil {
			return backoff.Permanent(redis)
		}
		return a.sourceError(ctx, err)
	}); err != nil {
		return err
	}
	return toRedis(b)
}

// save stores the checkpoint of what is applied.
func (a *applier) save(ctx context.Context) error {
	if !a.unsaved {
		return nil
	}
	err := a.retry(ctx, conditionRedis, func() error {
		return a.d.sink.Checkpoint(ctx, sink.Checkpoint{
			Position: a.pending, FreshAsOf: a.d.fresh.asOf(), SystemID: a.epoch.SystemID,
		})
	})
	if err != nil {
		return err
	}
	failpoint.Hit(failpoint.Checkpointed)
	a.unsaved, a.savedAt = false, time.Now()
	a.window.Add(a.savedAt, a.pending.Confirmable())
	return nil
}

// connect makes the ordinary connection when there is none.
func (a *applier) connect(ctx context.Context) error {
	if a.query != nil {
		return nil
	}
	q, err := replication.OpenQueryConn(ctx, a.d.sourceURL(), "gate", a.epoch)
	if err != nil {
		if errors.Is(err, replication.ErrSourceChanged) || replication.RefusesSessions(err) {
			return backoff.Permanent(err)
		}
		return err
	}
	ask := querier{q, &a.d.pulse.applier}
	lookups, err := ordering.NewLookups(ask, a.d.lookupRefused)
	if err != nil {
		q.Close(ctx)
		return backoff.Permanent(err)
	}
	a.query, a.gate, a.lookups = q, ordering.NewGate(ask), lookups
	return nil
}

// sourceError gives the connection up after an error, so that the next attempt
// makes a new one.
func (a *applier) sourceError(ctx context.Context, err error) error {
	if err != nil {
		a.query.Close(ctx)
		a.query = nil
	}
	return err
}

// retry runs try until it succeeds, the session must begin anew, or ctx ends.
func (a *applier) retry(ctx context.Context, condition string, try func() error) error {
	err := try()
	if err == nil {
		return nil
	}
	pause := newBackOff()
	for {
		var permanent *backoff.PermanentError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &permanent):
			return permanent.Unwrap()
		case endsAttachment(err):
			return err
		}
		a.d.failing(a.checks, condition, err)
		a.d.pulse.applier.again()
		timer := time.NewTimer(pause.NextBackOff())
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		if err = try(); err == nil {
			a.d.working(a.checks, condition)
			return nil
		}
	}
}

// newBackOff is the pause between attempts: short at first, since most outages
// are, and never long enough to matter once the server is back.
func newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = 20 * time.Millisecond
	b.MaxInterval = 2 * time.Second
	b.Multiplier = 2
	b.RandomizationFactor = 0.5
	return b
}

// querier fits the source connection to what package ordering asks for.
type querier struct {
	q     *replication.QueryConn
	pulse *beat // an answer is a sign of life: the gate may have to ask for long
}

func (q querier) ReadSnapshot(ctx context.Context) (ordering.Snapshot, error) {
	text, err := q.q.Snapshot(ctx)
	q.pulse.again()
	if err != nil {
		return ordering.Snapshot{}, err
	}
	return ordering.ParseSnapshot(text)
}

func (q querier) Query(ctx context.Context, sql string, params [][]byte, maxRows int) ([]string, [][][]byte, error) {
	columns, rows, err := q.q.Query(ctx, sql, params, maxRows)
	q.pulse.again()
	if errors.Is(err, replication.ErrQueryRefused) {
		err = queryRefused{err}
	}
	return columns, rows, err
}

// queryRefused says in the terms of package ordering what the source's error says already.
type queryRefused struct{ error }

func (e queryRefused) Unwrap() []error { return []error{ordering.ErrQueryRefused, e.error} }
