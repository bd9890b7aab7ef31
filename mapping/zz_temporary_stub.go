// Package mapping: TEMPORARY STUB so that the other packages compile. The owner of mapping deletes this file.
package mapping

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

type Secret struct{ v string }

func (s Secret) Reveal() string { return s.v }
func (s Secret) String() string { return "(redacted)" }

type Fault struct {
	File                          string
	Line, Col                     int
	Field, Message, Hint, Excerpt string
}
type Faults []Fault

func (f Faults) Error() string { return fmt.Sprint([]Fault(f)) }

type Source struct {
	URL    Secret
	Region string
	Slot   struct {
		Name              string
		CreateIfNotExists bool
	}
	Publication struct {
		Name              string
		CreateIfNotExists bool
	}
	Heartbeat time.Duration
}
type Redis struct {
	URL          Secret
	Prefix       string
	Dedicated    bool
	ReplayWindow time.Duration
	ScanRate     int
}
type Class struct {
	Name              string
	Staleness, Linger time.Duration
	MaxRate           float64
}
type rawMapping struct {
	Table string   `yaml:"table"`
	Keys  []string `yaml:"keys"`
}
type File struct {
	Version  int
	Source   Source
	Redis    Redis
	Classes  []*Class
	keys     map[string]string
	mappings []rawMapping
}

func (f *File) NotInForce() Faults { return nil }

type Env struct {
	LookupEnv func(string) (string, bool)
	ReadFile  func(string) ([]byte, error)
}

func Load(path string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var raw struct {
		Source struct {
			URL         string        `yaml:"url"`
			Heartbeat   time.Duration `yaml:"heartbeat"`
			Slot        struct{ Name string }
			Publication struct{ Name string }
		}
		Redis    struct{ URL string }
		Keys     map[string]struct{ Key string }
		Mappings []rawMapping
	}
	if err := yaml.Unmarshal(data, &raw); err != nil {
		return nil, err
	}
	f := &File{keys: map[string]string{}, mappings: raw.Mappings}
	f.Source.URL = Secret{os.ExpandEnv(raw.Source.URL)}
	f.Source.Slot.Name, f.Source.Slot.CreateIfNotExists = raw.Source.Slot.Name, true
	f.Source.Publication.Name, f.Source.Publication.CreateIfNotExists = raw.Source.Publication.Name, true
	f.Source.Heartbeat = 300 * time.Millisecond
	f.Redis.URL = Secret{os.ExpandEnv(raw.Redis.URL)}
	f.Redis.Prefix = "inv:"
	f.Redis.ReplayWindow = 30 * time.Second
	f.Redis.ScanRate = 20000
	for k, v := range raw.Keys {
		f.keys[k] = v.Key
	}
	return f, nil
}

type Family struct {
	ID        int
	Name      string
	Class     *Class
	TenantVar string
	TTL       time.Duration
	Versioned bool
	prefix    string
}

func (f *Family) Pattern(tenant []byte) string               { return f.prefix + "*" }
func (f *Family) VersionKey(tenant []byte) ([]byte, bool)    { return nil, false }
func (f *Family) Key(vars map[string]string) (string, error) { return f.prefix + vars["id"], nil }

type Plan struct {
	fams   map[string]*Family
	tables map[string][]*Family
}

func Compile(f *File) (*Plan, error) {
	p := &Plan{fams: map[string]*Family{}, tables: map[string][]*Family{}}
	for n, k := range f.keys {
		p.fams[n] = &Family{ID: len(p.fams), Name: n, Class: &Class{Name: "critical", Staleness: time.Second}, prefix: k[:strings.IndexByte(k, '{')]}
	}
	for _, m := range f.mappings {
		for _, k := range m.Keys {
			p.tables[m.Table] = append(p.tables[m.Table], p.fams[k])
		}
	}
	return p, nil
}

func (p *Plan) Families() (out []*Family) {
	for _, f := range p.fams {
		out = append(out, f)
	}
	return out
}

type TableUse struct {
	Schema, Table       string
	Columns, OldColumns []string
	Truncate            bool
	Families            []*Family
}

func (p *Plan) Tables() (out []TableUse) {
	for t, f := range p.tables {
		s, n, _ := strings.Cut(t, ".")
		out = append(out, TableUse{Schema: s, Table: n, Columns: []string{"id"}, OldColumns: []string{"id"}, Truncate: true, Families: f})
	}
	return out
}

type Problem struct{ Message string }

func (p Problem) String() string { return p.Message }

type Table struct{ fams []*Family }

func (p *Plan) Bind(rel *decoder.Relation) *Table {
	if f := p.tables[rel.Namespace+"."+rel.Name]; f != nil {
		return &Table{f}
	}
	return nil
}
func (t *Table) Problems() []Problem { return nil }
func (t *Table) Map(ch *decoder.Change, out *Output) {
	for _, f := range t.fams {
		var last []byte
		if len(ch.Old) > 0 {
			last = out.key(f, ch.Old[0].Data)
		}
		if len(ch.New) > 0 && !bytes.Equal(last, ch.New[0].Data) {
			out.key(f, ch.New[0].Data)
		}
	}
}
func (t *Table) Truncate(out *Output) {
	for _, f := range t.fams {
		out.Invalidations = append(out.Invalidations, Invalidation{Op: OpPurge, Family: f})
	}
}
func (t *Table) Invalidate(out *Output)                     { t.Truncate(out) }
func (p *Plan) Message(prefix, content []byte, out *Output) {}
func (p *Plan) InvalidateTable(schema, table string, out *Output) {
	(&Table{p.tables[schema+"."+table]}).Truncate(out)
}

type Op uint8

const (
	OpDelete Op = iota + 1
	OpAdvance
	OpPurge
	OpLookup
)

type Reason int

func (r Reason) String() string { return "x" }

type Invalidation struct {
	Op          Op
	Family      *Family
	Tenant, Key []byte
	Lookup      *LookupCall
}
type Output struct {
	Invalidations []Invalidation
	Widened       [4]uint32
	buf           []byte
}

func (o *Output) Reset() { o.Invalidations, o.buf = o.Invalidations[:0], o.buf[:0] }
func (o *Output) key(f *Family, id []byte) []byte {
	at := len(o.buf)
	o.buf = append(o.buf, f.prefix...)
	o.buf = append(o.buf, id...)
	o.Invalidations = append(o.Invalidations, Invalidation{Op: OpDelete, Family: f, Key: o.buf[at:]})
	return o.buf[at+len(f.prefix):]
}

type LookupCall struct{}

func (c *LookupCall) ID() string                                                  { return "" }
func (c *LookupCall) SQL() string                                                 { return "" }
func (c *LookupCall) Params() [][]byte                                            { return nil }
func (c *LookupCall) MaxRows() int                                                { return 0 }
func (c *LookupCall) Widen(out *Output)                                           {}
func (c *LookupCall) Render(columns []string, rows [][][]byte, out *Output) error { return nil }
