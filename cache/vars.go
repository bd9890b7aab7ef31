package cache

import (
	"database/sql/driver"
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// Vars are the values of a key's variables, by name. A value must read as Postgres
// prints the column, because the daemon makes the same key from what the log carries:
// strings, []byte, integers, bools, types based on these, what brings a text along
// (encoding.TextMarshaler, fmt.Stringer: a uuid) or is a driver.Valuer, and nil for
// NULL. Floats and times have more than one form: give them as text. So have numbers and uuids that come
// as strings: parse what a request brings ("007" loads row 7, under a key that nobody
// would invalidate).
type Vars map[string]any

// appendVar appends a value as it stands in keys.
func appendVar(dst []byte, v any) ([]byte, error) {
	var buf [20]byte
	switch v := v.(type) {
	case nil:
		return mapping.AppendNull(dst), nil
	case string:
		return mapping.AppendEncoded(dst, []byte(v)), nil
	case []byte:
		if v == nil {
			return mapping.AppendNull(dst), nil
		}
		return mapping.AppendEncoded(dst, v), nil
	case int:
		return mapping.AppendEncoded(dst, strconv.AppendInt(buf[:0], int64(v), 10)), nil
	case int64:
		return mapping.AppendEncoded(dst, strconv.AppendInt(buf[:0], v, 10)), nil
	case int32:
		return mapping.AppendEncoded(dst, strconv.AppendInt(buf[:0], int64(v), 10)), nil
	}
	text, null, err := varText(v)
	if err != nil {
		return nil, err
	}
	if null {
		return mapping.AppendNull(dst), nil
	}
	return mapping.AppendEncoded(dst, []byte(text)), nil
}

// varText is a value as Postgres prints it.
func varText(v any) (text string, null bool, err error) {
	switch v := v.(type) {
	case nil:
		return "", true, nil
	case string:
		return v, false, nil
	case []byte:
		return string(v), v == nil, nil
	case time.Time, time.Duration, *time.Time, *time.Duration:
		// They bring a text along, and not the one that Postgres prints.
		return "", false, fmt.Errorf("a %T has more than one form: give the text that Postgres prints", v)
	case driver.Valuer:
		if r := reflect.ValueOf(v); r.Kind() == reflect.Pointer && r.IsNil() {
			return "", true, nil
		}
		inner, err := v.Value()
		if err != nil {
			return "", false, err
		}
		if _, again := inner.(driver.Valuer); again {
			return "", false, fmt.Errorf("the Value of a %T is a driver.Valuer again", v)
		}
		return varText(inner)
	case encoding.TextMarshaler:
		if r := reflect.ValueOf(v); r.Kind() == reflect.Pointer && r.IsNil() {
			return "", true, nil
		}
		b, err := v.MarshalText()
		return string(b), false, err
	case fmt.Stringer:
		switch reflect.ValueOf(v).Kind() {
		case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
			reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
			return "", false, fmt.Errorf("a %T is a number or a bool with a text of its own: convert it to the one that the column has", v)
		}
		if r := reflect.ValueOf(v); r.Kind() == reflect.Pointer && r.IsNil() {
			return "", true, nil
		}
		return v.String(), false, nil
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Bool:
		if r.Bool() {
			return "t", false, nil
		}
		return "f", false, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.FormatInt(r.Int(), 10), false, nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return strconv.FormatUint(r.Uint(), 10), false, nil
	case reflect.String:
		return r.String(), false, nil
	}
	return "", false, fmt.Errorf("a %T is none of string, []byte, integer, bool, encoding.TextMarshaler, fmt.Stringer, driver.Valuer, nil: give the text that Postgres prints", v)
}

// dataKey renders a family's data key. It is on the path of every hit: one allocation.
func (f *family) dataKey(vars Vars, version string) (string, error) {
	var buf [128]byte
	key, err := f.appendKey(buf[:0], f.KeyTemplate(), vars, version)
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
func (f *family) versionKey(vars Vars) (string, error) {
	var buf [128]byte
	key, err := f.appendKey(buf[:0], f.VersionTemplate(), vars, "")
	return string(key), err
}

func (f *family) appendKey(dst []byte, t *mapping.Template, vars Vars, version string) ([]byte, error) {
	names := t.Vars()
	for i, name := range names {
		dst = append(dst, t.Literal(i)...)
		if name == mapping.VersionVar && f.Versioned {
			dst = append(dst, version...)
			continue
		}
		var err error
		if dst, err = f.appendVar(dst, vars, name); err != nil {
			return nil, err
		}
	}
	return append(dst, t.Literal(len(names))...), nil
}

func (f *family) appendVar(dst []byte, vars Vars, name string) ([]byte, error) {
	v, ok := vars[name]
	if !ok {
		return nil, fmt.Errorf("cache: family %s: no value for {%s}: Vars must have %s", f.Name, name, strings.Join(f.Vars(), ", "))
	}
	dst, err := appendVar(dst, v)
	if err != nil {
		return nil, fmt.Errorf("cache: family %s: variable %s: %w", f.Name, name, err)
	}
	return dst, nil
}

func (f *family) unknownVars(vars Vars) error {
	var unknown []string
	for name := range vars {
		if !slices.Contains(f.Vars(), name) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	return fmt.Errorf("cache: family %s has no variable %s: Vars must have %s and nothing else", f.Name, strings.Join(unknown, ", "), strings.Join(f.Vars(), ", "))
}
