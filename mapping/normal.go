package mapping

import (
	"bytes"
	"slices"
	"unicode"
	"unicode/utf8"
)

// Normal is what is done to a value before it stands in a key: {email|lower}. It brings the
// texts under which one row can be found together. The daemon and readers in every language
// do the same, byte by byte.
type Normal string

// The normal forms.
const (
	NormalNone   Normal = ""
	NormalLower  Normal = "lower"  // every letter by the simple lower-case mapping of Unicode 13.0, whatever the locale
	NormalRTrim  Normal = "rtrim"  // without the blanks (U+0020) at the end
	NormalNumber Normal = "number" // a decimal number without zeros at the end of its fraction: 1.50 is 1.5, 1.0 is 1
)

// Normals are the forms that a template can ask for.
func Normals() []Normal { return []Normal{NormalLower, NormalRTrim, NormalNumber} }

func normalNames() []string {
	var names []string
	for _, n := range Normals() {
		names = append(names, string(n))
	}
	return names
}

// Of is the normal form of a value, or the value where that is the same. What is no UTF-8
// stays as it is.
func (n Normal) Of(value []byte) []byte {
	switch n {
	case NormalLower:
		return lower(value)
	case NormalRTrim:
		return bytes.TrimRight(value, " ")
	case NormalNumber:
		return trimNumber(value)
	}
	return value
}

func lower(value []byte) []byte {
	for i := 0; i < len(value); {
		r, n := utf8.DecodeRune(value[i:])
		if l := lowerRune(r); l == r || r == utf8.RuneError {
			i += n
			continue
		}
		out := slices.Clone(value[:i])
		for i < len(value) {
			if r, n = utf8.DecodeRune(value[i:]); r == utf8.RuneError {
				out = append(out, value[i:i+n]...)
			} else {
				out = utf8.AppendRune(out, lowerRune(r))
			}
			i += n
		}
		return out
	}
	return value
}

// lowerRune is the mapping of Unicode 13.0. Letters that have got a lower case since are left
// alone: what knows another version would make another key of them.
func lowerRune(r rune) rune {
	switch {
	case r < utf8.RuneSelf:
		if r >= 'A' && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	case LaterLetter(r):
		return r
	}
	return unicode.ToLower(r)
}

// LaterLetter says of a letter that it has got a lower case after Unicode 13.0.
func LaterLetter(r rune) bool {
	return r == 0x1c89 || r == 0x2c2f || r == 0xa7c0 || r >= 0xa7cb && r <= 0xa7df ||
		r >= 0x10570 && r <= 0x10595 || r >= 0x10d50 && r <= 0x10d65 || r >= 0x16ea0 && r <= 0x16eb8
}

func trimNumber(value []byte) []byte {
	whole, fraction, point := bytes.Cut(value, []byte("."))
	digits := func(b []byte) bool { return len(b) > 0 && len(bytes.Trim(b, "0123456789")) == 0 }
	if !point || !digits(bytes.TrimPrefix(whole, []byte("-"))) || !digits(fraction) {
		return value
	}
	trimmed := bytes.TrimRight(value, "0")
	return bytes.TrimSuffix(trimmed, []byte("."))
}
