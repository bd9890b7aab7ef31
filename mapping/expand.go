package mapping

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// expandError says why a reference has no value. It never holds a value.
type expandError struct {
	problem, hint string
	unset         bool // the value is missing here, and may be there where the file is used
}

// Expand is the expansion of a URL that does not stand in the file, such as one of
// the command line. The error holds no value.
func (e *Env) Expand(s string) (Secret, error) {
	v, err := e.expand(s)
	if err != nil {
		return Secret{}, fmt.Errorf("%s; %s", err.problem, err.hint)
	}
	return NewSecret(v), nil
}

// expand replaces ${NAME}, ${NAME:-default} and ${file:PATH} in a scalar's value,
// and $$ by $. Where NAME is unset or empty and NAME_FILE is set, it is what that file
// holds. It works on values after parsing, so nothing that a variable holds
// can become structure. A default is used for an empty variable too.
func (e *Env) expand(s string) (string, *expandError) {
	if !strings.Contains(s, "$") {
		return s, nil
	}
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 == len(s) {
			break
		}
		b.WriteString(s[:i])
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			s = s[i+2:]
		case '{':
			ref, rest, ok := strings.Cut(s[i+2:], "}")
			if !ok {
				return "", &expandError{problem: "'${' without '}'", hint: "write $${ for a literal ${"}
			}
			value, err := e.reference(ref)
			if err != nil {
				return "", err
			}
			b.WriteString(value)
			s = rest
		default:
			b.WriteByte('$')
			s = s[i+1:]
		}
	}
	b.WriteString(s)
	return b.String(), nil
}

func (e *Env) reference(ref string) (string, *expandError) {
	if path, ok := strings.CutPrefix(ref, "file:"); ok {
		return e.file(path)
	}
	name, fallback, hasDefault := strings.Cut(ref, ":-")
	if !isName(name) {
		return "", &expandError{problem: "what stands in ${} is not a reference",
			hint: "write ${NAME}, ${NAME:-default} or ${file:PATH}; $$ is a literal $"}
	}
	var value string
	var ok bool
	if e.LookupEnv != nil {
		value, ok = e.LookupEnv(name)
		// As container images do it: a secret comes as a file, and a variable says where.
		if path, named := e.LookupEnv(name + "_FILE"); value == "" && named && path != "" {
			return e.file(path)
		}
	}
	switch {
	case hasDefault && value == "":
		return fallback, nil
	case !ok:
		return "", &expandError{unset: true, problem: fmt.Sprintf("the environment variable %s is not set", name),
			hint: fmt.Sprintf("set it, or give a default: ${%s:-default} (a variable of a key is written {%s}, without $)", name, name)}
	}
	return value, nil
}

// file reads a value from a file, without the line end that editors put there.
func (e *Env) file(path string) (string, *expandError) {
	if path == "" {
		return "", &expandError{problem: "${file:} names no file", hint: "write ${file:/run/secrets/name}"}
	}
	if e.ReadFile == nil {
		return "", &expandError{unset: true, problem: fmt.Sprintf("the file %s cannot be read here", clip(path))}
	}
	data, err := e.ReadFile(path)
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return "", &expandError{unset: true, problem: fmt.Sprintf("read %s: %v", clip(path), err),
			hint: "the path is taken as it stands, from where the program was started; it has to be readable by its user"}
	}
	return strings.TrimRight(string(data), "\r\n"), nil
}
