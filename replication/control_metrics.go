package replication

import "github.com/prometheus/client_golang/prometheus"

// ControlMetrics are those of the connections beside the stream.
type ControlMetrics struct {
	catalogLooks   *prometheus.CounterVec
	catalogErrors  prometheus.Counter
	catalogChanges *prometheus.CounterVec
	heartbeatSent  prometheus.Counter
	heartbeatErrs  prometheus.Counter
	heartbeatSeen  prometheus.Counter
	heartbeatOther prometheus.Counter
}

// NewControlMetrics registers the metrics with reg, unless that is nil.
func NewControlMetrics(reg prometheus.Registerer) *ControlMetrics {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "cdc_invalidator", Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.Counter { return prometheus.NewCounter(opts(name, help)) }
	m := &ControlMetrics{
		catalogLooks:   prometheus.NewCounterVec(opts("catalog_looks_total", "Looks at the source's catalogs for what the log is silent about: short ones, and wide ones that compare everything with what was known."), []string{"kind"}),
		catalogErrors:  counter("catalog_errors_total", "Looks at the catalogs that failed and were tried again."),
		catalogChanges: prometheus.NewCounterVec(opts("catalog_changes_total", "Changes of a mapped table's definition, by kind; each makes its families stale."), []string{"kind"}),
		heartbeatSent:  counter("heartbeats_sent_total", "Heartbeat messages committed on the source."),
		heartbeatErrs:  counter("heartbeat_errors_total", "Heartbeats that could not be committed; the next one is tried after a pause."),
		heartbeatSeen:  counter("heartbeats_received_total", "Heartbeats of this process that came back through the slot."),
		heartbeatOther: counter("heartbeats_foreign_total", "Heartbeat messages in the slot that this process did not send, or saw before."),
	}
	for _, k := range changeKinds() {
		m.catalogChanges.WithLabelValues(string(k))
	}
	m.catalogLooks.WithLabelValues(lookKind(true))
	m.catalogLooks.WithLabelValues(lookKind(false))
	if reg != nil {
		reg.MustRegister(m.catalogLooks, m.catalogErrors, m.catalogChanges, m.heartbeatSent, m.heartbeatErrs, m.heartbeatSeen, m.heartbeatOther)
	}
	return m
}
