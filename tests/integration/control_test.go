package integration

import (
	"syscall"
	"testing"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
)

// After SIGTERM everything that was received is applied and checkpointed, and the
// next start does none of it again.
func TestStopFinishesAndStartDoesNotRepeat(t *testing.T) {
	const rows = 2000
	w := itemsWorld(t, rows)
	p := w.start()
	w.cacheRows(0, 500)
	w.update(0, 500)
	w.received()
	p.stop()
	w.wantGone(0, 500)

	w.cacheRows(0, 500) // would be deleted by a repetition
	w.update(500, 600)  // while it is away
	w.cacheRows(600, 700)
	next := w.start()
	w.wantKept(0, 500)
	w.wantKept(600, 700)
	if next.logged("msg=resuming") == 0 {
		t.Error("it did not resume")
	}
	next.stop()

	// Under load the batch in hand is finished.
	p = w.start()
	l := w.load(rows, 3)
	l.until(200)
	p.stop()
	l.until(40)
	p = w.start()
	l.until(100)
	l.end()
	w.settle(p)
	w.wantFresh(20)
	p.stop()
}

// Connections are scarce on the source: the one that sets everything up is given
// back once the daemon streams.
func TestConnectionsWhileStreaming(t *testing.T) {
	w := itemsWorld(t, 10)
	p := w.start()
	w.update(0, 1) // the gate connects when there is something to ask
	w.settle(p)
	var open string
	t.Cleanup(func() { t.Logf("open are %s", open) })
	w.eventually("the connection for the setup is closed, and the others are there", func() bool {
		open = query[string](w, `SELECT coalesce(string_agg(application_name, ', ' ORDER BY application_name), '') FROM pg_stat_activity
			WHERE datname = current_database() AND application_name LIKE 'cdc-invalidator%'`)
		return open == "cdc-invalidator, cdc-invalidator catalog, cdc-invalidator gate, cdc-invalidator heartbeat, cdc-invalidator standby, cdc-invalidator types"
	})
	p.stop()
}

// SIGTERM while Redis hangs: the daemon ends with 0 in bounded time, and what it had
// not applied is applied by the next.
func TestStopWhileRedisHangs(t *testing.T) {
	t.Parallel() // it waits more than it works
	w, _, rd := privateWorld(t, 1000, nil)
	w.replayWindow("1ms")
	p := w.start()
	w.cacheRows(0, 200)
	if err := rd.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.update(0, 100)
	w.received()
	began := time.Now()
	p.stop()
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v to end", took)
	}
	if err := rd.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	next := w.start()
	w.wantGone(0, 100)
	w.wantKept(100, 200)
	next.stop()
}

// SIGTERM while Redis is away for a moment: what was received is still applied, by this
// daemon and not by the next.
func TestStopAppliesWhatIsInHand(t *testing.T) {
	t.Parallel()
	w, _, rd := privateWorld(t, 1000, nil)
	p := w.start()
	w.cacheRows(0, 200)
	if err := rd.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w.update(0, 100)
	w.received()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	w.eventually("a daemon that gives up has ended", elapsed(500*time.Millisecond))
	if err := rd.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.wait()
	if p.err != nil {
		t.Fatalf("after SIGTERM: %v", p.err)
	}
	w.wantGone(0, 100)
	w.wantKept(100, 200)
}

// A restart of the source that can have lost nothing is over and done with: what is set
// later is not held against it.
func TestHarmlessRestartIsJudgedOnce(t *testing.T) {
	w, pg, _ := privateWorld(t, 200, nil)
	w.start().stop()
	restart(t, pg, localserver.Fast)
	w.reconnect()
	w.start().stop()
	w.exec("CREATE ROLE batch_jobs", "ALTER ROLE batch_jobs SET synchronous_commit = off")
	w.cacheRows(0, 100)
	p := w.start()
	w.wantKept(0, 100)
	if p.logged("gap: ") > 0 {
		t.Error("a gap for a restart that was judged harmless before")
	}
	p.stop()
	// From now on a restart may lose commits.
	w.cacheRows(0, 100)
	restart(t, pg, localserver.Fast)
	w.reconnect()
	w.wantGap("synchronous_commit").stop()
}

// The slot's confirmed position goes back, as it does when Postgres crashes before it
// has saved the slot. What is sent again must neither be lost nor done again.
func TestConfirmedPositionGoesBack(t *testing.T) {
	confirmed := func(w *world) string {
		return query[string](w, "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1", w.slot)
	}
	wentBack := func(w *world, from string) bool {
		return query[bool](w, "SELECT confirmed_flush_lsn < $1::text::pg_lsn FROM pg_replication_slots WHERE slot_name = $2", from, w.slot)
	}
	for _, c := range []struct {
		name string
		back func(t *testing.T, w *world, pg *localserver.Postgres)
	}{
		{"by a crash", func(t *testing.T, w *world, pg *localserver.Postgres) {
			restart(t, pg, localserver.Immediate)
			w.reconnect()
		}},
		{"to a copy of the slot", func(t *testing.T, w *world, _ *localserver.Postgres) {
			w.exec("SELECT pg_drop_replication_slot('"+w.slot+"')",
				"SELECT pg_copy_logical_replication_slot('"+w.slot+"_copy', '"+w.slot+"')")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, pg, _ := privateWorld(t, 1000, nil)
			w.replayWindow("1ms")
			w.start().stop()
			w.exec("SELECT pg_copy_logical_replication_slot('"+w.slot+"', '"+w.slot+"_copy')", "CHECKPOINT")
			p := w.start()
			// The server saves the slot at the first confirmation past the checkpoint, which lets
			// WAL go, and not at those after it.
			w.update(0, 50)
			w.settle(p)
			first := query[string](w, "SELECT pg_current_wal_lsn()::text")
			w.eventually("that is confirmed", func() bool { return !wentBack(w, first) })
			w.update(50, 100)
			w.settle(p)
			p.stop()
			before := confirmed(w)
			w.update(100, 200)
			c.back(t, w, pg)
			if !wentBack(w, before) {
				t.Fatalf("the slot is confirmed at %s, was at %s: the test proves nothing", confirmed(w), before)
			}
			w.cacheRows(0, 100)   // as they are now: must stay
			w.cacheRows(200, 300) // as they are now
			w.update(200, 250)
			p = w.start()
			w.wantKept(0, 100)
			w.wantGone(200, 250)
			w.wantKept(250, 300)
			if p.logged("gap: ") > 0 {
				t.Error("a gap, although nothing was lost")
			}
			p.stop()
		})
	}
}
