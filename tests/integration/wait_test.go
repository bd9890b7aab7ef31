package integration

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// wait runs the command, which has to end with a code.
func (w *world) wait(want int, args ...string) (stdout, stderr string) {
	w.t.Helper()
	code, stdout, stderr := w.command(append([]string{"wait", "--config", w.config}, args...)...)
	if code != want {
		w.t.Errorf("wait %v: exit code %d, want %d\n%s%s", args, code, want, stdout, stderr)
	}
	return stdout, stderr
}

const timedOut = 75

// What a class holds back is waited for, and the time-out says of what and until when.
func TestWaitCoversWhatIsHeld(t *testing.T) {
	w := heldWorld(t, 10, "staleness: 60s, linger: 10s")
	p := w.start()
	w.eventually("the class is held back", func() bool { return w.rdb.Exists(t.Context(), w.heldKey()).Val() == 1 })
	w.cacheRows(0, 10)
	w.update(0, 9)
	w.applied(p)
	_, stderr := w.wait(timedOut, "--timeout", "2s") // for the last transaction to come through; the rest is held for longer
	for _, want := range []string{"class slow holds back 9 invalidations, the last one until ", "not everything up to "} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not in %q", want, stderr)
		}
	}
	out, _ := w.wait(0, "--json")
	w.wantGone(0, 9) // at once
	w.wantKept(9, 10)
	var report struct {
		Settled    bool
		Needed     string
		SettledLSN string `json:"settled_lsn"`
		Missing    []string
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || !report.Settled || report.Needed == "" || report.Missing == nil {
		t.Errorf("%v: %s", err, out)
	}
	_, status, _ := w.command("status", "--url", p.address())
	if !strings.Contains(status, "settled    ") || strings.Contains(status, "settled    0/0") {
		t.Errorf("status does not say what is settled:\n%s", status)
	}
	p.stop()
}

// Every class with a hold, under load that never lets a set get empty: each wait ends, and
// what was committed before it is gone.
func TestWaitUnderLoad(t *testing.T) {
	w := heldWorld(t, 200, "staleness: 20s, linger: 300ms, max_rate: 2000/s")
	p := w.start()
	w.cacheRows(0, 200)
	l := w.load(100, 3)
	for id := int64(100); id < 110; id++ {
		l.until(20)
		w.cacheRows(id, id+1)
		w.update(id, id+1)
		w.wait(0)
		w.wantGone(id, id+1)
	}
	l.end()
	p.stop()
}

// An idle source without heartbeats, and DDL that the log is silent about.
func TestWaitWithoutHeartbeats(t *testing.T) {
	w := heldWorld(t, 10, "staleness: 30s, linger: 200ms")
	w.reconfigure("heartbeat: 100ms", "heartbeat: 0")
	p := w.start()
	for range 3 {
		w.cacheRows(0, 10)
		w.update(0, 10)
		w.wait(0, "--now")
		w.wantGone(0, 10)
		w.wait(0, "--lsn", query[string](w, "SELECT pg_current_wal_insert_lsn()::text"))
		w.put("other:1")
		w.exec("ALTER TABLE others ALTER id TYPE numeric USING id + 0")
		w.wait(0)
		w.want()
		w.exec("ALTER TABLE others ALTER id TYPE bigint USING id + 0")
	}
	p.stop()
}

// Nothing is said to be settled by a daemon that has not run, does not run, or was killed at
// a point where something is on its way.
func TestWaitWithoutADaemon(t *testing.T) {
	w := heldWorld(t, 600, "staleness: 60s, linger: 1s")
	_, stderr := w.wait(timedOut, "--timeout", "100ms")
	if !strings.Contains(stderr, "has no checkpoint of slot") {
		t.Error(stderr)
	}
	w.start().stop()
	_, stderr = w.wait(timedOut, "--timeout", "100ms")
	if !strings.Contains(stderr, "is not active: no daemon is streaming") || !strings.Contains(stderr, "needed") {
		t.Error(stderr)
	}
	from := int64(0)
	for _, point := range []failpoint.Point{failpoint.Gated, failpoint.Applied, failpoint.Checkpointed, failpoint.HeldTaken, failpoint.HeldApplied} {
		t.Run(string(point), func(t *testing.T) {
			w.cacheRows(from, from+100)
			p := w.launch(failAt(point, 1))
			w.eventually("it is at work, or has ended", func() bool { return p.ended() || p.logged("msg=streaming") > 0 })
			w.update(from, from+100)
			p.wait()
			w.wait(timedOut, "--timeout", "100ms")
			next := w.start()
			w.wait(0)
			w.wantGone(from, from+100)
			next.stop()
		})
		from += 100
	}

	w.exec("DROP TABLE others CASCADE")
	p := w.launch()
	p.wait() // it refuses a file whose table is not there
	w.rdb.HSet(t.Context(), "inv:source:{"+w.slot+"}", "state", "gap", "reason", "told by the test")
	_, stderr = w.wait(timedOut, "--timeout", "100ms")
	if !strings.Contains(stderr, "the state is gap: told by the test") {
		t.Error(stderr)
	}
}

func TestWaitRefuses(t *testing.T) {
	w := itemsWorld(t, 1)
	for _, args := range [][]string{{"--lsn", "nonsense"}, {"--lsn", "0/0"}, {"--now", "--lsn", "0/1"}, {"--timeout", "-1s"}, {"extra"}} {
		w.wait(64, args...)
	}
	w.reconfigure("redis://", "http://")
	w.wait(78)
	w.url = "postgres://127.0.0.1:1/nothing"
	w.writeConfig(itemsMappings)
	w.wait(69)
}

// How far the daemon is says nothing of what it does not follow: of a family that only the
// file has, or that the file maps otherwise. A reload with the file is what is missing.
func TestWaitForAFileThatTheDaemonDoesNotFollow(t *testing.T) {
	w := newWorld(t, reloadSchema, reloadMappings("k:{id}", mapsA))
	p := w.start()
	w.wait(0)
	for _, step := range []struct{ mappings, says, stale string }{
		{reloadMappings("k:{id}", mapsA+mapsB), "the daemon maps the families k otherwise than this file", "k:2"},
		{strings.Replace(reloadMappings("k:{id}", mapsA+mapsB), "mappings:\n", "  n: {key: \"n:{id}\", class: critical}\nmappings:\n  - {table: public.b, keys: [n]}\n", 1),
			"the daemon does not follow the families n: reload it (SIGHUP)", "n:2"},
	} {
		w.writeConfig(step.mappings)
		w.exec("DELETE FROM b", "INSERT INTO b VALUES (1), (2)")
		w.put(step.stale)
		w.exec("UPDATE b SET v = 1 WHERE id = 2")
		// Nothing else is missing, so the time is of no matter.
		_, stderr := w.wait(timedOut, "--timeout", "2s")
		if !strings.Contains(stderr, step.says) {
			t.Errorf("%q is not in %q", step.says, stderr)
		}
		w.exec(w.withPublication(keys("ALTER PUBLICATION %s SET TABLE a, b"))...)
		p.reloadSays(reloaded)
		w.wait(0) // what it has to wait for now is no reason to give up
		w.want()
	}
	p.stop()
}

// The position is of another database's tables, where the name of the slot is that one's.
func TestWaitForASlotOfAnotherDatabase(t *testing.T) {
	w := itemsWorld(t, 1)
	p := w.start()
	w.wait(0)
	other := servertest.Postgres(t)
	w.reconfigure(w.url, other.URL)
	_, stderr := w.wait(78)
	if !strings.Contains(stderr, "it belongs to database") || !strings.Contains(stderr, "source.slot.name") {
		t.Error(stderr)
	}
	p.stop()
}
