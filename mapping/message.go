package mapping

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

// Logical adds what a logical message of the log makes stale, in both readings where it
// has two.
func (p *Plan) Logical(m *decoder.Logical, out *Output) {
	p.Message(m.Prefix, m.Content, out)
	if m.Other != nil && !bytes.Equal(m.Other, m.Content) {
		p.Message(m.Prefix, m.Other, out)
	}
}

// Message adds what a logical message makes stale. Its content is a JSON object
// with a field for each variable; one that is not widens.
func (p *Plan) Message(prefix, content []byte, out *Output) {
	rules := p.messages[string(prefix)]
	if len(rules) == 0 {
		return
	}
	fields := messageFields(content)
	for _, r := range rules {
		for _, t := range r.targets {
			t.message(fields, out)
		}
	}
}

// messageFields reads the object's scalar fields; nil when there is none to read.
func messageFields(content []byte) map[string]value {
	if !utf8.Valid(content) {
		return nil // the decoder would put other characters in the place of what is not
	}
	var raw map[string]json.RawMessage
	if json.Unmarshal(content, &raw) != nil {
		return nil
	}
	fields := make(map[string]value, len(raw))
	for name, text := range raw {
		if v, ok := messageField(text); ok {
			fields[name] = v
		}
	}
	return fields
}

// longestField is how many bytes of JSON a text has at most of which a key has room: each byte
// may be written as \u0020, and three of them may stand for one in lower case.
const longestField = 6*shrinks*MaxKeyLength + len(`""`)

// messageField is the value of a field; ok is false of what is no scalar.
func messageField(text json.RawMessage) (v value, ok bool) {
	switch text[0] {
	case '{', '[':
		return value{}, false
	case 'n':
		return value{null: true, known: true}, true
	case 't', 'f':
		return value{data: text[:1], known: true}, true // as Postgres writes it
	case '"':
	default:
		return value{data: text, known: true}, true // an id must keep its digits
	}
	if len(text) > longestField {
		return value{reason: ReasonLength}, true
	}
	var s string
	// In the place of what is no character in UTF-8, here or in the sender's own text.
	if json.Unmarshal(text, &s) != nil || strings.ContainsRune(s, utf8.RuneError) {
		return value{reason: ReasonEncoding}, true
	}
	return value{data: []byte(s), known: true}, true
}

func (t *target) message(fields map[string]value, out *Output) {
	start := len(out.buf)
	buf, why, known := t.tmpl.appendKey(out.buf, func(i int) value {
		v, ok := fields[t.vars[i]]
		if !ok {
			v.reason = ReasonMessage
		}
		return v
	})
	out.buf = buf
	key := buf[start:len(buf):len(buf)]
	var tenant []byte
	if v := fields[t.tenant]; v.known && t.tenant != "" {
		tenant = out.tenant(v, t.family)
	}
	if !known {
		out.Widened[why]++
		out.purge(t.family, tenant)
		return
	}
	out.key(t.family, tenant, key)
}
