package mapping

import (
	"strings"
)

// Entity is something that cached values can depend on without being named by it: a
// seller, whose name stands on many product pages. Readers register the keys of what
// they cache under it; when a row that maps to it changes, all of these become stale.
type Entity struct {
	Kind string
	Vars int // how many values name one

	family *Family // stands for its dependents
	plan   *Plan
}

// Family is the family of a dependent, by the name that its reader registered it with;
// ok is false when the plan has none by that name any more.
func (e *Entity) Family(name string) (*Family, bool) { return e.plan.Family(name) }

// Entity is the entity of that kind; ok is false where no mapping has it, so that
// nothing would ever invalidate what depends on it.
func (p *Plan) Entity(kind string) (*Entity, bool) {
	e, ok := p.entities[kind]
	return e, ok
}

// HasDependents says whether any mapping has dependents.
func (p *Plan) HasDependents() bool { return len(p.entities) > 0 }

// newEntity prepares the entity of a template of dependents, whose invalidations are
// counted with those of the plan's strictest class.
func (p *Plan) newEntity(kind string, t *Template, strictest *Class) *Entity {
	e := &Entity{Kind: kind, Vars: len(t.vars), plan: p}
	e.family = &Family{ID: len(p.families) + len(p.entities), Name: "dependents of " + kind, Class: strictest, Entity: e, key: t}
	return e
}

// entityKind is the name at the begin of an entity's template: a name, ':' and
// variables with ':' between them.
func entityKind(t *Template) (kind string, ok bool) {
	kind, colon := strings.CutSuffix(t.lits[0], ":")
	if !colon || !isName(kind) || len(t.vars) == 0 || t.lits[len(t.vars)] != "" {
		return "", false
	}
	for _, lit := range t.lits[1:len(t.vars)] {
		if lit != ":" {
			return "", false
		}
	}
	return kind, true
}

// strictestClass is the class with the smallest budget that a family uses.
func (f *File) strictestClass() *Class {
	var strictest *Class
	for _, k := range f.Keys {
		if strictest == nil || k.Class.Staleness < strictest.Staleness {
			strictest = k.Class
		}
	}
	return strictest
}
