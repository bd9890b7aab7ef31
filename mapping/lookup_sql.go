package mapping

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// forEachSQL is a query whose {column} placeholders have become parameters.
type forEachSQL struct {
	sql    string
	params []string
}

// parseForEach finds the placeholders. Braces inside of string literals, quoted
// identifiers, dollar quotes and comments are not placeholders.
func parseForEach(sql string) (*forEachSQL, error) {
	q := &forEachSQL{}
	var b strings.Builder
	first := "" // the statement's first word
	for i := 0; i < len(sql); {
		n, blank, err := sqlToken(sql[i:])
		if err != nil {
			return nil, fmt.Errorf("%w at byte %d", err, i)
		}
		if n > 0 {
			if first == "" && !blank {
				first = strings.ToLower(sql[i : i+n])
			}
			b.WriteString(sql[i : i+n])
			i += n
			continue
		}
		switch sql[i] {
		case ';':
			if err := onlyBlank(sql[i+1:]); err != nil {
				return nil, err
			}
			i = len(sql)
			continue
		case '}':
			return nil, fmt.Errorf("'}' without '{' at byte %d", i)
		case '$':
			if i+1 < len(sql) && sql[i+1] >= '0' && sql[i+1] <= '9' {
				return nil, fmt.Errorf("$%c at byte %d: name the column instead, in braces", sql[i+1], i)
			}
		case '{':
			end := strings.IndexByte(sql[i:], '}')
			if end < 0 {
				return nil, fmt.Errorf("'{' without '}' at byte %d", i)
			}
			name := sql[i+1 : i+end]
			if !isName(name) {
				return nil, fmt.Errorf("{%s} at byte %d: braces name a column of the changed row, whose name has to be of letters, digits and _, not starting with a digit", name, i)
			}
			n := slices.Index(q.params, name)
			if n < 0 {
				n = len(q.params)
				q.params = append(q.params, name)
			}
			b.WriteString("$" + strconv.Itoa(n+1))
			i += end + 1
			continue
		}
		b.WriteByte(sql[i])
		i++
	}
	q.sql = strings.TrimSpace(b.String())
	if !slices.Contains([]string{"select", "with", "values", "table"}, first) {
		return nil, errors.New("it must be a query: SELECT")
	}
	if len(q.params) == 0 {
		return nil, errors.New("it names no column of the changed row in braces, so every change would ask for the same rows")
	}
	return q, nil
}

// onlyBlank fails when more than white space and comments follows a ';'.
func onlyBlank(s string) error {
	for s != "" {
		n, blank, err := sqlToken(s)
		switch {
		case err != nil:
			return err
		case n > 0 && blank:
			s = s[n:]
		case s[0] <= ' ':
			s = s[1:]
		default:
			return errors.New("one statement only: text follows the ';'")
		}
	}
	return nil
}

// sqlToken returns the length of the word, literal, quoted identifier or comment
// that s begins with, by the rules of Postgres; 0 for anything else. blank is true
// for a comment.
func sqlToken(s string) (n int, blank bool, err error) {
	switch c := s[0]; {
	case c == '\'':
		return quoted(s, 0, false)
	case c == '"':
		return quoted(s, 0, false)
	case (c == 'e' || c == 'E') && strings.HasPrefix(s[1:], "'"):
		return quoted(s, 1, true)
	case strings.HasPrefix(s, "--"):
		if i := strings.IndexAny(s, "\r\n"); i >= 0 {
			return i + 1, true, nil
		}
		return len(s), true, nil
	case strings.HasPrefix(s, "/*"):
		return comment(s)
	case c == '$':
		i := strings.IndexByte(s[1:], '$')
		if i < 0 || i > 0 && !isName(s[1:1+i]) {
			return 0, false, nil
		}
		tag := s[:i+2]
		end := strings.Index(s[len(tag):], tag)
		if end < 0 {
			return 0, false, fmt.Errorf("%s without its end", tag)
		}
		return 2*len(tag) + end, false, nil
	case wordByte(c) && (c < '0' || c > '9'):
		for n = 1; n < len(s) && (wordByte(s[n]) || s[n] == '$'); n++ {
		}
		return n, false, nil
	}
	return 0, false, nil
}

func wordByte(c byte) bool {
	return c == '_' || c >= 0x80 || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// quoted is a literal or identifier whose quote stands at start; a doubled quote is
// one of its characters, and with escapes whatever follows a backslash.
func quoted(s string, start int, escapes bool) (int, bool, error) {
	q := s[start]
	for i := start + 1; i < len(s); i++ {
		switch {
		case escapes && s[i] == '\\':
			i++
		case s[i] == q && i+1 < len(s) && s[i+1] == q:
			i++
		case s[i] == q:
			return i + 1, false, nil
		}
	}
	return 0, false, fmt.Errorf("%c without its end", q)
}

// comment is a C comment; they nest.
func comment(s string) (int, bool, error) {
	depth := 0
	for i := 0; i+1 < len(s); i++ {
		switch s[i : i+2] {
		case "/*":
			depth++
			i++
		case "*/":
			depth--
			i++
			if depth == 0 {
				return i + 1, true, nil
			}
		}
	}
	return 0, false, errors.New("/* without */")
}
