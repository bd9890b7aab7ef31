package charset

import "encoding/binary"

// Size is how many characters beyond ASCII there are.
func (e *Encoding) Size() int { return len(e.codes) }

// Codes are their bytes.
func (e *Encoding) Codes() []string {
	var all []string
	for _, c := range e.codes {
		b := binary.BigEndian.AppendUint32(nil, c)
		for len(b) > 1 && b[0] == 0 {
			b = b[1:]
		}
		all = append(all, string(b))
	}
	return all
}
