package consistency

import (
	"context"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/failpoint"
)

// Changes are lost with the slot, and nothing of what was cached is removed behind the gap for
// as long as readers read: they refuse all of it by its stamp.
func slotLost(s *stage) {
	d := s.world.start()
	a, b := s.newLibrary(), s.newLibrary()
	views := viewsOf(item, byName, listed, page)
	s.readAll(views, a)
	s.readAll(views, b)
	d.kill()
	s.dropSlot()
	for row := range s.rows {
		s.change(row)
	}
	now := s.sourceNow()
	d = s.launch("CDC_FAILPOINT_HOLD=" + string(failpoint.PurgingBehind))
	s.eventually("the gap is over, and its purge is not", func() bool {
		control := s.control()
		return control["state"] == "ok" && control["purging"] != "" && s.freshAsOf() > now
	})
	s.readAll(views, a, b)
	if s.control()["purging"] == "" {
		s.t.Error("what was cached before is removed: this shows nothing")
	}
	d.kill()
	s.wantSettled(s.world.start(), views, a, b)
}

// dropSlot removes the slot of a daemon that was killed.
func (s *stage) dropSlot() {
	s.t.Helper()
	s.eventually("the server has noticed that the daemon is gone", func() bool {
		_, err := s.conn.Exec(context.Background(), "SELECT pg_drop_replication_slot($1)", s.slot)
		return err == nil
	})
}

// Commits that nobody sees are passed by the slot in a gap. Before they are visible no stamp may
// be given: what readers store under it would stay.
func gapInLimbo(s *stage) {
	d := s.world.start()
	a := s.newLibrary()
	views := viewsOf(item, byName, page)
	d.kill()
	l := s.limbo()
	for row := range int64(6) {
		l.change(row)
	}
	s.eventually("somebody moves the slot past them", func() bool {
		_, err := s.conn.Exec(context.Background(), "SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())", s.slot)
		return err == nil
	})
	d = s.launch()
	s.eventually("the daemon follows the source", func() bool { return d.logged("msg=streaming") > 0 })
	// Long enough for a daemon that does not wait to give its stamps, and for readers to store.
	over := elapsed(time.Second)
	s.eventually("readers have gone round", func() bool { s.readAll(views, a); return over() })
	l.release()
	s.wantSettled(d, views, a)
}
