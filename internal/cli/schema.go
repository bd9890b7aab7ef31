package cli

import (
	"github.com/spf13/cobra"

	cdcinvalidator "github.com/cdc-invalidator/cdc-invalidator"
)

func newSchemaCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "schema [mappings|test]",
		Short: "Print the JSON schema of mappings files, or of test files, for editors",
		Long: `Prints the JSON schema (draft 07) of mappings files, which is the default, or of the
files that 'cdc-invalidator test' runs. An editor with a YAML language server then
completes fields, explains them and marks what is misplaced. It takes the schema from
the first line of the file:

  # yaml-language-server: $schema=./mappings.schema.json

A schema sees the structure only. Whether families, templates, predicates and queries
are right is said by 'cdc-invalidator validate'.`,
		Example: `  cdc-invalidator schema > mappings.schema.json
  cdc-invalidator schema test > mappings_test.schema.json`,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"mappings", "test"},
		RunE: func(_ *cobra.Command, args []string) error {
			schema := cdcinvalidator.MappingsSchema()
			if len(args) == 1 && args[0] == "test" {
				schema = cdcinvalidator.TestsSchema()
			}
			_, err := a.stdout.Write(schema)
			return err
		},
	}
}
