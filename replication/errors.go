package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrSlotLost means that the server has removed WAL that the slot still needed.
// What happened between the confirmed position and now cannot be had any more: a
// gap. RecreateSlot begins anew.
var ErrSlotLost = errors.New("the slot has lost its WAL")

// ErrSlotMissing means that there is no such slot and that it was not to be made.
var ErrSlotMissing = errors.New("the slot does not exist")

// ErrStandby means that the server is in recovery. Right after a failover that
// can be a matter of seconds; at start-up it is a wrong URL.
var ErrStandby = errors.New("the server is a standby")

// ErrBlockedByTransactions means that the slot's creation waits for transactions
// that were open before it. It is worth trying again.
var ErrBlockedByTransactions = errors.New("older transactions are still open")

// ConfigError is what retrying does not mend: somebody has to change the
// project's file, the server's settings or the role's rights first.
type ConfigError struct {
	Op      string // what was tried
	Problem string
	Fix     string // what mends it; SQL where SQL does
	Err     error  // cause, may be nil
}

func (e *ConfigError) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	b.WriteString(": ")
	b.WriteString(e.Problem)
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Fix != "" {
		b.WriteString("\n  fix: ")
		b.WriteString(strings.ReplaceAll(e.Fix, "\n", "\n       "))
	}
	return b.String()
}

func (e *ConfigError) Unwrap() error { return e.Err }

// Remedy is the text without the fix, and the fix.
func (e *ConfigError) Remedy() (problem, fix string) {
	bare := *e
	bare.Fix = ""
	return bare.Error(), e.Fix
}

// GivenAs is err for a URL that did not come from source.url: what it says of that, it
// says of name then, such as --url.
func GivenAs(name string, err error) error {
	var config *ConfigError
	var away *UnavailableError
	switch {
	case errors.As(err, &config):
		named := *config
		named.Op, named.Problem, named.Fix = SourceURLAs(name, config.Op), SourceURLAs(name, config.Problem), SourceURLAs(name, config.Fix)
		return &named
	case errors.As(err, &away):
		named := *away
		named.Op, named.Hint = SourceURLAs(name, away.Op), SourceURLAs(name, away.Hint)
		return &named
	}
	return err
}

// SourceURLAs is the text of a problem or a fix as GivenAs has it.
func SourceURLAs(name, text string) string { return strings.ReplaceAll(text, "source.url", name) }

// UnavailableError is a server that is away or busy: the same call may succeed
// later with nothing changed.
type UnavailableError struct {
	Op   string
	Hint string
	Err  error
}

func (e *UnavailableError) Error() string {
	s := e.Op + ": " + e.Err.Error()
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func (e *UnavailableError) Unwrap() error { return e.Err }

// Remedy is the text without the hint, and the hint.
func (e *UnavailableError) Remedy() (problem, fix string) {
	bare := *e
	bare.Hint = ""
	return bare.Error(), e.Hint
}

// insufficientPrivilege is the SQLSTATE of a right that is missing.
const insufficientPrivilege = "42501"

func lacksRight(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == insufficientPrivilege
}

// serverError says what an error of the control connections asks for, by its
// SQLSTATE and never by its text, which is translated. grant is the fix when the
// role lacks a right.
func serverError(op string, err error, grant string) error {
	if err == nil {
		return nil
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		// The caller gave up: neither side is to blame.
		if errors.Is(err, context.Canceled) {
			return fmt.Errorf("%s: %w", op, err)
		}
		if err := tlsError(op, err); err != nil {
			return err
		}
		var connect *pgconn.ConnectError
		var network net.Error
		if errors.As(err, &connect) || errors.As(err, &network) || pgconn.Timeout(err) ||
			errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
			return &UnavailableError{Op: op, Err: err}
		}
		return fmt.Errorf("%s: %w", op, err)
	}
	if known := byCode(op, pg, err, grant); known != nil {
		return known
	}
	if mendsItself(pg.Code) {
		return &UnavailableError{Op: op, Err: err}
	}
	return fmt.Errorf("%s: %w", op, err)
}

// byCode says what a server's error asks for, nil for those that mean different things at
// different times.
func byCode(op string, pg *pgconn.PgError, err error, grant string) error {
	switch pg.Code {
	case insufficientPrivilege:
		return &ConfigError{Op: op, Problem: "the role lacks a right", Fix: grant, Err: err}
	case "28000", "28P01": // invalid_authorization_specification, invalid_password
		return &ConfigError{Op: op, Problem: "the server refuses the role", Err: err, Fix: refusedRole(pg)}
	case "3D000", "57P04": // invalid_catalog_name, database_dropped
		return &ConfigError{Op: op, Problem: "the database does not exist", Err: err,
			Fix: "correct the database name in source.url"}
	case "42602", "42622": // invalid_name, name_too_long
		return &ConfigError{Op: op, Problem: "the server does not take this name", Err: err,
			Fix: "a slot's name has at most 63 lower-case letters, digits and underscores"}
	case "53400": // configuration_limit_exceeded
		return &ConfigError{Op: op, Problem: "a limit that is set on the server is reached", Err: err,
			Fix: "raise the setting that the server names (such as temp_file_limit, for the role too), or use less of what it bounds"}
	case "58P01", "58P02": // undefined_file, duplicate_file
		return &ConfigError{Op: op, Problem: "the server misses a file, or has one in its way", Err: err,
			Fix: "see the server's log: its installation or its data directory is damaged or incomplete"}
	case "53300": // too_many_connections
		return &UnavailableError{Op: op, Err: err,
			Hint: "the server has no connection to spare; see max_connections, max_wal_senders and the role's CONNECTION LIMIT"}
	case "55P03": // lock_not_available
		return &UnavailableError{Op: op, Err: err,
			Hint: "another session holds a lock on a mapped table; see pg_locks"}
	case "57014": // query_canceled
		return &UnavailableError{Op: op, Err: err, Hint: "the statement ran into its time limit"}
	}
	return nil
}
