package replication

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// LosesCommits says whether a crash of the source can take back commits that
// other sessions have seen: whether synchronous_commit is off for the server, the
// database or any role. Sessions that switch it off for themselves cannot be seen.
func LosesCommits(ctx context.Context, conn *pgx.Conn) (bool, error) {
	var loses bool
	err := conn.QueryRow(ctx, `
		SELECT current_setting('synchronous_commit') = 'off'
		    OR EXISTS (SELECT FROM pg_db_role_setting s, unnest(s.setconfig) c
		               WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
		                 AND lower(c) IN ('synchronous_commit=off', 'synchronous_commit=false', 'synchronous_commit=no', 'synchronous_commit=0'))`).Scan(&loses)
	return loses, serverError("ask for synchronous_commit", err, "")
}
