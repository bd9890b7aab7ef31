package integration

import (
	"fmt"
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// hostile are settings that a role, a database or a server may have for reasons of its
// own, each with the value that harms a program most that does not expect it.
var hostile = map[string]string{
	"statement_timeout": "1ms", "lock_timeout": "1ms", "idle_in_transaction_session_timeout": "1ms", "idle_session_timeout": "1ms",
	"transaction_timeout": "250ms", // the large transaction takes longer
	"tcp_user_timeout":    "1ms", "wal_sender_timeout": "1ms", "tcp_keepalives_idle": "1", "client_connection_check_interval": "1ms",
	"default_transaction_isolation": "serializable", "default_transaction_read_only": "on", "default_transaction_deferrable": "on",
	"search_path": "nowhere", "row_security": "off", "session_replication_role": "replica",
	"DateStyle": "SQL, DMY", "IntervalStyle": "sql_standard", "TimeZone": "Asia/Kathmandu", "bytea_output": "escape", "extra_float_digits": "-15",
	"client_encoding": "LATIN1", "client_min_messages": "error", "lc_numeric": "C",
	"logical_decoding_work_mem": "64kB", "work_mem": "64kB", "synchronous_commit": "remote_apply",
	"jit": "on", "jit_above_cost": "0", "jit_optimize_above_cost": "0", "enable_indexscan": "off", "plan_cache_mode": "force_generic_plan",
	"quote_all_identifiers": "on", "exit_on_error": "on", "standard_conforming_strings": "off", "transform_null_equals": "on", "array_nulls": "off",
	"backslash_quote": "off", "check_function_bodies": "off", "log_min_error_statement": "panic",
}

// setHostile sets all of them that the server knows, for a role, a database or the system.
// Where it is the system, conn and its role keep what they have: they are the application's.
func setHostile(t *testing.T, conn *pgx.Conn, of string) {
	t.Helper()
	n := 0
	exec := func(name, sql string) {
		if _, err := conn.Exec(t.Context(), sql); name != "search_path" && err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for name, value := range hostile {
		var known bool
		if err := conn.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_settings WHERE lower(name) = lower($1))", name).Scan(&known); err != nil {
			t.Fatal(err)
		}
		if !known {
			continue
		}
		if of == "SYSTEM" {
			exec(name, fmt.Sprintf("SELECT set_config('%[1]s', current_setting('%[1]s'), false)", name))
			exec(name, fmt.Sprintf("ALTER ROLE CURRENT_USER SET %s FROM CURRENT", name))
		}
		exec(name, fmt.Sprintf("ALTER %s SET %s = '%s'", of, name, value))
		n++
	}
	exec("reload", "SELECT pg_reload_conf()")
	if n < len(hostile)-1 { // transaction_timeout came with 17
		t.Fatalf("only %d of %d settings are known", n, len(hostile))
	}
}

const largeTransaction = 120_000

// Whatever is set for the role, the database or the whole server: the daemon streams, asks, sends
// heartbeats, and builds the same keys.
func TestHostileSettings(t *testing.T) {
	for _, of := range []string{"ROLE", "DATABASE", "SYSTEM"} {
		t.Run(of, func(t *testing.T) {
			server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
			w := newWorldOn(t, server.URL(), servertest.Redis(t).URL, fmt.Sprintf(`
				CREATE TABLE items (id int PRIMARY KEY, day date, length interval, code bytea, ratio float8, note text);
				ALTER TABLE items REPLICA IDENTITY FULL;
				INSERT INTO items SELECT g, '2020-02-01', '1 day 02:00', '\x00ff', '0.30000000000000004', 'n' FROM generate_series(1, %d) g;
				CREATE TABLE parents (id int PRIMARY KEY); INSERT INTO parents VALUES (1);
				CREATE ROLE hostile LOGIN SUPERUSER PASSWORD 'hostile-password';`, largeTransaction), "")
			u, err := url.Parse(server.URL())
			if err != nil {
				t.Fatal(err)
			}
			switch of {
			case "ROLE":
				u.User = url.UserPassword("hostile", "hostile-password")
				setHostile(t, w.conn, "ROLE hostile")
			case "DATABASE":
				setHostile(t, w.conn, "DATABASE postgres")
			case "SYSTEM":
				u.User = url.UserPassword("hostile", "hostile-password")
				setHostile(t, w.conn, "SYSTEM")
			}
			w.url = u.String()
			w.writeConfig(`
classes:
  critical: {staleness: 1s}
keys:
  item: {key: "item:{id}", class: critical}
  text: {key: "text:{day}:{length}:{code}:{ratio}", class: critical}
  page: {key: "page:{id}", class: critical}
mappings:
  - {table: public.items, keys: [item, text]}
  - table: public.parents
    keys: [{page: {id: id}, for_each: "SELECT id FROM public.items WHERE id = {id}"}]
`)
			p := w.start()
			key := "text"
			for _, v := range []string{"2020-02-01", "1 day 02:00:00", `\x00ff`, "0.30000000000000004"} {
				key = string(mapping.AppendEncoded([]byte(key+":"), []byte(v)))
			}
			w.step(p, "keys are rendered the same", keys("item:1", key), keys("item:2"), `UPDATE items SET note = 'a' WHERE id = 1`)
			w.step(p, "for_each", keys("page:1"), keys("page:2"), `UPDATE parents SET id = id WHERE id = 1`)
			w.step(p, "a large transaction", keys("item:1", "item:2", fmt.Sprint("item:", largeTransaction)), keys("item:0"), `UPDATE items SET note = 'b'`)
			w.step(p, "and after it", keys("item:3"), keys("item:2"), `UPDATE items SET note = 'c' WHERE id = 3`)
			if n := p.logged("not streaming"); n > 0 {
				t.Errorf("it left the stream %d times", n)
			}
			p.stop()
		})
	}
}
