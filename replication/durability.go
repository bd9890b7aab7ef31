package replication

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// LosesCommits says why a crash of the source can take back commits that other
// sessions have seen, "" when it cannot: whether synchronous_commit is off for the server,
// the database or any role. Sessions that switch it off for themselves cannot be seen.
//
// The server's own value shows only in a session that nothing sets it for. Where the
// daemon's role or URL does, and the database does not for everybody, it is unknown, and
// what is unknown may be off.
func LosesCommits(ctx context.Context, conn *pgx.Conn) (why string, err error) {
	var off, hidden bool
	var role string
	err = conn.QueryRow(ctx, `
		WITH here AS (SELECT setting, source IN ('default', 'environment variable', 'configuration file', 'command line') AS server
		              FROM pg_settings WHERE name = 'synchronous_commit'),
		     set AS (SELECT s.setrole, lower(c) IN ('synchronous_commit=off', 'synchronous_commit=false', 'synchronous_commit=no', 'synchronous_commit=0') AS off
		             FROM pg_db_role_setting s, unnest(s.setconfig) c
		             WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
		               AND lower(c) LIKE 'synchronous_commit=%')
		SELECT server AND setting = 'off' OR EXISTS (SELECT FROM set WHERE off),
		       NOT server AND NOT EXISTS (SELECT FROM set WHERE setrole = 0), current_user::text
		FROM here`).Scan(&off, &hidden, &role)
	switch {
	case err != nil:
		return "", serverError("ask for synchronous_commit", err, "")
	case off:
		return "synchronous_commit is off for the server, the database or a role", nil
	case hidden:
		return "the server's synchronous_commit cannot be seen past the daemon's own (ALTER ROLE " + quoteIdentifier(role) + " RESET synchronous_commit;)", nil
	}
	return "", nil
}
