package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
)

// maxStatusBody is many times what a daemon answers.
const maxStatusBody = 4 << 20

func newStatusCommand(a *app) *cobra.Command {
	var (
		base    string
		timeout time.Duration
		asJSON  bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the state of a running daemon",
		Long: `Asks a running daemon over HTTP (its --http address) and shows what it follows, how
far it is, how fresh the cache is against each class's budget, what waits, and every
condition with its reason, its fix and since when it is as it is.

Lag in bytes is from the end of the source's log, as of the last heartbeat, to what
Redis has acknowledged. Unconfirmed is what the slot makes Postgres keep: the replay
window, and everything behind it.

Exits with 0 when every condition holds, 2 when one does not, 64 for wrong usage, and 69
when no daemon answers there.`,
		Example: `  cdc-invalidator status
  cdc-invalidator status --url http://10.0.0.5:9464
  cdc-invalidator status --json | jq '.conditions[] | select(.ok | not)'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := statusURL(base)
			if err != nil {
				return err
			}
			if timeout <= 0 {
				return usageErrorf("--timeout must be positive")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			body, st, err := fetchStatus(ctx, u)
			if err != nil {
				return &ExitError{Code: exitUnavailable, Err: err}
			}
			if asJSON {
				_, err = a.stdout.Write(body)
			} else {
				_, err = io.WriteString(a.stdout, statusText(st, u.Redacted()))
			}
			if err == nil && st.Status != "ok" {
				err = &ExitError{Code: exitDifferences}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&base, "url", "http://"+admin.DefaultAddr, "where the daemon serves its status pages")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait for the answer")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, as the daemon serves it at /status")
	return cmd
}

func statusURL(base string) (*url.URL, error) {
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	if _, rest, _ := strings.Cut(base, "://"); strings.ContainsAny(rest[:max(0, strings.LastIndexByte(rest, '@'))], "@/?#") {
		return nil, usageErrorf("--url: it cannot be told where the password ends; write @ / ? # in it as %%40 %%2F %%3F %%23")
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, usageErrorf("--url: want an address such as http://%s", admin.DefaultAddr)
	}
	return u, nil
}

// fetchStatus returns the daemon's answer, as it came and as it is understood.
func fetchStatus(ctx context.Context, u *url.URL) ([]byte, admin.Status, error) {
	var st admin.Status
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.JoinPath("status").String(), nil)
	if err != nil {
		return nil, st, err
	}
	// Of its own: a connection kept open would outlive the command's own use of it.
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		if cause := (*url.Error)(nil); errors.As(err, &cause) {
			err = cause.Err // the URL is named below
		}
		return nil, st, fmt.Errorf("no daemon answers at %s: %w (does it run, and with which --http?)", u.Redacted(), err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxStatusBody))
	if err != nil {
		return nil, st, fmt.Errorf("read the answer of %s: %w", u.Redacted(), err)
	}
	if resp.StatusCode != http.StatusOK || json.Unmarshal(body, &st) != nil || st.Status == "" || len(st.Conditions) == 0 {
		return nil, st, fmt.Errorf("what answers at %s (HTTP %d) is no cdc-invalidator with a /status page", u.Redacted(), resp.StatusCode)
	}
	return body, st, nil
}

func statusText(s admin.Status, at string) string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-13s%s\n", label, fmt.Sprintf(format, args...))
	}
	line("status", "%s", s.Status)
	line("daemon", "%s at %s, pid %d, up %s", strings.TrimSpace(s.Version+" "+shortCommit(s.Commit)), at, s.PID, seconds(s.UptimeSeconds))
	if s.Source.SystemID == "" {
		line("source", "not attached yet (slot %s, publication %s)", s.Source.Slot, s.Source.Publication)
	} else {
		line("source", "Postgres %s, database %s as %s, system %s, timeline %d", s.Source.ServerVersion, s.Source.Database, s.Source.Role, s.Source.SystemID, s.Source.Timeline)
		line("", "slot %s, publication %s, attached since %s", s.Source.Slot, s.Source.Publication, instant(s.Source.AttachedSince))
		line("positions", "received   %s", s.Positions.Received)
		line("", "applied    %-16s  %s behind the log", s.Positions.Applied, bytesText(s.Positions.LagBytes))
		line("", "settled    %-16s  nothing up to it is held back", s.Positions.Settled)
		line("", "confirmed  %-16s  %s kept by Postgres for the slot", s.Positions.Confirmed, bytesText(s.Positions.UnconfirmedBytes))
	}
	if s.Freshness.LagSeconds == nil {
		line("fresh as of", "not known: no heartbeat has come back")
	} else {
		line("fresh as of", "%s, %s ago", instant(s.Freshness.FreshAsOf), seconds(*s.Freshness.LagSeconds))
	}
	for _, c := range s.Freshness.Classes {
		verdict := "not known"
		if c.Within != nil {
			verdict = map[bool]string{true: "kept", false: "BROKEN"}[*c.Within]
		}
		held := ""
		if c.Held != nil {
			held = fmt.Sprintf(", %d held back", *c.Held)
			if *c.Held > 0 && c.HeldOldestSeconds != nil {
				held += ", the oldest for " + seconds(*c.HeldOldestSeconds)
			}
		}
		line("", "%-16s budget %-8s %s (%d families%s)", c.Name, seconds(c.StalenessSeconds), verdict, c.Families, held)
	}
	line("queue", "%d invalidations, %s", s.Queue.Invalidations, bytesText(int64(s.Queue.Bytes)))
	line("redis", "%s, state %s%s", s.Redis.Kind, orUnknown(s.Redis.State), parenthesis(s.Redis.Reason))
	for _, n := range s.Redis.Primaries {
		line("", "%s, run id %.8s", n.Addr, n.RunID)
	}
	c := s.Counters
	line("counters", "%d transactions, %d rows, %d invalidations, %d applied", c.Transactions, c.Rows, c.Invalidations, c.Applied)
	line("", "widened %s, %d lookups refused, %d gaps, %d sessions ended", widenedText(c.Widened), c.LookupsRefused, c.Gaps, c.SessionsEnded)
	label := "conditions"
	for _, cond := range s.Conditions {
		verdict := "ok  "
		switch {
		case cond.State == admin.StateUnknown:
			verdict = "?   "
		case !cond.OK:
			verdict = "FAIL"
		}
		since := ""
		if !cond.Since.IsZero() {
			since = "since " + instant(cond.Since)
		}
		if cond.State == admin.StateUnknown {
			since = "not known " + since
		}
		line(label, "%s  %-16s  %s", verdict, cond.Name, since)
		label = ""
		if cond.Reason != "" {
			line("", "      %s", indent(cond.Reason))
		}
		if cond.Fix != "" {
			line("", "      fix: %s", indent(cond.Fix))
		}
	}
	// No trailing blanks, which a since that is not known leaves.
	lines := strings.Split(b.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func shortCommit(c string) string {
	if c == "" {
		return ""
	}
	return "(" + c[:min(12, len(c))] + ")"
}

func instant(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// seconds is a duration as people read it: three digits are enough.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

func bytesText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, units := float64(n)/unit, "KMGTP"
	for len(units) > 1 && f >= unit {
		f, units = f/unit, units[1:]
	}
	return fmt.Sprintf("%.1f %ciB", f, units[0])
}

func orUnknown(s string) string {
	if s == "" {
		return "not known"
	}
	return s
}

func parenthesis(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

func widenedText(by map[string]int64) string {
	var total int64
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(by)) {
		total += by[reason]
		parts = append(parts, fmt.Sprintf("%s %d", reason, by[reason]))
	}
	return fmt.Sprint(total) + parenthesis(strings.Join(parts, ", "))
}

// indent keeps the further lines of a text below its first.
func indent(s string) string { return strings.ReplaceAll(s, "\n", "\n"+strings.Repeat(" ", 19)) }
