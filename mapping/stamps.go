package mapping

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Stamps say, of one daemon, which families it follows, on which terms, and since when. They
// are published as one text, see StampsKey.
//
// A family's stamp is drawn anew at every moment from which on the daemon starts to follow it:
// a gap, a first attachment, a file that adds it, gives it back or maps to it otherwise. Readers write it into
// what they store, and believe nothing that has another one: what was cached before that
// moment is refused by all of them at once. A stamp is random and not a count, so that no loss or
// restoration of data brings one back.
type Stamps struct {
	// Revision names this text, and no other. The control hash names the one that holds.
	Revision string           `json:"revision"`
	Families map[string]Stamp `json:"families"`
	// Entities that readers may declare to depend on, by kind.
	Entities map[string]EntityTerms `json:"entities"`
}

// Stamp is what holds of a family.
type Stamp struct {
	Stamp   string `json:"stamp"`   // 16 hexadecimal digits
	Follows string `json:"follows"` // the daemon's own: which changes it maps to the family, and how
	Terms
}

// Terms are what readers and the daemon have to agree on, or the one stores what the other
// does not find or does not remove in time. What only one side acts upon (ttl, which tables
// are mapped) is not part of them.
type Terms struct {
	Key          string `json:"key"`
	Version      string `json:"version"`
	Tenant       string `json:"tenant"`
	Class        string `json:"class"`
	Staleness    int64  `json:"staleness"` // us
	Hold         int64  `json:"hold"`      // us
	OnInvalidate string `json:"on_invalidate"`
	// Types are those of the columns that each variable comes from. The text of a value follows from
	// them, so it is compared with the types that a key is made with, for each key.
	Types string `json:"types"`
}

// EntityTerms are those of an entity.
type EntityTerms struct {
	Variables int    `json:"variables"`
	Types     string `json:"types"`
}

// KeyTypes say of what types the columns are that keys are made of, as the source has them. Family and
// Entity texts are the same for all who ask one source with mappings that take the variables from
// columns of the same types, whichever tables those are in.
type KeyTypes struct {
	Families, Entities map[string]KeyType // by name, by kind
}

// KeyType is what stands in KeyTypes of one family, or entity.
type KeyType struct {
	Types string // what the text of a value follows from
	// Labels are the enums' names. A new name is a new text of rows that nothing logs.
	Labels string
}

// NewStamp draws a stamp, or a revision.
func NewStamp() string {
	var raw [8]byte
	_, _ = rand.Read(raw[:]) // never fails
	return hex.EncodeToString(raw[:])
}

// StampLen is the length of a stamp.
const StampLen = 16

// Terms are the family's.
func (f *Family) Terms(types KeyTypes) Terms {
	t := Terms{
		Types: types.Families[f.Name].Types,
		Key:   f.key.String(), Tenant: f.TenantVar, Class: f.Class.Name,
		Staleness: f.Class.Staleness.Microseconds(), Hold: f.Class.Hold().Microseconds(), OnInvalidate: "delete",
	}
	if f.Versioned {
		t.Version = f.version.String()
	}
	if f.Soft {
		t.OnInvalidate = "soft"
	}
	return t
}

// Terms are the entity's.
func (e *Entity) Terms(types KeyTypes) EntityTerms {
	return EntityTerms{Variables: e.Vars, Types: types.Entities[e.Kind].Types}
}

// EntityTerms are those of all entities, by kind.
func (p *Plan) EntityTerms(types KeyTypes) map[string]EntityTerms {
	all := make(map[string]EntityTerms, len(p.entities))
	for kind, e := range p.entities {
		all[kind] = e.Terms(types)
	}
	return all
}

// Differences names what differs, theirs being the daemon's.
func (t Terms) Differences(theirs Terms) string {
	if t == theirs {
		return ""
	}
	mine, other := t.fields(), theirs.fields()
	var list []string
	for i, name := range termNames {
		if mine[i] != other[i] {
			list = append(list, fmt.Sprintf("%s is %v here and %v for the daemon", name, mine[i], other[i]))
		}
	}
	return strings.Join(list, ", ")
}

var termNames = []string{"key", "version", "tenant", "class", "staleness", "linger or max_rate", "on_invalidate", "types of key columns"}

func (t Terms) fields() []any {
	return []any{
		fmt.Sprintf("%q", t.Key), fmt.Sprintf("%q", t.Version), fmt.Sprintf("%q", t.Tenant), t.Class,
		time.Duration(t.Staleness) * time.Microsecond, time.Duration(t.Hold) * time.Microsecond, t.OnInvalidate, fmt.Sprintf("%q", t.Types),
	}
}

// Follows says of each family, by name, what is followed for it: what Maps says, and the types of the
// columns that all these keys are made of. Two plans with the same text remove the same keys of the family for each change, so
// that what was cached under one is as good under the other.
func (p *Plan) Follows(types KeyTypes) map[string]string {
	all := p.Maps()
	for _, f := range p.families {
		all[f.Name] += "." + digest(types.Families[f.Name], types.Entities)
	}
	return all
}

// Maps is the part of Follows that the file alone says: the family's terms, and all mappings that make
// it stale. Any of a plan's families may depend on any of its entities, so what is mapped to those is part of it
// for each family.
func (p *Plan) Maps() map[string]string {
	rules := map[string][]string{} // by family
	var entities []string
	for _, list := range p.rules() {
		for _, r := range list {
			for _, u := range r.spec.Keys {
				rules[u.Family] = append(rules[u.Family], r.spec.digest(u, nil))
			}
			for _, t := range r.spec.Dependents {
				entities = append(entities, r.spec.digest(nil, t))
			}
		}
	}
	slices.Sort(entities)
	all := make(map[string]string, len(p.families))
	for _, f := range p.families {
		own := rules[f.Name]
		slices.Sort(own) // the order in the file means nothing
		all[f.Name] = digest(f.Terms(KeyTypes{}), own, entities)
	}
	return all
}

// Maps is what Plan.Maps says of the plan that the stamp was drawn for.
func (s Stamp) Maps() string {
	maps, _, _ := strings.Cut(s.Follows, ".")
	return maps
}

// rules are those of tables and of messages, in no order.
func (p *Plan) rules() [][]*rule {
	return slices.Concat(slices.Collect(maps.Values(p.tables)), slices.Collect(maps.Values(p.messages)))
}

// digest is of the mapping as far as it concerns one of its families, or of its entities.
func (m *MappingSpec) digest(u *KeyUse, entity *Template) string {
	target := []any{}
	if u != nil {
		target = append(target, u.Vars, u.ForEach)
	}
	if entity != nil {
		target = append(target, entity.String())
	}
	return digest(m.Schema, m.Table, m.Message, m.Insert, m.Update, m.Delete, m.Truncate, m.Columns, m.When, target)
}

func digest(parts ...any) string {
	text, err := json.Marshal(parts) // maps sorted by key
	if err != nil {
		panic("mapping: digest: " + err.Error()) // cannot happen for these types
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}

// Encode is the text that is published.
func (s *Stamps) Encode() (string, error) {
	text, err := json.Marshal(s)
	return string(text), err
}

// RevisionPrefix is how the text of a revision begins.
func RevisionPrefix(revision string) string { return `{"revision":"` + revision + `"` }

// ParseStamps reads what Encode has made.
func ParseStamps(text string) (*Stamps, error) {
	var s Stamps
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	if err := d.Decode(&s); err != nil {
		return nil, fmt.Errorf("the stamps cannot be read: %w", err)
	}
	if len(s.Revision) != StampLen {
		return nil, errors.New("the stamps have no revision")
	}
	for name, stamp := range s.Families {
		if len(stamp.Stamp) != StampLen || strings.Trim(stamp.Stamp, "0123456789abcdef") != "" {
			return nil, fmt.Errorf("the stamp of family %s is not %d hexadecimal digits", name, StampLen)
		}
	}
	return &s, nil
}
