package replication

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Names of the replication connections, in pg_stat_replication.
const (
	streamName = "cdc-invalidator"
	tapName    = "cdc-invalidator tap"
)

// Bounds of a StandbyWatch: a commit that waits for us waits for the first, and for the
// status update after it.
const (
	standbyInterval = 500 * time.Millisecond
	standbyUnknown  = 2 * time.Second  // without an answer, the setting counts as one that names us
	standbySilence  = 10 * time.Second // and after that it is a condition
	standbyNudge    = 5 * time.Second  // after the setting began to name us, see nudge
)

// StandbyWatch looks whether synchronous_standby_names names our replication connection.
// With '*', or ANY 1 (*), it does. Commits then wait until we have confirmed them, and we
// confirm only what is visible, which they are not before: for ever.
//
// A connection that reports no flushed position is no candidate, by the server's own rule.
// So while the setting names us the stream goes on and confirms nothing (Withhold), and
// changes invalidate as ever; what it costs is WAL, which the slot keeps meanwhile. To
// confirm and take it back would release commits that no standby has.
//
// The setting is asked, and not pg_stat_replication, whose sync_state a role without
// pg_read_all_stats does not see even of itself.
type StandbyWatch struct {
	o StandbyWatchOptions

	mu      sync.Mutex
	looked  time.Time // of the last answer
	setting string
	named   bool
	since   time.Time
	started time.Time
}

// StandbyWatchOptions configures a StandbyWatch.
type StandbyWatchOptions struct {
	Connect func(context.Context) (*pgx.Conn, error)
	Logger  *slog.Logger
}

// NewStandbyWatch makes a watch; Run runs it. Until its first look nothing is confirmed.
func NewStandbyWatch(o StandbyWatchOptions) *StandbyWatch {
	return &StandbyWatch{o: o, since: time.Now(), started: time.Now()}
}

// Withhold says whether nothing may be confirmed now.
func (w *StandbyWatch) Withhold() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.named || time.Since(w.looked) > standbyUnknown
}

// Run looks at the setting until ctx ends and returns nil.
func (w *StandbyWatch) Run(ctx context.Context) error {
	w.mu.Lock()
	w.started = time.Now()
	w.mu.Unlock()
	pace := func() time.Duration { return standbyInterval }
	repeatForever(ctx, w.o.Connect, w.look, pace, nil, func(err error, next time.Duration) {
		w.o.Logger.Warn("cannot read synchronous_standby_names", "error", err, "retry_in", next)
	})
	return nil
}

func (w *StandbyWatch) look(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, standbyUnknown)
	defer cancel()
	setting, err := readStandbyNames(ctx, conn)
	if err != nil {
		return err
	}
	named := NamesUs(setting)
	w.note(setting, named)
	w.mu.Lock()
	began := w.since
	w.mu.Unlock()
	if named && time.Since(began) < standbyNudge {
		return nudge(ctx, conn)
	}
	return nil
}

// nudge writes a record that waits for nobody. A commit that began to wait for us is not
// looked at again when we stop being a candidate, only when another standby reports a
// flushed position; an idle one does that after wal_receiver_status_interval, 10 s.
func nudge(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `SELECT set_config('synchronous_commit', 'local', true), pg_current_xact_id()`)
	return serverError("write a record for the standbys", err, "")
}

func (w *StandbyWatch) note(setting string, named bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if named != w.named {
		w.since = time.Now()
		if named {
			w.o.Logger.Warn("synchronous_standby_names names this connection: nothing is confirmed, so that no commit waits for it", "setting", setting)
		} else {
			w.o.Logger.Info("synchronous_standby_names does not name this connection any more", "setting", setting)
		}
	}
	w.setting, w.named, w.looked = setting, named, time.Now()
}

// Status is not OK while the setting names us.
func (w *StandbyWatch) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	if age := time.Since(w.looked); age > standbySilence && time.Since(w.started) > standbySilence {
		return Status{Since: w.looked, Fix: "see that the source accepts ordinary connections from the daemon's role",
			Reason: "synchronous_standby_names could not be read for a while, so nothing is confirmed: commits might wait for it. The slot keeps WAL meanwhile"}
	}
	if w.looked.IsZero() {
		return Status{Unknown: true, Since: w.since, Reason: "synchronous_standby_names has not been read yet"}
	}
	if !w.named {
		return Status{OK: true, Since: w.since}
	}
	return Status{Since: w.since, Fix: StandbyNamesFix(w.setting, nil),
		Reason: fmt.Sprintf("synchronous_standby_names = '%s' names the daemon's own connection: it confirms nothing, so that no commit waits for it, and the slot keeps WAL until that is mended", w.setting)}
}

func readStandbyNames(ctx context.Context, conn *pgx.Conn) (setting string, err error) {
	err = conn.QueryRow(ctx, `SELECT current_setting('synchronous_standby_names')`).Scan(&setting)
	return setting, serverError("ask for synchronous_standby_names", err, "")
}

// NamesUs says whether a value of synchronous_standby_names names one of our connections.
// The server compares without regard to case, and takes * for every name.
func NamesUs(setting string) bool {
	for _, name := range standbyNames(setting) {
		if name == "*" || strings.EqualFold(name, streamName) || strings.EqualFold(name, tapName) {
			return true
		}
	}
	return false
}

// standbyNames are the words of the setting: names, and FIRST, ANY and numbers with them,
// which are no names of ours.
func standbyNames(setting string) (names []string) {
	var word strings.Builder
	quoted, any := false, false
	end := func() {
		if any {
			names = append(names, word.String())
		}
		word.Reset()
		any = false
	}
	for i := 0; i < len(setting); i++ {
		switch c := setting[i]; {
		case quoted && c == '"' && i+1 < len(setting) && setting[i+1] == '"':
			word.WriteByte(c)
			i++
		case c == '"':
			quoted, any = !quoted, true
		case !quoted && strings.IndexByte(" \t\r\n,()", c) >= 0:
			end()
		default:
			word.WriteByte(c)
			any = true
		}
	}
	end()
	return names
}

// StandbyNamesFix is what takes us out of the setting: standbys are the names that stay.
func StandbyNamesFix(setting string, standbys []string) string {
	names := "<the standbys' application_name, one by one>"
	if len(standbys) > 0 {
		quoted := make([]string, len(standbys))
		for i, s := range standbys {
			quoted[i] = quoteIdentifier(s)
		}
		names = strings.Join(quoted, ", ")
	}
	return "ALTER SYSTEM SET synchronous_standby_names = " + quoteLiteral(strings.ReplaceAll(setting, "*", names)) + "; SELECT pg_reload_conf();"
}

// StandbyProblem says what synchronous_standby_names would do to commits, nil when nothing.
func StandbyProblem(ctx context.Context, conn *pgx.Conn) (*ConfigError, error) {
	setting, err := readStandbyNames(ctx, conn)
	if err != nil || !NamesUs(setting) {
		return nil, err
	}
	// Those that a role without pg_read_all_stats does not see have no name here.
	rows, err := conn.Query(ctx, `
		SELECT DISTINCT application_name FROM pg_stat_replication r
		WHERE application_name <> '' AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')
		ORDER BY 1`)
	if err != nil {
		return nil, serverError("look up the standbys", err, "")
	}
	standbys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, serverError("look up the standbys", err, "")
	}
	return &ConfigError{Op: "check synchronous_standby_names", Problem: "'" + setting + "' names every connection that replicates, the daemon's too. " +
		"It confirms nothing while that is so, for commits would wait for it, and its slot keeps WAL until the disk is full", Fix: StandbyNamesFix(setting, standbys)}, nil
}
