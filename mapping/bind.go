package mapping

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

// Table is the plan's part for one relation as the log describes it. It is not
// safe for concurrent use.
type Table struct {
	rel      *decoder.Relation
	rules    []boundRule
	problems []Problem
}

type boundRule struct {
	*rule
	columns []column // of spec.Columns, and what keys are made of; nil when any change counts
	when    *boundPredicate
	targets []boundTarget
}

type boundTarget struct {
	*target
	vars   []column // of tmpl's variables
	tenant column   // index -1 without tenants
	params []column // of the lookup
	stable bool     // all vars are in the replica identity
}

// Problem is something that the log will not tell, so that changes of the table
// invalidate more than they need to.
type Problem struct {
	Column string
	Reason Reason
	Fix    string // SQL; "" when it is the mapping that has to change
}

func (p Problem) String() string {
	switch p.Reason {
	case ReasonPredicate:
		return fmt.Sprintf("`when` compares column %s with what a value of its type never equals (text with a number, a domain with nothing that shows its type); every change counts", p.Column)
	case ReasonLostColumn:
		return fmt.Sprintf("column %s does not exist or is not published; every change invalidates whole families", p.Column)
	default:
		return fmt.Sprintf("the old value of column %s is not logged; updates and deletes invalidate whole families (fix: %s)", p.Column, p.Fix)
	}
}

// Bind prepares the plan for the changes of a relation; nil when nothing maps it.
func (p *Plan) Bind(rel *decoder.Relation) *Table {
	rules := p.tables[tableName{rel.Namespace, rel.Name}]
	if len(rules) == 0 {
		return nil
	}
	t := &Table{rel: rel}
	use := TableUse{}
	for _, r := range rules {
		r.use(&use)
		t.rules = append(t.rules, bindRule(rel, r))
	}
	for _, name := range sortedSet(use.Columns) {
		if c := find(rel, name); c.index < 0 {
			t.problems = append(t.problems, Problem{Column: name, Reason: ReasonLostColumn})
		} else if !c.key && slices.Contains(use.OldColumns, name) {
			t.problems = append(t.problems, Problem{Column: name, Reason: ReasonNoOldValue, Fix: fullIdentity(rel)})
		}
	}
	for _, r := range t.rules {
		if r.when != nil {
			t.problems = append(t.problems, r.when.problems()...)
		}
	}
	return t
}

func bindRule(rel *decoder.Relation, r *rule) boundRule {
	b := boundRule{rule: r}
	for _, name := range r.spec.Columns {
		b.columns = append(b.columns, find(rel, name))
	}
	if r.when != nil {
		b.when = r.when.bind(rel)
	}
	for _, t := range r.targets {
		bt := boundTarget{target: t, tenant: column{index: -1}, stable: true}
		for _, name := range t.vars {
			c := find(rel, name)
			bt.vars = append(bt.vars, c)
			bt.stable = bt.stable && c.key
		}
		if t.tenant != "" {
			bt.tenant = find(rel, t.tenant)
		}
		if t.lookup != nil {
			for _, name := range t.lookup.params {
				c := find(rel, name)
				bt.params = append(bt.params, c)
				bt.stable = bt.stable && c.key
			}
		}
		b.targets = append(b.targets, bt)
	}
	if len(b.columns) > 0 {
		// What moves to another key is stale under both, whatever the file lists.
		for _, t := range r.targets {
			for _, name := range t.rowColumns() {
				b.columns = append(b.columns, find(rel, name))
			}
		}
	}
	return b
}

func find(rel *decoder.Relation, name string) column {
	for i, c := range rel.Columns {
		if c.Name == name {
			return column{index: i, key: c.Key, blank: c.TypeOID == bpcharOID, typeOID: c.TypeOID, text: rel.Encoding}
		}
	}
	return column{index: -1}
}

func fullIdentity(rel *decoder.Relation) string {
	quote := func(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
	return "ALTER TABLE " + quote(rel.Namespace) + "." + quote(rel.Name) + " REPLICA IDENTITY FULL;"
}

// Problems lists what will be widened, by column.
func (t *Table) Problems() []Problem { return t.problems }
