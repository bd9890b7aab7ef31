package replication

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// minServerVersion is Postgres 15: the first whose publications have column
// lists, whose catalogs show them, and whose slots say two_phase.
const minServerVersion = 150000

// Limits of the control connections. A statement that waits for longer is given
// up and tried again, because a wait that nobody sees looks like health.
const (
	controlConnectTimeout   = 10 * time.Second
	controlStatementTimeout = "10s"
	controlLockTimeout      = "5s"
)

// Status is what a control loop knows about itself. It is OK while the loop can
// prove what it is there to prove.
type Status struct {
	OK      bool
	Unknown bool      // not OK because nothing was proved yet, and nothing is known to be wrong
	Since   time.Time // of the last change of OK
	Reason  string
	Fix     string
}

// ConnectControl opens an ordinary connection for questions about the source.
// purpose shows in pg_stat_activity. One caller at a time may use it.
func ConnectControl(ctx context.Context, url, purpose string) (*pgx.Conn, error) {
	// Catalog names must not be hidden by a schema of the role's.
	return connect(ctx, url, purpose, map[string]string{"search_path": "pg_catalog"})
}

// connect opens an ordinary connection whose settings do not depend on the
// role's, but for the search path, unless params has one. then is run on it before it is
// used.
func connect(ctx context.Context, url, purpose string, params map[string]string, then ...string) (*pgx.Conn, error) {
	const op = "connect to the source"
	if _, err := parseURL(op, url); err != nil {
		return nil, err
	}
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, urlError(op, err)
	}
	maps.Copy(cfg.RuntimeParams, sessionParams)
	maps.Copy(cfg.RuntimeParams, map[string]string{
		"application_name":  "cdc-invalidator " + purpose,
		"statement_timeout": controlStatementTimeout,
		"lock_timeout":      controlLockTimeout,
	})
	maps.Copy(cfg.RuntimeParams, params)
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = controlConnectTimeout
	}
	cfg.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error { return settle(ctx, conn, then...) }
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if noConversion(err) {
		// A database from which nothing converts to UTF-8. What is ASCII reads the same.
		cfg.RuntimeParams["client_encoding"] = "SQL_ASCII"
		conn, err = pgx.ConnectConfig(ctx, cfg)
	}
	if err != nil {
		return nil, connectError(ctx, op, &cfg.Config, err, "GRANT CONNECT ON DATABASE "+quoteIdentifier(cfg.Database)+" TO "+quoteIdentifier(cfg.User)+";")
	}
	return conn, nil
}

// CloseControl closes with a bound of its own, since the caller's context may be
// the reason for closing.
func CloseControl(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // the connection is given up, whatever it says
}

// Server is what a source must be able to do, and who we are on it.
type Server struct {
	Version          int // server_version_num
	InRecovery       bool
	WALLevel         string
	WALSenderTimeout time.Duration // 0 means never
	Database, Role   string
	// Unsettled: the session does not have the settings that were asked for, as behind a
	// pooler that hands sessions round.
	Unsettled bool
}

// ReadServer asks the source about itself.
func ReadServer(ctx context.Context, conn *pgx.Conn) (Server, error) {
	var s Server
	var timeoutMillis int64
	err := conn.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int, pg_is_in_recovery(), current_setting('wal_level'),
		       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_sender_timeout'),
		       current_database()::text, current_user::text, current_setting('client_min_messages') <> $1`, sessionParams["client_min_messages"]).
		Scan(&s.Version, &s.InRecovery, &s.WALLevel, &timeoutMillis, &s.Database, &s.Role, &s.Unsettled)
	if err != nil {
		return Server{}, serverError("ask the source for its settings", err, "")
	}
	s.WALSenderTimeout = time.Duration(timeoutMillis) * time.Millisecond
	return s, nil
}

// Check refuses a server that cannot be a source.
func (s Server) Check() error {
	if problems := s.Problems(); len(problems) > 0 {
		return problems[0]
	}
	return nil
}

// Problems are all reasons why the server cannot be a source.
func (s Server) Problems() []*ConfigError {
	const op = "check the source"
	var problems []*ConfigError
	if s.Version < minServerVersion {
		problems = append(problems, &ConfigError{Op: op, Problem: fmt.Sprintf("the server is Postgres %s; 15 is the oldest that works", versionString(s.Version)),
			Fix: "upgrade the server"})
	}
	if s.Unsettled {
		problems = append(problems, &ConfigError{Op: op, Problem: "the session has not the settings that were asked for: there is a pooler in front of the server", Fix: directFix})
	}
	if s.InRecovery {
		problems = append(problems, &ConfigError{Op: op, Problem: "the changes of a standby's tables cannot be followed safely", Err: ErrStandby,
			Fix: "point source.url at the primary; with several hosts in it, add target_session_attrs=read-write"})
	}
	if s.WALLevel != "logical" {
		problems = append(problems, &ConfigError{Op: op, Problem: "wal_level is " + s.WALLevel + ", so the log does not carry row changes",
			Fix: "ALTER SYSTEM SET wal_level = 'logical';  -- and restart the server\n-- a managed service has a parameter for it, such as rds.logical_replication = 1"})
	}
	return problems
}

// VersionString is the version as people write it.
func (s Server) VersionString() string { return versionString(s.Version) }

func versionString(n int) string {
	if n < 100000 {
		return fmt.Sprintf("%d.%d", n/10000, n/100%100)
	}
	return fmt.Sprintf("%d.%d", n/10000, n%10000)
}

// qualified is a table's name as SQL takes it. Ordinary names stay bare, so that
// a fix reads as somebody would write it. A reserved word needs quotes in front
// of the dot, and none behind it.
func qualified(schema, table string) string { return Identifier(schema) + "." + sqlName(table) }

// Qualified is a table's name as SQL takes it.
func Qualified(schema, table string) string { return qualified(schema, table) }

// Identifier is a name as SQL takes it where a reserved word needs quotes.
func Identifier(s string) string {
	switch s {
	case "all", "analyse", "analyze", "any", "array", "check", "column", "current_role", "current_user", "default", "from", "grant", "group", "limit",
		"none", "order", "primary", "references", "select", "session_user", "table", "to", "union", "user", "where", "with":
		return quoteIdentifier(s)
	}
	return sqlName(s)
}

func sqlName(s string) string {
	for i, r := range s {
		if r >= 'a' && r <= 'z' || r == '_' || i > 0 && r >= '0' && r <= '9' {
			continue
		}
		return quoteIdentifier(s)
	}
	if s == "" {
		return quoteIdentifier(s)
	}
	return s
}
