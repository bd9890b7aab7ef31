package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

const canarySchema = `
	CREATE TABLE users (id bigint PRIMARY KEY, tenant_id text NOT NULL, email text, note text);
	ALTER TABLE users REPLICA IDENTITY FULL;
	CREATE TABLE narrow (id text PRIMARY KEY, email text);
	CREATE TABLE numbers (id text PRIMARY KEY, n int)`

const canaryMappings = `
classes:
  critical: {staleness: 1s}
keys:
  user:   {key: "t:{tenant_id}:user:{id}", tenant: tenant_id, class: critical}
  mail:   {key: "mail:{email}", class: critical}
  number: {key: "number:{n}", class: critical}
  search: {key: "t:{tenant_id}:search:{version}:{q}", version: "t:{tenant_id}:search", tenant: tenant_id, class: critical}
  cart:   {key: "cart:{cart_id}", class: critical}
mappings:
  - table: public.users
    keys: [user, mail, search]
    when: int(new.note) > 0
  - {table: public.narrow, keys: [mail]}
  - table: public.narrow
    keys:
      - number: {n: n}
        for_each: "SELECT n FROM numbers WHERE n = ({id})::int"
  - table: public.users
    keys:
      - number: {n: missing}
        for_each: "SELECT email FROM users WHERE email = {email}"
  - {message: cart.changed, keys: [cart]}
`

// TestNoValueIsShown drives the daemon into every kind of trouble that a row's value can
// make, with values that are found wherever they go, and runs the other commands beside it.
// What is searched is in leaks_test.go: everything, at the most talkative log level.
func TestNoValueIsShown(t *testing.T) {
	w := newWorld(t, canarySchema, canaryMappings)
	p, address := w.startHTTP()
	widened := func(reason string) {
		t.Helper()
		w.eventually("a widening for "+reason, func() bool {
			_, out, _ := w.command("status", "--url", address)
			return strings.Contains(out, reason)
		})
	}
	w.put("t:canary-tenant:user:471104711", "mail:canary-first@example.org", "mail:canary-second@example.org", "cart:canary-cart")
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	tap := w.spawn(path, nil, "tap", "--config", w.config, "--resolve", "--max-rate", "0")
	w.eventually("tap follows", func() bool { return tap.logged("following publication") > 0 })
	for _, sql := range []string{
		`INSERT INTO users VALUES (471104711, 'canary-tenant', 'canary-first@example.org', 'canary-note')`, // the predicate fails on it
		`UPDATE users SET email = 'canary-second@example.org', note = repeat('canary-toast', 9000)`,
		`UPDATE users SET tenant_id = 'canary-other'`,
		`INSERT INTO narrow VALUES ('canary-no-number', 'canary-third@example.org')`, // the query fails on it
		`UPDATE narrow SET email = 'canary-fourth@example.org'`,                      // an old value that is not logged
		`DELETE FROM narrow`,
		`SELECT pg_logical_emit_message(true, 'cart.changed', '{"cart": "canary-cart"}') /* insert */`,
		`SELECT pg_logical_emit_message(false, 'cart.changed', 'canary-cart is no JSON') /* insert */`,
		`TRUNCATE users`,
		`ALTER TABLE narrow ALTER COLUMN email TYPE varchar USING email || '@canary'`, // silent DDL
		`ALTER TABLE users ADD COLUMN more text DEFAULT 'canary-default'`,
		`INSERT INTO users VALUES (1, 'canary-tenant', 'canary-first@example.org', '7', 'canary-more')`,
		`SELECT pg_logical_emit_message(true, 'cdc_invalidator.heartbeat', 'canary-heartbeat') /* insert */`,
	} {
		w.exec(sql)
	}
	w.settle(p)
	for _, reason := range []string{"predicate", "lookup", "no_old_value", "message"} {
		widened(reason)
	}
	p.collect()

	// A refused reload, a lost slot, servers that are away.
	w.writeConfig(strings.Replace(canaryMappings, "public.narrow", "public.nothing", 1))
	p.reload(refused)
	w.writeConfig(canaryMappings)
	p.reload(reloaded)
	w.exec(`SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '` + w.slot + `'`)
	w.eventually("the slot is dropped and made anew", func() bool {
		_, err := w.conn.Exec(t.Context(), `SELECT pg_drop_replication_slot('`+w.slot+`')`)
		return err == nil || strings.Contains(err.Error(), "does not exist")
	})
	w.settle(p)
	p.collect()

	tap.stop() // with Ctrl-C's signal or SIGTERM: exit code 0
	for _, want := range []string{"delete      user", "lookup      number", "purge       number", "advance     search", "message  ", "ddl  ", "truncate", " 0 left out"} {
		if tap.logged(want) == 0 {
			t.Errorf("%q is not in what tap showed:\n%s", want, tap.log.String())
		}
	}
	if code, out, _ := w.command("validate", w.config); code != 0 || !strings.Contains(out, "ok, 5 families") {
		t.Errorf("validate: %d %s", code, out)
	}
	if code, out, _ := w.command("status", "--json", "--url", address); code != 0 && code != 2 || !strings.Contains(out, `"system_id"`) {
		t.Errorf("status: %d %s", code, out)
	}
	p.stop()
	if code, _, errOut := w.command("status", "--url", address); code != 69 {
		t.Errorf("status without a daemon: %d %s", code, errOut)
	}
	// The commands did run beside a daemon that had something to hide.
	if got := len(w.secrets.leaks(w.url + " t:canary-tenant:user:471104711 canary-note")); got < 3 {
		t.Errorf("the search finds %d of 3 things", got)
	}
}

// Passwords in the wrong places of URLs: what is not understood is not quoted.
func TestNoPasswordOfAMalformedURLIsShown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, `CREATE TABLE a (id int PRIMARY KEY)`, reloadMappings("k:{id}", mapsA))
	source, redis := w.url, w.redisURL
	for i, bad := range []string{
		"postgres://u:%s/more@127.0.0.1:5432/db",
		"postgres://u:%s:5432/db",
		"postgres://u:%%zz%s@127.0.0.1/db",
		"postgres://127.0.0.1/db?password=%s&sslmode=never",
		"postgres://u:%s@127.0.0.1:port/db",
		"postgres://u@127.0.0.1/db?sslmode=verify-full&sslpassword=%s&sslcert=/none&sslkey=/none",
		"redis://u:%s/more@127.0.0.1:6379",
		"redis://u:%s?x@127.0.0.1:6379",
		"redis://%s@host:port/0",
		"redis://u:%%zz%s@127.0.0.1:6379",
		"redis+sentinel://127.0.0.1:26379/m?sentinel_pasword=%s",
		"rediss://u:%s@127.0.0.1:6379/0?ca_file=/none",
	} {
		secret := fmt.Sprintf("canary-url-%d-", i)
		w.secrets.addText(secret, "the password of "+bad)
		w.url, w.redisURL = source, redis
		if strings.HasPrefix(bad, "postgres") {
			w.url = fmt.Sprintf(bad, secret)
		} else {
			w.redisURL = fmt.Sprintf(bad, secret)
		}
		w.writeConfig(reloadMappings("k:{id}", mapsA))
		if code, _, errOut := w.command("run", "--config", w.config, "--http", "off", "--log-level", "debug"); code != 78 || errOut == "" {
			t.Errorf("%s: exit code %d, %s", bad, code, errOut)
		}
		w.command("validate", "--json", w.config)
		w.command("tap", "--config", w.config, "--duration", "10ms")
	}
}

// A server that does not know a command repeats what it was asked, keys included.
func TestNoKeyOfARefusedCommandIsShown(t *testing.T) {
	rd := servertest.PrivateRedis(t, localserver.RedisOptions{Args: []string{"--rename-command", "HGETALL", "\"\""}})
	w := newWorldOn(t, servertest.Postgres(t).URL, rd.URL(), `CREATE TABLE a (id text PRIMARY KEY)`, reloadMappings("k:{id}", mapsA))
	w.secrets.addText("with args", "a command's arguments")
	code, _, errOut := w.command("run", "--config", w.config, "--http", "off", "--log-level", "debug")
	if code != 78 || !strings.Contains(errOut, "the command hgetall disabled or under another name") {
		t.Errorf("exit code %d, and it does not say why:\n%s", code, errOut)
	}
}
