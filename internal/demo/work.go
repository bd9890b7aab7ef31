package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/cdc-invalidator/cdc-invalidator/internal/await"
)

// The load leaves room on two cores for the servers, so that the latencies are those
// of a machine at work and not of one that is overrun.
const (
	writerCount = 4
	writeRate   = 1000 // transactions a second, all writers together
	readerCount = 4
	readRate    = 3000 // entries a second, each in both spaces
	burst       = 10

	firstImport    = time.Second
	importInterval = 5 * time.Second

	sampleSize     = 150 // entries compared for the display, each second
	catchUpTimeout = 60 * time.Second
)

// run lets the shop work, waits for the daemon to have applied everything, and
// compares.
func (d *demo) run(ctx context.Context) (*Report, error) {
	// The end of ctx ends the writers. What comes after it has a context of its own.
	after := context.WithoutCancel(ctx)
	conn, err := d.connect(after)
	if err != nil {
		return nil, err
	}
	writing, stopWriters := context.WithCancel(ctx)
	defer stopWriters()
	if d.o.Duration > 0 {
		var cancel context.CancelFunc
		writing, cancel = context.WithTimeout(writing, d.o.Duration)
		defer cancel()
	}
	reading, stopReaders := context.WithCancel(after)
	defer stopReaders()

	began := time.Now()
	var writers, readers errgroup.Group
	for range writerCount {
		d.worker(after, &writers, stopWriters, func(conn *pgx.Conn) error { return d.writer(writing, conn) })
	}
	d.worker(after, &writers, stopWriters, func(conn *pgx.Conn) error { return d.importer(writing, conn) })
	for range readerCount {
		d.worker(after, &readers, stopWriters, func(conn *pgx.Conn) error { return d.reader(reading, conn) })
	}
	d.worker(after, &readers, stopWriters, func(conn *pgx.Conn) error { return d.check(reading, conn) })
	err = d.show(after, writing.Done(), conn, began)
	stopWriters()
	err = errors.Join(err, writers.Wait())
	worked := time.Since(began)

	// The readers go on until everything is applied: a fill that could put an old value
	// back is to have its chance.
	d.progress.update("Writers have stopped. Waiting until everything is applied")
	if err == nil {
		err = d.caughtUp(after)
	}
	stopReaders()
	if err := errors.Join(err, readers.Wait()); err != nil {
		return nil, err
	}
	return d.report(after, conn, worked)
}

// worker runs work with a connection of its own; when it fails, all of the work ends.
func (d *demo) worker(ctx context.Context, g *errgroup.Group, stop context.CancelFunc, work func(*pgx.Conn) error) {
	conn, err := d.connect(ctx)
	g.Go(func() error {
		if err == nil {
			err = work(conn)
		}
		if err != nil {
			stop()
		}
		return err
	})
}

func pace(perSecond, workers int) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond)/rate.Limit(workers), burst)
}

// show keeps the progress line up to date until done.
func (d *demo) show(ctx context.Context, done <-chan struct{}, conn *pgx.Conn, began time.Time) error {
	ticker := time.NewTicker(d.progress.interval())
	defer ticker.Stop()
	var stale, staleControl float64
	sampled := began
	for {
		select {
		case <-done:
			return nil
		case now := <-ticker.C:
			if now.Sub(sampled) >= time.Second {
				var err error
				if stale, staleControl, err = d.sample(ctx, conn); err != nil {
					return err
				}
				sampled = now
			}
			_, _, keys, latency := d.latency.read()
			d.progress.update(fmt.Sprintf("%5.1f s  %s tx  %s keys deleted  p99 %.1f ms  stale %.0f %%, without %.0f %%",
				now.Sub(began).Seconds(), group(d.writes.committed.Load()), group(int64(keys)),
				1000*latency.P99.Seconds(), stale, staleControl))
		}
	}
}

// sample estimates the share of stale values while writers work. In the real space it
// may see a change whose invalidation is on its way; the comparison at the end is exact.
func (d *demo) sample(ctx context.Context, conn *pgx.Conn) (stale, staleControl float64, err error) {
	entries := make([]*entry, sampleSize)
	for i := range entries {
		entries[i] = d.entries[rand.IntN(len(d.entries))]
	}
	with, _, err := compare(ctx, d.rdb, conn, entries, false)
	if err != nil {
		return 0, 0, err
	}
	without, _, err := compare(ctx, d.rdb, conn, entries, true)
	return percent(int64(with.stale), int64(with.cached)), percent(int64(without.stale), int64(without.cached)), err
}

// caughtUp waits until everything that the writers have committed is applied, with what
// classes hold back.
func (d *demo) caughtUp(ctx context.Context) error {
	r, err := await.Wait(ctx, await.Options{File: d.file, Timeout: catchUpTimeout})
	if err != nil {
		return fmt.Errorf("wait for the daemon: %w", err)
	}
	if !r.Settled {
		return fmt.Errorf("the daemon has not applied everything within %v: %s", catchUpTimeout, strings.Join(r.Missing, "; "))
	}
	return nil
}
