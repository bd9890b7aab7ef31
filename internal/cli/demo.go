package cli

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	cdcinvalidator "github.com/cdc-invalidator/cdc-invalidator"
	"github.com/cdc-invalidator/cdc-invalidator/internal/demo"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
)

func newDemoCommand(a *app) *cobra.Command {
	var o demo.Options
	logs := logFlags{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show it at work on a small shop with its own Postgres and Redis",
		Long: `Starts a Postgres and a Redis of its own in a temporary folder, makes a small shop,
fills a cache, and lets writers change rows while readers read through the cache and
the daemon invalidates. Then every cached value is compared with its row, beside the
same entries without invalidation. Everything it started is gone afterwards.

It exits with 0 when nothing is stale, with 1 when something is, and with 69 when there
is no Postgres or Redis to start. An interrupt (Ctrl-C) ends the work early; the
comparison is still made. A second one ends the program at once.`,
		Example: `  cdc-invalidator demo
  cdc-invalidator demo --duration 1m --http 127.0.0.1:9464
  cdc-invalidator demo --duration 0   # until Ctrl-C`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Duration < 0 {
				return usageErrorf("--duration %v: want 0 or more", o.Duration)
			}
			var err error
			if o.HTTP, err = httpAddress(o.HTTP); err != nil {
				return err
			}
			logger, err := logs.logger(a.stderr)
			if err != nil {
				return err
			}
			logRedisTo(logger)
			o.Mappings, o.Logger = cdcinvalidator.ExampleMappings(), logger
			o.Out, o.Terminal = a.stdout, canRewrite(a.stdout)
			report, err := demo.Run(cmd.Context(), o)
			if report != nil {
				report.Print(a.stdout)
			}
			switch {
			case errors.Is(err, localserver.ErrMissing):
				return &ExitError{Code: exitUnavailable, Err: err}
			case err != nil:
				return fmt.Errorf("demo: %w", err)
			case !report.OK():
				return &ExitError{Code: exitFailed}
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&o.Duration, "duration", 20*time.Second, "how long the writers work; 0 for until interrupted")
	cmd.Flags().StringVar(&o.HTTP, "http", "off", "address for the daemon's status pages and metrics, for example 127.0.0.1:9464")
	logs.register(cmd)
	cmd.Flags().Lookup("log-level").DefValue = "error"
	logs.level = "error" // the progress line is what there is to see
	return cmd
}
