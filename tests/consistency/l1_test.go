package consistency

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cdc-invalidator/cdc-invalidator/cache"
)

// l1Hits counts the reads of a client that were answered from its own memory.
func (s *stage) l1Hits(reg *prometheus.Registry) float64 {
	s.t.Helper()
	families, err := reg.Gather()
	if err != nil {
		s.t.Fatal(err)
	}
	hits := 0.0
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == "cache_reads_total" && l.GetName() == "result" && l.GetValue() == "l1" {
					hits += m.GetCounter().GetValue()
				}
			}
		}
	}
	return hits
}

func (s *stage) newL1() (*library, *prometheus.Registry) {
	s.t.Helper()
	reg := prometheus.NewRegistry()
	return s.newLibrary(cache.WithL1(1000), cache.WithRegisterer(reg)), reg
}

// followed waits until a client's memory has followed the invalidation stream to its end.
func (s *stage) followed(l *library) {
	s.t.Helper()
	for range 2 { // the first may have been sent before
		x := l.pauses.answered("xread", "inv:stream:{"+s.slot+"}")
		x.await(s)
		close(x.resume)
	}
}

// Traffic with values in the readers' own memories.
func l1Traffic(s *stage) {
	d := s.world.start()
	a, reg := s.newL1()
	b, _ := s.newL1()
	tr := s.traffic(3, everyView(), a, b)
	s.someTraffic(tr)
	tr.end()
	s.wantSettled(d, everyView(), a, b)
	if hits := s.l1Hits(reg); hits < 20 {
		s.t.Errorf("%v reads were answered from a reader's memory: the scenario proves nothing", hits)
	}
}

// A reader has got the old value from Redis, and does not know it yet while the row changes
// and the stream tells its memory of that. It must not keep the value.
func l1StoreLate(s *stage) {
	d := s.world.start()
	a, _ := s.newL1()
	b := s.newLibrary()
	rows := int64(1)
	if longForm() {
		rows = 5
	}
	for row := range rows {
		c := cell{view: viewsOf(item)[0], row: 4*row + 4}
		s.see(b, c)
		got := a.pauses.answered("get", plainKey(c))
		slow := s.startUntil(got, a, c)
		s.change(c.row)
		budget := elapsed(c.view.budget + 20*time.Millisecond)
		s.settle(d)
		s.followed(a)
		close(got.resume)
		s.finish(slow)
		s.wantNow(a, c)
		s.eventually("the budget is over", budget)
		s.see(a, c)
	}
	s.settle(d)
	s.compareCached()
}

// The stream is cut while a reader does not look at it. It must drop what it has.
func l1StreamCut(s *stage) {
	d := s.world.start()
	a, reg := s.newL1()
	c := cell{view: viewsOf(item)[0], row: 4}
	for range 3 {
		s.eventually("the value is in the reader's memory", func() bool {
			before := s.l1Hits(reg)
			s.see(a, c)
			return s.l1Hits(reg) > before
		})
		look := a.pauses.next("xread", "inv:stream:{"+s.slot+"}")
		look.await(s)
		s.change(c.row)
		s.settle(d)
		if err := s.rdb.XTrimMaxLen(context.Background(), "inv:stream:{"+s.slot+"}", 0).Err(); err != nil {
			s.t.Fatal(err)
		}
		close(look.resume)
		s.followed(a)
		s.wantNow(a, c)
	}
	s.compareCached()
}
