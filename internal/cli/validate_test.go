package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unsetURLs takes away what may be set where the tests run.
func unsetURLs(t *testing.T) {
	t.Helper()
	for _, name := range []string{"DATABASE_URL", "REDIS_URL"} {
		t.Setenv(name, "") // puts the old value back afterwards
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
}

const validateTestFile = `version: 1
source: {url: "postgres://app:hunter2@db/shop", slot: {name: No}}
redis: {url: "${REDIS_URL}"}
classes: {critical: {staleness: 1s}}
keys: {user: {key: "user:{id}", class: criticl}}
mappings: [{table: public.users, keys: [user]}]
`

func TestValidateTheExampleWithoutItsVariables(t *testing.T) {
	unsetURLs(t)
	code, out, errOut := runMain(t, "validate", "../../mappings.yaml")
	if code != exitOK || out != "../../mappings.yaml: ok, 6 families, 4 tables\n" || errOut != "" {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, out, errOut)
	}
}

func TestValidateSaysAllFaultsOfAllFiles(t *testing.T) {
	unsetURLs(t)
	path := writeRunTestFile(t, validateTestFile)
	missing := filepath.Join(t.TempDir(), "missing.yaml")
	code, out, errOut := runMain(t, "validate", path, "../../mappings.yaml", missing)
	if code != exitConfig || errOut != "" {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
	for _, want := range []string{
		path + `:2:62: source.slot.name: "No" cannot be a name` + "\n    source: {url: postgres://(secret), slot",
		path + ":5:40: keys.user.class: there is no class", `hint: did you mean "critical"?`, path + ": 2 faults\n",
		"../../mappings.yaml: ok", missing + ": no such file or directory\n" + missing + ": 1 fault\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %s", want, out)
		}
	}
	if strings.Contains(out, "hunter2") {
		t.Errorf("a password is shown: %s", out)
	}
}

func TestValidateJSON(t *testing.T) {
	unsetURLs(t)
	path := writeRunTestFile(t, validateTestFile)
	code, out, _ := runMain(t, "validate", "--json", path, "../../mappings.yaml")
	var results []validation
	if err := json.Unmarshal([]byte(out), &results); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if code != exitConfig || len(results) != 2 || results[0].OK || len(results[0].Faults) != 2 || !results[1].OK || results[1].Families != 6 {
		t.Fatalf("exit code %d, %+v", code, results)
	}
	if f := results[0].Faults[1]; f.File != path || f.Line != 5 || f.Col != 40 || f.Field != "keys.user.class" || f.Hint == "" || f.Excerpt == "" {
		t.Errorf("%+v", f)
	}
	if !strings.Contains(out, `"faults": []`) || strings.Contains(out, "hunter2") {
		t.Errorf("%s", out)
	}
}

func TestValidateNeedsAFile(t *testing.T) {
	code, out, errOut := runMain(t, "validate")
	if code != exitUsage || out != "" || !strings.Contains(errOut, "requires at least 1 arg") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, out, errOut)
	}
}
