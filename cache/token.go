package cache

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// Token names a moment of the source, right after a commit. A read with AtLeast sees
// everything that was committed by then. A token is small and printable, so that it can
// travel in a cookie or a header from the request that wrote to the one that reads. It
// is no secret, but says how busy the database is; where clients should not learn that
// or make up their own, seal the cookie.
type Token struct {
	lsn  lsn.LSN
	snap snapshot
}

// IsZero says that the token asks for nothing.
func (t Token) IsZero() bool { return t.snap.xmax == 0 }

// tokenVersion begins each token's text.
const tokenVersion = "1"

// maxTokenLen is more than a cookie can hold.
const maxTokenLen = 8192

// String is the token as text: letters, digits, '-' and '.'. ParseToken reads it. The
// zero token is empty.
func (t Token) String() string {
	if t.IsZero() {
		return ""
	}
	b := []byte(tokenVersion + "-" + t.lsn.Hex() + "-")
	b = strconv.AppendUint(b, t.snap.xmax, 36)
	b = append(b, '-')
	b = strconv.AppendUint(b, t.snap.xmax-t.snap.xmin, 36)
	for _, x := range t.snap.xip { // as distances, which are short
		b = append(b, '.')
		b = strconv.AppendUint(b, t.snap.xmax-x, 36)
	}
	return string(b)
}

// ParseToken reads the text of a token. Text from outside that is no token is an error;
// the caller then reads without one.
func ParseToken(text string) (Token, error) {
	if text == "" {
		return Token{}, nil
	}
	bad := errors.New("cache: this is not a token as Token.String makes it")
	parts := strings.Split(text, "-")
	if len(text) > maxTokenLen || len(parts) != 4 || parts[0] != tokenVersion {
		return Token{}, bad
	}
	var t Token
	var err error
	if t.lsn, err = lsn.ParseHex(parts[1]); err != nil {
		return Token{}, bad
	}
	if t.snap.xmax, err = strconv.ParseUint(parts[2], 36, 64); err != nil || t.snap.xmax == 0 {
		return Token{}, bad
	}
	last := uint64(0)
	for i, p := range strings.Split(parts[3], ".") {
		d, err := strconv.ParseUint(p, 36, 64)
		if err != nil || d > t.snap.xmax {
			return Token{}, bad
		}
		switch {
		case i == 0:
			t.snap.xmin = t.snap.xmax - d
		case d == 0 || t.snap.xmax-d < t.snap.xmin || i > 1 && d >= last:
			return Token{}, bad
		default:
			t.snap.xip = append(t.snap.xip, t.snap.xmax-d)
		}
		last = d
	}
	return t, nil
}

// Querier is a *pgx.Conn, a *pgxpool.Conn or a *pgxpool.Pool.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// TokenAfterCommit is to be called after a commit, on the primary that it was made on: on
// the same connection, or any other that was not in a transaction by then. A read with
// AtLeast and this token sees what was committed. It costs one round trip.
func TokenAfterCommit(ctx context.Context, conn Querier) (Token, error) {
	var at, snap string
	var writing bool
	err := conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text, pg_current_snapshot()::text, pg_current_xact_id_if_assigned() IS NOT NULL`).
		Scan(&at, &snap, &writing)
	if err != nil {
		return Token{}, fmt.Errorf("cache: token after a commit: %w", err)
	}
	if writing {
		return Token{}, errors.New("cache: token after a commit: the transaction is still open: commit it first, then ask for the token")
	}
	var t Token
	if t.lsn, err = lsn.Parse(at); err != nil {
		return Token{}, fmt.Errorf("cache: token after a commit: %w", err)
	}
	if t.snap, err = parseSnapshot(snap); err != nil {
		return Token{}, fmt.Errorf("cache: token after a commit: %w", err)
	}
	return t, nil
}

// seenBy says whether an entry contains all that the token asks for. Its own snapshot
// proves it. So does the daemon's position: what it has applied and is still there as a
// fresh value was not made stale. applied is where that position ended, as it was known
// before the entry was read; 0 where invalidations are held back on purpose.
func (t *Token) seenBy(m *entryMeta, applied lsn.LSN) bool {
	if t.IsZero() {
		return true
	}
	if m.freshUntil != 0 && applied >= t.lsn && applied != 0 {
		return true
	}
	if m.snapshot == noSnapshot {
		return m.lsn >= t.lsn
	}
	s, err := parseSnapshot(m.snapshot)
	return err == nil && s.contains(&t.snap)
}
