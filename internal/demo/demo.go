package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
	"github.com/cdc-invalidator/cdc-invalidator/internal/daemon"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Options of a run.
type Options struct {
	Duration time.Duration // of the writers' work; 0 until ctx ends
	HTTP     string        // address of the daemon's admin API; empty for none
	Mappings []byte        // the mapping file
	Out      io.Writer
	Terminal bool // Out is a terminal: progress is one line that is written over
	Logger   *slog.Logger
}

const (
	stopTimeout = 30 * time.Second // for a clean end
	scanRate    = 200_000          // keys a second
)

// Run starts the servers, lets the shop work for the duration, compares every cached
// value with its row and removes everything again. When ctx ends early the work
// ends, and the comparison is still made. The error is for what kept it from a
// result; stale values are in the report.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	d := &demo{o: o, progress: progress{out: o.Out, terminal: o.Terminal}, latency: newLatency()}
	defer func() {
		d.progress.clear()
		err = errors.Join(err, d.close())
	}()
	if err := d.start(ctx); err != nil {
		return nil, err
	}
	return d.run(ctx)
}

// ErrInterrupted is returned when ctx ended before there was anything to report.
var ErrInterrupted = errors.New("interrupted before the demo had begun")

type demo struct {
	o        Options
	progress progress
	closers  []func() error // in the order of opening

	postgres *localserver.Postgres
	rdb      *redis.Client
	file     *mapping.File
	entries  []*entry
	traffic  *traffic

	pool    *pgxpool.Pool
	views   map[string]*cache.View[string]
	metrics *prometheus.Registry // of the library

	writes  writes
	reads   reads
	checked checked
	// missesBefore are those of the first filling.
	missesBefore int64
	latency      *latency
}

func (d *demo) onClose(f func() error) { d.closers = append(d.closers, f) }

// close releases everything, the last first.
func (d *demo) close() error {
	var errs []error
	for i := len(d.closers) - 1; i >= 0; i-- {
		errs = append(errs, d.closers[i]())
	}
	d.closers = nil
	return errors.Join(errs...)
}

// start brings up the servers, the shop and a warm cache.
func (d *demo) start(ctx context.Context) error {
	began := time.Now()
	dir, err := localserver.NewDir()
	if err != nil {
		return err
	}
	d.onClose(dir.Close)
	d.progress.say("Starting Postgres and Redis in %s", dir.Path())
	d.postgres, err = localserver.StartPostgres(ctx, localserver.PostgresOptions{
		Dir: dir.Path(),
		// The writers deadlock now and then; the default of one second would leave them idle.
		Settings: map[string]string{"deadlock_timeout": "20ms"},
	})
	if err != nil {
		return interrupted(ctx, err)
	}
	d.onClose(d.postgres.Close)
	rs, err := localserver.StartRedis(ctx, localserver.RedisOptions{Dir: dir.Path()})
	if err != nil {
		return interrupted(ctx, err)
	}
	d.onClose(rs.Close)
	d.progress.say("Postgres %s on port %d, %s on port %d", d.postgres.Version(), d.postgres.Port(), rs.Version(), rs.Port())

	options, err := redis.ParseURL(rs.URL())
	if err != nil {
		return err
	}
	d.rdb = redis.NewClient(options)
	d.onClose(d.rdb.Close)

	urls := map[string]string{"DATABASE_URL": d.postgres.SocketURL(), "REDIS_URL": rs.URL()}
	d.file, err = mapping.Parse("mappings.yaml", d.o.Mappings, mapping.Env{
		LookupEnv: func(name string) (string, bool) { url, ok := urls[name]; return url, ok },
	})
	if err != nil {
		return err
	}
	// A whole family is found by a scan, whose rate is limited for the sake of the
	// other users of a Redis. This one has none.
	d.file.Redis.ScanRate = scanRate
	plan, err := mapping.Compile(d.file)
	if err != nil {
		return err
	}
	if d.entries, err = plannedViews(plan); err != nil {
		return err
	}
	d.traffic = newTraffic(d.entries)

	conn, err := d.connect(ctx)
	if err == nil {
		err = createShop(ctx, conn)
	}
	if err != nil {
		return interrupted(ctx, err)
	}
	if err := d.attach(ctx); err != nil {
		return interrupted(ctx, err)
	}
	if err := d.openCache(ctx); err != nil {
		return interrupted(ctx, err)
	}
	d.progress.update("Filling the cache")
	if err := d.warm(ctx); err != nil {
		return interrupted(ctx, err)
	}
	d.reads.total.Store(0)
	d.reads.loads.Store(0)
	d.missesBefore = d.counted("cache_reads_total", "miss")
	d.progress.say("A shop of %d users, %d products and %d sellers; %s values in the cache", users, products, sellers, group(int64(len(d.entries))))
	d.progress.say("Ready after %.1f s. Writers change rows, readers read through the cache", time.Since(began).Seconds())
	return nil
}

// warm reads every entry once.
func (d *demo) warm(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for r := range readerCount {
		conn, err := d.connect(ctx)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		g.Go(func() error {
			for i := r; i < len(d.entries); i += readerCount {
				if err := d.readBoth(ctx, d.entries[i], conn); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// openCache opens the library as an application does, with the daemon's own file.
func (d *demo) openCache(ctx context.Context) error {
	pool, err := pgxpool.New(ctx, d.postgres.SocketURL())
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	d.pool = pool
	d.onClose(func() error { pool.Close(); return nil })
	d.metrics = prometheus.NewRegistry()
	c, err := cache.Open(ctx, d.rdb, pool, cache.WithMappingFile(d.file), cache.WithCodec(cache.Raw),
		cache.WithRegisterer(d.metrics), cache.WithLogger(d.o.Logger))
	if err != nil {
		return err
	}
	d.onClose(c.Close)
	d.views = make(map[string]*cache.View[string])
	for _, v := range views() {
		if d.views[v.family], err = cache.Family[string](c, v.family); err != nil {
			return err
		}
	}
	return nil
}

// interrupted replaces what a cancelled context made of an operation.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ErrInterrupted
	}
	return err
}

// connect opens a connection of the shop, closed at the end.
func (d *demo) connect(ctx context.Context) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, d.postgres.SocketURL())
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	d.onClose(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		return conn.Close(ctx)
	})
	return conn, nil
}

// attach starts the daemon and waits until it streams. It runs until close: the
// comparison comes after the end of ctx.
func (d *demo) attach(ctx context.Context) error {
	daemonCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	attached, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- daemon.Run(daemonCtx, daemon.Options{
			File: d.file, HTTP: d.o.HTTP, Logger: d.o.Logger,
			OnApplied: d.latency.applied,
			OnAttached: func() {
				select {
				case attached <- struct{}{}:
				default:
				}
			},
		})
	}()
	d.onClose(func() error {
		stop()
		select {
		case err := <-ended:
			return err
		case <-time.After(stopTimeout):
			return fmt.Errorf("the daemon did not stop within %v", stopTimeout)
		}
	})
	select {
	case <-attached:
		return nil
	case err := <-ended:
		ended <- nil // for close
		if err == nil {
			err = errors.New("it ended by itself")
		}
		return fmt.Errorf("attach the daemon: %w", err)
	case <-ctx.Done():
		return ctx.Err()
	}
}
