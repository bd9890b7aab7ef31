package cache

import (
	"encoding/json"
	"fmt"
)

// Codec turns values into what is stored, and back. Readers of one family must agree on
// it. It is called from many goroutines.
type Codec interface {
	Encode(v any) ([]byte, error)
	// Decode stores in v, a pointer, what data says. data must be neither changed nor kept.
	Decode(data []byte, v any) error
}

// JSON is the default codec.
var JSON Codec = jsonCodec{}

// Raw stores strings and []byte as they are.
var Raw Codec = rawCodec{}

type jsonCodec struct{}

func (jsonCodec) Encode(v any) ([]byte, error)    { return json.Marshal(v) }
func (jsonCodec) Decode(data []byte, v any) error { return json.Unmarshal(data, v) }

type rawCodec struct{}

func (rawCodec) Encode(v any) ([]byte, error) {
	switch v := v.(type) {
	case string:
		return []byte(v), nil
	case []byte:
		return v, nil
	}
	return nil, fmt.Errorf("the codec Raw stores string and []byte, not %T", v)
}

func (rawCodec) Decode(data []byte, v any) error {
	switch v := v.(type) {
	case *string:
		*v = string(data)
	case *[]byte:
		*v = append([]byte{}, data...)
	default:
		return fmt.Errorf("the codec Raw stores string and []byte, not %T", v)
	}
	return nil
}
