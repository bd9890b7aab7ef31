package cache

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// loadTx is the transaction that a loader gets. It is not one of pgx's own because it is
// begun together with the question for its snapshot, in one round trip. The library ends it.
type loadTx struct {
	conn       *pgx.Conn
	savepoints int
	left       bool // the loader has ended it
}

var _ pgx.Tx = (*loadTx)(nil)

const beginLoad = `begin isolation level repeatable read, read only`

// beginTx opens a transaction, whose snapshot is taken now. What a query sees in it is
// exactly what the snapshot says.
func beginTx(ctx context.Context, conn *pgx.Conn) (tx *loadTx, snapshot string, standby bool, err error) {
	batch := &pgx.Batch{}
	batch.Queue(beginLoad)
	batch.Queue(`select pg_current_snapshot()::text, pg_is_in_recovery()`)
	results := conn.SendBatch(ctx, batch)
	_, err = results.Exec()
	if err == nil {
		err = results.QueryRow().Scan(&snapshot, &standby)
	}
	if err = errors.Join(err, results.Close()); err != nil {
		return nil, "", false, fmt.Errorf("begin the loader's transaction: %w", err)
	}
	return &loadTx{conn: conn}, snapshot, standby, nil
}

// isWhole says whether all that was read was read in the transaction, which has not failed
// either. What the loader does with Conn is seen by what it leaves behind only.
func (t *loadTx) isWhole() bool {
	return !t.left && !t.conn.IsClosed() && t.conn.PgConn().TxStatus() == 'T'
}

// note looks whether the last statement has ended the transaction, before the next one
// can begin another.
func (t *loadTx) note() { t.left = t.left || t.conn.PgConn().TxStatus() == 'I' }

// endsTransaction finds the statements that end a transaction, also among others in one text: one
// that is followed by BEGIN leaves nothing to see.
var endsTransaction = regexp.MustCompile(`(?i)(?:^|;)\s*(?:commit\b|end\b|abort\b|rollback\s*(?:;|$|work\b|transaction\b|and\b)|prepare\s+transaction\b)`)

func (t *loadTx) noteText(sql string) {
	t.note()
	t.left = t.left || endsTransaction.MatchString(sql)
}

var errEndedByLoader = errors.New("cache: the library ends a loader's transaction, the loader does not")

// Commit implements pgx.Tx; it is refused.
func (t *loadTx) Commit(context.Context) error { return errEndedByLoader }

// Rollback implements pgx.Tx; it is refused.
func (t *loadTx) Rollback(context.Context) error { return errEndedByLoader }

// Begin implements pgx.Tx with a savepoint.
func (t *loadTx) Begin(ctx context.Context) (pgx.Tx, error) {
	t.note()
	t.savepoints++
	name := fmt.Sprintf("cache_%d", t.savepoints)
	if _, err := t.conn.Exec(ctx, "savepoint "+name); err != nil {
		return nil, err
	}
	return &nestedTx{loadTx: t, name: name}, nil
}

// CopyFrom implements pgx.Tx. The server refuses it: the transaction is read-only.
func (t *loadTx) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error) {
	t.note()
	return t.conn.CopyFrom(ctx, table, columns, src)
}

// SendBatch implements pgx.Tx.
func (t *loadTx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	for _, q := range b.QueuedQueries {
		t.noteText(q.SQL)
	}
	return t.conn.SendBatch(ctx, b)
}

// LargeObjects implements pgx.Tx. It is pgx's own, bound to a nested transaction object, which
// is never ended: the transaction is.
func (t *loadTx) LargeObjects() pgx.LargeObjects {
	tx, err := t.conn.BeginTx(context.Background(), pgx.TxOptions{BeginQuery: "select"})
	if err != nil {
		return pgx.LargeObjects{}
	}
	return tx.LargeObjects()
}

// Prepare implements pgx.Tx.
func (t *loadTx) Prepare(ctx context.Context, name, sql string) (*pgconn.StatementDescription, error) {
	t.noteText(sql)
	return t.conn.Prepare(ctx, name, sql)
}

// Exec implements pgx.Tx.
func (t *loadTx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	t.noteText(sql)
	return t.conn.Exec(ctx, sql, args...)
}

// Query implements pgx.Tx.
func (t *loadTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	t.noteText(sql)
	return t.conn.Query(ctx, sql, args...)
}

// QueryRow implements pgx.Tx.
func (t *loadTx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	t.noteText(sql)
	return t.conn.QueryRow(ctx, sql, args...)
}

// Conn implements pgx.Tx.
func (t *loadTx) Conn() *pgx.Conn {
	t.note()
	return t.conn
}

// nestedTx is a savepoint.
type nestedTx struct {
	*loadTx
	name string
	done bool
}

func (t *nestedTx) end(ctx context.Context, sql string) error {
	if t.done {
		return pgx.ErrTxClosed
	}
	t.done = true
	_, err := t.conn.Exec(ctx, sql+t.name)
	return err
}

// Commit implements pgx.Tx.
func (t *nestedTx) Commit(ctx context.Context) error { return t.end(ctx, "release savepoint ") }

// Rollback implements pgx.Tx.
func (t *nestedTx) Rollback(ctx context.Context) error {
	return t.end(ctx, "rollback to savepoint ")
}
