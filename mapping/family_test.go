package mapping

import (
	"errors"
	"testing"
)

func TestAppendKey(t *testing.T) {
	f := &Family{Name: "f", Versioned: true, key: mustTemplate(t, "t:{tenant}:q:{version}:{query}"), version: mustTemplate(t, "t:{tenant}:q")}
	value := func(dst []byte, v string) ([]byte, error) {
		switch v {
		case "tenant":
			return AppendEncoded(dst, []byte("a:b")), nil
		case VersionVar:
			return append(dst, "00ff"...), nil
		}
		return AppendNull(dst), nil
	}
	buf := make([]byte, 0, 64)
	key, err := f.AppendKey(buf, value)
	if err != nil || string(key) != "t:a%3Ab:q:00ff:%-" {
		t.Errorf("key %q, %v", key, err)
	}
	if allocs := testing.AllocsPerRun(100, func() { _, _ = f.AppendKey(buf, value) }); allocs != 0 {
		t.Errorf("%v allocations a key, want none", allocs)
	}
	if key, err = f.AppendVersionKey(buf, value); err != nil || string(key) != "t:a%3Ab:q" {
		t.Errorf("version key %q, %v", key, err)
	}
	if vars := f.Vars(); len(vars) != 2 || vars[0] != "tenant" || vars[1] != "query" {
		t.Errorf("variables %v, want tenant and query", vars)
	}
	refused := errors.New("no value")
	if _, err := f.AppendKey(nil, func([]byte, string) ([]byte, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Errorf("error %v, want that of the value", err)
	}
}
