package daemon

import (
	"fmt"
	"sync"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// health is what the daemon knows about itself, for the admin API.
type health struct {
	*board
	d *daemon

	mu     sync.Mutex
	fresh  time.Time // by the database's clock: nothing visible before it is missing
	proved bool      // by a heartbeat of this attachment
}

func newHealth(d *daemon) *health { return &health{board: newBoard(), d: d} }

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
	fresh := h.fresh
	h.mu.Unlock()
	out := append(h.board.conditions(), h.lag(fresh), h.catalog())
	return append(out, watched(conditionHeartbeat, h.d.heartbeat.Status()))
}

// catalog is the condition of the session's watcher.
func (h *health) catalog() admin.Condition {
	if w := h.board.watching(); w != nil {
		return watched(conditionCatalog, w.Status())
	}
	c := admin.NewCondition(conditionCatalog, admin.StateUnknown, "the catalogs are not watched: no session streams", "")
	c.Since = h.board.since()
	return c
}

// watched is a condition that a loop knows of itself.
func watched(name string, s replication.Status) admin.Condition {
	state := admin.StateFailed
	switch {
	case s.OK:
		state = admin.StateOK
	case s.Unknown:
		state = admin.StateUnknown
	}
	c := admin.NewCondition(name, state, s.Reason, s.Fix)
	c.Since = s.Since
	return c
}

// lag compares how old the newest proof of freshness is with the strictest
// budget. Without heartbeats nothing can be said of an idle source.
func (h *health) lag(fresh time.Time) admin.Condition {
	state, reason, fix := admin.StateOK, "", ""
	budget := h.budget()
	age := h.d.now().Sub(fresh)
	switch {
	case budget == 0 || h.d.file.Source.Heartbeat <= 0:
	case fresh.IsZero():
		state, reason, fix = admin.StateUnknown, "no heartbeat has come back yet", "wait for the backlog, if there is one"
	case age > budget:
		state, fix = admin.StateFailed, "see which side is slow: cdc_invalidator_queue_full_total and the walsender's CPU; the budget is the strictest class's staleness"
		reason = fmt.Sprintf("%s behind, the strictest budget is %s", age.Round(time.Millisecond), budget)
	}
	c := admin.NewCondition(conditionLag, state, reason, fix)
	c.Ready, c.Since = true, fresh
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
