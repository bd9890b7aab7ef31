package mapping

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/cdc-invalidator/cdc-invalidator/mapping/format"
)

const (
	classHint  = "classes: {critical: {staleness: 1s}}"
	familyHint = `user: {key: "user:{id}", class: critical}`
	rateHint   = "a number and a unit: 2000/s, 600/m or 1000/h"
)

func (p *parser) parseClasses(root object) {
	e, ok := root.need("classes", classHint)
	if !ok {
		return
	}
	list, ok := p.entries(e.value, e.path, classHint)
	if !ok {
		return
	}
	if len(list) == 0 {
		p.fault(e.value, e.path, classHint, "there is no class")
	}
	p.classes = map[string]*Class{}
	for _, e := range list {
		p.classes[e.name] = nil
		if !isName(e.name) {
			p.fault(e.key, e.path, nameHint, "%q cannot be the name of a class", clip(e.name))
		}
		if c := p.parseClass(e); c != nil {
			p.classes[e.name] = c
			p.file.Classes = append(p.file.Classes, c)
		}
	}
}

const nameHint = "letters, digits and _, not starting with a digit"

func (p *parser) parseClass(e entry) *Class {
	o, ok := p.object(e.value, e.path, fields[format.Class]()...)
	if !ok {
		return nil
	}
	c := &Class{Name: e.name}
	if e, found := o.need("staleness", "how old a value may be: staleness: 1s"); found {
		if c.Staleness, ok = p.duration(e, true); ok && c.Staleness < minHeartbeat {
			p.fault(e.value, e.path, fmt.Sprintf("%s is the least: source.heartbeat, which proves it, is no shorter", minHeartbeat),
				"a staleness of %s can never be proved, so that no value would be served from the cache", c.Staleness)
		}
	} else {
		ok = false
	}
	if e, found := o.get("linger"); found {
		if linger, fine := p.duration(e, false); fine {
			c.Linger = linger
			if ok && linger >= c.Staleness {
				p.fault(e.value, e.path, "less than "+c.Staleness.String(), "waiting %s for more invalidations uses up the staleness of %s", linger, c.Staleness)
			}
		}
	}
	if e, found := o.get("max_rate"); found {
		if s, fine := p.scalar(e, rateHint, "!!str", "!!int", "!!float"); fine {
			if c.MaxRate, fine = parseRate(s.text); !fine {
				p.fault(s.node, s.path, rateHint, "%s is not a rate", s.quoted())
			}
		}
	}
	if e, found := o.get("fail_safe"); found {
		c.FailSafe, _ = p.duration(e, false)
	}
	c.OnDoubt = p.choice(o, "on_doubt", "bypass", "serve")
	if !ok {
		return nil
	}
	return c
}

// parseRate reads 2000/s as what there is in a second.
func parseRate(s string) (float64, bool) {
	number, unit, _ := strings.Cut(s, "/")
	per := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}[strings.TrimSpace(unit)]
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || per == 0 || !(n > 0) || math.IsInf(n, 0) {
		return 0, false
	}
	return n / per.Seconds(), true
}

func (p *parser) parseKeys(root object) {
	e, ok := root.need("keys", "keys: {"+familyHint+"}")
	if !ok {
		return
	}
	list, ok := p.entries(e.value, e.path, familyHint)
	if !ok {
		return
	}
	if len(list) == 0 {
		p.fault(e.value, e.path, familyHint, "there is no family")
	}
	p.families = map[string]*KeySpec{}
	c := &collisions{p: p, skeletons: map[string]string{}}
	for _, e := range list {
		p.families[e.name] = nil
		switch {
		case !isName(e.name):
			p.fault(e.key, e.path, nameHint, "%q cannot be the name of a family", clip(e.name))
		case e.name == "for_each" || e.name == "max_rows":
			p.fault(e.key, e.path, "choose another name", "%s is a word of the format and cannot be the name of a family", e.name)
		}
		if k := p.parseFamily(e, c); k != nil {
			p.families[e.name] = k
			p.file.Keys = append(p.file.Keys, k)
		}
	}
	c.check()
}

func (p *parser) parseFamily(e entry, c *collisions) *KeySpec {
	o, ok := p.object(e.value, e.path, fields[format.Family]()...)
	if !ok {
		return nil
	}
	k := &KeySpec{Name: e.name}
	key, ok := o.need("key", `the template of the key: key: "`+clip(e.name)+`:{id}"`)
	if ok {
		k.Template = p.template(key)
	}
	version, versioned := o.get("version")
	if versioned {
		k.Version = p.template(version)
	}
	p.parseFamilyClass(o, k)
	if e, ok := o.get("ttl"); ok {
		k.TTL, _ = p.duration(e, true)
	}
	p.parseNegativeTTL(o, k)
	p.parseFamilySoft(o, k, versioned)

	tenant, hasTenant := o.get("tenant")
	if hasTenant {
		s, fine := p.text(tenant, "the name of a variable of the key")
		if k.Tenant = s.text; !fine {
			return nil
		}
	}
	if k.Template == nil || versioned && k.Version == nil {
		return nil
	}
	// A version key without variables is moved by its name; otherwise the values that
	// were cached without a version are looked for.
	c.add(e, key, k, k.Template, false, !versioned || len(k.Version.vars) > 0)
	if versioned {
		c.add(e, version, k, k.Version, true, true)
	}
	fine := p.checkVersion(key, version, k)
	if hasTenant && !p.checkTenant(tenant, k) || !fine {
		return nil
	}
	return k
}

func (p *parser) parseFamilyClass(o object, k *KeySpec) {
	e, ok := o.need("class", "one of classes")
	if !ok {
		return
	}
	s, ok := p.text(e, "one of classes")
	if !ok || p.classes == nil {
		return
	}
	if k.Class, ok = p.classes[s.text]; !ok {
		p.fault(s.node, s.path, suggest(s.node.Value, p.classNames()), "there is no class %s", s.quoted())
	}
}

func (p *parser) classNames() []string {
	var names []string
	for name := range p.classes {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// parseNegativeTTL comes after the ttl, which bounds it.
func (p *parser) parseNegativeTTL(o object, k *KeySpec) {
	const usual = time.Minute
	k.NegativeTTL = usual
	if k.TTL > 0 {
		k.NegativeTTL = min(k.TTL, usual)
	}
	if e, ok := o.get("negative_ttl"); ok {
		k.NegativeTTL, _ = p.duration(e, false)
	}
}

// parseFamilySoft comes after the class, whose budget bounds it.
func (p *parser) parseFamilySoft(o object, k *KeySpec, versioned bool) {
	k.OnInvalidate = p.choice(o, "on_invalidate", "delete", "soft")
	soft := k.OnInvalidate == "soft"
	on, _ := o.get("on_invalidate")
	if soft && versioned {
		p.fault(on.value, on.path, "leave on_invalidate out: what was cached under an older version is not looked at any more", "a family with a version cannot be soft")
	}
	e, ok := o.get("stale_for")
	switch {
	case ok && !soft:
		p.fault(e.key, e.path, "add on_invalidate: soft, or leave stale_for out", "stale_for means nothing for keys that are deleted")
		return
	case !ok && soft:
		p.fault(on.value, on.path, "stale_for: 5s", "on_invalidate: soft needs stale_for: how long the old value may still be served")
	}
	if !ok {
		return
	}
	k.StaleFor, ok = p.duration(e, true)
	if !ok || k.Class == nil {
		return
	}
	switch c := k.Class; {
	case k.StaleFor >= c.Staleness:
		p.fault(e.value, e.path, "less than "+c.Staleness.String(), "a value that is served for %s after its change is older than class %s allows", k.StaleFor, c.Name)
	case k.StaleFor <= c.Linger:
		p.fault(e.value, e.path, "more than "+c.Linger.String(), "it is over before the invalidation is sent: class %s waits %s with it", c.Name, c.Linger)
	}
}

// choice reads a field that is one of a few words, the first when it is not there.
func (p *parser) choice(o object, field string, words ...string) string {
	e, ok := o.get(field)
	if !ok {
		return words[0]
	}
	want := strings.Join(words, " or ")
	s, ok := p.text(e, want)
	if ok && !slices.Contains(words, s.text) {
		p.fault(s.node, s.path, want, "%s is none of the choices for %s", s.quoted(), field)
		ok = false
	}
	if !ok {
		return words[0]
	}
	return s.text
}

// template reads a template; nil after a fault.
func (p *parser) template(e entry) *Template {
	s, ok := p.text(e, `a template: "user:{id}"`)
	if !ok {
		return nil
	}
	t, err := ParseTemplate(s.text)
	if err == nil {
		return t
	}
	f := Fault{Field: s.path, Message: s.why(err.Error())}
	f.Line, f.Col = p.place(s, 0)
	if e := (*TemplateError)(nil); errors.As(err, &e) {
		f.Line, f.Col = p.place(s, e.Offset)
		f.Hint = e.Hint
	}
	p.add(f)
	return nil
}

func (p *parser) checkVersion(key, version entry, k *KeySpec) bool {
	inKey := slices.Contains(k.Template.Vars(), VersionVar)
	if k.Version == nil {
		if inKey {
			p.fault(key.value, key.path, `give the family a version key as well: version: "..."; or use another name`, "{version} is reserved for families with a version")
		}
		return !inKey
	}
	ok := inKey
	if !inKey {
		p.fault(key.value, key.path, "the version must be a part of the key: put {version} into it", "the family has a version, but {version} is not in its key")
	}
	if k.Template.Normal(VersionVar) != NormalNone {
		p.fault(key.value, key.path, "write {version}", "the version is taken as it is")
		ok = false
	}
	for _, v := range k.Version.Vars() {
		switch {
		case slices.Contains(k.Template.Vars(), v) && k.Template.Normal(v) != k.Version.Normal(v):
			p.fault(version.value, version.path, "give it the same normal form in both", "variable {%s} has one normal form in the key and another one in the version key", clip(v))
			ok = false
		case v == VersionVar:
			p.fault(version.value, version.path, "leave it out: this is the key that the version is kept in", "{version} cannot be in the version key")
			ok = false
		case !slices.Contains(k.Template.Vars(), v):
			p.fault(version.value, version.path, suggest(v, dataVars(k.Template)), "variable {%s} of the version key is not in the key, so a reader of the key would not know it", clip(v))
			ok = false
		}
	}
	return ok
}

func (p *parser) checkTenant(e entry, k *KeySpec) bool {
	shown := clip(e.value.Value)
	switch {
	case k.Tenant == VersionVar:
		p.fault(e.value, e.path, suggest("", dataVars(k.Template)), "the version cannot be the tenant")
	case !slices.Contains(k.Template.Vars(), k.Tenant):
		p.fault(e.value, e.path, suggest(shown, dataVars(k.Template)), "the tenant %s is not a variable of the key, so keys of several tenants would be one", shown)
	case k.Version != nil && !slices.Contains(k.Version.Vars(), k.Tenant):
		p.fault(e.value, e.path, fmt.Sprintf("put {%s} into the version key", shown), "the tenant %s is not a variable of the version key, so one tenant would invalidate the others", shown)
	default:
		return true
	}
	return false
}

// dataVars are a template's variables but {version}.
func dataVars(t *Template) []string {
	return slices.DeleteFunc(slices.Clone(t.Vars()), func(v string) bool { return v == VersionVar })
}

// collisions finds families that share keys, and families whose removal as a whole
// would take with it what is not theirs.
type collisions struct {
	p         *parser
	skeletons map[string]string // of a template -> whose it is
	templates []placedTemplate
}

type placedTemplate struct {
	node    *yaml.Node
	path    string
	family  string
	tenant  string
	tmpl    *Template
	version bool
	scanned bool // removing the whole family looks for these keys
}

func (c *collisions) add(family, e entry, k *KeySpec, t *Template, version, scanned bool) {
	skeleton := strings.Join(t.lits, "\x00")
	if other, taken := c.skeletons[skeleton]; taken {
		c.p.fault(e.value, e.path, "give each its own fixed part", "the same keys belong to %s: the templates differ in the names of variables at most", other)
		return
	}
	c.skeletons[skeleton] = e.path
	c.templates = append(c.templates, placedTemplate{e.value, e.path, family.name, k.Tenant, t, version, scanned})
}

// check compares what a whole-family removal scans for with the keys that must
// survive it: version keys (without one, a reader would go back to entries of long
// ago) and the daemon's own. And it looks for keys that two families share.
func (c *collisions) check() {
	control := controlKeys(c.p.file.Redis.Prefix)
	for i, t := range c.templates {
		if t.scanned && c.reachesTooFar(t, control) {
			continue
		}
		for _, other := range c.templates[:i] {
			if why := t.shares(other); why != "" {
				c.p.fault(t.node, t.path, fmt.Sprintf("give it a fixed part of its own, such as %q", clip(t.family)+":"), why, other.path)
				break
			}
		}
	}
}

func (c *collisions) reachesTooFar(t placedTemplate, control []token) bool {
	glob := tokens(t.tmpl, absentVersion(), true)
	if meet(glob, control) {
		t.reaches(c.p, "the daemon's own keys under redis.prefix")
		return true
	}
	for _, v := range c.templates {
		if v.version && !t.version && meet(glob, tokens(v.tmpl, nil, false)) {
			t.reaches(c.p, "version keys of "+v.family)
			return true
		}
	}
	return false
}

// shares says what is wrong with a key that is of both templates. Families of one
// tenant may overlap, as user:{id} and user:all do: at worst a key goes that could
// have stayed. But no key is of two tenants, and none is data and a version.
func (t placedTemplate) shares(o placedTemplate) string {
	mixed := t.version != o.version
	if !mixed && (t.tenant == "" && o.tenant == "" || t.sameTenants(o)) {
		return ""
	}
	a, b := t.tmpl.lits[0], o.tmpl.lits[0]
	if n := min(len(a), len(b)); a[:n] != b[:n] || !meet(tokens(t.tmpl, nil, false), tokens(o.tmpl, nil, false)) {
		return ""
	}
	if mixed {
		return "a key of this template can be one of %s, and one of the two is for versions"
	}
	return "a key of this template can be one of %s, where another tenant's stands"
}

// sameTenants says whether a key that is of both templates is of the same tenant in
// both: all is the same up to what follows the tenant.
func (t placedTemplate) sameTenants(o placedTemplate) bool {
	i := slices.Index(t.tmpl.vars, t.tenant)
	if i < 0 || i != slices.Index(o.tmpl.vars, o.tenant) || !slices.Equal(t.tmpl.lits[:i+1], o.tmpl.lits[:i+1]) {
		return false
	}
	a, b := t.tmpl.lits[i+1], o.tmpl.lits[i+1]
	if n := separator(a); n > 0 {
		return strings.HasPrefix(b, a[:n])
	}
	return a == b && len(t.tmpl.vars) == i+1 && len(o.tmpl.vars) == i+1
}

func (t placedTemplate) reaches(p *parser, what string) {
	pattern := "its pattern"
	if t.node.Value == t.tmpl.String() { // not from a variable
		pattern = fmt.Sprintf("the pattern %q", clip(t.tmpl.Pattern(absentVersion())))
	}
	p.fault(t.node, t.path, fmt.Sprintf("begin the template with a fixed part of its own, such as %q", clip(t.family)+":"),
		"removing the whole family scans for %s, which matches %s", pattern, what)
}

// controlKeys are the daemon's own, of any slot.
func controlKeys(prefix string) []token {
	var list []token
	for _, b := range []byte(prefix + "source:{") {
		list = append(list, token{lit: b})
	}
	return append(list, token{value: true}, token{lit: '}'})
}
