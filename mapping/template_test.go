package mapping

import (
	"errors"
	"path"
	"slices"
	"strings"
	"testing"
)

func mustTemplate(t testing.TB, s string) *Template {
	t.Helper()
	tmpl, err := ParseTemplate(s)
	if err != nil {
		t.Fatalf("template %q: %v", s, err)
	}
	return tmpl
}

func TestParseTemplate(t *testing.T) {
	tmpl := mustTemplate(t, "t:{tenant_id}:{{tag}}:user:{id}")
	if got := tmpl.Vars(); !slices.Equal(got, []string{"tenant_id", "id"}) {
		t.Errorf("variables %v", got)
	}
	if got, _ := render(tmpl, map[string]string{"tenant_id": "7", "id": "a:b"}); got != "t:7:{tag}:user:a%3Ab" {
		t.Errorf("rendered %q", got)
	}
	for s, problem := range map[string]string{
		"":          "empty",
		"{a}{b}":    "apart",
		"{a}-x-{b}": "apart", // '-' is not encoded inside values
		"x{a":       "without '}'",
		"x}":        "without '{'",
		"x:{a b}":   "not a variable's name",
		"x:{}":      "not a variable's name",
		"x:{1a}":    "not a variable's name",
		"x:{a}:{a}": "twice",
		"x y:{a}":   "space",
	} {
		_, err := ParseTemplate(s)
		var te *TemplateError
		if !errors.As(err, &te) || !strings.Contains(te.Problem, problem) || te.Hint == "" {
			t.Errorf("template %q: error %v, want one about %q with a hint", s, err, problem)
		}
	}
}

// A SCAN pattern must match each key of its tenant and none of another's.
func TestPatternMatchesItsTenantOnly(t *testing.T) {
	f := &Family{Name: "user", TenantVar: "tenant_id", key: mustTemplate(t, "t[1]*:{tenant_id}:user:{id}")}
	key := func(tenant, id string) string {
		k, err := f.Key(map[string]string{"tenant_id": tenant, "id": id})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	match := func(pattern, k string) bool {
		ok, err := path.Match(pattern, k)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	for _, tenant := range []string{"7", "77", "*", "7:user:1", "", "a]b"} {
		enc := AppendEncoded([]byte{}, []byte(tenant))
		for _, other := range []string{"7", "77", "*", "7:user:1", "", "a]b"} {
			k := key(other, "x:y*")
			if got := match(f.Pattern(enc), k); got != (tenant == other) {
				t.Errorf("pattern of tenant %q: matches %q: %v", tenant, k, got)
			}
			if !match(f.Pattern(nil), k) {
				t.Errorf("the family's pattern %q misses %q", f.Pattern(nil), k)
			}
		}
	}
}

// Distinct tuples give distinct keys, for any template that is accepted, and a
// tenant's keys are no other tenant's.
func FuzzKeysAreInjective(f *testing.F) {
	f.Add("t:{t}:u:{a}:{b}", "1", "2", "3", "1", "2:3", "")
	f.Add("{t}:{a}x:{b}", "a", "x:", "b", "ax", "", "b")
	f.Add("{t}-:-{a}:{b}", "-", "-", "", "", "--", "")
	f.Fuzz(func(t *testing.T, source, t1, a1, b1, t2, a2, b2 string) {
		tmpl, err := ParseTemplate(source)
		if err != nil || !slices.Equal(tmpl.vars, []string{"t", "a", "b"}) {
			return
		}
		k1, err := render(tmpl, map[string]string{"t": t1, "a": a1, "b": b1})
		if err != nil {
			t.Fatal(err)
		}
		k2, err := render(tmpl, map[string]string{"t": t2, "a": a2, "b": b2})
		if err != nil {
			t.Fatal(err)
		}
		if equal := t1 == t2 && a1 == a2 && b1 == b2; (k1 == k2) != equal {
			t.Fatalf("template %q: %q,%q,%q gives %q and %q,%q,%q gives %q", source, t1, a1, b1, k1, t2, a2, b2, k2)
		}
	})
}
