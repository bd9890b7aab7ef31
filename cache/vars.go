package cache

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cdc-invalidator/cdc-invalidator/internal/keytype"
	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Vars are the values of a key's variables, by name. Each is rendered for the type of the
// column that the mappings take the variable from, so that it reads as Postgres prints it: the
// daemon makes the same key from what the log carries. docs/reader.md lists which Go values each
// type takes; nil and what is NULL for pgx is NULL. What cannot be known to be the row's own
// text is refused, with ErrVars: a key that the daemon does not make would never be invalidated.
//
// A string has to be just what Postgres prints. So parse what a request brings: "007" loads row
// 7, and is not its text.
type Vars map[string]any

// RowText is a variable's text as it was read from the row itself, with SELECT column::text in a
// session with TimeZone UTC and the default formats. It is for columns under which one row has
// several texts (numeric without a scale, float, interval, json), of which a value does not say
// which one the row has.
type RowText string

// ErrVars is in the errors of reads whose Vars make no key: a variable that is missing, or a
// value that is not known to be the text of a row.
var ErrVars = errors.New("cache: the variables make no key")

// dataKey renders a family's data key. It is on the path of every hit: one allocation.
func (f *family) dataKey(r *rendering, vars Vars, version string) (string, error) {
	var buf [128]byte
	key, err := f.appendKey(buf[:0], f.KeyTemplate(), r.key, vars, version)
	if err != nil {
		return "", err
	}
	known := len(f.KeyTemplate().Vars())
	if f.Versioned {
		known--
	}
	if len(vars) != known { // more, since none is missing
		return "", f.unknownVars(vars)
	}
	return string(key), nil
}

// versionKey renders the version key of a versioned family.
func (f *family) versionKey(r *rendering, vars Vars) (string, error) {
	var buf [128]byte
	key, err := f.appendKey(buf[:0], f.VersionTemplate(), r.version, vars, "")
	return string(key), err
}

func (f *family) appendKey(dst []byte, t *mapping.Template, how []*keytype.Var, vars Vars, version string) ([]byte, error) {
	names := t.Vars()
	for i, name := range names {
		dst = append(dst, t.Literal(i)...)
		if how[i] == nil {
			dst = append(dst, version...)
			continue
		}
		v, ok := vars[name]
		if !ok {
			return nil, fmt.Errorf("%w: family %s: no value for {%s}: Vars must have %s", ErrVars, f.Name, name, strings.Join(f.Vars(), ", "))
		}
		var err error
		if dst, err = appendVar(dst, how[i], v); err != nil {
			return nil, fmt.Errorf("%w: family %s: variable %s: %w", ErrVars, f.Name, name, err)
		}
	}
	if dst = append(dst, t.Literal(len(names))...); len(dst) > mapping.MaxKeyLength {
		return nil, fmt.Errorf("%w: family %s: key %s: %w, with its values as they stand in it: use a digest of the value as a variable, or read such rows without the cache",
			ErrVars, f.Name, t, mapping.ErrKeyTooLong)
	}
	return dst, nil
}

// appendVar appends a value as it stands in keys.
func appendVar(dst []byte, how *keytype.Var, v any) ([]byte, error) {
	if text, ok := v.(RowText); ok {
		return how.AppendRowText(dst, string(text))
	}
	return how.Append(dst, v)
}

func (f *family) unknownVars(vars Vars) error {
	var unknown []string
	for name := range vars {
		if !slices.Contains(f.Vars(), name) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	return fmt.Errorf("%w: family %s has no variable %s: Vars must have %s and nothing else", ErrVars, f.Name, strings.Join(unknown, ", "), strings.Join(f.Vars(), ", "))
}
