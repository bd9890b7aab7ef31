package mapping

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

const testsFolder = "testdata/tests/"

func loadTestsPlan(t *testing.T) func(string) (*Plan, error) {
	return func(path string) (*Plan, error) {
		data, err := os.ReadFile(testsFolder + path)
		if err != nil {
			return nil, err
		}
		f, err := Parse(path, data, testEnv())
		if err != nil {
			return nil, err
		}
		return Compile(f)
	}
}

func TestBadTestFile(t *testing.T) {
	_, err := ParseTests("bad.yaml", readFile(t, testsFolder+"bad.yaml"), loadTestsPlan(t))
	var faults Faults
	if !errors.As(err, &faults) {
		t.Fatalf("no faults, but %v", err)
	}
	for _, f := range faults {
		if f.Line < 1 || f.Col < 1 || f.Excerpt == "" {
			t.Errorf("a fault without a place: %v", f)
		}
	}
	golden := testsFolder + "bad.want"
	if *update {
		if err := os.WriteFile(golden, []byte(err.Error()+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := string(readFile(t, golden)); err.Error()+"\n" != want {
		t.Errorf("faults:\n%v\nwant:\n%s", err, want)
	}
}

// What is wrong with the mappings file is said with its own places.
func TestTestsOfFaultyMappings(t *testing.T) {
	_, err := ParseTests("t.yaml", []byte("mappings: m.yaml\ncases: [{name: a, table: a.b, action: truncate, purges: [x]}]\n"), func(string) (*Plan, error) {
		_, err := Parse("m.yaml", []byte("version: 2\n"), testEnv())
		return nil, err
	})
	if err == nil || !strings.HasPrefix(err.Error(), "m.yaml:1:1: source is missing") && !strings.Contains(err.Error(), "m.yaml:1:10: version:") {
		t.Errorf("%v", err)
	}
	_, err = ParseTests("t.yaml", []byte("mappings: gone.yaml\ncases: [{name: a, table: a.b, action: truncate, purges: [x]}]\n"), loadTestsPlan(t))
	if err == nil || !strings.HasPrefix(err.Error(), "t.yaml:1:11: mappings: ") {
		t.Errorf("%v", err)
	}
}

// runCase runs one case, given as YAML, and returns the differences as text.
func runCase(t *testing.T, fields string) (TestResult, string) {
	t.Helper()
	return runCaseOf(t, "mappings.yaml", fields)
}

func runCaseOf(t *testing.T, mappings, fields string) (TestResult, string) {
	t.Helper()
	f, err := ParseTests("t.yaml", []byte("mappings: "+mappings+"\ncases:\n  - {name: x, "+fields+"}\n"), loadTestsPlan(t))
	if err != nil {
		t.Fatalf("%s\n%v", fields, err)
	}
	r := f.Run(f.Cases[0])
	var diff []string
	for _, d := range r.Diff {
		sign := "+"
		if d.Missing {
			sign = "-"
		}
		diff = append(diff, sign+d.Kind+" "+d.Value)
	}
	if r.OK != (len(diff) == 0) {
		t.Errorf("ok %v with %v", r.OK, diff)
	}
	return r, strings.Join(diff, "; ")
}

func TestCasesAreComparedExactly(t *testing.T) {
	const (
		users   = "table: public.users, action: update, old: {id: 1, tenant_id: 7, live: true}, new: {id: 1, tenant_id: 7, live: true}, "
		sellers = "table: public.sellers, action: update, old: {id: 3}, new: {id: 3}, "
		rows    = "lookups: [{family: page, with: {id: 3}, rows: [{id: 1}, {id: null}]}]"
	)
	for _, tt := range []struct{ fields, diff string }{
		{users + `keys: ["t:7:user:1"], versions: ["t:7:search"]`, ""},
		{users + `keys: ["t:7:user:1"]`, "+version t:7:search"},
		{users + `keys: ["t:7:user:2"], versions: ["t:7:search"]`, "-key t:7:user:2; +key t:7:user:1"},
		{users + `keys: ["t:7:user:1"], versions: ["t:7:search"], purges: [page]`, "-purge page"},
		{users + `keys: ["t:7:user:1"], versions: ["t:7:search"], widened: [predicate]`, "-widened predicate"},
		{users + `keys: ["t:7:user:1"], versions: ["t:7:search"], ` + rows, "-lookup page {id: 3}"},
		// Of the old row, the log has the identity only: live is not known, and so is the tenant of the old row.
		{`table: public.users, identity: [id], action: delete, old: {id: 1}, purges: [user, search], widened: [predicate, no_old_value]`, ""},
		{`table: public.users, identity: [id], action: delete, old: {id: 1}, purges: [user, search]`, "+widened no_old_value; +widened predicate"},
		{`table: public.users, identity: [tenant_id], action: delete, old: {tenant_id: "a:b"}, purges: [{user: "a:b"}], versions: ["t:a%3Ab:search"], widened: [predicate, no_old_value]`, ""},
		{`table: public.users, identity: [tenant_id], action: delete, old: {tenant_id: 7}, purges: [user], versions: ["t:7:search"], widened: [predicate, no_old_value]`, "-purge user; +purge user of tenant 7"},
		{sellers + `keys: ["page:1", "page:%-"], ` + rows, ""}, // asked once, though both rows ask
		{sellers + `keys: []`, "+lookup page {id: 3}"},         // said once
		{strings.Replace(sellers, "new: {id: 3}", "new: {id: 4}", 1) + `keys: ["page:1", "page:2"], lookups: [{family: page, rows: [{id: 1}]}, {family: page, rows: [{id: 2}]}]`, ""},
		{strings.Replace(sellers, "new: {id: 3}", "new: {id: 4}", 1) + `keys: ["page:1"], lookups: [{family: page, rows: [{id: 1}]}]`, ""},
		{sellers + `keys: [], lookups: [{family: page, with: {id: 4}, rows: []}]`, "+lookup page {id: 3}; -lookup page {id: 4}"},
		{sellers + `keys: [], lookups: [{family: page, with: {id: null}, rows: []}]`, "+lookup page {id: 3}; -lookup page {id: null}"},
		{sellers + `keys: [], lookups: [{family: page, rows: []}]`, ""},
		{sellers + `purges: [page], widened: [lookup], lookups: [{family: page, refused: true}]`, ""},
		{sellers + `purges: [page], widened: [lookup], lookups: [{family: page, rows: [{id: 1}, {id: 2}, {id: 3}]}]`, ""}, // beyond max_rows
		{sellers + `keys: [], lookups: [{family: page, rows: [{no: 1}]}]`, "+lookup page {id: 3}"},
		{`table: public.sellers, action: truncate, purges: [page]`, ""},
		{`table: public.sellers, action: truncate, purges: []`, "+purge page"},
		{`message: changed, content: {id: 1, tenant_id: 12345678901234567890}, keys: ["t:12345678901234567890:user:1"]`, ""},
		{`message: changed, content: '{"tenant_id": true', purges: [user], widened: [message]`, ""},
		{`message: changed, content: {tenant_id: true}, purges: [{user: true}], widened: [message]`, ""},
	} {
		if _, diff := runCase(t, tt.fields); diff != tt.diff {
			t.Errorf("%s\ndiffers in %q, want %q", tt.fields, diff, tt.diff)
		}
	}
}

// Normal forms are part of the keys that a case names: of columns, of the rows of a query, of tenants, entities and messages.
func TestCasesWithNormalForms(t *testing.T) {
	const user = `table: public.users, action: insert, new: {id: 1, org: ACME, email: Bob@X}, lookups: [{family: user, with: {id: 1}, rows: [{mail: ÄNN@X}]}], `
	for _, tt := range []struct{ fields, diff string }{
		{user + `keys: ["t:acme:user:bob@x", "t:acme:user:änn@x"], versions: ["t:acme:search"], dependents: ["who:bob@x"]`, ""},
		{user + `keys: ["t:ACME:user:Bob@X", "t:acme:user:änn@x"], versions: ["t:acme:search"], dependents: ["who:bob@x"]`, "-key t:ACME:user:Bob@X; +key t:acme:user:bob@x"},
		// Two spellings of one value are one key.
		{`table: public.prices, action: update, old: {amount: "1.50", code: "a "}, new: {amount: "1.5", code: a}, keys: ["price:1.5:a"]`, ""},
		{`table: public.prices, action: update, old: {amount: "1.0", code: a}, new: {amount: "1.05", code: a}, keys: ["price:1:a", "price:1.05:a"]`, ""},
		{`message: changed, content: {org: ACME, email: BOB@X}, keys: ["t:acme:user:bob@x"]`, ""},
		{`message: changed, content: {org: ACME}, purges: [{user: ACME}], widened: [message]`, ""},
	} {
		if _, diff := runCaseOf(t, "normal.yaml", tt.fields); diff != tt.diff {
			t.Errorf("%s\ndiffers in %q, want %q", tt.fields, diff, tt.diff)
		}
	}
}

func TestFailedCasesSayWhyMappingsDidNotCount(t *testing.T) {
	r, _ := runCase(t, `table: public.users, action: insert, new: {id: 1, tenant_id: 7, live: 5}, keys: ["t:7:user:2"], versions: []`)
	if !slices.ContainsFunc(r.Notes, func(s string) bool {
		return strings.HasPrefix(s, "mappings[0] (line 10) counts, because its predicate is not decided")
	}) {
		t.Errorf("%q", r.Notes)
	}
	r, _ = runCase(t, `table: public.users, action: update, old: {id: 1, tenant_id: 7, live: false}, new: {id: 1, tenant_id: 7, live: false}, keys: ["t:7:user:2"]`)
	if fmt.Sprint(r.Notes) != "[mappings[0] (line 10) does not count: its predicate is false]" {
		t.Errorf("%q", r.Notes)
	}
}

func TestUntestedMappingsAreNamed(t *testing.T) {
	f, err := ParseTests("t.yaml", []byte("mappings: mappings.yaml\ncases: [{name: x, table: public.sellers, action: truncate, purges: [page]}]\n"), loadTestsPlan(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(f.Untested(), ", "); got != "mappings[0] public.users, mappings[2] public.unused, mappings[3] message changed" {
		t.Error(got)
	}
}

func FuzzParseTests(f *testing.F) {
	for _, path := range []string{"bad.yaml", "../../../mappings_test.yaml"} {
		f.Add(readFile(f, testsFolder+path))
	}
	f.Add([]byte("mappings: m\ncases: &a [*a, {name: x, table: a.b, action: insert, new: &b {c: *b}, keys: []}]"))
	data := readFile(f, testsFolder+"mappings.yaml")
	file, err := Parse("mappings.yaml", data, testEnv())
	if err != nil {
		f.Fatal(err)
	}
	plan, err := Compile(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tests, err := ParseTests("t.yaml", data, func(string) (*Plan, error) { return plan, nil })
		if err != nil {
			return
		}
		for _, c := range tests.Cases {
			tests.Run(c)
		}
	})
}
