package integration

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// harmlessDDL is DDL of the application's in a situation that our event trigger might not
// survive. It has to succeed, and to be announced all the same.
type harmlessDDL struct {
	name string
	role string   // "" for a superuser
	with []string // by a superuser, before the session
	sql  []string // the session
	gone []string
	// fails: the function cannot do its work, says so, and everything counts as touched.
	fails bool
}

// hijack makes what the trigger calls, in schemas that come first in a session's search path.
const hijack = `
	CREATE FUNCTION evil.f() RETURNS int LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'hijacked'; END$$;
	CREATE FUNCTION evil.pg_logical_emit_message(boolean, text, text) RETURNS pg_lsn LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'hijacked'; END$$;
	CREATE FUNCTION evil.jsonb_build_object(VARIADIC "any") RETURNS jsonb LANGUAGE internal AS 'jsonb_build_object';
	CREATE FUNCTION evil.eq(oid, oid) RETURNS boolean LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'hijacked'; END$$;
	CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.eq);
	CREATE VIEW evil.pg_class AS SELECT evil.f() AS oid;
	CREATE VIEW evil.pg_namespace AS SELECT evil.f() AS oid`

func harmlessDDLs() []harmlessDDL {
	items := keys("item:2", "name:n2")
	const rename = `ALTER TABLE items RENAME name TO title`
	return []harmlessDDL{
		{"names and operators taken by somebody", "", keys(hijack), keys(`SET search_path = evil, pg_catalog, public`, `CREATE TEMP VIEW pg_class AS SELECT evil.f() AS oid`, rename), items, false},
		{"a role without any right of ours", "app", keys(`REVOKE ALL ON SCHEMA cdc_invalidator FROM PUBLIC`, `REVOKE ALL ON FUNCTION cdc_invalidator.announce_ddl() FROM PUBLIC`,
			`DO $$BEGIN EXECUTE (SELECT string_agg('REVOKE EXECUTE ON FUNCTION ' || oid::regprocedure || ' FROM PUBLIC', ';') FROM pg_proc WHERE proname = 'pg_logical_emit_message'); END$$`), keys(rename), items, false},
		{"a DO block", "app", nil, keys(`DO $$BEGIN ` + rename + `; EXCEPTION WHEN division_by_zero THEN NULL; END$$`), items, false},
		{"a function", "app", nil, keys(`CREATE FUNCTION change() RETURNS void LANGUAGE plpgsql SET search_path = public AS $$BEGIN `+rename+`; END$$`, `SELECT change()`), items, false},
		{"the script of an extension", "", nil, keys(`CREATE EXTENSION IF NOT EXISTS citext`, `ALTER EXTENSION citext ADD TABLE scratch`, `DROP EXTENSION citext`, rename), items, false},
		{"checks of plpgsql's own", "", nil, keys(`SET plpgsql.extra_errors = 'all'`, `SET plpgsql.variable_conflict = 'use_column'`, `SET plpgsql.check_asserts = on`, rename), items, false},
		{"an error ends the session", "", nil, keys(`SET exit_on_error = on`, rename), items, false},
		{"prepared", "app", nil, keys(`BEGIN`, rename, `PREPARE TRANSACTION 'ddl'`, `COMMIT PREPARED 'ddl'`), items, false},
		{"savepoints", "app", nil, keys(`BEGIN`, `SAVEPOINT s`, rename, `ROLLBACK TO s`, rename, `RELEASE s`, `COMMIT`), items, false},
		{"a session that replicates", "", nil, keys(`SET session_replication_role = replica`, rename), items, false},
		{"temporary tables", "app", nil, keys(`CREATE TEMP TABLE t (id int PRIMARY KEY) ON COMMIT DROP`, `CREATE TEMP TABLE u (id int)`, `ALTER TABLE u ALTER id TYPE bigint`, `DROP TABLE u`, `BEGIN READ ONLY`, `DISCARD PLANS`, `COMMIT`, `DISCARD ALL`, rename), items, false},
		{"serializable, and only its own snapshot", "app", nil, keys(`BEGIN ISOLATION LEVEL SERIALIZABLE`, `SELECT 1`, rename, `COMMIT`), items, false},
		// As on a disk that is full.
		{"no room to work in", "", keys(`DO $$BEGIN FOR i IN 1..1500 LOOP EXECUTE format('CREATE TABLE side.t%s ()', i); END LOOP; END$$`),
			keys(`SET temp_file_limit = 0`, `SET work_mem = '64kB'`, `ALTER SCHEMA side RENAME TO aside`), keys("note:1"), true},
		{"our schema goes, and with it the trigger", "", nil, keys(`DROP SCHEMA cdc_invalidator CASCADE`, rename), nil, false},
		{"all objects of who installed it", "", nil, keys(`DROP FUNCTION cdc_invalidator.announce_ddl() CASCADE`, rename, `DROP SCHEMA cdc_invalidator`), nil, false},
	}
}

// Nothing that the event trigger meets makes DDL of the application's fail.
func TestEventTriggerNeverMakesDDLFail(t *testing.T) {
	for _, c := range harmlessDDLs() {
		t.Run(c.name, func(t *testing.T) {
			server := servertest.PrivatePostgres(t, localserver.PostgresOptions{Settings: map[string]string{"max_prepared_transactions": "2"}})
			w := newWorldOn(t, server.URL(), servertest.Redis(t).URL, ddlTriggerSchema+`; CREATE SCHEMA evil; CREATE ROLE app; ALTER TABLE items OWNER TO app; GRANT ALL ON SCHEMA public TO app`, ddlTriggerMappings)
			w.withTrigger()
			w.exec(c.with...)
			p := w.start(notLooking)
			w.put(c.gone...)
			w.put("other:1")
			app := servertest.Connect(t, server.URL())
			if c.role != "" {
				c.sql = append([]string{"SET SESSION AUTHORIZATION " + c.role}, c.sql...)
			}
			for _, sql := range c.sql {
				if _, err := app.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
			}
			w.settle(p)
			if c.fails != (p.logged("a message about DDL cannot be read") > 0) {
				t.Errorf("it failed within: %t, want %t", !c.fails, c.fails)
			}
			if c.gone != nil {
				for _, k := range w.cached() {
					if k != "other:1" || c.fails {
						t.Errorf("%s is still there", k)
					}
				}
			}
			p.stop()
		})
	}
}

// Nor does it make DDL wait for who has locked a catalog that only it reads.
func TestEventTriggerDoesNotWaitForLocks(t *testing.T) {
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	w := newWorldOn(t, server.URL(), servertest.Redis(t).URL, ddlTriggerSchema, ddlTriggerMappings)
	w.withTrigger()
	locker := servertest.Connect(t, server.URL())
	lock, err := locker.Begin(t.Context())
	if err == nil {
		_, err = lock.Exec(t.Context(), "LOCK TABLE pg_catalog.pg_publication_rel IN ACCESS EXCLUSIVE MODE")
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := w.conn.Exec(ctx, "ALTER TABLE items RENAME note TO remark"); err != nil {
		t.Fatalf("while the catalog is locked: %v", err)
	}
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A role that may create schemas cannot get what it likes run within the DDL of others.
func TestEventTriggerIsTakenFromWhoMadeItsSchemaBefore(t *testing.T) {
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	w := newWorldOn(t, server.URL(), servertest.Redis(t).URL, ddlTriggerSchema+`; CREATE ROLE evil; GRANT CREATE ON DATABASE postgres TO evil`, ddlTriggerMappings)
	const function = `CREATE OR REPLACE FUNCTION cdc_invalidator.announce_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN CREATE ROLE mine SUPERUSER; END'`
	w.exec(`SET SESSION AUTHORIZATION evil`, `CREATE SCHEMA cdc_invalidator`, function, `RESET SESSION AUTHORIZATION`)
	if code, stdout, stderr := w.command("apply", "--config", w.config, "--yes"); code != 0 {
		t.Fatalf("apply: %d, %s%s", code, stdout, stderr)
	}
	w.exec(`SET SESSION AUTHORIZATION evil`)
	for _, sql := range []string{function, `DROP FUNCTION cdc_invalidator.announce_ddl() CASCADE`, `ALTER SCHEMA cdc_invalidator RENAME TO x`} {
		if _, err := w.conn.Exec(t.Context(), sql); err == nil {
			t.Errorf("it may: %s", sql)
		}
	}
	w.exec(`RESET SESSION AUTHORIZATION`, `ALTER TABLE items RENAME note TO remark`)
	if code, stdout, _ := w.command("plan", "--config", w.config); code != 0 {
		t.Errorf("plan: %d, %s", code, stdout)
	}
	// One that got it later is named, and taken from again.
	w.exec(`ALTER FUNCTION cdc_invalidator.announce_ddl() OWNER TO evil`)
	survey, err := replication.ReadSurvey(t.Context(), servertest.Connect(t, server.URL()), replication.SetupOptions{Slot: w.slot, Publication: w.slot + "_pub"})
	if err != nil || survey.DDL.Foreign != "evil" || survey.DDL.Complete() {
		t.Errorf("found: %v, %+v", err, survey.DDL)
	}
}
