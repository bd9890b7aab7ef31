package integration

import (
	"net/http"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// stuckWorld has a table moods of which the server can send no row that says 'b': the
// value's name is gone from the catalog, and so it is for good.
func stuckWorld(t *testing.T) *world {
	t.Helper()
	server := servertest.PrivatePostgres(t, localserver.PostgresOptions{})
	return newWorldOn(t, server.URL(), servertest.Redis(t).URL, `
		CREATE TABLE items (id int PRIMARY KEY, note text);
		INSERT INTO items SELECT g, 'n' FROM generate_series(1, 20) g;
		CREATE TYPE mood AS ENUM ('a', 'b');
		CREATE TABLE moods (id int PRIMARY KEY, mood mood, n int);
		INSERT INTO moods VALUES (1, 'b', 0), (2, 'a', 0);
		DELETE FROM pg_enum WHERE enumlabel = 'b'`, `
classes:
  critical: {staleness: 1s}
keys:
  item: {key: "item:{id}", class: critical}
  mood: {key: "mood:{id}", class: critical}
mappings:
  - {table: public.items, keys: [item]}
  - {table: public.moods, keys: [mood]}
`)
}

// getStuck commits what cannot be sent, between two transactions that can, and returns
// the position that the condition names.
func (w *world) getStuck(address string) (position string) {
	w.t.Helper()
	w.exec(`UPDATE items SET note = 'before' WHERE id = 1`,
		`BEGIN; UPDATE items SET note = 'with' WHERE id = 2; UPDATE moods SET n = 1 WHERE id = 1; COMMIT`,
		`UPDATE items SET note = 'after' WHERE id = 3`)
	w.eventually("it says that it is stuck", func() bool {
		c := w.condition(address, "stuck")
		_, rest, found := strings.Cut(c.Fix, "--position ")
		position, _, _ = strings.Cut(rest, " ")
		return found && !c.OK && strings.Contains(c.Reason, "public.moods") && strings.Contains(c.Reason, position)
	})
	return position
}

func (w *world) skipCommand(position string, more ...string) (code int, stdout, stderr string) {
	return w.command(append([]string{"skip", "--config", w.config, "--position", position, "--reason", "a value without a name"}, more...)...)
}

func TestStuckAtATransactionThatIsSkipped(t *testing.T) {
	w := stuckWorld(t)
	p, address := w.startHTTP()
	if code, _, stderr := w.skipCommand("0/1", "--yes"); code != 1 || !strings.Contains(stderr, "no daemon on slot") {
		t.Errorf("before it is stuck: %d, %s", code, stderr)
	}
	w.put("item:1", "item:3", "item:9", "mood:1")
	position := w.getStuck(address)
	// Two more attempts, and none of them looks like health.
	for sessions := p.logged("resuming"); p.logged("resuming") < sessions+2; {
		if w.condition(address, "streaming").OK || w.condition(address, "stuck").OK || w.control()["state"] == "ok" {
			t.Fatal("it says that it is well")
		}
	}
	if c := w.control(); !strings.Contains(c["reason"], position) {
		t.Errorf("the state's reason is %q", c["reason"])
	}
	r, err := http.Get("http://" + address + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("/readyz says %d", r.StatusCode)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"0/10", "--yes"}, 1, "is stuck at " + position},
		{[]string{"10", "--yes"}, 64, "--position"},
		{[]string{position}, 64, "no terminal"},
	} {
		if code, _, stderr := w.skipCommand(c.args[0], c.args[1:]...); code != c.code || !strings.Contains(stderr, c.says) {
			t.Errorf("skip %q: %d, %s", c.args, code, stderr)
		}
	}
	if w.condition(address, "stuck").OK {
		t.Fatal("it is not stuck any more")
	}
	if code, stdout, stderr := w.skipCommand(position, "--yes"); code != 0 || !strings.Contains(stdout, "Done") {
		t.Fatalf("skip: %d, %s%s", code, stdout, stderr)
	}
	w.settle(p)
	w.want() // nothing that was cached before is left
	if !w.condition(address, "streaming").OK || !w.condition(address, "stuck").OK || !w.condition(address, "gap").OK {
		t.Error("a condition does not hold")
	}
	if p.logged("a value without a name") == 0 {
		t.Error("the log does not say why")
	}
	w.step(p, "and goes on", keys("item:4", "mood:2"), keys("item:5", "mood:1"), `UPDATE items SET note = 'x' WHERE id = 4; UPDATE moods SET n = 2 WHERE id = 2`)
	p.stop()
}

// A daemon that is killed in the middle of it leaves a gap, which the next one closes.
func TestKilledWhileItSkips(t *testing.T) {
	for _, point := range []failpoint.Point{failpoint.SkipPublished, failpoint.SkipAdvanced} {
		t.Run(string(point), func(t *testing.T) {
			w := stuckWorld(t)
			_, address := w.startHTTP(failAt(point, 1))
			w.put("item:3", "item:9", "mood:1")
			position := w.getStuck(address)
			path, err := binary()
			if err != nil {
				t.Fatal(err)
			}
			skip := w.spawn(path, nil, "skip", "--config", w.config, "--position", position, "--reason", "a value without a name", "--yes")
			w.eventually("it is killed", func() bool { return w.control()["state"] == "gap" })
			p := w.launch()
			skip.wait()
			if skip.err != nil {
				t.Errorf("the command: %v", skip.err)
			}
			w.settle(p)
			w.want()
			w.step(p, "and goes on", keys("item:4"), keys("item:5"), `UPDATE items SET note = 'x' WHERE id = 4`)
			p.stop()
		})
	}
}

// Whatever lets it past is noticed by itself.
func TestStuckUntilItIsRepaired(t *testing.T) {
	w := stuckWorld(t)
	p, address := w.startHTTP()
	w.put("item:3", "item:9")
	position := w.getStuck(address)
	w.eventually("somebody moves the slot", func() bool {
		_, err := w.conn.Exec(t.Context(), `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, w.slot)
		return err == nil // else an attempt is under way
	})
	w.eventually("it streams again", func() bool { return w.condition(address, "streaming").OK && w.condition(address, "stuck").OK })
	w.settle(p)
	w.want() // the slot was moved behind its back: a gap
	w.eventually("nobody is told of it any more", func() bool { return w.rdb.Exists(t.Context(), "inv:stuck:{"+w.slot+"}").Val() == 0 })
	w.put("item:9")
	if code, _, stderr := w.skipCommand(position, "--yes"); code != 1 || !strings.Contains(stderr, "nothing was done") {
		t.Errorf("skip of what is past: %d, %s", code, stderr)
	}
	w.settle(p)
	w.want("item:9")
	p.stop()
}

// Somebody asks for a skip while the one who repairs the server is quicker.
func TestSkipOfWhatIsPastWhenItIsReadIsRefused(t *testing.T) {
	w := stuckWorld(t)
	p, address := w.startHTTP()
	position := w.getStuck(address)
	p.kill()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	skip := w.spawn(path, nil, "skip", "--config", w.config, "--position", position, "--reason", "too late", "--yes")
	w.eventually("it has asked", func() bool { return w.rdb.Exists(t.Context(), "inv:skip:{"+w.slot+"}").Val() == 1 })
	w.eventually("somebody moves the slot", func() bool {
		_, err := w.conn.Exec(t.Context(), `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, w.slot)
		return err == nil // else the server has not noticed that the daemon is gone
	})
	p = w.start()
	skip.wait()
	if skip.err == nil || !strings.Contains(skip.log.String(), "without it") {
		t.Errorf("the command: %v, %s", skip.err, skip.log.String())
	}
	if strings.Contains(w.control()["reason"], "too late") || p.logged("too late") > 0 {
		t.Error("it was skipped")
	}
	p.stop()
}

// An error before anything of the transaction was sent: which one it is cannot be known, and
// all that is in the log by then is given up.
func TestStuckBeforeATransactionsFirstMessage(t *testing.T) {
	w := stuckWorld(t)
	var version int
	if err := w.conn.QueryRow(t.Context(), "SELECT current_setting('server_version_num')::int").Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version >= 180000 {
		t.Skip("from 18 on the server skips such changes and says so, which is a gap")
	}
	p, address := w.startHTTP()
	w.put("item:1", "item:3", "item:9")
	publication := w.slot + "_pub"
	w.exec(`DROP PUBLICATION `+publication, `UPDATE items SET note = 'unseen' WHERE id = 1`,
		`CREATE PUBLICATION `+publication+` FOR TABLE items, moods WITH (publish_via_partition_root)`, `UPDATE items SET note = 'after' WHERE id = 3`)
	position := ""
	w.eventually("it says that it is stuck", func() bool {
		c := w.condition(address, "stuck")
		_, rest, found := strings.Cut(c.Fix, "--position ")
		position, _, _ = strings.Cut(rest, " ")
		return found && !c.OK && strings.Contains(c.Reason, "stuck behind "+position)
	})
	if w.control()["state"] == "ok" {
		t.Error("it says that it is well")
	}
	if code, stdout, stderr := w.skipCommand(position, "--yes"); code != 0 || !strings.Contains(stdout, "up to its end") {
		t.Fatalf("skip: %d, %s%s", code, stdout, stderr)
	}
	w.settle(p)
	w.want()
	w.step(p, "and goes on", keys("item:4"), keys("item:5"), `UPDATE items SET note = 'x' WHERE id = 4`)
	p.stop()
}
