package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

const explainTestFile = `version: 1
source: {url: "${NOT_SET_ANYWHERE}", slot: {name: s}, publication: {name: p}}
redis: {url: "${NOT_SET_ANYWHERE}"}
classes: {critical: {staleness: 1s}}
keys:
  user: {key: "t:{tenant_id}:user:{email}", tenant: tenant_id, class: critical}
  page: {key: "page:{id}", class: critical}
mappings:
  - table: public.users
    when: new.live || old.live
    keys: [user, {page: {id: id}, for_each: "SELECT id FROM pages WHERE owner = {id}"}]
`

// explainJSON runs explain and returns its exit code and what it printed.
func explainJSON(t *testing.T, args ...string) (int, []mapping.Explanation, string) {
	t.Helper()
	return explainFile(t, explainTestFile, args...)
}

func explainFile(t *testing.T, file string, args ...string) (int, []mapping.Explanation, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mappings.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut strings.Builder
	code := Main(t.Context(), append([]string{"explain", "-c", path, "--table", "public.users"}, args...), strings.NewReader(""), &out, &errOut)
	var all []mapping.Explanation
	if code == exitOK {
		if err := json.Unmarshal([]byte(out.String()), &all); err != nil {
			t.Fatalf("%v in %s", err, out.String())
		}
	}
	return code, all, errOut.String()
}

func TestExplain(t *testing.T) {
	_, all, _ := explainJSON(t, "--json", "--action", "update",
		"--old", `{"id": 1, "tenant_id": 7, "email": "a:1", "live": false}`, "--new", `{"id": 1, "tenant_id": 7, "email": null, "live": true}`)
	if len(all) != 1 || !all[0].Counts || all[0].Verdict != "true" || all[0].Line != 9 {
		t.Fatalf("%+v", all)
	}
	var got []string
	for _, k := range all[0].Keys {
		got = append(got, strings.Join([]string{k.Image, k.Op, k.Family, k.Key, k.Guard}, " "))
	}
	want := []string{
		"new delete user t:7:user:%- tenant 7 only", "old delete user t:7:user:a%3A1 tenant 7 only",
		"new lookup page  the family has no tenants", "old lookup page  the family has no tenants",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if sql := all[0].Keys[2]; sql.SQL != "SELECT id FROM pages WHERE owner = $1" || *sql.Params[0] != "1" {
		t.Errorf("lookup %+v", sql)
	}

	_, all, _ = explainJSON(t, "--json", "--action", "delete", "--identity", "id,tenant_id", "--old", `{"id": 1, "tenant_id": 7}`)
	if x := all[0]; x.Verdict != "unknown" || len(x.Widened) != 2 || x.Keys[0].Op != "purge" || *x.Keys[0].Tenant != "7" {
		t.Errorf("%+v", x)
	}
	_, all, _ = explainJSON(t, "--json", "--action", "insert", "--new", `{"id": 1, "tenant_id": 7, "email": "a", "live": false}`)
	if x := all[0]; x.Verdict != "error" || !x.Counts { // null || false is no bool
		t.Errorf("%+v", x)
	}
}

// Keys are shown in the normal forms that their templates ask for.
func TestExplainNormalForms(t *testing.T) {
	file := strings.Replace(explainTestFile, "t:{tenant_id}:user:{email}", "t:{tenant_id|rtrim}:user:{email|lower}", 1)
	_, all, errOut := explainFile(t, file, "--json", "--action", "update",
		"--old", `{"id": 1, "tenant_id": "A ", "email": "Bob@X", "live": true}`, "--new", `{"id": 1, "tenant_id": "A", "email": "ΟΔΟΣ", "live": true}`)
	if len(all) != 1 {
		t.Fatalf("%+v, %s", all, errOut)
	}
	var got []string
	for _, k := range all[0].Keys {
		if k.Op == "delete" {
			got = append(got, k.Image+" "+k.Key)
		}
	}
	if want := "new t:A:user:οδοσ, old t:A:user:bob@x"; strings.Join(got, ", ") != want {
		t.Errorf("%s, want %s", strings.Join(got, ", "), want)
	}
}

func TestExplainUsage(t *testing.T) {
	for _, tt := range []struct{ args, says string }{
		{"--action insert", "needs --new"},
		{"--action upsert --new {}", "want insert, update or delete"},
		{"--action insert --new {} --old {}", "--old does not go with"},
		{"--action insert --new [1]", "not a JSON object"},
		{"--action insert --new {\"id\":1}", "--new lacks column"},
		{"--action delete --old {\"id\":1}", "--old lacks column"},
		{"", "--action are needed"},
	} {
		code, _, errOut := explainJSON(t, strings.Fields(tt.args)...)
		if code != exitUsage || !strings.Contains(errOut, tt.says) {
			t.Errorf("%q: exit code %d, %q, want %d and %q", tt.args, code, errOut, exitUsage, tt.says)
		}
	}
}

func TestExplainTakesNoRowThatCanBeReadTwice(t *testing.T) {
	for row, want := range map[string]string{
		`{"id": 2.0, "tenant_id": 7, "id": 3}`: "--new has column id twice",
		`{"id": [1, 2], "tenant_id": 7}`:       `column id: a JSON array or object is not the text of a column`,
		`{"id": {"a": 1}, "tenant_id": 7}`:     `"[1, 2]" for jsonb`,
		`[1]`:                                  "not a JSON object of columns",
		`null`:                                 "not a JSON object of columns",
		`{"id": 1} {}`:                         "not a JSON object of columns",
		`{"id": 1,}`:                           "not a JSON object of columns",
	} {
		if code, _, said := explainJSON(t, "--json", "--action", "insert", "--new", row); code != exitUsage || !strings.Contains(said, want) {
			t.Errorf("%s: exit %d, %s", row, code, said)
		}
	}
}
