package mapping

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"unicode"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

// The mapping is frozen: readers in other languages have the same, whatever version of Unicode
// their languages know. tests/protocol compares docs/python/cdc_keys.py, letter by letter.
func TestLowerIsThatOfUnicode13(t *testing.T) {
	sum, letters := sha256.New(), 0
	for r := rune(0); r <= unicode.MaxRune; r++ {
		if l := lowerRune(r); l != r {
			fmt.Fprintf(sum, "%x %x\n", r, l)
			letters++
		}
	}
	if got := fmt.Sprintf("%d %x", letters, sum.Sum(nil)[:8]); got != "1393 d7d40f2105750339" {
		t.Errorf("the letters are %s", got)
	}
}

func TestNormalForms(t *testing.T) {
	for _, tt := range []struct {
		n          Normal
		text, want string
	}{
		{NormalNone, "Ab ", "Ab "},
		{NormalLower, "Bob@Example.com", "bob@example.com"}, {NormalLower, "ÄΣİẞ", "äσiß"}, {NormalLower, "bob", "bob"}, {NormalLower, "", ""}, {NormalLower, "A\xffB", "a\xffb"}, {NormalLower, "\ufffdA", "\ufffda"},
		{NormalRTrim, " a b  ", " a b"}, {NormalRTrim, "a\t ", "a\t"}, {NormalRTrim, "a\u00a0", "a\u00a0"}, {NormalRTrim, "   ", ""},
		{NormalNumber, "1.50", "1.5"}, {NormalNumber, "1.0", "1"}, {NormalNumber, "100", "100"}, {NormalNumber, "-0.050", "-0.05"}, {NormalNumber, "0.00", "0"}, {NormalNumber, "NaN", "NaN"}, {NormalNumber, "1.", "1."}, {NormalNumber, "1e10", "1e10"}, {NormalNumber, "v1.0", "v1.0"},
	} {
		if got := string(tt.n.Of([]byte(tt.text))); got != tt.want {
			t.Errorf("%s of %q is %q, want %q", tt.n, tt.text, got, tt.want)
		}
		if got := tt.n.Of(tt.n.Of([]byte(tt.text))); string(got) != tt.want {
			t.Errorf("%s of %q twice is %q", tt.n, tt.text, got)
		}
	}
}

const normalFile = `version: 1
source: {url: "postgres://x/y"}
redis: {url: "redis://x"}
classes: {c: {staleness: 1s}}
keys:
  user: {key: "u:{org|lower}:{email|lower}", tenant: org, class: c}
  list: {key: "l:{org|lower}:{version}:{q}", version: "l:{org|lower}", tenant: org, class: c}
mappings:
  - table: public.users
    keys: [user, list, {user: {org: org, email: mail}, for_each: "SELECT mail FROM x WHERE id = {id}"}]
    dependents: ["who:{email|lower}"]
  - {message: user.changed, keys: [user]}
`

// The daemon makes the normal form in keys, version keys, tenants, entities, for_each results and
// messages alike.
func TestTheDaemonMakesNormalForms(t *testing.T) {
	f, err := Parse("m.yaml", []byte(normalFile), Env{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := Compile(f)
	if err != nil {
		t.Fatal(err)
	}
	rel := &decoder.Relation{Namespace: "public", Name: "users", ReplicaIdentity: decoder.IdentityFull,
		Columns: []decoder.Column{{Name: "id", Key: true}, {Name: "org", Key: true}, {Name: "email", Key: true}}}
	row := []decoder.Value{{Kind: decoder.Text, Data: []byte("7")}, {Kind: decoder.Text, Data: []byte("ACME")}, {Kind: decoder.Text, Data: []byte("Bob@X")}}
	var out, answer Output
	p.Bind(rel).Map(&decoder.Change{Relation: rel, Action: decoder.Insert, New: row}, &out)
	p.Message([]byte("user.changed"), []byte(`{"org": "ACME", "email": "Zoë@X"}`), &out)
	p.Message([]byte("user.changed"), []byte(`{"org": "ACME"}`), &out)
	var got []string
	for _, inv := range out.Invalidations {
		if inv.Op == OpLookup {
			if string(inv.Lookup.Params()[0]) != "7" {
				t.Errorf("the query is asked with %q", inv.Lookup.Params())
			}
			if err := inv.Lookup.Render([]string{"mail"}, [][][]byte{{[]byte("ANN@X")}}, &answer); err != nil {
				t.Fatal(err)
			}
			inv = answer.Invalidations[0]
		}
		got = append(got, fmt.Sprintf("%s %s of %s", inv.Op, inv.Key, inv.Tenant))
	}
	if want := "delete u:acme:bob@x of acme, advance l:acme of acme, delete u:acme:ann@x of acme, dependents who:bob@x of , delete u:acme:zoë@x of acme, purge  of acme"; strings.Join(got, ", ") != want {
		t.Errorf("%s\nwant %s", strings.Join(got, ", "), want)
	}
	list, _ := p.Family("list")
	if key, err := list.Key(map[string]string{"org": "ACME", "version": "V1", "q": "Q"}); err != nil || key != "l:acme:V1:Q" {
		t.Errorf("%q, %v", key, err)
	}
}

func TestNormalFormsThatCannotBe(t *testing.T) {
	for _, tt := range []struct{ old, with, want string }{
		{"{email|lower}\"", "{email|upper}\"", `"upper" is not a normal form`},
		{"{email|lower}\"", "{email|}\"", `"" is not a normal form`},
		{`version: "l:{org|lower}"`, `version: "l:{org}"`, "one normal form in the key and another one in the version key"},
		{"{version}", "{version|lower}", "the version is taken as it is"},
		{"  - {message: user.changed", "  - {table: public.other, dependents: [\"who:{email}\"]}\n  - {message: user.changed", "has another normal form here"},
	} {
		text := strings.Replace(normalFile, tt.old, tt.with, 1)
		if text == normalFile {
			t.Fatalf("nothing to replace: %s", tt.old)
		}
		_, err := Parse("m.yaml", []byte(text), Env{})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.with, err, tt.want)
		}
	}
}
