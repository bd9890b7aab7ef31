package admin

import (
	"encoding/json"
	"net/http"
	"time"
)

// Status is the body of /status: all that a daemon knows of itself, for people and
// for `cdc-invalidator status`. Positions are LSNs as Postgres prints them ("0/1A2B3C8"),
// times are UTC in RFC 3339, sizes bytes, ages seconds by the database's clock. Fields may
// be added; none changes its meaning. What is not known yet is absent.
//
// It holds no URL, no key and no value of a row.
type Status struct {
	Status        string      `json:"status"` // "ok" when every condition holds, else "failed"
	Version       string      `json:"version"`
	Commit        string      `json:"commit,omitempty"`
	PID           int         `json:"pid"`
	Config        string      `json:"config,omitempty"` // the mappings file, as it was given
	Started       time.Time   `json:"started"`
	UptimeSeconds float64     `json:"uptime_seconds"`
	Source        Source      `json:"source"`
	Positions     Positions   `json:"positions"`
	Freshness     Freshness   `json:"freshness"`
	Queue         Queue       `json:"queue"`
	Redis         Redis       `json:"redis"`
	Counters      Counters    `json:"counters"`
	Conditions    []Condition `json:"conditions"`
}

// Source is the database that is followed, as the current session found it.
type Source struct {
	ServerVersion string    `json:"server_version,omitempty"` // "15.4"
	Database      string    `json:"database,omitempty"`
	Role          string    `json:"role,omitempty"`
	SystemID      string    `json:"system_id,omitempty"`
	Timeline      uint32    `json:"timeline,omitempty"`
	Region        string    `json:"region,omitempty"`
	Slot          string    `json:"slot"`
	Publication   string    `json:"publication"`
	AttachedSince time.Time `json:"attached_since,omitzero"` // start of the session that streams, or streamed last
}

// Positions in the source's log. confirmed <= applied <= received, settled <= applied.
type Positions struct {
	LogEnd    string `json:"log_end,omitempty"`   // end of the log when the last heartbeat was sent, or what came after it
	Received  string `json:"received,omitempty"`  // read from the socket
	Applied   string `json:"applied,omitempty"`   // end of the newest transaction of which Redis has acknowledged everything
	Settled   string `json:"settled,omitempty"`   // everything that ended at or below is applied, what classes hold back included; 0/0 while that is not known
	Commit    string `json:"commit,omitempty"`    // commit position of that transaction
	Confirmed string `json:"confirmed,omitempty"` // told to Postgres, which keeps everything above it

	LagBytes         int64 `json:"lag_bytes"`         // log_end - applied
	UnconfirmedBytes int64 `json:"unconfirmed_bytes"` // log_end - confirmed: what the slot makes Postgres keep
}

// Freshness is up to when the cache is known to be right.
type Freshness struct {
	FreshAsOf  time.Time `json:"fresh_as_of,omitzero"` // nothing that was visible then is missing
	LagSeconds *float64  `json:"lag_seconds"`          // its age; null without heartbeats, and before the first
	Classes    []Class   `json:"classes"`              // strictest first
}

// Class is a consistency budget, and whether it is kept.
type Class struct {
	Name             string  `json:"name"`
	StalenessSeconds float64 `json:"staleness_seconds"`
	Families         int     `json:"families"`
	Within           *bool   `json:"within"` // null when the lag is not known
	// Of classes with linger or max_rate; else null.
	Held              *int     `json:"held"`                // invalidations that are held back now
	HeldOldestSeconds *float64 `json:"held_oldest_seconds"` // time since the commit of the oldest of them
}

// Queue is what waits between the log and Redis, after equal invalidations were merged.
type Queue struct {
	Invalidations int `json:"invalidations"`
	Bytes         int `json:"bytes"` // of their keys
}

// Redis is where invalidations go, as it was when it was attached to.
type Redis struct {
	Kind       string      `json:"kind"`            // standalone, sentinel or cluster
	State      string      `json:"state,omitempty"` // of the control hash: ok, catching_up, gap or paused
	Reason     string      `json:"reason,omitempty"`
	Generation uint32      `json:"generation,omitempty"`
	Primaries  []RedisNode `json:"primaries"`
}

// RedisNode is one primary.
type RedisNode struct {
	Addr  string `json:"addr"`
	RunID string `json:"run_id"`
}

// Counters count since the start of the process. /metrics has more of them.
type Counters struct {
	Transactions   int64            `json:"transactions"`    // of the log, mapped or not
	Rows           int64            `json:"rows"`            // mapped or not
	Invalidations  int64            `json:"invalidations"`   // that rows mapped to, before equal ones were merged
	Applied        int64            `json:"applied"`         // after merging, acknowledged by Redis
	Widened        map[string]int64 `json:"widened"`         // to a family or tenant, by reason
	LookupsRefused int64            `json:"lookups_refused"` // for_each queries that failed
	QueueFull      int64            `json:"queue_full"`      // times that the log had to wait for Redis
	SessionsEnded  int64            `json:"sessions_ended"`  // attachments to the slot that ended
	Gaps           int64            `json:"gaps"`
}

// StatusReporter may be implemented by a Health as well: what /status shows. The
// conditions are filled in by the server.
type StatusReporter interface {
	Status() Status
}

// status answers 200 whatever it says: it is a report, and /healthz the verdict.
func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	reporter, ok := s.o.Health.(StatusReporter)
	if !ok {
		http.NotFound(w, r)
		return
	}
	st := reporter.Status()
	st.Status, st.Conditions = "ok", s.o.Health.Conditions()
	for _, c := range st.Conditions {
		if !c.OK {
			st.Status = "failed"
		}
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	_ = enc.Encode(st) // the client has gone; there is nobody to tell
}
