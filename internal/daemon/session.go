package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// drainTimeout bounds the end of a session that was asked to stop: what is queued
// is applied and confirmed within it, or left to the next start.
const drainTimeout = 10 * time.Second

// attachForever runs one session after another until ctx ends. Until the first
// one has streamed, an error that only a person can mend ends it.
func (d *daemon) attachForever(ctx context.Context) error {
	pause := newBackOff()
	for streamed := false; ; {
		began := time.Now()
		d.pulse.attach.now()
		attached, err := d.session(ctx)
		d.pulse.attach.now()
		streamed = streamed || attached
		if ctx.Err() != nil {
			return nil
		}
		var config *replication.ConfigError
		if errors.As(err, &config) && !streamed {
			return err
		}
		d.metrics.sessions.WithLabelValues(endReason(err)).Inc()
		if attached && time.Since(began) > 10*time.Second {
			pause.Reset()
		}
		next := pause.NextBackOff()
		fix := fixFor(conditionStreaming)
		if config != nil && config.Fix != "" {
			fix = config.Fix
		}
		d.health.set(conditionStreaming, false, err.Error(), fix)
		d.told(d.o.Supervisor.Status("not streaming: " + err.Error()))
		d.log.Warn("not streaming", "error", err, "retry_in", next.Round(time.Millisecond))
		timer := time.NewTimer(next)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

func endReason(err error) string {
	switch {
	case errors.Is(err, replication.ErrSlotInUse):
		return "slot_in_use"
	case errors.Is(err, sink.ErrNodeChanged):
		return "redis_changed"
	case errors.Is(err, sink.ErrSuperseded):
		return "superseded"
	case errors.Is(err, replication.ErrSourceChanged):
		return "source_changed"
	}
	return "error"
}

// session attaches to both sides, streams, and returns why it ended. attached
// says whether it got as far as streaming.
func (d *daemon) session(ctx context.Context) (attached bool, err error) {
	url := d.file.Source.URL.Reveal()
	control, err := replication.ConnectControl(ctx, url, "setup")
	if err != nil {
		return false, err
	}
	defer func() { replication.CloseControl(ctx, control) }()
	setup, err := replication.Setup(ctx, control, d.setupOptions(d.plan.Load()))
	lost := errors.Is(err, replication.ErrSlotLost)
	if err != nil && !lost {
		return false, err
	}
	if err := d.measureClock(ctx, control); err != nil {
		return false, err
	}
	d.findings(setup.Findings)

	// The slot is taken before anything is decided: while another process holds it,
	// that one's checkpoints are the truth, and still moving.
	var stream *replication.Stream
	if !lost {
		if stream, err = d.openStream(ctx, setup.Server); err != nil {
			return false, err
		}
		defer func() { _ = stream.Close() }() // the session's own error is the one to report
	}
	stored, err := d.sink.Attach(ctx)
	if err != nil {
		d.failing(conditionRedis, err)
		return false, err
	}
	d.working(conditionRedis)
	if lost {
		setup.Slot, err = replication.RecreateSlot(ctx, control, setup.Slot.Name)
		if err != nil {
			return false, err
		}
		setup.SlotCreated = true
		if stream, err = d.openStream(ctx, setup.Server); err != nil {
			return false, err
		}
		defer func() { _ = stream.Close() }()
	}
	// What the catalogs say is noted before the state becomes ok: DDL that the log is
	// silent about must not fall between that and the watcher's own first look.
	catalog, err := replication.ReadCatalogState(ctx, control, d.file.Source.Publication.Name, d.plan.Load().Tables())
	if err != nil {
		return false, err
	}
	skip, resumed, err := d.resume(ctx, control, setup, stored)
	if err != nil {
		return false, err
	}
	if resumed {
		catalog, err = d.knownCatalog(ctx, catalog)
	} else if err = d.sink.SaveCatalog(ctx, catalog); err == nil {
		// Last: a daemon that ends after it has nothing to make up for at its next start.
		err = d.sink.SetState(ctx, sink.StateOK, "")
	}
	if err != nil {
		return false, err
	}
	return true, d.pump(ctx, stream, setup, catalog, skip)
}

func (d *daemon) openStream(ctx context.Context, server replication.Server) (*replication.Stream, error) {
	return replication.OpenStream(ctx, replication.StreamOptions{
		URL: d.file.Source.URL.Reveal(), Slot: d.file.Source.Slot.Name, Publication: d.file.Source.Publication.Name,
		StatusInterval: statusInterval(server.WALSenderTimeout), Logger: d.log, OnStatus: d.pulse.receiver.again,
	})
}

// statusInterval is how often the server hears from us: often enough for its own
// view of the slot to be current, and well within the silence that it tolerates.
func statusInterval(walSenderTimeout time.Duration) time.Duration {
	if walSenderTimeout <= 0 {
		return time.Second
	}
	return min(time.Second, walSenderTimeout/4)
}

func (d *daemon) setupOptions(plan *mapping.Plan) replication.SetupOptions {
	src := &d.file.Source
	return replication.SetupOptions{
		Slot: src.Slot.Name, CreateSlot: src.Slot.CreateIfNotExists,
		Publication: src.Publication.Name, CreatePublication: src.Publication.CreateIfNotExists,
		Tables: plan.Tables(), Logger: d.log,
	}
}

// resume decides whether the stored checkpoint proves that the slot still holds
// everything which Redis has not got. If so, it returns the position up to which
// transactions can be skipped. If not, that is a gap: it is published first, then
// every mapped family is purged, and counting begins anew. resumed says which; if
// not, the state is to become ok once the catalogs are stored.
func (d *daemon) resume(ctx context.Context, control *pgx.Conn, setup replication.SetupResult, stored sink.Control) (skip lsn.LSN, resumed bool, err error) {
	source := sink.Source{SystemID: setup.Epoch.SystemID, Timeline: setup.Epoch.Timeline, Epoch: encodeEpoch(setup.Epoch)}
	gap, err := d.gap(ctx, control, setup, stored)
	if err != nil {
		return 0, false, err
	}
	switch {
	case gap == "" && stored.Found:
		d.log.Info("resuming", "slot", setup.Slot.Name, "confirmed", setup.Slot.ConfirmedLSN, "applied", stored.Applied)
		return stored.Applied, true, d.sink.SetState(ctx, sink.StateOK, "")
	case gap == "":
		if err := d.sink.StartGeneration(ctx, source); err != nil {
			return 0, false, err
		}
		d.log.Warn("first attachment: changes are followed from here on; what was cached before is not known to be fresh",
			"slot", setup.Slot.Name, "from", setup.Slot.ConfirmedLSN)
	default:
		if err := d.purge(ctx, source, gap); err != nil {
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
	if !stored.Found || stored.Generation == 0 {
		if setup.SlotCreated {
			return "", nil // nothing was promised before
		}
		return "Redis has no checkpoint for the slot", nil
	}
	if stored.State == sink.StateGap {
		return "the last gap's purge was not finished: " + stored.Reason, nil
	}
	switch {
	case setup.SlotCreated:
		return "the slot was created anew", nil
	case stored.Source.SystemID != setup.Epoch.SystemID:
		return fmt.Sprintf("another cluster: system id %s, was %s", setup.Epoch.SystemID, stored.Source.SystemID), nil
	case stored.Source.Timeline != setup.Epoch.Timeline:
		return fmt.Sprintf("timeline %d, was %d", setup.Epoch.Timeline, stored.Source.Timeline), nil
	case setup.Slot.ConfirmedLSN > max(stored.Applied, stored.End):
		return fmt.Sprintf("the slot is confirmed up to %s and Redis has applied up to %s only", setup.Slot.ConfirmedLSN, max(stored.Applied, stored.End)), nil
	}
	// What is written after a restore from a copy gets positions that were used
	// before, and would be taken for applied. (Not to be seen any more once the log
	// has grown past the old end; a restore must give the cluster a new timeline.)
	end, err := replication.LogEnd(ctx, control)
	if err != nil {
		return "", err
	}
	if reached := max(stored.Applied, stored.End); end < reached {
		return fmt.Sprintf("the source was taken back: its log ends at %s, and Redis has applied up to %s", end, reached), nil
	}
	// A crash under synchronous_commit = off takes back commits that readers saw,
	// and sends nothing.
	if changed, why := epochChanged(stored.Source.Epoch, setup.Epoch); changed {
		unsafe, err := replication.LosesCommits(ctx, control)
		if err != nil {
			return "", err
		}
		if unsafe {
			return "the source runs with synchronous_commit = off and may have lost commits: " + why, nil
		}
	}
	return "", nil
}

// purge settles a gap.
func (d *daemon) purge(ctx context.Context, source sink.Source, reason string) error {
	d.metrics.gaps.Inc()
	d.health.set(conditionGap, false, reason, fixFor(conditionGap))
	d.log.Error("gap: invalidations may have been missed; purging every mapped family", "reason", reason)
	if err := d.sink.SetState(ctx, sink.StateGap, reason); err != nil {
		return err
	}
	failpoint.Hit(failpoint.Purging)
	if err := d.sink.StartGeneration(ctx, source); err != nil {
		return err
	}
	if err := d.sink.PurgeAll(ctx, d.plan.Load().Families(), d.purgeProgress); err != nil {
		return fmt.Errorf("purge after a gap: %w", err)
	}
	d.health.set(conditionGap, true, "", "")
	d.log.Info("gap closed: every mapped family is purged")
	return nil
}

// pump streams until ctx ends or something changes. What was queued by then is
// applied, checkpointed and confirmed before it returns.
func (d *daemon) pump(ctx context.Context, stream *replication.Stream, setup replication.SetupResult, catalog replication.CatalogState, skip lsn.LSN) error {
	queue := ordering.NewQueue(ordering.Position{Timeline: setup.Epoch.Timeline, CommitLSN: skip, EndLSN: setup.Slot.ConfirmedLSN})
	window := ordering.NewWindow(d.file.Redis.ReplayWindow)
	plan := d.plan.Load()
	early := d.sink.NewEarly()
	r := &receiver{
		d: d, stream: stream, early: early, dec: decoder.New(), queue: queue, window: window, timeline: setup.Epoch.Timeline, skip: skip,
		plan: plan, tables: make(map[*decoder.Relation]*mapping.Table), byID: make(map[uint32]*decoder.Relation),
	}
	a := &applier{d: d, queue: queue, epoch: setup.Epoch, resolved: ordering.NewBatch(), window: window}
	watcher := d.newWatcher(plan, queue, catalog)
	r.watcher = watcher

	// Everything but the applier ends with streamCtx; the applier ends when the
	// queue is closed and empty, or, when Redis is away for good, with applyCtx.
	streamCtx, leave := context.WithCancelCause(ctx)
	d.leave.Store(&leave)
	stopStreaming := func() { leave(nil) }
	defer stopStreaming()
	applyCtx, stopApplying := context.WithCancel(context.WithoutCancel(ctx))
	defer stopApplying()
	applied := make(chan error, 1)
	go func() {
		defer stopStreaming()
		applied <- a.run(applyCtx)
	}()
	var helpers errgroup.Group
	helpers.Go(func() error { return d.heartbeat.Run(streamCtx) })
	helpers.Go(func() error { return watcher.Run(streamCtx) })
	helpers.Go(func() error { return early.Run(streamCtx) })
	helpers.Go(func() error { return d.keepCatalog(streamCtx, watcher) })

	d.streaming(setup)
	d.pulse.attach.rest()
	d.pulse.receiver.now()
	err := r.run(streamCtx)
	d.pulse.receiver.rest()
	if cause := context.Cause(streamCtx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause // more telling than that it was cancelled
	}
	stopStreaming()
	_ = helpers.Wait() // all return nil, always
	queue.Close()
	timer := time.AfterFunc(drainTimeout, stopApplying)
	defer timer.Stop()
	if applyErr := <-applied; applyErr != nil {
		err = applyErr
	}
	if ctx.Err() != nil {
		d.log.Info("stopping", "applied_all", err == nil || errors.Is(err, context.Canceled))
	}
	return errors.Join(err, r.farewell())
}
