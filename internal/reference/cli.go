package reference

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const generated = "<!-- Made from the code by `go generate ./...`; edits are lost. -->\n"

// cliPage describes all commands on one page, which a browser searches.
func cliPage(root *cobra.Command) []byte {
	var b bytes.Buffer
	b.WriteString(generated + "\n# Commands\n\n")
	commands := available(root)
	for _, c := range commands {
		fmt.Fprintf(&b, "- [`%s`](#%s): %s\n", c.CommandPath(), anchor(c.CommandPath()), c.Short)
	}
	fmt.Fprintf(&b, "\n## %s\n\n", root.CommandPath())
	describe(&b, root)
	for _, c := range commands {
		fmt.Fprintf(&b, "\n## %s\n\n%s.\n\n", c.CommandPath(), c.Short)
		describe(&b, c)
	}
	return b.Bytes()
}

// available are the commands that do something, with those of commands below
// them; cobra's own are left to its help.
func available(parent *cobra.Command) (list []*cobra.Command) {
	for _, c := range parent.Commands() {
		if !c.IsAvailableCommand() || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		if c.Runnable() {
			list = append(list, c)
		}
		list = append(list, available(c)...)
	}
	return list
}

func anchor(heading string) string { return strings.ReplaceAll(strings.ToLower(heading), " ", "-") }

func describe(b *bytes.Buffer, c *cobra.Command) {
	if c.Runnable() {
		// cobra adds [flags] where a command does not show its own.
		fmt.Fprintf(b, "```text\n%s\n```\n\n", c.UseLine())
	}
	fmt.Fprintf(b, "```text\n%s\n```\n\n", strings.TrimSpace(c.Long))
	if c.Example != "" {
		fmt.Fprintf(b, "Examples:\n\n```sh\n%s\n```\n", dedent(c.Example))
	}
	c.InitDefaultHelpFlag()
	var rows []string
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && f.Name != "help" {
			rows = append(rows, flagRow(f))
		}
	})
	if len(rows) > 0 {
		fmt.Fprintf(b, "\n| flag | default | |\n|---|---|---|\n%s\n", strings.Join(rows, "\n"))
	}
}

func flagRow(f *pflag.Flag) string {
	value, usage := pflag.UnquoteUsage(f)
	name := "--" + f.Name
	if f.Shorthand != "" {
		name = "-" + f.Shorthand + ", " + name
	}
	if value != "" {
		name += " " + value
	}
	def := f.DefValue
	switch {
	case def == "" || def == "[]" || f.Value.Type() == "bool" && def == "false":
		def = ""
	default:
		def = "`" + def + "`"
	}
	return fmt.Sprintf("| `%s` | %s | %s |", cell(name), cell(def), cell(usage))
}

// cell keeps a text inside of its cell of a table.
func cell(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "|", `\|`), "\n", " ")
}

// dedent takes off the two blanks with which cobra's examples begin.
func dedent(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimPrefix(line, "  ")
	}
	return strings.Join(lines, "\n")
}
