// Command shop is a small HTTP service that reads through the cache: what an
// application with cdc-invalidator's reader's library looks like. It never deletes a
// key. It writes to Postgres, and the daemon, which runs beside it with the same
// mappings.yaml, removes what a write has made stale.
//
// See README.md; `make shop` in the project's root starts everything at once.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

//go:embed schema.sql
var schema string

func main() {
	addr := flag.String("http", "127.0.0.1:8080", "address to serve on")
	mappings := flag.String("mappings", "examples/shop/mappings.yaml", "the mappings file that the daemon runs with")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), `Serves a small shop through the cache. DATABASE_URL and REDIS_URL say where, as for the daemon.

  DATABASE_URL=postgres://... REDIS_URL=redis://... go run ./examples/shop

`)
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *addr, *mappings); err != nil {
		fmt.Fprintln(os.Stderr, "shop:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, addr, mappings string) error {
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, schema); err != nil {
		return fmt.Errorf("create the shop's tables: %w", err)
	}
	options, err := redis.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		return fmt.Errorf("REDIS_URL: %w", err)
	}
	options.ContextTimeoutEnabled = true // a request that is given up waits for Redis no longer
	rdb := redis.NewClient(options)
	defer rdb.Close()

	registry := prometheus.NewRegistry()
	c, err := cache.Open(ctx, rdb, pool,
		cache.WithMappings(mappings), cache.WithRegisterer(registry), cache.WithLogger(slog.Default()))
	if err != nil {
		return err
	}
	defer c.Close()
	s, err := newShop(pool, c)
	if err != nil {
		return err
	}
	mux := s.routes()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return serve(ctx, addr, mux)
}

// serve answers requests until ctx ends, and finishes those under way.
func serve(ctx context.Context, addr string, h http.Handler) error {
	server := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		stopped <- server.Shutdown(bounded)
	}()
	slog.Info("serving", "url", "http://"+addr)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}
