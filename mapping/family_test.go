package mapping

import (
	"slices"
	"testing"
)

func TestFamilyVars(t *testing.T) {
	f := &Family{Name: "f", Versioned: true, key: mustTemplate(t, "t:{tenant}:q:{version}:{query}!"), version: mustTemplate(t, "t:{tenant}:q")}
	if vars := f.Vars(); !slices.Equal(vars, []string{"tenant", "query"}) {
		t.Errorf("variables %v", vars)
	}
	key, err := f.Key(map[string]string{"tenant": "a:b", VersionVar: "00ff", "query": "q"})
	if err != nil || key != "t:a%3Ab:q:00ff:q!" {
		t.Errorf("key %q, %v", key, err)
	}
	var rendered string
	for i, v := range f.KeyTemplate().Vars() {
		rendered += f.KeyTemplate().Literal(i) + "{" + v + "}"
	}
	if rendered += f.KeyTemplate().Literal(3); rendered != f.KeyTemplate().String() {
		t.Errorf("parts %q", rendered)
	}
}
