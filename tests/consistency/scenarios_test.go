package consistency

import (
	"context"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

// everyView is what most scenarios read.
func everyView() []*view { return viewsOf(item, byName, listed, soft, lingering, page) }

// libraryScenarios are the stories that the library and the daemon must survive.
func libraryScenarios() []scenario {
	return []scenario{
		{name: "library/traffic", run: plainTraffic},
		{name: "library/loader asleep across invalidations", run: loaderAsleep},
		{name: "library/lease taken late", run: leaseTakenLate},
		{name: "library/old and new image", run: oldAndNewImage},
		{name: "library/soft: refresh asleep across a second change", run: softRefreshAsleep},
		{name: "library/soft: nobody can refresh", long: true, run: softNobodyRefreshes},
		{name: "library/dependents: load asleep", run: dependentsAsleep},
		{name: "library/dependents: readers at its heels", run: dependentsAtItsHeels},
		{name: "library/version keys evicted", run: versionKeysEvicted},
		{name: "library/lease runs out during a load", run: leaseRunsOut},
		{name: "library/hold: daemon stops before it has applied", long: true, options: longHold, run: daemonStopsHolding},
		{name: "library/commit waits for a standby", options: ownSource, run: commitWaits},
		{name: "library/expiry storm", long: true, options: shortTTL, run: plainTraffic},
		{name: "library/third party unlinks", long: true, run: thirdParty},
		{name: "library/small Redis evicts", long: true, options: ownRedis, run: smallRedis},
		{name: "library/daemon killed at every point", run: daemonKilledAtPoints},
		{name: "library/daemon killed in a loop", long: true, run: daemonKilledInALoop},
		{name: "library/held: daemon killed while it applies", long: true, run: daemonKilledDraining},
		{name: "library/loader slower than its class", run: slowLoader},
		{name: "library/daemon stopped", long: true, run: daemonStopped},
		{name: "library/Redis restarted empty", options: ownRedis, run: redisRestartedEmpty},
		{name: "library/Redis restarted with old data", long: true, options: ownRedis, run: redisRestartedOld},
		{name: "library/Redis hangs", long: true, options: ownRedis, run: redisHangs},
		{name: "library/source restarted", long: true, options: ownSource, run: sourceRestarted},
		{name: "library/slot lost", run: slotLost},
		{name: "library/gap while commits wait for a standby", options: ownSource, run: gapInLimbo},
		{name: "library/standby reader", options: ownSource, run: standbyStands},
		{name: "library/L1: traffic", run: l1Traffic},
		{name: "library/L1: stored late", run: l1StoreLate},
		{name: "library/L1: stream cut", run: l1StreamCut},
		{name: "library/sessions with tokens", run: sessions},
		{name: "library/sessions with tokens, daemon stopped", long: true, run: sessionsDaemonStopped},
		{name: "library/token: applied between read and check", options: ampleBudget, run: tokenAppliedMeanwhile},
		{name: "library/stampede", options: ampleBudget, run: stampede},
		{name: "library/loader slower than the others wait", options: ampleBudget, run: stampedeWaitBound},
	}
}

func ownSource() worldOptions { return worldOptions{ownSource: true} }
func ownRedis() worldOptions  { return worldOptions{ownRedis: true} }

// amount of traffic of a scenario: so many writes, ten times as many reads.
func (s *stage) amount() (writes, reads int64) {
	if longForm() {
		return 1500, 15000
	}
	return 200, 2000
}

func (s *stage) someTraffic(tr *traffic) { tr.until(s.amount()) }

// Writers and readers of three processes, and nothing goes wrong.
func plainTraffic(s *stage) {
	d := s.world.start()
	fleet := s.fleet(3)
	tr := s.traffic(3, everyView(), fleet...)
	s.someTraffic(tr)
	tr.end()
	s.wantSettled(d, everyView(), fleet...)
}

// A loader has read the row, and sleeps while the row changes twice and the daemon
// invalidates twice. What it then stores must not stay.
func loaderAsleep(s *stage) {
	d := s.world.start()
	a, b := s.newLibrary(), s.newLibrary()
	for i, v := range everyView() {
		c := cell{view: v, row: int64(4 * i)}
		if v.byName {
			c.name = 1 // states 2 and 3
			s.change(c.row)
		}
		p := s.pauses.next(c)
		slow := s.start(a, c)
		p.await(s)
		s.change(c.row)
		s.settle(d)
		s.see(b, c)
		s.change(c.row)
		s.settle(d)
		close(p.resume)
		s.finish(slow)
		s.compareCached()
		s.wantNow(b, c)
	}
	s.compareCached()
}

// The row changes, and its key is removed, after a reader has missed and before it asks
// for the lease. Its snapshot must be of after that.
func leaseTakenLate(s *stage) {
	d := s.world.start()
	a := s.newLibrary()
	for row := range int64(4) {
		c := cell{view: viewsOf(item)[0], row: 4 * row}
		held := a.pauses.next("evalsha", naiveKey(c.row))
		slow := s.startUntil(held, a, c)
		s.change(c.row)
		s.settle(d)
		close(held.resume)
		s.finish(slow)
		s.compareCached()
		s.wantNow(a, c)
	}
}

// A row gets another name, is deleted, and comes back: what its old name shows, and
// that it is not there, must not stay.
func oldAndNewImage(s *stage) {
	d := s.world.start()
	a := s.newLibrary()
	views := viewsOf(item, byName)
	rows := []int64{3, 7, 8} // the first two come and go
	for range 7 {
		for _, row := range rows {
			s.wantNow(a, cell{view: views[0], row: row})
			s.wantNow(a, cell{view: views[1], row: row})
			s.wantNow(a, cell{view: views[1], row: row, name: 1})
			s.change(row)
		}
		s.settle(d)
		s.compareCached()
	}
}

// A value is marked as stale, and whoever refreshes it sleeps while the row changes once more.
func softRefreshAsleep(s *stage) {
	d := s.world.start()
	a, b := s.newLibrary(), s.newLibrary()
	for row := range int64(3) {
		c := cell{view: viewsOf(soft)[0], row: 4 * row}
		s.see(a, c)
		s.change(c.row)
		s.settle(d)
		p := s.pauses.next(c)
		first := s.start(a, c) // gets the old value, and refreshes behind it
		p.await(s)
		s.change(c.row)
		s.settle(d)
		close(p.resume)
		s.finish(first)
		s.eventually("the refresh has ended", func() bool { return s.see(b, c)[0] > 0 && s.settledValue(c) })
		s.compareCached()
	}
}

// settledValue says whether a key holds a value that nobody has marked or is loading.
func (s *stage) settledValue(c cell) bool {
	raw, err := s.rdb.Get(context.Background(), plainKey(c)).Result()
	return err == nil && len(raw) > 57 && raw[4] == 'V' && raw[33:45] != strings.Repeat("0", 12) && raw[5:21] == strings.Repeat("0", 16)
}

// A value is marked as stale again and again, and nobody can refresh it: it may be served
// until its first mark says so, and no longer.
func softNobodyRefreshes(s *stage) {
	d := s.world.start()
	a := s.newLibrary()
	c := cell{view: viewsOf(soft)[0], row: 4}
	s.see(a, c)
	resume := make(chan struct{})
	var reads []<-chan outcome
	over := elapsed(c.view.budget + time.Second)
	s.eventually("the value is too old", func() bool {
		s.pauses.nextUntil(c, resume)
		s.change(c.row)
		s.settle(d)
		reads = append(reads, s.start(a, c))
		next := elapsed(200 * time.Millisecond)
		s.eventually("some time has passed", next)
		return over()
	})
	close(resume)
	s.pauses.disarm()
	for _, r := range reads {
		s.finish(r)
	}
	s.settle(d)
	s.see(a, c)
}

// A page shows two rows, and is told of the second one by what its loader declares. The
// loader sleeps while that changes.
func dependentsAsleep(s *stage) {
	d := s.world.start()
	a, b := s.newLibrary(), s.newLibrary()
	for i := range int64(3) {
		c := cell{view: viewsOf(page)[0], row: 8*i + 4}
		other := c.row + 1
		s.wantNow(a, c) // a knows now what the page depends on
		s.change(other)
		s.settle(d)
		s.compareCached()
		// The set of dependents is empty now. The next load registers first.
		p := s.pauses.next(c)
		slow := s.start(a, c)
		p.await(s)
		s.change(other)
		s.settle(d)
		close(p.resume)
		s.finish(slow)
		s.compareCached()
		s.wantNow(a, c)
		// And one who does not know it yet: the load runs once more.
		s.unlink(plainKey(c))
		s.change(other)
		s.settle(d)
		first, second := s.pauses.next(c), s.pauses.next(c)
		slow = s.start(b, c)
		first.await(s)
		s.change(other)
		s.settle(d)
		close(first.resume)
		second.await(s)
		s.change(other)
		s.settle(d)
		close(second.resume)
		s.finish(slow)
		s.compareCached()
		s.wantNow(b, c)
		s.wantNow(a, c)
	}
}

// Readers load a page again as soon as it is removed, and so register for it again while
// the daemon is still dealing with the last change. The next change must find that.
func dependentsAtItsHeels(s *stage) {
	d := s.world.start()
	a, b := s.newLibrary(), s.newLibrary()
	c := cell{view: viewsOf(page)[0], row: 4}
	for range 20 {
		s.wantNow(a, c)
		s.change(c.row + 1)
		s.eventually("the change is applied", func() bool { s.see(a, c); s.see(b, c); return s.appliedAll() })
		s.settle(d)
		s.compareCached()
	}
}

// The version key is evicted, again and again. What was cached under an earlier version
// must not come back.
func versionKeysEvicted(s *stage) {
	d := s.world.start()
	a, b := s.newLibrary(), s.newLibrary()
	c := cell{view: viewsOf(listed)[0], row: 4}
	for range 4 {
		s.unlink("list:0")
		s.wantNow(a, c)
		s.change(c.row)
		s.settle(d)
		s.wantNow(b, c)
		s.unlink("list:0")
		s.wantNow(a, c)
		s.wantNow(b, c)
		s.compareCached()
	}
}

// A loader takes longer than its lease. Another one has loaded meanwhile, or is loading.
// The first one's fill comes too late.
func leaseRunsOut(s *stage) {
	d := s.world.start()
	a, b := s.newLibrary(cache.WithLease(50*time.Millisecond)), s.newLibrary(cache.WithLease(time.Minute))
	for i, v := range viewsOf(item, lingering, item) {
		c := cell{view: v, row: int64(4*i + 4)}
		p := s.pauses.next(c)
		slow := s.start(a, c)
		p.await(s)
		s.eventually("the lease has run out", func() bool { return !s.exists(plainKey(c)) })
		s.change(c.row)
		s.settle(d)
		s.wantNow(b, c) // is stored: the late fill would overwrite it
		close(p.resume)
		s.finish(slow)
		s.compareCached()
		s.wantNow(b, c)
	}
	// The lease in the key is another one's when the late fill comes.
	c := cell{view: viewsOf(item)[0], row: 16}
	first, second := s.pauses.next(c), s.pauses.next(c)
	slow := s.start(a, c)
	first.await(s)
	s.eventually("the lease has run out", func() bool { return !s.exists(plainKey(c)) })
	s.change(c.row)
	s.settle(d)
	other := s.start(b, c)
	second.await(s)
	close(first.resume)
	s.finish(slow)
	close(second.resume)
	s.finish(other)
	s.compareCached()
	s.wantNow(b, c)
	s.compareCached()
}

// A load takes longer than the class allows, the row changes meanwhile, and nothing takes
// the reader's lease away: the daemon stands still, or the change has moved the version
// and not touched the key. What is returned in the end must be younger than that.
func slowLoader(s *stage) {
	d := s.world.start()
	a := s.newLibrary()
	for i, v := range viewsOf(item, listed) {
		c := cell{view: v, row: int64(4*i + 4)}
		p := s.pauses.next(c)
		slow := s.start(a, c)
		p.await(s)
		if v.family == item {
			s.signal(d, syscall.SIGSTOP)
		}
		s.change(c.row)
		budget := elapsed(v.budget + 50*time.Millisecond)
		if v.family == listed {
			s.settle(d)
		}
		s.eventually("the budget is over", budget)
		close(p.resume)
		if shown, want := s.finish(slow), s.history.latest(c.row); shown[0] != want {
			s.t.Errorf("a slow read of %s returned state %d, replaced longer ago than its class allows by %d", c, shown[0], want)
		}
		if v.family == item {
			s.signal(d, syscall.SIGCONT)
		}
		s.settle(d)
		s.compareCached()
	}
}

// ampleBudget is for scenarios that count loads: on a machine that is busy the daemon may be
// later than a second, and reads would rightly go past the cache.
func ampleBudget() worldOptions {
	return worldOptions{mappings: regexp.MustCompile(`staleness: \d+s`).ReplaceAllString(mappingsYAML, "staleness: 60s")}
}

func longHold() worldOptions {
	return worldOptions{mappings: strings.Replace(mappingsYAML, "held: {staleness: 3s, linger: 200ms, max_rate: 1000/s}", "held: {staleness: 3s, linger: 1400ms}", 1)}
}

// A change is held back on purpose, and the daemon stops before it is applied. Its
// fresh_as_of is younger than the change; readers must take the hold into account.
func daemonStopsHolding(s *stage) {
	d := s.world.start()
	a := s.newLibrary()
	c := cell{view: viewsOf(lingering)[0], row: 4}
	s.settle(d)
	s.see(a, c)
	s.change(c.row)
	changed := s.sourceNow()
	s.eventually("the daemon is fresh as of shortly before it would apply it", func() bool { return s.freshAsOf() > changed+1_000_000 })
	s.signal(d, syscall.SIGSTOP)
	over := elapsed(4500 * time.Millisecond)
	s.eventually("the budget has long been over", func() bool { s.see(a, c); return over() })
	s.signal(d, syscall.SIGCONT)
	s.settle(d)
	s.compareCached()
	s.wantNow(a, c)
}

func (s *stage) signal(d *process, sig syscall.Signal) {
	s.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}
