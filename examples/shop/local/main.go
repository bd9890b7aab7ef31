// Command local runs the shop with everything that it needs, for a look at it: a
// Postgres and a Redis of its own in a temporary folder, the daemon and the shop. All of
// it is gone after an interrupt (Ctrl-C). It is run by `make shop`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
)

func main() {
	daemon := flag.String("daemon", "bin/cdc-invalidator", "the daemon's program")
	shop := flag.String("shop", "bin/shop", "the shop's program")
	addr := flag.String("http", "127.0.0.1:8080", "the shop's address")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *daemon, *shop, *addr); err != nil {
		fmt.Fprintln(os.Stderr, "local:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, daemon, shop, addr string) (err error) {
	postgres, err := localserver.StartPostgres(ctx, localserver.PostgresOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, postgres.Close()) }()
	redis, err := localserver.StartRedis(ctx, localserver.RedisOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, redis.Close()) }()
	if err := createTables(ctx, postgres.URL()); err != nil {
		return err
	}
	urls := []string{"DATABASE_URL=" + postgres.URL(), "REDIS_URL=" + redis.URL()}
	fmt.Printf(`Postgres, Redis, the daemon and the shop are starting. In another terminal:

  curl http://%[1]s/products/7
  curl -X PUT -d price_cents=99 http://%[1]s/products/7
  psql '%[2]s' -c "UPDATE sellers SET name = 'Renamed'"
  curl 'http://%[1]s/search?q=Product+1'
  curl http://%[1]s/metrics

Ctrl-C ends it all.

`, addr, postgres.URL())
	g, ctx := errgroup.WithContext(ctx)
	start := func(program string, args ...string) {
		g.Go(func() error {
			cmd := exec.CommandContext(ctx, program, args...)
			cmd.Env = append(os.Environ(), urls...)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			if err := cmd.Run(); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", program, err)
			}
			return nil
		})
	}
	start(shop, "-http", addr)
	start(daemon, "run", "--config", "examples/shop/mappings.yaml", "--log-level", "warn")
	return g.Wait()
}

// createTables comes before the daemon, which refuses a mappings file whose tables are
// not there.
func createTables(ctx context.Context, url string) error {
	schema, err := os.ReadFile("examples/shop/schema.sql")
	if err != nil {
		return fmt.Errorf("%w (run it in the project's root)", err)
	}
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, string(schema))
	return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
}
