package mapping

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/cdc-invalidator/cdc-invalidator/mapping/format"
)

const (
	mappingHint = "mappings: [{table: public.users, keys: [user]}]"
	// reservedMessages begin with this: the daemon sends them itself.
	reservedMessages = "cdc_invalidator."
	maxIdentifier    = 63 // bytes of a Postgres name
)

func (p *parser) parseMappings(root object) {
	e, ok := root.need("mappings", mappingHint)
	if !ok {
		return
	}
	items, ok := p.list(e, mappingHint)
	if !ok {
		return
	}
	used := map[string]bool{}
	for _, e := range items {
		if m := p.parseMapping(e, used); m != nil {
			p.file.Mappings = append(p.file.Mappings, m)
		}
	}
	families, ok := root.get("keys")
	if !ok {
		return
	}
	// A family may be of what readers alone can tell the rows of: with dependents, no mapping needs to name it.
	if slices.ContainsFunc(p.file.Mappings, func(m *MappingSpec) bool { return len(m.Dependents) > 0 }) {
		return
	}
	for i := 0; families.value.Kind == yaml.MappingNode && i < len(families.value.Content); i += 2 {
		n := families.value.Content[i]
		if _, known := p.families[n.Value]; known && !used[n.Value] {
			p.fault(n, join(families.path, n.Value), "name it in the keys of a mapping, give a mapping dependents if its readers say what it depends on, or remove it",
				"no mapping uses the family %s, so its keys would never be invalidated", clip(n.Value))
			used[n.Value] = true // said once
		}
	}
}

func (p *parser) parseMapping(e entry, used map[string]bool) *MappingSpec {
	o, ok := p.object(e.value, e.path, fields[format.Mapping]()...)
	if !ok {
		return nil
	}
	m := &MappingSpec{Line: e.value.Line, Col: e.value.Column}
	table, hasTable := o.get("table")
	message, hasMessage := o.get("message")
	switch {
	case hasTable && hasMessage:
		p.fault(message.key, message.path, "make two mappings of it", "a mapping is for a table or for a message, not for both")
	case hasTable:
		p.parseTable(table, m)
	case hasMessage:
		p.parseMessage(message, m)
	default:
		p.fault(e.value, e.path, "table: public.users", "table is missing")
	}
	isMessage := hasMessage && !hasTable
	if isMessage {
		for _, name := range []string{"actions", "columns", "when", "dependents"} {
			if e, found := o.get(name); found {
				p.fault(e.key, e.path, "leave it out", "%s is for tables; a message has no such thing", name)
			}
		}
	} else {
		p.parseTableFields(o, m)
	}
	_, hasDependents := o.get("dependents")
	keys, found := o.get("keys")
	switch {
	case found:
		p.parseUses(keys, m, isMessage, used)
	case !hasDependents || isMessage:
		p.fault(o.node, o.path, "the families whose keys become stale: keys: [user]", "keys is missing")
	}
	return m
}

func (p *parser) parseTable(e entry, m *MappingSpec) {
	const want = "schema and table, as the catalog has them: public.users"
	s, ok := p.text(e, want)
	if !ok {
		return
	}
	parts := strings.Split(s.text, ".")
	switch {
	case len(parts) == 1:
		p.fault(s.node, s.path, "write public."+strings.Trim(clip(s.node.Value), `"`)+" if that is its schema", "the table %s has no schema", s.quoted())
	case len(parts) > 2:
		p.fault(s.node, s.path, want+"; a table or schema with a dot in its own name cannot be mapped", "the table %s has more than one dot", s.quoted())
	case strings.Contains(s.text, `"`):
		p.fault(s.node, s.path, "leave the quotes of SQL out: names are taken as they stand; a table with a quote in its own name cannot be mapped", "the table %s has quotes in its name", s.quoted())
	case !isIdentifier(parts[0]) || !isIdentifier(parts[1]):
		p.fault(s.node, s.path, fmt.Sprintf("%s; a name has at most %d bytes, and one with control characters cannot be mapped", want, maxIdentifier), "%s cannot be a table", s.quoted())
	}
	if len(parts) == 2 {
		m.Schema, m.Table = parts[0], parts[1]
	}
}

// isIdentifier says whether it can be a name in Postgres; quoted, nearly
// everything can.
func isIdentifier(s string) bool {
	return s != "" && len(s) <= maxIdentifier && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

func (p *parser) parseMessage(e entry, m *MappingSpec) {
	const want = "the first text argument of pg_logical_emit_message: cart.changed"
	s, ok := p.text(e, want)
	if ok && strings.HasPrefix(s.text, reservedMessages) {
		p.fault(s.node, s.path, want, "messages that begin with %s are the daemon's own", reservedMessages)
	}
	m.Message = s.text
}

func (p *parser) parseTableFields(o object, m *MappingSpec) {
	m.Insert, m.Update, m.Delete, m.Truncate = true, true, true, true
	if e, ok := o.get("actions"); ok {
		actions := p.names(e, []string{"insert", "update", "delete", "truncate"}, "action")
		has := func(a string) bool { return slices.Contains(actions, a) }
		m.Insert, m.Update, m.Delete, m.Truncate = has("insert"), has("update"), has("delete"), has("truncate")
	}
	if e, ok := o.get("columns"); ok {
		m.Columns = p.names(e, nil, "column")
		if len(m.Columns) > 0 && !m.Update {
			p.fault(e.key, e.path, "leave columns out, or add update to actions", "columns says which updates count, but actions has no update")
		}
	}
	if e, ok := o.get("when"); ok {
		p.parseWhen(e, m)
	}
	if e, ok := o.get("dependents"); ok {
		if items, ok := p.list(e, `templates of what depends on the row: ["seller:{id}"]`); ok {
			for _, e := range items {
				if t := p.template(e); t != nil && p.checkEntity(e, t) {
					m.Dependents = append(m.Dependents, t)
				}
			}
		}
	}
}

// checkEntity sees that a template names an entity: readers give its kind and values.
func (p *parser) checkEntity(e entry, t *Template) bool {
	const want = `a name, then variables, with colons between: "seller:{id}"`
	kind, ok := entityKind(t)
	if !ok {
		p.fault(e.value, e.path, want, "%s is no entity", clip(t.String()))
		return false
	}
	if before := p.entities[kind]; before != 0 && before != len(t.vars) {
		p.fault(e.value, e.path, "give one of them another name", "%s has %d variables here and %d elsewhere", kind, len(t.vars), before)
		return false
	}
	for i, n := range t.normals {
		if before := p.entityNormals[kind]; before != nil && before[i] != n {
			p.fault(e.value, e.path, "give it the same normal form everywhere", "{%s} has another normal form here than elsewhere in %s", t.vars[i], kind)
			return false
		}
	}
	p.entities[kind], p.entityNormals[kind] = len(t.vars), t.normals
	return true
}

// names reads a list of different names; known are those that are allowed, nil if
// any column is.
func (p *parser) names(e entry, known []string, what string) []string {
	want := "a list of names"
	if known != nil {
		want = "any of " + strings.Join(known, ", ")
	}
	items, _ := p.list(e, want)
	var names []string
	for _, e := range items {
		s, ok := p.text(e, want)
		switch {
		case !ok:
			continue
		case known != nil && !slices.Contains(known, s.text):
			p.fault(s.node, s.path, suggest(s.node.Value, known), "there is no %s %s", what, s.quoted())
		case !isIdentifier(s.text):
			p.fault(s.node, s.path, "the column's name as the catalog has it", "%s cannot be a %s", s.quoted(), what)
		case slices.Contains(names, s.text):
			p.fault(s.node, s.path, "", "%s stands here twice", s.quoted())
		default:
			names = append(names, s.text)
		}
	}
	return names
}

func (p *parser) parseWhen(e entry, m *MappingSpec) {
	s, ok := p.text(e, "a CEL expression over old and new: new.status == 'live'")
	if !ok {
		return
	}
	m.When = s.text
	if _, err := compileWhen(s.text); err != nil {
		offset, message := celError(s.text, err)
		line, col := p.place(s, offset)
		p.add(Fault{Line: line, Col: col, Field: s.path, Message: s.why(message),
			Hint: "a CEL expression over the columns of old and new: new.status == 'live' || old.status == 'live'"})
	}
}

// celError takes the first fault out of CEL's report, which draws the source and
// an arrow below each.
func celError(expr string, err error) (offset int, message string) {
	message, _, _ = strings.Cut(err.Error(), "\n")
	var line, col int
	rest, isReport := strings.CutPrefix(message, "ERROR: <input>:")
	if !isReport {
		return 0, message
	}
	if n, _ := fmt.Sscanf(rest, "%d:%d:", &line, &col); n == 2 {
		_, rest, _ = strings.Cut(rest, ": ")
		if r := []rune(expr); line == 1 && col >= 1 && col <= len(r) {
			offset = len(string(r[:col-1]))
		}
	}
	return offset, rest
}

func (p *parser) parseUses(e entry, m *MappingSpec, isMessage bool, used map[string]bool) {
	items, ok := p.list(e, "the families whose keys become stale: [user, {product_page: {product_id: id}}]")
	if !ok {
		return
	}
	seen := map[string]bool{}
	for _, e := range items {
		u := p.parseUse(e, isMessage, used)
		if u == nil {
			continue
		}
		u.Line, u.Col = e.value.Line, e.value.Column
		id := fmt.Sprintf("%s %q %q", u.Family, u.Vars, u.ForEach)
		if seen[id] {
			p.fault(e.value, e.path, "remove one of them", "the same keys of %s are here twice", clip(u.Family))
		}
		seen[id] = true
		m.Keys = append(m.Keys, u)
	}
}

// parseUse reads "family" or {family: {variable: column}, for_each: SQL}.
func (p *parser) parseUse(e entry, isMessage bool, used map[string]bool) *KeyUse {
	const want = "a family, or {family: {variable: column}}"
	if e.value.Kind != yaml.MappingNode {
		s, ok := p.text(e, want)
		if !ok {
			return nil
		}
		used[s.text] = true
		k, ok := p.family(s.node, s.path, s.text, clip(s.node.Value))
		if !ok || k == nil {
			return nil
		}
		u := &KeyUse{Family: s.text, Vars: map[string]string{}}
		for _, v := range neededVars(k) {
			u.Vars[v] = v
		}
		return u
	}
	list, ok := p.entries(e.value, e.path, want)
	if !ok {
		return nil
	}
	u := &KeyUse{}
	var family, forEach, maxRows *entry
	for i, f := range list {
		switch {
		case f.name == "for_each":
			forEach = &list[i]
		case f.name == "max_rows":
			maxRows = &list[i]
		case family == nil:
			family = &list[i]
		default:
			used[f.name] = true
			p.fault(f.key, f.path, "begin another entry of the list with it", "a second family in one entry; the first is %s", clip(family.name))
		}
	}
	if forEach != nil {
		p.parseQuery(*forEach, u, isMessage)
	}
	if maxRows != nil {
		u.MaxRows, _ = p.integer(*maxRows, 1, 10_000_000)
		if forEach == nil {
			p.fault(maxRows.key, maxRows.path, "leave it out", "max_rows is the limit of a for_each query, and there is none")
		}
	}
	if family == nil {
		p.fault(e.value, e.path, want, "there is no family in this entry")
		return nil
	}
	used[family.name] = true
	u.Family = family.name
	k, ok := p.family(family.key, family.path, family.name, clip(family.name))
	if !ok {
		return nil
	}
	u.Vars = p.parseVars(*family, k)
	return u
}

// family finds a family; a nil KeySpec is one with faults of its own, of which
// nothing more can be said.
func (p *parser) family(n *yaml.Node, path, name, shown string) (k *KeySpec, ok bool) {
	if p.families == nil {
		return nil, true
	}
	if k, ok = p.families[name]; !ok {
		p.fault(n, path, suggest(shown, slices.Sorted(maps.Keys(p.families))), "there is no family %q in keys", shown)
	}
	return k, ok
}

// neededVars are the variables of what an invalidation of the family names: of the
// version key if there is one, for then the keys with data are left alone.
func neededVars(k *KeySpec) []string {
	if k.Version != nil {
		return k.Version.Vars()
	}
	return k.Template.Vars()
}

func (p *parser) parseVars(e entry, k *KeySpec) map[string]string {
	list, ok := p.entries(e.value, e.path, "the variables and their columns: {product_id: id}")
	if !ok {
		return nil
	}
	vars := map[string]string{}
	var needed []string
	if k != nil {
		needed = neededVars(k)
	}
	for _, e := range list {
		if k != nil && !slices.Contains(needed, e.name) {
			switch {
			case k.Version != nil && slices.Contains(k.Template.Vars(), e.name):
				p.fault(e.key, e.path, "leave it out", "the version key of %s has no variable {%s}; the keys with data need none from here", k.Name, e.name)
			default:
				p.fault(e.key, e.path, suggest(e.name, needed), "%s has no variable {%s}", k.Name, clip(e.name))
			}
		}
		const want = "a column's name as the catalog has it"
		if s, ok := p.text(e, want); ok {
			if !isIdentifier(s.text) {
				p.fault(s.node, s.path, want, "%s cannot be a column", s.quoted())
			}
			vars[e.name] = s.text
		} else {
			vars[e.name] = ""
		}
	}
	for _, v := range needed {
		if _, ok := vars[v]; !ok {
			p.fault(e.key, e.path, fmt.Sprintf("add %s: column", v), "the variable {%s} of %s is missing", v, k.Name)
		}
	}
	return vars
}

func (p *parser) parseQuery(e entry, u *KeyUse, isMessage bool) {
	const want = "a query with columns of the changed row in braces: SELECT id AS product_id FROM products WHERE seller_id = {id}"
	if isMessage {
		p.fault(e.key, e.path, "put what the keys need into the message", "for_each needs a changed row; a message has none")
		return
	}
	s, ok := p.text(e, want)
	if !ok {
		return
	}
	u.ForEach = s.text
	if _, err := parseForEach(s.text); err != nil {
		p.fault(s.node, s.path, want, "%s", s.why(err.Error()))
	}
}
