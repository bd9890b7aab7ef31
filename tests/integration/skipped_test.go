package integration

import (
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver"
	"github.com/cdc-invalidator/cdc-invalidator/internal/localserver/servertest"
)

// Postgres 18 goes past changes whose publication is missing, and says so in a notice
// only. The tests put that notice into the stream of whatever version there is.

// The gap must be known to whoever attaches next, also when the daemon is killed before
// it could itself.
func TestSkippedChangesAreAGapForTheNextDaemon(t *testing.T) {
	w := itemsWorld(t, 200)
	source := newNoticing(t, w)
	p := w.start()
	w.cacheRows(0, 100)
	source.refuse.Store(true) // nobody attaches again
	source.notice.Store(true)
	w.eventually("the gap is published", func() bool { return w.control()["state"] == "gap" })
	p.kill()
	w.wantKept(0, 100)
	source.refuse.Store(false)
	p = w.launch()
	w.eventually("the gap is closed", func() bool { return p.logged("gap closed") > 0 })
	w.settle(p)
	w.wantGone(0, 100)
	if p.logged("the server skipped changes") == 0 {
		t.Error("the log does not say why")
	}
	p.stop()
}

// Redis is away when the notice comes, so the gap can be published only later. The
// slot would skip the same changes again, so it is made anew.
func TestSkippedChangesWithoutRedis(t *testing.T) {
	t.Parallel() // it waits more than it works
	pg, rd := servertest.Postgres(t), servertest.PrivateRedis(t, localserver.RedisOptions{})
	route := newRoute(t, rd.Address())
	w := newWorldOn(t, pg.URL, rd.URL(), itemsSchema(200), itemsMappings)
	w.reconfigure(rd.URL(), "redis://"+route.l.Addr().String()+"/0")
	source := newNoticing(t, w)
	p := w.start()
	w.cacheRows(0, 100)
	created := func() string {
		return query[string](w, "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1", w.slot)
	}
	before := created()
	route.lead("")
	source.notice.Store(true)
	w.eventually("the session has ended", func() bool { return p.logged("not streaming") > 0 })
	route.lead(rd.Address())
	w.eventually("the gap is closed", func() bool { return p.logged("gap closed") > 0 })
	w.settle(p)
	w.wantGone(0, 100)
	if created() == before {
		t.Error("the slot is the same, and would skip the same changes again")
	}
	w.cacheRows(0, 10)
	w.update(0, 5)
	w.settle(p)
	w.wantGone(0, 5)
	w.wantKept(5, 10)
	if n := p.logged("gap closed"); n != 1 {
		t.Errorf("%d gaps, want one", n)
	}
	p.stop()
}
