package mapping

import (
	"fmt"
	"regexp"
	"slices"
	"time"
)

// Family is a set of cached values with one template.
type Family struct {
	ID        int // dense within a plan
	Name      string
	Class     *Class
	TenantVar string // "" when the family has no tenants
	TTL       time.Duration
	Versioned bool
	// Soft says that an invalidation marks a value as stale instead of removing it:
	// it may be served until StaleFor after its row's change.
	Soft        bool
	StaleFor    time.Duration
	NegativeTTL time.Duration // how long readers remember that there is no row; 0 for not at all
	// Entity is set of what stands for the dependents of an entity instead of for keys
	// of its own. Its template is that of the entity's name.
	Entity *Entity

	key     *Template
	version *Template // nil unless Versioned
}

// target is the template of what an invalidation names: the version key of a
// versioned family, the data key of any other.
func (f *Family) target() *Template {
	if f.Versioned {
		return f.version
	}
	return f.key
}

// Pattern is a SCAN glob for the family's data keys, or for its version keys if it
// is versioned. With a tenant (encoded) it matches that tenant's only.
func (f *Family) Pattern(tenant []byte) string {
	var values map[string]string
	if tenant != nil && f.TenantVar != "" {
		values = map[string]string{f.TenantVar: string(tenant)}
	}
	return f.target().Pattern(values)
}

// VersionKeys matches a versioned family's version keys, and of all else no more than values
// allow. A glob would not do: its star takes data keys, which begin like their version key
// more often than not, and what is moved on there is a value no more, and never runs out.
func (f *Family) VersionKeys() *regexp.Regexp { return f.target().exact() }

// DataPattern is a glob for the family's data keys, under any version.
func (f *Family) DataPattern() string { return f.key.Pattern(nil) }

// AbsentPattern is a SCAN glob for the data keys of a versioned family as readers
// name them while there is no version key: no version key that moves revokes those.
func (f *Family) AbsentPattern(tenant []byte) string {
	values := absentVersion()
	if tenant != nil && f.TenantVar != "" {
		values[f.TenantVar] = string(tenant)
	}
	return f.key.Pattern(values)
}

// Tenant is a tenant, as the database has it, as it stands in the family's keys; ok is false of
// one that no key has room for.
func (f *Family) Tenant(tenant []byte) (encoded []byte, ok bool) {
	return f.appendTenant([]byte{}, value{data: tenant})
}

func (f *Family) appendTenant(dst []byte, v value) (encoded []byte, ok bool) {
	return v.appendWithin(dst, f.key.Normal(f.TenantVar), MaxKeyLength)
}

// VersionKey is the version key that holds for all of a tenant (encoded), or, for
// a family whose version has no variables, for all of the family. ok is false
// when there is no such single key, or it would be too long to be one.
func (f *Family) VersionKey(tenant []byte) (key []byte, ok bool) {
	if !f.Versioned {
		return nil, false
	}
	t := f.version
	switch {
	case len(t.vars) == 0:
		return []byte(t.lits[0]), true
	case len(t.vars) == 1 && t.vars[0] == f.TenantVar && tenant != nil:
		if len(t.lits[0])+len(tenant)+len(t.lits[1]) > MaxKeyLength {
			return nil, false
		}
		return append(append([]byte(t.lits[0]), tenant...), t.lits[1]...), true
	}
	return nil, false
}

// Key renders the data key, with the values as they are in the database. A
// versioned family needs the version too, under VersionVar.
func (f *Family) Key(vars map[string]string) (string, error) { return render(f.key, vars) }

// Version renders the version key of a versioned family.
func (f *Family) Version(vars map[string]string) (string, error) {
	if !f.Versioned {
		return "", fmt.Errorf("family %s is not versioned", f.Name)
	}
	return render(f.version, vars)
}

// KeyTemplate is the template of the data key.
func (f *Family) KeyTemplate() *Template { return f.key }

// VersionTemplate is that of the version key; nil of a family without versions.
func (f *Family) VersionTemplate() *Template { return f.version }

// Vars are the variables that a reader gives values for: those of the key, without
// the version, which it looks up.
func (f *Family) Vars() []string {
	if !f.Versioned {
		return f.key.vars
	}
	return slices.DeleteFunc(slices.Clone(f.key.vars), func(v string) bool { return v == VersionVar })
}

func render(t *Template, vars map[string]string) (string, error) {
	for _, v := range t.vars {
		if _, ok := vars[v]; !ok {
			return "", fmt.Errorf("key %s: no value for {%s}", t, v)
		}
	}
	key, _, ok := t.appendKey(nil, func(i int) value { return value{data: []byte(vars[t.vars[i]]), known: true} })
	if !ok {
		return "", fmt.Errorf("key %s: %w", t, ErrKeyTooLong)
	}
	return string(key), nil
}
