package mapping

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

// defaultMaxRows is how many keys one row may stand for before its family is
// invalidated whole instead.
const defaultMaxRows = 10_000

// Lookup is a for_each query: from a changed row to the rows whose keys it makes
// stale. The tenant always comes from the changed row, never from the query, so that
// no query can reach into another tenant.
type Lookup struct {
	target  *target
	sql     string   // with $1... for placeholders
	params  []string // their columns
	maxRows int
}

func newLookup(t *target, u *KeyUse) (*Lookup, error) {
	q, err := parseForEach(u.ForEach)
	if err != nil {
		return nil, err
	}
	l := &Lookup{target: t, sql: q.sql, params: q.params, maxRows: u.MaxRows}
	if l.maxRows <= 0 {
		l.maxRows = defaultMaxRows
	}
	return l, nil
}

// LookupCall is a Lookup for one row.
type LookupCall struct {
	lookup *Lookup
	params [][]byte // nil is NULL
	tenant []byte   // encoded; nil without tenants
	own    value    // the same as the row has it
	id     string
}

// ID identifies the query and its arguments.
func (c *LookupCall) ID() string { return c.id }

// Size is about what the call takes in memory.
func (c *LookupCall) Size() int {
	n := len(c.id)
	for _, p := range c.params {
		n += len(p)
	}
	return n
}

// SQL is the query, with $1... for Params.
func (c *LookupCall) SQL() string { return c.lookup.sql }

// Params are the arguments, as text; nil is NULL.
func (c *LookupCall) Params() [][]byte { return c.params }

// MaxRows is the number of rows beyond which the family is invalidated whole.
func (c *LookupCall) MaxRows() int { return c.lookup.maxRows }

// lookupImage adds a lookup for one image.
func (t *boundTarget) lookupImage(ch *decoder.Change, of func(*column, *decoder.Change) value, out *Output) {
	c := &LookupCall{lookup: t.lookup, params: make([][]byte, len(t.params))}
	id := strconv.Itoa(t.family.ID) + "\x00" + t.lookup.sql
	room := maxParams
	for i := range t.params {
		v := of(&t.params[i], ch)
		if room -= len(v.data); v.known && room < 0 {
			v.known, v.reason = false, ReasonLength
		}
		if !v.known {
			t.widen(ch, of, v.reason, out)
			return
		}
		if !v.null {
			c.params[i] = append([]byte{}, v.data...)
		}
		id += "\x00" + string(v.append(nil, NormalNone)) // encoded: no zero inside, NULL distinct
	}
	if t.target.tenant != "" {
		v := of(&t.tenant, ch)
		if !v.known {
			t.widen(ch, of, v.reason, out)
			return
		}
		var ok bool
		if c.tenant, ok = t.family.appendTenant(make([]byte, 0, 16), v); !ok { // not nil, even when empty
			t.widen(ch, of, ReasonLength, out)
			return
		}
		c.own = value{data: bytes.Clone(v.data), null: v.null, known: true}
		id += "\x00" + string(c.tenant)
	}
	c.id = id
	out.Invalidations = append(out.Invalidations, Invalidation{Op: OpLookup, Family: t.family, Tenant: c.tenant, Lookup: c})
}

// Render adds an invalidation for each row of the answer. It fails when the
// answer lacks a column that the template needs, and with ErrKeyTooLong.
func (c *LookupCall) Render(columns []string, rows [][][]byte, out *Output) error {
	t := c.lookup.target
	index := make([]int, len(t.vars))
	for i, name := range t.vars {
		index[i] = slices.Index(columns, name)
		if index[i] < 0 && t.tmpl.vars[i] != t.family.TenantVar {
			return fmt.Errorf("the query returns no column %s for {%s}; it returns %s", name, t.tmpl.vars[i], strings.Join(columns, ", "))
		}
	}
	for _, row := range rows {
		start := len(out.buf)
		buf, _, ok := t.tmpl.appendKey(out.buf, func(i int) value {
			if t.tmpl.vars[i] == t.family.TenantVar {
				return c.own
			}
			data := row[index[i]]
			return value{data: data, null: data == nil, known: true}
		})
		if out.buf = buf; !ok {
			return ErrKeyTooLong
		}
		out.key(t.family, c.tenant, buf[start:len(buf):len(buf)])
	}
	return nil
}

// Widen adds what the lookup stands for when it cannot be answered: all of the
// family, or of the tenant in it.
func (c *LookupCall) Widen(out *Output) {
	out.Widened[ReasonLookup]++
	out.purge(c.lookup.target.family, c.tenant)
}
