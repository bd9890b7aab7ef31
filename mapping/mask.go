package mapping

import (
	"bytes"
	"strings"
)

// MaskKey renders a key that an invalidation of the family names with each value in
// it replaced: what the template says stays readable, what rows hold does not. mask
// gets values as they stand in keys, that is encoded.
func (f *Family) MaskKey(key []byte, mask func(value []byte) string) string {
	values, ok := f.target().values(key)
	if !ok {
		return mask(key) // of another template; shown as one value
	}
	t := f.target()
	var b strings.Builder
	for i, v := range values {
		b.WriteString(t.lits[i])
		b.WriteString(mask(v))
	}
	b.WriteString(t.lits[len(values)])
	return b.String()
}

// values takes a key of the template apart. It is the inverse of rendering: between
// two variables stands a byte that no encoded value has.
func (t *Template) values(key []byte) (values [][]byte, ok bool) {
	rest, ok := bytes.CutPrefix(key, []byte(t.lits[0]))
	if !ok {
		return nil, false
	}
	for i := range t.vars {
		lit := t.lits[i+1]
		end := len(rest) - len(lit) // of the last variable: whatever is left
		if i+1 < len(t.vars) {
			sep := separator(lit)
			at := bytes.IndexByte(rest, lit[sep-1])
			end = at - (sep - 1)
		}
		if end < 0 || !bytes.HasPrefix(rest[end:], []byte(lit)) {
			return nil, false
		}
		values = append(values, rest[:end])
		rest = rest[end+len(lit):]
	}
	return values, len(rest) == 0
}
