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
	conditionHeld      = "held"
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
	case conditionHeld:
		return "see that Redis is reachable and takes writes; what is held back of classes with linger or max_rate stays in Redis meanwhile"
	case conditionMappings:
		return "correct the file and reload again; the mappings from before are in force"
	case conditionLag:
		return "see which side is slow: cdc_invalidator_queue_full_total and the walsender's CPU; the budget is the strictest class's staleness"
	}
	return ""
}

// health is what the daemon knows about itself, for the admin API.
type health struct {
	d *daemon

	mu     sync.Mutex
	conds  map[string]admin.Condition
	order  []string
	fresh  time.Time // by the database's clock: nothing visible before it is missing
	proved bool      // by a heartbeat of this attachment
}

func newHealth(d *daemon) *health {
	h := &health{d: d, conds: map[string]admin.Condition{}}
	now := time.Now()
	for _, name := range []string{conditionStreaming, conditionSource, conditionRedis, conditionGap, conditionMappings, conditionIdentity, conditionHeld} {
		h.order = append(h.order, name)
		h.conds[name] = admin.Condition{Name: name, OK: true, Since: now, Ready: ready[name]}
	}
	starting := h.conds[conditionStreaming]
	starting.OK, starting.Reason = false, "starting"
	h.conds[conditionStreaming] = starting
	return h
}

// budget is the strictest class's of the plan in force; 0 without any.
func (h *health) budget() time.Duration {
	var strictest time.Duration
	for _, f := range h.d.plan.Load().Families() {
		if s := f.Class.Staleness; s > 0 && (strictest == 0 || s < strictest) {
			strictest = s
		}
	}
	return strictest
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

// progress records that all is applied that was visible at a time; zero when this
// attachment has not proved anything yet.
func (h *health) progress(freshAsOf time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.proved = !freshAsOf.IsZero()
	if freshAsOf.After(h.fresh) {
		h.fresh = freshAsOf
	}
}

// behind says why the cache is not known to be within the strictest budget, "" when
// it is. What an earlier attachment has applied proves nothing of the Redis of now.
func (h *health) behind() string {
	h.mu.Lock()
	fresh, proved := h.fresh, h.proved
	h.mu.Unlock()
	if !proved {
		fresh = time.Time{}
	}
	return h.lag(fresh).Reason
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
	budget := h.budget()
	if budget == 0 || h.d.file.Source.Heartbeat <= 0 {
		return c
	}
	switch age := h.d.now().Sub(fresh); {
	case fresh.IsZero():
		c.OK, c.Reason, c.Fix = false, "no heartbeat has come back yet", "wait for the backlog, if there is one"
	case age > budget:
		c.OK, c.Fix = false, fixFor(conditionLag)
		c.Reason = fmt.Sprintf("%s behind, the strictest budget is %s", age.Round(time.Millisecond), budget)
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
