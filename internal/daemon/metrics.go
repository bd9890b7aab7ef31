package daemon

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/ordering"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// metrics are the pipeline's own; those of the stages stand beside the stages.
type metrics struct {
	registry Registry
	control  *replication.ControlMetrics

	transactions   prometheus.Counter
	rows           prometheus.Counter
	invalidations  prometheus.Counter
	keys           prometheus.Counter
	latency        *prometheus.HistogramVec
	byClass        map[string]prometheus.Observer
	gateWait       prometheus.Histogram
	backpressure   prometheus.Counter
	sessions       *prometheus.CounterVec
	gaps           prometheus.Counter
	skips          prometheus.Counter
	stuck          prometheus.Gauge
	lookupsRefused prometheus.Counter
	widenings      *prometheus.CounterVec
	ddl            *prometheus.CounterVec
	reloads        *prometheus.CounterVec
	reloadOK       prometheus.Gauge
	purging        prometheus.Gauge
	overRate       *prometheus.CounterVec
}

const namespace = "cdc_invalidator"

func newMetrics(reg Registry) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
		reg.MustRegister(c)
		return c
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
		reg.MustRegister(c)
		return c
	}
	m := &metrics{
		registry:       reg,
		control:        replication.NewControlMetrics(reg),
		transactions:   counter("transactions_total", "Transactions of the log that were handled, mapped or not."),
		rows:           counter("rows_total", "Row changes that were handled, mapped or not."),
		invalidations:  counter("invalidations_total", "Invalidations that rows mapped to, before equal ones were merged."),
		keys:           counter("applied_total", "Invalidations that Redis has acknowledged, after merging."),
		backpressure:   counter("queue_full_total", "Times that reading the log had to wait for Redis."),
		gaps:           counter("gaps_total", "Times that it could not be proved that nothing was missed, so that all that was cached was given up."),
		skips:          counter("skipped_transactions_total", "Transactions that were given up because they could not be read, each a gap."),
		lookupsRefused: counter("lookups_refused_total", "for_each queries that failed, so that the whole family was invalidated."),
		widenings:      vec("widened_total", "Invalidations that were widened to a family or tenant because a value was not known.", "reason"),
		sessions:       vec("sessions_ended_total", "Attachments to the slot that ended, by reason.", "reason"),
		overRate:       vec("held_over_rate_total", "Invalidations that were applied in excess of the class's max_rate, because their deadline had come.", "class"),
		ddl:            vec("ddl_messages_total", "Messages of the event trigger, by what followed: invalidated, ignored (no mapped table) or unreadable (all mapped tables).", "result"),
		reloads:        vec("reloads_total", "Reloads of the mappings file.", "result"),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "commit_to_applied_seconds",
			Help:    "Time from a transaction's commit to Redis having acknowledged its invalidations, by class of the family.",
			Buckets: []float64{.0002, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}, []string{"class"}),
		gateWait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Name: "gate_wait_seconds",
			Help:    "Time that a batch waited because a transaction of it was not yet visible to other sessions, for those that had to.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .01, .05, .25, 1, 5, 30},
		}),
		reloadOK: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Name: "mappings_reload_ok", Help: "0 when the last reload was refused and older mappings are in force.",
		}),
		stuck: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Name: "stuck", Help: "1 while the stream ends with the same error at the same position at each attempt.",
		}),
		purging: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Name: "purging_families", Help: "Families of which what was cached before they were followed is still being removed.",
		}),
		byClass: map[string]prometheus.Observer{},
	}
	m.reloadOK.Set(1)
	reg.MustRegister(m.latency, m.gateWait, m.reloadOK, m.stuck, m.purging)
	return m
}

// lag registers how old the newest proof of freshness is.
func (m *metrics) lag(seconds func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: namespace, Name: "lag_seconds", Help: "Age of the newest heartbeat that has been applied: nothing that was visible before it is missing.",
	}, seconds))
}

// applied counts a batch. Only the applier calls it.
func (m *metrics) applied(b *ordering.Batch, now time.Time) {
	s := b.Stats()
	m.transactions.Add(float64(s.Transactions))
	m.rows.Add(float64(s.Rows))
	m.invalidations.Add(float64(s.Invalidations))
	m.keys.Add(float64(b.Len()))
	for i := range b.Len() {
		e := b.Entry(i)
		if e.Held {
			continue // observed when it is applied
		}
		o := m.byClass[e.Family.Class.Name]
		if o == nil {
			o = m.latency.WithLabelValues(e.Family.Class.Name)
			m.byClass[e.Family.Class.Name] = o
		}
		o.Observe(now.Sub(e.CommitTime).Seconds())
	}
}

func (m *metrics) widened(out *mapping.Output) {
	for reason, n := range out.Widened {
		if n > 0 {
			m.widenings.WithLabelValues(mapping.Reason(reason).String()).Add(float64(n))
		}
	}
}
