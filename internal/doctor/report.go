// Package doctor looks at a source and a Redis and says what would keep a daemon
// from working there, or from working well, each with what mends it. It changes
// nothing anywhere.
//
// What it finds of Postgres comes from the model that plan and apply work with
// (provision.State), so that a fix of doctor's and a step of apply's are the same
// statements; what it finds of Redis comes from sink.Inspect.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
	"github.com/cdc-invalidator/cdc-invalidator/sink"
)

// Severity is how bad a check's outcome is.
type Severity string

// The severities. The first three ask for nothing.
const (
	OK      Severity = "ok"
	Notice  Severity = "notice"  // worth knowing
	Skipped Severity = "skipped" // could not be looked at, for a reason that stands elsewhere
	Warning Severity = "warning" // works, until something else goes wrong
	Widens  Severity = "widens"  // works, and invalidates more than it needs to
	Fatal   Severity = "fatal"   // the daemon refuses to start, or invalidations would be missed
)

// Finding says whether somebody should act on it.
func (s Severity) Finding() bool { return s == Warning || s == Widens || s == Fatal }

// FixKind says where a fix is entered.
type FixKind string

// The kinds of fix.
const (
	SQL      FixKind = "sql"     // in psql
	RedisCLI FixKind = "redis"   // in redis-cli
	File     FixKind = "file"    // in the mappings file
	Person   FixKind = "general" // somewhere else
)

// Check is one thing that was looked at.
type Check struct {
	Code     string   `json:"code"` // stable
	Severity Severity `json:"severity"`
	Subject  string   `json:"subject,omitempty"`
	Message  string   `json:"message"`
	FixKind  FixKind  `json:"fix_kind,omitempty"`
	Fix      string   `json:"fix,omitempty"`
}

// Group is the checks of one part.
type Group struct {
	Name string `json:"name"` // source, publication, tables, slot, redis or time
	// Reachable is false when the server that the group is about is not there.
	Reachable bool    `json:"reachable"`
	Checks    []Check `json:"checks"`
}

// Report is all that was found.
type Report struct {
	File        string   `json:"file"`
	OK          bool     `json:"ok"`          // everything was looked at and nothing was found
	Findings    int      `json:"findings"`    // checks that somebody should act on
	Unreachable []string `json:"unreachable"` // source, redis
	Groups      []*Group `json:"groups"`
}

// Options configures Run.
type Options struct {
	File *mapping.File
	Plan *mapping.Plan
	// Progress is told of each part before it is looked at; may be nil.
	Progress func(what string)
}

type examination struct {
	Options
	report                                          *Report
	source, publication, tables, slot, redis, clock *Group
	now                                             func() time.Time
}

// Run looks at both servers. One that is not there keeps it from nothing that can be
// said about the other.
func Run(ctx context.Context, o Options) *Report {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	r := &Report{File: o.File.Name, Unreachable: []string{}}
	group := func(name string) *Group {
		g := &Group{Name: name, Reachable: true, Checks: []Check{}}
		r.Groups = append(r.Groups, g)
		return g
	}
	x := &examination{Options: o, report: r, now: time.Now,
		source: group("source"), publication: group("publication"), tables: group("tables"), slot: group("slot"), redis: group("redis"), clock: group("time")}
	x.examineSource(ctx)
	x.examineRedis(ctx)
	for _, g := range r.Groups {
		for _, c := range g.Checks {
			if c.Severity.Finding() {
				r.Findings++
			}
		}
	}
	r.OK = r.Findings == 0 && len(r.Unreachable) == 0
	return r
}

func (g *Group) add(c Check) {
	c.Message = strings.Join(strings.FieldsFunc(c.Message, func(r rune) bool { return r == '\n' || r == '\t' }), " ")
	g.Checks = append(g.Checks, c)
}

func (g *Group) ok(code, format string, args ...any) {
	g.add(Check{Code: code, Severity: OK, Message: fmt.Sprintf(format, args...)})
}

// away notes that a server is not there, in all groups that are about it.
func (x *examination) away(server string, err error, groups ...*Group) {
	x.report.Unreachable = append(x.report.Unreachable, server)
	for i, g := range groups {
		g.Reachable = false
		message := "not looked at: the " + server + " is not there"
		if i == 0 {
			message = err.Error()
		}
		g.add(Check{Code: server + "_unreachable", Severity: Skipped, Message: message})
	}
}

// problem notes an error of a server that is there, and reports whether it is that.
func (x *examination) problem(g *Group, code string, severity Severity, err error) bool {
	var config *replication.ConfigError
	var away *replication.UnavailableError
	var redis *sink.Error
	switch {
	case errors.As(err, &away), errors.As(err, &redis) && redis.Kind == sink.KindUnavailable, errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &config):
		message := config.Op + ": " + config.Problem
		if config.Err != nil {
			message += ": " + config.Err.Error()
		}
		g.add(Check{Code: code, Severity: severity, Message: message, FixKind: fixKind(config.Fix), Fix: config.Fix})
	case redis != nil:
		g.add(Check{Code: code, Severity: severity, Message: redis.Err.Error(), FixKind: Person, Fix: redis.Hint})
	default:
		g.add(Check{Code: code, Severity: severity, Message: err.Error()})
	}
	return true
}

// fixKind tells SQL from advice by its first word.
func fixKind(fix string) FixKind {
	for _, verb := range []string{"ALTER ", "BEGIN", "CREATE ", "DROP ", "GRANT ", "SELECT "} {
		if len(fix) >= len(verb) && fix[:len(verb)] == verb {
			return SQL
		}
	}
	if fix == "" {
		return ""
	}
	return Person
}
