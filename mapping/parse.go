package mapping

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/cdc-invalidator/cdc-invalidator/internal/redact"
)

// Env is what a file may refer to outside of itself.
type Env struct {
	LookupEnv func(string) (string, bool)
	ReadFile  func(string) ([]byte, error)

	// AllowUnset accepts variables without a value, and files that cannot be read, in
	// source.url and redis.url: a file is checked away from where it will run.
	AllowUnset bool
}

const (
	maxFileSize = 1 << 20
	// maxNodes bounds how often nodes are visited, through aliases too: a short file
	// with aliases of aliases stands for one that fits nowhere.
	maxNodes = 100_000
	// maxFaults is more than anyone reads. A fault behind an alias counts each time.
	maxFaults = 1000
)

// Parse reads a file and checks all of it that can be checked without the servers.
// An error is of type Faults, and holds all that is wrong in the order of the
// file.
func Parse(name string, data []byte, env Env) (*File, error) {
	p := newParser(name)
	p.env = env
	if root := p.load(data); root != nil {
		p.root = root
		p.parseFile(root)
	}
	if faults := p.finish(p.faults); len(faults) > 0 {
		return nil, faults
	}
	return p.file, nil
}

// parser collects faults instead of stopping at one.
type parser struct {
	name   string
	lines  []string
	env    Env
	root   *yaml.Node
	file   *File
	faults Faults

	nodesLeft int
	tooMany   bool
	hidden    map[*yaml.Node]bool // not shown, with all that is in them
	shown     map[*yaml.Node]bool // shown even in the sections of connections
	all       []piece             // of the file; made when it is needed
	places    map[int][]piece     // what begins in each line; made when it is needed
	literal   bool                // a $ stands for itself

	classes  map[string]*Class   // by name; nil values had faults of their own
	families map[string]*KeySpec // the same
	entities map[string]int      // kind -> variables of it

	entityNormals map[string][]Normal // kind -> of its variables
}

func newParser(name string) *parser {
	return &parser{name: name, nodesLeft: maxNodes, file: &File{Name: name}, hidden: map[*yaml.Node]bool{}, shown: map[*yaml.Node]bool{},
		entities: map[string]int{}, entityNormals: map[string][]Normal{}}
}

// quotation is a part of the file in the YAML library's errors.
var quotation = regexp.MustCompile(`(?s)anchor '.*'`)

// lineBreak is what YAML counts as one, so that its lines are found again.
var lineBreak = regexp.MustCompile("\r\n|[\r\n\u0085\u2028\u2029]")

// load returns the document's root, or nil after a fault.
func (p *parser) load(data []byte) *yaml.Node {
	if len(data) > maxFileSize {
		p.add(Fault{Message: fmt.Sprintf("the file has %d bytes; at most %d are read", len(data), maxFileSize)})
		return nil
	}
	p.lines = lineBreak.Split(string(data), -1)
	for i, line := range p.lines {
		if !utf8.ValidString(line) {
			p.add(Fault{Line: i + 1, Col: 1, Message: "the text is not UTF-8", Hint: "save the file in the encoding UTF-8"})
			return nil
		}
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		p.add(Fault{Message: err.Error()})
		return nil
	}
	var document, next yaml.Node
	if err := loader.Load(&document); errors.Is(err, io.EOF) {
		p.empty()
		return nil
	} else if err != nil {
		p.syntax(err)
		return nil
	}
	switch err := loader.Load(&next); {
	case err == nil:
		p.add(Fault{Line: next.Line, Col: next.Column, Message: "a second YAML document begins here",
			Hint: "one file is one document: remove what follows, and the '---' before it"})
		return nil
	case !errors.Is(err, io.EOF):
		p.syntax(err)
		return nil
	}
	if document.Kind != yaml.DocumentNode || len(document.Content) != 1 || document.Content[0].ShortTag() == "!!null" {
		p.empty()
		return nil
	}
	return document.Content[0]
}

func (p *parser) empty() {
	p.add(Fault{Line: 1, Col: 1, Message: "the file is empty", Hint: "it begins with: version: 1"})
}

func (p *parser) syntax(err error) {
	const notYAML = "this is not YAML: "
	f := Fault{Message: notYAML + quotation.ReplaceAllString(err.Error(), "anchor "+redact.Hidden), Hint: "look at the indentation, the quotes and the brackets here and in the line before"}
	if e := (*yaml.LoadError)(nil); errors.As(err, &e) {
		f.Line, f.Col, f.Message = max(e.Mark.Line, 1), max(e.Mark.Column, 1), notYAML+quotation.ReplaceAllString(e.Message, "anchor "+redact.Hidden)
		f.Line = min(f.Line, len(p.lines)) // an open bracket is missed behind the last line
	}
	p.add(f)
}

// add notes a fault whose place it has already.
func (p *parser) add(f Fault) {
	if len(p.faults) == maxFaults {
		p.tooMany = true
		p.faults = append(p.faults, Fault{File: p.name, Line: f.Line, Col: f.Col, Message: "there are more faults, which are not shown"})
	}
	if len(p.faults) > maxFaults {
		return
	}
	f.File = p.name
	p.faults = append(p.faults, f)
}

// fault notes what is wrong at a node, and what would be right.
func (p *parser) fault(n *yaml.Node, path, hint, format string, args ...any) {
	p.add(Fault{Line: n.Line, Col: n.Column, Field: path, Message: fmt.Sprintf(format, args...), Hint: hint})
}

// finish puts faults into the file's order and shows the line of each.
func (p *parser) finish(faults Faults) Faults {
	slices.SortStableFunc(faults, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
	excerpts := map[int]string{}
	for i := range faults {
		line := faults[i].Line
		if _, ok := excerpts[line]; !ok {
			excerpts[line] = p.excerpt(line)
		}
		if p.root != nil {
			faults[i] = p.withhold(faults[i])
		}
		faults[i].Excerpt = excerpts[line]
	}
	return faults
}

// place finds an offset inside of a scalar's value in the file; without it, the
// place of the scalar: after an expansion or an escape, columns mean nothing.
func (p *parser) place(s scalar, offset int) (line, col int) {
	n := s.node
	line, col = n.Line, n.Column
	if s.expanded || line < 1 || line > len(p.lines) || offset > len(n.Value) {
		return line, col
	}
	start := col - 1
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
		start++
	}
	text := []rune(p.lines[line-1])
	if start <= len(text) && strings.HasPrefix(string(text[start:]), n.Value) {
		col = start + utf8.RuneCountInString(n.Value[:offset]) + 1
	}
	return line, col
}
