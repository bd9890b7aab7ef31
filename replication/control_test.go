package replication

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// controlConn connects as the daemon's control connections do.
func controlConn(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := ConnectControl(t.Context(), url, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { CloseControl(context.Background(), conn) })
	return conn
}

func controlLogger(t *testing.T) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// wantConfigError fails unless err is a ConfigError whose text has all of want.
func wantConfigError(t *testing.T, err error, want ...string) {
	t.Helper()
	var config *ConfigError
	if !errors.As(err, &config) {
		t.Fatalf("error is %T (%v), want a ConfigError", err, err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is not in the error: %v", w, err)
		}
	}
}

// asRole is the URL with another user, over TCP with a password.
func asRole(t *testing.T, db *servertest.Database, role, password string) string {
	t.Helper()
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, password)
	return u.String()
}

func createRole(t *testing.T, db *servertest.Database, suffix, attributes string) string {
	t.Helper()
	role := db.Name + suffix
	db.Exec(t, "CREATE ROLE "+role+" LOGIN PASSWORD 'pw' "+attributes)
	t.Cleanup(func() {
		conn, err := pgx.Connect(context.Background(), db.SocketURL)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if _, err := conn.PgConn().Exec(context.Background(), "DROP OWNED BY "+role+" CASCADE; DROP ROLE "+role).ReadAll(); err != nil {
			t.Errorf("drop role %s: %v", role, err)
		}
	})
	return asRole(t, db, role, "pw")
}

func TestConnectControlErrors(t *testing.T) {
	db := servertest.Postgres(t)
	t.Run("wrong password", func(t *testing.T) {
		_, err := ConnectControl(t.Context(), asRole(t, db, "postgres", "hunter2"), "test")
		wantConfigError(t, err, "refuses the role", "check the user and password")
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the password is in the error: %v", err)
		}
	})
	t.Run("no such database", func(t *testing.T) {
		_, err := ConnectControl(t.Context(), db.Server.DatabaseURL("nowhere"), "test")
		wantConfigError(t, err, "does not exist", "source.url")
	})
	t.Run("unreadable url", func(t *testing.T) {
		_, err := ConnectControl(t.Context(), "postgres://u:hunter2@h:port/db", "test")
		wantConfigError(t, err, "source.url has a port that is no number")
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the password is in the error: %v", err)
		}
	})
	t.Run("server away", func(t *testing.T) {
		_, err := ConnectControl(t.Context(), "postgres://u:hunter2@127.0.0.1:1/db", "test")
		var away *UnavailableError
		if !errors.As(err, &away) {
			t.Fatalf("error is %T (%v), want an UnavailableError", err, err)
		}
		if !strings.Contains(err.Error(), "(is Postgres running and reachable at source.url?)") || !strings.Contains(GivenAs("--url", err).Error(), "reachable at --url?)") {
			t.Errorf("it does not say what to look at: %v", err)
		}
		_, err = ConnectControl(t.Context(), "postgres://u:hunter2@no-such-host.invalid:5432/db", "test")
		if !errors.As(err, &away) || !strings.Contains(err.Error(), "does the host in source.url have an address") {
			t.Errorf("a name that does not resolve: %v", err)
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the password is in the error: %v", err)
		}
	})
	t.Run("caller gave up", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := ConnectControl(ctx, db.URL, "test"); !errors.Is(err, context.Canceled) {
			t.Errorf("error is %v, want context.Canceled", err)
		}
	})
}

func TestControlSessionIsPinned(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, "ALTER DATABASE "+db.Name+" SET search_path = evil", "ALTER DATABASE "+db.Name+" SET default_transaction_read_only = on")
	conn := controlConn(t, db.URL)
	for name, want := range map[string]string{
		"search_path": "pg_catalog", "default_transaction_read_only": "off", "statement_timeout": "10s",
		"lock_timeout": "5s", "TimeZone": "UTC", "application_name": "cdc-invalidator test",
	} {
		var got string
		if err := conn.QueryRow(t.Context(), "SELECT current_setting($1)", name).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %q (%v), want %q", name, got, err, want)
		}
	}
}

func TestServerCheck(t *testing.T) {
	good := Server{Version: 150000, WALLevel: "logical"}
	if err := good.Check(); err != nil {
		t.Errorf("a good server is refused: %v", err)
	}
	for _, tc := range []struct {
		server Server
		want   []string
	}{
		{Server{Version: 140012, WALLevel: "logical"}, []string{"Postgres 14.12", "15"}},
		{Server{Version: 90603, WALLevel: "logical"}, []string{"Postgres 9.6"}},
		{Server{Version: 170001, WALLevel: "replica"}, []string{"wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical'"}},
		{Server{Version: 170001, WALLevel: "logical", InRecovery: true}, []string{"standby", "target_session_attrs"}},
	} {
		wantConfigError(t, tc.server.Check(), tc.want...)
	}
}

// The catalogs of a server that is in recovery, and of one with the wrong level.
func TestStandbyAndWALLevelAreRefused(t *testing.T) {
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: map[string]string{"wal_level": "replica"}})
	conn := controlConn(t, server.URL())
	_, err := Setup(t.Context(), conn, SetupOptions{Slot: "s", Publication: "p", CreateSlot: true, CreatePublication: true})
	wantConfigError(t, err, "wal_level is replica")
	before, err := ReadEpoch(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}

	// A standby without a primary serves reads once it has replayed what it has.
	var dataDir string
	if err := conn.QueryRow(t.Context(), "SHOW data_directory").Scan(&dataDir); err != nil {
		t.Fatal(err)
	}
	CloseControl(t.Context(), conn)
	if err := server.Stop(t.Context(), localserver.Fast); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dataDir+"/standby.signal", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn = controlConn(t, server.URL())
	_, err = ReadEpoch(t.Context(), conn)
	wantConfigError(t, err, "standby")
	if !errors.Is(err, ErrStandby) {
		t.Errorf("%v is not ErrStandby", err)
	}
	_, err = Setup(t.Context(), conn, SetupOptions{Slot: "s", Publication: "p", CreateSlot: true, CreatePublication: true})
	if !errors.Is(err, ErrStandby) {
		t.Errorf("Setup on a standby: %v", err)
	}

	if _, err := conn.Exec(t.Context(), "SELECT pg_promote(true, 30)"); err != nil {
		t.Fatal(err)
	}
	after, err := ReadEpoch(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if c, why := after.Since(before); c != TimelineChanged || !strings.Contains(why, "timeline 2, was 1") {
		t.Errorf("after the promotion: %v (%s)", c, why)
	}
}

func TestEpoch(t *testing.T) {
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	db := servertest.NewDatabase(t, server, "epochdb")
	conn := controlConn(t, db.URL)
	first, err := ReadEpoch(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if first.SystemID == "" || first.Timeline != 1 || first.PostmasterStart.IsZero() || first.CheckpointerStart.IsZero() || first.ServerVersion < 150000 {
		t.Fatalf("%+v", first)
	}
	again, err := ReadEpoch(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	if c, why := again.Since(first); c != Continuous || why != "" {
		t.Errorf("nothing happened: %v (%s)", c, why)
	}

	// A role without pg_read_all_stats cannot see the checkpointer: no proof.
	limited, err := ReadEpoch(t.Context(), controlConn(t, createRole(t, db, "_plain", "")))
	if err != nil {
		t.Fatal(err)
	}
	if c, why := limited.Since(first); c != Unproved || !strings.Contains(why, "pg_read_all_stats") {
		t.Errorf("as a plain role: %v (%s)", c, why)
	}

	// One backend crashes: the server restarts all of them under the same postmaster.
	victim := controlConn(t, db.URL)
	if err := server.CrashBackend(int(victim.PgConn().PID())); err != nil {
		t.Fatal(err)
	}
	crashed := readNewEpoch(t, db.URL, first)
	if c, why := crashed.Since(first); c != Restarted || !strings.Contains(why, "crashed") {
		t.Errorf("after a backend crashed: %v (%s)", c, why)
	}
	if !crashed.PostmasterStart.Equal(first.PostmasterStart) {
		t.Error("the postmaster restarted as well; the test shows nothing")
	}

	if err := server.Stop(t.Context(), localserver.Fast); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	restarted := readNewEpoch(t, db.URL, crashed)
	if c, why := restarted.Since(crashed); c != Restarted || !strings.Contains(why, "server started") {
		t.Errorf("after a restart: %v (%s)", c, why)
	}
	other := restarted
	other.SystemID = "1"
	if c, _ := other.Since(restarted); c != OtherCluster {
		t.Errorf("another cluster: %v", c)
	}
}

// readNewEpoch asks until the server answers and has a new checkpointer: the
// crash of a backend takes a moment to be noticed.
func readNewEpoch(t *testing.T, url string, before Epoch) Epoch {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		conn, err := ConnectControl(t.Context(), url, "test")
		if err == nil {
			var e Epoch
			e, err = ReadEpoch(t.Context(), conn)
			CloseControl(t.Context(), conn)
			if err == nil && !e.CheckpointerStart.IsZero() && !e.CheckpointerStart.Equal(before.CheckpointerStart) {
				return e
			}
		}
		last = err
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the server does not come back: %v", last)
		}
	}
}

func TestNames(t *testing.T) {
	for _, tc := range []struct{ schema, table, want string }{
		{"public", "users", "public.users"},
		{"public", "user", "public.user"}, // behind the dot a reserved word is a name
		{"user", "order", `"user".order`},
		{"Shop", "Order Items", `"Shop"."Order Items"`},
		{"s", `a"b`, `s."a""b"`},
		{"s", "1a", `s."1a"`},
	} {
		if got := qualified(tc.schema, tc.table); got != tc.want {
			t.Errorf("qualified(%q, %q) = %s, want %s", tc.schema, tc.table, got, tc.want)
		}
	}
}

func TestConfigErrorText(t *testing.T) {
	err := &ConfigError{Op: "check x", Problem: "is wrong", Fix: "do a;\ndo b;", Err: errors.New("cause")}
	want := "check x: is wrong: cause\n  fix: do a;\n       do b;"
	if err.Error() != want {
		t.Errorf("%q, want %q", err.Error(), want)
	}
	var buf bytes.Buffer
	slog.New(slog.NewJSONHandler(&buf, nil)).Info("m", "error", err)
	if strings.Count(buf.String(), "\n") != 1 {
		t.Errorf("the error breaks a log line: %s", buf.String())
	}
}
