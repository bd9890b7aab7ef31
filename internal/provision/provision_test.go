package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

func TestMain(m *testing.M) { servertest.VerifyMain(m) }

func use(table string, columns ...string) mapping.TableUse {
	return mapping.TableUse{Schema: "public", Table: table, Columns: columns, OldColumns: columns, Truncate: true}
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := replication.ConnectControl(t.Context(), url, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { replication.CloseControl(t.Context(), conn) })
	return conn
}

func planFor(t *testing.T, conn *pgx.Conn, d Desired) Plan {
	t.Helper()
	st, err := Read(t.Context(), conn, d)
	if err != nil {
		t.Fatal(err)
	}
	return st.Plan()
}

// signs is a plan in short: "+ slot s".
func signs(p Plan) []string {
	var list []string
	for _, s := range p.Steps {
		list = append(list, s.Action.Sign()+" "+s.Title())
	}
	for _, b := range p.Blocked {
		list = append(list, "! "+b.Subject)
	}
	return list
}

type quiet struct{ passed []string }

func (*quiet) Begin(int, int, Step) {}
func (q *quiet) End(s Step, done bool, err error) {
	if !done && err == nil {
		q.passed = append(q.passed, s.Title())
	}
}

const everything = `CREATE TABLE users (id int PRIMARY KEY, email text); CREATE TABLE log (id int); CREATE TABLE good (id int PRIMARY KEY);
	CREATE TABLE parts (id int, t int, email text, PRIMARY KEY (id, t)) PARTITION BY LIST (t);
	CREATE TABLE parts1 PARTITION OF parts FOR VALUES IN (1); CREATE TABLE parts2 PARTITION OF parts FOR VALUES IN (2);
	CREATE TABLE bare (id int, t int) PARTITION BY LIST (t); CREATE TABLE bare1 PARTITION OF bare FOR VALUES IN (1); CREATE TABLE bare2 PARTITION OF bare FOR VALUES IN (2)`

func desired(db *servertest.Database) Desired {
	return Desired{Slot: db.Name + "_slot", Publication: "pub", Identity: true, EventTrigger: true,
		Tables: []mapping.TableUse{use("bare", "id"), use("good", "id"), use("log", "id"), use("parts", "email"), use("users", "email")}}
}

func TestApplyDoesWhatThePlanShowsAndThenThereIsNothingLeft(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, everything)
	conn, d := connect(t, db.URL), desired(db)
	plan := planFor(t, conn, d)
	want := []string{"~ table public.bare", "~ table public.log", "~ table public.parts", "~ table public.users", "+ publication pub",
		"+ function cdc_invalidator.announce_ddl()", "+ event trigger cdc_invalidator_ddl_command_end", "+ event trigger cdc_invalidator_sql_drop", "+ event trigger cdc_invalidator_table_rewrite", "+ slot " + d.Slot}
	if got := signs(plan); !slices.Equal(got, want) {
		t.Fatalf("the plan is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := signs(planFor(t, conn, d)); !slices.Equal(got, want) {
		t.Errorf("a plan changed something: %q", got)
	}
	if err := Apply(t.Context(), conn, d, plan, &quiet{}); err != nil {
		t.Fatal(err)
	}
	if again := planFor(t, conn, d); !again.Nothing() {
		t.Errorf("the second plan has %q", signs(again))
	}
	// What Setup asks for is there, and the application can write.
	o := replication.SetupOptions{Slot: d.Slot, Publication: d.Publication, Tables: d.Tables}
	if r, err := replication.Setup(t.Context(), conn, o); err != nil || len(r.Findings) != 0 {
		t.Errorf("%v, %+v", err, r.Findings)
	}
	db.Exec(t, "INSERT INTO log VALUES (1); UPDATE log SET id = 2; INSERT INTO bare VALUES (1, 1); UPDATE bare SET id = 2; DELETE FROM bare")
	// Doing the old plan once more passes over everything.
	q := &quiet{}
	if err := Apply(t.Context(), conn, d, plan, q); err != nil || len(q.passed) != len(plan.Steps) {
		t.Errorf("%v; passed over %q", err, q.passed)
	}
}

// The statements that a plan shows are all that apply does: running them by hand
// comes to the same.
func TestThePlansSQLIsAllThereIs(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, everything)
	conn, d := connect(t, db.URL), desired(db)
	for _, s := range planFor(t, conn, d).Steps {
		db.Exec(t, s.SQL...)
	}
	if left := planFor(t, conn, d); !left.Nothing() {
		t.Errorf("left is %q", signs(left))
	}
}

func TestWhatIsThereAlready(t *testing.T) {
	for _, c := range []struct {
		name string
		sql  string // %s is the slot
		want []string
	}{
		{"a member is missing", "CREATE PUBLICATION pub FOR TABLE users WITH (publish_via_partition_root)", []string{"~ publication pub"}},
		{"actions are missing", "CREATE PUBLICATION pub FOR TABLE users, good WITH (publish = 'insert', publish_via_partition_root)", []string{"~ publication pub"}},
		{"both", "CREATE PUBLICATION pub FOR TABLE users WITH (publish = 'insert')", []string{"~ publication pub", "~ publication pub"}},
		{"all tables", "CREATE PUBLICATION pub FOR ALL TABLES", nil},
		{"a row filter is somebody's decision", "CREATE PUBLICATION pub FOR TABLE users WHERE (id > 1), good", []string{"! table public.users"}},
		{"so is a column list, under which UPDATE is refused already", "CREATE PUBLICATION pub FOR TABLE users (id), good", []string{"! table public.users", "! table public.users"}},
		{"a slot older than its publication", "SELECT pg_create_logical_replication_slot('%s', 'pgoutput')", []string{"! slot %s"}},
		{"a slot of another plugin", "CREATE PUBLICATION pub FOR TABLE users, good; SELECT pg_create_logical_replication_slot('%s', 'test_decoding')", []string{"! slot %s"}},
		{"a table is not there", "DROP TABLE good", []string{"+ publication pub", "! table public.good"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			db := servertest.Postgres(t)
			slot := db.Name + "_slot"
			db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY, email text); ALTER TABLE users REPLICA IDENTITY FULL; CREATE TABLE good (id int PRIMARY KEY)")
			for _, sql := range strings.Split(strings.ReplaceAll(c.sql, "%s", slot), "; ") {
				db.Exec(t, sql)
			}
			conn := connect(t, db.URL)
			d := Desired{Slot: slot, Publication: "pub", Identity: true, Tables: []mapping.TableUse{use("good", "id"), use("users", "email")}}
			plan := planFor(t, conn, d)
			var want []string
			for _, w := range c.want {
				want = append(want, strings.ReplaceAll(w, "%s", slot))
			}
			got := slices.DeleteFunc(signs(plan), func(s string) bool { return s == "+ slot "+slot })
			if !slices.Equal(got, want) {
				t.Fatalf("the plan is %q, want %q", got, want)
			}
			err := Apply(t.Context(), conn, d, plan, &quiet{})
			var config *replication.ConfigError
			switch {
			case len(plan.Blocked) == 0:
				if err != nil {
					t.Fatal(err)
				}
				if left := planFor(t, conn, d); !left.Nothing() {
					t.Errorf("left is %q", signs(left))
				}
			case !errors.As(err, &config) || config.Fix != plan.Blocked[0].Fix:
				t.Errorf("a plan with a blocker: %v", err)
			default:
				if after := planFor(t, conn, d); !slices.Equal(signs(after), signs(plan)) {
					t.Errorf("something was changed all the same: %q, was %q", signs(after), signs(plan))
				}
			}
		})
	}
}

func TestTheEventTriggerIsMendedAndOursOnlyIsDropped(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, "CREATE PUBLICATION pub")
	conn := connect(t, db.URL)
	d := Desired{Slot: db.Name + "_slot", Publication: "pub", EventTrigger: true}
	if err := Apply(t.Context(), conn, d, planFor(t, conn, d), &quiet{}); err != nil {
		t.Fatal(err)
	}
	first := replication.DDLTriggers()[0].Name
	for _, c := range []struct {
		name string
		sql  string
		want []string
	}{
		{"disabled", "ALTER EVENT TRIGGER " + first + " DISABLE", []string{"~ event trigger " + first}},
		{"not in every session", "ALTER EVENT TRIGGER " + first + " ENABLE", []string{"~ event trigger " + first}},
		{"gone", "DROP EVENT TRIGGER " + first, []string{"+ event trigger " + first}},
		{"another function", "CREATE OR REPLACE FUNCTION cdc_invalidator.announce_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'", []string{"~ function cdc_invalidator.announce_ddl()"}},
		{"with the caller's rights", "ALTER FUNCTION cdc_invalidator.announce_ddl() SECURITY INVOKER", []string{"~ function cdc_invalidator.announce_ddl()"}},
		{"with another search path", "ALTER FUNCTION cdc_invalidator.announce_ddl() SET search_path = public", []string{"~ function cdc_invalidator.announce_ddl()"}},
		{"without one", "ALTER FUNCTION cdc_invalidator.announce_ddl() RESET ALL", []string{"~ function cdc_invalidator.announce_ddl()"}},
		{"for some commands", "DROP EVENT TRIGGER " + first + "; CREATE EVENT TRIGGER " + first + " ON ddl_command_end WHEN TAG IN ('CREATE VIEW') EXECUTE FUNCTION cdc_invalidator.announce_ddl(); ALTER EVENT TRIGGER " + first + " ENABLE ALWAYS",
			[]string{"~ event trigger " + first}},
		{"one of an earlier version", "CREATE EVENT TRIGGER cdc_invalidator_early ON ddl_command_start EXECUTE FUNCTION cdc_invalidator.announce_ddl()", []string{"- event trigger cdc_invalidator_early"}},
		{"somebody else's", "CREATE FUNCTION other() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'; CREATE EVENT TRIGGER other ON sql_drop EXECUTE FUNCTION other()", nil},
	} {
		db.Exec(t, c.sql)
		plan := planFor(t, conn, d)
		if got := signs(plan); !slices.Equal(got, c.want) {
			t.Fatalf("%s: the plan is %q, want %q", c.name, got, c.want)
		}
		if err := Apply(t.Context(), conn, d, plan, &quiet{}); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if left := planFor(t, conn, d); !left.Nothing() {
			t.Fatalf("%s: left is %q", c.name, signs(left))
		}
	}
	db.Exec(t, "DROP EVENT TRIGGER "+first, "CREATE EVENT TRIGGER "+first+" ON ddl_command_end EXECUTE FUNCTION other()")
	if got := signs(planFor(t, conn, d)); !slices.Equal(got, []string{"! event trigger " + first}) {
		t.Errorf("our name on somebody else's trigger: %q", got)
	}
	d.EventTrigger = false
	if p := planFor(t, conn, d); !p.Nothing() {
		t.Errorf("left out: %q", signs(p))
	}
}

// A role without the rights is told before and after, and what it may do is done.
func TestWithoutTheRights(t *testing.T) {
	db := servertest.Postgres(t)
	role := "apply_" + db.Name
	db.Exec(t, "CREATE ROLE "+role+" LOGIN REPLICATION PASSWORD 'x'", "CREATE TABLE users (id int PRIMARY KEY, email text)", "GRANT CREATE ON DATABASE "+db.Name+" TO "+role)
	admin := db.Conn(t)
	t.Cleanup(func() {
		if _, err := admin.PgConn().Exec(context.Background(), "DROP OWNED BY "+role+"; DROP ROLE "+role).ReadAll(); err != nil {
			t.Error(err)
		}
	})
	cfg, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	conn := connect(t, fmt.Sprintf("postgres://%s:x@%s:%d/%s?sslmode=disable", role, cfg.Host, cfg.Port, db.Name))
	d := Desired{Slot: db.Name + "_slot", Publication: "pub", Identity: true, EventTrigger: true, Tables: []mapping.TableUse{use("users", "email")}}
	refused := func(want string) {
		t.Helper()
		plan := planFor(t, conn, d)
		err := Apply(t.Context(), conn, d, plan, &quiet{})
		var config *replication.ConfigError
		if !errors.As(err, &config) || !strings.Contains(config.Fix, want) {
			t.Errorf("%v\nwant a fix with %q", err, want)
		}
	}
	lacking := func(want ...string) {
		t.Helper()
		var got []string
		for _, s := range planFor(t, conn, d).Steps {
			if s.Lacking {
				got = append(got, s.Object)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("lacking are %q, want %q", got, want)
		}
	}
	triggers := []string{"function", "event trigger", "event trigger", "event trigger"}
	lacking(append([]string{"table", "publication"}, triggers...)...)
	refused("the owner of public.users (postgres)")
	db.Exec(t, "ALTER TABLE users OWNER TO "+role)
	lacking(triggers...)
	before := signs(planFor(t, conn, d))
	refused("--no-event-trigger")
	if after := signs(planFor(t, conn, d)); !slices.Equal(before, after) {
		t.Errorf("a plan that cannot be finished was begun: %q, was %q", after, before)
	}
	d.EventTrigger = false
	if err := Apply(t.Context(), conn, d, planFor(t, conn, d), &quiet{}); err != nil {
		t.Error(err)
	}
}

// Somebody holds the table: apply waits shortly, lets those behind it go first, and tries
// again; nobody waits behind it for long.
func TestApplyDoesNotHoldUpTheApplication(t *testing.T) {
	db := servertest.Postgres(t)
	db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY, email text)")
	holder, app, conn := db.Conn(t), db.Conn(t), connect(t, db.URL)
	if _, err := holder.PgConn().Exec(t.Context(), "BEGIN; SELECT * FROM users").ReadAll(); err != nil {
		t.Fatal(err)
	}
	d := Desired{Slot: db.Name + "_slot", Publication: "pub", Identity: true, Tables: []mapping.TableUse{use("users", "email")}}
	plan := planFor(t, conn, d)
	ended := make(chan error, 1)
	go func() { ended <- Apply(t.Context(), conn, d, plan, &quiet{}) }()
	var slowest time.Duration
	for waits, began := false, time.Now(); !waits || time.Since(began) < 3*time.Second; {
		at := time.Now()
		if _, err := app.Exec(t.Context(), "UPDATE users SET email = 'x'"); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(at))
		waits = waits || time.Since(at) > 100*time.Millisecond
		if time.Since(began) > 30*time.Second {
			t.Fatal("apply never asked for the lock")
		}
	}
	if slowest > 2500*time.Millisecond {
		t.Errorf("a write waited for %s", slowest)
	}
	if _, err := holder.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
