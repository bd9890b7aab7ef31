// Command bench measures how fast committed changes become invalidations, as
// ratios against pg_recvlogical writing the same WAL into nothing, in the same
// run and on the same servers. Absolute figures differ by 30 % between machines;
// the ratios are what to compare.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
)

type settings struct {
	binary   string
	runs     int
	scale    float64 // of the workloads' sizes
	only     string
	duration time.Duration // of each steady measurement
	dir      string
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case bareCommand:
			exit(runBare(os.Args[2:]))
			return
		case crowdCommand:
			exit(runCrowd(os.Args[2:]))
			return
		}
	}
	var s settings
	flag.StringVar(&s.binary, "binary", "bin/cdc-invalidator", "the daemon to measure")
	flag.IntVar(&s.runs, "runs", 3, "runs of each measurement; the median is printed")
	flag.Float64Var(&s.scale, "scale", 1, "size of the workloads: 0.1 for a quick look")
	flag.StringVar(&s.only, "only", "", "only measurements whose name contains this")
	flag.DurationVar(&s.duration, "duration", 10*time.Second, "length of each steady measurement")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	exit(run(ctx, s))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings) (err error) {
	if s.binary, err = filepath.Abs(s.binary); err != nil {
		return err
	}
	if _, err := exec.LookPath(s.binary); err != nil {
		return fmt.Errorf("%w; run `make build` first", err)
	}
	if s.dir, err = os.MkdirTemp("", "cdc-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(s.dir)
	pg, err := localserver.StartPostgres(ctx, localserver.PostgresOptions{Settings: map[string]string{
		"shared_buffers": "256MB", "max_wal_size": "16GB", "checkpoint_timeout": "1h", "autovacuum": "off",
		"max_replication_slots": "64", "max_wal_senders": "20",
	}})
	if err != nil {
		return err
	}
	defer pg.Close()
	redis, err := localserver.StartRedis(ctx, localserver.RedisOptions{})
	if err != nil {
		return err
	}
	defer redis.Close()
	fmt.Printf("Postgres %s, %s, medians of %d\n", pg.Version(), redis.Version(), s.runs)

	b := &bench{settings: s, pg: pg, redis: redis}
	if err := b.connect(ctx); err != nil {
		return err
	}
	defer b.close()
	for _, w := range workloads(s.scale) {
		if strings.Contains(w.name, s.only) {
			if err := b.backlog(ctx, w); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
		}
	}
	for _, m := range []struct {
		name string
		run  func(context.Context) error
	}{{"readers", b.readers}, {"dependents", b.dependents}, {"looking", b.looking}} {
		if strings.Contains(m.name, s.only) {
			if err := m.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", m.name, err)
			}
		}
	}
	for _, rate := range []int{1000, 5000} {
		name := fmt.Sprintf("steady %d/s", rate)
		if strings.Contains(name, s.only) {
			if err := b.steady(ctx, name, rate); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}
