package replication

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

func TestNamesUs(t *testing.T) {
	for setting, want := range map[string]bool{
		"": false, "*": true, "FIRST 1 (*)": true, "ANY 1 (*)": true, "2 (s1, *)": true, `"*"`: true, "s1, s2": false, "FIRST 1 (s1, s2)": false,
		`ANY 2 ("a b", s2)`: false, `"cdc-invalidator"`: true, `FIRST 1 (s1, "CDC-Invalidator")`: true, `"cdc-invalidator tap"`: true, `"cdc-invalidator 2"`: false,
		`"a""*"`: false, `any`: false, " * ": true, `s1,*`: true,
	} {
		if got := NamesUs(setting); got != want {
			t.Errorf("%s: %v", setting, got)
		}
	}
	if got := standbyNames(`ANY 2 ("a "" b", s2)`); !slices.Equal(got, []string{"ANY", "2", `a " b`, "s2"}) {
		t.Errorf("%q", got)
	}
}

// The application's commits wait for the standby that is there, and never for us, whether
// the setting names us when we come or later. What was withheld is confirmed once it does not.
func TestNoCommitWaitsForTheStream(t *testing.T) {
	t.Parallel()
	for _, setting := range []string{"*", "FIRST 1 (*)", "ANY 1 (*)", "FIRST 2 (*)"} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			primary := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
			db := servertest.NewDatabase(t, primary, "app")
			db.Exec(t, "CREATE TABLE t (id int PRIMARY KEY)", "CREATE PUBLICATION pub FOR TABLE t", createSlotSQL("s"))
			logger := controlLogger(t)
			w := NewStandbyWatch(StandbyWatchOptions{Logger: logger, Connect: func(ctx context.Context) (*pgx.Conn, error) { return ConnectControl(ctx, db.URL, "test") }})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() { _ = w.Run(ctx) }()
			open := func() *Stream {
				t.Helper()
				s, err := OpenStream(t.Context(), StreamOptions{URL: db.URL, Slot: "s", Publication: "pub", StatusInterval: 200 * time.Millisecond, Withhold: w.Withhold, Logger: logger})
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			// Confirms all it gets, as the daemon does when all is visible and applied.
			follow := func(s *Stream) (stop func()) {
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					for s.Fill(ctx) == nil {
						for {
							if _, ok, err := s.Next(); err != nil || !ok {
								break
							}
						}
						s.Confirm(s.ReceivedLSN())
					}
				}()
				return func() { cancel(); <-ended; s.Close() }
			}
			stop := follow(open()) // before the standby: the first of equal priority is the synchronous one
			servertest.Standby(t, primary, localserver.PostgresOptions{})
			if setting == "FIRST 2 (*)" {
				servertest.Standby(t, primary, localserver.PostgresOptions{})
			}
			conn := db.Conn(t)
			seen := 0
			commit := func() time.Duration {
				t.Helper()
				seen++
				bounded, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				began := time.Now()
				if _, err := conn.Exec(bounded, "INSERT INTO t VALUES ($1)", seen); err != nil {
					t.Fatalf("a commit waits: %v", err)
				}
				return time.Since(began)
			}
			state := func() (s string) {
				t.Helper()
				if err := conn.QueryRow(t.Context(), "SELECT coalesce((SELECT sync_state FROM pg_stat_replication WHERE application_name = $1), '')", streamName).Scan(&s); err != nil {
					t.Fatal(err)
				}
				return s
			}
			confirmed := func() (lsn string) {
				t.Helper()
				if err := conn.QueryRow(t.Context(), "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 's'").Scan(&lsn); err != nil {
					t.Fatal(err)
				}
				return lsn
			}
			eventually := func(what string, ok func() bool) {
				t.Helper()
				for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatalf("gave up waiting until %s", what)
					}
				}
			}
			start := confirmed()
			eventually("it confirms", func() bool { commit(); return confirmed() != start })

			db.Exec(t, "ALTER SYSTEM SET synchronous_standby_names = '"+setting+"'", "SELECT pg_reload_conf()")
			slowest := time.Duration(0)
			for began := time.Now(); time.Since(began) < 4*time.Second; {
				slowest = max(slowest, commit())
			}
			t.Logf("set while running: the slowest commit took %s", slowest)
			if slowest > 3*time.Second {
				t.Errorf("a commit took %s", slowest)
			}
			if s := w.Status(); s.OK || s.Fix == "" {
				t.Errorf("%+v", s)
			}
			if s := state(); s != "async" {
				t.Errorf("sync_state is %q", s)
			}
			stop()
			stop = follow(open())
			slowest = 0
			held := confirmed()
			for began := time.Now(); time.Since(began) < 2*time.Second; {
				slowest = max(slowest, commit())
			}
			t.Logf("set before the start: the slowest commit took %s", slowest)
			if slowest > 2*time.Second || state() != "async" || confirmed() != held {
				t.Errorf("a commit took %s, state %s, confirmed %s and then %s", slowest, state(), held, confirmed())
			}
			db.Exec(t, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
			eventually("it confirms again", func() bool { commit(); return confirmed() != held && w.Status().OK })
			stop()
		})
	}
}
