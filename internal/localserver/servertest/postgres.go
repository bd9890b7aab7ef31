package servertest

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
)

// Database is a fresh database on the shared server, dropped with its replication
// slots at the end of its test.
type Database struct {
	Server    *localserver.Postgres // shared: do not stop it
	Name      string
	URL       string
	SocketURL string
}

// Postgres returns a fresh database for t.
func Postgres(t testing.TB) *Database {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.postgres == nil {
		shared.need(t, func(ctx context.Context, dir string) (err error) {
			shared.postgres, err = localserver.StartPostgres(ctx, localserver.PostgresOptions{
				Containers: Containers{}, Dir: dir, Settings: map[string]string{"max_connections": "200", "max_wal_senders": "50", "max_replication_slots": "50"},
			})
			return err
		})
	}
	shared.nextDB++
	db := NewDatabase(t, shared.postgres, fmt.Sprintf("test%d", shared.nextDB))
	return db
}

// NewDatabase creates a database on a server that the test has of its own.
func NewDatabase(t testing.TB, server *localserver.Postgres, name string) *Database {
	t.Helper()
	db := &Database{Server: server, Name: name, URL: server.DatabaseURL(name), SocketURL: server.DatabaseSocketURL(name)}
	admin := Connect(t, server.SocketURL())
	mustExec(t, admin, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()+" TEMPLATE template0")
	if err := admin.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.drop(); err != nil {
			t.Errorf("drop database %s: %v", name, err)
		}
	})
	return db
}

func (db *Database) drop() error {
	if !db.Server.Running() {
		return nil // the test has stopped its own server, and will close it
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, db.Server.SocketURL())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	// A prepared transaction of the database keeps it from being dropped, and can be
	// ended only from inside.
	if err := db.rollbackPrepared(ctx); err != nil {
		return err
	}
	for _, sql := range []string{
		"SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots WHERE database = $1 AND active",
		"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1",
	} {
		if _, err := conn.Exec(ctx, sql, db.Name); err != nil {
			return err
		}
	}
	_, err = conn.Exec(ctx, "DROP DATABASE IF EXISTS "+pgx.Identifier{db.Name}.Sanitize()+" WITH (FORCE)")
	return err
}

func (db *Database) rollbackPrepared(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, db.SocketURL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, "SELECT format('ROLLBACK PREPARED %L', gid) FROM pg_prepared_xacts WHERE database = current_database()")
	if err != nil {
		return err
	}
	statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// Conn returns a connection that is closed at the end of the test.
func (db *Database) Conn(t testing.TB) *pgx.Conn {
	t.Helper()
	return Connect(t, db.URL)
}

// Exec runs statements on a connection of their own; each string may hold several.
func (db *Database) Exec(t testing.TB, sql ...string) {
	t.Helper()
	conn := Connect(t, db.SocketURL)
	mustExec(t, conn, sql...)
	if err := conn.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// Connect returns a connection that is closed at the end of the test.
func Connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the server may be gone by then
	})
	return conn
}

// mustExec uses the simple protocol: several statements in one string.
func mustExec(t testing.TB, conn *pgx.Conn, sql ...string) {
	t.Helper()
	for _, s := range sql {
		if _, err := conn.PgConn().Exec(context.Background(), s).ReadAll(); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// PrivatePostgres starts a server for t alone, which it may stop, kill and set up as
// it likes; it is closed at the end of the test.
func PrivatePostgres(t testing.TB, o localserver.PostgresOptions) *localserver.Postgres {
	t.Helper()
	o.Containers = Containers{}
	p, err := localserver.StartPostgres(t.Context(), o)
	if err != nil {
		t.Fatalf("servertest: %v", err)
	}
	t.Cleanup(func() { closeServer(t, p.LogPath(), p.Close) })
	return p
}

// Standby starts a hot standby of a server, closed at the end of the test. There is none
// of a server in a container.
func Standby(t testing.TB, primary *localserver.Postgres, o localserver.PostgresOptions) *localserver.Postgres {
	t.Helper()
	if primary.Contained() {
		t.Skip("a standby needs an installed server (CDC_SERVERS=local)")
	}
	p, err := primary.StartStandby(t.Context(), o)
	if err != nil {
		t.Fatalf("servertest: %v", err)
	}
	t.Cleanup(func() { closeServer(t, p.LogPath(), p.Close) })
	return p
}

// closeServer shows the server's log when its test failed: the cause is often there.
func closeServer(t testing.TB, logPath string, closer func() error) {
	if t.Failed() {
		if log, err := os.ReadFile(logPath); err == nil {
			t.Logf("log of the server:\n%s", log[max(0, len(log)-8000):])
		}
	}
	if err := closer(); err != nil {
		t.Errorf("servertest: %v", err)
	}
}
