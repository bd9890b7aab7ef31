package daemon

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// drainTimeout bounds the end of a session: what is queued is applied and confirmed within
// it, or left to the next one. With the state to publish before and after, and a last status
// update, a daemon that is told to stop ends well within the 10 s after which container
// runtimes kill.
const drainTimeout = 3 * time.Second

// attachForever runs one session after another until ctx ends. Until the first
// one has streamed, an error that only a person can mend ends it.
func (d *daemon) attachForever(ctx context.Context) error {
	pause := newBackOff()
	for {
		began := time.Now()
		d.pulse.attach.now()
		attached, err := d.session(ctx)
		d.pulse.attach.now()
		if attached {
			d.streamed++
		}
		if ctx.Err() != nil {
			d.tellAbsence(ctx, err, false)
			return nil
		}
		if fault := d.startFault(err); fault != nil && d.streamed == 0 {
			return fault
		}
		d.tellAbsence(ctx, err, false)
		stuck := d.obstacle.Load()
		if stuck != nil && stuck.err != nil && !errors.Is(err, stuck.err) {
			stuck = nil // it ended for another reason; of the first the next attempt tells
		}
		d.metrics.sessions.WithLabelValues(d.endReason(err, stuck)).Inc()
		if attached && time.Since(began) > 10*time.Second {
			pause.Reset()
		}
		next := pause.NextBackOff()
		reason, fix := explain(err, conditionStreaming)
		d.health.process.failed(conditionStreaming, reason, fix)
		d.told(d.o.Supervisor.Status("not streaming: " + err.Error()))
		if stuck.stuck() {
			d.sayOutage(err, stuckPause(stuck))
			d.waitStuck(ctx, stuck)
			continue
		}
		d.sayOutage(err, next.Round(time.Millisecond))
		timer := time.NewTimer(next)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// sayOutage logs why nothing streams, and what is not news for those who look closely only.
func (d *daemon) sayOutage(err error, retryIn time.Duration) {
	lasts, news := d.outage.says(time.Now(), err.Error())
	level, message := slog.LevelWarn, "not streaming"
	if !news {
		level, message = slog.LevelDebug, "not streaming, as before"
	}
	attrs := []any{"error", err, "retry_in", retryIn}
	if lasts > 0 {
		attrs = append(attrs, "for", lasts.Round(time.Second))
	}
	d.log.Log(context.Background(), level, message, attrs...)
}

func (d *daemon) endReason(err error, at *obstacle) string {
	switch {
	case at != nil:
		return "unreadable"
	case errors.Is(err, replication.ErrSlotInUse):
		return "slot_in_use"
	case errors.Is(err, sink.ErrNodeChanged):
		return "redis_changed"
	case errors.Is(err, sink.ErrSuperseded):
		return "superseded"
	case errors.Is(err, replication.ErrSourceChanged):
		return "source_changed"
	case errors.Is(err, errOtherHistory):
		return "source_taken_back"
	}
	return "error"
}

// session attaches to both sides, streams, and returns why it ended. attached
// says whether it got as far as streaming.
func (d *daemon) session(ctx context.Context) (attached bool, err error) {
	d.rereadSecrets()
	d.checks = d.health.begin()
	defer d.checks.end()
	control, err := replication.ConnectControl(ctx, d.sourceURL(), "setup")
	if err != nil {
		d.failing(d.checks, conditionSource, err)
		return false, err
	}
	d.working(d.checks, conditionSource)
	defer replication.CloseControl(ctx, control)
	if err := d.mayRun(ctx); err != nil {
		return false, err
	}
	setup, err := d.setUp(ctx, control)
	if err != nil {
		return false, err
	}
	if setup.SlotCreated {
		d.overcome(math.MaxUint64) // what it was stuck at is not in the new slot
	}
	d.overcome(setup.Slot.ConfirmedLSN - 1) // somebody may have moved the slot
	if err := d.measureClock(ctx, control); err != nil {
		return false, err
	}
	d.findings(d.checks, setup.Findings)

	// The slot is taken before anything is decided: while another process holds it,
	// that one's checkpoints are the truth, and still moving.
	stream, err := d.openStream(ctx, setup.Server)
	if err != nil {
		return false, err
	}
	defer func() { _ = stream.Close() }() // the session's own error is the one to report
	stored, err := d.attachRedis(ctx)
	if err != nil {
		return false, err
	}
	if err := d.sink.Claim(ctx); err != nil {
		return false, err
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
	} else {
		err = d.sink.SaveCatalog(ctx, catalog)
	}
	if err != nil {
		return false, err
	}
	if err := d.settleSkip(ctx, setup.Slot.ConfirmedLSN); err != nil {
		return false, err
	}
	// Before the state becomes ok, which it does at once only where nothing was missed: else
	// it is a gap until all families have their new stamps.
	stamps, err := d.attachStamps(ctx, setup.Epoch, resumed)
	if err != nil {
		return false, err
	}
	defer stamps.close(context.WithoutCancel(ctx))
	d.unproved()
	d.owner = true // of the state, whatever it is: ours alone to take back from here on
	if resumed {
		if err := d.trust(ctx); err != nil {
			return false, err
		}
	}
	replication.CloseControl(ctx, control) // nothing asks it any more, and connections are scarce
	if !resumed {
		stored = sink.Control{}
	}
	return true, d.pump(ctx, stream, setup, catalog, stamps, skip, stored)
}

// setUp brings the source to where the slot can be streamed. Making a slot waits
// for every transaction that is open, which can be long, so if there was one before, the
// gap is told of first; and Redis has to be there, for a slot that was made while nothing
// could be noted of it would look like one whose checkpoint is lost.
func (d *daemon) setUp(ctx context.Context, control *pgx.Conn) (replication.SetupResult, error) {
	o := d.setupOptions(d.plan.Load())
	o.BeforeSlot = func(ctx context.Context) error { return d.announceGap(ctx, control, "the slot is missing") }
	setup, err := replication.Setup(ctx, control, o)
	switch {
	case errors.Is(err, replication.ErrSlotMissing): // somebody else has to make it
		err = errors.Join(err, d.announceGap(ctx, control, "the slot is missing"))
	case errors.Is(err, replication.ErrSlotLost):
		if err = d.announceGap(ctx, control, "the slot has lost its WAL"); err == nil {
			setup.Slot, err = replication.RecreateSlot(ctx, control, setup.Slot.Name)
			setup.SlotCreated = err == nil
		}
	case err == nil && d.spoilt && !setup.SlotCreated:
		if err = d.publishGap(ctx, d.owed); err == nil {
			setup.Slot, err = replication.ReplaceSlot(ctx, control, setup.Slot.Name)
			setup.SlotCreated = err == nil
		}
	}
	if setup.SlotCreated {
		d.spoilt = false
	}
	return setup, err
}

func (d *daemon) attachRedis(ctx context.Context) (sink.Control, error) {
	d.owner = false
	stored, err := d.sink.Attach(ctx)
	if err != nil {
		d.failing(d.checks, conditionRedis, err)
		return sink.Control{}, err
	}
	d.working(d.checks, conditionRedis)
	return stored, nil
}

func (d *daemon) openStream(ctx context.Context, server replication.Server) (*replication.Stream, error) {
	return replication.OpenStream(ctx, replication.StreamOptions{
		URL: d.sourceURL(), Slot: d.file.Source.Slot.Name, Publication: d.file.Source.Publication.Name,
		StatusInterval: replication.StatusInterval(server.WALSenderTimeout), Silence: replication.Silence(server.WALSenderTimeout), Logger: d.log, OnStatus: d.pulse.receiver.again,
		Withhold: d.standby.Withhold,
	})
}

func (d *daemon) setupOptions(plan *mapping.Plan) replication.SetupOptions {
	src := &d.file.Source
	return replication.SetupOptions{
		Slot: src.Slot.Name, CreateSlot: src.Slot.CreateIfNotExists,
		Publication: src.Publication.Name, CreatePublication: src.Publication.CreateIfNotExists,
		Tables: plan.Tables(), Logger: d.log,
	}
}

// pump streams until ctx ends or something changes. What was queued by then is
// applied, checkpointed and confirmed before it returns.
func (d *daemon) pump(ctx context.Context, stream *replication.Stream, setup replication.SetupResult, catalog replication.CatalogState, stamps *stamper, skip lsn.LSN, stored sink.Control) error {
	start := ordering.Position{Timeline: setup.Epoch.Timeline, CommitLSN: skip, EndLSN: setup.Slot.ConfirmedLSN}
	if skip == stored.Applied {
		start.CommitTime, start.XID = stored.CommitTime, stored.XID
	}
	queue := ordering.NewQueue(start)
	window := ordering.NewWindow(d.file.Redis.ReplayWindow)
	plan := stamps.switched.Load()
	early := d.sink.NewEarly(func(err error) { d.chore(d.checks, choreEarly, err) })
	r := &receiver{
		d: d, stream: stream, early: early, dec: decoder.NewFor(stream.Encoding()), queue: queue, window: window, timeline: setup.Epoch.Timeline, skip: skip,
		history: newHistory(stored),
		stamps:  stamps, plan: plan, tables: make(map[*decoder.Relation]*mapping.Table), strays: make(map[*decoder.Relation][]mapping.TableUse), byID: make(map[uint32]*decoder.Relation),
	}
	a := &applier{d: d, checks: d.checks, queue: queue, epoch: setup.Epoch, resolved: ordering.NewBatch(), window: window}
	watcher := d.newWatcher(plan, queue, catalog, stamps)
	r.watcher = watcher
	d.fresh.follow(watcher.Proved)
	var met *obstacle

	// Everything but the applier ends with streamCtx; the applier ends when the
	// queue is closed and empty, or, when Redis is away for good, with applyCtx.
	streamCtx, leave := context.WithCancelCause(ctx)
	d.leave.Store(&leave)
	r.settler = newSettler(d, leave, watcher)
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
	helpers.Go(func() error { return d.standby.Run(streamCtx) })
	helpers.Go(func() error { return watcher.Run(streamCtx) })
	helpers.Go(func() error { return early.Run(streamCtx) })
	helpers.Go(func() error { return d.keepCatalog(streamCtx, d.checks, watcher) })
	helpers.Go(func() error { return d.keepState(streamCtx, d.checks, leave) })
	helpers.Go(func() error { return d.keepControl(streamCtx, d.checks, leave) })
	helpers.Go(func() error { return d.keepRights(streamCtx, d.checks) })
	helpers.Go(func() error { return newDrainer(d, d.checks, leave).run(streamCtx) })
	helpers.Go(func() error { return r.settler.run(streamCtx) })
	stamps.leave = leave
	helpers.Go(func() error { return stamps.run(streamCtx) })
	helpers.Go(func() error { return stamps.purge(streamCtx) })
	d.stamper.Store(stamps)

	known, _ := d.sink.Known()
	d.progress.attached(setup, queue, known.Applied, known.End)
	d.checks.streaming(watcher)
	d.checks.ok(conditionBackground)
	d.streaming(setup)
	d.pulse.attach.rest()
	d.pulse.receiver.now()
	err := r.run(streamCtx)
	met = r.newObstacle(err)
	d.pulse.receiver.rest()
	if cause := context.Cause(streamCtx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause // more telling than that it was cancelled
	}
	stopStreaming()
	_ = helpers.Wait() // all return nil, always
	// At once: what is queued may wait in vain for the source to say what became visible.
	d.tellAbsence(ctx, err, true)
	if errors.Is(err, replication.ErrChangesSkipped) {
		d.skipped(ctx, err)
	}
	if errors.Is(err, errOtherHistory) {
		d.owe(ctx, err.Error())
	}
	err = replication.PublicationFault(err, d.file.Source.Slot.Name, d.file.Source.Publication.Name)
	queue.Close()
	timer := time.AfterFunc(drainTimeout, stopApplying)
	defer timer.Stop()
	applyErr := <-applied
	switch {
	case applyErr != nil:
		err = applyErr
	case met != nil && ctx.Err() == nil && errors.Is(err, met.err):
		d.met(met) // all that came before it is applied
	}
	if ctx.Err() != nil {
		d.log.Info("stopping", "applied_all", err == nil || errors.Is(err, context.Canceled))
	}
	return errors.Join(err, r.farewell())
}
