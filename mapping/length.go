package mapping

import "fmt"

// MaxKeyLength is how many bytes a key has at most, as it is rendered: literals, values in their
// normal form, and the percent encoding. The same holds for version keys and for the name of an
// entity. Readers refuse what would be longer, and the daemon widens it: such a key is sent in
// every command that concerns it, and Redis closes the connection on one that is longer than its
// proto-max-bulk-len, however often it is sent. No index of Postgres takes a value of this size
// in, and no proxy an address.
const MaxKeyLength = 16 << 10

// maxParams is how many bytes the arguments of one for_each query have at most, for the same
// reason. They are no part of a key: lists of ids are among them.
const maxParams = 1 << 20

// ErrKeyTooLong is of a key that would be longer than MaxKeyLength.
var ErrKeyTooLong = fmt.Errorf("the key would be longer than %d bytes", MaxKeyLength)

// shrinks is how many times fewer bytes a letter has in lower case at most.
const shrinks = 3

// appendKey appends the key of these values. known is false where one of them is not known, or
// the key would be too long, which is found out without building it; dst is as it was then.
func (t *Template) appendKey(dst []byte, of func(i int) value) (key []byte, why Reason, known bool) {
	start := len(dst)
	for i := range t.vars {
		v := of(i)
		if !v.known {
			return dst[:start], v.reason, false
		}
		dst = append(dst, t.lits[i]...)
		if dst, known = v.appendWithin(dst, t.normals[i], MaxKeyLength-(len(dst)-start)); !known {
			return dst[:start], ReasonLength, false
		}
	}
	dst = append(dst, t.lits[len(t.vars)]...)
	if len(dst)-start > MaxKeyLength {
		return dst[:start], ReasonLength, false
	}
	return dst, 0, true
}

// appendWithin appends the value as it stands in keys, if it takes no more than room there.
func (v value) appendWithin(dst []byte, n Normal, room int) (key []byte, ok bool) {
	start := len(dst)
	switch {
	case v.null:
		dst = append(dst, nullToken...)
	case n == NormalLower && len(v.data) > shrinks*room: // the other forms copy nothing
		return dst, false
	default:
		data := n.Of(v.data)
		if len(data) > room { // no byte gets shorter by the encoding
			return dst, false
		}
		dst = AppendEncoded(dst, data)
	}
	return dst, len(dst)-start <= room
}
