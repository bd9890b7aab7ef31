package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// testReport is what `test --json` prints for each file.
type testReport struct {
	File     string               `json:"file"`
	Mappings string               `json:"mappings,omitempty"`
	OK       bool                 `json:"ok"`
	Faults   mapping.Faults       `json:"faults"`
	Passed   int                  `json:"passed"`
	Failed   int                  `json:"failed"`
	Cases    []mapping.TestResult `json:"cases"`
	Untested []string             `json:"untested"` // mappings that no case reaches
}

func newTestCommand(a *app) *cobra.Command {
	var asJSON, verbose bool
	cmd := &cobra.Command{
		Use:   "test FILE...",
		Short: "Run mapping tests: a row change, and the keys it must make stale",
		Long: `Runs the cases of test files, without any server: each takes one change through the
mappings and compares what becomes stale with what the case expects. The comparison is
exact: a key too many fails a case like a key too few.

A test file names its mappings file and has a list of cases:

  mappings: mappings.yaml                    # relative to this file
  cases:
    - name: a new address makes both addresses stale
      table: public.users
      action: update                         # insert, update, delete or truncate
      old: {id: 1, tenant_id: 7, email: a@x} # rows, as the table has them
      new: {id: 1, tenant_id: 7, email: b@x}
      keys: ["t:7:user:1", "t:7:user-by-email:a@x", "t:7:user-by-email:b@x"]

A case also has versions, purges, widened and lookups where there are such; identity
says how much of the old row the log carries (full unless the file says otherwise); and
a message has content instead of rows. docs/mappings.md explains all of it, and
'cdc-invalidator schema test' prints the JSON schema for editors.

Exits with 0 if all cases pass, with 2 if one fails, with 78 if a file is faulty.`,
		Example: `  cdc-invalidator test mappings_test.yaml
  cdc-invalidator test --verbose tests/*.yaml
  cdc-invalidator test --json mappings_test.yaml | jq '.[].cases[] | select(.ok | not)'`,
		Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(_ *cobra.Command, files []string) error {
			reports := make([]testReport, len(files))
			code := exitOK
			for i, file := range files {
				reports[i] = runTests(file)
				switch r := reports[i]; {
				case len(r.Faults) > 0:
					code = exitConfig
				case !r.OK && code == exitOK:
					code = exitDifferences
				}
			}
			var err error
			if asJSON {
				err = a.printJSON(reports)
			} else {
				err = printTests(a.stdout, reports, verbose)
			}
			if err == nil && code != exitOK {
				err = &ExitError{Code: code}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON: a list with an object for each file")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "say of each case what became stale, and which mappings no case tests")
	return cmd
}

func runTests(path string) testReport {
	r := testReport{File: path, Faults: mapping.Faults{}, Cases: []mapping.TestResult{}, Untested: []string{}}
	data, err := os.ReadFile(path)
	if err != nil {
		if path := (*fs.PathError)(nil); errors.As(err, &path) {
			err = path.Err // the path is in front already
		}
		r.Faults = append(r.Faults, mapping.Fault{File: path, Message: err.Error()})
		return r
	}
	tests, err := mapping.ParseTests(path, data, func(named string) (*mapping.Plan, error) {
		if !filepath.IsAbs(named) {
			named = filepath.Join(filepath.Dir(path), named)
		}
		r.Mappings = named
		plan, err := loadPlan(named)
		if path := (*fs.PathError)(nil); errors.As(err, &path) {
			err = fmt.Errorf("%s: %w", named, path.Err)
		}
		return plan, err
	})
	if err != nil {
		if !errors.As(err, &r.Faults) {
			r.Faults = append(r.Faults, mapping.Fault{File: path, Message: err.Error()})
		}
		return r
	}
	for _, c := range tests.Cases {
		result := tests.Run(c)
		r.Cases = append(r.Cases, result)
		if result.OK {
			r.Passed++
		} else {
			r.Failed++
		}
	}
	r.OK = r.Failed == 0
	r.Untested = tests.Untested()
	return r
}

func printTests(w io.Writer, reports []testReport, verbose bool) error {
	var b strings.Builder
	for _, r := range reports {
		for _, f := range r.Faults {
			fmt.Fprintln(&b, f)
		}
		for _, c := range r.Cases {
			if c.OK && !verbose {
				continue
			}
			verdict := "FAIL"
			if c.OK {
				verdict = "ok"
			}
			fmt.Fprintf(&b, "%s:%d:%d: %s  %s (%s)\n", r.File, c.Line, c.Col, verdict, c.Name, c.Subject)
			if c.OK {
				printGot(&b, c.Got)
			}
			for _, d := range c.Diff {
				sign, what := "+", "not expected"
				if d.Missing {
					sign, what = "-", "expected, and did not happen"
				}
				fmt.Fprintf(&b, "    %s %-8s %s  (%s)\n", sign, d.Kind, d.Value, what)
			}
			for _, note := range c.Notes {
				fmt.Fprintf(&b, "      %s\n", note)
			}
		}
		if n := len(r.Faults); n > 0 {
			fmt.Fprintf(&b, "%s: %s, nothing was tested\n", r.File, quantity(n, "fault"))
			continue
		}
		fmt.Fprintf(&b, "%s: %d passed, %d failed", r.File, r.Passed, r.Failed)
		if n := len(r.Untested); n > 0 {
			fmt.Fprintf(&b, "; %s of %s not tested", quantity(n, "mapping"), r.Mappings)
			if verbose {
				b.WriteString(": " + strings.Join(r.Untested, ", "))
			}
		}
		b.WriteString("\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printGot(b *strings.Builder, got mapping.Staleness) {
	nothing := true
	for _, l := range []struct {
		kind   string
		values []string
	}{{"key", got.Keys}, {"version", got.Versions}, {"purge", got.Purges}, {"widened", got.Widened}, {"lookup", got.Lookups}} {
		for _, v := range l.values {
			fmt.Fprintf(b, "      %-8s %s\n", l.kind, v)
			nothing = false
		}
	}
	if nothing {
		b.WriteString("      nothing\n")
	}
}

func quantity(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
