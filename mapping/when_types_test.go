package mapping

import (
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cdc-invalidator/cdc-invalidator/decoder"
)

// verdict evaluates an expression over rows with one column c of a type, under
// identity FULL.
func verdict(t testing.TB, expr string, typeOID uint32, old, new any) (Verdict, []Problem) {
	t.Helper()
	p, err := compilePredicate(expr)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	rel := &decoder.Relation{Namespace: "public", Name: "t", Columns: []decoder.Column{
		{Name: "c", Key: true, TypeOID: typeOID}, {Name: "n", Key: true, TypeOID: 23}}}
	ch := &decoder.Change{Relation: rel, Action: decoder.Update, OldKind: decoder.OldFull, Old: row(old, "5"), New: row(new, "5")}
	b := p.bind(rel)
	v, err := b.eval(ch)
	if (v == VerdictError) != (err != nil) {
		t.Fatalf("%s: verdict %s with error %v", expr, v, err)
	}
	return v, b.problems()
}

const (
	oidBool, oidInt8, oidText, oidOID, oidFloat8, oidDate, oidNumeric = 16, 20, 25, 26, 701, 1082, 1700
	oidDomain                                                         = 16400
)

// CEL finds values of different types not equal without an error: each of these
// would keep a change that counts from invalidating.
func TestPredicatesDoNotCompareWhatIsNeverEqual(t *testing.T) {
	for _, tt := range []struct {
		expr     string
		typeOID  uint32
		old, new any
		want     Verdict
		problem  bool
	}{
		{"new.c == 5", oidInt8, "4", "5", VerdictTrue, false},
		{"new.c == 5.0", oidInt8, "4", "5", VerdictTrue, false},
		{"new.c == '5'", oidInt8, "4", "5", VerdictUnknown, true},
		{"'5' == new['c']", oidInt8, "4", "5", VerdictUnknown, true},
		{"!(new.c != '5')", oidInt8, "4", "5", VerdictUnknown, true},
		{"new.c in ['5', '6']", oidInt8, "4", "5", VerdictUnknown, true},
		{"new.c in [5, 6]", oidInt8, "4", "5", VerdictTrue, false},
		{"['5'].exists(x, x == new.c)", oidInt8, "4", "5", VerdictUnknown, true},
		{"new.c == 'true'", oidBool, "f", "t", VerdictUnknown, true},
		{"new.c == true", oidBool, "f", "t", VerdictTrue, false},
		{"new.c && !old.c", oidBool, "f", "t", VerdictTrue, false},
		{"new.c == 5", oidText, "4", "5", VerdictUnknown, true},
		{"new.c == '5'", oidText, "4", "5", VerdictTrue, false},
		{"new.c == new.n", oidText, "4", "5", VerdictUnknown, true},
		{"new.c == new.n", oidInt8, "4", "5", VerdictTrue, false},
		{"new.c == 5", oidOID, "4", "5", VerdictTrue, false},
		{"new.c == timestamp('2024-01-01T00:00:00Z')", oidDate, nil, "2024-01-01", VerdictUnknown, true},
		{"new.c == '2024-01-01'", oidDate, nil, "2024-01-01", VerdictTrue, false},
		{"new.c == null", oidDate, nil, "2024-01-01", VerdictFalse, false},
		// Domains and enums: what they are is what they are compared with.
		{"new.c == 5", oidDomain, "4", "5", VerdictTrue, false},
		{"new.c > 4", oidDomain, "4", "5", VerdictTrue, false},
		{"new.c - 1 == 4", oidDomain, "4", "5", VerdictTrue, false},
		{"new.c * 2.0 == 10.0", oidDomain, "4", "5", VerdictTrue, false},
		{"new.c != old.c && new.c > 0", oidDomain, "9007199254740992", "9007199254740993", VerdictUnknown, true},
		{"new.c > 9007199254740992", oidDomain, "4", "9007199254740993", VerdictTrue, false},
		{"-new.c < 0.0", oidDomain, "4", "5", VerdictUnknown, true},
		{"new.c == 5", oidDomain, "4", "5.00", VerdictTrue, false},
		{"new.c == 5", oidDomain, "4", "live", VerdictUnknown, false},
		{"new.c in [5, 6]", oidDomain, "4", "5", VerdictTrue, false},
		{"new.c == true", oidDomain, "f", "t", VerdictTrue, false},
		{"new.c == true", oidDomain, "f", "yes", VerdictUnknown, false},
		{"new.c == 'live'", oidDomain, "x", "live", VerdictTrue, false},
		{"new.c == 'live' && old.c != 'live'", oidDomain, "x", "live", VerdictTrue, false},
		{"new.c.startsWith('li')", oidDomain, "x", "live", VerdictTrue, false},
		{"new.c == 'a' || new.c == 5", oidDomain, "x", "b", VerdictUnknown, true},
		{"new.c != old.c", oidDomain, "x", "x", VerdictFalse, false},
		{"new.c != old.c", oidDomain, "x", "y", VerdictTrue, false},
		{"new.c == new.n", oidDomain, "5", "5", VerdictUnknown, true},
		{"[new.c] == [5]", oidDomain, "4", "5", VerdictUnknown, true},
		{"dyn(new.c) == 5", oidDomain, "4", "5", VerdictUnknown, true},
		{"has(new.c) && new.c != null", oidDomain, "4", "5", VerdictTrue, false},
		{"new.c == old.c && new.c == 5", oidDomain, "5", "5", VerdictUnknown, true},
		// Numbers that a double does not hold.
		{"new.c != old.c", oidNumeric, "12345678901234567890.12", "12345678901234567890.13", VerdictUnknown, false},
		{"new.c != old.c", oidNumeric, "9007199254740992", "9007199254740993", VerdictUnknown, false},
		{"new.c != old.c", oidNumeric, "19.90", "19.900", VerdictFalse, false},
		{"new.c > 10", oidNumeric, "9.99", "19.90", VerdictTrue, false},
		{"new.c != old.c", oidFloat8, "0.30000000000000004", "0.3", VerdictTrue, false},
		{"new.c != old.c", oidInt8, "9007199254740992", "9007199254740993", VerdictTrue, false},
		{"new.c > 5.0", oidNumeric, "4", "NaN", VerdictUnknown, false},
		{"new.c > 5.0", oidFloat8, "4", "NaN", VerdictUnknown, false},
		{"new.c > 5.0", oidFloat8, "4", "Infinity", VerdictTrue, false},
		{"new.c > 5.0", oidNumeric, "4", "1" + strings.Repeat("0", 400), VerdictUnknown, false},
		{"new.c != old.c", oidNumeric, "0." + strings.Repeat("0", 330) + "1", "0", VerdictUnknown, false},
	} {
		v, problems := verdict(t, tt.expr, tt.typeOID, tt.old, tt.new)
		if v != tt.want || (len(problems) > 0) != tt.problem {
			t.Errorf("%s, type %d, %v to %v: %s with problems %v; want %s", tt.expr, tt.typeOID, tt.old, tt.new, v, problems, tt.want)
		}
	}
}

// Two numerics that differ are never found equal, and order is kept.
func TestNumericsInPredicatesAreExact(t *testing.T) {
	number := rapid.StringMatching(`-?[0-9]{1,20}(\.[0-9]{1,20})?`)
	rapid.Check(t, func(t *rapid.T) {
		a := number.Draw(t, "a")
		b := number.Draw(t, "b")
		if rapid.Bool().Draw(t, "neighbour") {
			b = a[:len(a)-1] + string(rune('0'+rapid.IntRange(0, 9).Draw(t, "digit")))
		}
		x, okA := exactDouble(a)
		y, okB := exactDouble(b)
		if !okA || !okB {
			return
		}
		ra, _ := new(big.Rat).SetString(a)
		rb, _ := new(big.Rat).SetString(b)
		order := 0
		if x < y {
			order = -1
		} else if x > y {
			order = 1
		}
		if order != ra.Cmp(rb) {
			t.Fatalf("%s and %s compare as %d, as doubles %d", a, b, ra.Cmp(rb), order)
		}
	})
}

func TestABadComparisonIsAProblemOfTheTable(t *testing.T) {
	f := usersFile(t)
	f.Mappings[0].When = "new.id == 5 || old.email == 'x'"
	p := mustCompile(t, f).Bind(users(decoder.IdentityFull)).Problems()
	if len(p) != 1 || p[0].Column != "id" || p[0].Reason != ReasonPredicate || !strings.Contains(p[0].String(), "column id") {
		t.Errorf("problems %v", p)
	}
}
