package integration

import (
	"context"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// What docs/getting-started.md has the reader type, with an application whose role owns
// the tables: it keeps them, and everything that it could do before it can still do.
func TestGettingStartedAsItIsTyped(t *testing.T) {
	w := newWorld(t, `SELECT 1`, "\nclasses: {c: {staleness: 1s}}\nkeys: {k: {key: \"k\", class: c}}\nmappings: [{table: public.none, keys: [k]}]\n")
	app, daemon := "app_"+w.slot, "role_"+w.slot
	w.exec("CREATE ROLE "+app+" LOGIN PASSWORD 'app'", "GRANT CREATE ON SCHEMA public TO "+app)
	t.Cleanup(func() {
		sql := "DROP OWNED BY " + app + "; DROP ROLE " + app + "; DROP OWNED BY " + daemon + "; DROP ROLE " + daemon
		if _, err := w.conn.PgConn().Exec(context.Background(), sql).ReadAll(); err != nil {
			t.Error(err)
		}
	})
	as := func(role, password string) string {
		u := mustURL(t, w.url)
		u.User = url.UserPassword(role, password)
		return u.String()
	}
	application := servertest.Connect(t, as(app, "app"))
	write := func(sql ...string) {
		t.Helper()
		for _, s := range sql {
			if _, err := application.Exec(t.Context(), s); err != nil {
				t.Errorf("the application: %s: %v", s, err)
			}
		}
	}
	write("CREATE TABLE users (id int PRIMARY KEY, email text NOT NULL UNIQUE, name text)", "CREATE TABLE orders (id int PRIMARY KEY, user_id int REFERENCES users)")
	changes := []string{"INSERT INTO users VALUES (1, 'a', 'n'), (2, 'b', 'n')", "INSERT INTO orders VALUES (1, 1)", "UPDATE users SET name = 'm'", "UPDATE orders SET id = 2",
		"DELETE FROM orders", "DELETE FROM users WHERE id = 1", "TRUNCATE orders", "DELETE FROM users"}
	write(changes...)

	t.Setenv("DATABASE_URL", as(daemon, "pw"))
	t.Setenv("REDIS_URL", w.redisURL)
	if err := os.Remove(w.config); err != nil {
		t.Fatal(err)
	}
	if code, _, errOut := w.run("init", "--from-db", w.url, "--output", w.config); code != 0 {
		t.Fatalf("init: %d, %s", code, errOut)
	}
	file, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(file), "publication: {name: cdc_invalidator, create_if_not_exists: false}") {
		t.Errorf("the daemon is to create the publication, which takes the tables' ownership:\n%s", file)
	}
	// A slot's name is shared by all databases of the server.
	if err := os.WriteFile(w.config, []byte(strings.Replace(string(file), "slot: {name: cdc_invalidator,", "slot: {name: "+w.slot+",", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	code, grants, errOut := w.run("doctor", "--config", w.config, "--print-grants")
	sql, _, found := strings.Cut(grants, "-- In redis-cli")
	if code != 0 || !found {
		t.Fatalf("print-grants: %d, %s%s", code, grants, errOut)
	}
	sql = strings.NewReplacer("'PASSWORD'", "'pw'").Replace(sql)
	if _, err := w.conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatal(err)
	}
	write(changes...)
	if code, out, errOut := w.run("apply", "--config", w.config, "--url", w.url, "--yes"); code != 0 {
		t.Fatalf("apply: %d\n%s%s", code, out, errOut)
	}
	write(changes...)
	if code, out, errOut := w.run("doctor", "--config", w.config, "--quiet"); code != 0 {
		t.Errorf("doctor, as the daemon's role: %d\n%s%s", code, out, errOut)
	}
	p := w.start()
	write("INSERT INTO users VALUES (1, 'a', 'n'), (2, 'b', 'n')")
	w.settle(p)
	w.put("users:1", "users:2")
	write("UPDATE users SET name = 'm' WHERE id = 1")
	w.settle(p)
	w.want("users:2")
	write(changes[6:]...)
	var owners string
	if err := w.conn.QueryRow(t.Context(), "SELECT string_agg(DISTINCT tableowner::text, ',') FROM pg_tables WHERE schemaname = 'public'").Scan(&owners); err != nil || owners != app {
		t.Errorf("the tables belong to %s: %v", owners, err)
	}
	p.stop()
	w.exec("SELECT pg_drop_replication_slot('" + w.slot + "')")
	_ = application.Close(t.Context())
}
