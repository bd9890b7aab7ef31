package mapping

import (
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

// longFile has a target of each kind, all of one column or field.
func longFile(t testing.TB) *File {
	lookup := use("page", "product_id", "product_id")
	lookup.ForEach = "SELECT product_id FROM products WHERE seller = {id}"
	ofTable := onTable("users", use("plain", "v", "email"), use("lowered", "v", "email"), use("mine", "v", "email", "tenant", "tenant_id"),
		use("versioned", "v", "email"), use("search", "tenant_id", "email"), lookup)
	ofTable.Dependents = []*Template{mustTemplate(t, "seller:{email}")}
	return &File{
		Keys: []*KeySpec{
			family(t, "plain", "plain:{v}:end", "", ""),
			family(t, "lowered", "lowered:{v|lower}", "", ""),
			family(t, "mine", "t:{tenant}:{v}", "", "tenant"),
			family(t, "versioned", "v:{version}:{v}", "vv:{v}", ""),
			family(t, "search", "t:{tenant_id}:search:{version}:{q}", "t:{tenant_id}:search", "tenant_id"),
			family(t, "page", "page:{product_id}", "", ""),
		},
		Mappings: []*MappingSpec{ofTable, {Message: "m", Keys: []*KeyUse{use("plain", "v", "v"), use("mine", "v", "v", "tenant", "tenant")}}},
	}
}

// short names the operation, the family and the tenant of each, and the lengths of keys.
func short(out *Output) []string {
	var all []string
	for _, inv := range out.Invalidations {
		s := inv.Op.String() + " " + inv.Family.Name
		if inv.Tenant != nil {
			s += " of " + string(inv.Tenant[:min(8, len(inv.Tenant))])
		}
		if len(inv.Key) > MaxKeyLength {
			s += " TOO LONG"
		}
		all = append(all, s)
	}
	return all
}

// Every kind of key: at the limit it is one, and a byte later it is what would be removed if the
// value were not known.
func TestKeysOfTheGreatestLength(t *testing.T) {
	plan := mustCompile(t, longFile(t))
	table := plan.Bind(users(decoder.IdentityFull))
	insert := func(email string) *Output {
		var out Output
		table.Map(&decoder.Change{Relation: table.rel, Action: decoder.Insert, New: row("1", "7", email)}, &out)
		return &out
	}
	message := func(v string) *Output {
		var out Output
		plan.Message([]byte("m"), []byte(`{"v": "`+v+`", "tenant": "7"}`), &out)
		return &out
	}
	for _, tt := range []struct {
		of       func(string) *Output
		template string
		fits, no string
	}{
		{insert, "plain:{}:end", "delete plain", "purge plain"},
		{insert, "lowered:{}", "delete lowered", "purge lowered"},
		{insert, "t:7:{}", "delete mine of 7", "purge mine of 7"},
		{insert, "vv:{}", "advance versioned", "purge versioned"},
		{insert, "t:{}:search", "advance search of ", "purge search of "}, // the tenant is what is too long
		{insert, "seller:{}", "dependents dependents of seller", "purge dependents of seller"},
		{message, "plain:{}:end", "delete plain", "purge plain"},
		{message, "t:7:{}", "delete mine of 7", "purge mine of 7"},
	} {
		room := MaxKeyLength - len(tt.template) + len("{}")
		for _, unit := range []string{"a", "%", "é", "A"} {
			each := len(AppendEncoded(nil, []byte(unit)))
			value := strings.Repeat(unit, room/each) + strings.Repeat("x", room%each)
			fits := func(s string) bool { return strings.HasPrefix(s, tt.fits) }
			no := func(s string) bool { return s == tt.no || strings.HasSuffix(tt.no, " ") && strings.HasPrefix(s, tt.no) }
			if got := short(tt.of(value)); !slices.ContainsFunc(got, fits) || slices.ContainsFunc(got, no) {
				t.Errorf("%s at the limit, of %q: %q", tt.template, unit, got)
			}
			out := tt.of(value + "x")
			if got := short(out); slices.ContainsFunc(got, fits) || !slices.ContainsFunc(got, no) || out.Widened[ReasonLength] == 0 {
				t.Errorf("%s one over, of %q: %q, widened %v", tt.template, unit, got, out.Widened)
			}
		}
	}
	if got := short(insert(strings.Repeat("a", MaxKeyLength+1))); !slices.Contains(got, "purge search") {
		t.Errorf("a tenant that no key has room for: %q", got)
	}
	// By for_each: what it asks with, and what it answers.
	var call *LookupCall
	for _, inv := range insert("a").Invalidations {
		if inv.Op == OpLookup {
			call = inv.Lookup
		}
	}
	var out Output
	answer := strings.Repeat("x", MaxKeyLength-len("page:"))
	if err := call.Render([]string{"product_id"}, [][][]byte{{[]byte(answer)}}, &out); err != nil || len(out.Invalidations) != 1 {
		t.Errorf("a result at the limit: %v, %q", err, short(&out))
	}
	if err := call.Render([]string{"product_id"}, [][][]byte{{[]byte("1")}, {[]byte(answer + "x")}}, &out); err != ErrKeyTooLong {
		t.Errorf("a result one over: %v", err)
	}
	for n, want := range map[int]string{maxParams: "lookup page", maxParams + 1: "purge page"} {
		out.Reset()
		table.Map(&decoder.Change{Relation: table.rel, Action: decoder.Insert, New: row(strings.Repeat("1", n), "7", "a")}, &out)
		if got := short(&out); !slices.Contains(got, want) {
			t.Errorf("an argument of %d bytes: %q", n, got)
		}
	}
	// Readers render by the same rule.
	f, _ := plan.Family("plain")
	value := strings.Repeat("%", (MaxKeyLength-len("plain::end"))/3)
	if key, err := f.Key(map[string]string{"v": value}); err != nil || len(key) > MaxKeyLength {
		t.Errorf("%d bytes, %v", len(key), err)
	}
	if _, err := f.Key(map[string]string{"v": value + "xyz"}); err == nil {
		t.Error("a key that is too long was rendered")
	}
	if _, err := ParseTemplate(strings.Repeat("k", MaxKeyLength+1)); err == nil {
		t.Error("a template that is too long")
	}
}

// A value of any size costs no memory of its own.
func TestLongValuesAreNotBuilt(t *testing.T) {
	plan := mustCompile(t, longFile(t))
	table := plan.Bind(users(decoder.IdentityFull))
	const size = 32 << 20
	long := row(strings.Repeat("1", size), "7", strings.Repeat("İ", size/2)+" ")
	var out Output
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	table.Map(&decoder.Change{Relation: table.rel, Action: decoder.Update, OldKind: decoder.OldFull, Old: long, New: long}, &out)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes of memory for %d bytes of value", n, size)
	}
	if want := []string{"purge plain", "purge lowered", "purge mine of 7", "purge versioned", "purge search", "purge page", "purge dependents of seller"}; !slices.Equal(short(&out), want) {
		t.Errorf("%q", short(&out))
	}
}

func TestHowMuchLowerCaseShrinks(t *testing.T) {
	for r := range rune(unicode.MaxRune + 1) {
		if n := utf8.RuneLen(r); n > shrinks*utf8.RuneLen(lowerRune(r)) && n > 0 {
			t.Errorf("%U has %d bytes, and %d in lower case", r, n, utf8.RuneLen(lowerRune(r)))
		}
	}
}
