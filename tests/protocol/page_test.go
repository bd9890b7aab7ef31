package protocol

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cdc-invalidator/cdc-invalidator/mapping"
)

// page is docs/protocol.md, or a section of it.
func page(t *testing.T, section string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "protocol.md"))
	if err != nil {
		t.Fatal(err)
	}
	if section == "" {
		return string(text)
	}
	_, after, found := strings.Cut(string(text), "\n## "+section+"\n")
	if !found {
		t.Fatalf("docs/protocol.md has no section %q", section)
	}
	part, _, _ := strings.Cut(after, "\n## ")
	return part
}

// rows are the tables' rows of a section whose first cell matches.
func rows(t *testing.T, section, first string) [][]string {
	t.Helper()
	match := regexp.MustCompile("^" + first + "$")
	var found [][]string
	for line := range strings.Lines(page(t, section)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if strings.HasPrefix(line, "| ") && match.MatchString(cells[0]) {
			found = append(found, cells)
		}
	}
	if len(found) == 0 {
		t.Fatalf("section %q has no row %s", section, first)
	}
	return found
}

// exampleEntry is the entry that the page shows.
func exampleEntry(t *testing.T) string {
	t.Helper()
	_, after, _ := strings.Cut(page(t, "The entry"), "```text\n")
	entry, _, found := strings.Cut(after, "\n```")
	if !found {
		t.Fatal("the page shows no entry")
	}
	return entry
}

// vector is a value and how it stands in a key.
type vector struct {
	value   any
	encoded string
}

func vectors(t *testing.T) []vector {
	t.Helper()
	var all []vector
	for _, row := range rows(t, "Keys", "`.*`") {
		v := vector{encoded: strings.Trim(row[1], "`")}
		switch text := strings.Trim(row[0], "`"); {
		case text == "NULL":
		case text == "true":
			v.value = true
		case strings.HasPrefix(text, `"`):
			s, err := strconv.Unquote(text)
			if err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			if v.value = s; strings.ToValidUTF8(s, "") != s {
				v.value = rawBytes(s)
			}
		default:
			n, err := strconv.Atoi(text)
			if err != nil {
				t.Fatal(err)
			}
			v.value = n
		}
		all = append(all, v)
	}
	return all
}

func TestVectorsAreTheDaemons(t *testing.T) {
	for _, v := range vectors(t) {
		var text string
		switch value := v.value.(type) {
		case nil:
			if got := string(mapping.AppendNull(nil)); got != v.encoded {
				t.Errorf("NULL is %q", got)
			}
			continue
		case bool:
			text = "t" // as the log has it
		default:
			text = fmt.Sprintf("%v", value)
			if raw, ok := value.(rawBytes); ok {
				text = string(raw)
			}
		}
		if got := string(mapping.AppendEncoded(nil, []byte(text))); got != v.encoded {
			t.Errorf("%q is %q in keys, the page says %q", text, got, v.encoded)
		}
	}
}

// The offsets of the page are those of the library, and of the scripts' comment, which
// counts from 1.
func TestHeaderIsTheCodes(t *testing.T) {
	end := 0
	var offsets []string
	for _, row := range rows(t, "The entry", "[0-9]+") {
		offset, err1 := strconv.Atoi(row[0])
		length, err2 := strconv.Atoi(row[1])
		if err1 != nil || err2 != nil || offset != end {
			t.Fatalf("%v: does not follow on byte %d", row, end)
		}
		end = offset + length
		offsets = append(offsets, row[0])
	}
	if end != 73 || strings.Join(offsets, " ") != "0 4 5 21 33 45 57" {
		t.Errorf("the header has %d bytes, with fields at %v", end, offsets)
	}
	code, err := os.ReadFile(filepath.Join("..", "..", "cache", "entry.go"))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]int{"headerLen": 73, "kindAt": 4, "freshAt": 33, "staleAt": 45, "stampAt": 57} {
		if !regexp.MustCompile(fmt.Sprintf(`\b%s\s+= %d\n`, name, value)).Match(code) {
			t.Errorf("cache/entry.go does not have %s = %d", name, value)
		}
	}
	script := luaHeader(t, "cache", "read")
	for _, places := range []string{"1..4 ", "6..21 ", "22..33 ", "34..45 ", "46..57 ", "58..73 "} {
		if !strings.Contains(script, places) {
			t.Errorf("read.lua does not have a field at %s", places)
		}
	}
	if entry := exampleEntry(t); len(strings.Split(entry, " ")[0]) != 73 {
		t.Errorf("the header of the example has %d bytes", len(strings.Split(entry, " ")[0]))
	}
}

// luaHeader is the comment that a script begins with.
func luaHeader(t *testing.T, dir, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", dir, "lua", name+".lua"))
	if err != nil {
		t.Fatal(err)
	}
	var header strings.Builder
	for line := range strings.Lines(string(text)) {
		comment, ok := strings.CutPrefix(line, "--")
		if !ok {
			break
		}
		header.WriteString(comment)
	}
	return header.String()
}

func TestScriptsAreAsThePageSays(t *testing.T) {
	numbered := regexp.MustCompile(`(?m)^ ARGV\[([0-9]+)\]\s+(.*)$`)
	for _, row := range rows(t, "Scripts", "`[a-z]+\\.lua`") {
		name := strings.TrimSuffix(strings.Trim(row[0], "`"), ".lua")
		dir := "sink"
		if row[1] == "data key" || name == "register" {
			dir = "cache"
		}
		header := luaHeader(t, dir, name)
		arguments := regexp.MustCompile(` \([^)]*\)`).ReplaceAllString(row[2], "")
		said := strings.Split(arguments, ", ")
		for i, m := range numbered.FindAllStringSubmatch(header, -1) {
			word := strings.Trim(strings.Fields(said[min(i, len(said)-1)])[0], "`")
			if i >= len(said) || m[1] != strconv.Itoa(i+1) || !strings.Contains(m[2], word) {
				t.Errorf("%s.lua has ARGV[%s] %q, the page %q", name, m[1], m[2], said)
			}
		}
		for _, answer := range regexp.MustCompile(`\{'([a-z]+)'`).FindAllStringSubmatch(header, -1) {
			if !strings.Contains(row[3], "`"+answer[1]+"`") {
				t.Errorf("%s.lua answers %s, of which the page says nothing", name, answer[1])
			}
			rows(t, "Reading", "`"+answer[1]+"\\b.*")
		}
	}
	files, err := filepath.Glob(filepath.Join("..", "..", "cache", "lua", "*.lua"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		rows(t, "Scripts", "`"+regexp.QuoteMeta(filepath.Base(f))+"`")
	}
}

func TestFieldsAreTheDaemons(t *testing.T) {
	code, err := os.ReadFile(filepath.Join("..", "..", "sink", "fields.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows(t, "Is the class proved?", "`.*`") {
		for name := range strings.SplitSeq(row[0], ", ") {
			if name = strings.Trim(name, "`"); !strings.Contains(string(code), fmt.Sprintf("\n\t\t{%q, ", name)) {
				t.Errorf("the control hash has no field %s", name)
			}
		}
	}
	header := luaHeader(t, "sink", "publish")
	for _, row := range rows(t, "The invalidation stream", "`.*`") {
		if name := strings.Trim(row[0], "`"); name != "s" && !strings.Contains(header, "\n   "+name+"  ") {
			t.Errorf("publish.lua has no field %s", name)
		}
	}
}

func TestCasesAreOnThePage(t *testing.T) {
	var said, are []string
	for line := range strings.Lines(page(t, "Conformance")) {
		if name, ok := strings.CutPrefix(line, "- "); ok {
			said = append(said, strings.TrimSpace(name))
		}
	}
	for _, c := range cases() {
		are = append(are, c.name)
	}
	if !slices.Equal(said, are) {
		t.Errorf("the page has the cases\n%s\nand the tests\n%s", strings.Join(said, "\n"), strings.Join(are, "\n"))
	}
}

// The rights that the page gives are enough, and none is too many but those for other
// clients than the two.
func TestRightsAreEnough(t *testing.T) {
	for name, newReader := range map[string]func(*testing.T, *world, string) reader{"go": newGoReader, "python": newPythonReader} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			rule := regexp.MustCompile(`(?m)^ACL SETUSER (.*)$`).FindStringSubmatch(page(t, "Servers and rights"))
			if rule == nil {
				t.Fatal("the page has no rule")
			}
			words := []any{"ACL", "SETUSER"}
			for word := range strings.FieldsSeq(rule[1]) {
				words = append(words, word)
			}
			if err := w.rdb.Do(t.Context(), append(words, "+select")...).Err(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { w.rdb.Do(t.Context(), "ACL", "DELUSER", "reader") })
			if err := w.rdb.ScriptFlush(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			// Between the scheme and the host there are the account's name and password.
			url := regexp.MustCompile(`//.*@`).ReplaceAllString(w.url, "//reader:PASSWORD@")
			s := &scene{world: w, a: newReader(t, w, url), id: 1}
			s.b = s.a
			s.lineA, _ = newLine(t, w.url)
			s.write(t, s.id, "one")
			r := s.request("item")
			r.DependsOn = [][]any{{"seller", 7}}
			under := s.a.begin(t, r).loads(t)
			under.step(goRow)
			under.loads(t).step(goRow)
			under.ends(t, value("one"))
			s.a.begin(t, r).ends(t, value("one"))
			if n := w.rdb.ZCard(t.Context(), "inv:dep:seller:7").Val(); n != 1 {
				t.Errorf("%d dependents", n)
			}
			s.id++
			failing := s.a.begin(t, s.request("item")).loads(t)
			failing.step(goFail)
			failing.ends(t, failed)
			s.kind(t, s.key("item"), "")
			s.write(t, s.id, "one")
			s.a.begin(t, s.request("list")).loadsRow(t, value("one"))
			s.a.begin(t, s.request("list")).ends(t, value("one"))
		})
	}
}
