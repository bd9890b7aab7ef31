package sink

import "testing"

func TestRedisCLIWord(t *testing.T) {
	for word, want := range map[string]string{
		"": `""`, "u": "u", "~a*": "~a*", "a b ~*": `"a b ~*"`, `a"b\`: `"a\"b\\"`, "it's": `"it's"`,
	} {
		if got := RedisCLIWord(word); got != want {
			t.Errorf("RedisCLIWord(%q) = %s, want %s", word, got, want)
		}
	}
}
