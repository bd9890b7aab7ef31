package cache

import (
	"net/http"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

func mustToken(t *testing.T, conn querier) Token {
	t.Helper()
	token, err := TokenAfterCommit(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// taken is the metadata of an entry that is loaded now.
func taken(t *testing.T, conn querier) *entryMeta {
	t.Helper()
	m := &entryMeta{}
	if err := conn.QueryRow(t.Context(), `SELECT pg_current_snapshot()::text`).Scan(&m.snapshot); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestTokenIsMetByWhatWasLoadedAfterTheCommit(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, `CREATE TABLE t (id int PRIMARY KEY)`)
	conn, other := db.Conn(t), db.Conn(t)
	begin := func(c *pgx.Conn, id int) pgx.Tx {
		t.Helper()
		tx, err := c.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `INSERT INTO t VALUES ($1)`, id); err != nil {
			t.Fatal(err)
		}
		return tx
	}
	commit := func(tx pgx.Tx) {
		t.Helper()
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	long := begin(other, 1) // open all the while
	before := taken(t, db.Conn(t))
	mine := begin(conn, 2)
	between := taken(t, db.Conn(t))
	if token, err := TokenAfterCommit(t.Context(), mine); err == nil || !strings.Contains(err.Error(), "commit it first") {
		t.Errorf("before the commit: %v, %v", token, err)
	}
	commit(mine)
	token := mustToken(t, conn)
	after := taken(t, db.Conn(t))
	for name, m := range map[string]*entryMeta{"before": before, "between": between} {
		if token.metBy(m) {
			t.Errorf("an entry of %s the write, with snapshot %s, meets the token %s", name, m.snapshot, token)
		}
	}
	if !token.metBy(after) {
		t.Errorf("snapshot %s does not meet the token %s", after.snapshot, token)
	}
	commit(long)
	if !token.metBy(taken(t, conn)) {
		t.Error("a later snapshot does not meet the token")
	}
	again, err := ParseToken(token.String())
	if err != nil || again.String() != token.String() || !again.metBy(after) || again.metBy(before) {
		t.Errorf("%s was parsed as %s, %v", token, again, err)
	}
	cookie := http.Cookie{Name: "t", Value: token.String()}
	if err := cookie.Valid(); err != nil {
		t.Error(err)
	}
	standby := &entryMeta{snapshot: noSnapshot, lsn: token.at - 1}
	if token.metBy(standby) {
		t.Error("met by a standby that had not replayed it")
	}
	if standby.lsn = token.at; !token.metBy(standby) {
		t.Error("not met by a standby that had replayed it")
	}
	if token.metBy(&entryMeta{snapshot: "nonsense"}) {
		t.Error("met by what cannot be read")
	}
}

func TestParseToken(t *testing.T) {
	if token, err := ParseToken(""); err != nil || !token.IsZero() || token.String() != "" || !token.metBy(&entryMeta{}) {
		t.Errorf("the zero token: %v, %v", token, err)
	}
	for _, text := range []string{"1", "x", "2.0000000000000001.1-1-", "1.1.1-1-", "1.0000000000000001.1", "1.0000000000000000.1-1-", "1.0000000000000001.5-3-"} {
		if _, err := ParseToken(text); err == nil || !strings.HasPrefix(err.Error(), "this is no token") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
