package replication

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdc-invalidator/cdc-invalidator/internal/charset"
)

// sessionParams are the settings of every connection of ours, whatever the server, the
// database or the role has: sent when it is made, so that nothing runs under others. A
// server refuses a connection with a setting that it does not know, so all of these are
// known to the oldest that is supported; what came later is settle's.
//
// What only the server's own work depends on (memory, planner, logging) is left alone,
// and so is what a role is given on purpose: role, session_replication_role.
var sessionParams = map[string]string{
	// The text form of values, so that a key is rendered the same.
	"client_encoding":    "UTF8",
	"TimeZone":           "UTC",
	"DateStyle":          "ISO, YMD",
	"IntervalStyle":      "postgres",
	"bytea_output":       "hex",
	"extra_float_digits": "1",
	// Lets the warning through with which Postgres 18 says that it skips changes because
	// a publication is missing.
	"client_min_messages": "warning",
	// Time limits. Ours are set where they are needed.
	"statement_timeout":                   "0",
	"lock_timeout":                        "0",
	"idle_in_transaction_session_timeout": "0",
	"idle_session_timeout":                "0",
	// A stream that is held back for long, because Redis is away, is no dead client.
	"tcp_user_timeout": "0",
	// A snapshot of a serializable, deferrable transaction is an old one, or waits.
	"default_transaction_isolation":  "read committed",
	"default_transaction_deferrable": "off",
	// Roles for replication are often made read-only, which would forbid the heartbeat.
	"default_transaction_read_only": "off",
	// How names are printed, and what a refused statement costs.
	"quote_all_identifiers": "off",
	"exit_on_error":         "off",
	// What a text between quotes means.
	"standard_conforming_strings": "on",
	// Compiling a small query takes longer than running it.
	"jit": "off",
}

// settle ends the making of a connection with what could not be sent before the
// server's version and encoding were known.
func settle(ctx context.Context, conn *pgconn.PgConn, more ...string) error {
	var sql []string
	// One by one: together they would be one transaction, which the limit might end.
	if majorVersion(conn.ParameterStatus("server_version")) >= 17 {
		sql = append(sql, "SET transaction_timeout = 0")
	}
	for _, s := range append(sql, more...) {
		if _, err := conn.Exec(ctx, s).ReadAll(); err != nil {
			return err
		}
	}
	return nil
}

// majorVersion reads server_version, such as "17.11 (Debian 17.11-1)" or "18beta1"; 0 where
// it cannot be read.
func majorVersion(s string) int {
	end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(s)
	}
	n, _ := strconv.Atoi(s[:end])
	return n
}

// serverEncoding is the parameter in which a server says the database's encoding.
const serverEncoding = "server_encoding"

// keepEncoding asks for the server's own encoding, in which it converts nothing and
// nothing can fail.
func keepEncoding(conn *pgconn.PgConn) string {
	name := conn.ParameterStatus(serverEncoding)
	if name == "" {
		name = "SQL_ASCII"
	}
	return "SET client_encoding = " + quoteLiteral(name)
}

// inServerEncoding is a name as a connection takes it that converts nothing.
func inServerEncoding(conn *pgconn.PgConn, name string) (string, error) {
	e, err := charset.Server(conn.ParameterStatus(serverEncoding))
	if err != nil || e == nil || !e.Converts() {
		return name, err
	}
	b, ok := e.Encode(name)
	if !ok {
		return "", errors.New("it cannot be written in the server's encoding, " + e.Name())
	}
	return string(b), nil
}

// noConversion says that the server cannot convert between the client's encoding and
// its own at all: feature_not_supported while connecting.
func noConversion(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "0A000"
}

// undeclared is why text of a database cannot be turned into UTF-8, "" where it can.
func undeclared(encoding string) string {
	switch encoding {
	case "SQL_ASCII", "MULE_INTERNAL":
		return fmt.Sprintf("the database's encoding is %s", encoding)
	}
	return ""
}
