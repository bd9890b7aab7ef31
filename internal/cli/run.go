package cli

import (
	"context"
	"fmt"
	"net"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
	"github.com/cdc-invalidator/cdc-invalidator/internal/daemon"
	"github.com/cdc-invalidator/cdc-invalidator/internal/sdnotify"
)

func newRunCommand(a *app) *cobra.Command {
	var (
		config, addr string
		logs         logFlags
	)
	cmd := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Follow the source and invalidate, until told to stop",
		Long: `Attaches to the replication slot that the file names (publication and slot are
created first where the file says so), and deletes in Redis what each committed
change makes stale. When Postgres or Redis goes away it waits and tries again, for
ever, and drops nothing.

SIGTERM or Ctrl-C: finishes the batch in hand, stores and confirms how far it got,
and exits with 0; a second one ends it at once, which loses nothing either.
SIGHUP: reads the file again and takes it into use between two transactions; a file
with faults is refused, with a condition that says so, and the old one stays.

Status over HTTP, from this machine only unless --http says otherwise: /livez,
/readyz, /healthz (what is wrong and how to mend it), /status (see the command of that
name) and /metrics.`,
		Example: `  cdc-invalidator run --config mappings.yaml
  cdc-invalidator run --config mappings.yaml --http 0.0.0.0:9464 --log-format json
  cdc-invalidator run --config mappings.yaml --http off --log-level debug`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config == "" {
				return usageErrorf("--config is needed: the file that says which changes make which keys stale")
			}
			listen, err := httpAddress(addr)
			if err != nil {
				return err
			}
			logger, err := logs.logger(a.stderr)
			if err != nil {
				return err
			}
			logRedisTo(logger)
			var reload <-chan struct{}
			if a.reloads != nil {
				reload = a.reloads()
			}
			build := readBuildInfo()
			logger.Info("starting", "version", build.Version, "commit", build.Commit, "config", config)
			registry := prometheus.NewRegistry()
			if err := registerProcess(registry, build); err != nil {
				return err
			}
			manager, err := sdnotify.FromEnvironment()
			if err != nil {
				logger.Warn("running without a service manager", "error", err)
			}
			defer manager.Close()
			err = daemon.Run(cmd.Context(), daemon.Options{
				Version: build.Version, Commit: build.Commit, Config: config, HTTP: listen, Logger: logger, Reload: reload, Registry: registry,
				Supervisor: manager,
			})
			if err == nil {
				logger.Info("stopped")
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&config, "config", "c", "", "the mappings file")
	cmd.Flags().StringVar(&addr, "http", admin.DefaultAddr, "address for status pages and metrics, or off")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
	logs.register(cmd)
	return cmd
}

// httpAddress settles the address before anything starts: a typing mistake in it
// is a wrong usage, not a failure of the daemon.
func httpAddress(s string) (string, error) {
	if s == "off" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = net.DefaultResolver.LookupPort(context.Background(), "tcp", port)
	}
	if err != nil || port == "" || strings.ContainsAny(host, " /") {
		return "", usageErrorf("--http %q: want an address such as %s, or off", s, admin.DefaultAddr)
	}
	return s, nil
}

// registerProcess registers what belongs to the process and to no component.
func registerProcess(reg prometheus.Registerer, b buildInfo) error {
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "cdc_invalidator_build_info",
		Help:        "Always 1; the labels say which build this is.",
		ConstLabels: prometheus.Labels{"version": b.Version, "commit": b.Commit, "go": b.Go},
	})
	info.Set(1)
	for _, c := range []prometheus.Collector{info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("register the metrics of the process: %w", err)
		}
	}
	return nil
}
