package cli

import (
	"bytes"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// initDatabase is a small database: its URL, and the password in it, which must not
// show.
func initDatabase(t *testing.T) (from, password string) {
	t.Helper()
	db := servertest.Postgres(t)
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), `CREATE TABLE users (id int PRIMARY KEY, team int);
		CREATE TABLE teams (tenant_id int, id int PRIMARY KEY); CREATE TABLE log (line text)`); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	password, _ = u.User.Password()
	return db.URL, password
}

func TestInitWritesAFileThatValidateAccepts(t *testing.T) {
	unsetURLs(t)
	from, password := initDatabase(t)
	path := filepath.Join(t.TempDir(), "mappings.yaml")
	code, out, errOut := runMain(t, "init", "--from-db", from, "--output", path)
	want := path + `: 2 families
left out, commented in the file:
  public.log: it has no primary key, and no other replica identity: once it is published, the application's own UPDATE and DELETE on it fail
need another replica identity to be exact, see the file: public.teams
`
	if code != exitOK || out != "" || errOut != want {
		t.Fatalf("exit code %d, stdout %q, stderr:\n%s", code, out, errOut)
	}
	if code, out, _ := runMain(t, "validate", path); code != exitOK || !strings.HasSuffix(out, ": ok, 2 families, 2 tables\n") {
		t.Errorf("validate: exit code %d, %s", code, out)
	}
	written, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(written, []byte(password)) || bytes.Contains(written, []byte("postgres://")) {
		t.Errorf("the URL is in the file:\n%s", written)
	}

	// What is there already is somebody's work.
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errOut = runMain(t, "init", "--from-db", from, "--output", path)
	if now, _ := os.ReadFile(path); code != exitUsage || string(now) != "mine" || !strings.Contains(errOut, "--force replaces it") {
		t.Errorf("exit code %d, file %q, stderr %q", code, now, errOut)
	}
	code, _, _ = runMain(t, "init", "--from-db", from, "--output", path, "--force")
	if now, _ := os.ReadFile(path); code != exitOK || !bytes.Equal(now, written) {
		t.Errorf("--force: exit code %d, file %q", code, now)
	}
}

func TestInitToStdoutWithFilters(t *testing.T) {
	from, _ := initDatabase(t)
	t.Setenv("DATABASE_URL", from)
	code, out, errOut := runMain(t, "init", "--schema", "public", "--exclude", "lo?", "--exclude", "public.users", "--tenant-column", "")
	if code != exitOK || !strings.Contains(out, `teams: {key: "teams:{id}", class: critical}`) || strings.Contains(out, "users") || errOut != "mappings: 1 family\n" {
		t.Errorf("exit code %d, stderr %q, stdout:\n%s", code, errOut, out)
	}
}

func TestInitRefusals(t *testing.T) {
	unsetURLs(t)
	from, password := initDatabase(t)
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{nil, exitUsage, "--from-db is needed, or the environment variable DATABASE_URL"},
		{[]string{"--from-db", from, "--exclude", "[a"}, exitUsage, `--exclude "[a": syntax error in pattern`},
		{[]string{"--from-db", "postgres://u:hunter2@127.0.0.1:1/db"}, exitUnavailable, "connect to the source"},
		{[]string{"--from-db", "mysql://u:hunter2@h/db"}, exitConfig, "postgres://user:password@host:5432/database"},
		{[]string{"--from-db", from, "--schema", "none"}, exitFailed, "no table can be mapped: there is no table in the schemas none"},
		{[]string{"--from-db", from, "--exclude", "users", "--exclude", "teams"}, exitFailed, "no table can be mapped: public.log: it has no primary key"},
		{[]string{"--from-db", from, "--output", filepath.Join(t.TempDir(), "no", "folder")}, exitConfig, "write the mappings"},
		{[]string{"--from-db", "postgres://u:hunter2@h:port/db"}, exitConfig, "--from-db has a port that is no number"},
		{[]string{"--from-db", strings.Replace(from, password, "hunter2", 1)}, exitConfig, "check the user and password in --from-db"},
	} {
		code, out, errOut := runMain(t, append([]string{"init"}, tc.args...)...)
		if code != tc.code || out != "" || !strings.Contains(errOut, tc.says) || strings.Contains(errOut, "hunter2") || strings.Contains(errOut, password) {
			t.Errorf("%q: exit code %d, want %d; stdout %q, stderr %q", tc.args, code, tc.code, out, errOut)
		}
		if strings.Contains(errOut, "source.url") {
			t.Errorf("%q: there is no file, and no source.url: %s", tc.args, errOut)
		}
	}
	t.Setenv("DATABASE_URL", "postgres://u:hunter2@h:port/db")
	if code, _, errOut := runMain(t, "init"); code != exitConfig || !strings.Contains(errOut, "DATABASE_URL has a port that is no number") {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
	if code, _, errOut := runMain(t, "init", "--from-db", ""); code != exitUsage || !strings.Contains(errOut, "--from-db is empty") {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
}
