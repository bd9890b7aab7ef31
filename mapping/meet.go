package mapping

// token is a part of a template: a byte, or a run of any bytes (a glob's star) or
// of those that an encoded value can have.
type token struct {
	lit        byte
	any, value bool
}

// tokens reads a template in which the given variables have the given values.
func tokens(t *Template, values map[string]string, glob bool) []token {
	var list []token
	text := func(s string) {
		for i := range len(s) {
			list = append(list, token{lit: s[i]})
		}
	}
	for i, lit := range t.lits {
		text(lit)
		if i == len(t.vars) {
			break
		}
		if value, ok := values[t.vars[i]]; ok {
			text(value)
		} else {
			list = append(list, token{any: glob, value: !glob})
		}
	}
	return list
}

func (t token) run() bool { return t.any || t.value }

// takes says whether a run can hold what the other token stands for.
func (t token) takes(o token) bool {
	return t.any || o.run() || !reserved[o.lit] || o.lit == '%'
}

// meet says whether any key belongs to both. It follows all ways at once through
// the pairs of positions.
func meet(a, b []token) bool {
	reach := make([]bool, len(b)+1) // reach[j]: a[:i] and b[:j] have a text in common
	next := make([]bool, len(b)+1)
	reach[0] = true
	for i := 0; ; i++ {
		for j := range b {
			if !reach[j] {
				continue
			}
			// A run may end here, or take what the other side has next.
			if b[j].run() || i < len(a) && a[i].run() && a[i].takes(b[j]) {
				reach[j+1] = true
			}
			if i < len(a) && !a[i].run() && !b[j].run() && a[i].lit == b[j].lit {
				next[j+1] = true
			}
		}
		if i == len(a) {
			return reach[len(b)]
		}
		for j := range reach {
			if reach[j] && (a[i].run() || j < len(b) && b[j].run() && b[j].takes(a[i])) {
				next[j] = true
			}
		}
		reach, next = next, reach
		clear(next)
	}
}
