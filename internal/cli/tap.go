package cli

import (
	"encoding/json"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/internal/logging"
	"github.com/cdc-invalidator/cdc-invalidator/internal/tap"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

type tapFlags struct {
	config           string
	tables, families []string
	tenant           string
	showValues       bool
	resolve          bool
	json             bool
	maxRate, count   int
	duration         time.Duration
}

func newTapCommand(a *app) *cobra.Command {
	var f tapFlags
	cmd := &cobra.Command{
		Use:   "tap --config FILE",
		Short: "Show live what would be invalidated, without applying it",
		Long: `Follows the source from now on and prints each invalidation that the mappings make
of its changes. Nothing is applied, Redis is not needed, and a running daemon is not
touched: the changes come through a temporary slot of its own, which is gone when the
command ends. The publication must exist.

A line says: when the transaction committed (by the server's clock), the position of
its commit, what happened to which table (insert, update, delete, truncate, message, or
ddl when its definition changed), what would be done (delete a key, advance a version
key, purge a family or a tenant's part of it, lookup: ask a for_each query), the family
and the key.

Values in keys are masked as * and eight digits. The same value has the same digits
until the command ends, so that equal keys can be recognised; they mean nothing
elsewhere. --show-values shows the keys as they are.

It never holds up the source: what exceeds --max-rate, or what a reader that has
stopped reading does not take, is left out, and how much that was is told in its place.
Changes are shown when they are received, a moment before they are visible. Changes of
definitions that the log itself is silent about are shown where the event trigger
announces them (see plan); the daemon finds the others in the catalogs.

The lines go to stdout, everything else to stderr, in JSON the summary too goes to stdout.
Ends with 0 at Ctrl-C, after --count lines or --duration; with 64 for wrong usage, 69 when
the source is away, 78 when the file, the server or a right must be mended first.`,
		Example: `  cdc-invalidator tap --config mappings.yaml
  cdc-invalidator tap -c mappings.yaml --table public.users --tenant 7 --show-values
  cdc-invalidator tap -c mappings.yaml --json --duration 1m --max-rate 0 | jq -r 'select(.op == "purge") | .family'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runTap(cmd, a, f) },
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.config, "config", "c", "", "the mappings file")
	fl.StringSliceVar(&f.tables, "table", nil, "only changes of these tables (schema.table)")
	fl.StringSliceVar(&f.families, "family", nil, "only keys of these families")
	fl.StringVar(&f.tenant, "tenant", "", "only keys of this tenant, and what concerns all tenants")
	fl.BoolVar(&f.showValues, "show-values", false, "show keys as they are, with the values of rows in them")
	fl.BoolVar(&f.resolve, "resolve", false, "run for_each queries on the source and show the keys that they bring")
	fl.BoolVar(&f.json, "json", false, "print JSON, one object a line")
	fl.IntVar(&f.maxRate, "max-rate", 100, "lines a second; what exceeds it is counted and left out; 0 for no limit")
	fl.IntVar(&f.count, "count", 0, "end after so many lines; 0 for no end")
	fl.DurationVar(&f.duration, "duration", 0, "end after this time, for example 30s; 0 for no end")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
	return cmd
}

func runTap(cmd *cobra.Command, a *app, f tapFlags) error {
	switch {
	case f.config == "":
		return usageErrorf("--config is needed: the file that says which changes make which keys stale")
	case f.maxRate < 0, f.count < 0, f.duration < 0:
		return usageErrorf("--max-rate, --count and --duration are not negative")
	}
	file, err := loadForSource(f.config)
	if err != nil {
		return err
	}
	plan, err := mapping.Compile(file)
	if err != nil {
		return err
	}
	filter, err := tapFilter(f, cmd.Flags().Changed("tenant"), plan)
	if err != nil {
		return err
	}
	sum, err := tap.Run(cmd.Context(), tap.Options{
		URL: file.Source.URL.Reveal(), Publication: file.Source.Publication.Name, Plan: plan, Filter: filter,
		ShowValues: f.showValues, Resolve: f.resolve, JSON: f.json, MaxRate: f.maxRate, Count: f.count, Duration: f.duration,
		Out: a.stdout, Info: a.stderr, Logger: logging.New(a.stderr, logging.Text, slog.LevelWarn),
	})
	if err != nil {
		return err
	}
	return a.printTapSummary(sum, f.json)
}

func (a *app) printTapSummary(sum tap.Summary, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(a.stdout)
		return enc.Encode(sum)
	}
	_, err := io.WriteString(a.stderr, sum.String()+"\n")
	return err
}

// loadForSource reads a file for a command that needs the source and not Redis,
// whose URL need not be there.
func loadForSource(path string) (*mapping.File, error) {
	file, err := mapping.LoadOffline(path)
	if err != nil {
		return nil, err
	}
	if file.Source.URL.Reveal() == "" {
		_, err := mapping.Load(path) // says what is unset
		return nil, err
	}
	return file, nil
}

// tapFilter refuses names that nothing has: a filter with a typing mistake would show
// nothing, for ever.
func tapFilter(f tapFlags, byTenant bool, plan *mapping.Plan) (tap.Filter, error) {
	var tables, families []string
	tenants := false
	for _, u := range plan.Tables() {
		tables = append(tables, u.Schema+"."+u.Table)
	}
	for _, fam := range plan.Families() {
		families = append(families, fam.Name)
		tenants = tenants || fam.TenantVar != ""
	}
	for _, t := range f.tables {
		if !slices.Contains(tables, t) {
			return tap.Filter{}, usageErrorf("--table %s: no mapping is for this table; the mapped ones are %s", t, strings.Join(tables, ", "))
		}
	}
	for _, name := range f.families {
		if !slices.Contains(families, name) {
			return tap.Filter{}, usageErrorf("--family %s: there is no such family; there are %s", name, strings.Join(families, ", "))
		}
	}
	filter := tap.Filter{Tables: f.tables, Families: f.families}
	if byTenant {
		if !tenants {
			return tap.Filter{}, usageErrorf("--tenant: no family of %s has tenants", f.config)
		}
		filter.Tenant = &f.tenant
	}
	return filter, nil
}
