package replication

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// dialReplication opens a connection in replication mode.
func dialReplication(ctx context.Context, url string) (*pgconn.PgConn, *pacedConn, error) {
	const op = "connect to the source for replication"
	cfg, err := parseURL(op, url)
	if err != nil {
		return nil, nil, err
	}
	maps.Copy(cfg.RuntimeParams, sessionParams)
	maps.Copy(cfg.RuntimeParams, map[string]string{
		"replication":      "database",
		"application_name": streamName,
		// What the names of regclass and its like are printed with.
		"search_path": "pg_catalog",
		// Whatever the server's encoding is, nothing is converted; keepEncoding says it
		// by its name.
		"client_encoding": "SQL_ASCII",
	})
	cfg.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		return settle(ctx, conn, keepEncoding(conn), "SELECT set_config('wal_sender_timeout', '1s', false) WHERE current_setting('wal_sender_timeout')::interval BETWEEN '1us' AND '1s'")
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	cfg.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(&exactReader{r: r}, w)
	}
	dial, made := dialPaced()
	cfg.DialFunc = dial
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, nil, connectError(ctx, op, cfg, err, "ALTER ROLE "+quoteIdentifier(cfg.User)+" REPLICATION;\n"+
			"(on a managed service grant its role instead, such as rds_replication)")
	}
	return conn, made(), nil
}

// startReplication begins to stream the slot and takes the connection over from
// the client library. It starts at 0/0 always, which means "where the slot
// stands": a position above that would be believed and skip changes.
func startReplication(ctx context.Context, conn *pgconn.PgConn, slot, publication string) (net.Conn, error) {
	name, err := inServerEncoding(conn, publication)
	if err != nil {
		return nil, fmt.Errorf("start replication of slot %s: publication %s: %w", slot, publication, err)
	}
	err = pglogrepl.StartReplication(ctx, conn, slot, 0, pglogrepl.StartReplicationOptions{
		Mode: pglogrepl.LogicalReplication,
		PluginArgs: []string{
			"proto_version '1'",
			"publication_names " + quoteLiteral(quoteIdentifier(name)),
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
