package mapping

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// maxExcerpt is how much of a line is shown.
const maxExcerpt = 200

// What may be a password is cut out greedily: a line that shows too little is
// better than one that shows a secret.
var (
	userInfo   = regexp.MustCompile(`://.*@`)
	afterSlash = regexp.MustCompile(`://.*`)
	password   = regexp.MustCompile(`(?i)(pass[a-z]*|pwd|secret)(\s*=\s*)("[^"]*"|'[^']*'|[^\s&,}"']+)`)
)

// redact cuts passwords out of a text that a message shows.
func redact(s string) string {
	s = userInfo.ReplaceAllString(s, "://"+redacted+"@")
	return password.ReplaceAllString(s, "$1$2"+redacted)
}

// excerpt is a line as it was written, that is with references to variables and
// not their values, and without passwords.
func (p *parser) excerpt(line int) string {
	if line < 1 || line > len(p.lines) {
		return ""
	}
	text := strings.TrimSpace(p.lines[line-1])
	if p.root == nil { // not YAML, so nobody knows where a URL ends
		text = afterSlash.ReplaceAllString(text, "://"+redacted)
	}
	for _, n := range p.secrets {
		switch value := strings.TrimSpace(n.Value); {
		case n.Line > len(p.lines):
			return redacted // never seen; where it stands is not known
		case line >= n.Line && line < p.after(n) && !strings.Contains(p.lines[n.Line-1], value):
			return redacted // over several lines, or with escapes
		case value != "" && !strings.Contains(value, "://") && !strings.Contains(value, "${"):
			text = strings.ReplaceAll(text, value, redacted) // no URL, so any part may be the secret
		}
	}
	text = strings.Map(printable, redact(text))
	if r := []rune(text); len(r) > maxExcerpt {
		text = string(r[:maxExcerpt]) + "..."
	}
	return text
}

// printable keeps a file from steering the terminal that shows its faults.
func printable(r rune) rune {
	if unicode.IsPrint(r) || r == utf8.RuneError {
		return r
	}
	return ' '
}

// after is the line of the first node that begins below a node's first line.
func (p *parser) after(n *yaml.Node) int {
	next := len(p.lines) + 1
	var visit func(*yaml.Node)
	visit = func(c *yaml.Node) {
		if c.Line > n.Line && c.Line < next {
			next = c.Line
		}
		for _, c := range c.Content {
			visit(c)
		}
	}
	visit(p.root)
	return next
}
