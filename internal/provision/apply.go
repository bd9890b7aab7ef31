package provision

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// Progress is told of the steps of Apply as they come.
type Progress interface {
	Begin(n, total int, s Step)
	// End comes after each Begin. done is false when somebody else was quicker.
	End(s Step, done bool, err error)
}

// Apply does the steps of a plan in their order. The source is looked at again
// before each of them, so a step that is no longer needed is passed over, and
// another run after an error goes on where this one ended.
//
// It refuses a plan with blockers before anything is changed.
func Apply(ctx context.Context, conn *pgx.Conn, d Desired, plan Plan, progress Progress) error {
	for _, b := range plan.Blocked {
		return &replication.ConfigError{Op: b.Subject, Problem: b.Problem, Fix: b.Fix}
	}
	for i, step := range plan.Steps {
		st, err := Read(ctx, conn, d)
		if err != nil {
			return err
		}
		now := st.Plan()
		for _, b := range now.Blocked {
			return &replication.ConfigError{Op: b.Subject, Problem: b.Problem, Fix: b.Fix}
		}
		progress.Begin(i+1, len(plan.Steps), step)
		k := slices.IndexFunc(now.Steps, func(s Step) bool {
			return s.Object == step.Object && s.Name == step.Name && slices.Equal(s.SQL, step.SQL)
		})
		if k < 0 {
			progress.End(step, false, nil)
			continue
		}
		err = do(ctx, conn, step)
		progress.End(step, err == nil, err)
		if err != nil {
			return err
		}
	}
	return nil
}

func do(ctx context.Context, conn *pgx.Conn, s Step) error {
	op := fmt.Sprintf("%s %s", s.Action, s.Title())
	if s.Object == "slot" {
		// It may wait for open transactions, and then names them.
		_, _, err := replication.EnsureSlot(ctx, conn, s.Name, true)
		return err
	}
	return replication.Run(ctx, conn, op, s.SQL, s.grant)
}
