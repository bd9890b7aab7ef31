package daemon

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

func (d *daemon) connectFor(purpose string) func(context.Context) (*pgx.Conn, error) {
	return func(ctx context.Context) (*pgx.Conn, error) {
		conn, err := replication.ConnectControl(ctx, d.sourceURL(), purpose)
		if refusesLogin(err) {
			d.rereadSecrets() // for the next attempt
		}
		if leave := d.leave.Load(); leave != nil && replication.RefusesSessions(err) {
			(*leave)(err)
		}
		return conn, err
	}
}

// measureClock notes how far the database's clock is from ours, so that commit
// times can be compared with now; each heartbeat does it again, since clocks are set.
func (d *daemon) measureClock(ctx context.Context, conn *pgx.Conn) error {
	var theirs time.Time
	before := time.Now()
	if err := conn.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&theirs); err != nil {
		return fmt.Errorf("ask for the source's time: %w", err)
	}
	d.noteClock(theirs, before, time.Now())
	return nil
}

// noteClock takes what the database's clock said between two moments of ours.
func (d *daemon) noteClock(theirs, asked, answered time.Time) {
	took := answered.Sub(asked)
	offset := theirs.Sub(asked.Add(took / 2))
	if offset.Abs() < took {
		offset = 0 // within what the question itself took
	}
	d.clockOffset.Store(int64(offset))
}

// findings tells of what widens, once a session.
func (d *daemon) findings(c *checks, list []replication.Finding) {
	for _, f := range list {
		if f.Severity() != replication.SeverityFatal { // Setup has refused these
			d.log.Warn(f.String(), "finding", f.Code, "fix", f.Fix)
		}
	}
	c.widening("", "", list)
}

// newWatcher watches the mapped tables for DDL that the log is silent about.
// Changes count from baseline on.
func (d *daemon) newWatcher(plan *mapping.Plan, queue *ordering.Queue, baseline replication.CatalogState, stamps *stamper) *replication.CatalogWatcher {
	w := replication.NewCatalogWatcher(replication.WatcherOptions{
		Connect: d.connectFor("catalog"), Publication: d.file.Source.Publication.Name,
		Tables: plan.Tables(), Baseline: baseline, Interval: replication.LookInterval(plan.Strictest()),
		OnLook: stamps.lookAtTypes,
		OnChange: func(ctx context.Context, changes []replication.CatalogChange) error {
			return d.catalogChanged(ctx, queue, changes)
		},
		Logger: d.log, Metrics: d.metrics.control,
	})
	d.watcher.Store(w)
	return w
}

// catalogChanged invalidates everything that the changed tables map to, and
// waits until that is applied: only then may the new state count as known. The
// change was seen in the catalogs, so it is visible and needs no gate.
func (d *daemon) catalogChanged(ctx context.Context, queue *ordering.Queue, changes []replication.CatalogChange) error {
	plan := d.plan.Load()
	var out mapping.Output
	for _, c := range changes {
		d.log.Warn("a mapped table's definition changed; invalidating all it maps to", "change", c.String())
		for _, f := range c.Findings {
			d.log.Warn(f.String(), "finding", f.Code, "fix", f.Fix)
		}
		plan.InvalidateTable(c.Schema, c.Table, &out)
		d.health.current().widening(c.Schema, c.Table, c.Findings)
	}
	queue.Lock()
	applied := queue.AddUngated(0, d.now(), out.Invalidations)
	queue.Unlock()
	select {
	case <-applied:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// knownCatalog is the state of the catalogs that was last acted upon, as this
// Redis has it: one that came back with older data has lost what was done since, and
// DDL that the log is silent about may have come while no daemon ran. What cannot be
// known counts as changed.
func (d *daemon) knownCatalog(ctx context.Context, now replication.CatalogState) (replication.CatalogState, error) {
	stored, err := d.sink.LoadCatalog(ctx)
	if err != nil || stored != nil {
		return stored, err
	}
	unknown := make(replication.CatalogState, len(now))
	for table := range now {
		unknown[table] = "unknown"
	}
	return unknown, nil
}

// keepCatalog stores the state of the catalogs whenever it has been acted upon.
func (d *daemon) keepCatalog(ctx context.Context, c *checks, w *replication.CatalogWatcher) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var saved replication.CatalogState
	save := func(ctx context.Context) {
		state := w.State()
		if len(state) == 0 || maps.Equal(state, saved) {
			d.chore(c, choreCatalog, nil)
			return
		}
		// Tried again; should it never succeed, a restart invalidates more.
		err := d.sink.SaveCatalog(ctx, state)
		d.chore(c, choreCatalog, err)
		if err == nil {
			saved = state
		}
	}
	for {
		select {
		case <-tick.C:
			save(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			save(last)
			return nil
		}
	}
}

// epochChanged says whether the source restarted since the epoch was stored, or
// may have.
func epochChanged(stored string, now replication.Epoch) (bool, string) {
	before, err := replication.ParseEpoch(stored)
	if err != nil {
		return true, "the stored epoch cannot be read"
	}
	c, why := now.Since(before)
	return c != replication.Continuous, why
}

// streaming is called when a session begins to stream.
func (d *daemon) streaming(setup replication.SetupResult) {
	// An attachment that may end where the last one did proves nothing yet.
	if d.obstacle.Load() == nil {
		d.health.process.ok(conditionStreaming)
		d.health.process.ok(conditionStuck)
	}
	attrs := []any{"slot", setup.Slot.Name, "publication", setup.Publication.Name,
		"server_version", setup.Server.Version, "system_id", setup.Epoch.SystemID, "timeline", setup.Epoch.Timeline}
	if lasted := d.outage.over(time.Now()); lasted > 0 {
		attrs = append(attrs, "after", lasted.Round(time.Second))
	}
	d.log.Info("streaming", attrs...)
	d.told(d.o.Supervisor.Ready("streaming"))
	if d.o.OnAttached != nil {
		d.o.OnAttached()
	}
}
