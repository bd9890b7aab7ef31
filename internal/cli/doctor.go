package cli

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/internal/doctor"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

func newDoctorCommand(a *app) *cobra.Command {
	var (
		config, role, redisUser string
		asJSON, grants, quiet   bool
		owner                   bool
	)
	cmd := &cobra.Command{
		Use:   "doctor --config FILE",
		Short: "Look at Postgres and Redis for what would keep the daemon from working well",
		Long: `Looks at both servers with the accounts that the file names, and says what is wrong
with the SQL, the ACL line or the setting that mends it: settings, rights (for_each
queries are explained, Redis commands are tried on keys that are not there), the
publication, the tables' columns and replica identities, the slot and the WAL that it
keeps, eviction, clocks. Nothing is changed anywhere.

  ok       looked at, and good          widens   invalidates more than it needs to
  notice   worth knowing                warning  works, until something else goes wrong
  skipped  could not be looked at       fatal    the daemon refuses to start, or would miss changes

--print-grants asks no server: it prints the Postgres role and the Redis user with no
more rights than the daemon needs for this file. It changes no table's owner, unless
--owner is given as well.

Exits with 0 when nothing was found (notices are nothing), with 2 when something was,
with 69 when a server is not there (the other one is looked at all the same), with 78
for a faulty file.`,
		Example: `  cdc-invalidator doctor --config mappings.yaml
  cdc-invalidator doctor --config mappings.yaml --json | jq '.groups[].checks[] | select(.severity == "fatal")'
  cdc-invalidator doctor --config mappings.yaml --print-grants --role invalidator --redis-user invalidator`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case config == "":
				return usageErrorf("--config is needed: the file that says which changes make which keys stale")
			case !grants && (role != "" || redisUser != "" || owner):
				return usageErrorf("--role, --redis-user and --owner go with --print-grants")
			}
			load := mapping.Load
			if grants {
				load = mapping.LoadOffline // they are printed before the accounts in the URLs exist
			}
			file, err := load(config)
			if err != nil {
				return err
			}
			plan, err := mapping.Compile(file)
			if err != nil {
				return err
			}
			if grants {
				return a.printGrants(doctor.NewGrants(file, plan, doctor.GrantOptions{Role: role, RedisUser: redisUser, Owner: owner}), asJSON)
			}
			// What is wrong with the file is no finding about a server.
			if err := errors.Join(replication.CheckURL(file.Source.URL.Reveal()), sink.CheckURL(file.Redis.URL.Reveal())); err != nil {
				return err
			}
			logRedisTo(slog.New(slog.DiscardHandler)) // what it has to say is in the report
			progress := progressLine{out: a.stderr, on: canRewrite(a.stderr)}
			report := doctor.Run(cmd.Context(), doctor.Options{File: file, Plan: plan, Progress: progress.show})
			progress.clear()
			if asJSON {
				err = a.printJSON(report)
			} else {
				err = printReport(a.stdout, report, quiet)
			}
			switch {
			case err != nil:
				return err
			case len(report.Unreachable) > 0:
				return &ExitError{Code: exitUnavailable}
			case report.Findings > 0:
				return &ExitError{Code: exitDifferences}
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&config, "config", "c", "", "the mappings file")
	fl.BoolVar(&asJSON, "json", false, "print JSON")
	fl.BoolVarP(&quiet, "quiet", "q", false, "leave out what is ok")
	fl.BoolVar(&grants, "print-grants", false, "print the least-privilege accounts instead; needs no network")
	fl.StringVar(&role, "role", "", "with --print-grants: name of the Postgres role (default: the one in source.url)")
	fl.StringVar(&redisUser, "redis-user", "", "with --print-grants: name of the Redis user (default: the one in redis.url)")
	fl.BoolVar(&owner, "owner", false, "with --print-grants: make the role the owner of the mapped tables, so that it may create the publication; takes them from their owner")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
	return cmd
}

func (a *app) printGrants(g doctor.Grants, asJSON bool) error {
	if asJSON {
		return a.printJSON(g)
	}
	_, err := fmt.Fprintf(a.stdout, "%s\n\n-- In redis-cli, as an administrator, on every node; then ACL SAVE, or CONFIG REWRITE.\n%s\n", g.Postgres, g.Redis)
	return err
}

func printReport(w io.Writer, r *doctor.Report, quiet bool) error {
	var b strings.Builder
	for _, g := range r.Groups {
		head := false
		for _, c := range g.Checks {
			if quiet && c.Severity == doctor.OK {
				continue
			}
			if !head {
				head = true
				fmt.Fprintf(&b, "%s\n", g.Name)
			}
			subject := c.Subject
			if subject != "" {
				subject += ": "
			}
			fmt.Fprintf(&b, "  %-8s %s%s\n", c.Severity, subject, c.Message)
			if c.Fix != "" {
				fmt.Fprintf(&b, "%s\n", indentBy(c.Fix, "             "))
			}
		}
	}
	switch {
	case len(r.Unreachable) > 0:
		fmt.Fprintf(&b, "\nNot there: %s. %s in what could be looked at.\n", strings.Join(r.Unreachable, ", "), findings(r.Findings))
	case r.Findings > 0:
		fmt.Fprintf(&b, "\n%s.\n", findings(r.Findings))
	default:
		b.WriteString("\nNothing found.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func findings(n int) string {
	if n == 1 {
		return "1 finding"
	}
	return fmt.Sprintf("%d findings", n)
}

// progressLine says on a terminal what is going on, on one line that goes again.
type progressLine struct {
	out   io.Writer
	on    bool
	drawn int
}

func (p *progressLine) show(what string) {
	if p.on {
		p.clear()
		line := "looking at " + what + " ..."
		p.drawn = len(line)
		fmt.Fprint(p.out, line)
	}
}

func (p *progressLine) clear() {
	if p.drawn > 0 {
		fmt.Fprint(p.out, "\r"+strings.Repeat(" ", p.drawn)+"\r")
		p.drawn = 0
	}
}
