// Package provision brings a source to what a mappings file needs: replica
// identities, the publication, the slot, the event trigger.
//
// There is one model: Read looks at the source (replication.Survey), State.Plan
// turns what is missing into Steps, and Apply does them. `plan` prints the steps,
// `apply` does them, and `doctor` takes its fixes from the same findings. The SQL
// itself is made where the finding is, in package replication, and nowhere twice.
//
// The order is the one that loses nothing: identities, so that publishing a table
// breaks no write of the application's; the publication; the event trigger; and last the
// slot, which could not read changes from before the publication, and which keeps WAL from
// then on. Nothing is ever dropped that this package did not make.
package provision

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
	"github.com/cdc-invalidator/cdc-invalidator/replication"
)

// Action is what a step does to its object.
type Action string

// The actions, with the sign that stands before each in a plan.
const (
	Create Action = "create"
	Change Action = "change"
	Drop   Action = "drop"
)

// Sign is + ~ or -.
func (a Action) Sign() string {
	switch a {
	case Create:
		return "+"
	case Drop:
		return "-"
	}
	return "~"
}

// Step is one thing to do.
type Step struct {
	Action Action   `json:"action"`
	Object string   `json:"object"` // table, publication, slot, function or event trigger
	Name   string   `json:"name"`
	Why    string   `json:"why"`
	SQL    []string `json:"sql"`
	// Needs is the right that it takes.
	Needs string `json:"needs"`
	// Lacking is set when the role that asked has not got it, as far as can be told.
	Lacking bool `json:"lacking"`

	grant string
}

// Title names the step in one line.
func (s Step) Title() string { return s.Object + " " + s.Name }

// Blocker is what only a person can settle.
type Blocker struct {
	Subject string `json:"subject"`
	Problem string `json:"problem"`
	Fix     string `json:"fix"`
}

// Plan is what there is to do, in the order in which it is done.
type Plan struct {
	Database string    `json:"database"`
	Role     string    `json:"role"`
	Server   string    `json:"server_version"`
	Steps    []Step    `json:"steps"`
	Blocked  []Blocker `json:"blocked"`
	Notes    []string  `json:"notes"`
}

// Nothing says whether there is nothing to do.
func (p *Plan) Nothing() bool { return len(p.Steps) == 0 && len(p.Blocked) == 0 }

// Desired is what the source should have.
type Desired struct {
	Slot, Publication string
	Tables            []mapping.TableUse
	// Identity widens replica identities that only make invalidations wider than they
	// need to be. What the application's writes need is done in any case.
	Identity bool
	// EventTrigger announces DDL that the log is silent about.
	EventTrigger bool
}

// FromFile is what a mappings file asks for.
func FromFile(f *mapping.File, plan *mapping.Plan) Desired {
	return Desired{Slot: f.Source.Slot.Name, Publication: f.Source.Publication.Name, Tables: plan.Tables(), Identity: true, EventTrigger: true}
}

// State is a source at one moment, and what it should be.
type State struct {
	Desired Desired
	Survey  replication.Survey
	Rights  Rights
}

// Read looks at the source and changes nothing.
func Read(ctx context.Context, conn *pgx.Conn, d Desired) (*State, error) {
	st := &State{Desired: d}
	var err error
	st.Survey, err = replication.ReadSurvey(ctx, conn, replication.SetupOptions{Slot: d.Slot, Publication: d.Publication, Tables: d.Tables})
	if err != nil {
		return nil, err
	}
	st.Rights, err = readRights(ctx, conn, d)
	return st, err
}

// Plan says what is to be done.
func (st *State) Plan() Plan {
	s := &st.Survey
	p := Plan{Database: s.Server.Database, Role: s.Server.Role, Server: s.Server.VersionString(),
		Steps: []Step{}, Blocked: []Blocker{}, Notes: []string{}}
	for _, e := range s.ServerProblems {
		p.Blocked = append(p.Blocked, Blocker{Subject: "server", Problem: configProblem(e), Fix: e.Fix})
	}
	for _, f := range s.Published {
		if f.Code == replication.PublicationGenerated { // before an identity may have such columns
			st.finding(&p, f)
		}
	}
	for _, f := range s.Tables {
		st.finding(&p, f)
	}
	for _, f := range s.Writes {
		st.finding(&p, f)
	}
	for _, f := range s.Published {
		st.finding(&p, f)
	}
	st.eventTrigger(&p)
	st.slot(&p)
	return p
}

func configProblem(e *replication.ConfigError) string {
	if e.Err == nil {
		return e.Problem
	}
	return e.Err.Error() + ": " + e.Problem
}

// finding turns one into a step, or into a blocker where no SQL settles it.
func (st *State) finding(p *Plan, f replication.Finding) {
	subject := Subject(f)
	switch {
	case f.Severity() == replication.SeverityNotice:
		p.Notes = append(p.Notes, subject+": "+f.Problem)
		return
	case len(f.SQL) == 0 && f.Severity() == replication.SeverityFatal:
		p.Blocked = append(p.Blocked, Blocker{Subject: subject, Problem: f.Problem, Fix: f.Fix})
		return
	case f.Severity() == replication.SeverityWidens && len(f.SQL) == 0:
		p.Notes = append(p.Notes, subject+": "+f.Problem+". "+f.Fix)
		return
	case f.Severity() == replication.SeverityWidens && !st.Desired.Identity:
		p.Notes = append(p.Notes, subject+": "+f.Problem)
		return
	}
	step := Step{Action: Change, Why: f.Problem, SQL: f.SQL}
	switch {
	case f.Code.OfPublication():
		if st.Survey.HasSlot && !st.Survey.HasPublication && st.Survey.SlotProblem != nil && !errors.Is(st.Survey.SlotProblem, replication.ErrSlotLost) {
			return // the slot's own problem says so, and what to do first
		}
		step.Object, step.Name = "publication", st.Desired.Publication
		if f.Code == replication.PublicationMissing {
			step.Action, step.Why = Create, "the slot is read through it"
		}
		st.Rights.publication(&step, st.Survey.HasPublication)
	default:
		step.Object, step.Name = "table", replication.Qualified(f.Schema, f.Table)
		st.Rights.table(&step, f.Schema, f.Table)
	}
	// One statement may settle several findings.
	for i := range p.Steps {
		if slices.Equal(p.Steps[i].SQL, step.SQL) {
			if f.Code == replication.PublicationMember {
				p.Steps[i].Why = "it does not have all mapped tables, so changes would invalidate nothing"
			}
			return
		}
	}
	p.Steps = append(p.Steps, step)
}

// Subject is what a finding is about.
func Subject(f replication.Finding) string {
	if f.Table == "" {
		return "publication"
	}
	return "table " + replication.Qualified(f.Schema, f.Table)
}

func (st *State) slot(p *Plan) {
	s := &st.Survey
	name := "slot " + st.Desired.Slot
	var config *replication.ConfigError
	switch {
	case s.Server.Version == 0 || len(s.ServerProblems) > 0 && !s.HasSlot:
		// What blocks the server blocks the slot.
	case !s.HasSlot && st.Rights.FreeSlots <= 0:
		p.Blocked = append(p.Blocked, Blocker{Subject: name, Problem: "all replication slots of the server are taken",
			Fix: "drop one that nothing needs (SELECT slot_name, active, wal_status FROM pg_replication_slots;)\nor: ALTER SYSTEM SET max_replication_slots = <more>;  -- and restart the server"})
	case !s.HasSlot:
		step := Step{Action: Create, Object: "slot", Name: st.Desired.Slot, Why: "changes are followed from its creation on, and the server keeps its log until it is read; the first run purges what is cached by then",
			SQL: []string{replication.CreateSlotSQL(st.Desired.Slot)}, Needs: "REPLICATION", Lacking: !st.Rights.Replication,
			grant: "ALTER ROLE " + replication.Identifier(s.Server.Role) + " REPLICATION;"}
		p.Steps = append(p.Steps, step)
	case errors.Is(s.SlotProblem, replication.ErrSlotUnfinished):
		p.Blocked = append(p.Blocked, Blocker{Subject: name,
			Problem: fmt.Sprintf("pid %d is still creating it, and waits for transactions that are open; wait for it, or give it up", s.Slot.ActivePID), Fix: s.Slot.CancelCreationSQL()})
	case errors.As(s.SlotProblem, &config):
		p.Blocked = append(p.Blocked, Blocker{Subject: name, Problem: configProblem(config), Fix: config.Fix})
	case s.SlotProblem != nil:
		p.Notes = append(p.Notes, name+": it has lost its WAL; run replaces it by itself, and everything cached counts as changed then")
	}
}

func (st *State) eventTrigger(p *Plan) {
	s := st.Survey.DDL
	if st.Survey.Server.InRecovery {
		return
	}
	if !st.Desired.EventTrigger {
		if s.Absent() {
			p.Notes = append(p.Notes, "the event trigger is left out: DDL that the log is silent about is found in the catalogs, within a second")
		}
		return
	}
	add := func(a Action, object, name, why string, sql ...string) {
		p.Steps = append(p.Steps, Step{Action: a, Object: object, Name: name, Why: why, SQL: sql,
			Needs: "a superuser, or what a managed service has for one; --no-event-trigger leaves it out", Lacking: !st.Rights.Superuser,
			grant: "run it as a superuser, or leave it out with --no-event-trigger"})
	}
	if !s.FunctionCurrent || s.Foreign != "" {
		action, why := Create, "says through the log which tables DDL touches"
		if s.HasFunction {
			action, why = Change, "it is not that of this version"
		}
		if s.Foreign != "" {
			why = "role " + s.Foreign + " owns it or its schema, and could change what runs within everybody's DDL"
		}
		add(action, "function", replication.DDLSchema+"."+replication.DDLFunction+"()", why, replication.DDLFunctionSQL()...)
	}
	desired := map[string]bool{}
	for _, t := range replication.DDLTriggers() {
		desired[t.Name] = true
		f, found := s.Triggers[t.Name]
		switch {
		case !found:
			add(Create, "event trigger", t.Name, "DDL that the log is silent about invalidates at its commit, and not up to a second later", t.CreateSQL()...)
		case !f.Ours || f.Event != t.Event:
			p.Blocked = append(p.Blocked, Blocker{Subject: "event trigger " + t.Name, Problem: "it is not ours: it calls another function, or for another event",
				Fix: t.DropSQL() + "\nif nothing needs it, or leave the event trigger out with --no-event-trigger"})
		case f.Tagged:
			add(Change, "event trigger", t.Name, "it fires for some commands only", append([]string{t.DropSQL()}, t.CreateSQL()...)...)
		case !f.Always:
			add(Change, "event trigger", t.Name, "it is disabled, or does not fire in every session", t.EnableSQL())
		}
	}
	var obsolete []string
	for name, f := range s.Triggers {
		if f.Ours && !desired[name] {
			obsolete = append(obsolete, name)
		}
	}
	slices.Sort(obsolete)
	for _, name := range obsolete {
		add(Drop, "event trigger", name, "it calls our function, and this version does not use it", replication.DDLTrigger{Name: name}.DropSQL())
	}
}

// Counts says how many steps there are of each action, for people.
func (p *Plan) Counts() string {
	n := map[Action]int{}
	for _, s := range p.Steps {
		n[s.Action]++
	}
	var parts []string
	for _, a := range []Action{Create, Change, Drop} {
		if n[a] > 0 {
			parts = append(parts, fmt.Sprintf("%d to %s", n[a], a))
		}
	}
	if len(p.Blocked) > 0 {
		parts = append(parts, fmt.Sprintf("%d for a person to settle first", len(p.Blocked)))
	}
	return strings.Join(parts, ", ")
}
