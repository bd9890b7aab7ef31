package sink

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// heldMetrics count what is held, by class.
type heldMetrics struct {
	now, oldest                         *prometheus.GaugeVec
	put, coalesced, applied, late, lost *prometheus.CounterVec
	refused                             prometheus.Counter
	ages                                *prometheus.HistogramVec

	mu    sync.Mutex
	waits map[string]heldWait
}

// heldWait is what a class's set had when it was looked at last.
type heldWait struct {
	n     int
	since time.Time // commit of the oldest; zero without any
}

func newHeldMetrics() *heldMetrics {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "cdc_invalidator", Subsystem: "held", Name: name, Help: help}, []string{"class"})
	}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "cdc_invalidator", Subsystem: "held", Name: name, Help: help}, []string{"class"})
	}
	return &heldMetrics{
		waits:     make(map[string]heldWait),
		now:       gauge("invalidations", "Invalidations that are held back in Redis now (linger, max_rate)."),
		oldest:    gauge("oldest_seconds", "Time since the commit of the oldest invalidation that is held back; 0 without any."),
		put:       counter("put_total", "Invalidations that were put into the held set. Resends count again."),
		coalesced: counter("coalesced_total", "Of those put: found the same one waiting, which stands for both."),
		applied:   counter("applied_total", "Invalidations that were taken from the held set and applied."),
		late:      counter("late_total", "Of those applied: later after their commit than the class's staleness."),
		lost:      counter("lost_total", "Times that the held set was evicted, so that the families of the class were purged."),
		refused: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "cdc_invalidator", Subsystem: "held", Name: "refused_batches_total",
			Help: "Batches that were applied at once because Redis did not take what was to be held (above maxmemory)."}),
		ages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "cdc_invalidator", Subsystem: "held", Name: "commit_to_applied_seconds",
			Help:    "Time from the commit to Redis having acknowledged it, of invalidations that were held.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 150, 300, 600, 1800},
		}, []string{"class"}),
	}
}

func (m *heldMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.now, m.oldest, m.put, m.coalesced, m.applied, m.late, m.lost, m.refused, m.ages}
}

// know shows a class from the start, with zeros.
func (m *heldMetrics) know(class string) {
	for _, c := range []*prometheus.CounterVec{m.put, m.coalesced, m.applied, m.late, m.lost} {
		c.WithLabelValues(class)
	}
	m.now.WithLabelValues(class)
	m.oldest.WithLabelValues(class)
	m.ages.WithLabelValues(class)
}

// forget takes away what says something of now.
func (m *heldMetrics) forget(class string) {
	m.now.DeleteLabelValues(class)
	m.oldest.DeleteLabelValues(class)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.waits, class)
}

// waiting notes what a set has, by the source's clock.
func (m *heldMetrics) waiting(class string, n int, since, now time.Time) {
	w := heldWait{n: n, since: since}
	m.now.WithLabelValues(class).Set(float64(n))
	m.oldest.WithLabelValues(class).Set(w.age(now).Seconds())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waits[class] = w
}

func (w heldWait) age(now time.Time) time.Duration {
	if w.since.IsZero() {
		return 0
	}
	return max(0, now.Sub(w.since))
}

// Held is how many invalidations of a class were held back when it was looked last, a
// moment ago, and for how long the oldest of them has been. ok is false for a class
// that is not held back.
func (r *Redis) Held(class string) (n int, oldest time.Duration, ok bool) {
	m := r.metrics.held
	m.mu.Lock()
	w, ok := m.waits[class]
	m.mu.Unlock()
	return w.n, w.age(r.sourceNow()), ok
}

func (m *heldMetrics) done(class string, n, late int) {
	m.applied.WithLabelValues(class).Add(float64(n))
	m.late.WithLabelValues(class).Add(float64(late))
}

func (m *heldMetrics) age(class string, age time.Duration) {
	m.ages.WithLabelValues(class).Observe(age.Seconds())
}
