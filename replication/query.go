package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// ErrQueryRefused means that the source understood a query and will not answer
// it however often it is asked: a table is gone, a right is missing, it takes too long.
var ErrQueryRefused = errors.New("the source refuses the query")

// ErrSourceChanged means that a connection reached another server, or another
// life of the same one, than the stream belongs to.
var ErrSourceChanged = errors.New("the source is not the one that is being streamed")

// Bounds of one question to the source, the answer included.
const (
	snapshotTimeout = 10 * time.Second
	lookupTimeout   = 30 * time.Second
	lookupBytes     = 16 << 20 // of values that are kept
)

// QueryConn is the ordinary connection on which the daemon asks which
// transactions are visible, and runs for_each queries. It belongs to one
// goroutine. After an error that is not ErrQueryRefused it must be closed.
type QueryConn struct {
	conn      *pgx.Conn
	pg        *pgconn.PgConn
	asciiOnly bool // nothing says what other bytes mean
}

// snapshotStatement is prepared once: the question is asked for every batch.
const snapshotStatement = "cdc_invalidator_snapshot"

// ConnectQuery opens an ordinary connection on which for_each queries mean what they
// mean to the daemon. With the role's own search path, for which they are written;
// read-only, since a query may hide a write; and with row security off, which turns
// rows that a policy would hide, and with them keys, into an error.
func ConnectQuery(ctx context.Context, url, purpose string) (*pgx.Conn, error) {
	// Read-only only once it is connected: target_session_attrs=read-write would take a
	// session that is read-only from its start for one on a standby.
	return connect(ctx, url, purpose, map[string]string{"row_security": "off"}, "SET default_transaction_read_only = on")
}

// OpenQueryConn connects and makes sure that it has reached the server of epoch: a
// snapshot of another server says nothing about this one's transactions.
func OpenQueryConn(ctx context.Context, url, purpose string, epoch Epoch) (*QueryConn, error) {
	conn, err := ConnectQuery(ctx, url, purpose)
	if err != nil {
		return nil, err
	}
	q := &QueryConn{conn: conn, pg: conn.PgConn(), asciiOnly: undeclared(conn.PgConn().ParameterStatus(serverEncoding)) != ""}
	now, err := ReadEpoch(ctx, conn)
	if err == nil {
		if c, why := now.Since(epoch); c != Continuous && c != Unproved {
			err = fmt.Errorf("visibility gate: %w: %s", ErrSourceChanged, why)
		}
	}
	if err == nil {
		_, err = q.pg.Prepare(ctx, snapshotStatement, "SELECT pg_catalog.pg_current_snapshot()::text", nil)
		err = serverError("prepare the visibility gate", err, "")
	}
	if err != nil {
		CloseControl(ctx, conn)
		return nil, err
	}
	return q, nil
}

// Close closes the connection.
func (q *QueryConn) Close(ctx context.Context) { CloseControl(ctx, q.conn) }

// Conn lends the connection to who asks for something else; nothing may be left open on it.
func (q *QueryConn) Conn() *pgx.Conn { return q.conn }

// Snapshot returns pg_current_snapshot() as text: xmin:xmax:xip_list.
func (q *QueryConn) Snapshot(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	r := q.pg.ExecPrepared(ctx, snapshotStatement, nil, nil, nil)
	var text string
	for r.NextRow() {
		text = string(r.Values()[0])
	}
	if _, err := r.Close(); err != nil {
		return "", serverError("ask for a snapshot", err, "")
	}
	return text, nil
}

// Query runs sql with text parameters, of which nil is NULL, and returns at most
// maxRows+1 rows as text. An answer that is too large is refused.
func (q *QueryConn) Query(ctx context.Context, sql string, params [][]byte, maxRows int) (columns []string, rows [][][]byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	// ExecParams, text both ways: values arrive from the log as text, and keys are
	// rendered from text.
	r := q.pg.ExecParams(ctx, sql, params, nil, nil, nil)
	unreadable, size := false, 0
	for _, f := range r.FieldDescriptions() {
		columns = append(columns, f.Name)
	}
	for r.NextRow() {
		for _, v := range r.Values() {
			size += len(v)
		}
		if len(rows) > maxRows || size > lookupBytes {
			continue // the rest is read and thrown away, so that the connection stays usable
		}
		values := r.Values()
		row := make([][]byte, len(values))
		for i, v := range values {
			if v != nil {
				row[i] = append([]byte{}, unpadded(r.FieldDescriptions()[i].DataTypeOID, v)...)
				unreadable = unreadable || q.asciiOnly && !ascii(v)
			}
		}
		rows = append(rows, row)
	}
	if _, err := r.Close(); err != nil {
		return nil, nil, queryError(err)
	}
	if size > lookupBytes && len(rows) <= maxRows {
		return nil, nil, fmt.Errorf("%w: its answer has more than %d MiB", ErrQueryRefused, lookupBytes>>20)
	}
	if unreadable {
		return nil, nil, fmt.Errorf("%w: text beyond ASCII cannot be turned into UTF-8", ErrQueryRefused)
	}
	return columns, rows, nil
}

func ascii(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c >= utf8.RuneSelf })
}

// unpadded takes the blanks off a char(n), as is done with the values of the log: a
// key must be the same whichever way its value came.
func unpadded(typeOID uint32, v []byte) []byte {
	if typeOID == pgtype.BPCharOID {
		return bytes.TrimRight(v, " ")
	}
	return v
}

// queryError sorts what asking again may mend from what it will not. A doubt
// counts as the latter: the family is widened, and the pipeline goes on.
func queryError(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return serverError("run a for_each query", err, "")
	}
	if mendsItself(pg.Code) && pg.Code != "57014" { // the query was cancelled: it takes too long
		return serverError("run a for_each query", err, "")
	}
	// The message may quote the row's values; the code does not.
	return fmt.Errorf("%w: SQLSTATE %s", ErrQueryRefused, pg.Code)
}
