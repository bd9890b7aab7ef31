package mapping

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/cdc-invalidator/cdc-invalidator/internal/redact"
)

// resolve follows an alias, and counts.
func (p *parser) resolve(n *yaml.Node) *yaml.Node {
	if p.nodesLeft--; p.nodesLeft < 0 && !p.tooMany {
		p.tooMany = true
		p.fault(n, "", "write fewer of them, or fewer aliases", "the file stands for more than %d values", maxNodes)
	}
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// kind describes a node in the words of a fault.
func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias of an alias"
	}
	switch n.ShortTag() {
	case "!!null":
		return "empty"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!str", "!!timestamp":
		return "text"
	case "!!merge":
		return "a merge key"
	}
	return "of a type of its own"
}

// entry is one key of a mapping with its value.
type entry struct {
	name  string
	key   *yaml.Node
	value *yaml.Node // resolved
	path  string
}

// entries reads a mapping with free keys.
func (p *parser) entries(n *yaml.Node, path, want string) ([]entry, bool) {
	n = p.resolve(n)
	if n.Kind != yaml.MappingNode {
		p.fault(n, path, want, "this is %s; want a mapping", kind(n))
		return nil, false
	}
	var list []entry
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content) && !p.tooMany; i += 2 {
		key, value := p.resolve(n.Content[i]), p.resolve(n.Content[i+1])
		if key.Kind == yaml.ScalarNode && key.ShortTag() == "!!merge" {
			p.fault(key, path, "write the fields out, or use an alias for the whole value", "merge keys (<<) are not supported")
			continue
		}
		if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" {
			p.fault(key, path, "put it in quotes if it is meant as a name", "the key is %s; want text", kind(key))
			continue
		}
		if line, twice := seen[key.Value]; twice {
			p.fault(key, join(path, clip(key.Value)), "", "%q stands here twice; it was in line %d already", clip(key.Value), line)
			continue
		}
		seen[key.Value] = key.Line
		list = append(list, entry{name: key.Value, key: key, value: value, path: join(path, clip(key.Value))})
	}
	return list, true
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// object is a mapping with known fields.
type object struct {
	p      *parser
	node   *yaml.Node
	path   string
	fields map[string]entry
}

// object reads a mapping with known fields; a fault for every other.
func (p *parser) object(n *yaml.Node, path string, known ...string) (object, bool) {
	o := object{p: p, node: p.resolve(n), path: path, fields: map[string]entry{}}
	list, ok := p.entries(o.node, path, "the fields are "+strings.Join(known, ", "))
	for _, e := range list {
		if !slices.Contains(known, e.name) {
			p.unknown(e, o, known)
			continue
		}
		p.show(e.key)
		o.fields[e.name] = e
	}
	return o, ok
}

// unknown is for a field that there is not. What its value is nobody knows; nor is it a name
// where it has none, as in {password}.
func (p *parser) unknown(e entry, in object, known []string) {
	path := in.path
	if path == "" || connection(path) || redact.Names(e.name) {
		p.hide(e.value)
	}
	if !isName(e.name) || torn(in.node) || e.value.ShortTag() == "!!null" {
		p.hide(e.key)
		p.fault(e.key, path, "the fields are "+strings.Join(known, ", "), "this is no field")
		return
	}
	p.show(e.key)
	p.fault(e.key, e.path, suggest(e.name, known), "unknown field %q", clip(e.name))
}

// get returns the field if the file has it.
func (o object) get(name string) (entry, bool) {
	e, ok := o.fields[name]
	return e, ok
}

// need returns the field; without it there is a fault.
func (o object) need(name, hint string) (entry, bool) {
	e, ok := o.fields[name]
	if !ok {
		o.p.fault(o.node, o.path, hint, "%s is missing", name)
	}
	return e, ok
}

// list reads a list; a fault when it is empty.
func (p *parser) list(e entry, want string) ([]entry, bool) {
	if e.value.Kind != yaml.SequenceNode {
		p.fault(e.value, e.path, want, "this is %s; want a list", kind(e.value))
		return nil, false
	}
	if len(e.value.Content) == 0 {
		p.fault(e.value, e.path, want, "the list is empty")
		return nil, false
	}
	var items []entry
	for i, n := range e.value.Content {
		if p.tooMany {
			break
		}
		n = p.resolve(n)
		items = append(items, entry{key: n, value: n, path: fmt.Sprintf("%s[%d]", e.path, i)})
	}
	return items, true
}

// scalar is a single value, expanded.
type scalar struct {
	node     *yaml.Node
	path     string
	text     string
	expanded bool // text comes from outside of the file: a message must not show it
}

// quoted is the value as the file has it.
func (s scalar) quoted() string { return strconv.Quote(clip(s.node.Value)) }

// why is the text of an error about the value, which may quote it.
func (s scalar) why(message string) string {
	if s.expanded {
		return "its value, which comes from outside of the file, is not valid"
	}
	if redact.MayHold(s.text) {
		return "its value, which may hold a password, is not valid"
	}
	return message
}

// scalar expands a value of one of the types.
func (p *parser) scalar(e entry, want string, tags ...string) (scalar, bool) {
	n := e.value
	s := scalar{node: n, path: e.path}
	p.show(n)
	if n.Kind != yaml.ScalarNode {
		p.fault(n, e.path, want, "this is %s", kind(n))
		return s, false
	}
	var err *expandError
	if p.literal {
		s.text = n.Value
	} else if s.text, err = p.env.expand(n.Value); err != nil {
		p.fault(n, e.path, err.hint, "%s", err.problem)
		return s, false
	}
	s.expanded = s.text != n.Value
	// What comes from outside is text at first, whatever it is to be.
	if tag := n.ShortTag(); !slices.Contains(tags, tag) && !(s.expanded && tag == "!!str") {
		if slices.Contains(tags, "!!str") && (tag == "!!int" || tag == "!!float" || tag == "!!bool") {
			want = "put it in quotes: \"" + clip(n.Value) + "\""
		}
		p.fault(n, e.path, want, "this is %s", kind(n))
		return s, false
	}
	return s, true
}

// text reads a text that is not empty.
func (p *parser) text(e entry, want string) (scalar, bool) {
	s, ok := p.scalar(e, want, "!!str", "!!timestamp")
	if ok && s.text == "" {
		p.fault(s.node, s.path, want, "this is empty")
		return s, false
	}
	return s, ok
}

const durationHint = "a number with a unit: 300ms, 30s, 10m, 1h"

// duration reads a duration that is not negative, and not zero if it is to be
// positive.
func (p *parser) duration(e entry, positive bool) (time.Duration, bool) {
	s, ok := p.scalar(e, durationHint, "!!str", "!!int", "!!float")
	if !ok {
		return 0, false
	}
	d, err := time.ParseDuration(s.text)
	switch {
	case err != nil:
		p.fault(s.node, s.path, durationHint, "%s is not a duration", s.quoted())
	case d < 0:
		p.fault(s.node, s.path, durationHint, "%s is negative", s.quoted())
	case d == 0 && positive:
		p.fault(s.node, s.path, durationHint, "%s is no time at all", s.quoted())
	default:
		return d, true
	}
	return 0, false
}

// boolean reads true or false.
func (p *parser) boolean(e entry) (bool, bool) {
	s, ok := p.scalar(e, "true or false", "!!bool")
	if !ok {
		return false, false
	}
	switch s.text {
	case "true":
		return true, true
	case "false":
		return false, true
	}
	p.fault(s.node, s.path, "true or false, in small letters", "%s is neither true nor false", s.quoted())
	return false, false
}

// integer reads a number from min to max.
func (p *parser) integer(e entry, min, max int) (int, bool) {
	want := fmt.Sprintf("a whole number from %d to %d", min, max)
	tags := []string{"!!int", "!!float"} // YAML has those that are too large for a fraction, or, beyond 1e308, for a text
	if n := e.value; n.Kind == yaml.ScalarNode && n.Style == 0 && n.ShortTag() == "!!str" && tooLarge(n.Value) {
		tags = append(tags, "!!str")
	}
	s, ok := p.scalar(e, want, tags...)
	if !ok {
		return 0, false
	}
	v, err := strconv.Atoi(s.text)
	f, _ := strconv.ParseFloat(s.text, 64)
	switch {
	case err == nil && v >= min && v <= max:
		return v, true
	case err != nil && f >= float64(min) && f <= float64(max):
		p.fault(s.node, s.path, want, "%s is not written as a whole number", s.quoted())
	case f > float64(max):
		p.fault(s.node, s.path, want, "%s is too large", s.quoted())
	default:
		p.fault(s.node, s.path, want, "%s is out of range", s.quoted())
	}
	return 0, false
}

// tooLarge says of a text that it is a number which no type of Go holds.
func tooLarge(s string) bool {
	_, err := strconv.ParseFloat(s, 64)
	return errors.Is(err, strconv.ErrRange)
}

// suggest names what may have been meant.
func suggest(got string, known []string) string {
	best, distance := "", 1+max(1, len(got)/3)
	for _, k := range known {
		if d := editDistance(got, k, distance); d < distance {
			best, distance = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	if len(known) == 0 {
		return ""
	}
	known = slices.Clone(known)
	if len(known) > 20 {
		known = append(known[:20], "...")
	}
	return "known are " + strings.Join(known, ", ")
}

// editDistance counts insertions, removals and replacements, and the exchange of
// two neighbours; more than limit is all the same.
func editDistance(a, b string, limit int) int {
	if abs(len(a)-len(b)) >= limit || len(a) > 64 || len(b) > 64 {
		return limit
	}
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, d[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

func abs(n int) int { return max(n, -n) }
