package cache

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// What a read came to. Each counts once.
const (
	resultL1       = "l1"        // from this process's memory
	resultHit      = "hit"       // from Redis
	resultStale    = "stale"     // from Redis, while somebody refreshes it
	resultFailSafe = "fail_safe" // too old, and given because the source is down
	resultMiss     = "miss"      // loaded, by this reader or by another one that it waited for
	resultBypass   = "bypass"    // read from the source past the cache
	resultError    = "error"
)

// Why a load was not stored.
const (
	refusedRevoked = "revoked" // invalidated meanwhile, or the lease has run out
	refusedRedis   = "redis"   // Redis did not answer, or refused to store
	refusedLoader  = "loader"  // the transaction or its dependents prove nothing
)

type metrics struct {
	registerer prometheus.Registerer // nil for none
	reads      *prometheus.CounterVec
	negative   *prometheus.CounterVec
	loads      *prometheus.CounterVec
	fills      *prometheus.CounterVec
	refused    *prometheus.CounterVec
	waits      *prometheus.CounterVec
	bypasses   *prometheus.CounterVec
	seconds    *prometheus.HistogramVec
	running    prometheus.Gauge
	l1         *l1Metrics // nil without an L1
}

func newMetrics(reg prometheus.Registerer, withL1 bool) (*metrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "cache", Name: name, Help: help}, append([]string{"family"}, labels...))
	}
	m := &metrics{
		reads:    counter("reads_total", "Reads by what they came to: l1, hit, stale, fail_safe, miss, bypass or error.", "result"),
		negative: counter("negative_reads_total", "Reads among them whose answer was that there is no such row."),
		loads:    counter("loads_total", "Times that a loader ran."),
		fills:    counter("fills_total", "Loads that were stored."),
		refused:  counter("fills_refused_total", "Loads that were not stored: revoked (invalidated meanwhile, or too slow for the lease), redis, loader.", "reason"),
		waits:    counter("waits_total", "Times a read waited for another reader's load."),
		bypasses: counter("bypasses_total", "Reads past the cache by what was in doubt: unknown, gap, paused, late, stamp (the daemon does not follow the family, or on other terms than this process) redis or types (of the columns that keys are made of).", "reason"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "cache", Name: "source_seconds", Help: "Time of a load, from the begin of its transaction to its end.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2.5, 12),
		}, []string{"family"}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "cache", Name: "loads_running", Help: "Loads under way."}),
	}
	if withL1 {
		m.l1 = newL1Metrics()
	}
	if reg == nil {
		return m, nil
	}
	for i, c := range m.collectors() {
		if err := reg.Register(c); err != nil {
			for _, done := range m.collectors()[:i] {
				reg.Unregister(done)
			}
			return nil, fmt.Errorf("register the metrics (two clients on one registerer need different labels: prometheus.WrapRegistererWith): %w", err)
		}
	}
	m.registerer = reg
	return m, nil
}

func (m *metrics) collectors() []prometheus.Collector {
	list := []prometheus.Collector{m.reads, m.negative, m.loads, m.fills, m.refused, m.waits, m.bypasses, m.seconds, m.running}
	if m.l1 != nil {
		list = append(list, m.l1.collectors()...)
	}
	return list
}

// unregister makes room for the metrics of a client that is opened after this one.
func (m *metrics) unregister() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.collectors() {
		m.registerer.Unregister(c)
	}
}

// familyMetrics are a family's, looked up once.
type familyMetrics struct {
	results  map[string]prometheus.Counter
	l1, hit  prometheus.Counter // the same, for the paths where a look into a map counts
	negative prometheus.Counter
	loads    prometheus.Counter
	fills    prometheus.Counter
	refused  map[string]prometheus.Counter
	waits    prometheus.Counter
	bypasses map[string]prometheus.Counter
	seconds  prometheus.Observer
}

func (m *metrics) family(name string) *familyMetrics {
	by := func(v *prometheus.CounterVec, values ...string) map[string]prometheus.Counter {
		all := make(map[string]prometheus.Counter, len(values))
		for _, value := range values {
			all[value] = v.WithLabelValues(name, value)
		}
		return all
	}
	f := &familyMetrics{
		results:  by(m.reads, resultL1, resultHit, resultStale, resultFailSafe, resultMiss, resultBypass, resultError),
		negative: m.negative.WithLabelValues(name),
		loads:    m.loads.WithLabelValues(name),
		fills:    m.fills.WithLabelValues(name),
		refused:  by(m.refused, refusedRevoked, refusedRedis, refusedLoader),
		waits:    m.waits.WithLabelValues(name),
		bypasses: by(m.bypasses, doubtUnknown, doubtGap, doubtPaused, doubtLate, doubtStamp, doubtRedis, doubtTypes),
		seconds:  m.seconds.WithLabelValues(name),
	}
	f.l1, f.hit = f.results[resultL1], f.results[resultHit]
	return f
}
