package reference

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	cdcinvalidator "github.com/cdc-invalidator/cdc-invalidator"
)

func compileSchema(t *testing.T, data []byte) *jsonschema.Schema {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if draft := document.(map[string]any)["$schema"]; draft != draft07 {
		t.Fatalf("the schema is of %v", draft)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", document); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json") // validates the schema against its draft first
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// check is the schema's word on a YAML file; ok is false for what is no YAML.
func check(s *jsonschema.Schema, data []byte) (ok bool, err error) {
	var v any
	if err := yaml.Unmarshal(data, &v); err != nil {
		return false, err
	}
	return true, s.Validate(v)
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %v, %v", pattern, paths, err)
	}
	return paths
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestSchemaAcceptsGoodFiles(t *testing.T) {
	s := compileSchema(t, cdcinvalidator.MappingsSchema())
	for _, path := range append(glob(t, "mapping/testdata/good/*.yaml"), filepath.Join(root, "mappings.yaml"), filepath.Join(root, "mapping/testdata/tests/mappings.yaml")) {
		if _, err := check(s, read(t, path)); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	tests := compileSchema(t, cdcinvalidator.TestsSchema())
	if _, err := check(tests, read(t, filepath.Join(root, "mappings_test.yaml"))); err != nil {
		t.Errorf("mappings_test.yaml: %v", err)
	}
}

func TestSchemaRejectsBadFiles(t *testing.T) {
	// Each of these is right in structure; what is wrong with it only the parser sees.
	onlyForTheParser := map[string]string{
		"purge_reaches_too_far.yaml": "templates that meet",
		"secrets.yaml":               "URLs, which are text",
		"shared_keys.yaml":           "templates that meet",
		"variables.yaml":             "references to the environment",
		"versions.yaml":              "variables of templates",
	}
	s := compileSchema(t, cdcinvalidator.MappingsSchema())
	for _, path := range glob(t, "mapping/testdata/bad/*.yaml") {
		ok, err := check(s, read(t, path))
		why, listed := onlyForTheParser[filepath.Base(path)]
		if rejected := !ok || err != nil; rejected == listed {
			t.Errorf("%s: rejected %v, but listed as for the parser %v (%s)\n%v", path, rejected, listed, why, err)
		}
	}
}

// One thing wrong in a good file at a time, so that no rejection hides behind
// another.
func TestSchemaRejectsEachFault(t *testing.T) {
	const good = `version: 1
source: {url: u, slot: {name: s, create_if_not_exists: true}, heartbeat: 300ms}
redis: {url: u, scan_rate: 100}
classes: {c: {staleness: 1s, max_rate: 10/s}}
keys: {k: {key: "k:{id}", class: c, on_invalidate: delete}}
mappings:
  - {table: public.t, actions: [insert], keys: [k, {k: {id: id}, for_each: q, max_rows: 5}]}
  - {message: m, keys: [k]}
`
	s := compileSchema(t, cdcinvalidator.MappingsSchema())
	if _, err := check(s, []byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{"version: 1", "version: 2"}, {"version: 1\n", ""}, {"version: 1", `version: "1"`},
		{"source:", "sources:"}, {"url: u, slot", "slot"}, {"name: s", "nam: s"}, {"exists: true", "exists: maybe"},
		{"300ms", "300"}, {"300ms", "5 minutes"}, {"rate: 100", "rate: 0"}, {"rate: 100", "rate: fast"},
		{"staleness: 1s, ", ""}, {"staleness: 1s", "staleness: true"}, {"10/s", "10"}, {"10/s", "10/d"}, {"{c: {", "{c-d: {"},
		{"class: c, ", ""}, {"delete}", "hard}"}, {"key: ", "keys: "}, {`"k:{id}"`, "7"},
		{"table: public.t, ", ""}, {"public.t", "t"}, {"public.t", "a.b.c"}, {"table: public.t", "table: public.t, message: m"},
		{"[insert]", "[upsert]"}, {"[insert]", "[]"}, {"[insert]", "insert"}, {"keys: [k, {", "keys: [7, {"},
		{"for_each: q", "for_eahc: q"}, {"{id: id}", "id"}, {"max_rows: 5", "max_rows: many"},
		{"{message: m, keys: [k]}", "{message: m, keys: [k], when: x}"}, {"{message: m, keys: [k]}", "{message: m}"}, {"keys: [k]}", "keys: []}"},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("%q is not in the file", change[0])
		}
		if _, err := check(s, []byte(bad)); err == nil {
			t.Errorf("%q instead of %q is accepted", change[1], change[0])
		}
	}
}

func TestSchemaOfTestsRejectsEachFault(t *testing.T) {
	const good = `mappings: m.yaml
identity: {public.t: [id]}
cases:
  - {name: a, table: public.t, action: update, old: {id: 1}, new: {id: 1}, keys: [], purges: [k, {k: 7}], lookups: [{family: k, rows: [{id: 1}]}], widened: [lookup]}
  - {name: b, message: m, content: {id: 1}, keys: ["k:1"]}
`
	s := compileSchema(t, cdcinvalidator.TestsSchema())
	if _, err := check(s, []byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, change := range [][2]string{
		{"mappings: m.yaml\n", ""}, {"cases:", "case:"}, {"public.t: [id]", "public.t: some"}, {"{public.t:", "{t:"}, {"name: a, ", ""},
		{"action: update, ", ""}, {"update", "upsert"}, {"old: {id: 1}", "old: [1]"}, {"keys: [], purges: [k, {k: 7}], ", ""}, {"{k: 7}", "{k: 7, l: 8}"},
		{"family: k, ", ""}, {"[lookup]", "[lokup]"}, {"content: {id: 1}, ", ""}, {"table: public.t", "message: m, table: public.t"}, {"message: m, ", "message: m, old: {id: 1}, "}, {"table: public.t, ", ""},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("%q is not in the file", change[0])
		}
		if _, err := check(s, []byte(bad)); err == nil {
			t.Errorf("%q instead of %q is accepted", change[1], change[0])
		}
	}
	if _, err := check(s, read(t, filepath.Join(root, "mapping/testdata/tests/bad.yaml"))); err == nil {
		t.Error("bad.yaml is accepted")
	}
}

// An editor shows the descriptions: each field has one.
func TestEveryFieldIsDescribed(t *testing.T) {
	for name, data := range map[string][]byte{"mappings": cdcinvalidator.MappingsSchema(), "tests": cdcinvalidator.TestsSchema()} {
		var visit func(v any, path string)
		visit = func(v any, path string) {
			object, _ := v.(map[string]any)
			if properties, ok := object["properties"].(map[string]any); ok {
				for field, p := range properties {
					if p.(map[string]any)["description"] == nil {
						t.Errorf("%s: %s.%s has no description", name, path, field)
					}
				}
			}
			for key, child := range object {
				visit(child, path+"."+key)
			}
			if list, ok := v.([]any); ok {
				for _, child := range list {
					visit(child, path)
				}
			}
		}
		document, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		visit(document, "")
	}
}
