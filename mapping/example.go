package mapping

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

// Example is a row change that a person wrote down. Old and New hold what
// encoding/json decodes with UseNumber.
type Example struct {
	Schema, Table string
	Action        decoder.Action
	Identity      []string       // columns of the replica identity; nil for full
	Old, New      map[string]any // nil where the action has none
}

// ExampleError says what an example lacks.
type ExampleError struct {
	Image   string // old or new
	Column  string
	Problem string
}

func (e *ExampleError) Error() string {
	return fmt.Sprintf("%s lacks column %s%s; give it, or null", e.Image, e.Column, e.Problem)
}

// Change is the example as the log would carry it, of a table that has the
// columns which the mappings use, and those of the example. An old image that the
// replica identity does not log is left out; a column that New leaves out is a
// TOASTed value that the update did not change.
func (x Example) Change(used []string) (*decoder.Relation, *decoder.Change, error) {
	ch := &decoder.Change{Action: x.Action}
	needOld := x.Action != decoder.Insert
	rel := &decoder.Relation{ID: 1, Namespace: x.Schema, Name: x.Table, ReplicaIdentity: decoder.IdentityIndex}
	full := x.Identity == nil
	if full {
		rel.ReplicaIdentity = decoder.IdentityFull
	}
	identityChanged := false
	for _, name := range x.columns(used) {
		key := full || slices.Contains(x.Identity, name)
		old, oldGiven := x.Old[name]
		value, newGiven := x.New[name]
		if needOld && key && !oldGiven {
			return nil, nil, &ExampleError{"old", name, ", which is in the replica identity"}
		}
		if x.Action == decoder.Insert && !newGiven {
			return nil, nil, &ExampleError{"new", name, ""}
		}
		sample := value
		if sample == nil {
			sample = old
		}
		rel.Columns = append(rel.Columns, decoder.Column{Name: name, Key: key, TypeOID: exampleType(sample)})
		oldValue, newValue := exampleValue(old, oldGiven), exampleValue(value, newGiven)
		ch.Old, ch.New = append(ch.Old, oldValue), append(ch.New, newValue)
		if key && newGiven && (oldValue.Kind != newValue.Kind || string(oldValue.Data) != string(newValue.Data)) {
			identityChanged = true
		}
	}
	switch {
	case !needOld:
		ch.Old = nil
	case full:
		ch.OldKind = decoder.OldFull
	case x.Action == decoder.Delete || identityChanged:
		ch.OldKind = decoder.OldKey
	default:
		ch.OldKind, ch.Old = decoder.OldNone, nil // as the server does: the identity did not change
	}
	if x.Action == decoder.Delete {
		ch.New = nil
	}
	return rel, ch, nil
}

func (x Example) columns(used []string) []string {
	names := slices.Clone(used)
	for _, row := range []map[string]any{x.Old, x.New} {
		for name := range row {
			names = append(names, name)
		}
	}
	return sortedSet(append(names, x.Identity...))
}

// exampleType guesses a column's type from its value, for predicates.
func exampleType(v any) uint32 {
	switch v := v.(type) {
	case bool:
		return 16
	case json.Number:
		if strings.ContainsAny(v.String(), ".eE") {
			return 1700
		}
		return 20
	}
	return 25
}

func exampleValue(v any, given bool) decoder.Value {
	if !given {
		return decoder.Value{Kind: decoder.Unchanged}
	}
	data, null := exampleText(v)
	if null {
		return decoder.Value{Kind: decoder.Null}
	}
	return decoder.Value{Kind: decoder.Text, Data: data}
}

// exampleText is a value as Postgres prints it.
func exampleText(v any) (data []byte, null bool) {
	switch v := v.(type) {
	case nil:
		return nil, true
	case bool:
		if v {
			return []byte("t"), false
		}
		return []byte("f"), false
	case string:
		return []byte(v), false
	case json.Number:
		return []byte(v), false
	}
	data, _ = json.Marshal(v) // a json column; it was just decoded
	return data, false
}
