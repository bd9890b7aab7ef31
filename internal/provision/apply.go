package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// Progress is told of the steps of Apply as they come.
type Progress interface {
	Begin(n, total int, s Step)
	// End comes after each Begin. done is false when somebody else was quicker.
	End(s Step, done bool, err error)
}

// Bounds of the locks that apply asks for. ALTER TABLE ... REPLICA IDENTITY waits for
// everybody who uses the table, and whoever comes later waits behind it: so it waits
// shortly, lets them go first, and tries again.
const (
	lockTimeout  = "1s"
	lockPause    = 2 * time.Second
	lockAttempts = 8
)

// Apply does the steps of a plan in their order. It refuses a plan that cannot be finished
// before anything is changed: one with blockers, and one with a step that the role may not
// do. Everything but the slot is one transaction, so what fails leaves nothing; the slot
// comes last, since it keeps WAL from its creation on.
//
// The source is looked at again first, so steps that are no longer needed are passed over,
// and another run after an error goes on where this one ended. Where a change brings something
// more to light, there is no slot yet, and another plan has both.
func Apply(ctx context.Context, conn *pgx.Conn, d Desired, plan Plan, progress Progress) error {
	st, err := Read(ctx, conn, d)
	if err != nil {
		return err
	}
	now := st.Plan()
	for _, b := range slices.Concat(plan.Blocked, now.Blocked) {
		return &replication.ConfigError{Op: b.Subject, Problem: b.Problem, Fix: b.Fix}
	}
	needed := func(s Step) bool {
		return slices.ContainsFunc(now.Steps, func(n Step) bool { return s.Object == n.Object && s.Name == n.Name && slices.Equal(s.SQL, n.SQL) })
	}
	for _, s := range plan.Steps {
		// Managed services let others than superusers make event triggers: that is tried, and
		// takes everything back where it fails.
		if s.Lacking && needed(s) && s.Object != "function" && s.Object != "event trigger" {
			return &replication.ConfigError{Op: fmt.Sprintf("%s %s", s.Action, s.Title()), Problem: "nothing was done: it takes " + s.Needs, Fix: s.grant}
		}
	}
	for attempt := 1; ; attempt++ {
		err := changeAll(ctx, conn, plan.Steps, needed, progress)
		if !locked(err) || attempt == lockAttempts {
			if err != nil {
				return err
			}
			break
		}
		timer := time.NewTimer(lockPause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
	// What a change has brought to light comes first: a slot keeps WAL from its creation on.
	if st, err = Read(ctx, conn, d); err != nil {
		return err
	}
	if after := st.Plan(); len(after.Blocked) > 0 || slices.ContainsFunc(after.Steps, func(s Step) bool { return s.Object != "slot" }) {
		return nil // the next plan has it
	}
	for i, s := range plan.Steps {
		if s.Object != "slot" {
			continue
		}
		progress.Begin(i+1, len(plan.Steps), s)
		if !needed(s) {
			progress.End(s, false, nil)
			continue
		}
		// It may wait for open transactions, and then names them.
		_, _, err := replication.EnsureSlot(ctx, conn, s.Name, true)
		progress.End(s, err == nil, err)
		if err != nil {
			return err
		}
	}
	return nil
}

// changeAll does everything but the slot, in one transaction.
func changeAll(ctx context.Context, conn *pgx.Conn, steps []Step, needed func(Step) bool, progress Progress) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// It must not hang on a standby that is missing: nobody would see for what.
		if _, err := tx.Exec(ctx, "SELECT set_config('lock_timeout', $1, true), set_config('synchronous_commit', 'local', true)", lockTimeout); err != nil {
			return replication.ServerError("begin", err)
		}
		for i, s := range steps {
			if s.Object == "slot" {
				continue
			}
			progress.Begin(i+1, len(steps), s)
			if !needed(s) {
				progress.End(s, false, nil)
				continue
			}
			err := replication.Run(ctx, conn, fmt.Sprintf("%s %s (nothing was changed)", s.Action, s.Title()), s.SQL, s.grant)
			progress.End(s, err == nil, err)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// locked says whether somebody else holds a lock that would be needed.
func locked(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "55P03" || pg.Code == "40P01") // lock_not_available, deadlock_detected
}
