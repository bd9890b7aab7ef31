package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// validation is what `validate --json` prints for each file.
type validation struct {
	File     string         `json:"file"`
	OK       bool           `json:"ok"`
	Faults   mapping.Faults `json:"faults"`
	Families int            `json:"families,omitempty"`
	Tables   int            `json:"tables,omitempty"`
}

func newValidateCommand(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "validate FILE...",
		Short: "Check mappings files, without a network",
		Long: `Reads mappings files and says all that is wrong with them at once, each with
file:line:col, the line, and what would be right. Nothing is connected to: whether
the tables and columns are there is checked by run, when it starts.

Variables that source.url and redis.url refer to may be unset here; run needs them.

Exits with 0 if all files are right, with 78 if not.`,
		Example: `  cdc-invalidator validate mappings.yaml
  cdc-invalidator validate --json mappings.yaml | jq '.[].faults'`,
		Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(_ *cobra.Command, files []string) error {
			results := make([]validation, len(files))
			bad := false
			for i, file := range files {
				results[i] = validate(file)
				bad = bad || !results[i].OK
			}
			if err := a.printValidations(results, asJSON); err != nil {
				return err
			}
			if bad {
				return &ExitError{Code: exitConfig}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON: a list with an object for each file")
	return cmd
}

func validate(path string) validation {
	v := validation{File: path, Faults: mapping.Faults{}}
	fail := func(err error) validation {
		if path := (*fs.PathError)(nil); errors.As(err, &path) {
			err = path.Err // the path is in front already
		}
		v.Faults = append(v.Faults, mapping.Fault{File: path, Message: err.Error()})
		return v
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fail(err)
	}
	file, err := mapping.Parse(path, data, offlineEnv())
	if err != nil {
		if !errors.As(err, &v.Faults) {
			return fail(err)
		}
		return v
	}
	plan, err := mapping.Compile(file)
	if err != nil {
		return fail(err)
	}
	v.OK = true
	v.Families, v.Tables = len(plan.Families()), len(plan.Tables())
	return v
}

func (a *app) printValidations(results []validation, asJSON bool) error {
	if asJSON {
		return a.printJSON(results)
	}
	for _, v := range results {
		for _, f := range v.Faults {
			if _, err := fmt.Fprintln(a.stdout, f); err != nil {
				return err
			}
		}
		verdict := fmt.Sprintf("ok, %d families, %d tables", v.Families, v.Tables)
		switch n := len(v.Faults); {
		case n == 1:
			verdict = "1 fault"
		case n > 1:
			verdict = fmt.Sprintf("%d faults", n)
		}
		if _, err := fmt.Fprintf(a.stdout, "%s: %s\n", v.File, verdict); err != nil {
			return err
		}
	}
	return nil
}
