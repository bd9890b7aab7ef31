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
	var raw map[string]any
	d := json.NewDecoder(bytes.NewReader(content))
	d.UseNumber() // an id must keep its digits
	if err := d.Decode(&raw); err != nil || d.More() {
		return nil
	}
	fields := make(map[string]value, len(raw))
	for name, v := range raw {
		switch v := v.(type) {
		case nil:
			fields[name] = value{null: true, known: true}
		case string:
			// In the place of what is no character in UTF-8, here or in the sender's own text.
			if strings.ContainsRune(v, utf8.RuneError) {
				fields[name] = value{reason: ReasonEncoding}
				continue
			}
			fields[name] = value{data: []byte(v), known: true}
		case json.Number:
			fields[name] = value{data: []byte(v), known: true}
		case bool:
			data := "f" // as Postgres writes it
			if v {
				data = "t"
			}
			fields[name] = value{data: []byte(data), known: true}
		}
	}
	return fields
}

func (t *target) message(fields map[string]value, out *Output) {
	start := len(out.buf)
	for i, name := range t.vars {
		v, ok := fields[name]
		if !ok {
			v.reason = ReasonMessage
		}
		if !v.known {
			out.buf = out.buf[:start]
			out.Widened[v.reason]++
			var tenant []byte
			if v := fields[t.tenant]; v.known && t.tenant != "" {
				tenant = out.tenant(v, t.family)
			}
			out.purge(t.family, tenant)
			return
		}
		out.buf = append(out.buf, t.tmpl.lits[i]...)
		out.buf = v.append(out.buf, t.tmpl.normals[i])
	}
	out.buf = append(out.buf, t.tmpl.lits[len(t.vars)]...)
	key := out.buf[start:len(out.buf):len(out.buf)]
	var tenant []byte
	if t.tenant != "" {
		tenant = out.tenant(fields[t.tenant], t.family)
	}
	out.key(t.family, tenant, key)
}
