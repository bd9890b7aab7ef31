package daemon

import (
	"fmt"
	"sync"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
)

// The conditions that the admin API shows. Their names are part of the interface.
const (
	conditionStreaming = "streaming"
	conditionSource    = "source"
	conditionRedis     = "redis"
	conditionLag       = "lag"
	conditionGap       = "gap"
	conditionMappings  = "mappings"
	conditionIdentity  = "replica_identity"
	conditionCatalog   = "catalog"
	conditionHeartbeat = "heartbeat"
)

// ready says which conditions readiness depends on: streaming, both servers up, no
// gap, lag within the strictest budget.
var ready = map[string]bool{
	conditionStreaming: true, conditionSource: true, conditionRedis: true, conditionLag: true, conditionGap: true,
}

func fixFor(condition string) string {
	switch condition {
	case conditionStreaming:
		return "see the reason; the daemon goes on trying"
	case conditionSource:
		return "see that the source accepts ordinary connections from the daemon's role"
	case conditionRedis:
		return "see that Redis is reachable and takes writes; invalidations wait in the slot meanwhile"
	case conditionGap:
		return "nothing to do: every mapped family is being purged; look for why the slot or Redis changed"
	case conditionMappings:
		return "correct the file and reload again; the mappings from before are in force"
	case conditionLag:
		return "see which side is slow: cdc_invalidator_queue_* and the walsender's CPU; the budget is the strictest class's staleness"
	}
	return ""
}

// health is what the daemon knows about itself, for the admin API.
type health struct {
	d      *daemon
	budget time.Duration // the strictest class's; 0 when there are no classes

	mu    sync.Mutex
	conds map[string]admin.Condition
	order []string
	fresh time.Time // by the database's clock: nothing visible before it is missing
	at    time.Time // by ours: the last progress
}

func newHealth(d *daemon) *health {
	h := &health{d: d, conds: map[string]admin.Condition{}}
	for _, f := range d.plan.Load().Families() {
		if s := f.Class.Staleness; s > 0 && (h.budget == 0 || s < h.budget) {
			h.budget = s
		}
	}
	now := time.Now()
	for _, name := range []string{conditionStreaming, conditionSource, conditionRedis, conditionGap, conditionMappings, conditionIdentity} {
		h.order = append(h.order, name)
		h.conds[name] = admin.Condition{Name: name, OK: true, Since: now, Ready: ready[name]}
	}
	starting := h.conds[conditionStreaming]
	starting.OK, starting.Reason = false, "starting"
	h.conds[conditionStreaming] = starting
	return h
}

// set changes a condition and reports whether that turned it.
func (h *health) set(name string, ok bool, reason, fix string) (turned bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.conds[name]
	turned = c.OK != ok
	if turned {
		c.Since = time.Now()
	}
	c.OK, c.Reason, c.Fix = ok, reason, fix
	h.conds[name] = c
	return turned
}

// progress records that something was applied.
func (h *health) progress(now, freshAsOf time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = now
	if freshAsOf.After(h.fresh) {
		h.fresh = freshAsOf
	}
}

// Conditions implements admin.Health.
func (h *health) Conditions() []admin.Condition {
	h.mu.Lock()
	out := make([]admin.Condition, 0, len(h.order)+3)
	for _, name := range h.order {
		out = append(out, h.conds[name])
	}
	fresh := h.fresh
	h.mu.Unlock()
	out = append(out, h.lag(fresh))
	if w := h.d.watcher.Load(); w != nil {
		s := w.Status()
		out = append(out, admin.Condition{Name: conditionCatalog, OK: s.OK, Reason: s.Reason, Fix: s.Fix, Since: s.Since})
	}
	s := h.d.heartbeat.Status()
	return append(out, admin.Condition{Name: conditionHeartbeat, OK: s.OK, Reason: s.Reason, Fix: s.Fix, Since: s.Since})
}

// lag compares how old the newest proof of freshness is with the strictest
// budget. Without heartbeats nothing can be said of an idle source.
func (h *health) lag(fresh time.Time) admin.Condition {
	c := admin.Condition{Name: conditionLag, OK: true, Ready: true, Since: fresh}
	if h.budget == 0 || h.d.file.Source.Heartbeat <= 0 {
		return c
	}
	switch age := h.d.now().Sub(fresh); {
	case fresh.IsZero():
		c.OK, c.Reason, c.Fix = false, "no heartbeat has come back yet", "wait for the backlog, if there is one"
	case age > h.budget:
		c.OK, c.Fix = false, fixFor(conditionLag)
		c.Reason = fmt.Sprintf("%s behind, the strictest budget is %s", age.Round(time.Millisecond), h.budget)
	}
	return c
}

// lagSeconds is for the gauge: 0 before the first proof, where the condition says
// that there is none.
func (h *health) lagSeconds() float64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fresh.IsZero() {
		return 0
	}
	return max(0, h.d.now().Sub(h.fresh).Seconds())
}
