package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cdcinvalidator "github.com/cdc-invalidator/cdc-invalidator"
)

const exampleTests = "../../mappings_test.yaml"

func TestTheExampleTestsPass(t *testing.T) {
	unsetURLs(t)
	code, out, errOut := runMain(t, "test", exampleTests)
	if code != exitOK || out != exampleTests+": 11 passed, 0 failed\n" || errOut != "" {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, out, errOut)
	}
	code, out, _ = runMain(t, "test", "-v", exampleTests)
	if code != exitOK || strings.Count(out, ": ok  ") != 11 || !strings.Contains(out, "\n      lookup   product_page {id: 3}\n") || !strings.Contains(out, "\n      nothing\n") {
		t.Errorf("exit code %d, stdout %s", code, out)
	}
}

// testFile writes a test file beside a copy of the mappings file.
func testFile(t *testing.T, content string) string {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "t.yaml")
	for name, data := range map[string][]byte{"mappings.yaml": cdcinvalidator.ExampleMappings(), "t.yaml": []byte(content)} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

const failingTests = `mappings: mappings.yaml
cases:
  - {name: passes, table: public.stock, action: insert, new: {product_id: 5}, keys: ["stock:5"]}
  - name: fails
    table: public.users
    action: update
    old: {tenant_id: 1, id: 7, email: a@x, version: 3}
    new: {tenant_id: 1, id: 7, email: b@x, version: 3}
    keys: ["t:1:user:7"]
    purges: [cart]
`

func TestAFailedCaseShowsTheDifference(t *testing.T) {
	unsetURLs(t)
	path := testFile(t, failingTests)
	code, out, errOut := runMain(t, "test", path)
	want := path + `:4:5: FAIL  fails (update of public.users)
    - key      t:1:user:7  (expected, and did not happen)
    - purge    cart  (expected, and did not happen)
      mappings[0] (line 41) does not count: its predicate is false
` + path + ": 1 passed, 1 failed; 3 mappings of " + filepath.Join(filepath.Dir(path), "mappings.yaml") + " not tested\n"
	if code != exitDifferences || out != want || errOut != "" {
		t.Errorf("exit code %d, stderr %q, stdout:\n%s\nwant:\n%s", code, errOut, out, want)
	}
	code, out, _ = runMain(t, "test", "-v", path)
	if code != exitDifferences || !strings.Contains(out, "not tested: mappings[1] public.products, mappings[2] public.sellers, mappings[4] message cart.changed\n") {
		t.Errorf("exit code %d, stdout:\n%s", code, out)
	}
}

func TestTestJSON(t *testing.T) {
	unsetURLs(t)
	faulty := testFile(t, "mappings: gone.yaml\ncases: [{name: x, tabel: a.b}]\n")
	code, out, _ := runMain(t, "test", "--json", testFile(t, failingTests), faulty, exampleTests)
	var reports []testReport
	if err := json.Unmarshal([]byte(out), &reports); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if code != exitConfig || len(reports) != 3 { // what is faulty counts more than what failed
		t.Fatalf("exit code %d, %+v", code, reports)
	}
	r := reports[0]
	if r.OK || r.Passed != 1 || r.Failed != 1 || len(r.Untested) != 3 || len(r.Cases) != 2 || !r.Cases[0].OK || r.Cases[0].Got.Keys[0] != "stock:5" {
		t.Errorf("%+v", r)
	}
	if c := r.Cases[1]; c.OK || len(c.Diff) != 2 || c.Diff[0].Kind != "key" || c.Diff[0].Value != "t:1:user:7" || !c.Diff[0].Missing || len(c.Notes) != 1 || c.Line != 4 {
		t.Errorf("%+v", c)
	}
	if f := reports[1].Faults; len(f) != 4 || f[0].Line != 1 || f[0].Col != 11 || !strings.Contains(f[0].Message, "no such file") {
		t.Errorf("%+v", f)
	}
	if !reports[2].OK || strings.Contains(out, "null") {
		t.Errorf("%s", out)
	}
}

func TestFaultyTestFiles(t *testing.T) {
	unsetURLs(t)
	missing := filepath.Join(t.TempDir(), "missing.yaml")
	path := testFile(t, "mappings: mappings.yaml\ncases:\n  - {name: x, table: public.user, action: insert, new: {id: 1}, keys: []}\n")
	code, out, _ := runMain(t, "test", path, missing)
	want := path + `:3:22: cases[0].table: no mapping of mappings.yaml is for the table "public.user"
    - {name: x, table: public.user, action: insert, new: {id: 1}, keys: []}
    hint: did you mean "public.users"?
` + path + ": 1 fault, nothing was tested\n" + missing + ": no such file or directory\n" + missing + ": 1 fault, nothing was tested\n"
	if code != exitConfig || out != want {
		t.Errorf("exit code %d, stdout:\n%s\nwant:\n%s", code, out, want)
	}
	if code, _, errOut := runMain(t, "test"); code != exitUsage || !strings.Contains(errOut, "requires at least 1 arg") {
		t.Errorf("exit code %d, %s", code, errOut)
	}
}

func TestSchema(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want []byte
	}{
		{[]string{"schema"}, cdcinvalidator.MappingsSchema()},
		{[]string{"schema", "mappings"}, cdcinvalidator.MappingsSchema()},
		{[]string{"schema", "test"}, cdcinvalidator.TestsSchema()},
	} {
		if code, out, errOut := runMain(t, tc.args...); code != exitOK || out != string(tc.want) || errOut != "" {
			t.Errorf("%v: exit code %d, stderr %q, %d bytes", tc.args, code, errOut, len(out))
		}
	}
	if code, out, errOut := runMain(t, "schema", "redis"); code != exitUsage || out != "" || !strings.Contains(errOut, "redis") {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
}
