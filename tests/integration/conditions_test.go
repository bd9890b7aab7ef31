package integration

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

const conditionsSchema = `
	CREATE TABLE items (id int PRIMARY KEY, name text NOT NULL, v int);
	ALTER TABLE items REPLICA IDENTITY FULL;
	CREATE TYPE mood AS ENUM ('a', 'b');
	CREATE TABLE others (id int PRIMARY KEY, v int, mood mood);
	INSERT INTO items VALUES (1, 'a', 0); INSERT INTO others VALUES (1, 0, 'a'), (2, 0, 'b')`

const conditionsMappings = `
classes:
  critical: {staleness: 1s}
  slow: {staleness: 5s, linger: 1s}
keys:
  item: {key: "item:{name}", class: critical}
  other: {key: "other:{id}", class: slow}
mappings:
  - {table: public.items, keys: [item]}
  - {table: public.others, keys: [other]}
`

// answered reads a health page.
func (w *world) answered(address, page string) (code int, conditions []admin.Condition) {
	w.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	response, err := client.Get("http://" + address + page)
	if err != nil {
		w.t.Fatal(err)
	}
	defer response.Body.Close()
	var answer struct{ Conditions []admin.Condition }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		w.t.Fatal(err)
	}
	return response.StatusCode, answer.Conditions
}

// Every condition that there is can be made bad, which its pages say, and comes back by
// itself once what was wrong is not wrong any more.
func TestEveryConditionComesBack(t *testing.T) {
	t.Parallel()
	pg := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	rd := servertest.PrivateRedis(t, localserver.RedisOptions{})
	w := newWorldOn(t, servertest.NewDatabase(t, pg, "shop").URL, rd.URL(), conditionsSchema, conditionsMappings)
	w.exec(`CREATE ROLE daemon LOGIN REPLICATION PASSWORD 'canary-daemon'`, `GRANT SELECT ON ALL TABLES IN SCHEMA public TO daemon`,
		`GRANT pg_read_all_stats TO daemon`, `CREATE PUBLICATION `+w.slot+`_pub FOR TABLE items, others`)
	u, err := url.Parse(w.url)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("daemon", "canary-daemon")
	admins := w.url
	w.url = u.String()
	w.secrets.addURL(w.url)
	w.writeConfig(conditionsMappings)
	p, address := w.startHTTP()
	terminate := func(purpose string) {
		w.exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'daemon' AND application_name LIKE 'cdc-invalidator` + purpose + `'`)
	}
	signal := func(s os.Signal) {
		if err := rd.Signal(s.(syscall.Signal)); err != nil {
			t.Fatal(err)
		}
	}
	var blocker *pgx.Conn
	good, err := os.ReadFile(w.config)
	if err != nil {
		t.Fatal(err)
	}
	type kind struct {
		name, reason string
		spoil, mend  func()
	}
	kinds := []kind{
		{name: "streaming", reason: "the role lacks a right",
			spoil: func() { w.exec(`ALTER ROLE daemon NOREPLICATION`); terminate("") },
			mend:  func() { w.exec(`ALTER ROLE daemon REPLICATION`) }},
		{name: "source", reason: "too many connections",
			spoil: func() {
				w.exec(`ALTER ROLE daemon CONNECTION LIMIT 0`)
				terminate(" gate")
				w.exec(`UPDATE items SET v = v + 1`)
			},
			mend: func() { w.exec(`ALTER ROLE daemon CONNECTION LIMIT -1`) }},
		{name: "redis", reason: "timeout",
			spoil: func() { signal(syscall.SIGSTOP); w.exec(`UPDATE items SET v = v + 1`) },
			mend:  func() { signal(syscall.SIGCONT) }},
		{name: "lag", reason: "the strictest budget is 1s",
			spoil: func() { signal(syscall.SIGSTOP) },
			mend:  func() { signal(syscall.SIGCONT) }},
		{name: "held", reason: "timeout",
			spoil: func() { signal(syscall.SIGSTOP) },
			mend:  func() { signal(syscall.SIGCONT) }},
		{name: "background", reason: "the user may not run scan",
			spoil: func() { w.rdb.Do(t.Context(), "ACL", "SETUSER", "default", "-scan") },
			mend:  func() { w.rdb.Do(t.Context(), "ACL", "SETUSER", "default", "+scan") }},
		{name: "gap", reason: "the slot is missing",
			spoil: func() {
				blocker = servertest.Connect(t, admins)
				if _, err := blocker.Exec(t.Context(), `BEGIN; SELECT pg_current_xact_id()`); err != nil {
					t.Fatal(err)
				}
				w.eventually("the slot can be dropped", func() bool {
					terminate("")
					_, err := w.conn.Exec(t.Context(), `SELECT pg_drop_replication_slot('`+w.slot+`')`)
					return err == nil
				})
			},
			mend: func() {
				if _, err := blocker.Exec(t.Context(), `COMMIT`); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "mappings", reason: "mappings.yaml",
			spoil: func() { w.writeConfig("mappings: ["); p.reload(refused) },
			mend:  func() { writeFile(t, w.config, string(good)); p.reload(reloaded) }},
		{name: "stamps", reason: "reads of 1 families go to the source",
			spoil: func() {
				blocker = servertest.Connect(t, admins)
				if _, err := blocker.Exec(t.Context(), `BEGIN; SELECT pg_current_xact_id()`); err != nil {
					t.Fatal(err)
				}
				w.writeConfig(strings.Replace(conditionsMappings, `"item:{name}"`, `"items:{name}"`, 1))
				p.reloadSays(reloaded)
			},
			mend: func() {
				if _, err := blocker.Exec(t.Context(), `COMMIT`); err != nil {
					t.Fatal(err)
				}
				writeFile(t, w.config, string(good))
				p.reload(reloaded)
			}},
		{name: "replica_identity", reason: "table public.items",
			spoil: func() { w.exec(`ALTER TABLE items REPLICA IDENTITY DEFAULT`) },
			mend:  func() { w.exec(`ALTER TABLE items REPLICA IDENTITY FULL`) }},
		{name: "catalog", reason: "public.others",
			spoil: func() { w.exec(`ALTER PUBLICATION ` + w.slot + `_pub DROP TABLE others`) },
			mend:  func() { w.exec(`ALTER PUBLICATION ` + w.slot + `_pub ADD TABLE others`) }},
		{name: "heartbeat", reason: "no heartbeat has come back for",
			spoil: func() { w.exec(heartbeatRight("REVOKE", "FROM PUBLIC")) },
			mend:  func() { w.exec(heartbeatRight("GRANT", "TO PUBLIC")) }},
		{name: "synchronous_standby", reason: "synchronous_standby_names",
			spoil: func() { w.exec(`ALTER SYSTEM SET synchronous_standby_names = '*'`, `SELECT pg_reload_conf()`) },
			mend:  func() { w.exec(`ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()`) }},
		{name: "stuck", reason: "public.others",
			spoil: func() {
				w.exec(`DELETE FROM pg_enum WHERE enumlabel = 'b'`, `UPDATE others SET v = v + 1 WHERE id = 2`) // no server can send that row
			},
			mend: func() {
				w.eventually("the slot is moved past it", func() bool {
					_, err := w.conn.Exec(t.Context(), `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, w.slot)
					return err == nil // else an attempt is under way
				})
			}},
	}
	w.eventually("all is well", func() bool { code, _ := w.answered(address, "/healthz"); return code == 200 })
	_, all := w.answered(address, "/healthz")
	for _, c := range all {
		if !slices.ContainsFunc(kinds, func(k kind) bool { return k.name == c.Name }) {
			t.Errorf("condition %s is not tried", c.Name)
		}
	}
	for _, k := range kinds {
		k.spoil()
		w.eventually(k.name+" is bad: "+k.reason, func() bool {
			c := w.condition(address, k.name)
			return c.State == admin.StateFailed && !c.OK && strings.Contains(c.Reason, k.reason)
		})
		c := w.condition(address, k.name)
		if code, _ := w.answered(address, "/healthz"); code == 200 {
			t.Errorf("%s: /healthz says 200", k.name)
		}
		if code, _ := w.answered(address, "/readyz"); code == 200 && c.Ready {
			t.Errorf("%s: /readyz says %d", k.name, code)
		}
		k.mend()
		w.eventually(k.name+" is good again, and all else", func() bool {
			code, _ := w.answered(address, "/healthz")
			return code == 200
		})
		if c := w.condition(address, k.name); !c.OK || c.State != admin.StateOK || c.Reason != "" {
			t.Errorf("%s: %+v", k.name, c)
		}
	}
	w.settle(p)
	p.stop()
}

// heartbeatRight is a statement on the right to send heartbeats, whose function has other
// arguments in each version.
func heartbeatRight(verb, whom string) string {
	return `DO $$ DECLARE f regprocedure; BEGIN
		FOR f IN SELECT oid FROM pg_proc WHERE proname = 'pg_logical_emit_message' LOOP
			EXECUTE '` + verb + ` EXECUTE ON FUNCTION ' || f::text || ' ` + whom + `';
		END LOOP; END $$`
}

// A restart of Postgres under load leaves no condition behind, however it ends and
// whatever the daemon noticed of it.
func TestReadyAfterARestartOfPostgres(t *testing.T) {
	t.Parallel()
	w, pg, _ := privateWorld(t, 200, nil)
	p, address := w.startHTTP()
	stop := func() {
		if err := pg.Stop(t.Context(), localserver.Fast); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name   string
		frozen bool
		down   func()
	}{
		{"fast", false, stop},
		{"crash", false, pg.Kill},
		{"crash while the daemon hangs", true, pg.Kill},
	} {
		for range 3 {
			w.update(0, 100)
			if c.frozen {
				if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				w.update(100, 200)
			}
			c.down()
			if c.frozen {
				if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
				w.eventually("the daemon has noticed", func() bool {
					return !w.condition(address, "streaming").OK || !w.condition(address, "source").OK
				})
			}
			if err := pg.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.conn = servertest.Connect(t, w.url)
			w.eventually(c.name+": it is ready again", func() bool {
				code, _ := w.answered(address, "/readyz")
				return code == 200
			})
			w.settle(p)
		}
	}
	p.stop()
}

// With servers that were never reached, nothing is said to be well.
func TestServersThatWereNeverReachedAreNotOK(t *testing.T) {
	w := newWorld(t, reloadSchema, reloadMappings("k:{id}", mapsA))
	w.url, w.redisURL = "postgres://me@127.0.0.1:1/x?sslmode=disable", "redis://127.0.0.1:1"
	w.writeConfig(reloadMappings("k:{id}", mapsA))
	p := w.launch()
	var address string
	w.eventually("the daemon serves its status pages", func() bool { address = p.address(); return address != "" })
	w.eventually("the first attempt is over", func() bool { return w.condition(address, "streaming").State == admin.StateFailed })
	_, conditions := w.answered(address, "/healthz")
	for _, c := range conditions {
		want := admin.StateUnknown
		switch c.Name {
		case "source", "streaming":
			want = admin.StateFailed
		case "mappings":
			want = admin.StateOK
		}
		if c.State != want || c.OK != (want == admin.StateOK) || !c.OK && c.Reason == "" {
			t.Errorf("%+v, want %s", c, want)
		}
	}
	p.stop()
}
