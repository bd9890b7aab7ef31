package cli

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/doctor"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// provisionFile is a file for a database with a table of which the log carries too
// little.
func provisionFile(t *testing.T) (path string, db *servertest.Database) {
	t.Helper()
	db = servertest.Postgres(t)
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY, email text)")
	content := strings.Replace(fmt.Sprintf(runTestFile, db.URL, db.Name+"_slot", servertest.Redis(t).URL), "user:{id}", "user:{id}:{email}", 1)
	return writeRunTestFile(t, content), db
}

func TestPlanAndApply(t *testing.T) {
	path, db := provisionFile(t)
	code, out, errOut := runMain(t, "plan", "--config", path)
	for _, want := range []string{
		"  ~ table public.users: ", "\n      ALTER TABLE public.users REPLICA IDENTITY FULL;\n",
		"  + publication pub: ", "\n      CREATE PUBLICATION pub FOR TABLE public.users WITH",
		"  + slot " + db.Name + "_slot: ", "\n      SELECT pg_create_logical_replication_slot('" + db.Name + "_slot', 'pgoutput');\n",
		"  + function cdc_invalidator.announce_ddl(): ", "  + event trigger cdc_invalidator_sql_drop: ",
		"6 to create, 1 to change. To do it: cdc-invalidator apply --config " + path,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if code != exitDifferences || errOut != "" {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}

	// Nobody to ask: nothing is done.
	code, _, errOut = runMain(t, "apply", "--config", path)
	if code != exitUsage || !strings.Contains(errOut, "--yes") {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
	if code, again, _ := runMain(t, "plan", "--config", path); code != exitDifferences || again != out {
		t.Errorf("exit code %d: the plan is another one:\n%s", code, again)
	}

	code, out, errOut = runMain(t, "apply", "--config", path, "--yes", "--no-event-trigger")
	if code != exitOK || errOut != "" || !strings.Contains(out, "1/3 ~ table public.users ... done\n2/3 + publication pub ... done\n3/3 + slot ") || !strings.HasSuffix(out, "... done\nDone.\n") {
		t.Errorf("exit code %d, stderr %q\n%s", code, errOut, out)
	}
	code, out, _ = runMain(t, "apply", "--config", path, "--no-event-trigger")
	if code != exitOK || !strings.Contains(out, "Nothing to do.") || !strings.Contains(out, "the event trigger is left out") {
		t.Errorf("the second time: exit code %d\n%s", code, out)
	}
	if code, out, _ = runMain(t, "plan", "--config", path); code != exitDifferences || !strings.Contains(out, "4 to create.") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if code, out, _ = runMain(t, "apply", "--config", path, "--yes"); code != exitOK {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if code, out, _ = runMain(t, "plan", "--config", path); code != exitOK {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

func TestPlanAsJSON(t *testing.T) {
	path, db := provisionFile(t)
	db.Exec(t, "CREATE PUBLICATION pub FOR TABLE users WHERE (id > 1)")
	code, out, _ := runMain(t, "plan", "--config", path, "--json", "--no-event-trigger", "--no-replica-identity")
	var got struct {
		File, Database, Role string
		Version              string `json:"server_version"`
		Steps                []struct{ Action, Object, Name string }
		Blocked              []struct{ Subject, Problem, Fix string }
		Notes                []string
	}
	d := json.NewDecoder(strings.NewReader(out))
	if err := d.Decode(&got); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if code != exitDifferences || got.File != path || got.Database != db.Name || got.Role == "" || got.Version == "" ||
		len(got.Steps) != 1 || got.Steps[0].Action != "create" || got.Steps[0].Object != "slot" ||
		len(got.Blocked) != 1 || got.Blocked[0].Subject != "table public.users" || got.Blocked[0].Fix == "" || len(got.Notes) != 2 {
		t.Errorf("exit code %d\n%s", code, out)
	}
	code, out, errOut := runMain(t, "apply", "--config", path, "--yes", "--no-event-trigger")
	if code != exitConfig || !strings.Contains(out, "  ! table public.users: ") || !strings.Contains(errOut, "row filter") {
		t.Errorf("exit code %d, stderr %q\n%s", code, errOut, out)
	}
}

// With --url another account connects, and its password is nowhere shown.
func TestPlanWithAnotherAccount(t *testing.T) {
	path, db := provisionFile(t)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PLAN_TEST_ADMIN", db.URL)
	path = writeRunTestFile(t, strings.ReplaceAll(string(content), db.URL, "${PLAN_TEST_UNSET}"))
	code, _, errOut := runMain(t, "plan", "--config", path)
	if code != exitConfig || !strings.Contains(errOut, "--url") {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
	code, out, _ := runMain(t, "plan", "--config", path, "--url", "${PLAN_TEST_ADMIN}")
	if code != exitDifferences || !strings.Contains(out, "apply --config "+path+" --url '${PLAN_TEST_ADMIN}'") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if code, out, _ = runMain(t, "plan", "--config", path, "--url", db.URL); code != exitDifferences || strings.Contains(out, db.URL) {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if code, _, errOut = runMain(t, "plan", "--config", path, "--url", "${PLAN_TEST_UNSET}"); code != exitUsage {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
}

// What is wrong with --url is not to be looked for in the file.
func TestPlanSpeaksOfTheURLThatWasGiven(t *testing.T) {
	path, db := provisionFile(t)
	other := servertest.Postgres(t)
	db.Exec(t, "SELECT pg_create_logical_replication_slot('"+db.Name+"_slot', 'pgoutput')", "CREATE PUBLICATION pub")
	t.Setenv("PLAN_TEST_EMPTY", "")
	for _, command := range []string{"plan", "apply"} {
		for _, c := range []struct {
			url, says string
			code      int
		}{
			{"", "--url is empty", exitUsage},
			{"${PLAN_TEST_EMPTY}", "--url", exitUsage},
			{"postgres://u:hunter2@h:port/db", "--url has a port that is no number", exitConfig},
			{strings.Replace(db.URL, "/"+db.Name, "/none", 1), "correct the database name in --url", exitConfig},
			{other.URL, "name that database in --url", 0},
		} {
			code, out, errOut := runMain(t, command, "--config", path, "--url", c.url)
			if text := out + errOut; !strings.Contains(text, c.says) || strings.Contains(text, "source.url") != (c.code == exitUsage) || strings.Contains(text, "hunter2") {
				t.Errorf("%s --url %s: %s", command, c.url, text)
			}
			if c.code != 0 && code != c.code {
				t.Errorf("%s --url %s: exit code %d, want %d", command, c.url, code, c.code)
			}
		}
	}
}

func TestDoctorCommand(t *testing.T) {
	path, _ := provisionFile(t)
	code, out, errOut := runMain(t, "doctor", "--config", path)
	if code != exitDifferences || errOut != "" || !strings.Contains(out, "tables\n  widens   table public.users: ") ||
		!strings.Contains(out, "\n             ALTER TABLE public.users REPLICA IDENTITY FULL;\n") || !strings.HasSuffix(out, "\n1 finding.\n") {
		t.Errorf("exit code %d, stderr %q\n%s", code, errOut, out)
	}
	if _, quiet, _ := runMain(t, "doctor", "--config", path, "--quiet"); strings.Contains(quiet, "  ok ") || !strings.Contains(quiet, "widens") {
		t.Errorf("--quiet shows\n%s", quiet)
	}
	code, out, _ = runMain(t, "doctor", "--config", path, "--json")
	var report doctor.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != exitDifferences || report.Findings != 1 || len(report.Groups) != 6 || report.File != path {
		t.Errorf("exit code %d, %v\n%s", code, err, out)
	}
	if code, out, errOut = runMain(t, "apply", "--config", path, "--yes"); code != exitOK {
		t.Fatalf("exit code %d, stderr %q\n%s", code, errOut, out)
	}
	if code, out, _ = runMain(t, "doctor", "--config", path); code != exitOK || !strings.HasSuffix(out, "\nNothing found.\n") {
		t.Errorf("exit code %d\n%s", code, out)
	}

	away := writeRunTestFile(t, fmt.Sprintf(runTestFile, "postgres://127.0.0.1:1/x", "s", servertest.Redis(t).URL))
	if code, out, _ = runMain(t, "doctor", "--config", away); code != exitUnavailable || !strings.Contains(out, "Not there: source.") || !strings.Contains(out, "may run every command") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	for _, command := range []string{"plan", "apply"} {
		if code, _, errOut = runMain(t, command, "--config", away); code != exitUnavailable || !strings.Contains(errOut, "127.0.0.1:1") {
			t.Errorf("%s: exit code %d, stderr %q", command, code, errOut)
		}
	}
	faulty := writeRunTestFile(t, strings.Replace(fmt.Sprintf(runTestFile, "postgres://h/x", "s", "redis://h"), "keys: [user]", "keys: [usr]", 1))
	for _, args := range [][]string{{"doctor"}, {"doctor", "--print-grants"}, {"plan"}, {"apply"}} {
		if code, _, errOut = runMain(t, append(args, "--config", faulty)...); code != exitConfig || !strings.Contains(errOut, "usr") {
			t.Errorf("%v with a fault: exit code %d, stderr %q", args, code, errOut)
		}
		if code, _, errOut = runMain(t, args...); code != exitUsage || !strings.Contains(errOut, "--config is needed") {
			t.Errorf("%v: exit code %d, stderr %q", args, code, errOut)
		}
	}
}

// Grants need no server, and no value of a variable that a URL refers to.
func TestPrintGrants(t *testing.T) {
	path := writeRunTestFile(t, fmt.Sprintf(runTestFile, "${PLAN_TEST_UNSET}", "s", "${PLAN_TEST_UNSET}"))
	code, out, errOut := runMain(t, "doctor", "--config", path, "--print-grants", "--role", "the user", "--redis-user", "u")
	for _, want := range []string{
		`CREATE ROLE "the user" LOGIN REPLICATION PASSWORD 'PASSWORD';`, `GRANT CONNECT ON DATABASE :"DBNAME" TO "the user";`,
		"ACL SETUSER u reset on >PASSWORD ~inv:* ~user:* +unlink +evalsha +script|load +info +scan +get +set +hmget +hset +hgetall +persist +time +getrange +setrange +pttl +pexpire +zrevrange +zrangebyscore +zscore +zrem +hdel +zadd +zcount +select\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if code != exitOK || errOut != "" {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
	if strings.Contains(out, "OWNER TO") || strings.Contains(out, "CREATE PUBLICATION") {
		t.Errorf("it takes the tables from their owner, or publishes them unseen:\n%s", out)
	}
	if _, out, _ = runMain(t, "doctor", "--config", path, "--print-grants", "--owner", "--role", "the user"); !strings.Contains(out, `ALTER TABLE public.users OWNER TO "the user";`) {
		t.Errorf("it was asked for, and is not in\n%s", out)
	}
	path = writeRunTestFile(t, fmt.Sprintf(runTestFile, "postgres://bob:hunter2@h/shop", "s", "redis+cluster://eve:hunter2@h/0"))
	code, out, _ = runMain(t, "doctor", "--config", path, "--print-grants")
	if code != exitOK || strings.Contains(out, "hunter2") || !strings.Contains(out, "GRANT CONNECT ON DATABASE shop TO bob;") ||
		!strings.Contains(out, "ACL SETUSER eve reset") || !strings.Contains(out, "+cluster|slots +cluster|nodes +asking") || strings.Contains(out, "+select") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if code, _, errOut = runMain(t, "doctor", "--config", path, "--role", "x"); code != exitUsage || !strings.Contains(errOut, "--print-grants") {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
}

// A URL that cannot be read is a fault of the file, whatever it is that is wrong with it,
// and run says the same.
func TestDoctorRefusesAFaultyURL(t *testing.T) {
	const source, redis = "postgres://u:hunter2@127.0.0.1:1/db", "redis://u:hunter2@127.0.0.1:1/0"
	for _, c := range []struct{ source, redis, says string }{
		{"postgres://u:hunter2@h:port/db", redis, "source.url has a port that is no number"},
		{"postgres://u:hunter2%zz@h/db", redis, "source.url cannot be read"},
		{"postgres://u:hunter2@h:70000/db", redis, "source.url has a port that is no number"},
		{source + "?connect_timeout=x", redis, "source.url has a connect_timeout that is no number of seconds"},
		{source + "?sslmode=verify-full&sslrootcert=/nope", redis, "/nope: no such file"},
		{source, "redis://u:hunter2@h:port/0", "redis url: "},
		{source, "redis://u:hunter2%zz@h/0", "redis url: "},
		{source, "redis+cluster://u:hunter2@h/3", "redis url: "},
		{source, "rediss://u:hunter2@h/0?ca_file=/nope", "redis url: "},
	} {
		path := writeRunTestFile(t, fmt.Sprintf(runTestFile, c.source, "slot", c.redis))
		for _, args := range [][]string{{"doctor", "--json"}, {"run", "--http", "off"}} {
			code, out, errOut := runMain(t, append(args, "--config", path)...)
			if code != exitConfig || out != "" || !strings.Contains(errOut, c.says) || strings.Contains(errOut, "hunter2") {
				t.Errorf("%s %s, %s: exit code %d, stdout %q, stderr %q", args[0], c.source, c.redis, code, out, errOut)
			}
		}
	}
	// Both at once.
	path := writeRunTestFile(t, fmt.Sprintf(runTestFile, "postgres://u:hunter2@h:port/db", "slot", "redis://h:port/0"))
	if code, _, errOut := runMain(t, "doctor", "--config", path); code != exitConfig || !strings.Contains(errOut, "source.url has a port") || !strings.Contains(errOut, "redis.url") {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
}
