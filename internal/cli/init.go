package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/internal/scaffold"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

type initFlags struct {
	url, output, tenant string
	schemas, exclude    []string
	force               bool
}

func newInitCommand(a *app) *cobra.Command {
	var f initFlags
	cmd := &cobra.Command{
		Use:   "init [--from-db URL] [--output FILE]",
		Short: "Write a first mappings file from an existing database",
		Long: `Reads the catalogs of a database, and no row, and writes a commented mappings file: a
family of cached values for each table by its primary key, suggestions for what foreign
keys connect (commented out), the size of each table, and what its replica identity is
and would have to be. The file is valid as it stands, and a beginning: the templates of
the keys have to become those that your application uses.

Tables with a column tenant_id (or what --tenant-column says) get templates with a
tenant. A table that cannot be mapped as it is, such as one without a primary key, is
commented out, with what mends it. Of a partitioned table the root is written.

The role needs to connect, and no right on any table. Neither the URL nor anything
else that is secret is written: the file says ${DATABASE_URL} and ${REDIS_URL}.`,
		Example: `  cdc-invalidator init --from-db postgres://app@localhost/shop --output mappings.yaml
  DATABASE_URL=postgres://app:secret@localhost/shop cdc-invalidator init -o mappings.yaml
  cdc-invalidator init --schema public --schema billing --exclude 'audit_*' --exclude public.sessions`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runInit(cmd, a, f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.url, "from-db", "", "URL of the database; without it, the environment variable DATABASE_URL")
	fl.StringVarP(&f.output, "output", "o", "-", "the file to write; - is stdout")
	fl.BoolVar(&f.force, "force", false, "replace the file if it is there")
	fl.StringArrayVar(&f.schemas, "schema", nil, "only this schema; may be given several times")
	fl.StringArrayVar(&f.exclude, "exclude", nil, "leave out tables by name or schema.name, with * and ?; may be given several times")
	fl.StringVar(&f.tenant, "tenant-column", "tenant_id", "column that says whose a row is; empty for none")
	_ = cmd.MarkFlagFilename("output", "yaml", "yml")
	return cmd
}

func runInit(cmd *cobra.Command, a *app, f initFlags) error {
	from := "--from-db"
	if !cmd.Flags().Changed("from-db") {
		f.url, from = os.Getenv("DATABASE_URL"), "DATABASE_URL"
	}
	switch {
	case f.url == "" && from == "--from-db":
		return usageErrorf("--from-db is empty: give the database's URL, or leave the flag out for the environment variable DATABASE_URL")
	case f.url == "":
		return usageErrorf("--from-db is needed, or the environment variable DATABASE_URL")
	}
	for _, pattern := range f.exclude {
		if _, err := path.Match(pattern, ""); err != nil {
			return usageErrorf("--exclude %q: %w", pattern, err)
		}
	}
	toFile := f.output != "-"
	if toFile && !f.force {
		if _, err := os.Lstat(f.output); err == nil {
			return exists(f.output)
		}
	}
	ctx := cmd.Context()
	conn, err := replication.ConnectControl(ctx, f.url, "init")
	if err != nil {
		return replication.GivenAs(from, err)
	}
	defer replication.CloseControl(ctx, conn)
	result, err := scaffold.Generate(ctx, conn, scaffold.Options{Schemas: f.schemas, Exclude: f.exclude, TenantColumn: f.tenant})
	if err != nil {
		return err
	}
	if toFile {
		err = writeNew(f.output, result.YAML, f.force)
	} else {
		_, err = a.stdout.Write(result.YAML)
	}
	if err != nil {
		return err
	}
	fmt.Fprint(a.stderr, initSummary(f.output, result))
	return nil
}

func exists(file string) error {
	return usageErrorf("--output %s: it is there already; --force replaces it", file)
}

func writeNew(file string, data []byte, replace bool) error {
	mode := os.O_EXCL
	if replace {
		mode = os.O_TRUNC
	}
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|mode, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return exists(file)
	}
	if err == nil {
		_, err = out.Write(data)
		err = errors.Join(err, out.Close())
	}
	if err != nil {
		return fmt.Errorf("write the mappings: %w", err)
	}
	return nil
}

func initSummary(output string, r scaffold.Result) string {
	var b strings.Builder
	if output == "-" {
		output = "mappings"
	}
	families := "families"
	if r.Families == 1 {
		families = "family"
	}
	fmt.Fprintf(&b, "%s: %d %s\n", output, r.Families, families)
	if len(r.LeftOut) > 0 {
		b.WriteString("left out, commented in the file:\n")
		for _, l := range r.LeftOut {
			fmt.Fprintf(&b, "  %s: %s\n", strings.ReplaceAll(l.Table, "\n", " "), l.Reason)
		}
	}
	if len(r.Wide) > 0 {
		fmt.Fprintf(&b, "need another replica identity to be exact, see the file: %s\n", strings.Join(r.Wide, ", "))
	}
	// Names come from the database: none of them writes to the terminal by itself.
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == '\n' {
			return r
		}
		return ' '
	}, b.String())
}
