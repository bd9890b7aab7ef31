package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/internal/provision"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// provisionFlags are what plan and apply share.
type provisionFlags struct {
	config, url             string
	noTrigger, noIdentities bool
}

func (f *provisionFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.config, "config", "c", "", "the mappings file")
	cmd.Flags().StringVar(&f.url, "url", "", "connect with this URL instead of source.url, for rights that the daemon's role has not got; '${NAME}' and '${file:PATH}' are expanded")
	cmd.Flags().BoolVar(&f.noTrigger, "no-event-trigger", false, "leave out the event trigger, which takes a superuser")
	cmd.Flags().BoolVar(&f.noIdentities, "no-replica-identity", false, "leave replica identities that only make invalidations wider than they need to be")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
}

// planned is `plan --json`.
type planned struct {
	File string `json:"file"`
	provision.Plan
}

func newPlanCommand(a *app) *cobra.Command {
	var f provisionFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "plan --config FILE",
		Short: "Show what would be created or changed in Postgres",
		Long: `Compares what the file needs with what the source has, and shows what is missing with
the SQL that makes it: the publication and its tables and options, the slot, replica
identities, and the event trigger that announces DDL. Nothing is changed.

  +  to create     ~  to change     -  to remove (only what apply itself made once)
  !  what a person has to settle first: apply refuses until then

Exits with 0 when nothing is to do, with 2 when there is something, with 69 when the
server is not there, with 78 for a faulty file.`,
		Example: `  cdc-invalidator plan --config mappings.yaml
  cdc-invalidator plan --config mappings.yaml --url '${ADMIN_DATABASE_URL}'
  cdc-invalidator plan --config mappings.yaml --no-event-trigger --json | jq -r '.steps[].sql[]'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, desired, err := f.connect(cmd, "plan")
			if err != nil {
				return err
			}
			defer replication.CloseControl(cmd.Context(), conn)
			plan, err := f.plan(cmd.Context(), conn, desired)
			if err != nil {
				return err
			}
			if asJSON {
				err = a.printJSON(planned{f.config, plan})
			} else {
				err = printPlan(a.stdout, &plan, f.hint(&plan))
			}
			if err == nil && !plan.Nothing() {
				return &ExitError{Code: exitDifferences}
			}
			return err
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// connect reads the file, of which only the source has to be complete, and connects.
func (f *provisionFlags) connect(cmd *cobra.Command, purpose string) (*pgx.Conn, provision.Desired, error) {
	var desired provision.Desired
	if f.config == "" {
		return nil, desired, usageErrorf("--config is needed: the file that says which changes make which keys stale")
	}
	file, err := mapping.LoadOffline(f.config)
	if err != nil {
		return nil, desired, err
	}
	compiled, err := mapping.Compile(file)
	if err != nil {
		return nil, desired, err
	}
	url := file.Source.URL
	if cmd.Flags().Changed("url") {
		env := offlineEnv()
		if url, err = env.Expand(f.url); err != nil {
			return nil, desired, usageErrorf("--url: %w", err)
		}
		if url.Reveal() == "" { // source.url instead would be another account than the one that was meant
			return nil, desired, usageErrorf("--url is empty: give the URL to connect with, or leave the flag out for source.url")
		}
	}
	if url.Reveal() == "" {
		return nil, desired, &replication.ConfigError{Op: "connect to the source", Problem: "source.url has no value here",
			Fix: "set the variable that it refers to, or give --url"}
	}
	desired = provision.FromFile(file, compiled)
	desired.EventTrigger, desired.Identity = !f.noTrigger, !f.noIdentities
	conn, err := replication.ConnectControl(cmd.Context(), url.Reveal(), purpose)
	return conn, desired, f.named(err)
}

// plan says what there is to do.
func (f *provisionFlags) plan(ctx context.Context, conn *pgx.Conn, desired provision.Desired) (provision.Plan, error) {
	st, err := provision.Read(ctx, conn, desired)
	if err != nil {
		return provision.Plan{}, f.named(err)
	}
	plan := st.Plan()
	if f.url != "" {
		for i := range plan.Blocked {
			b := &plan.Blocked[i]
			b.Problem, b.Fix = replication.SourceURLAs("--url", b.Problem), replication.SourceURLAs("--url", b.Fix)
		}
	}
	return plan, nil
}

// named has an error speak of the URL that was used.
func (f *provisionFlags) named(err error) error {
	if f.url == "" {
		return err
	}
	return replication.GivenAs("--url", err)
}

// hint is what to do next.
func (f *provisionFlags) hint(p *provision.Plan) string {
	apply := programName + " apply --config " + f.config
	if f.noTrigger {
		apply += " --no-event-trigger"
	}
	if f.noIdentities {
		apply += " --no-replica-identity"
	}
	if f.url != "" && strings.HasPrefix(f.url, "${") {
		apply += " --url '" + f.url + "'"
	}
	if f.url == "" && slices.ContainsFunc(p.Steps, func(s provision.Step) bool { return s.Lacking }) {
		apply += " --url <of an account that may>"
	}
	switch {
	case p.Nothing():
		return ""
	case len(p.Blocked) > 0:
		return "What stands after ! comes first; then: " + apply
	}
	return "To do it: " + apply
}

func printPlan(w io.Writer, p *provision.Plan, hint string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Database %s, Postgres %s, as %s\n\n", p.Database, p.Server, p.Role)
	for _, s := range p.Blocked {
		fmt.Fprintf(&b, "  ! %s: %s\n%s\n\n", s.Subject, s.Problem, indentBy(s.Fix, "      "))
	}
	for _, s := range p.Steps {
		writeStep(&b, s)
		fmt.Fprintf(&b, "%s\n\n", indentBy(strings.Join(s.SQL, "\n"), "      "))
	}
	for _, n := range p.Notes {
		fmt.Fprintf(&b, "  note: %s\n", n)
	}
	if len(p.Notes) > 0 {
		b.WriteByte('\n')
	}
	if p.Nothing() {
		b.WriteString("Nothing to do.\n")
	} else {
		fmt.Fprintln(&b, strings.TrimSpace(strings.ToUpper(p.Counts()[:1])+p.Counts()[1:]+". "+hint))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func writeStep(b *strings.Builder, s provision.Step) {
	fmt.Fprintf(b, "  %s %s: %s\n", s.Action.Sign(), s.Title(), s.Why)
	if s.Lacking {
		fmt.Fprintf(b, "      -- not as this role: it takes %s\n", s.Needs)
	}
}

func indentBy(s, by string) string { return by + strings.ReplaceAll(s, "\n", "\n"+by) }
