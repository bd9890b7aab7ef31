package integration

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
	"github.com/cdc-invalidator/cdc-invalidator/internal/lsn"
)

// wantGap starts the daemon, which must find a gap for the reason, publish it before
// anything is purged, purge every mapped family and nothing else, and say ok.
func (w *world) wantGap(reason string) *process {
	w.t.Helper()
	w.put("session:1")
	cached := len(scan(w.t, w.rdb))
	p := w.launch(failAt(failpoint.Purging, 1))
	p.wait()
	if p.logged(reason) == 0 {
		w.t.Fatalf("the log lacks %q:\n%s", reason, p.log.String())
	}
	if state := w.control()["state"]; state != "gap" {
		w.t.Errorf("before the purge the state is %q", state)
	}
	if now := len(scan(w.t, w.rdb)); now != cached || now == 0 {
		w.t.Errorf("%d of %d keys were there when the gap was published", now, cached)
	}
	p = w.start()
	if n := len(scan(w.t, w.rdb)); n != 0 {
		w.t.Errorf("%d keys are left after the purge", n)
	}
	if w.get("session:1") == "" {
		w.t.Error("a key of no family was purged")
	}
	w.cacheRows(0, 10)
	w.update(0, 5)
	w.settle(p)
	w.wantGone(0, 5)
	w.wantKept(5, 10)
	return p
}

// Redis' data is taken back by hand while the daemon and Redis go on.
func TestDataThatIsTakenBackByHand(t *testing.T) {
	t.Parallel()
	w, _, rd := privateWorld(t, 100, nil)
	p := w.start()
	w.cacheRows(0, 100)
	w.settle(p)
	for _, key := range w.rdb.Keys(t.Context(), "*").Val() { // a copy has what the daemon keeps there, too
		if err := w.rdb.Copy(t.Context(), key, key, 1, false).Err(); err != nil {
			t.Fatal(err)
		}
	}
	w.update(0, 50)
	w.settle(p)
	w.wantGone(0, 50)
	if err := servertest.RedisClient(t, rd.URL()).Do(t.Context(), "swapdb", 0, 1).Err(); err != nil {
		t.Fatal(err)
	}
	w.eventually("what has come back is removed", func() bool { return w.cachedOf(0, 50) == 0 })
	w.settle(p)
	w.wantFresh(0)
	p.stop()
}

func TestSlotDroppedAndMadeAgainIsAGap(t *testing.T) {
	for _, by := range []string{"somebody", "the daemon"} {
		t.Run("made by "+by, func(t *testing.T) {
			w := itemsWorld(t, 200)
			w.start().stop()
			w.cacheRows(0, 100)
			w.exec("SELECT pg_drop_replication_slot('" + w.slot + "')")
			w.update(0, 50) // lost
			reason := "the slot was created anew"
			if by == "somebody" {
				w.exec("SELECT pg_create_logical_replication_slot('" + w.slot + "', 'pgoutput')")
				reason = "the slot is confirmed up to"
			}
			w.wantGap(reason).stop()
		})
	}
}

func TestLostSlotIsAGap(t *testing.T) {
	w, _, _ := privateWorld(t, 200, smallWAL())
	w.start().stop()
	w.cacheRows(0, 100)
	w.update(0, 50)
	w.loseSlot()
	w.wantGap("the slot was created anew").stop()
}

// smallWAL are settings of a server that takes the WAL from a slot which nobody reads.
func smallWAL() map[string]string {
	return map[string]string{"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}
}

func (w *world) loseSlot() {
	w.t.Helper()
	w.eventually("the slot is lost", func() bool {
		w.exec("SELECT pg_switch_wal()", "UPDATE items SET v = v WHERE id = 199", "CHECKPOINT")
		return query[string](w, "SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1", w.slot) == "lost"
	})
}

// A slot cannot be made while an older transaction is open, which can be long.
// Readers must know that there is a gap before that, not after.
func TestGapIsPublishedWhileTheSlotCannotBeMade(t *testing.T) {
	for _, c := range []struct {
		name string
		take func(t *testing.T, w *world)
	}{
		{"dropped", func(_ *testing.T, w *world) { w.exec("SELECT pg_drop_replication_slot('" + w.slot + "')") }},
		{"lost", func(_ *testing.T, w *world) { w.loseSlot() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, _, _ := privateWorld(t, 200, smallWAL())
			w.start().stop()
			w.cacheRows(0, 100)
			w.update(0, 50)
			c.take(t, w)
			older := servertest.Connect(t, w.url)
			if _, err := older.Exec(t.Context(), "BEGIN; SELECT pg_current_xact_id()"); err != nil {
				t.Fatal(err)
			}
			p := w.launch()
			w.eventually("the daemon waits for the older transaction", func() bool {
				return query[bool](w, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%pg_create_logical_replication_slot%')")
			})
			if state := w.control()["state"]; state != "gap" {
				t.Errorf("the state is %q while the slot waits for an older transaction", state)
			}
			if _, err := older.Exec(t.Context(), "ROLLBACK"); err != nil {
				t.Fatal(err)
			}
			w.settle(p)
			w.wantGone(0, 100)
			p.stop()
		})
	}
}

// The slot is gone and somebody else has to make it.
func TestMissingSlotThatIsNotToBeMadeIsPublished(t *testing.T) {
	w := itemsWorld(t, 10)
	w.start().stop()
	w.exec("SELECT pg_drop_replication_slot('" + w.slot + "')")
	w.reconfigure("slot: {name: "+w.slot+", create_if_not_exists: true}", "slot: {name: "+w.slot+"}")
	w.refuses("the slot does not exist", "pg_create_logical_replication_slot")
	if state := w.control()["state"]; state != "gap" {
		t.Errorf("the state is %q without a slot", state)
	}
}

// Redis is away when the daemon attaches for the first time. There is nothing that it
// could have missed, but what is cached is not known to be fresh.
func TestFirstAttachmentWithoutRedisIsNoGap(t *testing.T) {
	pg, rd := servertest.Postgres(t), servertest.PrivateRedis(t, localserver.RedisOptions{})
	route := newRoute(t, rd.Address())
	w := newWorldOn(t, pg.URL, rd.URL(), itemsSchema(200), itemsMappings)
	w.reconfigure(rd.URL(), "redis://"+route.l.Addr().String()+"/0")
	w.cacheRows(0, 100)
	route.lead("")
	p := w.launch()
	w.eventually("the daemon has failed to attach", func() bool { return p.logged("not streaming") > 1 })
	route.lead(rd.Address())
	w.settle(p)
	w.wantGone(0, 100)
	if p.logged("gap: ") > 0 {
		t.Error("a gap, although nothing was promised before")
	}
	p.stop()
}

// The URL leads to another cluster, which has a publication and a slot of the same
// name.
func TestAnotherClusterIsAGap(t *testing.T) {
	w := itemsWorld(t, 200)
	w.start().stop()
	w.cacheRows(0, 100)
	other := servertest.NewDatabase(t, servertest.PrivatePostgres(t, localserver.PostgresOptions{}), "shop")
	w.reconfigure(w.url, other.URL)
	w.url = other.URL
	w.reconnect()
	w.exec(itemsSchema(200), "CREATE PUBLICATION "+w.slot+"_pub FOR TABLE items",
		"SELECT pg_create_logical_replication_slot('"+w.slot+"', 'pgoutput')")
	w.wantGap("another cluster").stop()
}

// The source is an earlier copy of itself, as a restored volume snapshot is: same system id,
// same timeline, same slot. Its log ends before what was applied, or has grown past that
// by the time the daemon looks.
func TestSourceTakenBackToACopyIsAGap(t *testing.T) {
	for name, grow := range map[string]int{"the log ends before": 0, "the log has grown past": 4} {
		t.Run(name, func(t *testing.T) {
			w, pg, _ := privateWorld(t, 200, nil)
			w.exec("CREATE TABLE elsewhere (v text)")
			w.start().stop()
			w.offline(pg, func() {
				if err := pg.SaveData(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
			p := w.start()
			w.update(0, 200)
			w.settle(p)
			w.cacheRows(0, 100)
			p.stop()
			w.offline(pg, func() {
				if err := pg.RestoreData(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
			applied := w.control()["applied"]
			for range grow {
				w.exec("INSERT INTO elsewhere SELECT string_agg(md5(i::text), '') FROM generate_series(1, 40000) i")
			}
			if grow > 0 && !query[bool](w, "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn > $1", decimal(t, applied)) {
				t.Fatal("the log has not grown past what was applied: the test proves nothing")
			}
			w.wantGap("the source was taken back").stop()
		})
	}
}

// offline does something while the source is stopped.
func (w *world) offline(pg *localserver.Postgres, do func()) {
	w.t.Helper()
	closeNow(w.conn)
	if err := pg.Stop(w.t.Context(), localserver.Fast); err != nil {
		w.t.Fatal(err)
	}
	do()
	if err := pg.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.reconnect()
}

// The daemon is stopped, and starts again: what it finds is what it left, whatever happened to
// the source in between that takes nothing back.
func TestHistoryThatGoesOnIsNoGap(t *testing.T) {
	w, pg, _ := privateWorld(t, 200, nil)
	w.replayWindow("0s") // nothing but the last transaction is held back
	p := w.start()
	first := w.control()["generation"]
	resumes := func(name string, stop func()) {
		t.Helper()
		w.update(0, 50)
		w.settle(p)
		stop()
		w.cacheRows(0, 100)
		w.update(0, 50)
		p = w.start()
		w.settle(p)
		if c := w.control(); c["generation"] != first {
			t.Fatalf("%s: the generation is %s, was %s\n%s", name, c["generation"], first, p.log.String())
		}
		w.wantGone(0, 50)
		w.wantKept(50, 100)
		if proof := w.control()["txn"]; !strings.HasPrefix(proof, w.control()["applied"][:8]) {
			t.Errorf("%s: the checkpoint names the transaction %q", name, proof)
		}
	}
	resumes("stopped", func() { p.stop() })
	resumes("killed", func() { p.kill() })
	resumes("the source restarted", func() { p.stop(); w.offline(pg, func() {}) })
	resumes("the source crashed", func() {
		p.kill()
		pg.Kill()
		if err := pg.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.reconnect()
	})
	resumes("a checkpoint of an earlier version", func() {
		p.stop()
		if err := w.rdb.HDel(t.Context(), "inv:source:{"+w.slot+"}", "txn").Err(); err != nil {
			t.Fatal(err)
		}
	})
	resumes("one that an earlier version has moved on", func() {
		p.stop()
		if err := w.rdb.HSet(t.Context(), "inv:source:{"+w.slot+"}", "txn", "0000000000000010 00000003").Err(); err != nil {
			t.Fatal(err)
		}
	})
	p.stop()
}

// A replica that lags is promoted, and the URL leads to it: it has values that the
// lost primary had lost, and a checkpoint that says so.
func TestRedisFailoverIsReplayed(t *testing.T) {
	const rows = 400
	pg := servertest.Postgres(t)
	primary := servertest.PrivateRedis(t, localserver.RedisOptions{})
	replica := servertest.PrivateRedis(t, localserver.RedisOptions{})
	route := newRoute(t, primary.Address())
	w := newWorldOn(t, pg.URL, "redis://"+route.l.Addr().String()+"/0", itemsSchema(rows), itemsMappings)
	w.replayWindow("30s")
	rc := servertest.RedisClient(t, replica.URL())
	if err := rc.Do(t.Context(), "replicaof", "127.0.0.1", primary.Port()).Err(); err != nil {
		t.Fatal(err)
	}
	p := w.start()
	w.cacheRows(0, rows)
	w.update(0, 100)
	w.settle(p)
	w.eventually("the replica has it all", func() bool {
		return len(scan(t, rc)) == rows-100 && rc.HGet(t.Context(), "inv:source:{"+w.slot+"}", "applied").Val() != ""
	})
	// From here on the replica gets nothing more.
	if err := rc.Do(t.Context(), "replicaof", "no", "one").Err(); err != nil {
		t.Fatal(err)
	}
	w.update(100, 200)
	w.settle(p)
	w.wantGone(100, 200)
	resumed := p.logged("msg=resuming")
	if stale, _ := w.stale(rc); len(stale) != 100 {
		t.Fatalf("%d stale values on the replica, want 100: the test proves nothing", len(stale))
	}
	primary.Kill()
	w.update(200, 300) // while neither is there
	route.lead(replica.Address())
	w.eventually("the daemon has found out", func() bool { return p.logged("msg=resuming") > resumed })
	w.settle(p)
	w.wantGone(0, 300)
	w.wantKept(300, rows)
	w.wantFresh(rows - 300)
	if p.logged("gap: ") > 0 {
		t.Error("a gap, although all could be replayed")
	}
	p.stop()
}

// route forwards TCP to a server that can change: an address that survives a failover.
type route struct {
	l  net.Listener
	wg sync.WaitGroup

	mu     sync.Mutex
	target string
	conns  []net.Conn
}

func newRoute(t *testing.T, target string) *route {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &route{l: l, target: target}
	r.wg.Go(r.accept)
	t.Cleanup(func() {
		_ = l.Close()
		r.lead("")
		r.wg.Wait()
	})
	return r
}

// lead cuts all connections and sends new ones elsewhere.
func (r *route) lead(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = target
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.conns = nil
}

func (r *route) accept() {
	for {
		in, err := r.l.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		out, err := net.Dial("tcp", r.target)
		if err != nil {
			_ = in.Close()
			r.mu.Unlock()
			continue
		}
		r.conns = append(r.conns, in, out)
		r.mu.Unlock()
		r.wg.Go(func() { forward(out, in) })
		r.wg.Go(func() { forward(in, out) })
	}
}

func forward(dst, src net.Conn) {
	defer dst.Close()
	_, _ = io.Copy(dst, src) // ends when either side is closed
}

func decimal(t *testing.T, position string) uint64 {
	t.Helper()
	n, err := lsn.ParseHex(position)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(n)
}
