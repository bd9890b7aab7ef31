package mapping

import (
	"reflect"
	"strings"
)

// fields are the names of a format's fields, in the order in which hints list
// them. What the parser knows and what the JSON schema allows is so the same.
func fields[T any]() []string {
	t := reflect.TypeFor[T]()
	names := make([]string, t.NumField())
	for i := range names {
		names[i], _, _ = strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
	}
	return names
}
