package mapping

import (
	"bytes"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

// value is a column's value as far as the log tells it.
type value struct {
	data   []byte
	raw    []byte // in the server's encoding; also of a value that cannot be converted
	null   bool
	known  bool
	reason Reason // why it is not known
}

// seen says whether the log tells the value, in whatever encoding.
func (v value) seen() bool { return v.known || v.reason == ReasonEncoding }

func (v value) equal(o value) bool { return v.null == o.null && bytes.Equal(v.raw, o.raw) }

func (v value) append(dst []byte, n Normal) []byte {
	if v.null {
		return append(dst, nullToken...)
	}
	return AppendEncoded(dst, n.Of(v.data))
}

// column is a column of a bound relation.
type column struct {
	index   int // in the tuple; -1 when the table has no such column
	key     bool
	blank   bool // char(n): the log pads it with blanks that mean nothing
	typeOID uint32
	text    decoder.Encoding // nil where the server's encoding is UTF-8
}

const (
	xmlOID    = 142
	bpcharOID = 1042
)

func (c *column) of(v decoder.Value) value {
	data := v.Data
	if c.blank {
		for len(data) > 0 && data[len(data)-1] == ' ' {
			data = data[:len(data)-1]
		}
	}
	if v.Kind == decoder.Null {
		return value{null: true, known: true}
	}
	if c.text == nil {
		return value{data: data, raw: data, known: true}
	}
	text, ok := c.text.UTF8(data)
	// The declaration of an XML document names the encoding in which it is sent.
	if !ok || c.typeOID == xmlOID {
		return value{raw: data, reason: ReasonEncoding}
	}
	return value{data: text, raw: data, known: true}
}

// newValue is the column's value after the change.
func (c *column) newValue(ch *decoder.Change) value {
	if c.index < 0 {
		return value{reason: ReasonLostColumn}
	}
	if c.index >= len(ch.New) {
		return value{reason: ReasonLostColumn}
	}
	v := ch.New[c.index]
	if v.Kind != decoder.Unchanged {
		return c.of(v)
	}
	// Unchanged, so the old image has it, also the one that has nothing but the
	// identity: the server writes that in full when it was TOASTed.
	if ch.OldKind == decoder.OldFull || ch.OldKind == decoder.OldKey && c.key {
		if c.index < len(ch.Old) && ch.Old[c.index].Kind != decoder.Unchanged {
			return c.of(ch.Old[c.index])
		}
	}
	return value{reason: ReasonToast}
}

// oldValue is the column's value before the change. What a key-only image leaves
// out arrives as NULL, but is a gap and no value. An update without an old image
// has left the columns of the replica identity alone.
func (c *column) oldValue(ch *decoder.Change) value {
	if c.index < 0 {
		return value{reason: ReasonLostColumn}
	}
	switch {
	case ch.OldKind == decoder.OldFull, ch.OldKind == decoder.OldKey && c.key:
		if c.index >= len(ch.Old) {
			return value{reason: ReasonNoOldValue}
		}
		v := ch.Old[c.index]
		if v.Kind == decoder.Unchanged {
			return value{reason: ReasonToast}
		}
		return c.of(v)
	case ch.OldKind == decoder.OldNone && c.key:
		return c.newValue(ch)
	}
	return value{reason: ReasonNoOldValue}
}
