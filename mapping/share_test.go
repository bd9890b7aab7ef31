package mapping

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

// templates draws from few characters, so that what could be confused often is.
var templateText = rapid.Custom(func(t *rapid.T) string {
	lit := rapid.StringOfN(rapid.RuneFrom([]rune("a3A%:-")), 0, 3, -1)
	s := lit.Draw(t, "lit")
	for _, v := range []string{"x", "y", "z"}[:rapid.IntRange(0, 3).Draw(t, "vars")] {
		s += "{" + v + "}" + lit.Draw(t, "lit")
	}
	return s
})

var templates = rapid.Map(templateText.Filter(func(s string) bool {
	_, err := ParseTemplate(s)
	return err == nil
}), func(s string) *Template {
	tmpl, _ := ParseTemplate(s)
	return tmpl
})

// hostile values, NULL among them.
var hostile = rapid.Custom(func(t *rapid.T) value {
	if rapid.IntRange(0, 5).Draw(t, "null") == 0 {
		return value{null: true, known: true}
	}
	s := rapid.StringOfN(rapid.RuneFrom([]rune("a3A%:- {}*\u00e9")), 0, 4, -1).Draw(t, "text")
	if rapid.Bool().Draw(t, "bytes") {
		s += "\xc3"
	}
	return value{data: []byte(s), known: true}
})

func fill(tmpl *Template, values []value) string {
	var key []byte
	for i := range tmpl.vars {
		key = values[i].append(append(key, tmpl.lits[i]...), NormalNone)
	}
	return string(append(key, tmpl.lits[len(tmpl.vars)]...))
}

// Whatever the literals and the values, NULL among them: one tuple, one key.
func TestDistinctTuplesGiveDistinctKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tmpl := templates.Draw(t, "template")
		one := rapid.SliceOfN(hostile, 3, 3).Draw(t, "one")
		two := rapid.SliceOfN(hostile, 3, 3).Draw(t, "two")
		same := true
		for i := range tmpl.vars {
			same = same && one[i].null == two[i].null && string(one[i].data) == string(two[i].data)
		}
		if a, b := fill(tmpl, one), fill(tmpl, two); (a == b) != same {
			t.Fatalf("template %q: %q of %v and %q of %v", tmpl, a, one, b, two)
		}
	})
}

func TestPercentKeepsNothingApart(t *testing.T) {
	for _, s := range []string{"k:{a}%{b}", "k:{a}%3A{b}", "{a}-%-{b}"} {
		if _, err := ParseTemplate(s); err == nil || !strings.Contains(err.Error(), "apart") {
			t.Errorf("%s: %v", s, err)
		}
	}
	// What it would come to: x: and 20, or x and "3A ".
	a := string(AppendEncoded(nil, []byte("x:"))) + "%" + string(AppendEncoded(nil, []byte("20")))
	if b := string(AppendEncoded(nil, []byte("x"))) + "%" + string(AppendEncoded(nil, []byte("3A "))); a != b {
		t.Errorf("%q and %q", a, b)
	}
}

// meet must see every key that two templates share.
func TestMeetMissesNoSharedKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := templates.Draw(t, "a")
		b := templates.Draw(t, "b")
		key := fill(a, rapid.SliceOfN(hostile, 3, 3).Draw(t, "one"))
		if key == fill(b, rapid.SliceOfN(hostile, 3, 3).Draw(t, "two")) &&
			(!meet(tokens(a, nil, false), tokens(b, nil, false)) || !meet(tokens(a, nil, true), tokens(b, nil, false))) {
			t.Fatalf("%q and %q share %q", a, b, key)
		}
	})
}

func twoFamilies(first, second string) string {
	return head + "classes: {c: {staleness: 1s}}\nkeys:\n  one: {class: c, " + first + "}\n  two: {class: c, " + second + "}\n" +
		"mappings:\n  - {message: m, keys: [one, two]}\n"
}

// Every two templates of some, with every two tuples of some: where a key could be
// of two tenants, they are refused together. Drawn at random, too few would meet.
func TestNoKeyIsOfTwoTenants(t *testing.T) {
	lits := []string{"", "a", ":", "a:", ":a", "-:a"}
	var values []value
	for _, v := range []string{"", "a", "-", "a:", ":"} {
		values = append(values, value{data: []byte(v), known: true})
	}
	values = append(values, value{null: true, known: true})
	type placed struct {
		placedTemplate
		tenants map[string]map[string]bool // of a key
	}
	var all []placed
	add := func(source string, tenants ...string) {
		tmpl, err := ParseTemplate(source)
		if err != nil {
			return
		}
		for _, tenant := range tenants {
			p := placed{placedTemplate{tmpl: tmpl, tenant: tenant}, map[string]map[string]bool{}}
			for _, x := range values {
				for _, y := range values {
					tuple := []value{x, y}
					key, of := fill(tmpl, tuple), ""
					if i := slices.Index(tmpl.vars, tenant); i >= 0 {
						of = string(tuple[i].append([]byte("="), NormalNone))
					}
					if p.tenants[key] == nil {
						p.tenants[key] = map[string]bool{}
					}
					p.tenants[key][of] = true
				}
			}
			all = append(all, p)
		}
	}
	for _, a := range lits {
		add("k"+a, "")
		for _, b := range lits {
			add(a+"{x}"+b, "", "x")
			for _, c := range lits {
				add(a+"{x}"+b+"{y}"+c, "x", "y")
			}
		}
	}
	shared, crossed, refused := 0, 0, 0
	for i, p := range all {
		for _, o := range all[:i] {
			no := p.shares(o.placedTemplate) != "" || slices.Equal(p.tmpl.lits, o.tmpl.lits) // refused before
			if no {
				refused++
			}
			for key, tenants := range p.tenants {
				if o.tenants[key] == nil {
					continue
				}
				shared++
				if cross := !maps.Equal(tenants, o.tenants[key]); cross {
					if crossed++; !no {
						t.Fatalf("%q of %q and %q of %q: key %q of %v and %v", p.tmpl, p.tenant, o.tmpl, o.tenant, key, tenants, o.tenants[key])
					}
				}
			}
		}
	}
	if shared == 0 || crossed == 0 || shared == crossed || refused == 0 {
		t.Errorf("%d keys shared, %d of two tenants, %d pairs refused", shared, crossed, refused)
	}
}

// Every literal of some between every two values of some.
func TestWhatKeepsValuesApartDoes(t *testing.T) {
	texts := func(alphabet string, n int) []string {
		all := []string{""}
		for from := 0; n > 0; n-- {
			end := len(all)
			for _, s := range all[from:end] {
				for _, c := range alphabet {
					all = append(all, s+string(c))
				}
			}
			from = end
		}
		return all
	}
	accepted := 0
	for _, lit := range texts("%:3A-", 3) {
		tmpl, err := ParseTemplate("{a}" + lit + "{b}")
		if err != nil {
			continue
		}
		accepted++
		seen := map[string]string{}
		for _, a := range texts(":3A-", 2) {
			for _, b := range append(texts("3A 02", 3), ":") {
				key := fill(tmpl, []value{{data: []byte(a)}, {data: []byte(b)}})
				if other, ok := seen[key]; ok {
					t.Fatalf("%s: %q is the key of %s and of %q, %q", tmpl, key, other, a, b)
				}
				seen[key] = fmt.Sprintf("%q, %q", a, b)
			}
		}
	}
	if accepted == 0 {
		t.Error("no template was accepted")
	}
}

func TestFamiliesThatShareKeys(t *testing.T) {
	for _, tt := range []struct{ first, second, problem string }{
		{`key: "user:{id}"`, `key: "user:all"`, ""},
		{`key: "t:{t}:u:{id}", tenant: t`, `key: "t:{t}:u:all", tenant: t`, ""},
		{`key: "t:{t}:u:{id}", tenant: t`, `key: "t:{t}:p:{id}", tenant: t`, ""},
		{`key: "t:{t}:u:{id}", tenant: t`, `key: "t:all:u:{id}"`, "another tenant's"},
		{`key: "t:{t}:{kind}:{id}", tenant: t`, `key: "t:{a}:u:{t}", tenant: t`, "another tenant's"},
		{`key: "t:{t}-a:{id}", tenant: t`, `key: "t:{t}:{id}", tenant: t`, "another tenant's"},
		{`key: "t:{t}:{id}", tenant: t`, `key: "t:{t}:{kind}x", tenant: t`, ""},
		{`key: "t:{t}", tenant: t`, `key: "t:{t}x", tenant: t`, "another tenant's"},
		{`key: "s:{t}:{version}", version: "v:{t}"`, `key: "v:{a}:{version}", version: "w:{a}"`, ""},
		{`key: "s:{t}:{version}", version: "v:{t}"`, `key: "v:{version}x", version: "w"`, "is for versions"},
		{`key: "v:7"`, `key: "s:{t}:{version}", version: "v:{t}"`, "matches version keys"},
		{`key: "inv:source:{{x}}"`, `key: "u:{id}"`, "the daemon's own keys"},
	} {
		_, err := Parse("f", []byte(twoFamilies(tt.first, tt.second)), testEnv())
		if got := fmt.Sprint(err); (tt.problem == "") != (err == nil) || !strings.Contains(got, tt.problem) {
			t.Errorf("%s and %s: %v; want %q", tt.first, tt.second, err, tt.problem)
		}
	}
}

// An update that moves a row to another key counts, whatever columns lists.
func TestColumnsCountAMovedKeyToo(t *testing.T) {
	f := usersFile(t)
	f.Mappings = []*MappingSpec{onTable("users", use("user"))}
	f.Mappings[0].Columns = []string{"email"}
	table := mustCompile(t, f).Bind(users(decoder.IdentityFull))
	got := mapped(table, &decoder.Change{Action: decoder.Update, OldKind: decoder.OldFull, Old: row("1", "7", "a"), New: row("1", "8", "a")})
	if fmt.Sprint(got) != "[delete user tenant=8 t:8:user:1 delete user tenant=7 t:7:user:1]" {
		t.Errorf("moved to another tenant: %q", got)
	}
	got = mapped(table, &decoder.Change{Action: decoder.Update, OldKind: decoder.OldFull, Old: row("1", "7", "a"), New: row("1", "7", "a")})
	if len(got) != 0 {
		t.Errorf("nothing changed: %q", got)
	}
}

// The identity is logged in full when it is TOASTed, and an unchanged value is
// what it was.
func TestUnchangedToastInTheIdentity(t *testing.T) {
	table := mustCompile(t, usersFile(t)).Bind(users(decoder.IdentityIndex, "id", "tenant_id", "email"))
	got := mapped(table, &decoder.Change{Action: decoder.Update, OldKind: decoder.OldKey, Old: row("1", "7", "long"), New: row("2", "7", toasted)})
	if fmt.Sprint(got) != "[delete user tenant=7 t:7:user:2 delete user tenant=7 t:7:user:1 "+
		"delete user_by_email tenant=7 t:7:user-by-email:long advance search tenant=7 t:7:search]" {
		t.Errorf("%q", got)
	}
	// What is not in the identity arrives as NULL there, and is none.
	table = mustCompile(t, usersFile(t)).Bind(users(decoder.IdentityIndex, "id", "tenant_id"))
	got = mapped(table, &decoder.Change{Action: decoder.Update, OldKind: decoder.OldKey, Old: row("1", "7", nil), New: row("2", "7", toasted)})
	if fmt.Sprint(got) != "[delete user tenant=7 t:7:user:2 delete user tenant=7 t:7:user:1 "+
		"purge user_by_email tenant=7 advance search tenant=7 t:7:search no_old_value x1 unchanged_toast x1]" {
		t.Errorf("%q", got)
	}
}

func TestMessagesThatAreNotUTF8Widen(t *testing.T) {
	f := usersFile(t)
	f.Mappings = []*MappingSpec{{Message: "m", Keys: []*KeyUse{use("page", "product_id", "id")}}}
	var out Output
	mustCompile(t, f).Message([]byte("m"), []byte("{\"id\": \"\xff\"}"), &out)
	if got := fmt.Sprint(describe(&out)); got != "[purge page message x1]" {
		t.Error(got)
	}
}
