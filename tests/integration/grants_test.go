package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/doctor"
)

const grantsSchema = `
	CREATE TABLE users (id int PRIMARY KEY, tenant int NOT NULL, email text); ALTER TABLE users REPLICA IDENTITY FULL;
	CREATE TABLE products (id int PRIMARY KEY, seller_id int, name text); ALTER TABLE products REPLICA IDENTITY FULL;
	CREATE TABLE sellers (id int PRIMARY KEY, name text);
	CREATE TABLE notes (id int PRIMARY KEY, tenant int NOT NULL); ALTER TABLE notes REPLICA IDENTITY FULL;
	CREATE SCHEMA side; CREATE TABLE side.stock (product_id int, seller_id int);
	INSERT INTO users VALUES (1, 7, 'a@x'), (2, 7, 'b@x');
	INSERT INTO sellers VALUES (1, 's'); INSERT INTO products VALUES (10, 1, 'p'), (11, 1, 'q'); INSERT INTO side.stock VALUES (11, 1)`

const grantsMappings = `
classes:
  critical: {staleness: 30s}
  slow: {staleness: 30s, linger: 100ms}
keys:
  user:    {key: "t:{tenant}:user:{id}", tenant: tenant, class: critical, ttl: 10m}
  product: {key: "product:{id}", class: critical, ttl: 10m}
  odd:     {key: "odd[*]:{id}:x", class: critical, ttl: 10m}
  search:  {key: "t:{tenant}:search:{version}:{q}", version: "t:{tenant}:search", tenant: tenant, class: critical, ttl: 10m}
  cart:    {key: "cart:{id}", class: critical, ttl: 10m}
  card:    {key: "card:{id}", class: critical, ttl: 10m, on_invalidate: soft, stale_for: 20s}
  late:    {key: "late:{id}", class: slow, ttl: 10m}
mappings:
  - table: public.users
    keys: [user]
  - table: public.notes
    keys: [search]
  - table: public.products
    keys: [product, odd]
  - table: public.sellers
    dependents: ["seller:{id}"]
    keys:
      - {product: {id: id}, for_each: "SELECT p.id FROM products p JOIN side.stock s ON s.product_id = p.id WHERE s.seller_id = {id}"}
  - message: cart.changed
    keys: [cart, card]
  - message: late.changed
    keys: [late]
`

// granted is a world in which the daemon has accounts of its own, with what
// --print-grants printed and nothing else.
type granted struct {
	*world
	role, user string
	admin      string // the source's URL as superuser
}

// run runs a command of the built program.
func (w *world) run(args ...string) (code int, stdout, stderr string) {
	w.t.Helper()
	path, err := binary()
	if err != nil {
		w.t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(w.t.Context(), path, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		w.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

func newGranted(t *testing.T, createPublication bool) *granted {
	t.Helper()
	w := newWorld(t, grantsSchema, grantsMappings)
	g := &granted{world: w, role: "role_" + w.slot, user: "user_" + w.slot, admin: w.url}
	source, redis := mustURL(t, w.url), mustURL(t, w.redisURL)
	source.User, redis.User = url.UserPassword(g.role, "secret-1"), url.UserPassword(g.user, "secret-2")
	w.url, w.redisURL = source.String(), redis.String()
	w.writeConfig(grantsMappings)
	w.reconfigure("replay_window: 2s\n", "replay_window: 2s\n  stream_max_length: 1000\n")
	if !createPublication {
		w.reconfigure("publication: {name: "+w.slot+"_pub, create_if_not_exists: true}", "publication: {name: "+w.slot+"_pub, create_if_not_exists: false}")
	}
	args := []string{"doctor", "--config", w.config, "--print-grants", "--json"}
	if createPublication {
		args = append(args, "--owner")
	}
	code, out, errOut := w.run(args...)
	var grants doctor.Grants
	if err := json.Unmarshal([]byte(out), &grants); code != 0 || err != nil {
		t.Fatalf("exit code %d, %v\n%s%s", code, err, out, errOut)
	}
	if grants.Role != g.role || grants.RedisUser != g.user || strings.Contains(out, "secret") {
		t.Fatalf("the grants are for others, or tell a password:\n%s", out)
	}
	w.exec(strings.ReplaceAll(grants.Postgres, "'PASSWORD'", "'secret-1'"))
	if !createPublication {
		w.exec("CREATE PUBLICATION " + w.slot + "_pub FOR TABLE users, notes, products, sellers WITH (publish_via_partition_root)")
	}
	t.Cleanup(func() {
		// The role's tables go with the database, which another test does not wait for.
		sql := "REASSIGN OWNED BY " + g.role + " TO CURRENT_USER; DROP OWNED BY " + g.role + "; DROP ROLE " + g.role
		if _, err := w.conn.PgConn().Exec(context.Background(), sql).ReadAll(); err != nil {
			t.Error(err)
		}
	})
	g.acl(strings.Replace(grants.Redis, ">PASSWORD", ">secret-2", 1))
	t.Cleanup(func() { w.rdb.Do(context.Background(), "acl", "deluser", g.user) })
	return g
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// acl runs a line of redis-cli.
func (g *granted) acl(line string) {
	g.t.Helper()
	var args []any
	for _, word := range strings.Fields(line) {
		if strings.HasPrefix(word, `"`) {
			word = strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(strings.Trim(word, `"`))
		}
		args = append(args, word)
	}
	if err := g.rdb.Do(g.t.Context(), args...).Err(); err != nil {
		g.t.Fatalf("%s: %v", line, err)
	}
}

// doctor returns what somebody should act on, and the exit code.
func (g *granted) doctor() (findings []doctor.Check, code int) {
	g.t.Helper()
	code, out, errOut := g.run("doctor", "--config", g.config, "--json")
	var report doctor.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		g.t.Fatalf("exit code %d: %v\n%s%s", code, err, out, errOut)
	}
	if strings.Contains(out+errOut, "secret-") {
		g.t.Errorf("the report tells a password:\n%s%s", out, errOut)
	}
	for _, group := range report.Groups {
		for _, c := range group.Checks {
			if c.Severity.Finding() {
				findings = append(findings, c)
			}
		}
	}
	return findings, code
}

// Everything that the daemon does, with the rights that --print-grants prints and
// no others.
func TestTheDaemonRunsWithWhatIsGranted(t *testing.T) {
	g := newGranted(t, false)
	if code, out, errOut := g.run("apply", "--config", g.config, "--url", g.admin, "--yes"); code != 0 {
		t.Fatalf("apply: exit code %d\n%s%s", code, out, errOut)
	}
	if found, code := g.doctor(); len(found) != 0 || code != 0 {
		t.Fatalf("exit code %d: %+v", code, found)
	}
	p := g.start(notLooking)
	step := func(name string, gone, kept []string, sql ...string) { g.step(p, name, gone, kept, sql...) }
	step("keys", keys("t:7:user:1", "product:10", "odd[*]:10:x"), keys("t:7:user:2", "product:11", "unmapped"),
		`UPDATE users SET email = 'c@x' WHERE id = 1`, `UPDATE products SET name = 'r' WHERE id = 10`)
	step("for_each", keys("product:11"), keys("product:10"), `UPDATE sellers SET name = 't'`)
	step("a message", keys("cart:5"), keys("cart:6"), `SELECT pg_logical_emit_message(true, 'cart.changed', '{"id": 5}')`)
	g.register("seller:1", "user t:9:user:9", "search t:7:search:1:q")
	step("dependents", keys("t:9:user:9", "t:7:search:1:q"), keys("t:9:user:8"), `UPDATE sellers SET name = 'd'`)
	g.putEntry("card:5", "V", time.Minute)
	g.putEntry("card:7", "V", time.Minute)
	g.register("seller:1", "card card:7")
	g.exec(`SELECT pg_logical_emit_message(true, 'cart.changed', '{"id": 5}')`, `UPDATE sellers SET name = 'e'`)
	g.settle(p)
	g.wantMarked(20*time.Second, "card:5", "card:7")
	g.put("late:5")
	g.eventually("the class is held back", func() bool { return g.control()["held:slow"] != "" })
	g.exec(`SELECT pg_logical_emit_message(true, 'late.changed', '{"id": 5}')`)
	g.eventually("what was held back is applied", func() bool { return g.rdb.Exists(t.Context(), "late:5").Val() == 0 })
	step("a purge", keys("product:10", "product:12", "odd[*]:7:x"), keys("oddx:7:x", "unmapped"), `TRUNCATE products`)
	g.exec(`INSERT INTO notes VALUES (1, 8)`)
	g.settle(p)
	version := g.get("t:8:search")
	if version == "" {
		t.Error("the version key was not moved")
	}
	g.exec(`UPDATE notes SET tenant = 8`)
	g.settle(p)
	if g.get("t:8:search") <= version {
		t.Error("the version key was not moved forward")
	}
	version = g.get("t:8:search")
	g.forget("t:8:search")
	g.put("t:8:user:3", "unmapped")
	g.exec(`ALTER TABLE users ALTER email TYPE varchar USING upper(email)`) // as superuser, announced by the event trigger
	g.settle(p)
	g.want("unmapped", "t:8:search")
	p.stop()

	// A gap purges everything, with the same rights.
	g.put("t:8:user:3", "product:9", "t:9:search:0:q") // the last was cached without a version key
	g.exec(`SELECT pg_drop_replication_slot('` + g.slot + `')`)
	p = g.launch()
	g.eventually("the gap is closed", func() bool {
		return p.logged("the slot was created anew") > 0 && p.logged("gap closed") > 0 && g.followed()
	})
	g.want("unmapped", "t:8:search")
	if g.get("t:8:search") <= version {
		t.Error("the version key was not moved by the purge")
	}
	p.stop()
	for _, text := range []string{"secret-1", "secret-2", "NOPERM", "permission denied"} {
		if p.logged(text) > 0 {
			t.Errorf("the log has %q", text)
		}
	}
}

// The other variant: the daemon owns the tables and makes the publication itself.
func TestTheDaemonCreatesThePublicationWithWhatIsGranted(t *testing.T) {
	g := newGranted(t, true)
	if found, code := g.doctor(); len(found) != 0 || code != 0 {
		t.Fatalf("exit code %d: %+v", code, found)
	}
	p := g.start()
	g.step(p, "keys", keys("t:7:user:1"), keys("t:7:user:2"), `UPDATE users SET email = 'c@x' WHERE id = 1`)
	p.stop()
}

// With one right less, doctor says which, and what it prints brings it back.
func TestDoctorNamesTheMissingRight(t *testing.T) {
	t.Parallel()
	g := newGranted(t, false)
	expect := func(what, code, subject, fix string) {
		t.Helper()
		found, exit := g.doctor()
		if len(found) != 1 || exit != 2 || found[0].Code != code || found[0].Subject != subject || !strings.Contains(found[0].Fix, fix) {
			t.Errorf("without %s: exit code %d, %+v", what, exit, found)
			return
		}
		switch found[0].FixKind {
		case doctor.SQL:
			g.exec(found[0].Fix)
		case doctor.RedisCLI:
			g.acl(found[0].Fix)
		default:
			t.Errorf("without %s: the fix is %+v", what, found[0])
		}
		if found, exit := g.doctor(); len(found) != 0 || exit != 0 {
			t.Errorf("the fix for %s does not mend it: exit code %d, %+v", what, exit, found)
		}
	}
	_, out, _ := g.run("doctor", "--config", g.config, "--print-grants")
	var commands []string
	for _, word := range strings.Fields(out) {
		if name, ok := strings.CutPrefix(word, "+"); ok {
			commands = append(commands, name)
		}
	}
	if len(commands) < 11 || !slices.Contains(commands, "script|load") {
		t.Fatalf("commands: %q", commands)
	}
	for _, c := range commands {
		g.acl("ACL SETUSER " + g.user + " -" + c)
		expect("+"+c, "redis_acl", "+"+c, "ACL SETUSER "+g.user+" +"+c)
	}
	patterns := []string{"inv:*", "t:*:user:*", "product:*", `odd\[\*\]:*:x`, "t:*:search", "t:*:search:*:*", "cart:*", "card:*", "late:*"}
	for _, missing := range patterns {
		args := []any{"acl", "setuser", g.user, "resetkeys"}
		for _, p := range patterns {
			if p != missing {
				args = append(args, "~"+p)
			}
		}
		if err := g.rdb.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
		expect("~"+missing, "redis_acl_keys", "~"+missing, "~")
	}
	for _, c := range []struct{ sql, code, subject, fix string }{
		{"ALTER ROLE " + g.role + " NOREPLICATION", "role_replication", "", "ALTER ROLE " + g.role + " REPLICATION;"},
		{"REVOKE SELECT ON products FROM " + g.role, "for_each", "table public.sellers", "GRANT SELECT ON public.products TO " + g.role},
		{"REVOKE SELECT ON side.stock FROM " + g.role, "for_each", "table public.sellers", "GRANT SELECT ON side.stock TO " + g.role},
		{"REVOKE USAGE ON SCHEMA side FROM " + g.role, "for_each", "table public.sellers", "GRANT USAGE ON SCHEMA side TO " + g.role},
		{`DO $$ DECLARE f regprocedure; BEGIN FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
			EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', f); END LOOP; END $$`, "role_heartbeat", "", "GRANT EXECUTE ON FUNCTION pg_logical_emit_message("},
		{"ALTER TABLE products ENABLE ROW LEVEL SECURITY", "for_each", "table public.sellers", "ALTER ROLE " + g.role + " BYPASSRLS"},
	} {
		g.exec(c.sql)
		expect(c.sql, c.code, c.subject, c.fix)
	}
}

// A policy that hides rows from the daemon's role hides keys: the query must fail,
// which takes the family, and not find too little.
func TestRowSecurityDoesNotHideKeys(t *testing.T) {
	g := newGranted(t, false)
	p := g.start()
	g.step(p, "without a policy", keys("product:11"), keys("product:10"), `UPDATE sellers SET name = 't'`)
	g.exec(`ALTER TABLE products ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON products USING (id < 11)`)
	g.step(p, "with one", keys("product:10", "product:11"), keys("unmapped"), `UPDATE sellers SET name = 'u'`)
	p.stop()
}
