package replication

import (
	"context"
	"errors"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// Every code that Postgres has, on a connection that is being made, on one that is there, and in
// a for_each query: waiting is for what it may mend. testdata/sqlstates.txt is of errcodes.txt.
func TestWhatWaitingMends(t *testing.T) {
	waits := strings.Fields("08000 08001 08003 08004 08006 08007 40000 40001 40003 40P01 53000 53100 53200 53300 57000 57014 57P01 57P02 57P03 57P05 58000 58030")
	hinted := []string{"55P03"} // a lock
	config := strings.Fields("28000 28P01 3D000 42501 42602 42622 53400 57P04 58P01 58P02")
	text, err := os.ReadFile("testdata/sqlstates.txt")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, code := range strings.Fields(string(text)) {
		var away *UnavailableError
		var wrong *ConfigError
		pg := &pgconn.PgError{Code: code, Message: "no"}
		wait := slices.Contains(waits, code) || slices.Contains(hinted, code)
		if wait || slices.Contains(config, code) {
			seen++
		}
		err := serverError("ask", pg, "")
		if got := errors.As(err, &away); got != wait {
			t.Errorf("%s on a connection: waiting mends it: %v, want %v", code, got, wait)
		}
		if got := errors.As(err, &wrong); got != slices.Contains(config, code) {
			t.Errorf("%s on a connection: to be configured: %v", code, got)
		} else if got && wrong.Fix == "" && code != insufficientPrivilege { // its fix is the caller's
			t.Errorf("%s on a connection: no fix", code)
		}
		err = refusedConnection("connect", pg, pg, "")
		if got := errors.As(err, &away); got != wait || errors.As(err, &wrong) == wait {
			t.Errorf("%s of a new connection: waiting mends it: %v, want %v", code, got, wait)
		}
		if got, want := errors.Is(queryError(pg), ErrQueryRefused), !slices.Contains(waits, code) || code == "57014"; got != want {
			t.Errorf("%s of a for_each query: refused: %v, want %v", code, got, want)
		}
	}
	if seen != len(waits)+len(hinted)+len(config) {
		t.Errorf("%d of the codes are in the list", seen)
	}
}

// A refused role: the fix is told by where the server found it, in whichever language it says so.
func TestFixOfARefusedRole(t *testing.T) {
	for _, tt := range []struct{ code, routine, want, not string }{
		{"28000", "InitializeSessionUserId", "CREATE ROLE", "pg_hba.conf"},
		{"28000", "ClientAuthentication", "pg_hba.conf has a line", "CREATE ROLE"},
		{"28000", "auth_failed", "pg_ident.conf", "CREATE ROLE"},
		{"28000", "ProcessStartupPacket", "name the user", "pg_hba.conf"},
		{"28000", "", "CREATE ROLE", "password"},
		{"28P01", "auth_failed", "check the user and password", "pg_hba.conf"},
		{"28P01", "recv_password_packet", "give the password", "pg_hba.conf"},
	} {
		fix := refusedRole(&pgconn.PgError{Code: tt.code, Routine: tt.routine, Message: "nein"})
		if !strings.Contains(fix, tt.want) || strings.Contains(fix, tt.not) {
			t.Errorf("%s of %s: %s", tt.code, tt.routine, fix)
		}
	}
}

// The same of a real server.
func TestRolesThatCannotLogIn(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, "CREATE ROLE "+db.Name+"_idle NOLOGIN")
	defer db.Exec(t, "DROP ROLE "+db.Name+"_idle")
	for _, role := range []string{db.Name + "_nobody", db.Name + "_idle"} {
		u, err := url.Parse(db.SocketURL) // where pg_hba.conf trusts everybody
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.User(role)
		_, err = ConnectControl(t.Context(), u.String(), "test")
		wantConfigError(t, err, "the server refuses the role", "CREATE ROLE")
		if strings.Contains(err.Error(), "pg_hba") {
			t.Errorf("%s: %v", role, err)
		}
	}
}

// A query that meets a limit of the server, or answers too much, widens.
func TestQueriesThatAreTooMuch(t *testing.T) {
	db := servertest.Postgres(t)
	conn := servertest.Connect(t, db.URL)
	epoch, err := ReadEpoch(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	db.Exec(t, "ALTER DATABASE "+db.Name+" SET temp_file_limit = 0", "ALTER DATABASE "+db.Name+" SET work_mem = '64kB'")
	q, err := OpenQueryConn(t.Context(), db.URL, "gate", epoch)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close(context.WithoutCancel(t.Context()))
	for _, sql := range []string{
		"SELECT g::text FROM generate_series(1, 100000) g ORDER BY md5(g::text)",
		"SELECT repeat('x', 1000000) FROM generate_series(1, 20) g",
	} {
		if _, _, err := q.Query(t.Context(), sql, nil, 10000); !errors.Is(err, ErrQueryRefused) {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if _, rows, err := q.Query(t.Context(), "SELECT repeat('x', 1000000) FROM generate_series(1, 10) g", nil, 10000); err != nil || len(rows) != 10 {
		t.Errorf("%d rows, %v", len(rows), err)
	}
}
