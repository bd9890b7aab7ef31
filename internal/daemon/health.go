package daemon

import (
	"github.com/cdc-invalidator/cdc-invalidator/internal/admin"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// health is what the daemon knows about itself, for the admin API.
type health struct {
	*board
	d *daemon
}

func newHealth(d *daemon) *health { return &health{board: newBoard(), d: d} }

// Conditions implements admin.Health.
func (h *health) Conditions() []admin.Condition {
	out := append(h.board.conditions(), h.lag(), h.catalog())
	return append(out, watched(conditionHeartbeat, h.d.heartbeat.Status()), watched(conditionStandby, h.d.standby.Status()))
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

// lag compares how old the newest proof of freshness is with the strictest budget.
func (h *health) lag() admin.Condition {
	at := h.d.fresh.known()
	state, fix, reason := admin.StateOK, "", h.d.fresh.judge(at)
	switch {
	case reason == "":
	case at.IsZero():
		state, fix = admin.StateUnknown, "wait for the backlog, if there is one"
	default:
		state, fix = admin.StateFailed, "see which side is slow: cdc_invalidator_queue_full_total and the walsender's CPU; the budget is the strictest class's staleness"
	}
	c := admin.NewCondition(conditionLag, state, reason, fix)
	c.Ready, c.Since = true, at
	return c
}
