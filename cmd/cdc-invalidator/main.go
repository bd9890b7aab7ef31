// Command cdc-invalidator deletes cached keys when the rows behind them change.
package main

import (
	"context"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"

	"github.com/cdc-invalidator/cdc-invalidator/internal/cli"
)

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	s := &signals{received: make(chan os.Signal, 4), reload: make(chan struct{}, 1), end: cancel}
	signal.Notify(s.received, os.Interrupt, syscall.SIGTERM)
	// The terminal is gone: that ends what was run on it, but for what it was told to
	// survive (nohup).
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(s.received, syscall.SIGHUP)
	}
	go s.handle()
	os.Exit(cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, cli.WithReload(s.reloads)))
}

// signals is what the signals of the process are for.
type signals struct {
	received chan os.Signal
	reload   chan struct{}
	asked    atomic.Bool // SIGHUP asks for a reload
	end      context.CancelFunc
}

// reloads has SIGHUP ask for a reload from now on instead of the end, in a process that was
// told to ignore it as well: whoever sends it to a daemon means just that.
func (s *signals) reloads() <-chan struct{} {
	s.asked.Store(true)
	signal.Notify(s.received, syscall.SIGHUP)
	return s.reload
}

func (s *signals) handle() {
	for sig := range s.received {
		if sig == syscall.SIGHUP && s.asked.Load() {
			select {
			case s.reload <- struct{}{}:
			default: // one is waiting already; it will read the newest file
			}
			continue
		}
		// The first signal asks for an orderly end. From then on the default action
		// is back, so that a second one ends the process at once; but not for SIGHUP, which
		// a terminal that goes sends more than once.
		s.end()
		signal.Reset(os.Interrupt, syscall.SIGTERM)
	}
}
