package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// watchReload reloads the mappings whenever it is asked to. Classes, keys and
// mappings change; the connections, and where the slot is, need a restart.
func (d *daemon) watchReload(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.o.Reload:
		}
		d.told(d.o.Supervisor.Reloading())
		err := d.reload(ctx)
		d.reloadOver(err)
		if err != nil {
			d.metrics.reloads.WithLabelValues("refused").Inc()
			d.metrics.reloadOK.Set(0)
			reason, fix := explain(err, conditionMappings)
			if own := fixFor(conditionMappings); fix != own {
				fix += "; then reload again; the mappings from before are in force"
			}
			d.health.process.failed(conditionMappings, reason, fix)
			d.log.Error("the mappings were not reloaded; those from before are in force", "file", d.o.Config, "error", err)
			continue
		}
		d.metrics.reloads.WithLabelValues("ok").Inc()
		d.metrics.reloadOK.Set(1)
		d.health.process.ok(conditionMappings)
		d.log.Info("mappings reloaded; they hold from the next transaction on", "file", d.o.Config)
	}
}

// reloadOver tells the supervisor, which waits for it whatever the outcome: older
// mappings that stay in force are no reason to restart.
func (d *daemon) reloadOver(err error) {
	status := "streaming"
	if err != nil {
		status = "the last reload was refused; the mappings from before are in force"
	}
	d.told(d.o.Supervisor.Ready(status))
}

// reload checks a new file as thoroughly as a start does before it hands the
// plan to the receiver, which takes it between two transactions.
func (d *daemon) reload(ctx context.Context) error {
	if d.o.Config == "" {
		return fmt.Errorf("the mappings did not come from a file")
	}
	file, err := mapping.Load(d.o.Config)
	if err != nil {
		return err
	}
	plan, err := mapping.Compile(file)
	if err != nil {
		return err
	}
	follow := file.Source.DefaultHeartbeat && d.file.Source.DefaultHeartbeat // the classes, below
	if !d.takeSecrets(file) {
		d.log.Warn("source and redis settings are read at start only, but for passwords and certificates; restart to change them")
	}
	conn, err := replication.ConnectControl(ctx, d.sourceURL(), "reload")
	if err != nil {
		return err
	}
	defer replication.CloseControl(ctx, conn)
	// What the watcher finds of added tables at its next look counts as known,
	// so that look comes before the check.
	if w := d.watcher.Load(); w != nil {
		select {
		case <-w.Watch(plan.Tables()):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := d.sink.CheckRights(ctx, plan.Families()); err != nil {
		return err
	}
	setup := d.setupOptions(plan)
	setup.CreateSlot, setup.CreatePublication = false, false
	result, err := replication.Setup(ctx, conn, setup)
	if err != nil {
		if w := d.watcher.Load(); w != nil {
			w.Watch(d.plan.Load().Tables())
		}
		return err
	}
	d.findings(d.health.current(), result.Findings)
	d.plan.Store(plan)
	if err := d.stampsWithdrawn(ctx, plan); err != nil {
		return err
	}
	if follow {
		d.heartbeat.SetInterval(file.Source.Heartbeat)
	}
	// A session that began meanwhile made its watcher from the old plan.
	if w := d.watcher.Load(); w != nil {
		w.Watch(plan.Tables())
		w.SetInterval(replication.LookInterval(plan.Strictest()))
	}
	return nil
}

// withdrawTimeout bounds how long a reload waits for Redis. The plan is taken when Redis has been told
// all the same.
const withdrawTimeout = 10 * time.Second

// stampsWithdrawn waits until the next transaction is mapped by the plan: where a session streams,
// readers have to be told of it first. Where none does, the next one begins with it.
func (d *daemon) stampsWithdrawn(ctx context.Context, plan *mapping.Plan) error {
	giveUp := time.Now().Add(withdrawTimeout)
	for {
		s := d.stamper.Load()
		if s == nil || s.ready(plan) || d.plan.Load() != plan {
			return nil
		}
		if time.Now().After(giveUp) {
			d.log.Warn("Redis has not been told of the new mappings yet; they are in force once it is")
			return nil
		}
		if !sleep(ctx, stampPause) {
			return ctx.Err()
		}
	}
}
