package sink

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	batches        prometheus.Counter
	seconds        prometheus.Histogram
	keys           prometheus.Counter
	removed        prometheus.Counter
	versions       prometheus.Counter
	marked         prometheus.Counter
	dependents     prometheus.Counter
	purges         prometheus.Counter
	purgeScanned   prometheus.Counter
	purgeRemoved   prometheus.Counter
	checkpoints    prometheus.Counter
	connections    prometheus.Counter
	attached       prometheus.Counter
	restored       prometheus.Counter
	reloaded       prometheus.Counter
	early          prometheus.Counter
	earlyFailed    prometheus.Counter
	streamMessages prometheus.Counter
	streamSessions prometheus.Counter
	streamPurges   prometheus.Counter
	errors         *prometheus.CounterVec
	held           *heldMetrics
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "cdc_invalidator", Subsystem: "redis", Name: name, Help: help})
	}
	m := &metrics{
		batches:        counter("batches_total", "Batches that Redis acknowledged wholly."),
		keys:           counter("keys_unlinked_total", "Keys that were asked to be removed, present or not. Resends count again."),
		removed:        counter("keys_removed_total", "Keys that were present and are removed."),
		versions:       counter("versions_moved_total", "Version keys that were moved forward."),
		marked:         counter("keys_marked_total", "Values that were marked as stale instead of removed (on_invalidate: soft)."),
		dependents:     counter("dependents_total", "Keys that were made stale because readers had registered them under an entity that changed. Resends count again."),
		purges:         counter("purges_total", "Whole-family or whole-tenant purges done."),
		purgeScanned:   counter("purge_keys_matched_total", "Keys that purges found."),
		purgeRemoved:   counter("purge_keys_removed_total", "Keys that purges removed or moved forward."),
		checkpoints:    counter("checkpoints_total", "Checkpoints that Redis acknowledged."),
		connections:    counter("connections_total", "Connections made to data nodes."),
		attached:       counter("attaches_total", "Times the nodes were taken as the ones that hold everything: the start, and each failover or restart of Redis."),
		restored:       counter("control_restored_total", "Times the control hash was gone (flushed, evicted) and was written again."),
		reloaded:       counter("scripts_reloaded_total", "Times a node had lost its scripts."),
		early:          counter("early_keys_total", "Keys removed ahead of their batch, which removes them again after the visibility gate."),
		earlyFailed:    counter("early_failed_total", "Early removals that failed. Nothing is lost by them: the batch follows."),
		streamMessages: counter("stream_messages_total", "Messages that were written to the invalidation stream."),
		streamSessions: counter("stream_sessions_total", "Sessions of the invalidation stream that were begun: at each attachment, and after each error. Readers drop their L1 at each."),
		streamPurges:   counter("stream_purges_total", "Messages of the invalidation stream that tell readers to drop everything."),
		held:           newHeldMetrics(),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "cdc_invalidator", Subsystem: "redis", Name: "apply_seconds",
			Help:    "Time to apply a batch, purges included.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 12),
		}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "cdc_invalidator", Subsystem: "redis", Name: "errors_total",
			Help: "Failed calls by what they ask for.",
		}, []string{"kind"}),
	}
	for _, name := range kindNames {
		m.errors.WithLabelValues(name)
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range append(m.held.collectors(), m.batches, m.keys, m.removed, m.versions, m.marked, m.dependents, m.purges, m.purgeScanned, m.purgeRemoved,
		m.checkpoints, m.connections, m.attached, m.restored, m.reloaded, m.early, m.earlyFailed, m.streamMessages, m.streamSessions, m.streamPurges, m.seconds, m.errors) {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
