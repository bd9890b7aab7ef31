// Package cli is the command line: one file a command, all of them run through
// Main with injected streams, so that tests need no process.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/internal/logging"
)

// Name of the program in its own texts.
const programName = "cdc-invalidator"

// app is what the commands share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	reloads        func() <-chan struct{} // nil where nobody asks for any

	// ran is set when a command's own code starts. An error before that is
	// cobra's verdict on the arguments, which has no type of its own.
	ran bool
}

// Option adds what only a real process has.
type Option func(*app)

// WithReload gives `run` the channel on which a reload of its file is asked for
// (SIGHUP). ask is called when it begins: to all other commands SIGHUP means their end.
func WithReload(ask func() <-chan struct{}) Option {
	return func(a *app) { a.reloads = ask }
}

// Main runs one command and returns the process's exit code. It never exits
// itself, and installs no signal handler: cancel ctx to stop a command.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, opts ...Option) int {
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr}
	for _, o := range opts {
		o(a)
	}
	root := a.newRoot()
	if len(args) == 0 {
		root.SetOut(stderr)
		_ = root.Help()
		return exitUsage
	}
	return a.execute(ctx, root, args)
}

func (a *app) execute(ctx context.Context, root *cobra.Command, args []string) int {
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	if !a.ran {
		err = &ExitError{Code: exitUsage, Err: err}
	}
	text := quoteFree(err, args)
	code := exitCode(err)
	if exit := (*ExitError)(nil); !errors.As(err, &exit) || exit.Err != nil {
		fmt.Fprintf(a.stderr, "%s: %s\n", programName, text)
	}
	if code == exitUsage {
		fmt.Fprintf(a.stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
	}
	return code
}

func (a *app) newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   programName,
		Short: "Deletes cached keys when the rows behind them change",
		Long: `cdc-invalidator reads a Postgres database's own log through a logical replication
slot, turns each committed row change into the cache keys that it makes stale, and
deletes those keys in Redis. One YAML file says which change makes which keys stale.

Exit codes: 0 ok, 1 failed, 2 differences found, 64 wrong usage, 69 a server that is
needed is not there, 75 the time was over (wait), 78 the configuration must be mended
first.`,
		Example: `  cdc-invalidator demo
  cdc-invalidator validate mappings.yaml
  cdc-invalidator run --config mappings.yaml`,
		// Main prints errors: with a code, without the whole usage text.
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)

	root.AddCommand(
		newApplyCommand(a),
		newDemoCommand(a),
		newDoctorCommand(a),
		newExplainCommand(a),
		newInitCommand(a),
		newPlanCommand(a),
		newRunCommand(a),
		newSchemaCommand(a),
		newSkipCommand(a),
		newStatusCommand(a),
		newTapCommand(a),
		newTestCommand(a),
		newValidateCommand(a),
		newVersionCommand(a),
		newWaitCommand(a),
	)

	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	a.finish(root)
	return root
}

// finish gives every command, cobra's own included, an example, and notes when
// one of them starts.
func (a *app) finish(cmd *cobra.Command) {
	if cmd.Example == "" {
		switch {
		case cmd.Name() == "help":
			cmd.Args = func(_ *cobra.Command, topics []string) error {
				return refuseURLs(cmd, topics) // it quotes those that it does not know
			}
			cmd.Example = "  cdc-invalidator help run"
		case cmd.Name() == "completion":
			cmd.Example = "  cdc-invalidator completion bash > /etc/bash_completion.d/cdc-invalidator"
		case cmd.HasParent() && cmd.Parent().Name() == "completion":
			cmd.Example = "  cdc-invalidator completion " + cmd.Name()
		}
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			a.ran = true
			if err := refuseURLs(c, args); err != nil {
				return err
			}
			return run(c, args)
		}
	}
	for _, c := range cmd.Commands() {
		a.finish(c)
	}
}

// logFlags are the flags of every command that logs. Logs go to stderr, so that
// a command's output stays clean.
type logFlags struct{ level, format string }

func (f *logFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.level, "log-level", "info", "least level that is logged: debug, info, warn or error")
	cmd.Flags().StringVar(&f.format, "log-format", "text", "text or json")
	complete := func(cmd *cobra.Command, flag string, values ...string) {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	complete(cmd, "log-level", "debug", "info", "warn", "error")
	complete(cmd, "log-format", "text", "json")
}

func (f *logFlags) logger(w io.Writer) (*slog.Logger, error) {
	level, err := logging.ParseLevel(f.level)
	if err != nil {
		return nil, usageErrorf("--log-level: %w", err)
	}
	format, err := logging.ParseFormat(f.format)
	if err != nil {
		return nil, usageErrorf("--log-format: %w", err)
	}
	return logging.New(w, format, level), nil
}
