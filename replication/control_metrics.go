package replication

import "github.com/prometheus/client_golang/prometheus"

// ControlMetrics are those of the connections beside the stream.
type ControlMetrics struct {
	catalogLooks   prometheus.Counter
	catalogErrors  prometheus.Counter
	catalogChanges *prometheus.CounterVec
	heartbeatSent  prometheus.Counter
	heartbeatErrs  prometheus.Counter
	heartbeatSeen  prometheus.Counter
	heartbeatOther prometheus.Counter
}

// NewControlMetrics registers the metrics with reg, unless that is nil.
func NewControlMetrics(reg prometheus.Registerer) *ControlMetrics {
	m := &ControlMetrics{
		catalogLooks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cdc_invalidator_catalog_looks_total",
			Help: "Comparisons of the source's catalogs with what was known, for DDL that the log is silent about.",
		}),
		catalogErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cdc_invalidator_catalog_errors_total",
			Help: "Looks at the catalogs that failed and were tried again.",
		}),
		catalogChanges: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cdc_invalidator_catalog_changes_total",
			Help: "Changes of a mapped table's definition, by kind; each makes its families stale.",
		}, []string{"kind"}),
		heartbeatSent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cdc_invalidator_heartbeats_sent_total",
			Help: "Heartbeat messages committed on the source.",
		}),
		heartbeatErrs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cdc_invalidator_heartbeat_errors_total",
			Help: "Heartbeats that could not be committed; the next one is tried after a pause.",
		}),
		heartbeatSeen: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cdc_invalidator_heartbeats_received_total",
			Help: "Heartbeats of this process that came back through the slot.",
		}),
		heartbeatOther: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "cdc_invalidator_heartbeats_foreign_total",
			Help: "Heartbeat messages in the slot that this process did not send, or saw before.",
		}),
	}
	for _, k := range []ChangeKind{TableVanished, TableReplaced, StorageChanged, PartitionsChanged, ColumnsChanged, IdentityChanged, PublicationChanged} {
		m.catalogChanges.WithLabelValues(string(k))
	}
	if reg != nil {
		reg.MustRegister(m.catalogLooks, m.catalogErrors, m.catalogChanges, m.heartbeatSent, m.heartbeatErrs, m.heartbeatSeen, m.heartbeatOther)
	}
	return m
}
