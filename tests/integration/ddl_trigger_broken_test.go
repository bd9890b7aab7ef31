package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// brokenTrigger is a way in which the event trigger ceases to announce DDL.
type brokenTrigger struct {
	name        string
	spoil, mend []string
	// around: it is mended before the transaction of the DDL ends, so that no look ever finds it
	// spoilt.
	around bool
}

func brokenTriggers() []brokenTrigger {
	commands, rewrites := replication.DDLTriggers()[0], replication.DDLTriggers()[2]
	const nothing = `CREATE OR REPLACE FUNCTION cdc_invalidator.announce_ddl() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' SET jit = off AS 'BEGIN END'`
	disable := func(t replication.DDLTrigger) string { return "ALTER EVENT TRIGGER " + t.Name + " DISABLE" }
	drop := keys(commands.DropSQL(), rewrites.DropSQL())
	return []brokenTrigger{
		{"disabled", keys(disable(commands), disable(rewrites)), keys(commands.EnableSQL(), rewrites.EnableSQL()), false},
		{"dropped", drop, append(commands.CreateSQL(), rewrites.CreateSQL()...), false},
		{"a function that does nothing", keys(nothing), replication.DDLFunctionSQL(), false},
		{"all of it dropped", keys(`DROP SCHEMA cdc_invalidator CASCADE`), nil, false},
		{"for some commands only", append(keys(rewrites.DropSQL()), `CREATE EVENT TRIGGER `+rewrites.Name+` ON table_rewrite WHEN TAG IN ('ALTER TYPE') EXECUTE FUNCTION cdc_invalidator.announce_ddl()`, rewrites.EnableSQL(), disable(commands)),
			append(append(keys(rewrites.DropSQL()), rewrites.CreateSQL()...), commands.EnableSQL()), false},
		{"disabled and enabled again", keys(disable(commands), disable(rewrites)), keys(commands.EnableSQL(), rewrites.EnableSQL()), true},
		{"a function that did nothing", keys(nothing), replication.DDLFunctionSQL(), true},
	}
}

// Whatever becomes of the event trigger while the daemon runs, budgets hold for DDL that it then
// does not announce: nothing is taken for fresh because of a trigger that is not there.
func TestEventTriggerThatIsSpoiltWhileRunning(t *testing.T) {
	t.Parallel()
	const budget = time.Second
	const gone, back = "the event trigger does not announce all DDL any more", "the event trigger announces all DDL again"
	w := newWorld(t, findingsSchema, findingsMappings)
	w.withTrigger()
	p, address := w.startHTTP()
	users := w.users()
	read := func() string {
		got, err := users(nameOfUser)
		if err != nil {
			t.Error(err)
		}
		return got
	}
	value := func(n int) string { return fmt.Sprintf("w%d", n) }
	n := 0
	// rewrite changes what readers see without a word in the log.
	rewrite := func() string { n++; return `ALTER TABLE users ALTER name TYPE text USING '` + value(n) + `'` }
	within := func(what string, sql ...string) {
		t.Helper()
		w.settle(p)
		w.eventually("the value is read", func() bool { return read() == value(n-1) || n == 1 })
		old := read()
		if age := w.silence([]func() string{read}, old, sql...); age > budget {
			t.Errorf("%s: a read that began %s after the rewrite returned the old value", what, age)
		}
		if got := read(); got != value(n) {
			t.Errorf("%s: read %q", what, got)
		}
	}
	for _, b := range brokenTriggers() {
		mend := b.mend
		if mend == nil {
			mend = replication.DDLFunctionSQL()
			for _, trigger := range replication.DDLTriggers() {
				mend = append(mend, trigger.CreateSQL()...)
			}
		}
		if b.around {
			looks := p.metric(`cdc_invalidator_catalog_looks_total{kind="wide"}`)
			all := append(append(append(keys(`BEGIN`), b.spoil...), rewrite()), mend...)
			within(b.name, append(all, `COMMIT`)...)
			if p.metric(`cdc_invalidator_catalog_looks_total{kind="wide"}`) == looks {
				t.Errorf("%s: nothing was compared", b.name)
			}
			continue
		}
		said := p.logged(gone)
		within(b.name+", with the first DDL", append(b.spoil, rewrite())...)
		w.eventually(b.name+" is told of", func() bool { return p.logged(gone) > said })
		within(b.name+", with later DDL", rewrite())
		if c := w.condition(address, "lag"); !c.OK {
			t.Errorf("%s: %+v", b.name, c)
		}
		said = p.logged(back)
		w.exec(mend...)
		w.eventually(b.name+" is mended", func() bool { return p.logged(back) > said })
	}
	p.stop()
}

// Where the trigger's function cannot say what was touched, or the role that runs the DDL may do
// nothing else, it is announced all the same. The catalogs are not looked at here.
func TestEventTriggerWithoutRightsOrWithAnError(t *testing.T) {
	w := newWorld(t, ddlTriggerSchema, ddlTriggerMappings)
	w.withTrigger()
	all := keys("item:2", "name:n2", "other:1", "t:a:event:1", "mood:1", "note:1")
	role := "lesser_" + w.slot
	w.exec(`CREATE ROLE `+role+`; GRANT USAGE, CREATE ON SCHEMA public TO `+role+`; ALTER TABLE items OWNER TO `+role,
		`REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) FROM PUBLIC`)
	p := w.start(notLooking)
	w.step(p, "a role that may send no messages", keys("item:2", "name:n2"), keys("other:1", "note:1"),
		`SET ROLE `+role, `ALTER TABLE items ALTER name TYPE varchar USING upper(name)`, `RESET ROLE`)
	function := replication.DDLFunctionSQL()[1]
	failing := strings.Replace(function, "\nBEGIN\n", "\nBEGIN\n    RAISE division_by_zero;\n", 1)
	if failing == function {
		t.Fatal("the function looks otherwise by now")
	}
	w.exec(failing)
	w.settle(p)
	w.step(p, "an error inside of it", all, keys("unmapped"), `ALTER TABLE items ALTER name TYPE text USING upper(name)`)
	p.stop()
	w.exec(`ALTER TABLE items OWNER TO CURRENT_USER; DROP OWNED BY ` + role + `; DROP ROLE ` + role)
}
