package cli

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/internal/await"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

type waitFlags struct {
	config, at string
	now, json  bool
	timeout    time.Duration
}

func newWaitCommand(a *app) *cobra.Command {
	var f waitFlags
	cmd := &cobra.Command{
		Use:   "wait --config FILE [--now | --lsn LSN]",
		Short: "Wait until everything up to a position is applied to Redis",
		Long: `Waits until no key is left in Redis that a change up to a position of the source's log
has made stale: everything up to there is applied, what classes with linger or max_rate
hold back included, and no purge is under way. For migration scripts, deployments and
tests: what runs after it finds no value from before.

--now, the default, takes the present end of the log: everything that is visible on the
source when the command starts. It commits a logical message of a few bytes, so it ends on
an idle source too, and with heartbeat: 0. The account of source.url may do that wherever
heartbeats work; else it needs EXECUTE on pg_logical_emit_message. --lsn takes a position,
such as pg_current_wal_insert_lsn() gave it right after a commit.

It reads what the daemon publishes in Redis and needs the mappings file and both servers,
not the daemon's status page. The file is to be the one that the daemon has: nothing is
settled of a family that the daemon does not follow as the file maps it, which a reload of
the daemon with that file mends. A value in a reader's own memory (WithL1) is not Redis: it
is dropped with the invalidation stream, a moment later.

Exits with 0 when it is so, 64 for wrong usage, 69 when the source is not there at the
start, 75 when the time is over, with what is missing (no daemon streams, a gap, held back
until when, families that the daemon does not follow, the position now and the one needed),
and 78 for a faulty file or setting, such as a slot that belongs to another database.`,
		Example: `  psql -f migration.sql && cdc-invalidator wait --config mappings.yaml
  cdc-invalidator wait --config mappings.yaml --now --timeout 5m
  cdc-invalidator wait -c mappings.yaml --lsn "$(psql -Atc 'SELECT pg_current_wal_insert_lsn()')" --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.wait(cmd.Context(), f) },
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.config, "config", "c", "", "the mappings file, as the daemon has it")
	fl.StringVar(&f.at, "lsn", "", "wait for this position of the source's log, for example 0/1A2B3C8")
	fl.BoolVar(&f.now, "now", false, "wait for everything that is visible on the source now (the default)")
	fl.DurationVar(&f.timeout, "timeout", time.Minute, "how long to wait; 0 for ever")
	fl.BoolVar(&f.json, "json", false, "print JSON")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
	return cmd
}

func (a *app) wait(ctx context.Context, f waitFlags) error {
	var at lsn.LSN
	switch {
	case f.config == "":
		return usageErrorf("--config is needed: it says where the source and Redis are")
	case f.now && f.at != "":
		return usageErrorf("--now and --lsn exclude each other")
	case f.timeout < 0:
		return usageErrorf("--timeout %v: want 0 or more", f.timeout)
	case f.at != "":
		var err error
		if at, err = lsn.Parse(f.at); err != nil || at == 0 {
			return usageErrorf("--lsn %q: want a position as Postgres prints it, such as 0/1A2B3C8", f.at)
		}
	}
	file, err := mapping.Load(f.config)
	if err != nil {
		return err
	}
	logRedisTo(slog.New(slog.DiscardHandler)) // what it has to say is in what is missing
	r, err := await.Wait(ctx, await.Options{File: file, At: at, Timeout: f.timeout})
	if err != nil {
		return err
	}
	if f.json {
		err = a.printJSON(waitReport(r))
	} else if r.Settled {
		_, err = fmt.Fprintf(a.stdout, "settled: everything up to %s is applied (waited %s)\n", r.Needed, seconds(r.Waited.Seconds()))
	}
	switch {
	case err != nil:
		return err
	case r.Settled:
		return nil
	case f.json:
		return &ExitError{Code: exitTimeout}
	}
	return &ExitError{Code: exitTimeout, Err: fmt.Errorf("not everything up to %s is applied after %s:\n  %s",
		r.Needed, seconds(r.Waited.Seconds()), strings.Join(r.Missing, "\n  "))}
}

// waitJSON is what wait prints with --json. Fields may be added.
type waitJSON struct {
	Settled       bool       `json:"settled"`
	Needed        string     `json:"needed"`
	SettledLSN    string     `json:"settled_lsn"` // everything that ended at or below is applied
	AppliedLSN    string     `json:"applied_lsn"` // the same, but for what is held back
	State         string     `json:"state"`
	Reason        string     `json:"reason,omitempty"`
	Held          []heldJSON `json:"held"`
	WaitedSeconds float64    `json:"waited_seconds"`
	Missing       []string   `json:"missing"`
}

type heldJSON struct {
	Class   string    `json:"class"`
	Waiting int       `json:"waiting"`
	Until   time.Time `json:"until"`
}

func waitReport(r await.Result) waitJSON {
	out := waitJSON{
		Settled: r.Settled, Needed: r.Needed.String(), SettledLSN: r.At.String(), AppliedLSN: r.Applied.String(),
		State: string(r.State), Reason: r.Reason, Held: []heldJSON{}, WaitedSeconds: r.Waited.Seconds(),
		Missing: append([]string{}, r.Missing...),
	}
	for _, h := range r.Held {
		out.Held = append(out.Held, heldJSON{h.Class, h.Waiting, h.Until})
	}
	return out
}
