package mapping

import "slices"

// Op is what an invalidation does.
type Op uint8

// The operations.
const (
	OpDelete     Op = iota + 1 // remove Key
	OpAdvance                  // move the version key Key forward to the change's commit
	OpPurge                    // remove the whole family, or all of one tenant in it
	OpLookup                   // ask the source which keys, after the gate
	OpSoft                     // mark Key as stale; it may be served for its family's StaleFor
	OpDependents               // make everything stale that readers registered as depending on the entity Key
)

func (o Op) String() string {
	switch o {
	case OpDelete:
		return "delete"
	case OpAdvance:
		return "advance"
	case OpPurge:
		return "purge"
	case OpLookup:
		return "lookup"
	case OpSoft:
		return "soft"
	case OpDependents:
		return "dependents"
	}
	return "none"
}

// Invalidation is one thing that a change makes stale. Tenant and Key alias the
// Output's buffer.
type Invalidation struct {
	Op     Op
	Family *Family
	Tenant []byte // encoded; nil when the family has no tenants or it is not known
	Key    []byte // a key, or the name of an entity; nil of OpPurge and OpLookup
	Lookup *LookupCall
}

// Reason is why something was widened: why more was invalidated than the change
// needed, because what it needed was not known.
type Reason uint8

// The reasons.
const (
	ReasonNoOldValue    Reason = iota // the log does not carry the old value: the column is not in the replica identity
	ReasonToast                       // an unchanged TOASTed value, which the log leaves out
	ReasonLostColumn                  // the table has no such column any more
	ReasonPredicate                   // `when` could not be decided
	ReasonLookup                      // a for_each query could not answer
	ReasonMessage                     // a message without a field that its mapping needs
	ReasonColumnsUnseen               // `columns` could not be compared: no old image
	ReasonEncoding                    // a value has no form in UTF-8
	ReasonLength                      // a key would be longer than MaxKeyLength
	numReasons
)

var reasonNames = [numReasons]string{"no_old_value", "unchanged_toast", "lost_column", "predicate", "lookup", "message", "columns_unseen", "encoding", "key_length"}

func (r Reason) String() string { return reasonNames[r] }

// ReasonNames are the names of all reasons.
func ReasonNames() []string { return slices.Clone(reasonNames[:]) }

// Output collects invalidations. It is reused: what it holds is valid until the
// next Reset.
type Output struct {
	Invalidations []Invalidation
	// Widened counts, by Reason, since the last Reset.
	Widened [numReasons]uint32

	buf []byte
}

// Reset empties the output for the next change.
func (o *Output) Reset() {
	o.Invalidations = o.Invalidations[:0]
	o.buf = o.buf[:0]
	o.Widened = [numReasons]uint32{}
}

// key adds one that was rendered from the family's target.
func (o *Output) key(f *Family, tenant, key []byte) {
	op := OpDelete
	switch {
	case f.Versioned:
		op = OpAdvance
	case f.Entity != nil:
		op = OpDependents
	case f.Soft:
		op = OpSoft
	}
	o.Invalidations = append(o.Invalidations, Invalidation{Op: op, Family: f, Tenant: tenant, Key: key})
}

// purge widens to the family, or to a tenant of it.
func (o *Output) purge(f *Family, tenant []byte) {
	if key, ok := f.VersionKey(tenant); ok {
		o.key(f, tenant, key)
		return
	}
	o.Invalidations = append(o.Invalidations, Invalidation{Op: OpPurge, Family: f, Tenant: tenant})
}

// tenant puts the family's tenant, as it stands in keys, into the buffer, where it stays when the value's
// own buffer is reused. It is nil of one that no key has room for, and else never: an empty tenant
// is a tenant.
func (o *Output) tenant(v value, f *Family) []byte {
	if o.buf == nil {
		o.buf = make([]byte, 0, 256)
	}
	start := len(o.buf)
	buf, ok := f.appendTenant(o.buf, v)
	if o.buf = buf; !ok {
		o.buf = buf[:start]
		return nil
	}
	return buf[start:len(buf):len(buf)]
}
