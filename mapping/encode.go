package mapping

import (
	"errors"
	"unicode/utf8"
)

// How a value stands in a key. Every byte that means something to Redis (a glob,
// a hash tag) or to a template (the colon that keeps two values apart) is
// percent-encoded, so that no row value can leave its place in its template, its
// tenant or its hash slot. NULL is an escape that no value produces; the empty
// string is just that, nothing.
const (
	nullToken = "%-"
	hexDigits = "0123456789ABCDEF"
)

// reserved are the bytes that are always encoded. One of them, but for '%', must
// stand between two variables of a template: that is what makes different values
// give different keys.
var reserved = func() (t [256]bool) {
	for b := range 0x21 {
		t[b] = true // controls and space
	}
	t[0x7f] = true
	for _, b := range []byte(`%:*?[]{}\`) {
		t[b] = true
	}
	return t
}()

// AppendEncoded appends the value as it stands in keys.
func AppendEncoded(dst, value []byte) []byte {
	start := 0
	for i := 0; i < len(value); {
		b := value[i]
		if b < utf8.RuneSelf {
			if !reserved[b] {
				i++
				continue
			}
		} else if r, n := utf8.DecodeRune(value[i:]); r != utf8.RuneError || n > 1 {
			i += n
			continue
		}
		dst = append(dst, value[start:i]...)
		dst = append(dst, '%', hexDigits[b>>4], hexDigits[b&0xf])
		i++
		start = i
	}
	return append(dst, value[start:]...)
}

// AppendNull appends NULL as it stands in keys.
func AppendNull(dst []byte) []byte { return append(dst, nullToken...) }

var errEncoding = errors.New("not the encoding of a value")

// Decode is the inverse of AppendEncoded. null is true for NULL.
func Decode(encoded string) (value []byte, null bool, err error) {
	if encoded == nullToken {
		return nil, true, nil
	}
	value = make([]byte, 0, len(encoded))
	for i := 0; i < len(encoded); i++ {
		b := encoded[i]
		switch {
		case b == '%':
			if i+2 >= len(encoded) {
				return nil, false, errEncoding
			}
			hi, lo := unhex(encoded[i+1]), unhex(encoded[i+2])
			if hi < 0 || lo < 0 {
				return nil, false, errEncoding
			}
			value = append(value, byte(hi<<4|lo))
			i += 2
		case b < utf8.RuneSelf && reserved[b]:
			return nil, false, errEncoding
		default:
			value = append(value, b)
		}
	}
	// One value, one encoding: what encodes differently is not an encoding.
	if string(AppendEncoded(nil, value)) != encoded {
		return nil, false, errEncoding
	}
	return value, false, nil
}

func unhex(b byte) int {
	switch {
	case b >= '0' && b <= '9':
		return int(b - '0')
	case b >= 'A' && b <= 'F':
		return int(b-'A') + 10
	}
	return -1
}
