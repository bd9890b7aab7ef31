package mapping

import (
	"bytes"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

// Map adds to out what the change makes stale, under its old image and its new
// one. What is not known widens: too much may be invalidated, too little never. It
// allocates nothing but for predicates, lookups, and growth of out.
func (t *Table) Map(ch *decoder.Change, out *Output) {
	for i := range t.rules {
		r := &t.rules[i]
		switch ch.Action {
		case decoder.Insert:
			if !r.spec.Insert {
				continue
			}
		case decoder.Delete:
			if !r.spec.Delete {
				continue
			}
		case decoder.Update:
			if !r.spec.Update || !r.touched(ch, out) {
				continue
			}
		}
		if r.when != nil && !r.when.holds(ch, out) {
			continue
		}
		for j := range r.targets {
			r.targets[j].emit(ch, out)
		}
	}
}

// touched says whether an update changed one of the columns that count, or may
// have.
func (r *boundRule) touched(ch *decoder.Change, out *Output) bool {
	if len(r.columns) == 0 {
		return true
	}
	unseen := false
	for i := range r.columns {
		c := &r.columns[i]
		if c.index >= 0 && c.index < len(ch.New) && ch.New[c.index].Kind == decoder.Unchanged {
			continue // the log says itself that it did not change
		}
		before, after := c.oldValue(ch), c.newValue(ch)
		switch {
		case !before.seen() || !after.seen():
			unseen = true
		case !before.equal(after):
			return true
		}
	}
	if unseen {
		out.Widened[ReasonColumnsUnseen]++
	}
	return unseen
}

// emit adds the target's keys of both images.
func (t *boundTarget) emit(ch *decoder.Change, out *Output) {
	switch ch.Action {
	case decoder.Insert:
		t.image(ch, (*column).newValue, out)
	case decoder.Delete:
		t.image(ch, (*column).oldValue, out)
	case decoder.Update:
		if ch.OldKind == decoder.OldNone && t.stable {
			t.image(ch, (*column).newValue, out) // the identity did not change: one key
			return
		}
		n := len(out.Invalidations)
		t.image(ch, (*column).newValue, out)
		t.image(ch, (*column).oldValue, out)
		if same(out.Invalidations[n:]) {
			out.Invalidations = out.Invalidations[:n+1]
		}
	}
}

func same(two []Invalidation) bool {
	if len(two) != 2 {
		return false
	}
	a, b := &two[0], &two[1]
	return a.Op == b.Op && a.Lookup == nil && b.Lookup == nil &&
		bytes.Equal(a.Key, b.Key) && (a.Tenant == nil) == (b.Tenant == nil) && bytes.Equal(a.Tenant, b.Tenant)
}

// image adds the target's key, or lookup, of one image.
func (t *boundTarget) image(ch *decoder.Change, of func(*column, *decoder.Change) value, out *Output) {
	if t.lookup != nil {
		t.lookupImage(ch, of, out)
		return
	}
	start := len(out.buf)
	buf, why, known := t.tmpl.appendKey(out.buf, func(i int) value { return of(&t.vars[i], ch) })
	if out.buf = buf; !known {
		t.widen(ch, of, why, out)
		return
	}
	key := buf[start:len(buf):len(buf)]
	var tenant []byte
	if t.target.tenant != "" {
		tenant = out.tenant(of(&t.tenant, ch), t.family) // known: it is one of vars
	}
	out.key(t.family, tenant, key)
}

// widen invalidates the family, or as much of it as one tenant has when the image
// at least tells that.
func (t *boundTarget) widen(ch *decoder.Change, of func(*column, *decoder.Change) value, why Reason, out *Output) {
	out.Widened[why]++
	var tenant []byte
	if t.target.tenant != "" {
		if v := of(&t.tenant, ch); v.known {
			tenant = out.tenant(v, t.family)
		}
	}
	out.purge(t.family, tenant)
}

// Truncate adds what a TRUNCATE of the table makes stale.
func (t *Table) Truncate(out *Output) {
	for i := range t.rules {
		if t.rules[i].spec.Truncate {
			t.rules[i].rule.invalidate(out)
		}
	}
}

// Invalidate adds everything that the table maps to, whatever the action.
func (t *Table) Invalidate(out *Output) {
	for i := range t.rules {
		t.rules[i].rule.invalidate(out)
	}
}
