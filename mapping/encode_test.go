package mapping

import (
	"bytes"
	"strings"
	"testing"
)

func TestOrdinaryValuesStayAsTheyAre(t *testing.T) {
	for _, v := range []string{"42", "-7", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "ann.o'neil+x@example.com", "Zürich", "3.14", "日本"} {
		if got := string(AppendEncoded(nil, []byte(v))); got != v {
			t.Errorf("%q became %q", v, got)
		}
	}
}

func TestHostileValuesAreEncoded(t *testing.T) {
	for v, want := range map[string]string{
		"a:b": "a%3Ab", "*": "%2A", "{x}": "%7Bx%7D", `\`: "%5C", "%-": "%25-", "a b": "a%20b", "\n\x00": "%0A%00",
		"\xff\xfe": "%FF%FE", "[?]": "%5B%3F%5D", "\x7f": "%7F", "\xc3": "%C3", "": "",
	} {
		if got := string(AppendEncoded(nil, []byte(v))); got != want {
			t.Errorf("%q became %q, want %q", v, got, want)
		}
	}
}

func FuzzEncode(f *testing.F) {
	for _, s := range []string{"", "a", "%-", "a:b", "{}", "\xff", "\xed\xa0\x80", "日本", "%3A"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, v []byte) {
		enc := string(AppendEncoded(nil, v))
		if strings.ContainsAny(enc, ":*?[]{}\\ \x00\n\x7f") || enc == nullToken {
			t.Fatalf("%q is encoded as %q, which leaves its place", v, enc)
		}
		got, null, err := Decode(enc)
		if err != nil || null || !bytes.Equal(got, v) {
			t.Fatalf("%q is encoded as %q and decoded as %q, %v, %v", v, enc, got, null, err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{"%-", "%3a", "%3A", "%", "%4", "%41", "a:b", "%C3%BC", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, null, err := Decode(s)
		if err != nil {
			return
		}
		enc := nullToken
		if !null {
			enc = string(AppendEncoded(nil, v))
		}
		if enc != s {
			t.Fatalf("%q decodes to %q, which encodes to %q", s, v, enc)
		}
	})
}
