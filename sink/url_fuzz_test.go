package sink

import (
	"net/url"
	"strings"
	"testing"
)

// FuzzPasswordInURL: whatever a password is made of, no error shows a part of it, nor does a
// name that is taken from the URL; encoded, it is taken whole.
func FuzzPasswordInURL(f *testing.F) {
	for _, p := range []string{"TOPSECRET-plain", "x@TOPSECRET", "1/TOPSECRET", "1/a@TOPSECRET", "p#TOPSECRET", "p?TOPSECRET=1", "1?db=TOPSECRET", "100%TOPSECRET",
		"a TOPSECRET", `it's"TOP\SECRET`, "1,TOPSECRET", "[TOPSECRET]", "1:TOPSECRET", "1/0?ca_file=/TOPSECRET", "pässwörd-TOPSECRET", "a\nTOPSECRET"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, password string) {
		const part = 8
		if len(password) < part {
			t.Skip("too short to be told from other text")
		}
		for _, form := range []string{"redis://me:%s@127.0.0.1:6379/0", "rediss://:%s@127.0.0.1/1", "redis+sentinel://me:%s@127.0.0.1:1,127.0.0.1:2/group/3", "redis+cluster://me:%s@127.0.0.1"} {
			e, err := parseURL(strings.Replace(form, "%s", password, 1))
			var shown string
			if err != nil {
				shown = err.Error()
			} else {
				shown = strings.Join(append(e.addrs, e.master), " ")
			}
			for i := 0; i+part <= len(password); i++ {
				if p := password[i : i+part]; strings.Contains(shown, p) && !strings.Contains(strings.Replace(form, "%s", "", 1)+urlForms, p) && len(strings.Fields(p)) == 1 && !strings.Contains(CheckURL("x").Error(), p) {
					t.Errorf("%s: %q of the password is in %q", form, p, shown)
					break
				}
			}
			encoded := strings.TrimPrefix(url.UserPassword("", password).String(), ":")
			if e, err := parseURL(strings.Replace(form, "%s", encoded, 1)); err != nil || e.password != password {
				t.Errorf("%s, encoded: %v", form, err)
			}
		}
	})
}
