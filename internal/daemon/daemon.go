// Package daemon wires the stages together and keeps them running.
//
//	Run: loads the file, serves the admin API, and attaches again and again
//	session: one attachment to the slot and to Redis, until either changes
//	  receiver goroutine:  Stream -> Decoder -> Table.Map -> Queue
//	  applier goroutine:   Queue -> Gate -> Redis -> checkpoint -> confirmable
//	  drainer goroutine:   what Redis holds back of some classes -> Redis, when it is due
//	  settler goroutine:   says up to where everything is applied, that included
//	  heartbeat, catalog watcher and standby watch, each on its own connection
//
// Invariants that have caused bugs elsewhere:
//   - Only the receiver touches the replication connection. It waits for the
//     applier in Stream.Hold, which keeps answering the server.
//   - A session ends, and a new one decides afresh between replay and gap, on
//     every change of who Postgres or Redis is. Nothing is patched up in flight.
//   - What is confirmed was checkpointed before, and is behind it by the replay
//     window; what is checkpointed was applied before; what is applied was visible before.
package daemon

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// Options configures Run.
type Options struct {
	Version    string        // of the program, for /status
	Commit     string        // the same
	Config     string        // path of the mappings file
	File       *mapping.File // instead of Config, for embedding; cannot be reloaded
	HTTP       string        // address of the admin API; empty for none
	Logger     *slog.Logger
	Reload     <-chan struct{} // asks for a reload of Config
	Registry   Registry        // nil for one of its own
	OnApplied  func(Applied)   // called by the applier after each batch; must be quick
	OnAttached func()          // called whenever streaming begins
	Supervisor Supervisor      // nil for none
}

// Registry takes the daemon's metrics, and shows them on its status pages.
type Registry interface {
	prometheus.Registerer
	prometheus.Gatherer
}

// Applied describes one batch that Redis has acknowledged.
type Applied struct {
	At      time.Time
	Stats   ordering.Stats
	Keys    int            // entries after coalescing
	Txns    []ordering.Txn // those with entries; valid during the call
	Latency func(ordering.Txn) time.Duration
}

type daemon struct {
	o       Options
	log     *slog.Logger
	file    *mapping.File
	plan    atomic.Pointer[mapping.Plan] // replaced by a reload; the receiver follows
	sink    *sink.Redis
	metrics *metrics
	health  *health
	fresh   *freshness
	pulse   pulse

	started  time.Time
	progress progress
	secrets  secrets

	heartbeat *replication.Heartbeat
	standby   *replication.StandbyWatch
	watcher   atomic.Pointer[replication.CatalogWatcher]
	// clockOffset is the database's clock minus ours, in nanoseconds, so that
	// commit times can be compared with now.
	clockOffset atomic.Int64
	// owed is a gap whose purge is not done: what the daemon knows by itself, should Redis
	// not have been told. spoilt says that the slot has to be made anew for it. Both belong
	// to the goroutine of attachForever.
	owed   string
	spoilt bool
	// outage is of the same goroutine.
	outage outage
	// streamed counts the sessions that have. Of the same goroutine.
	streamed int
	// owner says that the state in Redis is the one that this process has written, as the
	// holder of the slot. Of the same goroutine.
	owner bool
	// sighted is the control hash that another process has left, as it was first seen so.
	sighted   sighting
	sightedAt time.Time
	// checks are the session's conditions; of the same goroutine.
	checks *checks
	// settling says that the state is a gap until the stamps are published.
	settling atomic.Bool
	stamper  atomic.Pointer[stamper] // of the session; nil before the first one
	// published is the state that this attachment has written last, "" where that is not
	// known: of trust, then of keepState.
	published sink.State
	// obstacle is what the stream ended at and has not passed since; nil otherwise.
	obstacle atomic.Pointer[obstacle]
	// stuckTold says that Redis may tell of an obstacle; of the goroutine that attaches, and
	// while it streams of keepState.
	stuckTold bool
	// leave ends the session that streams; nil before the first one.
	leave atomic.Pointer[context.CancelCauseFunc]
}

// Run attaches to the slot and applies invalidations until ctx ends. Then it
// finishes the batch in hand, stores the checkpoint, confirms, and returns nil. It
// returns an error only for what trying again cannot mend at the start: a faulty
// file, or a source that somebody has to change first. Once it has
// streamed, it retries for ever and says so in its conditions.
func Run(ctx context.Context, o Options) error {
	d, err := newDaemon(o)
	if err != nil {
		return err
	}
	defer func() {
		if err := d.sink.Close(); err != nil {
			d.log.Warn("close redis", "error", err)
		}
	}()
	g, ctx := errgroup.WithContext(ctx)
	if o.HTTP != "" {
		server := admin.NewServer(admin.Options{Addr: o.HTTP, Health: d.health, Gatherer: d.metrics.registry, Logger: d.log})
		g.Go(func() error { return server.Run(ctx) })
	}
	g.Go(func() error { return d.supervise(ctx) })
	g.Go(func() error { return d.watchReload(ctx) })
	g.Go(func() error { return d.attachForever(ctx) })
	err = g.Wait()
	if errors.Is(err, context.Canceled) && context.Cause(ctx) != nil {
		return nil
	}
	return err
}

func newDaemon(o Options) (*daemon, error) {
	file := o.File
	if file == nil {
		var err error
		if file, err = mapping.Load(o.Config); err != nil {
			return nil, err
		}
	}
	plan, err := mapping.Compile(file)
	if err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Supervisor == nil {
		o.Supervisor = noSupervisor{}
	}
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	d := &daemon{o: o, log: o.Logger, file: file, started: time.Now(), secrets: secrets{source: file.Source.URL}}
	d.plan.Store(plan)
	d.metrics = newMetrics(o.Registry)
	d.fresh = &freshness{now: d.now, budget: d.budget}
	d.health = newHealth(d)
	d.health.process.ok(conditionMappings) // they were read just now
	d.metrics.lag(d.fresh.lagSeconds)
	d.sink, err = sink.Open(sink.Options{
		Config: file.Redis, Slot: file.Source.Slot.Name, Region: file.Source.Region,
		Logger: o.Logger, Registerer: o.Registry, OnScan: d.scanned, SourceNow: d.now,
	})
	if err != nil {
		return nil, &replication.ConfigError{Op: "open redis", Problem: "redis.url cannot be used", Err: err}
	}
	d.heartbeat = replication.NewHeartbeat(replication.HeartbeatOptions{
		Connect:  d.connectFor("heartbeat"),
		OnTime:   d.noteClock,
		Interval: file.Source.Heartbeat,
		Logger:   o.Logger,
		Metrics:  d.metrics.control,
	})
	d.standby = replication.NewStandbyWatch(replication.StandbyWatchOptions{Connect: d.connectFor("standby"), Logger: o.Logger})
	return d, nil
}

// scanned is called for each page of a purge, which goes on for long.
func (d *daemon) scanned() {
	d.pulse.applier.again()
	d.pulse.drainer.again()
	d.pulse.attach.again()
}

// now is the time by the database's clock.
func (d *daemon) now() time.Time {
	return time.Now().Add(time.Duration(d.clockOffset.Load()))
}

// budget is the strictest class's of the plan in force; 0 without any, and where there are
// no heartbeats, since nothing can be said of an idle source then.
func (d *daemon) budget() time.Duration {
	if d.file.Source.Heartbeat <= 0 {
		return 0
	}
	return d.plan.Load().Strictest()
}

// applied reports a batch that Redis has acknowledged.
func (d *daemon) applied(b *ordering.Batch) {
	now := d.now()
	d.progress.done(b)
	d.metrics.applied(b, now)
	if d.o.OnApplied != nil {
		d.o.OnApplied(Applied{
			At: now, Stats: b.Stats(), Keys: b.Len(), Txns: b.Txns(),
			Latency: func(t ordering.Txn) time.Duration { return now.Sub(t.CommitTime) },
		})
	}
}

func (d *daemon) failing(c *checks, condition string, err error) {
	if refusesLogin(err) {
		d.rereadSecrets()
	}
	if condition == conditionRedis {
		err = d.precise(err)
	}
	d.told(d.o.Supervisor.Status("waiting for " + condition))
	reason, fix := explain(err, condition)
	if c.failed(condition, reason, fix) {
		d.log.Warn("waiting for "+condition, "error", err)
	}
}

func (d *daemon) working(c *checks, condition string) {
	if c.ok(condition) {
		d.told(d.o.Supervisor.Status("streaming"))
		d.log.Info(condition + " answers again")
	}
}

func (d *daemon) lookupRefused(family string, err error) {
	d.metrics.lookupsRefused.Inc()
	d.log.Warn("a for_each query failed; its whole family was invalidated instead", "family", family, "error", err)
}

// tableBound tells of columns that the log will not carry.
func (d *daemon) tableBound(rel *decoder.Relation, t *mapping.Table) {
	for _, p := range t.Problems() {
		d.log.Warn("changes of this table will invalidate more than they need to", "table", rel.String(), "problem", p.String())
	}
}
