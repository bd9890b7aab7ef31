package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

type explainFlags struct {
	config, table, action string
	before, after         string // JSON
	identity              []string
	json                  bool
}

func newExplainCommand(a *app) *cobra.Command {
	var f explainFlags
	cmd := &cobra.Command{
		Use:   "explain --config FILE --table TABLE --action ACTION [--old JSON] [--new JSON]",
		Short: "Show what a change would invalidate, and why",
		Long: `Takes a change through the mappings without any server and shows each step: which
mappings count it, what their predicates say, which image gives which key, what is
widened because a value would not be in the log, and what keeps each invalidation
inside of its tenant.

--old and --new are the row before and after, as JSON objects of columns. An insert has
--new only, a delete --old only. A column that --new leaves out stands for a TOASTed
value that the update did not change.

--identity is the table's replica identity: full (the default here), or the columns of
the key or index that it is, which is all that the log then carries of the old row.`,
		Example: `  cdc-invalidator explain --config mappings.yaml --table public.users --action update \
    --old '{"id": 1, "tenant_id": 7, "email": "a@x"}' --new '{"id": 1, "tenant_id": 7, "email": "b@x"}'
  cdc-invalidator explain -c mappings.yaml --table public.users --action delete --identity id --old '{"id": 1}' --json`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return runExplain(a, f) },
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.config, "config", "c", "", "the mappings file")
	fl.StringVar(&f.table, "table", "", "schema.table")
	fl.StringVar(&f.action, "action", "", "insert, update or delete")
	fl.StringVar(&f.before, "old", "", "the row before, a JSON object")
	fl.StringVar(&f.after, "new", "", "the row after, a JSON object")
	fl.StringSliceVar(&f.identity, "identity", []string{"full"}, "full, or the columns of the replica identity")
	fl.BoolVar(&f.json, "json", false, "print JSON")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
	_ = cmd.RegisterFlagCompletionFunc("action", cobra.FixedCompletions([]string{"insert", "update", "delete"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func runExplain(a *app, f explainFlags) error {
	if f.config == "" || f.table == "" || f.action == "" {
		return usageErrorf("--config, --table and --action are needed")
	}
	plan, err := loadPlan(f.config)
	if err != nil {
		return err
	}
	schema, table, ok := strings.Cut(f.table, ".")
	if !ok {
		return usageErrorf("--table %s: name the schema too, for example public.%s", f.table, f.table)
	}
	i := slices.IndexFunc(plan.Tables(), func(u mapping.TableUse) bool { return u.Schema == schema && u.Table == table })
	if i < 0 {
		var known []string
		for _, u := range plan.Tables() {
			known = append(known, u.Schema+"."+u.Table)
		}
		return usageErrorf("--table %s: no mapping is for this table; the mapped ones are %s", f.table, strings.Join(known, ", "))
	}
	rel, ch, err := exampleChange(f, plan.Tables()[i])
	if err != nil {
		return err
	}
	explanations := plan.Bind(rel).Explain(ch)
	if f.json {
		return a.printJSON(explanations)
	}
	printExplanations(a.stdout, f, explanations)
	return nil
}

// exampleChange builds the change as the log would carry it.
func exampleChange(f explainFlags, use mapping.TableUse) (*decoder.Relation, *decoder.Change, error) {
	action, needOld, needNew := decoder.Update, true, true
	switch f.action {
	case "insert":
		action, needOld = decoder.Insert, false
	case "update":
	case "delete":
		action, needNew = decoder.Delete, false
	default:
		return nil, nil, usageErrorf("--action %s: want insert, update or delete", f.action)
	}
	before, err := jsonRow("--old", f.before, needOld, f.action)
	if err != nil {
		return nil, nil, err
	}
	after, err := jsonRow("--new", f.after, needNew, f.action)
	if err != nil {
		return nil, nil, err
	}
	x := mapping.Example{Schema: use.Schema, Table: use.Table, Action: action, Identity: f.identity, Old: before, New: after}
	if slices.Equal(f.identity, []string{"full"}) {
		x.Identity = nil
	}
	rel, ch, err := x.Change(use.Columns)
	if err != nil {
		return nil, nil, usageErrorf("--%w", err)
	}
	return rel, ch, nil
}

func jsonRow(flag, text string, wanted bool, action string) (map[string]any, error) {
	switch {
	case !wanted && text != "":
		return nil, usageErrorf("%s does not go with --action %s", flag, action)
	case !wanted:
		return nil, nil
	case text == "":
		return nil, usageErrorf("--action %s needs %s, a JSON object of columns", action, flag)
	}
	malformed := usageErrorf("%s is not a JSON object of columns", flag)
	if !json.Valid([]byte(text)) {
		return nil, malformed
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if begin, err := d.Token(); err != nil || begin != json.Delim('{') {
		return nil, malformed
	}
	row := map[string]any{}
	for d.More() { // name by name: of two that are the same the library would take the last
		name, err := d.Token()
		if err != nil {
			return nil, malformed
		}
		column := name.(string) // names are, in what is valid
		var value any
		if err := d.Decode(&value); err != nil {
			return nil, malformed
		}
		if _, twice := row[column]; twice {
			return nil, usageErrorf("%s has column %s twice", flag, column)
		}
		switch value.(type) {
		case []any, map[string]any:
			return nil, usageErrorf("%s: column %s: a JSON array or object is not the text of a column: write what Postgres prints for it, as a string: \"{1,2}\" for an array, \"[1, 2]\" for jsonb", flag, column)
		}
		row[column] = value
	}
	return row, nil
}

func printExplanations(w io.Writer, f explainFlags, all []mapping.Explanation) {
	fmt.Fprintf(w, "%s of %s, replica identity %s\n", f.action, f.table, strings.Join(f.identity, ","))
	for _, x := range all {
		fmt.Fprintf(w, "\n%s (%s:%d)\n", x.Mapping, f.config, x.Line)
		if x.Predicate != "" {
			fmt.Fprintf(w, "  predicate  %s: %s\n", x.Predicate, x.Verdict)
		}
		if x.Error != "" {
			fmt.Fprintf(w, "             %s\n", x.Error)
		}
		if !x.Counts {
			fmt.Fprintf(w, "  does not count: %s\n", x.Because)
			continue
		}
		if x.Because != "" {
			fmt.Fprintf(w, "  counts: %s\n", x.Because)
		}
		for _, k := range x.Keys {
			what := k.Key
			switch k.Op {
			case "purge":
				what = "the whole family"
				if k.Tenant != nil {
					what += " of the tenant"
				}
			case "lookup":
				what = k.SQL
			}
			fmt.Fprintf(w, "  %-10s %s  %s  (%s image, class %s; %s)\n", k.Op, k.Family, what, k.Image, k.Class, k.Guard)
			for i, p := range k.Params {
				if p == nil {
					fmt.Fprintf(w, "             $%d = NULL\n", i+1)
				} else {
					fmt.Fprintf(w, "             $%d = %s\n", i+1, *p)
				}
			}
		}
		for _, reason := range x.Widened {
			fmt.Fprintf(w, "  widened: %s\n", reason)
		}
	}
}
