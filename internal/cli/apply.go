package cli

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/internal/provision"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

func newApplyCommand(a *app) *cobra.Command {
	var f provisionFlags
	var yes bool
	cmd := &cobra.Command{
		Use:   "apply --config FILE [--yes]",
		Short: "Create and change in Postgres what plan shows",
		Long: `Shows the plan, asks, and does it in the one order that loses nothing: replica
identities, publication, event trigger, slot. A plan that cannot be finished is not
begun; all but the slot is one transaction, so what fails leaves nothing, and a second
run finds nothing to do. It drops nothing that it did not make.

ALTER TABLE waits for a lock at most a second, since the application would wait behind
it, and tries eight times; the slot waits at most a minute for transactions that are
open. Interrupted, it leaves no slot. Run it again when it gives up.

Exits with 0 when all is done or nothing was to do, with 2 when something shows only
now that could not be seen before (run it again), with 64 without a yes, with 69 when
the server is not there or busy, with 78 when a right is missing or a person has to
settle something first.`,
		Example: `  cdc-invalidator apply --config mappings.yaml
  cdc-invalidator apply --config mappings.yaml --url '${ADMIN_DATABASE_URL}' --yes
  cdc-invalidator apply --config mappings.yaml --no-event-trigger`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			conn, desired, err := f.connect(cmd, "apply")
			if err != nil {
				return err
			}
			defer replication.CloseControl(ctx, conn)
			plan, err := f.plan(ctx, conn, desired)
			if err != nil {
				return err
			}
			if err := printPlan(a.stdout, &plan, ""); err != nil {
				return err
			}
			if plan.Nothing() {
				return nil
			}
			if len(plan.Blocked) == 0 && !yes {
				if err := a.confirm("Do it? Only yes is a yes: "); err != nil {
					return err
				}
			}
			if err := provision.Apply(ctx, conn, desired, plan, stepProgress{a.stdout}); err != nil {
				return f.named(err)
			}
			left, err := f.plan(ctx, conn, desired)
			if err != nil {
				return err
			}
			if !left.Nothing() {
				fmt.Fprintf(a.stdout, "Done. What shows only now: %s; run it again.\n", left.Counts())
				return &ExitError{Code: exitDifferences}
			}
			fmt.Fprintln(a.stdout, "Done.")
			return nil
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

// confirm asks on the terminal. Without one there is nobody to ask.
func (a *app) confirm(question string) error {
	if !atTerminal(a.stdin) {
		return usageErrorf("nothing was done: there is no terminal to ask on; look at the plan, and give --yes")
	}
	fmt.Fprint(a.stdout, question)
	answer, err := bufio.NewReader(a.stdin).ReadString('\n')
	if strings.TrimSpace(answer) != "yes" {
		if err != nil {
			fmt.Fprintln(a.stdout)
		}
		return usageErrorf("nothing was done: the answer was not yes")
	}
	return nil
}

// stepProgress prints a line for each step, with its end when it comes.
type stepProgress struct{ out io.Writer }

func (p stepProgress) Begin(n, total int, s provision.Step) {
	fmt.Fprintf(p.out, "%d/%d %s %s ... ", n, total, s.Action.Sign(), s.Title())
}

func (p stepProgress) End(_ provision.Step, done bool, err error) {
	switch {
	case err != nil:
		fmt.Fprintln(p.out, "failed")
	case done:
		fmt.Fprintln(p.out, "done")
	default:
		fmt.Fprintln(p.out, "is there already")
	}
}
