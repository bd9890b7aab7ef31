package mapping

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
	"github.com/cdc-invalidator/cdc-invalidator/mapping/format"
)

// TestFile is a file of mapping tests: changes, and exactly what each makes stale.
type TestFile struct {
	Name     string
	Mappings string // path of the mappings file as the test file has it
	Plan     *Plan
	Cases    []*TestCase
}

// TestCase is one change of a test file.
type TestCase struct {
	Name      string
	Line, Col int

	table    *TableUse // nil for a message
	truncate bool
	rel      *decoder.Relation
	change   *decoder.Change // nil for truncate
	message  string
	content  []byte
	want     Staleness
	lookups  []*stubbedLookup
}

// Subject says what the case changes: "update of public.users".
func (c *TestCase) Subject() string {
	switch {
	case c.table == nil:
		return "message " + c.message
	case c.truncate:
		return "truncate of " + c.table.Schema + "." + c.table.Table
	}
	action := map[decoder.Action]string{decoder.Insert: "insert", decoder.Update: "update", decoder.Delete: "delete"}[c.change.Action]
	return action + " of " + c.table.Schema + "." + c.table.Table
}

// stubbedLookup stands for the source's answer to a for_each query.
type stubbedLookup struct {
	family  string
	with    map[string]any // nil for any
	columns []string
	rows    [][][]byte
	refused bool
}

// ParseTests reads a test file and checks it against the mappings that it names,
// which load gets by the path in the file. An error is of type Faults.
func ParseTests(name string, data []byte, load func(path string) (*Plan, error)) (*TestFile, error) {
	t := &testParser{file: &TestFile{Name: name}, identity: map[string][]string{}, parser: newParser(name)}
	t.literal = true
	var mappings Faults // of the mappings file
	if root := t.load(data); root != nil {
		t.root = root
		mappings = t.parse(root, load)
	}
	if faults := append(t.finish(t.faults), mappings...); len(faults) > 0 {
		return nil, faults
	}
	return t.file, nil
}

type testParser struct {
	*parser
	file     *TestFile
	identity map[string][]string // of tables; nil for full
}

func (t *testParser) parse(root *yaml.Node, load func(path string) (*Plan, error)) (mappings Faults) {
	o, ok := t.object(root, "", fields[format.Tests]()...)
	if !ok {
		return nil
	}
	if e, ok := o.need("mappings", "the file that is tested: mappings: mappings.yaml"); ok {
		if s, ok := t.text(e, "the path of a mappings file, relative to this file"); ok {
			t.file.Mappings = s.text
			plan, err := load(s.text)
			switch {
			case errors.As(err, &mappings):
			case err != nil:
				t.fault(s.node, s.path, "the path is relative to this file", "%v", err)
			default:
				t.file.Plan = plan
			}
		}
	}
	if e, ok := o.get("identity"); ok {
		list, _ := t.entries(e.value, e.path, "identity: {public.users: [id]}")
		for _, e := range list {
			t.tableUse(e.key, e.path, e.name)
			t.identity[e.name] = t.parseIdentity(e)
		}
	}
	e, ok := o.need("cases", "cases: [{name: ..., table: public.users, action: delete, old: {id: 1}, keys: [\"user:1\"]}]")
	if !ok {
		return mappings
	}
	items, _ := t.list(e, "a list of cases")
	seen := map[string]int{}
	for _, e := range items {
		c := t.parseCase(e)
		if c == nil {
			continue
		}
		if line, twice := seen[c.Name]; twice && c.Name != "" {
			t.fault(e.value, e.path, "a name of its own tells which case has failed", "the name %q is that of the case in line %d already", clip(c.Name), line)
		}
		seen[c.Name] = c.Line
		t.file.Cases = append(t.file.Cases, c)
	}
	return mappings
}

// parseIdentity reads full, which is nil, or a list of columns.
func (t *testParser) parseIdentity(e entry) []string {
	const want = "full, or the list of the columns of the replica identity"
	if e.value.Kind == yaml.SequenceNode {
		return t.names(e, nil, "column")
	}
	if s, ok := t.text(e, want); ok && s.text != "full" {
		t.fault(s.node, s.path, want, "%s is no replica identity", s.quoted())
	}
	return nil
}

// tableUse finds the table among the mapped ones; nil after a fault, and without
// a plan.
func (t *testParser) tableUse(n *yaml.Node, path, name string) *TableUse {
	if t.file.Plan == nil {
		return nil
	}
	uses := t.file.Plan.Tables()
	var known []string
	for i, u := range uses {
		if u.Schema+"."+u.Table == name {
			return &uses[i]
		}
		known = append(known, u.Schema+"."+u.Table)
	}
	t.fault(n, path, suggest(name, known), "no mapping of %s is for the table %q", t.file.Mappings, clip(name))
	return nil
}

func (t *testParser) parseCase(e entry) *TestCase {
	o, ok := t.object(e.value, e.path, fields[format.Case]()...)
	if !ok {
		return nil
	}
	c := &TestCase{Line: e.value.Line, Col: e.value.Column}
	if e, ok := o.need("name", "name: what the case shows"); ok {
		s, _ := t.text(e, "what the case shows, in a few words")
		c.Name = s.text
	}
	table, hasTable := o.get("table")
	message, hasMessage := o.get("message")
	switch {
	case hasTable && hasMessage:
		t.fault(message.key, message.path, "make two cases of it", "a case is for a table or for a message, not for both")
	case hasTable:
		t.parseTableCase(o, table, c)
	case hasMessage:
		t.parseMessageCase(o, message, c)
	default:
		t.fault(e.value, e.path, "table: public.users", "table is missing")
	}
	t.parseExpected(o, c)
	return c
}

// refuse says of fields that they do not go with the case.
func (t *testParser) refuse(o object, why string, names ...string) {
	for _, name := range names {
		if e, found := o.get(name); found {
			t.fault(e.key, e.path, "leave it out", "%s: %s", name, why)
		}
	}
}

func (t *testParser) parseTableCase(o object, e entry, c *TestCase) {
	t.refuse(o, "only a message has content", "content")
	s, ok := t.text(e, "schema and table: public.users")
	if ok {
		c.table = t.tableUse(s.node, s.path, s.text)
	}
	x := Example{Identity: t.identity[s.text]}
	if e, ok := o.get("identity"); ok {
		x.Identity = t.parseIdentity(e)
	}
	action := ""
	actions := []string{"insert", "update", "delete", "truncate"}
	if e, ok := o.need("action", "one of "+strings.Join(actions, ", ")); ok {
		if s, ok := t.text(e, "one of "+strings.Join(actions, ", ")); ok {
			if action = s.text; !slices.Contains(actions, action) {
				t.fault(s.node, s.path, suggest(action, actions), "there is no action %s", s.quoted())
				return
			}
		}
	}
	row := func(name string, has bool) (map[string]any, bool) {
		if !has {
			t.refuse(o, "there is no such row in an action "+action, name)
			return nil, true
		}
		e, ok := o.need(name, name+": {id: 1}")
		if !ok {
			return nil, false
		}
		return t.row(e)
	}
	var oldOK, newOK bool
	x.Old, oldOK = row("old", action == "update" || action == "delete")
	x.New, newOK = row("new", action == "update" || action == "insert")
	switch action {
	case "truncate":
		c.truncate = true
	case "insert":
		x.Action = decoder.Insert
	case "update":
		x.Action = decoder.Update
	case "delete":
		x.Action = decoder.Delete
	}
	if c.table == nil || action == "" || !oldOK || !newOK {
		return
	}
	if c.truncate {
		c.rel = &decoder.Relation{ID: 1, Namespace: c.table.Schema, Name: c.table.Table}
		return
	}
	x.Schema, x.Table = c.table.Schema, c.table.Table
	var err error
	if c.rel, c.change, err = x.Change(c.table.Columns); err != nil {
		n := o.node
		if lack := (*ExampleError)(nil); errors.As(err, &lack) {
			f, _ := o.get(lack.Image)
			n = f.value
		}
		t.fault(n, o.path, "a row of a test has every column that its mappings use, and those of the replica identity", "%v", err)
	}
}

func (t *testParser) parseMessageCase(o object, e entry, c *TestCase) {
	t.refuse(o, "a message has no such thing", "action", "identity", "old", "new", "lookups")
	s, ok := t.text(e, "the prefix of a message: cart.changed")
	c.message = s.text
	if ok && t.file.Plan != nil && len(t.file.Plan.messages[s.text]) == 0 {
		t.fault(s.node, s.path, suggest(s.text, slices.Sorted(maps.Keys(t.file.Plan.messages))), "no mapping of %s is for the message %s", t.file.Mappings, s.quoted())
	}
	content, ok := o.need("content", "content: {cart_id: 7}")
	if !ok {
		return
	}
	if content.value.Kind == yaml.ScalarNode {
		if s, ok := t.scalar(content, "a mapping, or text in quotes", "!!str"); ok {
			c.content = []byte(s.text)
		}
		return
	}
	if v, ok := t.value(content.value, content.path); ok {
		c.content, _ = json.Marshal(v) // it was decoded from text, so it can be encoded
	}
}

func (t *testParser) parseExpected(o object, c *TestCase) {
	found := false
	strs := func(name, want string) (set []string) {
		e, ok := o.get(name)
		if !ok {
			return nil
		}
		found = found || name != "widened"
		return t.strings(e, want)
	}
	c.want.Keys = strs("keys", `the keys that are deleted: ["user:7"], or [] for none`)
	c.want.Versions = strs("versions", `the version keys that are moved: ["t:7:search"]`)
	c.want.Dependents = strs("dependents", `the entities whose dependents become stale: ["seller:7"]`)
	c.want.Widened = strs("widened", "reasons: "+strings.Join(reasonNames[:], ", "))
	for _, reason := range c.want.Widened {
		if e, _ := o.get("widened"); !slices.Contains(reasonNames[:], reason) {
			t.fault(e.value, e.path, suggest(reason, reasonNames[:]), "there is no reason %q", clip(reason))
		}
	}
	if e, ok := o.get("purges"); ok {
		found = true
		c.want.Purges = t.parsePurges(e)
	}
	if !found {
		t.fault(o.node, o.path, `keys: ["user:7"], or keys: [] if nothing becomes stale`, "what is expected is missing: keys, versions, dependents or purges")
	}
	if e, ok := o.get("lookups"); ok {
		items, _ := t.list(e, "lookups: [{family: page, with: {id: 3}, rows: [{page_id: 1}]}]")
		for _, e := range items {
			if l := t.parseLookup(e); l != nil {
				c.lookups = append(c.lookups, l)
			}
		}
	}
}

// items are the entries of a list that may be empty.
func (t *testParser) items(e entry, want string) []entry {
	if e.value.Kind == yaml.SequenceNode && len(e.value.Content) == 0 {
		return nil
	}
	items, _ := t.list(e, want)
	return items
}

func (t *testParser) strings(e entry, want string) []string {
	list := []string{}
	for _, e := range t.items(e, want) {
		s, ok := t.text(e, want)
		switch {
		case !ok:
		case slices.Contains(list, s.text):
			t.fault(s.node, s.path, "", "%s stands here twice", s.quoted())
		default:
			list = append(list, s.text)
		}
	}
	return list
}

// parsePurges reads family, or {family: tenant}.
func (t *testParser) parsePurges(e entry) []string {
	const want = "a family, or {family: tenant}"
	purges := []string{}
	for _, e := range t.items(e, "families that go as a whole: [stock, {search: 7}]") {
		name, n, purge := "", e.value, ""
		if e.value.Kind == yaml.MappingNode {
			list, ok := t.entries(e.value, e.path, want)
			if !ok || len(list) != 1 {
				t.fault(e.value, e.path, want, "this is not one family with its tenant")
				continue
			}
			name, n = list[0].name, list[0].key
			if v, ok := t.value(list[0].value, list[0].path); ok {
				data, null := exampleText(v)
				tenant := value{data: data, null: null}
				if f, ok := t.family(name); ok {
					encoded, ok := f.appendTenant([]byte{}, tenant)
					if !ok {
						t.fault(list[0].value, e.path, want, "%v", ErrKeyTooLong)
						continue
					}
					purge = purgeText(name, encoded)
				} else {
					purge = purgeText(name, tenant.append([]byte{}, NormalNone)) // a fault follows
				}
			}
		} else if s, ok := t.text(e, want); ok {
			name, purge = s.text, purgeText(s.text, nil)
		}
		if name != "" && t.known(n, e.path, name) && purge != "" {
			purges = append(purges, purge)
		}
	}
	return purges
}

func (t *testParser) family(name string) (*Family, bool) {
	if t.file.Plan == nil {
		return nil, false
	}
	return t.file.Plan.Family(name)
}

// known says whether the mappings have the family.
func (t *testParser) known(n *yaml.Node, path, name string) bool {
	if t.file.Plan == nil {
		return true
	}
	for _, e := range t.file.Plan.entities {
		if name == e.family.Name {
			return true
		}
	}
	if _, ok := t.file.Plan.Family(name); !ok {
		t.fault(n, path, suggest(name, slices.Sorted(maps.Keys(t.file.Plan.byName))), "%s has no family %q", t.file.Mappings, clip(name))
		return false
	}
	return true
}

func (t *testParser) parseLookup(e entry) *stubbedLookup {
	o, ok := t.object(e.value, e.path, fields[format.Lookup]()...)
	if !ok {
		return nil
	}
	l := &stubbedLookup{}
	if e, ok := o.need("family", "the family whose keys the query finds"); ok {
		if s, ok := t.text(e, "the name of a family"); ok && t.known(s.node, s.path, s.text) {
			l.family = s.text
		}
	}
	if e, ok := o.get("with"); ok {
		l.with, _ = t.row(e)
	}
	refused, hasRefused := o.get("refused")
	rows, hasRows := o.get("rows")
	if hasRefused {
		l.refused, _ = t.boolean(refused)
	}
	switch {
	case hasRows && l.refused:
		t.fault(rows.key, rows.path, "leave one of them out", "a query that is refused returns no rows")
	case !hasRows && !l.refused:
		t.fault(o.node, o.path, "rows: [{product_id: 1}], or rows: [] for none", "rows is missing")
	case hasRows:
		t.parseRows(rows, l)
	}
	return l
}

func (t *testParser) parseRows(e entry, l *stubbedLookup) {
	for i, e := range t.items(e, "rows: [{product_id: 1}]") {
		row, ok := t.row(e)
		if !ok {
			continue
		}
		columns := slices.Sorted(maps.Keys(row))
		if i == 0 {
			l.columns = columns
		} else if !slices.Equal(columns, l.columns) {
			t.fault(e.value, e.path, "rows of one query have the same columns: "+strings.Join(l.columns, ", "), "this row has the columns %s", strings.Join(columns, ", "))
			continue
		}
		var values [][]byte
		for _, c := range columns {
			data, null := exampleText(row[c])
			if null {
				data = nil
			} else if data == nil {
				data = []byte{}
			}
			values = append(values, data)
		}
		l.rows = append(l.rows, values)
	}
}

func (t *testParser) row(e entry) (map[string]any, bool) {
	list, ok := t.entries(e.value, e.path, "a row: {id: 1, name: 'x'}")
	row := map[string]any{}
	for _, e := range list {
		v, fine := t.value(e.value, e.path)
		row[e.name], ok = v, ok && fine
	}
	return row, ok
}

var jsonNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$`)

// value reads what a column or a field holds, as encoding/json does. Numbers that
// JSON writes otherwise are refused: the text of a number becomes a part of a key.
func (t *testParser) value(n *yaml.Node, path string) (any, bool) {
	return t.nested(n, path, 0)
}

// maxNesting is more than a column's JSON has. An alias can hold itself.
const maxNesting = 100

func (t *testParser) nested(n *yaml.Node, path string, depth int) (any, bool) {
	switch n = t.resolve(n); {
	case t.tooMany:
		return nil, false
	case depth > maxNesting:
		t.fault(n, "", "at most 100 levels", "this is nested too deeply")
		return nil, false
	}
	switch n.Kind {
	case yaml.MappingNode:
		list, ok := t.entries(n, path, "a mapping")
		m := map[string]any{}
		for _, e := range list {
			v, fine := t.nested(e.value, e.path, depth+1)
			m[e.name], ok = v, ok && fine
		}
		return m, ok
	case yaml.SequenceNode:
		list, ok := []any{}, true
		for i, n := range n.Content {
			v, fine := t.nested(n, fmt.Sprintf("%s[%d]", path, i), depth+1)
			list, ok = append(list, v), ok && fine
			if t.tooMany {
				break
			}
		}
		return list, ok
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!null":
			return nil, true
		case "!!bool":
			return strings.EqualFold(n.Value, "true"), true
		case "!!int", "!!float":
			if jsonNumber.MatchString(n.Value) {
				return json.Number(n.Value), true
			}
			t.fault(n, path, "write it as Postgres prints it, or put it in quotes: \""+clip(n.Value)+"\"", "%s can be read in more than one way", clip(n.Value))
			return nil, false
		case "!!str", "!!timestamp":
			return n.Value, true
		}
	}
	t.fault(n, path, "text, a number, true, false, null, a list or a mapping", "this is %s", kind(n))
	return nil, false
}
