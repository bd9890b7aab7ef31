package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/scaffold"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

func TestMain(m *testing.M) { servertest.VerifyMain(m) }

// runMain runs one command line as a user would.
func runMain(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = Main(t.Context(), args, strings.NewReader(""), &out, &err)
	return code, out.String(), err.String()
}

func TestUsageErrorsExit64WithAHint(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want []string // in stderr
	}{
		{[]string{"nonsense"}, []string{`unknown command "nonsense"`, "Run 'cdc-invalidator --help'"}},
		{[]string{"versoin"}, []string{"Did you mean this?", "version"}},
		{[]string{"version", "--jsn"}, []string{"unknown flag: --jsn", "Run 'cdc-invalidator version --help'"}},
		{[]string{"version", "extra"}, []string{"extra", "Run 'cdc-invalidator version --help'"}},
		{[]string{"--verbose"}, []string{"unknown flag: --verbose"}},
	} {
		code, out, errOut := runMain(t, tc.args...)
		if code != exitUsage {
			t.Errorf("%v: exit code %d, want %d", tc.args, code, exitUsage)
		}
		if out != "" {
			t.Errorf("%v: wrote to stdout: %q", tc.args, out)
		}
		for _, want := range tc.want {
			if !strings.Contains(errOut, want) {
				t.Errorf("%v: %q is not in stderr: %q", tc.args, want, errOut)
			}
		}
	}
}

func TestNoArgumentsShowsHelpAndFails(t *testing.T) {
	code, out, errOut := runMain(t)
	if code != exitUsage || out != "" || !strings.Contains(errOut, "Available Commands:") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, out, errOut)
	}
}

func TestEveryCommandHasHelpWithAnExample(t *testing.T) {
	a := &app{stdin: strings.NewReader(""), stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Short == "" || !strings.Contains(c.Example, programName+" ") {
			t.Errorf("%s: short help %q, example %q", c.CommandPath(), c.Short, c.Example)
		}
		for _, sub := range c.Commands() {
			if !sub.Hidden {
				visit(sub)
			}
		}
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		code, out, errOut := runMain(t, args...)
		if code != exitOK || errOut != "" || !strings.Contains(out, "Examples:") {
			t.Errorf("%v: exit code %d, stderr %q, stdout %q", args, code, errOut, out)
		}
	}
	visit(a.newRoot())
}

func TestVersion(t *testing.T) {
	code, out, _ := runMain(t, "version")
	if code != exitOK || !strings.HasPrefix(out, "cdc-invalidator ") || !strings.Contains(out, runtime.Version()) {
		t.Errorf("exit code %d: %q", code, out)
	}
	code, out, _ = runMain(t, "version", "--json")
	var b buildInfo
	if err := json.Unmarshal([]byte(out), &b); code != exitOK || err != nil {
		t.Fatalf("exit code %d, %v: %q", code, err, out)
	}
	if b.Version == "" || b.Go != runtime.Version() || b.Platform != runtime.GOOS+"/"+runtime.GOARCH {
		t.Errorf("%+v", b)
	}
}

func TestShellCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		code, out, errOut := runMain(t, "completion", shell)
		if code != exitOK || errOut != "" || !strings.Contains(out, programName) {
			t.Errorf("%s: exit code %d, stderr %q, %d bytes", shell, code, errOut, len(out))
		}
	}
	_, out, _ := runMain(t, "__complete", "ver")
	if !strings.Contains(out, "version") {
		t.Errorf("completing ver: %q", out)
	}
}

func TestExitCodes(t *testing.T) {
	config := &replication.ConfigError{Op: "check the source", Problem: "wal_level is replica", Fix: "ALTER SYSTEM ..."}
	away := &replication.UnavailableError{Op: "connect to the source", Err: &net.OpError{Op: "dial", Err: syscall.ENOENT}}
	for _, tc := range []struct {
		err        error
		code       int
		wantStderr string
	}{
		{nil, exitOK, ""},
		{context.DeadlineExceeded, exitFailed, "cdc-invalidator: context deadline exceeded\n"},
		{&ExitError{Code: exitDifferences}, exitDifferences, ""},
		{&ExitError{Code: exitDifferences, Err: errors.New("3 stale")}, exitDifferences, "cdc-invalidator: 3 stale\n"},
		{usageErrorf("--x: no such x"), exitUsage, "cdc-invalidator: --x: no such x\nRun"},
		{mapping.Faults{{File: "m.yaml", Line: 3, Col: 5, Message: "unknown field"}}, exitConfig, "cdc-invalidator: "},
		{fmt.Errorf("open: %w", &fs.PathError{Op: "open", Path: "m.yaml", Err: fs.ErrNotExist}), exitConfig, "cdc-invalidator: "},
		{&fs.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}, exitFailed, "cdc-invalidator: "},
		{fmt.Errorf("start: %w", config), exitConfig, "cdc-invalidator: start: check the source: wal_level is replica\n  fix: ALTER SYSTEM ..."},
		{fmt.Errorf("start: %w", away), exitUnavailable, "cdc-invalidator: "}, // a Unix socket that is not there is a server that is away
		{errors.Join(away, config), exitConfig, "cdc-invalidator: "},
		{&sink.Error{Op: "apply", Kind: sink.KindConfiguration, Err: errors.New("NOPERM")}, exitConfig, "cdc-invalidator: "},
		{&sink.Error{Op: "apply", Kind: sink.KindUnavailable, Err: errors.New("refused")}, exitUnavailable, "cdc-invalidator: "},
		{&sink.Error{Op: "apply", Kind: sink.KindOther, Err: errors.New("x")}, exitFailed, "cdc-invalidator: "},
	} {
		if got := exitCode(tc.err); got != tc.code {
			t.Errorf("exitCode(%v) = %d, want %d", tc.err, got, tc.code)
		}
		var errOut bytes.Buffer
		a := &app{stdin: strings.NewReader(""), stdout: &bytes.Buffer{}, stderr: &errOut}
		root := a.newRoot()
		cmd := &cobra.Command{Use: "fails", RunE: func(*cobra.Command, []string) error { return tc.err }}
		root.AddCommand(cmd)
		a.finish(cmd)
		if got := a.execute(t.Context(), root, []string{"fails"}); got != tc.code {
			t.Errorf("%v: exit code %d, want %d", tc.err, got, tc.code)
		}
		if !strings.HasPrefix(errOut.String(), tc.wantStderr) || tc.wantStderr == "" && errOut.Len() > 0 {
			t.Errorf("%v: stderr %q, want %q", tc.err, errOut.String(), tc.wantStderr)
		}
	}
}

// A table's name does not reach the terminal as a command to it, nor as a line of its own.
func TestInitSummaryIsPrintable(t *testing.T) {
	got := initSummary("m.yaml", scaffold.Result{LeftOut: []scaffold.LeftOut{{Table: "public.a\x1b[31m\nb", Reason: "no key"}}})
	if want := "m.yaml: 0 families\nleft out, commented in the file:\n  public.a [31m b: no key\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
