package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

type skipFlags struct {
	config, position, reason string
	yes                      bool
	timeout                  time.Duration
}

func newSkipCommand(a *app) *cobra.Command {
	var f skipFlags
	cmd := &cobra.Command{
		Use:   "skip --config FILE --position LSN --reason TEXT [--yes]",
		Short: "Give up one transaction that the daemon is stuck at",
		Long: `For a daemon whose condition stuck does not hold: Postgres, or the daemon, fails at the
same transaction each time, and nothing after it comes through. This asks the running
daemon, by a key in Redis, to give that one transaction up: it publishes a gap, moves the
slot past it, and purges every mapped family, since nobody has seen what is in it.
Everything that committed later comes through as usual.

--position is the one that the condition names (cdc-invalidator status); any other is
refused. Where the server failed before it said which transaction it was reading, the
condition names a position before it, and all that is in the log by then is given up; the
purge covers that too. The reason stands in the control hash and in the log. What is
given up is lost to whatever else reads this slot, and to nothing else.

Exits with 0 when the slot is past it, 1 when the daemon refuses or is past it already, 64 without a yes, 69 when
Redis is away or no daemon answers, 78 when the file is at fault.`,
		Example: `  cdc-invalidator status
  cdc-invalidator skip --config mappings.yaml --position 0/1A2B3C8 --reason "a row of 600 MB, ticket 42"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.skip(cmd.Context(), f) },
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.config, "config", "c", "", "the mappings file")
	fl.StringVar(&f.position, "position", "", "the transaction's position, as the condition stuck names it")
	fl.StringVar(&f.reason, "reason", "", "why, for the control hash and the log")
	fl.BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	fl.DurationVar(&f.timeout, "timeout", 6*time.Minute, "how long to wait for the daemon")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
	return cmd
}

// skipPause is how often it is looked whether the daemon has answered.
const skipPause = 200 * time.Millisecond

func (a *app) skip(ctx context.Context, f skipFlags) error {
	switch {
	case f.config == "":
		return usageErrorf("--config is needed: the file that the daemon runs with")
	case f.position == "":
		return usageErrorf("--position is needed: the one that the condition stuck names; see cdc-invalidator status")
	case f.reason == "":
		return usageErrorf("--reason is needed: it stands in the control hash and in the log")
	case f.timeout <= 0:
		return usageErrorf("--timeout must be positive")
	}
	at, err := lsn.Parse(f.position)
	if err != nil {
		return usageErrorf("--position: %w", err)
	}
	file, err := mapping.Load(f.config)
	if err != nil {
		return err
	}
	r, err := sink.Open(sink.Options{Config: file.Redis, Slot: file.Source.Slot.Name})
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // what it wrote was acknowledged
	stuck, found, err := r.Stuck(ctx)
	switch {
	case err != nil:
		return err
	case !found:
		return fmt.Errorf("nothing was done: no daemon on slot %s says that it is stuck at a transaction; see cdc-invalidator status", file.Source.Slot.Name)
	case stuck.Position != at.String():
		return fmt.Errorf("nothing was done: the daemon is stuck at %s, not at %s", stuck.Position, at)
	}
	table := ""
	if stuck.Table != "" {
		table = ", at or after a row of " + stuck.Table
	}
	what := "The transaction at " + at.String()
	if stuck.Behind {
		what = "What is in the log behind " + at.String() + ", up to its end by now,"
	}
	fmt.Fprintf(a.stdout, "%s (%d attempts, error %s%s) will never be read, and every mapped family is purged.\n", what, stuck.Attempts, stuck.Code, table)
	if !f.yes {
		if err := a.confirm("Give it up? Only yes is a yes: "); err != nil {
			return err
		}
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails: the runtime would sooner end the process
	req := sink.SkipRequest{ID: hex.EncodeToString(id[:]), Position: at.String(), Reason: f.reason}
	if err := r.RequestSkip(ctx, req); err != nil {
		return err
	}
	return a.awaitSkip(ctx, r, req, f.timeout)
}

// awaitSkip waits for the daemon's answer, and takes the request back when none comes, or
// when no daemon says any more that it is stuck there.
func (a *app) awaitSkip(ctx context.Context, r *sink.Redis, req sink.SkipRequest, patience time.Duration) error {
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(skipPause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-bounded.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			err := errors.New("no daemon has answered; the request is taken back. See cdc-invalidator status whether it was carried out in the last moment")
			return &ExitError{Code: exitUnavailable, Err: errors.Join(err, r.WithdrawSkip(last))}
		}
		// Asked first: it is there until the answer is.
		stuck, still, err := r.Stuck(bounded)
		passed := err == nil && (!still || stuck.Position != req.Position)
		got, found, err := r.SkipRequest(bounded)
		switch {
		case err != nil: // Redis is away for the moment: the answer waits there
		case !found || got.ID != req.ID:
			return errors.New("another request has taken this one's place; see cdc-invalidator status")
		case got.Refused:
			return errors.New("the daemon refuses: " + got.Answer)
		case got.Answer != "":
			fmt.Fprintln(a.stdout, "Done: the slot is past it, and the mapped families are being purged.")
			return nil
		case passed:
			return errors.Join(fmt.Errorf("nothing was done: no daemon says any more that it is stuck at %s", req.Position), r.WithdrawSkip(ctx))
		}
	}
}
