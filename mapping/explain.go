package mapping

import (
	"fmt"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

// Explanation is what one mapping makes of a change, step by step.
type Explanation struct {
	Mapping   string         `json:"mapping"` // mappings[0]
	Line      int            `json:"line"`
	Counts    bool           `json:"counts"` // the change invalidates something by this mapping
	Because   string         `json:"because,omitempty"`
	Predicate string         `json:"predicate,omitempty"`
	Verdict   string         `json:"verdict,omitempty"` // of the predicate: true, false, unknown or error
	Error     string         `json:"error,omitempty"`   // of the predicate
	Keys      []ExplainedKey `json:"keys"`
	Widened   []string       `json:"widened,omitempty"` // why more than single keys is invalidated
}

// ExplainedKey is one invalidation.
type ExplainedKey struct {
	Family string    `json:"family"`
	Class  string    `json:"class"`
	Image  string    `json:"image"` // old or new
	Op     string    `json:"op"`    // delete, soft, advance, dependents, purge or lookup
	Key    string    `json:"key,omitempty"`
	Tenant *string   `json:"tenant,omitempty"` // encoded
	Guard  string    `json:"guard"`            // what keeps it inside of its tenant
	SQL    string    `json:"sql,omitempty"`
	Params []*string `json:"params,omitempty"` // of SQL; null is NULL
}

// Explain says what each of the table's mappings makes of the change. It takes
// the same steps as Map.
func (t *Table) Explain(ch *decoder.Change) []Explanation {
	ch.Relation = t.rel
	var all []Explanation
	for i := range t.rules {
		all = append(all, t.rules[i].explain(ch))
	}
	return all
}

func (r *boundRule) explain(ch *decoder.Change) Explanation {
	x := Explanation{Mapping: r.where, Line: r.spec.Line, Counts: true, Keys: []ExplainedKey{}}
	listed, name := r.spec.Insert, "insert"
	switch ch.Action {
	case decoder.Update:
		listed, name = r.spec.Update, "update"
	case decoder.Delete:
		listed, name = r.spec.Delete, "delete"
	}
	var out Output
	switch {
	case !listed:
		x.Counts, x.Because = false, "its actions do not list "+name
	case ch.Action == decoder.Update && !r.touched(ch, &out):
		x.Counts, x.Because = false, fmt.Sprintf("none of its columns changed: %v", r.spec.Columns)
	case r.when != nil:
		x.Predicate = r.when.source
		v, err := r.when.eval(ch)
		x.Verdict = v.String()
		if err != nil {
			x.Error = err.Error()
		}
		switch v {
		case VerdictFalse:
			x.Counts, x.Because = false, "its predicate is false"
		case VerdictUnknown, VerdictError:
			out.Widened[ReasonPredicate]++
			x.Because = "its predicate is not decided, and a doubt invalidates"
		}
	}
	if x.Counts {
		for j := range r.targets {
			r.targets[j].explain(ch, &out, &x)
		}
	}
	for reason, n := range out.Widened {
		if n > 0 {
			x.Widened = append(x.Widened, Reason(reason).explain())
		}
	}
	return x
}

func (t *boundTarget) explain(ch *decoder.Change, out *Output, x *Explanation) {
	image := func(name string, of func(*column, *decoder.Change) value) {
		n := len(out.Invalidations)
		t.image(ch, of, out)
		for _, inv := range out.Invalidations[n:] {
			x.Keys = append(x.Keys, explainKey(inv, name, t.family))
		}
	}
	if ch.Action != decoder.Delete {
		image("new", (*column).newValue)
	}
	if ch.Action != decoder.Insert && (ch.OldKind != decoder.OldNone || !t.stable) {
		image("old", (*column).oldValue)
	}
}

func explainKey(inv Invalidation, image string, f *Family) ExplainedKey {
	k := ExplainedKey{Family: f.Name, Class: f.Class.Name, Image: image, Op: inv.Op.String(), Key: string(inv.Key)}
	switch {
	case f.Entity != nil:
		k.Guard = "whatever readers registered under it, of any tenant"
	case f.TenantVar == "":
		k.Guard = "the family has no tenants"
	case inv.Tenant == nil:
		k.Guard = "the tenant is not known: all tenants of the family"
	default:
		tenant := string(inv.Tenant)
		k.Tenant, k.Guard = &tenant, "tenant "+tenant+" only"
	}
	if inv.Lookup != nil {
		k.SQL = inv.Lookup.SQL()
		for _, p := range inv.Lookup.Params() {
			if p == nil {
				k.Params = append(k.Params, nil)
				continue
			}
			s := string(p)
			k.Params = append(k.Params, &s)
		}
	}
	return k
}

// explain is the reason in a sentence.
func (r Reason) explain() string {
	return [numReasons]string{
		"an old value is not in the log: its column is not in the replica identity",
		"a value is TOASTed and unchanged, which the log leaves out",
		"a column does not exist",
		"the predicate is not decided",
		"the for_each query cannot answer",
		"the message lacks a field",
		"columns cannot be compared without an old image",
		"a value has no form in UTF-8",
		fmt.Sprintf("a key would be longer than %d bytes", MaxKeyLength),
	}[r]
}
