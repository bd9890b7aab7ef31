package mapping

import (
	"fmt"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"
)

// Where the address of a server may come to stand in a file, rightly and wrongly.
var secretPlaces = []string{
	"source: {url: %s, slot: {name: s, bogus: 1}}\nredis: {url: redis://h, bogus: 1}\n",
	"source:\n  url: %s\n  slot: {name: 'a b'}\nredis: {url: redis://h}\n",
	"source: {slot: {name: s}, url: postgres://h/d}\nredis: {url: %s, prefix: 'a b{', scan_rate: x}\n",
	"source: {url: &a %s, url: *a, bogus: *a}\nredis: {url: *a, prefix: *a}\n",
	"source: {uri: %s, slot: {name: %s}}\nredis: {URL: %s, dedicated: %s}\n",
	"source: %s\nredis: [%s, {a: %s}]\n",
	"source: {%s}\nredis: {%s: %s}\n",
	"source: [{url: %s}, x]\nredis: {url: [%s], prefix: {a: %s}, bogus: 1}\n",
	"database_url: %s\n", "%s: 1\n", "- %s\n", "%s\n", "password: {a: %s, b: [%s]}\n",
	"source: {url: postgres://h/d, region: 1}  # was %s\nredis: {url: 1} # %s\n",
	"source: {url: %s\nredis: {url: x}\n", // no YAML
	"source:\n  url: %s: x\n  slot: {name: s}\n",
	"classes: {c: {staleness: %s, bogus: 1}}\n", "keys: {user: {key: %s, class: %s}}\n",
	"mappings: [{table: %s, keys: [%s], when: %s}]\n", "keys: {%s: {class: x}}\n", "redis: {prefix: %s, bogus: 1}\n",
}

// What people take for one.
var secretForms = []string{
	"postgres://u:%s@h/d", "postgres:/u:%s@h/d", "postgres//u:%s@h/d", "postgre//u:%s@h", "u:%s@h:5432/d", "postgres:u:%s@h/d", "jdbc:postgresql://h/d?user=u&password=%s",
	"postgres://h/d?password=%s", "postgres://h/d?user=u&password=%s&sslmode=disable x", "postgres://h/d?sslpassword=%s y", "postgres://h/d?options=-c foo.pw=%s",
	"host=h password=%s dbname=d", "host=h password = '%s' port=1", "PASSWORD=%s", "redis://:%s@h:1/0", "rediss://u:%s@h", "redis+sentinel://:%s@h/g?sentinel_password=%s", "https://u:%s@h/x",
	"postgres://u:${%s@h", "postgres://u:${env:%s}@h", "postgres://u:${X}%s@h x",
}

var secretQuotes = []func(string) string{
	func(s string) string { return s },
	func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" },
	func(s string) string {
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
	},
	func(s string) string { return `"` + s + `"` },
	func(s string) string { return ">-\n    " + s },
	func(s string) string { return "|\n    " + s + "\n" },
}

// Whatever a password is made of, however its URL is mistyped, and wherever in the file it
// stands: what is said about the file shows no part of it.
func TestFaultsShowNoPassword(t *testing.T) {
	check := func(t testing.TB, place, form, password string, quote func(string) string) {
		if strings.Contains(password, "}") && strings.Contains(form, "${") {
			return // the name of a variable
		}
		url := strings.ReplaceAll(form, "%s", password)
		data := "version: 1\n" + strings.ReplaceAll(place, "%s", quote(url)) + "classes: {x: 1}\n"
		_, err := Parse("f", []byte(data), testEnv())
		if err != nil && (strings.Contains(err.Error(), "TOPs") || strings.Contains(err.Error(), "SECr")) {
			t.Errorf("%q\nshows it:\n%v", data, err)
		}
	}
	turn := 0
	for c := rune(0); c < 0x100; c++ {
		if c != '\n' && c != '\t' && !unicode.IsPrint(c) && !unicode.IsSpace(c) {
			continue
		}
		for _, form := range secretForms {
			for _, quote := range secretQuotes {
				check(t, secretPlaces[turn%len(secretPlaces)], form, fmt.Sprintf("TOPs%cSECr", c), quote)
				turn++
			}
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		text := rapid.StringOfN(rapid.SampledFrom([]rune(" \t@:/?#%&='\"\\,;{}[]<>|$*!`~^()-_+.a1ü")), 0, 6, -1)
		password := text.Draw(rt, "before") + "TOPs" + text.Draw(rt, "between") + "SECr" + text.Draw(rt, "behind")
		check(t, rapid.SampledFrom(secretPlaces).Draw(rt, "place"), rapid.SampledFrom(secretForms).Draw(rt, "form"), password, rapid.SampledFrom(secretQuotes).Draw(rt, "quote"))
	})
}
