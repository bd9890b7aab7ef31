// Command cdc-invalidator deletes cached keys when the rows behind them change.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/cdc-invalidator/cdc-invalidator/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for an orderly end. From then on the default action
	// is back, so that a second one ends the process at once.
	context.AfterFunc(ctx, stop)

	reload, hup := make(chan struct{}, 1), make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	go func() {
		for range hup {
			select {
			case reload <- struct{}{}:
			default: // one is waiting already; it will read the newest file
			}
		}
	}()
	os.Exit(cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, cli.WithReload(reload)))
}
