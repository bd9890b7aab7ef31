package mapping

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Whatever rows hold, a masked key shows the template's own text and nothing else.
func TestMaskKeyShowsNoValue(t *testing.T) {
	templates := []string{"user:{a}", "{a}", "t:{a}-x:{b}", "{a}:{b}:", "p:{{x}}:{a}*y[{b}]", "a%20:{a}", "{a}x:y{b}z", "all"}
	rapid.Check(t, func(t *rapid.T) {
		tmpl, err := ParseTemplate(rapid.SampledFrom(templates).Draw(t, "template"))
		if err != nil {
			t.Fatal(err)
		}
		f := &Family{key: tmpl}
		vars := map[string]string{"a": rapid.String().Draw(t, "a"), "b": rapid.String().Draw(t, "b")}
		key, err := f.Key(vars)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		masked := f.MaskKey([]byte(key), func(v []byte) string { got = append(got, string(v)); return "<*>" })
		for i, v := range tmpl.Vars() {
			if i >= len(got) || got[i] != string(AppendEncoded(nil, []byte(vars[v]))) {
				t.Fatalf("%q: values %q, want that of %s to be %q", key, got, v, vars[v])
			}
		}
		if want := strings.Join(tmpl.lits, "<*>"); masked != want {
			t.Fatalf("%q is masked as %q, want %q", key, masked, want)
		}
	})
}

func TestMaskKeyOfAnotherTemplateShowsNothing(t *testing.T) {
	tmpl, err := ParseTemplate("user:{a}:{b}")
	if err != nil {
		t.Fatal(err)
	}
	f := &Family{key: tmpl}
	for _, key := range []string{"", "user:", "user:1", "page:1:2", "user:1"} {
		if got := f.MaskKey([]byte(key), func([]byte) string { return "*" }); got != "*" {
			t.Errorf("%q: %q", key, got)
		}
	}
}
