package mapping

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// VersionVar is the variable that stands for a versioned family's version.
const VersionVar = "version"

// VersionAbsent is the version that readers take when there is no version key.
const VersionAbsent = "0"

// absentVersion is for Pattern.
func absentVersion() map[string]string { return map[string]string{VersionVar: VersionAbsent} }

// Template is a key with variables: "t:{tenant_id}:user:{id}", of whose values a normal form
// may be asked for: "{email|lower}". A literal brace is written twice.
type Template struct {
	source  string
	lits    []string // lits[i] stands before vars[i]; one more than vars
	vars    []string
	normals []Normal // of vars
}

// TemplateError says what is wrong with a template, and where in it.
type TemplateError struct {
	Offset  int
	Problem string
	Hint    string
}

func (e *TemplateError) Error() string { return e.Problem }

// ParseTemplate reads a template. It refuses one whose variables could run into
// each other.
func ParseTemplate(s string) (*Template, error) {
	t := &Template{source: s}
	var lit strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case (c == '{' || c == '}') && i+1 < len(s) && s[i+1] == c:
			lit.WriteByte(c)
			i++
		case c == '}':
			return nil, &TemplateError{i, "'}' without '{'", "write }} for a literal brace"}
		case c == '{':
			end := strings.IndexByte(s[i:], '}')
			if end < 0 {
				return nil, &TemplateError{i, "'{' without '}'", "write {{ for a literal brace"}
			}
			name, form, hasForm := strings.Cut(s[i+1:i+end], "|")
			if !isName(name) {
				return nil, &TemplateError{i + 1, fmt.Sprintf("%q is not a variable's name", name), "letters, digits and _, not starting with a digit"}
			}
			if hasForm && !slices.Contains(Normals(), Normal(form)) {
				return nil, &TemplateError{i + 2 + len(name), fmt.Sprintf("%q is not a normal form", form), suggest(form, normalNames())}
			}
			if slices.Contains(t.vars, name) {
				return nil, &TemplateError{i + 1, fmt.Sprintf("variable %s stands twice", name), "once is enough to tell keys apart"}
			}
			if len(t.vars) > 0 && separator(lit.String()) == 0 {
				return nil, &TemplateError{i, fmt.Sprintf("nothing keeps {%s} and {%s} apart", t.vars[len(t.vars)-1], name),
					"put a ':' between them: it is encoded inside values, so different values then give different keys"}
			}
			t.lits, t.vars, t.normals = append(t.lits, lit.String()), append(t.vars, name), append(t.normals, Normal(form))
			lit.Reset()
			i += end
		case c <= ' ' || c == 0x7f:
			return nil, &TemplateError{i, "space or control character", "use printable characters"}
		default:
			lit.WriteByte(c)
		}
	}
	t.lits = append(t.lits, lit.String())
	if n := len(strings.Join(t.lits, "")); n > MaxKeyLength {
		return nil, &TemplateError{0, fmt.Sprintf("its text alone is %d bytes", n), fmt.Sprintf("a key has at most %d", MaxKeyLength)}
	}
	if s == "" {
		return nil, &TemplateError{0, "the template is empty", `for example "user:{id}"`}
	}
	return t, nil
}

func isName(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// separator returns the length of the literal up to and with the first byte that no
// encoded value has; 0 if it has none. '%' is none: encoded bytes begin with it.
func separator(s string) int {
	for i := 0; i < len(s); i++ {
		if reserved[s[i]] && s[i] != '%' {
			return i + 1
		}
	}
	return 0
}

// Vars are the variables in the order in which they stand.
func (t *Template) Vars() []string { return t.vars }

// Normal is the normal form that the values of the variable have in keys.
func (t *Template) Normal(name string) Normal {
	if i := slices.Index(t.vars, name); i >= 0 {
		return t.normals[i]
	}
	return NormalNone
}

// Literal is the text before the i-th variable, or after the last one.
func (t *Template) Literal(i int) string { return t.lits[i] }

// String is the template as it was written.
func (t *Template) String() string { return t.source }

// Pattern is a glob that matches every key of the template in which the given
// variables have the given, already encoded values. It matches no less.
func (t *Template) Pattern(values map[string]string) string {
	var b strings.Builder
	for i, v := range t.vars {
		globEscape(&b, t.lits[i])
		if value, ok := values[v]; ok {
			globEscape(&b, value)
		} else {
			b.WriteByte('*')
		}
	}
	globEscape(&b, t.lits[len(t.vars)])
	return b.String()
}

// exact matches the keys of the template: between its literals stands what AppendEncoded makes.
func (t *Template) exact() *regexp.Regexp {
	var b strings.Builder
	b.WriteString("^")
	for i := range t.vars {
		b.WriteString(regexp.QuoteMeta(t.lits[i]))
		b.WriteString(`[^\x00-\x20\x7f:*?\[\]{}\\]*`)
	}
	b.WriteString(regexp.QuoteMeta(t.lits[len(t.vars)]))
	b.WriteString("$")
	return regexp.MustCompile(b.String())
}

func globEscape(b *strings.Builder, s string) {
	for i := 0; i < len(s); i++ {
		if strings.IndexByte(`*?[]\`, s[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
}
