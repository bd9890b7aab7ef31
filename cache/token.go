package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// Token stands for a moment on the source. A read that is given one (AtLeast) sees every
// transaction that had committed by then. It is a few dozen bytes of text, longer only
// while many transactions are open, and meant to live for minutes: in a session or a cookie.
type Token struct {
	at   lsn.LSN // the end of the log: every commit of the moment ended at or below it
	seen snapshot
	text string // of seen
}

// querier is a connection, a pool or a transaction.
type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// TokenAfterCommit returns the token for now. It is to be called after the commit, on any
// connection to the primary: a pool, or the connection that has written. A
// transaction that is still open on it would hide its own write, which is refused.
func TokenAfterCommit(ctx context.Context, conn querier) (Token, error) {
	var at, seen string
	var standby, open bool
	err := conn.QueryRow(ctx, `
		SELECT pg_is_in_recovery(), pg_current_xact_id_if_assigned() IS NOT NULL,
		       CASE WHEN pg_is_in_recovery() THEN '0/0' ELSE pg_current_wal_insert_lsn()::text END,
		       pg_current_snapshot()::text`).Scan(&standby, &open, &at, &seen)
	switch {
	case err != nil:
		return Token{}, fmt.Errorf("token after commit: %w", err)
	case standby:
		return Token{}, errors.New("token after commit: the connection leads to a standby: give one to the primary")
	case open:
		return Token{}, errors.New("token after commit: the transaction on this connection has written and is open: commit it first")
	}
	t := Token{text: seen}
	if t.at, err = lsn.Parse(at); err != nil {
		return Token{}, fmt.Errorf("token after commit: %w", err)
	}
	if t.seen, err = parseSnapshot(seen); err != nil {
		return Token{}, fmt.Errorf("token after commit: %w", err)
	}
	return t, nil
}

const tokenVersion = "1"

// String is the token's text, for ParseToken. It has no character that a cookie or a
// header would mind.
func (t Token) String() string {
	if t.IsZero() {
		return ""
	}
	return tokenVersion + "." + t.at.Hex() + "." + strings.ReplaceAll(strings.ReplaceAll(t.text, ":", "-"), ",", "_")
}

// IsZero says that the token stands for no moment: a read that is given it sees what is
// cached.
func (t Token) IsZero() bool { return t.at == 0 }

// ParseToken reads what String printed. The empty text is the zero token.
func ParseToken(text string) (Token, error) {
	if text == "" {
		return Token{}, nil
	}
	parts := strings.Split(text, ".")
	if len(parts) != 3 || parts[0] != tokenVersion {
		return Token{}, errors.New("this is no token: it is not what Token.String printed")
	}
	var t Token
	var err error
	if t.at, err = lsn.ParseHex(parts[1]); err != nil || t.at == 0 {
		return Token{}, errors.New("this is no token: its position cannot be read")
	}
	t.text = strings.ReplaceAll(strings.ReplaceAll(parts[2], "-", ":"), "_", ",")
	if t.seen, err = parseSnapshot(t.text); err != nil {
		return Token{}, errors.New("this is no token: its snapshot cannot be read")
	}
	return t, nil
}

// metBy says whether an entry was loaded at the token's moment or later: by its own
// snapshot or, of a load on a standby, by what had been replayed.
func (t *Token) metBy(m *entryMeta) bool {
	if t.IsZero() {
		return true
	}
	if m.snapshot == noSnapshot {
		return m.lsn >= t.at
	}
	s, err := parseSnapshot(m.snapshot)
	return err == nil && s.contains(&t.seen)
}
