package replication

import (
	"strings"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// The daemon's own role may have a setting of its own, which says nothing of what the
// application's sessions do.
func TestLosesCommits(t *testing.T) {
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	db := servertest.NewDatabase(t, server, "durability")
	own := createRole(t, db, "_own", "")
	db.Exec(t, "CREATE ROLE writer")
	plain := controlConn(t, db.URL) // of a role without settings: shows the server's
	serverWide := func(value string) {
		t.Helper()
		db.Exec(t, "ALTER SYSTEM SET synchronous_commit = '"+value+"'", "SELECT pg_reload_conf()")
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for now := ""; now != value; <-tick.C {
			if err := plain.QueryRow(t.Context(), "SHOW synchronous_commit").Scan(&now); err != nil {
				t.Fatal(err)
			}
		}
	}
	const reset = "RESET synchronous_commit"
	for _, c := range []struct {
		name, server           string
		role, writer, database string // ALTER ... with it
		want                   string // in the reason; empty: loses none
	}{
		{"nothing set", "on", reset, reset, reset, ""},
		{"the server", "off", reset, reset, reset, "off"},
		{"the server, hidden by the own role", "off", "SET synchronous_commit = on", reset, reset, "RESET synchronous_commit"},
		{"hidden, whatever it is", "on", "SET synchronous_commit = local", reset, reset, "RESET synchronous_commit"},
		{"the database has it on for everybody", "off", "SET synchronous_commit = on", reset, "SET synchronous_commit = on", ""},
		{"another role", "on", reset, "SET synchronous_commit = no", reset, "off"},
		{"another role, the database on", "on", reset, "SET synchronous_commit = off", "SET synchronous_commit = on", "off"},
		{"the database", "on", "SET synchronous_commit = on", reset, "SET synchronous_commit = off", "off"},
	} {
		t.Run(c.name, func(t *testing.T) {
			serverWide(c.server)
			db.Exec(t, "ALTER ROLE "+db.Name+"_own "+c.role, "ALTER ROLE writer "+c.writer, "ALTER DATABASE "+db.Name+" "+c.database)
			why, err := LosesCommits(t.Context(), controlConn(t, own))
			if err != nil {
				t.Fatal(err)
			}
			if (why == "") != (c.want == "") || !strings.Contains(why, c.want) {
				t.Errorf("%q, want %q in it", why, c.want)
			}
		})
	}
}
