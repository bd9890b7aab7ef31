package mapping

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/cdc-invalidator/cdc-invalidator/internal/redact"
	"github.com/cdc-invalidator/cdc-invalidator/mapping/format"
)

// maxExcerpt is how much of a line is shown.
const maxExcerpt = 200

// clip shortens what a message quotes. What may hold a password is not quoted at all.
func clip(s string) string {
	if redact.MayHold(s) {
		return redact.Hidden
	}
	if r := []rune(s); len(r) > 80 {
		s = string(r[:80]) + "..."
	}
	return s
}

// connection says whether a path is in one of the sections that describe a connection. Nothing
// that stands there is shown but what was read as a field that holds no secret.
func connection(path string) bool {
	section, _, _ := strings.Cut(path, ".")
	section, _, _ = strings.Cut(section, "[")
	return section == "source" || section == "redis"
}

// hide keeps a value, and all that is in it, out of messages.
func (p *parser) hide(n *yaml.Node) { p.hidden[n] = true }

// show lets a scalar be seen that stands where nothing is otherwise.
func (p *parser) show(n *yaml.Node) { p.shown[n] = true }

// piece is a scalar or an alias, as it stands in a line.
type piece struct {
	node *yaml.Node
	show bool
	key  bool
}

// pieces are those of a tree, in the file's order.
func (p *parser) pieces() []piece {
	if p.all != nil {
		return p.all
	}
	var all []piece
	left := maxNodes
	var visit func(n *yaml.Node, path string, show, key bool)
	visit = func(n *yaml.Node, path string, show, key bool) {
		if left--; left < 0 {
			return
		}
		show = show && !p.hidden[n]
		switch n.Kind {
		case yaml.ScalarNode:
			all = append(all, piece{n, show && (p.shown[n] || !connection(path)) && !redact.MayHold(n.Value), key})
		case yaml.AliasNode:
			all = append(all, piece{n, show && !connection(path) && isName(n.Value), key})
		case yaml.MappingNode:
			torn := torn(n)
			for i := 0; i+1 < len(n.Content); i += 2 {
				k, v := n.Content[i], n.Content[i+1]
				at := path
				if n == p.root {
					at = k.Value
				}
				field := p.shown[k] && v.ShortTag() != "!!null"
				visit(k, path, show && (!torn || field), true)
				visit(v, at, show && (!torn || field && (v.Kind != yaml.ScalarNode || inQuotes(v))), false)
			}
		default:
			torn := torn(n)
			for _, c := range n.Content {
				visit(c, path, show && !torn, false)
			}
		}
	}
	visit(p.root, "", p.root.Kind == yaml.MappingNode, false)
	p.all = all
	return all
}

// torn says whether a collection in brackets holds a text that may be a part of a URL: a
// comma in one that has no quotes makes the rest of it an element of its own.
func torn(n *yaml.Node) bool {
	return n.Style&yaml.FlowStyle != 0 && slices.ContainsFunc(n.Content, func(c *yaml.Node) bool {
		return c.Kind == yaml.ScalarNode && !inQuotes(c) && redact.MayHold(c.Value) || c.Anchor != "" && !isName(c.Anchor)
	}) || n.Kind == yaml.MappingNode && slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { // quotes that end too early leave a rest
		return c.ShortTag() == "!!null" && c.Value == ""
	}) && slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { return c.Kind == yaml.ScalarNode && redact.MayHold(c.Value) })
}

func inQuotes(n *yaml.Node) bool { return n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 }

// withhold takes what is not shown out of a fault's texts, should one of them quote it.
func (p *parser) withhold(f Fault) Fault {
	const least = 3 // less than that is no secret, and in many words
	for _, c := range p.pieces() {
		if text := c.node.Value; !c.show && c.node.Kind == yaml.ScalarNode && len(text) >= least && !strings.HasPrefix(text, "${") && !slices.Contains(knownNames, text) {
			quoted := strconv.Quote(text)
			cut := strings.NewReplacer(text, redact.Hidden, quoted[1:len(quoted)-1], redact.Hidden)
			f.Field, f.Message, f.Hint = cut.Replace(f.Field), cut.Replace(f.Message), cut.Replace(f.Hint)
		}
	}
	return f
}

// excerpt is a line as it was written, that is with references to variables and not their
// values. It is put together from what is known to hold no secret: the scalars that may be
// shown, and the marks between them. All else is left out by where it stands, since a URL that
// is written wrongly does not tell where its password is. So are comments.
func (p *parser) excerpt(line int) string {
	if line < 1 || line > len(p.lines) {
		return ""
	}
	var text string
	if p.root == nil {
		text = p.rawExcerpt(line)
	} else {
		text = p.knownExcerpt(line)
	}
	text = strings.TrimSpace(strings.Map(printable, text))
	if r := []rune(text); len(r) > maxExcerpt {
		text = string(r[:maxExcerpt]) + "..."
	}
	return text
}

// marks are what stands between scalars in YAML.
const marks = "{}[],:?- \t"

// left is what a gap begins with: how the piece before it was shown.
type left uint8

const (
	ended    left = iota // in full
	going                // not in full, though it may be: its text goes on
	withheld             // not: its text goes on, nobody knows how far
)

func (l left) shown(gap string) string {
	switch l {
	case going:
		return gap
	case withheld:
		gap = behind(gap)
	}
	return onlyMarks(gap)
}

func (p *parser) knownExcerpt(line int) string {
	if p.places == nil {
		p.places = map[int][]piece{}
		for _, c := range p.pieces() {
			p.places[c.node.Line] = append(p.places[c.node.Line], c)
		}
	}
	before := ended
	for l := line - 1; l > 0 && before == ended; l-- {
		if list := p.places[l]; len(list) > 0 {
			_, before = p.walk(l, ended)
			break
		}
	}
	text, _ := p.walk(line, before)
	return text
}

// walk puts a line together. before says what of the lines above may go on in it.
func (p *parser) walk(line int, before left) (text string, after left) {
	rest := []rune(p.lines[line-1])
	at := 1 // column of rest
	cut := func(n int) string {
		n = min(max(n, 0), len(rest))
		s := string(rest[:n])
		rest, at = rest[n:], at+n
		return s
	}
	var b strings.Builder
	for _, c := range p.places[line] {
		b.WriteString(before.shown(cut(c.node.Column - at)))
		written, ok := asWritten(c.node, string(rest))
		switch {
		case c.show && ok:
			b.WriteString(cut(utf8.RuneCountInString(written)))
			before = ended
			if c.node.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
				before = going
			}
		case c.show:
			before = going
		default:
			b.WriteString(hiddenForm(c.node))
			if c.key {
				b.WriteString(":")
			}
			before = withheld
		}
	}
	gap := string(rest)
	if before != withheld { // where a # is a part of it
		gap, _, _ = strings.Cut(gap, " #")
	}
	if len(p.places[line]) == 0 && before == withheld {
		return redact.Hidden, before
	}
	return b.String() + before.shown(gap), before
}

// behind is what follows a scalar whose end is not known: brackets and commas, none of which
// can end one that has no quotes where they have a meaning.
func behind(gap string) string { return gap[len(strings.TrimRight(gap, "{}[], \t")):] }

// onlyMarks leaves out what is no mark, such as an anchor, a tag, or the end of a scalar.
func onlyMarks(gap string) string {
	if strings.Trim(gap, marks) == "" {
		return gap
	}
	front := gap[:len(gap)-len(strings.TrimLeft(gap, marks))]
	return front + redact.Hidden + gap[len(strings.TrimRight(gap, marks)):]
}

// asWritten finds a scalar's text at the beginning of a line's rest; false where it has
// escapes, goes on in the next line, or has an anchor or a tag.
func asWritten(n *yaml.Node, rest string) (string, bool) {
	text := n.Value
	switch {
	case n.Kind == yaml.AliasNode:
		text = "*" + text
	case n.Style&yaml.DoubleQuotedStyle != 0:
		text = `"` + text + `"`
	case n.Style&yaml.SingleQuotedStyle != 0:
		text = "'" + strings.ReplaceAll(text, "'", "''") + "'"
	case n.Style&yaml.LiteralStyle != 0:
		text = "|" // and its indicators
	case n.Style&yaml.FoldedStyle != 0:
		text = ">"
	}
	return text, strings.HasPrefix(rest, text)
}

var knownScheme = regexp.MustCompile(`^(postgres(ql)?|rediss?(\+sentinel|\+cluster)?|unix)://`)

// hiddenForm is what is shown of a secret: the name of the variable that holds it, or the
// kind of server that it leads to.
func hiddenForm(n *yaml.Node) string {
	if name, ok := strings.CutPrefix(n.Value, "${"); ok && n.Kind == yaml.ScalarNode {
		if name, ok = strings.CutSuffix(name, "}"); ok && isName(name) {
			return "${" + name + "}"
		}
	}
	if path, ok := strings.CutPrefix(n.Value, "${file:"); ok && strings.Count(path, "}") == 1 && strings.HasSuffix(path, "}") && !redact.MayHold(n.Value) {
		return n.Value
	}
	return knownScheme.FindString(n.Value) + redact.Hidden
}

var (
	topField  = regexp.MustCompile(`^([a-z_]+)\s*:(\s|$)`)
	someField = regexp.MustCompile(`^\s*(- )?([a-z_]+)\s*:(\s|$)`)
)

// rawExcerpt is for a file that is not YAML, of which nobody knows where its scalars end. A
// line is shown in full only where it follows one that begins a section without secrets.
func (p *parser) rawExcerpt(line int) string {
	text := p.lines[line-1]
	around := strings.Join(p.lines[max(line-2, 0):min(line+1, len(p.lines))], " ")
	section := ""
	for _, l := range p.lines[:line] {
		if m := topField.FindStringSubmatch(l); m != nil {
			section = m[1]
		} else if l != "" && l[0] != '#' && (section == "version" || !strings.ContainsAny(l[:1], " \t-")) {
			section = "" // whatever it is
		}
	}
	if slices.Contains(plainSections, section) && !redact.MayHold(around) {
		text, _, _ = strings.Cut(text, " #")
		return text
	}
	if m := someField.FindStringSubmatch(text); m != nil && slices.Contains(knownNames, m[2]) {
		if strings.TrimSpace(text[len(m[0]):]) == "" {
			return text
		}
		return m[0] + redact.Hidden
	}
	switch trimmed := strings.TrimSpace(text); {
	case strings.HasPrefix(trimmed, "#"):
		return "" // a comment may hold anything
	case strings.Trim(trimmed, "-.") == "":
		return text // between documents
	}
	return redact.Hidden
}

// printable keeps a file from steering the terminal that shows its faults.
func printable(r rune) rune {
	if unicode.IsPrint(r) || r == utf8.RuneError {
		return r
	}
	return ' '
}

// The sections of both kinds of file that describe no connection, and the names that are
// shown in any.
var (
	plainSections = []string{"version", "classes", "keys", "mappings", "identity", "cases"}
	knownNames    = slices.Concat(fields[format.Mappings](), fields[format.Source](), fields[format.Slot](), fields[format.Redis](), fields[format.Tests]())
)
