package replication

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// sessionParams pins what the text form of values depends on, so that a key is
// rendered the same whatever the role's or database's settings are.
// client_min_messages lets the warning through with which Postgres 18 says that
// it skips changes because a publication is missing.
var sessionParams = map[string]string{
	"client_encoding":     "UTF8",
	"TimeZone":            "UTC",
	"DateStyle":           "ISO, YMD",
	"IntervalStyle":       "postgres",
	"bytea_output":        "hex",
	"extra_float_digits":  "1",
	"client_min_messages": "warning",
}

// dialReplication opens a connection in replication mode.
func dialReplication(ctx context.Context, url string) (*pgconn.PgConn, *pacedConn, error) {
	const op = "connect to the source for replication"
	cfg, err := pgconn.ParseConfig(url)
	if err != nil {
		return nil, nil, urlError(op, err)
	}
	for k, v := range sessionParams {
		cfg.RuntimeParams[k] = v
	}
	cfg.RuntimeParams["replication"] = "database"
	cfg.RuntimeParams["application_name"] = "cdc-invalidator"
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(&exactReader{r: r}, w)
	}
	dial, paced := dialPaced()
	cfg.DialFunc = dial
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, nil, serverError(op, err, "ALTER ROLE "+quoteIdentifier(cfg.User)+" REPLICATION;\n"+
			"(on a managed service grant its role instead, such as rds_replication)")
	}
	return conn, paced, nil
}

// startReplication begins to stream the slot and takes the connection over from
// the client library. It starts at 0/0 always, which means "where the slot
// stands": a position above that would be believed and skip changes.
func startReplication(ctx context.Context, conn *pgconn.PgConn, slot, publication string) (net.Conn, error) {
	err := pglogrepl.StartReplication(ctx, conn, slot, 0, pglogrepl.StartReplicationOptions{
		Mode: pglogrepl.LogicalReplication,
		PluginArgs: []string{
			"proto_version '1'",
			"publication_names " + quoteLiteral(quoteIdentifier(publication)),
			"messages 'true'",
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start replication of slot %s: %w", slot, err)
	}
	hijacked, err := conn.Hijack()
	if err != nil {
		return nil, fmt.Errorf("start replication of slot %s: %w", slot, err)
	}
	if n := hijacked.Frontend.ReadBufferLen(); n != 0 {
		hijacked.Conn.Close()
		return nil, fmt.Errorf("start replication of slot %s: %d bytes of the stream were read ahead", slot, n)
	}
	return hijacked.Conn, nil
}

func quoteLiteral(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func quoteIdentifier(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
